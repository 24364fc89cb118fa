"""Clients: they write, read and look entries up, and check that what they see is linearizable.

The replicated log is the object: a write takes one place in it, a read sees it up to some place. So
real time has to agree with places: what begins after something was answered gets a later place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgraft.node.commands import Answer
from pgraft.shm.layout import CommandKind, Outcome
from tests.simulation.checks import require
from tests.simulation.host import Request
from tests.simulation.profile import MS

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.host import Host

PATIENCE_NS = 1500 * MS
"""After so long without an answer, a session is cancelled: its node is down."""
PAUSE_NS = 6 * MS
TIMEOUTS_MS = (20, 100, 400)
REFUSED_NS = 40 * MS
"""After a refusal, as where no leader is known, it tries again."""


class Client:
    """One session at a time. `since` is the newest place that was answered before its command began."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.sequence = 0
        self.name = b""
        self.since = 0
        self.until = 0
        self.turn = 0
        self._pause_ns = 0

    def act(self) -> None:
        """Begin an operation, or give up waiting for one."""
        cluster = self.cluster
        rng = cluster.rng
        if self.name:
            if cluster.now < self.until:
                return
            cluster.counts["given_up"] += 1
            self.name = b""
        self.since = cluster.answered
        what = rng.random()
        if what < 0.2:
            self._read_by_lease()
            return
        kind = CommandKind.REPLICATE
        if what > 0.9:
            kind = CommandKind.GET_ENTRY
        elif what > 0.75:
            kind = CommandKind.READ_BARRIER
        self._submit(kind)

    def wait_ns(self) -> int:
        """When to act next: as soon as an answer is overdue, or after a pause. An answer wakes it, too."""
        if self.name:
            return max(1, self.until - self.cluster.now)
        pause, self._pause_ns = self._pause_ns, 0
        return 1 + pause + int(self.cluster.rng.random() * 2 * PAUSE_NS)

    def _pick(self) -> Host | None:
        cluster = self.cluster
        hosts = [host for host in cluster.hosts.values() if host.up]
        if not hosts:
            return None
        leading = [host for host in hosts if host.leads]
        if leading and cluster.rng.random() < 0.7:
            return cluster.rng.choice(leading)
        return cluster.rng.choice(hosts)

    def _submit(self, kind: CommandKind) -> None:
        cluster, rng = self.cluster, self.cluster.rng
        host = self._pick()
        if host is None:
            return
        self.sequence += 1
        self.name = b"c%d:%d:" % (self.number, self.sequence) + bytes(rng.choice((0, 10, 120)))
        self.until = cluster.now + PATIENCE_NS
        arg1 = rng.randrange(1, max(2, cluster.checks.highest + 2)) if kind == CommandKind.GET_ENTRY else 0
        data = self.name if kind == CommandKind.REPLICATE else b""
        forward = rng.random() < 0.6
        request = Request(self.number, self.sequence, kind, data, arg1, 0, rng.choice(TIMEOUTS_MS), forward)
        cluster.counts[kind.name.lower()] += 1
        cluster.guarded(host, lambda: host.submit(request))
        for _ in range(rng.choice((0, 0, 0, 1, 4))):
            filler = Request(-1, 0, CommandKind.REPLICATE, b"f%d" % rng.getrandbits(48), forward=forward)
            cluster.guarded(host, lambda one=filler: host.submit(one))

    def _read_by_lease(self) -> None:
        """What a session sees where pgraft_is_leader() is true, whether the worker lives or not."""
        cluster = self.cluster
        for host in cluster.hosts.values():
            if host.lease_valid and host.status is not None:
                cluster.counts["lease_reads"] += 1
                self._read_at(host.status.commit_index, f"a read under the lease of node {host.id}")
                return

    def answered(self, host: Host, request: Request, answer: Answer) -> None:
        """The outcome of a command, perhaps of one that this session does not wait for any more."""
        cluster, checks = self.cluster, self.cluster.checks
        outcome = answer.outcome
        waits = bool(self.name) and request.number == self.sequence
        if request.kind == CommandKind.REPLICATE:
            if outcome == Outcome.OK:
                checks.acknowledged(request.data, answer.value1)
            elif outcome in (Outcome.ERROR_STATE, Outcome.ERROR_ARGUMENT):
                checks.refused(request.data)
        elif request.kind == CommandKind.GET_ENTRY and outcome == Outcome.DATA:
            checks.looked_up(host, request.arg1, answer.payload)
        cluster.counts[f"{CommandKind(request.kind).name.lower()}_{outcome.name.lower()}"] += 1
        if not waits:
            return
        self.name = b""
        if outcome in (Outcome.ERROR_STATE, Outcome.ERROR_UNKNOWN):
            self._pause_ns = REFUSED_NS
        cluster.wake(self)
        if outcome != Outcome.OK:
            return
        if request.kind == CommandKind.READ_BARRIER:
            self._read_at(answer.value1, f"a read barrier on node {host.id}")
        elif request.kind == CommandKind.REPLICATE:
            index = answer.value1
            require(
                index > self.since,
                f"write {request.data!r} is at {index}, but {self.since} was answered before it began",
            )
            cluster.counts["acknowledged"] += 1
            cluster.answer(index)

    def _read_at(self, index: int, what: str) -> None:
        cluster = self.cluster
        require(
            index >= self.since, f"{what} sees the log up to {index}, but {self.since} was answered before"
        )
        require(
            index <= cluster.checks.highest, f"{what} sees {index}, committed is {cluster.checks.highest}"
        )
        cluster.answer(index)
