"""Clients: they write, read and retry, and check that what they see is linearizable.

The replicated log is the object: a write takes one place in it, a read sees it up to some place. So
real time has to agree with places: what begins after something was answered gets a later place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgraft.raft import RaftError
from tests.simulation.checks import require

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.host import Host

PATIENCE_US = 400_000
"""After so long without an answer, a client does not know, and tries again elsewhere."""
PAUSE_US = 6_000
REFUSED_US = 40_000
"""After a refusal, as where no leader is known, it tries again."""


class Client:
    """One client: one operation at a time. `since` is the newest place that was answered before it began."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.sequence = 0
        self.name = b""
        self.since = 0
        self.deadline = 0
        self.is_write = False
        self.reads = 0
        self.turn = 0

    def act(self) -> None:
        """Begin an operation, or give up waiting for one."""
        cluster = self.cluster
        rng = cluster.rng
        if self.name:
            if cluster.now < self.deadline:
                return
            cluster.counts["unknown"] += 1
            if self.is_write:
                self._submit()  # the same command again: it counts once
                return
            self.name = b""
        what = rng.random()
        self.since = cluster.answered
        if what < 0.6:
            self.sequence += 1
            self.name = b"c%d:%d:" % (self.number, self.sequence) + bytes(rng.choice((0, 10, 120)))
            self.is_write = True
            self._submit()
        elif what < 0.8:
            self._read()
        else:
            self._read_by_lease()

    def wait_us(self) -> int:
        """When to act next: as soon as an answer is overdue, or after a pause. An answer wakes it, too."""
        if self.name:
            return max(1, self.deadline - self.cluster.now)
        return 1 + int(self.cluster.rng.random() * 2 * PAUSE_US)

    def _pick(self) -> Host | None:
        cluster = self.cluster
        hosts = [host for host in cluster.hosts.values() if host.up and not cluster.is_held(host)]
        if not hosts:
            return None
        leading = [host for host in hosts if host.leads]
        if leading and cluster.rng.random() < 0.8:
            return cluster.rng.choice(leading)
        return cluster.rng.choice(hosts)

    def _submit(self) -> None:
        cluster = self.cluster
        self.deadline = cluster.now + PATIENCE_US
        host = self._pick()
        if host is None:
            return
        host.waiting[self.name] = self.number
        count = cluster.rng.choice((1, 1, 1, 2, 5))
        fillers = [b"f%d" % cluster.rng.randrange(1000)] * (count - 1)
        try:
            host.raw.propose_entries([self.name, *fillers])
        except RaftError:
            del host.waiting[self.name]
            self.deadline = cluster.now + REFUSED_US
            return
        cluster.counts["writes"] += 1
        cluster.turn(host)

    def _read(self) -> None:
        cluster = self.cluster
        host = self._pick()
        if host is None:
            return
        if cluster.profile.lease_reads and not host.lease_valid:
            return
        self.reads += 1
        self.is_write = False
        self.name = b"r%d:%d" % (self.number, self.reads)
        self.deadline = cluster.now + PATIENCE_US
        host.reads[self.name] = self.number
        try:
            host.raw.read_index(self.name)
        except RaftError:
            self.name = b""
            return
        cluster.counts["reads"] += 1
        cluster.turn(host)

    def _read_by_lease(self) -> None:
        """What a session sees where pgraft_is_leader() is true."""
        cluster = self.cluster
        for host in cluster.hosts.values():
            if host.up and host.leads and host.lease_valid and not cluster.is_held(host):
                cluster.counts["lease_reads"] += 1
                self._read_at(host.raw.raft.raft_log.committed, f"a read under the lease of node {host.id}")
                return

    def read_answered(self, host: Host, name: bytes, index: int) -> None:
        """A ReadIndex was answered."""
        if name == self.name:
            self._done()
            self._read_at(index, f"a read barrier on node {host.id}")

    def _done(self) -> None:
        self.name = b""
        self.cluster.wake(self)

    def _read_at(self, index: int, what: str) -> None:
        cluster = self.cluster
        require(
            index >= self.since, f"{what} sees the log up to {index}, but {self.since} was answered before"
        )
        require(
            index <= cluster.checks.highest, f"{what} sees {index}, committed is {cluster.checks.highest}"
        )
        cluster.answer(index)

    def write_answered(self, name: bytes, index: int) -> None:
        """The command was applied where it was given; `index` is the first place that it got."""
        if name != self.name:
            return
        self._done()
        require(
            index > self.since, f"write {name!r} is at {index}, but {self.since} was answered before it began"
        )
        self.cluster.counts["acknowledged"] += 1
        self.cluster.answer(index)
