"""A store that breaks its promise once, and whether the history of its clients shows that for sure."""

from __future__ import annotations

import enum

from tests.support.kvcheck.history import ABSENT, Answer, Compare, Get, Op, Put, Result, Seen, get
from tests.unit.support.kv_simulation import MS, TTL, Profile, Simulation
from tests.unit.support.kv_store import NEVER_WRITTEN, Version


class Fault(enum.Enum):
    """What the store does wrong, once."""

    STALE = "a stale read"
    LOST = "a lost put"
    TWICE = "a put applied twice"
    CAS = "a cas that succeeded twice"
    EARLY = "an early lease expiry"


class Broken(Simulation):
    """`fired`: it happened. `sure`: and no order explains what the clients were told."""

    def __init__(self, seed: int, profile: Profile, fault: Fault) -> None:
        super().__init__(seed, profile)
        self.fault = fault
        self.fired = False
        self.sure = False
        self.broken: tuple[Op, Version] | None = None

    def apply(self, op: Op) -> Answer:
        """With the fault, when its time has come."""
        if self.fault is not None and not self.fired and self.left < self.profile.ops * 0.7:
            broken = self.misapply(op)
            if broken is not None:
                return broken
        return super().apply(op)

    def misapply(self, op: Op) -> Answer | None:
        """The wrong answer of a broken store; None when this request gives no occasion."""
        action = op.request.then[0]
        simple = not op.request.compares and len(op.request.then) == 1 and op.result is Result.OK
        if self.fault is Fault.STALE and simple and isinstance(action, Get):
            return self.read_stale(op)
        if self.fault is Fault.LOST and simple and isinstance(action, Put):
            return self.lose(op)
        if self.fault is Fault.TWICE and simple and isinstance(action, Put):
            self.fired = True
            self.at(op.ret + 3 * self.delay(), lambda: self.apply_again(op))
        if self.fault is Fault.CAS and len(op.request.compares) == len(op.request.then) == 1:
            return self.succeed_twice(op, op.request.compares[0])
        return None

    def read_stale(self, op: Op) -> Answer | None:
        """What the key was before a write that had been answered."""
        previous, current = ([NEVER_WRITTEN] * 2 + self.store.versions.get(op.request.then[0].key, []))[-2:]
        if not follows(current, op) or not previous.value or current.op is None:
            return None
        if not follows(previous, current.op):
            return None
        self.fired = self.sure = True
        return Answer(None, (previous.seen(),), self.store.revision)

    def lose(self, op: Op) -> Answer | None:
        """A revision is used up, and nothing is written."""
        current = self.store.now(op.request.then[0].key)
        if current.value is None or not follows(current, op):
            return None
        self.fired = True
        self.broken = (op, current)
        self.store.revision += 1
        return Answer(None, (None,), self.store.revision)

    def succeed_twice(self, op: Op, compare: Compare) -> Answer | None:
        """Although the key has moved on from the revision that is expected."""
        versions = self.store.versions.get(compare.key, [])
        places = [place for place, one in enumerate(versions[:-1]) if one.revision == compare.operand]
        if not places or versions[places[0]].value is None:
            return None
        self.fired = True
        first, second = versions[places[0] : places[0] + 2]
        if second.op is not None and op.result is Result.OK:
            self.sure = follows(second, op) and follows(first, second.op)
        return self.store.apply(op.request, op, force=True)

    def apply_again(self, op: Op) -> None:
        """The second time, as a retry that nobody asked for."""
        before = self.store.now(op.request.then[0].key)
        self.store.apply(op.request, op)
        self.broken = (op, before)

    def saw(self, op: Op, key: str, told: Seen) -> None:
        """Whether this answer shows a fault that has been there for a while."""
        super().saw(op, key, told)
        if self.broken is None or op.result is not Result.OK:
            return
        wrong, other = self.broken
        if key != wrong.request.then[0].key or op.call < wrong.ret:
            return
        if self.fault is Fault.LOST and told.present and told.mod_revision == other.revision:
            self.sure = True
        now = self.store.now(key)
        if self.fault is Fault.TWICE and now.op is wrong and told.mod_revision == now.revision:
            between = other.op
            if between is not None and between is not wrong and wrong.ret < between.call:
                self.sure = self.sure or follows(other, op)

    def expiry(self, last: int, put: Op) -> int:
        if self.fault is not Fault.EARLY or self.fired:
            return super().expiry(last, put)
        self.fired = True
        legal = last - 1 + TTL
        self.at(legal, lambda: self.judge_lease(put, legal))
        return last + 20 * MS

    def judge_lease(self, put_op: Op, legal: int) -> None:
        """Whether a read or a watcher told that the key was gone before it could be."""
        reads = (
            op
            for op in self.history.ops
            if op.result is Result.OK and not op.local and op.request == get("lease")
        )
        self.sure = any(
            op.call > put_op.ret and op.ret < legal and op.answer.results == (ABSENT,) for op in reads
        )


def follows(version: Version, op: Op) -> bool:
    """Whether a version was surely written before an operation began."""
    return version.op is not None and version.op.result is Result.OK and version.op.ret < op.call
