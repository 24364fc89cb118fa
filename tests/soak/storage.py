"""The form `storage`: disks that are slow, stall, hang, fail, fill up, and tear the write that they die in.

Each node's processes run with the library of `tests/support/disk_faults.py`. What makes a node leave
consensus is checked when it is mended: that it did leave, and wrote nothing more; then it is restarted, as
an operator does.
"""

from __future__ import annotations

import contextlib
import errno
import random
import signal
from collections import Counter
from collections.abc import Sequence

from tests.soak.field import Field, send
from tests.soak.form import Fault, Form, Struck
from tests.soak.processes import start
from tests.support.disk_faults import Call, DiskFaults, Rule, delay, fail, hang, tear
from tests.support.pgcluster import Failed, Node, eventually

DISK_STALL_S = 4.0
"""`pgraft.disk_stall_timeout`: a stall that is shorter costs the lease, a hang the place in consensus."""
SLOW_MS = (5, 120)
SLOW_S = (1.0, 6.0)
STALL = (1.1, 2.5)
"""Election timeouts: the lease runs out, another leads, the node comes back by itself."""
OUT_S = (0.5, 3.0)
"""How long a node that has left consensus is left alone."""
TORN_BYTES_MAX = 4096
TORN_S = (0.2, 1.0)
CAUGHT_WAIT_S = 2.0
"""How long to wait for a call that hangs, to kill the process in it."""

COME_BACK_S = 3.0
"""How long a node may be silent after its disk is well, before it is restarted."""


class Disks:
    """The disks of all nodes."""

    def __init__(self) -> None:
        self._faults: dict[int, DiskFaults] = {}
        self.left = 0
        """How often a node has left consensus."""

    def add(self, node: Node) -> None:
        """From its next start on."""
        self._faults[node.node_id] = node.with_disk_faults()

    def of(self, node: Node) -> DiskFaults:
        """This node's."""
        return self._faults[node.node_id]

    def clear(self) -> None:
        """All are well again."""
        for faults in self._faults.values():
            faults.clear()

    def met(self) -> dict[str, int]:
        """Calls that met a rule so far, by what became of them."""
        calls = [call for faults in self._faults.values() for call in faults.calls()]
        return dict(Counter(f"{call.call}: {call.action}" for call in calls if call.action != "passed"))


class DiskFault(Fault):
    """One disk at a time has one thing wrong with it."""

    def __init__(self, disks: Disks) -> None:
        self.disks = disks

    def set(self, field: Field, nodes: Sequence[Node], *rules: Rule) -> bool:
        """Let the rules hold for these nodes; False when one of them has a fault already."""
        if not field.claim(*((node.name, "disk") for node in nodes)):
            return False
        for node in nodes:
            self.disks.of(node).set(*rules)
        return True

    def mend(self, field: Field, nodes: Sequence[Node]) -> None:
        """Their disks are well again, and they run: one that died of it, or has left, is started again."""
        try:
            for node in nodes:
                self.disks.of(node).clear()
                look_after(field, node)
        finally:
            field.release(*((node.name, "disk") for node in nodes))


class Slow(DiskFault):
    """Every sync takes longer, for seconds."""

    kind = "slow disk"
    weight = 3

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, ms, lasts_s = field.choose(chance), chance.randint(*SLOW_MS), chance.uniform(*SLOW_S)
        if not self.set(field, [node], delay("fdatasync", ms)):
            return None
        return Struck(f"{node.name} by {ms} ms", lasts_s, lambda: self.mend(field, [node]))


class Stall(DiskFault):
    """One sync, or write, takes longer than the election timeout; `all_nodes`: on all disks at a time."""

    def __init__(self, disks: Disks, call: str, *, all_nodes: bool = False) -> None:
        super().__init__(disks)
        self._call = call
        self._all = all_nodes
        self.kind = f"stalled {call}{' everywhere' if all_nodes else ''}"
        self.weight = 1 if all_nodes else 4

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, stall_s = field.choose(chance), chance.uniform(*STALL) * field.election_timeout_s
        nodes = field.nodes if self._all else [node]
        if not self.set(field, nodes, delay(self._call, int(stall_s * 1000), times=1)):
            return None
        what = ", ".join(one.name for one in nodes)
        return Struck(f"{what} for {stall_s:.2f} s", stall_s, lambda: self.mend(field, nodes))


class CaughtInSync(DiskFault):
    """kill -9 of a worker in the middle of a sync."""

    kind = "kill worker in a sync"
    weight = 2

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node = field.choose(chance)
        if not self.set(field, [node], hang("fdatasync")):
            return None
        try:
            before = len(self.disks.of(node).calls("hang"))
            ref = field.part(node, "worker")
            if ref is None or not self._in_sync(node, before):
                return None
            return Struck(f"worker of {node.name}") if send(ref, signal.SIGKILL) else None
        finally:
            self.mend(field, [node])

    def _in_sync(self, node: Node, before: int) -> bool:
        """Whether more calls than `before` hang, soon."""
        with contextlib.suppress(Failed):
            eventually(lambda: len(self.disks.of(node).calls("hang")) > before, "a sync", CAUGHT_WAIT_S)
            return True
        return False


class Torn(DiskFault):
    """The worker dies after a part of a write, again and again until the disk is well."""

    kind = "torn write"
    weight = 3

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, written, lasts_s = (
            field.choose(chance),
            chance.randint(0, TORN_BYTES_MAX),
            chance.uniform(*TORN_S),
        )
        if not self.set(field, [node], tear(written)):
            return None

        return Struck(f"{node.name} after {written} bytes", lasts_s, lambda: self.mend(field, [node]))


class HungStart(DiskFault):
    """The worker is killed, and its successor meets a disk that hangs."""

    kind = "disk hangs at the start"
    weight = 1

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, lasts_s = field.choose(chance), chance.uniform(*STALL) * field.election_timeout_s
        if not self.set(field, [node], hang("fdatasync"), hang("fsync"), hang("pwrite")):
            return None
        ref = field.part(node, "worker")
        killed = ref is not None and send(ref, signal.SIGKILL)

        what = f"{node.name}{'' if killed else ', which was down'}"
        return Struck(what, lasts_s, lambda: self.mend(field, [node]))


class Leaves(DiskFault):
    """What makes a node leave consensus, one node at a time, until it is restarted with a good disk."""

    weight = 2

    def __init__(self, disks: Disks, kind: str, *rules: Rule, known_after_s: float = 0) -> None:
        super().__init__(disks)
        self.kind = kind
        self._rules = rules
        self._known_after_s = known_after_s

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, lasts_s = field.choose(chance), chance.uniform(*OUT_S)
        if not field.claim("out of consensus"):
            return None
        faults, action = self.disks.of(node), self._rules[0].action
        before = len(faults.calls())
        if not self.set(field, [node], *self._rules):
            field.release("out of consensus")
            return None

        def mend() -> None:
            try:
                met = {call.pid for call in faults.calls()[before:] if call.action == action}
                if met:
                    eventually(lambda: _is_out(node, met), f"{node.name} to leave consensus")
                    _is_quiet(node, faults.calls()[before:])
                    self.disks.left += 1
            finally:
                self.mend(field, [node])
                field.release("out of consensus")

        return Struck(node.name, self._known_after_s + lasts_s, mend)


def _is_out(node: Node, pids: set[int]) -> bool:
    """Whether every process that met the fault is gone, as at its start, or takes no part in consensus."""
    status = node.status()
    return status["state"] == "error" or status["pids"]["worker"] not in pids


def _is_quiet(node: Node, calls: Sequence[Call]) -> None:
    """Nobody who was told that a call had failed has written or synced since."""
    failed = {call.pid for call in calls if call.action == "fail"}
    passed = [call for call in calls if call.action == "passed" and call.pid in failed]
    assert not passed, f"{node.name} went on after a failed call: {passed[:5]}"


def look_after(field: Field, node: Node) -> None:
    """Start a node that is looked after by nobody, or whose worker has left."""
    if field.part(node, "supervisor") is None:
        start(node)
    elif not _comes_back(node):
        restart(node)


def _comes_back(node: Node) -> bool:
    """Whether it takes part: one that was just silent needs a moment, one that has left never does."""
    with contextlib.suppress(Failed):
        eventually(lambda: node.status()["state"] != "error", f"{node.name} to come back", COME_BACK_S)
        return True
    return False


def restart(node: Node) -> None:
    """`pgraft-launch restart`, as the docs tell an operator who has mended a disk. Raises Failed."""
    start(node, "restart")


class Storage(Form):
    """Nodes on loopback with disks that fail."""

    name = "storage"

    def __init__(self) -> None:
        self._disks = Disks()
        self._met: dict[str, int] = {}

    def settings(self) -> dict[str, str]:
        """A hang is soon one."""
        return {"disk_stall_timeout": f"{DISK_STALL_S:g}s", "log_segment_size": "1"}

    def prepare(self, node: Node) -> None:
        """See Form."""
        self._disks.add(node)

    def faults(self) -> Sequence[Fault]:
        """See Form."""
        disks = self._disks
        full = (fail("fallocate", errno.ENOSPC), fail("pwrite", errno.ENOSPC))
        return (
            Slow(disks),
            Stall(disks, "fdatasync"),
            Stall(disks, "pwrite"),
            Stall(disks, "fdatasync", all_nodes=True),
            CaughtInSync(disks),
            Torn(disks),
            HungStart(disks),
            Leaves(disks, "failed fdatasync", fail("fdatasync", errno.EIO, times=1)),
            Leaves(disks, "failed write", fail("pwrite", errno.EIO, times=1)),
            Leaves(disks, "full disk", *full),
            Leaves(disks, "hung fdatasync", hang("fdatasync"), known_after_s=DISK_STALL_S),
            Leaves(disks, "hung write", hang("pwrite"), known_after_s=DISK_STALL_S),
        )

    def calm(self, field: Field) -> None:
        """See Form."""
        self._disks.clear()
        for node in field.nodes:
            look_after(field, node)
        self._met = self._disks.met()

    def report(self) -> dict[str, int | float | str]:
        """What the faults have met."""
        return {"times a node left consensus": self._disks.left, **self._met}
