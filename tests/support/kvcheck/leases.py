"""Keys with a lease: there until one TTL after the last successful renewal was called, gone soon after.

A successful keep-alive found its lease alive at some moment after it was called. So the lease ends no sooner
than one TTL after that call, whenever the key is looked at. Only keys that nobody else may have
changed are judged: everything else is for the search.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.soak.checker import Violation
from tests.support.kvcheck.history import (
    LeaseCall,
    Op,
    Poll,
    Put,
    Result,
    Seen,
    branch_of,
    keys_of,
    may_write,
)
from tests.support.kvcheck.prepare import happened, reads_of
from tests.support.kvcheck.timeline import timeline
from tests.support.linearizability import NEVER


class LeaseRules(NamedTuple):
    """Times in ns. `drift`: by which part a server's clock may be faster or slower than the observers'.

    `late`: a key that nobody kept alive is gone so long after its TTL; None: not checked. A new leader starts
    every TTL again: `leader_changes` holds when one may have come. `unknown`: how long after its end a
    call without an answer may still be done. `put_renews`: a put with a lease starts its TTL again.
    """

    drift: float = 0.0
    late: int | None = None
    leader_changes: tuple[int, ...] = ()
    unknown: int = 10_000_000_000
    put_renews: bool = True


class _Held(NamedTuple):
    """A put with a lease that surely happened."""

    op: Op
    key: str
    value: str
    lease: int


class _Sight(NamedTuple):
    """Somebody saw a key between two times; `seen` absent for a watcher's delete."""

    call: int
    ret: int
    seen: Seen
    op: Op | None
    revision: int | None


def check_leases(
    ops: Sequence[Op], calls: Sequence[LeaseCall], polls: Sequence[Poll], rules: LeaseRules
) -> Iterator[Violation]:
    """`ops` are those of the search, with the revisions that are known, and without the ends of leases."""
    return _Leases(ops, calls, polls, rules).check()


class _Leases:
    def __init__(
        self, ops: Sequence[Op], calls: Sequence[LeaseCall], polls: Sequence[Poll], rules: LeaseRules
    ) -> None:
        self.rules = rules
        self.ttls = {call.lease: call.ttl for call in calls if call.kind == "grant"}
        self.calls: defaultdict[int, list[LeaseCall]] = defaultdict(list)
        for call in calls:
            if call.result is not Result.ERROR:
                self.calls[call.lease].append(call)
        self.held = [held for op in ops if happened(op) for held in _held(op)]
        keys = {held.key for held in self.held}
        self.writers: defaultdict[str, list[Op]] = defaultdict(list)
        self.sights: defaultdict[str, list[_Sight]] = defaultdict(list)
        for op in ops:
            for key in keys_of(op.request) & keys if may_write(op.request) else ():
                self.writers[key].append(op)
            for key, seen in reads_of(op):
                if key in keys and not may_write(op.request):
                    self.sights[key].append(_Sight(op.call, op.ret, seen, op, op.answer.revision))
        for poll in polls:
            for event in poll.events:
                if event.kind == "delete" and event.key in keys:
                    sight = _Sight(poll.call, poll.ret, Seen(False), None, event.revision)
                    self.sights[event.key].append(sight)

    def check(self) -> Iterator[Violation]:
        for held in self.held:
            if held.lease in self.ttls:
                yield from self._early(held)
                if self.rules.late is not None:
                    yield from self._late(held, self.rules.late)

    def _renewals(self, held: _Held) -> list[tuple[int, int, bool]]:
        """Call, latest moment, and whether it succeeded; revocations are none."""
        found = [
            (one.call, one.ret, one.result is Result.OK)
            for one in self.calls[held.lease]
            if one.kind != "revoke"
        ]
        if self.rules.put_renews:
            mine = (one for one in self.held if one.lease == held.lease)
            found += [(one.op.call, one.op.ret, one.op.result is Result.OK) for one in mine]
        return found

    def _early(self, held: _Held) -> Iterator[Violation]:
        good = [call for call, _, succeeded in self._renewals(held) if succeeded]
        ttl = self.ttls[held.lease]
        earliest = max(good, default=held.op.call) + int(ttl * (1 - self.rules.drift))
        for sight in self.sights[held.key]:
            if sight.ret < earliest and self._is_behind(sight, held) and not self._meddled(held, sight):
                if sight.seen.present:
                    continue
                text = (
                    f"{held.key} was gone {_ms(earliest - sight.ret)} or more before lease {held.lease} could"
                    f" end (TTL {_ms(ttl)}, last renewed at {_ms(max(good, default=held.op.call))},"
                    f" seen gone by {_ms(sight.ret)}):\n"
                )
                yield Violation("lease ended early", text + timeline([held.op, *_op(sight)]))
                return

    def _is_behind(self, sight: _Sight, held: _Held) -> bool:
        """Whether what was seen came after the put."""
        own = held.op.answer.revision
        if sight.revision is not None and own is not None:
            return sight.revision > own
        return sight.op is not None and held.op.result is Result.OK and sight.call > held.op.ret

    def _meddled(self, held: _Held, sight: _Sight) -> bool:
        """Whether anything but the lease's end may have removed the key between the put and the sight."""
        own = held.op.answer.revision
        for op in self.writers[held.key]:
            revision = op.answer.revision
            if op is held.op or op.call > sight.ret:
                continue
            if own is not None and revision is not None and revision < own:
                continue
            if op.result is Result.UNKNOWN or op.ret >= held.op.call:
                return True
        return any(one.kind == "revoke" and one.call <= sight.ret for one in self.calls[held.lease])

    def _late(self, held: _Held, late: int) -> Iterator[Violation]:
        ttl = int(self.ttls[held.lease] * (1 + self.rules.drift))
        renewals = self._renewals(held)
        for sight in self.sights[held.key]:
            if sight.op is None or not _same(sight.seen, held):
                continue
            moments = [
                ret if good else ret + self.rules.unknown for call, ret, good in renewals if call <= sight.ret
            ]
            moments += [one for one in self.rules.leader_changes if one <= sight.ret]
            latest = max(moments, default=NEVER)
            if sight.call > latest + ttl + late:
                text = (
                    f"{held.key} was still there {_ms(sight.call - latest - ttl)} after lease {held.lease}"
                    f" had ended (TTL {_ms(ttl)}, renewed at {_ms(latest)}, seen at {_ms(sight.call)}):\n"
                )
                yield Violation("lease ended late", text + timeline([held.op, sight.op]))
                return


def _held(op: Op) -> Iterator[_Held]:
    for action in branch_of(op) or ():
        if isinstance(action, Put) and action.lease:
            yield _Held(op, action.key, action.value, action.lease)


def _same(seen: Seen, held: _Held) -> bool:
    """Whether it is this put that was seen. Values must tell puts apart where revisions do not."""
    if not seen.present or seen.value != held.value:
        return False
    return seen.mod_revision is None or seen.mod_revision == held.op.answer.revision


def _op(sight: _Sight) -> list[Op]:
    return [] if sight.op is None else [sight.op]


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.3f} ms"
