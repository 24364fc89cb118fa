"""What is done to a cluster, and what makes it end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgraft.node.turn import Part
from pgraft.shm.layout import CommandKind, Yields
from pgraft.transport.records import RecordKind, pack
from tests.simulation.host import Request
from tests.simulation.profile import FAULTS, MS

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster
    from tests.simulation.host import Host

CALLS_MAX = 12
"""A torn write dies, or fails, within so many calls on the disk."""
PARTS_MAX = 10
"""A freeze comes behind one of so many parts of a node's next turns."""
OPERATOR = -1


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
            host.stall_next_ns = host.freeze_in = 0
            host.freeze_behind = None
            host.yields = Yields.NO
            cluster.restart(host)
        for host in cluster.hosts.values():
            cluster.greet(host)
            if host.parts is None:
                cluster.wake_at(host, cluster.now)

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
            host.lose_power()
        if power or cluster.rng.random() < 0.1:
            host.has_network = False
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
        host.stall_next_ns = self.cluster.rng.choice((50, 150, 400, 1000)) * MS
        return True

    def _disk_error(self, host: Host) -> bool:
        if not self._most_are_up():
            return False
        host.disk.fail_in = self.cluster.rng.randrange(1, CALLS_MAX)
        return True

    def _pause(self, host: Host) -> bool:
        """Stopped from outside, wherever it is."""
        cluster = self.cluster
        until = cluster.now + cluster.rng.choice((20, 100, 250, 700)) * MS
        cluster.paused_until[host.id] = until
        if host.parts is None:
            cluster.wake_at(host, until)
        return True

    def _freeze(self, host: Host) -> bool:
        """Stands still between two parts of a turn, for up to several election timeouts; often a leader."""
        cluster = self.cluster
        host = self._leading(host) if cluster.rng.random() < 0.4 else host
        host.freeze_in = cluster.rng.randrange(1, PARTS_MAX)
        host.freeze_ns = int(cluster.rng.choice((0.3, 1.1, 1.6, 2.5, 4.0)) * host.timeout_ns)
        if cluster.rng.random() < 0.4:
            self._freeze_who_decides(host)
        return True

    def _freeze_who_decides(self, host: Host) -> None:
        """Stands still before it steps, while both the leader and those who do not hear the leader need it
        for a majority."""
        cluster = self.cluster
        leader = self._leading(host)
        if leader is host or not leader.leads:
            return
        voters = leader.replica.core.membership_log.current.conf_state.voters
        others = [id for id in voters if id not in (leader.id, host.id)]
        if host.id not in voters or not others:
            return
        cluster.rng.shuffle(others)
        away = others[len(voters) // 2 - 1 :]
        pairs = {pair for id in away for pair in ((leader.id, id), (id, leader.id))}
        host.freeze_behind = cluster.rng.choice((Part.RECORDS, Part.CLOCK))
        host.freeze_ns = int(cluster.rng.choice((1.05, 1.3, 1.6)) * host.timeout_ns)
        self._cut(pairs, 2 * host.freeze_ns)
        cluster.counts["frozen_who_decides"] += 1

    # --- the network ----------------------------------------------------------------------------------

    def _partition(self, host: Host) -> bool:
        """Two halves; often the leader is on the smaller side, and goes on taking entries there."""
        cluster = self.cluster
        rng, ids = cluster.rng, list(cluster.hosts)
        if len(ids) < 2:
            return False
        leader = self._leading(host)
        some = set(rng.sample(ids, rng.randrange(1, len(ids))))
        if rng.random() < 0.5:
            some = {leader.id, *rng.sample(ids, rng.randrange((len(ids) + 1) // 2))}
        pairs = {(a, b) for a in ids for b in ids if a != b and (a in some) != (b in some)}
        self._cut(pairs, self._some_time())
        if leader.id in some:
            for _ in range(rng.randrange(1, 12)):
                name = b"f%d" % rng.getrandbits(48)
                cluster.guarded(leader, lambda n=name: self._ask(leader, CommandKind.REPLICATE, data=n))
        return True

    def _one_way(self, host: Host) -> bool:
        """One node is not heard, or hears nothing; or some and the leader do not hear each other."""
        cluster = self.cluster
        rng = cluster.rng
        if len(cluster.hosts) < 2:
            return False
        if rng.random() < 0.5:
            leader = self._leading(host)
            others = [id for id in cluster.hosts if id != leader.id]
            some = rng.sample(others, rng.randrange(1, 1 + (1 + len(others)) // 2))
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

    def _cut(self, pairs: set[tuple[int, int]], for_ns: int) -> None:
        """Often both ends notice that their connection is gone."""
        cluster = self.cluster
        if cluster.calm:
            return
        cluster.cut |= pairs
        if cluster.rng.random() < 0.5:
            for one, other in sorted(pairs):
                self._tell(one, RecordKind.PEER_DISCONNECTED, other)
        cluster.later(for_ns, self._heal, pairs, 0)

    def _heal(self, pairs: set[tuple[int, int]], _: object) -> None:
        cluster = self.cluster
        cluster.cut.difference_update(pairs)
        for id in sorted({id for pair in pairs for id in pair}):
            cluster.greet(cluster.hosts[id])

    def _tell(self, id: int, kind: RecordKind, about: int) -> None:
        host = self.cluster.hosts[id]
        if host.up:
            self.cluster.guarded(host, lambda: host.take_in(pack(kind, about)))

    def _reconnect(self, host: Host) -> bool:
        """Its network process dies and is started again."""
        self.cluster.reconnect(host)
        return True

    # --- operations -----------------------------------------------------------------------------------

    def _leading(self, host: Host) -> Host:
        leading = [each for each in self.cluster.hosts.values() if each.leads]
        return self.cluster.rng.choice(leading) if leading else host

    def _ask(
        self,
        host: Host,
        kind: CommandKind,
        arg1: int = 0,
        arg2: int = 0,
        data: bytes = b"",
        *,
        forward: bool = False,
    ) -> None:
        timeout_ms = self.cluster.rng.choice((100, 400, 1500))
        host.submit(Request(OPERATOR, 0, kind, data, arg1, arg2, timeout_ms, forward))

    def _operate(
        self, host: Host, kind: CommandKind, arg1: int = 0, arg2: int = 0, data: bytes = b""
    ) -> bool:
        """An operator asks the leader, or any node that passes it on."""
        forward = self.cluster.rng.random() < 0.3
        asked = host if forward else self._leading(host)
        self.cluster.guarded(asked, lambda: self._ask(asked, kind, arg1, arg2, data, forward=forward))
        return True

    def _membership(self, host: Host) -> bool:
        """Somebody is added, removed or moved; mostly so that three voters stay."""
        cluster = self.cluster
        rng = cluster.rng
        leader = self._leading(host)
        voters = leader.replica.core.membership_log.current.conf_state.voters
        outside = [id for id in cluster.hosts if id not in voters]
        what = rng.random()
        if outside and (len(voters) <= 3 or what < 0.5):
            id = rng.choice(outside)
            return self._operate(host, CommandKind.ADD_NODE, id, 7000 + id, b"127.0.0.1")
        if what < 0.9:
            return self._operate(host, CommandKind.REMOVE_NODE, rng.choice(list(cluster.hosts)))
        id = rng.choice(list(cluster.hosts))
        return self._operate(
            host, CommandKind.UPDATE_NODE, id, 7000 + id + rng.choice((0, 100)), b"127.0.0.1"
        )

    def _compaction(self, host: Host) -> bool:
        self.cluster.guarded(host, lambda: self._ask(host, CommandKind.TAKE_SNAPSHOT))
        return True

    def _transfer(self, host: Host) -> bool:
        target = self.cluster.rng.choice((0, *self.cluster.hosts))
        return self._operate(host, CommandKind.TRANSFER_LEADER, target)

    def _yield(self, host: Host) -> bool:
        """PostgreSQL does not serve there, or does again."""
        host.yields = self.cluster.rng.choice((Yields.NO, Yields.NOT_SERVING, Yields.STOPPING))
        return True
