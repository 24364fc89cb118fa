"""The simulated world: true time, the network, the nodes, and the order in which things happen.

Everything comes from one generator, so a seed replays to the letter. An event is one step: an envelope that
comes, a deadline, a part of a turn that took time, a client's call, or a fault. Times are nanoseconds.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from pgraft.node.boot import ConfigConflict
from pgraft.node.commands import Answer
from pgraft.node.membership import MembershipError
from pgraft.node.outputs import Sending
from pgraft.raft import InvariantViolation
from pgraft.shm.layout import CommandKind, Yields
from pgraft.storage import StorageError
from pgraft.transport.records import PeerHello, RecordKind, Refusal, RefusalCode, pack
from tests.simulation.checks import Checks, Violation
from tests.simulation.clients import PAUSE_NS, Client
from tests.simulation.disk import Disks, installed
from tests.simulation.faults import Faults
from tests.simulation.host import Host, Request
from tests.simulation.profile import FAULTS, MS, NETWORK_FAULTS, Profile, draw
from tests.support.storage_disk import Killed

SPIKE_NS = 300 * MS
TURN_NS = 50_000
LINK_ENVELOPES_MAX = 64
"""What is on its way from one node to another at most; more is dropped, as the network process does. Without
a bound, streams of single entries that arrive out of order are rejected and sent anew faster than they
are used up: the core, like etcd's, counts on links that mostly keep the order."""
INBOX_RECORDS_MAX = 256
REFUSED_EVERY_NS = 50 * MS
CATCHING_UP_MAX = 20
CALM_TIMEOUTS = 60
"""Election timeouts within which everything must be committed everywhere, or something more be applied,
once the faults have ended."""


class Cluster:
    """One simulation. `counts` holds what happened, by name."""

    def __init__(self, seed: int, *, shows_log: bool = False) -> None:
        self.seed = seed
        self.shows_log = shows_log
        self.rng = random.Random(seed)
        self.profile: Profile = draw(self.rng)
        self.now = 1000 * MS
        self.steps = 0
        self.counts: Counter[str] = Counter()
        self.checks = Checks()
        self.disks = Disks()
        self.hosts: dict[int, Host] = {}
        self.cut: set[tuple[int, int]] = set()
        self.paused_until: dict[int, int] = {}
        self.answered = 0
        self.calm = False
        self._arrivals: dict[tuple[int, int], int] = {}
        self._on_way: Counter[tuple[int, int]] = Counter()
        self._refused_at: dict[tuple[int, int], int] = {}
        self._events: list[tuple[int, int, Callable[..., None], object, object]] = []
        self._sequence = 0
        self.clients = [Client(self, number) for number in range(self.profile.clients)]
        self.faults = Faults(self)

    def run(self, steps: int) -> None:
        """`steps` with faults, then calm until everything is committed everywhere. Raises Violation."""
        with installed(self.disks, random.Random(self.seed)):
            try:
                self._begin()
                while self.steps < steps:
                    self.next()
                self._calm_down()
            except (InvariantViolation, StorageError, MembershipError, ConfigConflict) as error:
                raise Violation(f"{type(error).__name__}: {error}") from error

    def _begin(self) -> None:
        for id in range(1, self.profile.nodes + self.profile.spares + 1):
            host = Host(self, id, self.disks.add(Path(f"/simulated/{id}")))
            self.hosts[id] = host
            self.checks.add(host)
            host.start()
            self.later(self.rng.randrange(10 * MS), self._wake, host, self._token(host))
        for one in self.hosts.values():
            self.greet(one)
        for client in self.clients:
            self.later(self.rng.randrange(PAUSE_NS), self._client, client, 0)
        self.later(self.profile.fault_every_ns, self._fault, None, 0)

    # --- events ---------------------------------------------------------------------------------------

    def later(self, after_ns: int, call: Callable[..., None], subject: object, argument: object) -> None:
        """Let `call(subject, argument)` happen after some true time."""
        self._sequence += 1
        heapq.heappush(self._events, (self.now + after_ns, self._sequence, call, subject, argument))

    def next(self) -> None:
        """The next event."""
        self.now, _, call, subject, argument = heapq.heappop(self._events)
        call(subject, argument)

    def is_paused(self, host: Host) -> bool:
        """Whether its process is stopped from outside."""
        return self.paused_until.get(host.id, 0) > self.now

    def _token(self, host: Host) -> tuple[int, int]:
        host.wake_no += 1
        return host.life, host.wake_no

    def again(self, host: Host) -> None:
        """Let the next turn follow; a turn takes some time, if little."""
        self.wake_at(host, self.now + TURN_NS)

    def wake_at(self, host: Host, at_ns: int) -> None:
        """Let a turn begin then at the latest; an earlier appointment is void."""
        self.later(at_ns - self.now, self._wake, host, self._token(host))

    def _wake(self, host: Host, token: tuple[int, int]) -> None:
        if token != (host.life, host.wake_no) or not host.up or host.parts is not None:
            return
        paused = self.paused_until.get(host.id, 0) - self.now
        if paused > 0:
            self.later(paused, self._wake, host, token)
            return
        self.steps += 1
        self.counts["wakes"] += 1
        self.guarded(host, host.begin)

    def resume_later(self, host: Host, after_ns: int) -> None:
        """Let the turn that is going on have its next part then."""
        self.later(after_ns, self._resume, host, host.life)

    def _resume(self, host: Host, life: int) -> None:
        if not host.up or life != host.life:
            return
        paused = self.paused_until.get(host.id, 0) - self.now
        if paused > 0:
            self.later(paused, self._resume, host, life)
            return
        self.steps += 1
        self.guarded(host, host.go_on)

    def _client(self, client: Client, turn: int) -> None:
        if turn != client.turn or (self.calm and not client.name):
            return
        self.steps += 1
        client.act()
        self.wake(client)

    def wake(self, client: Client) -> None:
        """Let a client act at its next time; an earlier appointment is void."""
        client.turn += 1
        self.later(client.wait_ns(), self._client, client, client.turn)

    def _fault(self, _: object, __: object) -> None:
        if self.calm:
            return
        self.steps += 1
        self.faults.strike()
        self.later(1 + int(self.rng.random() * 2 * self.profile.fault_every_ns), self._fault, None, 0)

    # --- nodes ----------------------------------------------------------------------------------------

    def guarded(self, host: Host, work: Callable[[], object]) -> None:
        """Let a node do something; its disk may kill it or fail it."""
        if not host.up:
            return
        try:
            work()
        except Killed:
            self.counts["killed_in_write"] += 1
            self.faults.killed(host)
        except StorageError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            self.counts["left_by_disk_error"] += 1
            host.leave()
            self.faults.killed(host)

    def restart(self, host: Host, _: object = 0) -> None:
        """Start a node that is down; its disk may kill it again."""
        if host.up:
            return
        self.counts["restarts"] += 1
        try:
            host.start()
        except Killed:
            self.counts["killed_in_start"] += 1
            self.faults.killed(host)
            return
        if not host.has_network or self.rng.random() < 0.5:
            self.reconnect(host)
        self.wake_at(host, self.now + self.rng.randrange(10 * MS))

    # --- the network ----------------------------------------------------------------------------------

    def reconnect(self, host: Host) -> None:
        """Its network process is new: all its connections are."""
        host.has_network = True
        host.network_epoch += 1
        for other in self.hosts.values():
            if other is not host and other.up:
                other.take_in(pack(RecordKind.PEER_DISCONNECTED, host.id), hurry=False)
        self.greet(host)

    def greet(self, host: Host) -> None:
        """Connections stand again: both ends tell their workers who is there."""
        for other in self.hosts.values():
            if other is host or not (self.is_linked(host, other) and self.is_linked(other, host)):
                continue
            for here, there in ((host, other), (other, host)):
                if here.up:
                    hello = PeerHello(there.member_id, "127.0.0.1", 7000 + there.id, there.network_epoch)
                    here.take_in(pack(RecordKind.PEER_HELLO, there.id, hello), hurry=False)
                    here.take_in(pack(RecordKind.PEER_CONNECTED, there.id), hurry=False)

    def is_linked(self, one: Host, other: Host) -> bool:
        """Whether envelopes of the one reach the other's network process at all."""
        return (one.id, other.id) not in self.cut and other.has_network

    def send(self, sender: Host, sending: Sending) -> None:
        """Put an envelope on its way, as the network of this seed treats it."""
        profile, random_, to, hurry = self.profile, self.rng.random, sending.to, sending.hurry
        if to not in self.hosts or not self._let_in(sender, self.hosts[to]):
            return
        if not self.calm:
            if random_() < profile.loss:
                self.counts["loss"] += 1
                return
            if random_() < profile.duplication:
                self.counts["duplication"] += 1
                # Raft bears it; commands count on the one connection that carries each of them once.
                once = msgspec.structs.replace(sending.envelope, calls=[], replies=[])
                twice = sender.record_of(Sending(to, hurry, once))
                self._post(sender, to, twice, hurry, int(random_() * 20 * profile.spread_ns))
        self._post(sender, to, sender.record_of(sending), hurry, 0)

    def _let_in(self, sender: Host, receiver: Host) -> bool:
        """Whether there is a connection: one of the two calls, and neither bars the other."""
        if receiver.bars(sender.id):
            key = (receiver.id, sender.id)
            if self.now - self._refused_at.get(key, 0) >= REFUSED_EVERY_NS:
                self._refused_at[key] = self.now
                refusal = Refusal(RefusalCode.REMOVED, "it was removed")
                self.later(MS, self._refuse, sender, (receiver, refusal))
            return False
        return not sender.bars(receiver.id) and (sender.knows(receiver.id) or receiver.knows(sender.id))

    def _refuse(self, guest: Host, argument: tuple[Host, Refusal]) -> None:
        judge, refusal = argument
        if guest.up and self.is_linked(judge, guest):
            record = pack(RecordKind.REFUSED_BY_PEER, judge.id, refusal)
            self.guarded(guest, lambda: guest.take_in(record))

    def _post(self, sender: Host, to: int, record: bytes, hurry: bool, extra_ns: int) -> None:
        profile, random_ = self.profile, self.rng.random
        delay = profile.delay_ns + int(random_() * profile.spread_ns) + extra_ns
        if random_() < profile.spike and not self.calm:
            self.counts["delay"] += 1
            delay += int(random_() * SPIKE_NS)
        way, arrival = (sender.id, to), self.now + delay
        if self._on_way[way] >= LINK_ENVELOPES_MAX:
            self.counts["overflow"] += 1
            return
        self._on_way[way] += 1
        if arrival < self._arrivals.get(way, 0):
            self.counts["reordering"] += 1
        else:
            self._arrivals[way] = arrival
        self.later(delay, self._deliver, self.hosts[to], (sender, record, hurry))

    def _deliver(self, host: Host, argument: tuple[Host, bytes, bool]) -> None:
        sender, record, hurry = argument
        self._on_way[(sender.id, host.id)] -= 1
        if not self.is_linked(sender, host):
            self.counts["cut"] += 1
            return
        if not host.up:
            return
        self.steps += 1
        self.counts["messages"] += 1
        if len(host.inbox) >= INBOX_RECORDS_MAX:
            self.counts["inbox_full"] += 1
            return
        self.guarded(host, lambda: host.take_in(record, hurry=hurry))

    # --- clients --------------------------------------------------------------------------------------

    def answer(self, index: int) -> None:
        """A client knows now of everything up to `index`."""
        self.answered = max(self.answered, index)

    def answered_by(self, host: Host, request: Request, answer: Answer) -> None:
        """A command has its answer. What belongs to no client was an operator's."""
        if request.client >= 0:
            self.clients[request.client].answered(host, request, answer)
        elif answer.outcome:
            kind = CommandKind(request.kind).name.lower()
            self.counts[f"{kind}_{answer.outcome.name.lower()}"] += 1

    # --- the end --------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        self.calm = True
        self.faults.end()
        patience = CALM_TIMEOUTS * max(host.timeout_ns for host in self.hosts.values())
        limit, cap = self.now + patience, self.now + CATCHING_UP_MAX * patience
        applied = 0
        goal = Goal(self)
        while not goal.reached():
            if self.now > limit:
                now_applied = sum(host.applied for host in self.hosts.values())
                if now_applied > applied and limit < cap:
                    # With one entry in flight at a time, catching up takes a round trip for each.
                    limit, applied = self.now + patience, now_applied
            if self.now > limit:
                raise Violation(f"no progress within {CALM_TIMEOUTS} election timeouts: {goal.text()}")
            self.next()
        self.counts["simulated_ms"] = self.now // MS

    def kinds(self) -> set[str]:
        """The kinds of fault that there have been."""
        found = {name for name in (*FAULTS, *NETWORK_FAULTS) if self.counts[name]}
        rates = self.profile.clock_rates
        if max(rates) > min(rates):
            found.add("clock_rates")
        if self.profile.slow_factor > 1:
            found.add("slow_disk")
        return found


class Goal:
    """Progress: a leader, and a last entry applied by every member."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._next_look = 0
        self._next_hand_over = 0
        self._proposed: set[int] = set()
        self._stage = "no leader"

    def reached(self) -> bool:
        """Whether all is well; looks now and then, and asks for the last entry."""
        cluster = self._cluster
        if cluster.now < self._next_look:
            return False
        self._next_look = cluster.now + 10 * MS
        leading = [host for host in cluster.hosts.values() if host.leads and host.lease_valid]
        if not leading:
            self._stage = "no leader"
            return False
        leader = leading[0]
        raft = leader.replica.raft
        if raft.term not in self._proposed:
            self._proposed.add(raft.term)
            leader.submit(Request(-1, 0, CommandKind.REPLICATE, b"last of term %d" % raft.term, 0, 0, 5000))
            return False
        return self._all_there(leader)

    def _all_there(self, leader: Host) -> bool:
        last = leader.replica.raft.raft_log.last_index()
        members = [self._cluster.hosts[id] for id in leader.replica.raft.trk.progress]
        behind = [host.id for host in members if host.applied < last or not host.up]
        if behind and self._cluster.hosts[behind[0]].bars(leader.id):
            self._hand_over(leader, members)
        term = leader.replica.raft.term
        self._stage = f"node {leader.id} leads term {term}, nodes {behind} have not applied entry {last}"
        return not behind

    def _hand_over(self, leader: Host, members: list[Host]) -> None:
        """What an operator does where a member that lags still bars the leader, which was removed and added
        again meanwhile: somebody else leads."""
        cluster = self._cluster
        if cluster.now < self._next_hand_over:
            return
        self._next_hand_over = cluster.now + 1000 * MS
        cluster.counts["leader_barred"] += 1
        target = cluster.rng.choice([host.id for host in members if host is not leader])
        leader.submit(Request(-1, 0, CommandKind.TRANSFER_LEADER, b"", target, 0, 1000))

    def text(self) -> str:
        """What was missing."""
        return self._stage


__all__ = ["Cluster", "Yields"]
