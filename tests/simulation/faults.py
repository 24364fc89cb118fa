"""What is done to a cluster, and what makes it end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgraft.raft import (
    ConfChange,
    ConfChangeSingle,
    ConfChangeType,
    ConfChangeV2,
    RaftError,
    StateType,
)
from tests.simulation.profile import FAULTS

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.host import Host

MS = 1000
CALLS_MAX = 12
"""A torn write dies, or fails, within so many calls on the disk."""


class Faults:
    """Strikes with one of the seed's faults at a time; most of them end by themselves."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        names = cluster.profile.faults
        self._names = list(names)
        self._weights = [FAULTS[name] for name in names]
        self._power_next: set[int] = set()

    def strike(self) -> None:
        """One fault, by chance."""
        cluster = self.cluster
        [name] = cluster.rng.choices(self._names, self._weights)
        up = [host for host in cluster.hosts.values() if host.up]
        if up and getattr(self, f"_{name}")(cluster.rng.choice(up)):
            cluster.counts[name] += 1

    def end(self) -> None:
        """Everything works again."""
        cluster = self.cluster
        cluster.cut.clear()
        cluster.paused_until.clear()
        for host in cluster.hosts.values():
            host.disk.settle()
            host.stall_next_us = 0
            cluster.restart(host)

    # --- nodes ----------------------------------------------------------------------------------------

    def killed(self, host: Host) -> None:
        """A node went down in the middle of something; it comes back."""
        power = host.id in self._power_next
        self._power_next.discard(host.id)
        self._down(host, power=power)

    def _down(self, host: Host, *, power: bool) -> bool:
        cluster = self.cluster
        if host.up:
            host.die(power=power)
        elif power:
            host.disk.lose_power(host.rng)
        cluster.later(cluster.rng.choice((1, 30, 200, 600)) * MS, cluster.restart, host, 0)
        return True

    def _most_are_up(self) -> bool:
        """Losing a majority is possible, but mostly the cluster should be able to work."""
        cluster = self.cluster
        down = sum(not host.up for host in cluster.hosts.values())
        return 2 * (down + 1) < len(cluster.hosts) or cluster.rng.random() < 0.1

    def _power(self, host: Host) -> bool:
        return self._most_are_up() and self._down(host, power=True)

    def _kill(self, host: Host) -> bool:
        return self._most_are_up() and self._down(host, power=False)

    def _torn(self, host: Host) -> bool:
        if not self._most_are_up():
            return False
        host.disk.kill_in = self.cluster.rng.randrange(1, CALLS_MAX)
        if self.cluster.rng.random() < 0.7:
            self._power_next.add(host.id)
        return True

    def _stall(self, host: Host) -> bool:
        host.stall_next_us = self.cluster.rng.choice((50, 150, 400, 1000)) * MS
        return True

    def _disk_error(self, host: Host) -> bool:
        if not self._most_are_up():
            return False
        host.disk.fail_in = self.cluster.rng.randrange(1, CALLS_MAX)
        return True

    def _pause(self, host: Host) -> bool:
        cluster = self.cluster
        cluster.paused_until[host.id] = cluster.now + cluster.rng.choice((20, 100, 250, 700)) * MS
        return True

    # --- the network ----------------------------------------------------------------------------------

    def _partition(self, host: Host) -> bool:
        """Two halves; often the leader is on the smaller side, and goes on taking entries there."""
        cluster = self.cluster
        rng, ids = cluster.rng, list(cluster.hosts)
        leader = self._leading(host)
        some = set(rng.sample(ids, rng.randrange(1, len(ids))))
        if rng.random() < 0.5:
            some = {leader.id, *rng.sample(ids, rng.randrange((len(ids) + 1) // 2))}
        pairs = {(a, b) for a in ids for b in ids if a != b and (a in some) != (b in some)}
        self._cut(pairs, self._some_time())
        if leader.id in some and not cluster.is_held(leader):
            self._propose_some(leader)
        return True

    def _propose_some(self, host: Host) -> None:
        try:
            host.raw.propose_entries([b"f%d" % n for n in range(self.cluster.rng.randrange(1, 12))])
        except RaftError:
            return
        self.cluster.turn(host)

    def _one_way(self, host: Host) -> bool:
        """One node is not heard, or hears nothing; or some and the leader do not hear each other."""
        cluster = self.cluster
        rng = cluster.rng
        if rng.random() < 0.5:
            leader = self._leading(host)
            others = [id for id in cluster.hosts if id != leader.id]
            some = rng.sample(others, rng.randrange(1, 1 + len(cluster.hosts) // 2))
            pairs = {(leader.id, id) for id in some}
            if rng.random() < 0.5:
                pairs |= {(id, leader.id) for id in some}
            self._cut(pairs, self._some_time())
            return True
        others = [id for id in cluster.hosts if id != host.id]
        some = rng.sample(others, rng.randrange(1, len(others) + 1))
        away = rng.random() < 0.5
        self._cut({(host.id, id) if away else (id, host.id) for id in some}, self._some_time())
        return True

    def _some_time(self) -> int:
        return self.cluster.rng.choice((50, 200, 500, 1000)) * MS

    def _flapping(self, host: Host) -> bool:
        cluster = self.cluster
        pairs = {pair for id in cluster.hosts for pair in ((host.id, id), (id, host.id)) if id != host.id}
        for turn in range(4):
            cluster.later(turn * 60 * MS, lambda pairs, _: self._cut(pairs, 30 * MS), pairs, 0)
        return True

    def _cut(self, pairs: set[tuple[int, int]], for_us: int) -> None:
        cluster = self.cluster
        if cluster.calm:
            return
        cluster.cut |= pairs
        cluster.later(for_us, lambda pairs, _: cluster.cut.difference_update(pairs), pairs, 0)

    def _unreachable(self, host: Host) -> bool:
        host.raw.report_unreachable(self.cluster.rng.choice(list(self.cluster.hosts)))
        return True

    def _snapshot_lost(self, host: Host) -> bool:
        host.raw.report_snapshot(
            self.cluster.rng.choice(list(self.cluster.hosts)), self.cluster.rng.random() < 0.5
        )
        return True

    # --- operations -----------------------------------------------------------------------------------

    def _leading(self, host: Host) -> Host:
        leading = [each for each in self.cluster.hosts.values() if each.up and each.leads]
        return self.cluster.rng.choice(leading) if leading else host

    def _membership(self, host: Host) -> bool:
        host = self._leading(host)
        if self.cluster.is_held(host):
            return False
        try:
            host.raw.propose_conf_change(self._change(host))
        except RaftError:
            return False
        self.cluster.turn(host)
        return True

    def elected(self, host: Host, life: int) -> None:
        """A new leader gets membership changes before it has found its feet."""
        if host.up and host.life == life and not self.cluster.calm and not self.cluster.is_held(host):
            for _ in range(2):
                try:
                    host.raw.propose_conf_change(self._change(host))
                except RaftError:
                    return
            self.cluster.turn(host)

    def _change(self, host: Host) -> ConfChange | ConfChangeV2:
        """Mostly something that keeps three voters; a v1 change, a v2 one, or the end of a joint one."""
        rng, config = self.cluster.rng, host.raw.raft.trk.config
        if config.voters.outgoing and rng.random() < 0.7:
            return ConfChangeV2()
        single = self._single(host)
        if rng.random() < 0.4:
            return ConfChange(type=single.type, node_id=single.node_id)
        singles = {single.node_id: single}
        for _ in range(rng.choice((0, 0, 1, 2))):
            other = self._single(host)
            singles.setdefault(other.node_id, other)
        return ConfChangeV2(rng.choice((0, 0, 1, 2)), tuple(singles.values()))

    def _single(self, host: Host) -> ConfChangeSingle:
        rng, config = self.cluster.rng, host.raw.raft.trk.config
        ids = list(self.cluster.hosts)
        outside = [id for id in ids if id not in config.voters.incoming]
        grow = len(config.voters.incoming) <= 3 or rng.random() < 0.5
        if grow and outside:
            kind = rng.choice((ConfChangeType.ConfChangeAddNode, ConfChangeType.ConfChangeAddLearnerNode))
            return ConfChangeSingle(kind, rng.choice(outside))
        kind = rng.choice((ConfChangeType.ConfChangeRemoveNode, ConfChangeType.ConfChangeAddLearnerNode))
        if len(config.voters.incoming) <= 2:
            kind = ConfChangeType.ConfChangeUpdateNode
        return ConfChangeSingle(kind, rng.choice(ids))

    def leave_joint(self, host: Host) -> None:
        """End an explicit joint configuration."""
        try:
            host.raw.propose_conf_change(ConfChangeV2())
        except RaftError:
            return
        self.cluster.turn(host)

    def propose(self, host: Host, data: bytes, proposed: set[int]) -> None:
        """The last entry of the simulation."""
        try:
            host.raw.propose(data)
        except RaftError:
            return
        proposed.add(host.raw.raft.term)
        self.cluster.turn(host)

    def _compaction(self, host: Host) -> bool:
        done: list[bool] = []
        if not self.cluster.is_held(host):
            self.cluster.guarded(host, lambda: done.append(host.compact()))
        return any(done)

    def _transfer(self, host: Host) -> bool:
        host = self._leading(host)
        if self.cluster.is_held(host) or host.raw.raft.state is not StateType.StateLeader:
            return False
        host.raw.transfer_leader(self.cluster.rng.choice(list(self.cluster.hosts)))
        self.cluster.turn(host)
        return True

    def _forget_leader(self, host: Host) -> bool:
        host.raw.forget_leader()
        return True
