"""From a history to operations for the search: listings become gets, the ends of leases become deletes.

Also what everybody saw of single writes (`Sighting`), and which writes thereby have a known revision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from tests.support.kvcheck.history import (
    ABSENT,
    UNTOLD,
    Answer,
    Delete,
    Drop,
    Get,
    History,
    LeaseCall,
    Listing,
    Op,
    Put,
    Request,
    Result,
    Seen,
    branch_of,
    get,
    keys_of,
    may_write,
)


class Sighting(NamedTuple):
    """Somebody saw that a write of this value has this revision; `op` is None for a watcher's event."""

    key: str
    value: str
    revision: int
    told: int
    op: Op | None


class Prepared(NamedTuple):
    """`ops` are for the search, `local` may be old, `groups` are gets that were answered at one moment."""

    ops: list[Op]
    local: list[Op]
    groups: list[list[Op]]
    sightings: list[Sighting]


def prepare(history: History, drift: float) -> Prepared:
    """Refused operations did not happen, and are left out; so are reads that nobody answered."""
    ops = [op for op in history.ops if op.result is Result.OK]
    lost = (op for op in history.ops if op.result is Result.UNKNOWN and may_write(op.request))
    ops += [msgspec.structs.replace(op, answer=UNTOLD) for op in lost]
    keys = sorted(set().union(*(keys_of(op.request) for op in ops), _rows(history.listings)))
    groups = [(one, list(_gets(one, keys))) for one in history.listings]
    now = [op for op in ops if not op.local]
    now += [op for one, gets in groups if not one.local for op in gets]
    local = [op for op in ops if op.local]
    local += [op for one, gets in groups if one.local for op in gets]
    sightings = [*_seen_by_reads(now + local), *_seen_by_watchers(history)]
    drops = [*ends_of_leases(ops, history.leases, drift)]
    return Prepared(now + drops, local, [gets for _, gets in groups], sightings)


def _rows(listings: Iterable[Listing]) -> set[str]:
    return {row.key for one in listings for row in one.rows}


def _gets(listing: Listing, keys: Iterable[str]) -> Iterator[Op]:
    """Each key by itself; that they agree with each other is checked by revisions."""
    seen = {row.key: row.seen for row in listing.rows}
    for key in keys:
        if key.startswith(listing.prefix):
            answer = Answer(results=(seen.get(key, ABSENT),), revision=listing.revision)
            yield Op(
                listing.client,
                listing.node,
                listing.call,
                listing.ret,
                get(key),
                answer=answer,
                local=listing.local,
            )


def ends_of_leases(ops: Iterable[Op], calls: Iterable[LeaseCall], drift: float) -> Iterator[Op]:
    """A key may vanish once its lease's first TTL is over, and does when the lease is revoked.

    `leases` says whether it vanished too early after a keep-alive.
    """
    held: defaultdict[int, set[str]] = defaultdict(set)
    for op in ops:
        for action in (*op.request.then, *op.request.otherwise):
            if isinstance(action, Put) and action.lease:
                held[action.lease].add(action.key)
    for call in calls:
        if call.kind == "keep_alive" or call.result is Result.ERROR:
            continue
        revoked = call.kind == "revoke"
        when = call.call if revoked else call.call + int(call.ttl * (1 - drift))
        result = call.result if revoked else Result.UNKNOWN
        for key in sorted(held[call.lease]):
            yield Op(
                call.client,
                call.node,
                when,
                max(when, call.ret),
                Request((Drop(key, call.lease),)),
                result,
            )


def reads_of(op: Op) -> Iterator[tuple[str, Seen]]:
    """Each key that was read, and what was seen; after a write of the same request it is no news."""
    branch = branch_of(op) or ()
    written: set[str] = set()
    for action, told in zip(branch, op.answer.results, strict=False):
        if isinstance(action, Get) and isinstance(told, Seen) and action.key not in written:
            yield action.key, told
        elif not isinstance(action, Get):
            written.add(action.key)


def writes_of(op: Op) -> set[str] | None:
    """The keys that a request surely wrote if it happened; None when that is not told."""
    branch = branch_of(op)
    if branch is None:
        return None
    told = (*op.answer.results, *[None] * len(branch))
    written = set()
    for action, result in zip(branch, told, strict=False):
        if isinstance(action, Drop) or (isinstance(action, Delete) and result is None):
            return None
        if isinstance(action, Put) or (isinstance(action, Delete) and result is True):
            written.add(action.key)
    return written


def _seen_by_reads(ops: Iterable[Op]) -> Iterator[Sighting]:
    for op in ops:
        for key, seen in reads_of(op):
            if seen.value is not None and seen.mod_revision is not None:
                yield Sighting(key, seen.value, seen.mod_revision, op.ret, op)


def _seen_by_watchers(history: History) -> Iterator[Sighting]:
    for poll in history.polls:
        for event in poll.events:
            if event.value is not None:
                yield Sighting(event.key, event.value, event.revision, poll.ret, None)


def with_revisions(ops: list[Op], sightings: Iterable[Sighting]) -> list[Op]:
    """Writes without a revision get the one at which their value was seen, where only one can have set it."""
    writers: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, op in enumerate(ops):
        branch = branch_of(op)
        for action in (*op.request.then, *op.request.otherwise) if branch is None else branch:
            if isinstance(action, Put):
                writers[action.key, action.value].add(index)
    found = list(ops)
    for sighting in sightings:
        able = writers.get((sighting.key, sighting.value), set())
        if len(able) == 1:
            (index,) = able
            if found[index].answer.revision is None:
                found[index] = _proved(found[index], sighting)
    return found


def _proved(op: Op, sighting: Sighting) -> Op:
    """The operation happened, by the branch that sets this value."""
    answer = msgspec.structs.replace(op.answer, revision=sighting.revision)
    if answer.succeeded is None and op.request.compares:
        sets = [
            any(isinstance(one, Put) and (one.key, one.value) == sighting[:2] for one in branch)
            for branch in (op.request.then, op.request.otherwise)
        ]
        answer = msgspec.structs.replace(answer, succeeded=None if all(sets) else sets[0])
    return msgspec.structs.replace(op, answer=answer)


def happened(op: Op) -> bool:
    """Whether it is known to have been done: answered, or seen."""
    return op.result is Result.OK or op.answer.revision is not None
