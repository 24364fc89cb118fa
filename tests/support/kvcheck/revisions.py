"""What revisions prove: they number the successful writes of the whole store in the order of linearization.

A write is done between its call and its answer. A read that saw revision 9 proves that every write up to
9 had been done when it was answered; a read that saw revision 4 of a key whose next write is 7 proves that
7 had not been done when it was called. So each numbered write gets a narrower span of time; where nothing is
left, two operations contradict each other. When all revisions are known, this alone decides.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from tests.soak.checker import Violation
from tests.support.kvcheck.history import Op, Result
from tests.support.kvcheck.prepare import Sighting, happened, reads_of, writes_of
from tests.support.kvcheck.timeline import describe, describe_sighting, timeline
from tests.support.linearizability import NEVER


class Span(NamedTuple):
    """When an operation can have been done."""

    first: int
    last: int


class Limit(NamedTuple):
    """A bound of a write's time, and the operation that proves it; None for a watcher's event."""

    time: int
    because: Op | Sighting


class Numbered:
    """The writes whose revision is known."""

    def __init__(self, ops: list[Op]) -> None:
        self.ops = ops
        self.at: dict[int, int] = {}
        self.of_key: defaultdict[str, list[int]] = defaultdict(list)
        self.twice: list[tuple[int, int]] = []
        for index, op in enumerate(ops):
            written = writes_of(op)
            if op.answer.revision is None or not written:
                continue
            if self.at.setdefault(op.answer.revision, index) != index:
                self.twice.append((self.at[op.answer.revision], index))
                continue
            for key in written:
                self.of_key[key].append(op.answer.revision)
        self.revisions = sorted(self.at)
        for revisions in self.of_key.values():
            revisions.sort()

    def next_of_key(self, key: str, revision: int) -> int | None:
        """The key's next known write behind a revision."""
        revisions = self.of_key.get(key, [])
        place = bisect_right(revisions, revision)
        return revisions[place] if place < len(revisions) else None


def check_revisions(
    numbered: Numbered, sightings: Iterable[Sighting], groups: Iterable[list[Op]]
) -> tuple[list[Span], list[Violation]]:
    """The span of each operation, and what contradicts itself whatever the keys hold."""
    early, late = _limits(numbered, sightings)
    spans = [Span(op.call, op.ret if op.result is Result.OK else NEVER) for op in numbered.ops]
    violations = [*_twice(numbered), *_not_one_moment(numbered, groups), *_went_back(numbered)]
    for place, revision in enumerate(numbered.revisions):
        if early[place].time > late[place].time:
            violations.append(_contradiction(revision, early[place], late[place]))
            return [
                Span(op.call, span.last) for op, span in zip(numbered.ops, spans, strict=True)
            ], violations
        spans[numbered.at[revision]] = Span(early[place].time, late[place].time)
    return spans, violations


def _limits(numbered: Numbered, sightings: Iterable[Sighting]) -> tuple[list[Limit], list[Limit]]:
    """Of each numbered write, in order of revisions: not before, and not after."""
    writes = [numbered.ops[numbered.at[one]] for one in numbered.revisions]
    early = [Limit(op.call, op) for op in writes]
    late = [Limit(op.ret if op.result is Result.OK else NEVER, op) for op in writes]
    for sighting in sightings:
        _lower(late, bisect_right(numbered.revisions, sighting.revision) - 1, sighting.told, sighting)
    for op in numbered.ops:
        if op.result is Result.OK:
            _apply(numbered, op, early, late)
    for place in range(1, len(writes)):
        early[place] = max(early[place - 1 : place + 1], key=lambda limit: limit.time)
    for place in range(len(writes) - 2, -1, -1):
        late[place] = min(late[place : place + 2], key=lambda limit: limit.time)
    return early, late


def _apply(numbered: Numbered, op: Op, early: list[Limit], late: list[Limit]) -> None:
    """What one answered operation proves of numbered writes."""
    if op.answer.revision is not None:
        place = bisect_right(numbered.revisions, op.answer.revision)
        _lower(late, place - 1, op.ret, op)
        _raise(early, place, op.call, op)
    for key, seen in reads_of(op):
        if seen.mod_revision is not None:
            following = numbered.next_of_key(key, seen.mod_revision)
            if following is not None and following != op.answer.revision:
                _raise(early, bisect_left(numbered.revisions, following), op.call, op)


def _lower(late: list[Limit], place: int, time: int, because: Op | Sighting) -> None:
    if place >= 0 and time < late[place].time:
        late[place] = Limit(time, because)


def _raise(early: list[Limit], place: int, time: int, because: Op | Sighting) -> None:
    if place < len(early) and time > early[place].time:
        early[place] = Limit(time, because)


def _contradiction(revision: int, early: Limit, late: Limit) -> Violation:
    """Both limits are operations: a sighting is an upper one only."""
    assert isinstance(early.because, Op)
    second = describe(late.because) if isinstance(late.because, Op) else describe_sighting(late.because)
    text = (
        f"revision {revision} (or a later one) had been given when this ended:\n  {second}\n"
        f"but revision {revision} (or an earlier one) had not yet been given when this began later:\n"
        f"  {describe(early.because)}\n"
    )
    shown = [one for one in (late.because, early.because) if isinstance(one, Op)]
    return Violation("revisions against time", text + timeline(shown))


def _twice(numbered: Numbered) -> Iterator[Violation]:
    for one, other in numbered.twice:
        pair = [numbered.ops[one], numbered.ops[other]]
        text = f"revision {pair[0].answer.revision} was answered to two writes:\n"
        yield Violation("revision given twice", text + timeline(pair))


def _not_one_moment(numbered: Numbered, groups: Iterable[list[Op]]) -> Iterator[Violation]:
    """Keys that were read at once stood like this at one revision."""
    for group in [*groups, *([op] for op in numbered.ops if len(op.answer.results) > 1)]:
        seen = [(op, key, one.mod_revision) for op in group for key, one in reads_of(op)]
        known = [(revision, key, op) for op, key, revision in seen if revision is not None]
        if not known:
            continue
        newest, key, op = max(known, key=lambda one: one[0])
        for revision, other, _ in known:
            following = numbered.next_of_key(other, revision)
            if following is not None and following <= newest and following != op.answer.revision:
                text = (
                    f"{describe(op)}\nsaw {other} at revision {revision}, replaced at {following},"
                    f" but also {key} at revision {newest}"
                )
                yield Violation("not one moment", text)
                break


def _went_back(numbered: Numbered) -> Iterator[Violation]:
    """The store's own revision, as told with any answer, never falls."""
    ended: list[tuple[int, int, int]] = []
    floor, newest = 0, -1
    for index in sorted(range(len(numbered.ops)), key=lambda index: numbered.ops[index].call):
        op = numbered.ops[index]
        if op.result is not Result.OK or op.answer.revision is None:
            continue
        while ended and ended[0][0] < op.call:
            floor, newest = max((floor, newest), heapq.heappop(ended)[1:])
        if op.answer.revision < floor:
            text = "the store's revision was lower than one that had been answered before:\n"
            yield Violation("revision went back", text + timeline([numbered.ops[newest], op]))
        heapq.heappush(ended, (op.ret, op.answer.revision, index))


def orders(numbered: Numbered, members: list[int]) -> list[int]:
    """For the operations of a partition: the bitset of those that come before each, by their revisions.

    Numbered writes follow each other. A read stands between the write it saw and the key's next one, and
    between the writes on both sides of the store's revision, when that was told with it.
    """
    bit = {index: 1 << place for place, index in enumerate(members)}
    after = dict.fromkeys(members, 0)
    writes = [
        index for index in members if numbered.at.get(numbered.ops[index].answer.revision or 0) == index
    ]
    writes.sort(key=lambda index: numbered.ops[index].answer.revision or 0)
    for one, other in pairwise(writes):
        after[other] |= bit[one]
    told = [numbered.ops[index].answer.revision or 0 for index in writes]
    for index in members:
        revision = numbered.ops[index].answer.revision
        if not happened(numbered.ops[index]):
            continue
        if revision is not None and numbered.at.get(revision) != index:
            place = bisect_right(told, revision)
            after[index] |= bit[writes[place - 1]] if place else 0
            if place < len(writes):
                after[writes[place]] |= bit[index]
        for key, seen in reads_of(numbered.ops[index]):
            if seen.mod_revision is None:
                continue
            origin = numbered.at.get(seen.mod_revision, index)
            if origin != index and origin in bit:
                after[index] |= bit[origin]
            following = numbered.at.get(numbered.next_of_key(key, seen.mod_revision) or 0, index)
            if following != index and following in bit:
                after[following] |= bit[index]
    return [after[index] for index in members]
