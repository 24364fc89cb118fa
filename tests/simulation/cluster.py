"""The simulated world: true time, the network, the nodes, and the order in which things happen.

Everything comes from one generator, so a seed replays to the letter. An event is one step: a message,
a tick, a write that is done, a client's call, or a fault.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pgraft.node.divergence import Diverged
from pgraft.raft import InvariantViolation, StateType, VoteResult
from pgraft.storage import StorageError
from tests.simulation.checks import Checks, Violation
from tests.simulation.clients import PAUSE_US, Client
from tests.simulation.disk import Disks, installed
from tests.simulation.faults import Faults
from tests.simulation.host import BOOTSTRAP, Envelope, Host
from tests.simulation.profile import FAULTS, NETWORK_FAULTS, TICK_US, Profile, draw
from tests.support.storage_disk import Killed

LEADER = StateType.StateLeader
SPIKE_US = 300_000
LINK_ENVELOPES_MAX = 64
"""What is on its way from one node to another at most; more is dropped, as the network process does. Without
a bound, streams of single entries that arrive out of order are rejected and sent anew faster than they
are used up: the core, like etcd's, counts on links that mostly keep the order."""
CATCHING_UP_MAX = 20
TERMS_RACED = 5
CALM_TIMEOUTS = 60
"""Election timeouts within which everything must be committed everywhere, or something more be applied,
once the faults have ended."""


class Cluster:
    """One simulation. `counts` holds what happened, by name."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.profile: Profile = draw(self.rng)
        self.now = 1_000_000
        self.steps = 0
        self.counts: Counter[str] = Counter()
        self.checks = Checks()
        self.disks = Disks()
        self.hosts: dict[int, Host] = {}
        self.cut: set[tuple[int, int]] = set()
        self.paused_until: dict[int, int] = {}
        self.answered = 0
        self.calm = False
        self._calm_term = 0
        self._arrivals: dict[tuple[int, int], int] = {}
        self._on_way: Counter[tuple[int, int]] = Counter()
        self._events: list[tuple[int, int, Callable[..., None], object, int]] = []
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
            except (InvariantViolation, StorageError, Diverged) as error:
                raise Violation(f"{type(error).__name__}: {error}") from error

    def _begin(self) -> None:
        for id in range(1, self.profile.nodes + self.profile.spares + 1):
            directory = Path(f"/simulated/{id}/raft")
            host = Host(self, id, self.disks.add(directory), directory.parent)
            self.hosts[id] = host
            self.checks.add(host)
            host.start()
            if id == 1:
                self.checks.conf(host, BOOTSTRAP, host.confs[0][1])
            self.later(self.rng.randrange(TICK_US), self._tick, host, host.life)
        for client in self.clients:
            self.later(self.rng.randrange(PAUSE_US), self._client, client, 0)
        self.later(self.profile.fault_every_us, self._fault, None, 0)

    # --- events ---------------------------------------------------------------------------------------

    def later(self, after_us: int, call: Callable[..., None], subject: object, life: int) -> None:
        """Let `call(subject, life)` happen after some true time."""
        self._sequence += 1
        heapq.heappush(self._events, (self.now + after_us, self._sequence, call, subject, life))

    def next(self) -> None:
        """The next event."""
        self.now, _, call, subject, life = heapq.heappop(self._events)
        call(subject, life)

    def is_held(self, host: Host) -> bool:
        """Whether its process does nothing now: stopped, or waiting for its disk."""
        return host.busy_until > self.now or self.paused_until.get(host.id, 0) > self.now

    def _held_us(self, host: Host) -> int:
        return max(host.busy_until, self.paused_until.get(host.id, 0)) - self.now

    def _tick(self, host: Host, life: int) -> None:
        if not host.up or life != host.life:
            return
        held = self._held_us(host)
        if held > 0:
            self.later(held, self._tick, host, life)
            return
        self.steps += 1
        self.counts["ticks"] += 1
        host.tick()
        if host.leads or host.raw.has_ready():
            self.turn(host)
        if host.up and host.life == life:
            self.later(max(1, host.true(host.last_tick + TICK_US) - self.now), self._tick, host, life)

    def _deliver(self, envelope: Envelope, _: int) -> None:
        sender, host = self.hosts[envelope.sender], self.hosts[envelope.to]
        held = self._held_us(host)
        if held > 0 and host.up:
            self.later(held, self._deliver, envelope, 0)
            return
        self._on_way[(envelope.sender, envelope.to)] -= 1
        if sender.life != envelope.life or not sender.up:
            died = sender.died_at.get(envelope.life)
            if died is not None and envelope.sent_at > died:
                return  # its sender died before it could send this
        if (envelope.sender, envelope.to) in self.cut:
            self.counts["cut"] += 1
            return
        if not host.up:
            return
        self.steps += 1
        self.counts["messages"] += 1
        host.receive(envelope)
        self.turn(host)

    def _written(self, host: Host, life: int) -> None:
        self._by_thread(host, life, self._written, Host.write)

    def _applied(self, host: Host, life: int) -> None:
        self._by_thread(host, life, self._applied, Host.apply)

    def _by_thread(
        self, host: Host, life: int, again: Callable[[Host, int], None], work: Callable[[Host], None]
    ) -> None:
        if not host.up or host.life != life:
            return
        held = self._held_us(host)
        if held > 0:
            self.later(held, again, host, life)
            return
        self.steps += 1
        self.guarded(host, lambda: work(host))
        self.turn(host)

    def write_later(self, host: Host, after_us: int) -> None:
        """The append thread will be done with its oldest write then."""
        self.later(after_us, self._written, host, host.life)

    def apply_later(self, host: Host, after_us: int) -> None:
        """The apply thread will be done with its oldest page then."""
        self.later(after_us, self._applied, host, host.life)

    def _client(self, client: Client, turn: int) -> None:
        if turn != client.turn or (self.calm and not client.name):
            return
        self.steps += 1
        client.act()
        self.wake(client)

    def wake(self, client: Client) -> None:
        """Let a client act at its next time; an earlier appointment is void."""
        client.turn += 1
        self.later(client.wait_us(), self._client, client, client.turn)

    def _fault(self, _: object, __: int) -> None:
        if self.calm:
            return
        self.steps += 1
        self.faults.strike()
        self.later(1 + int(self.rng.random() * 2 * self.profile.fault_every_us), self._fault, None, 0)

    # --- nodes ----------------------------------------------------------------------------------------

    def turn(self, host: Host) -> None:
        """Let a node do what is ready; its disk may kill it or fail it."""
        if host.up:
            self.guarded(host, host.turn)

    def guarded(self, host: Host, work: Callable[[], object]) -> None:
        """Do something on a node's disk."""
        try:
            work()
        except Killed:
            self.counts["killed_in_write"] += 1
            self.faults.killed(host)
        except StorageError as error:
            if host.store.failure is None or not isinstance(error.__cause__, OSError):
                raise
            self.counts["left_by_disk_error"] += 1
            host.leave(str(error))
            self.faults.killed(host)

    def restart(self, host: Host, _: int = 0) -> None:
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
        self.later(self.rng.randrange(TICK_US), self._tick, host, host.life)

    def elected(self, host: Host) -> None:
        """A node has become leader."""
        self.counts["elections"] += 1
        if "membership" in self.profile.faults and self.rng.random() < 0.3:
            self.later(self.rng.randrange(3000), self.faults.elected, host, host.life)

    # --- the network ----------------------------------------------------------------------------------

    def send(self, envelope: Envelope) -> None:
        """Put an envelope on its way, as the network of this seed treats it."""
        profile = self.profile
        if not profile.whole_turns and len(envelope.messages) > 1:
            for message in envelope.messages:
                part = envelope.part(message)
                self._send(part)
        else:
            self._send(envelope)

    def _send(self, envelope: Envelope) -> None:
        profile, random_ = self.profile, self.rng.random
        if envelope.to not in self.hosts:
            return
        if not self.calm:
            if random_() < profile.loss:
                self.counts["loss"] += 1
                return
            if random_() < profile.duplication:
                self.counts["duplication"] += 1
                self._post(envelope, int(random_() * 20 * profile.spread_us))
        self._post(envelope, 0)

    def _post(self, envelope: Envelope, extra_us: int) -> None:
        profile, random_ = self.profile, self.rng.random
        delay = profile.delay_us + int(random_() * profile.spread_us) + extra_us
        if random_() < profile.spike and not self.calm:
            self.counts["delay"] += 1
            delay += int(random_() * SPIKE_US)
        way, arrival = (envelope.sender, envelope.to), envelope.sent_at + delay
        if self._on_way[way] >= LINK_ENVELOPES_MAX:
            self.counts["overflow"] += 1
            return
        self._on_way[way] += 1
        if arrival < self._arrivals.get(way, 0):
            self.counts["reordering"] += 1
        else:
            self._arrivals[way] = arrival
        self.later(arrival - self.now, self._deliver, envelope, 0)

    # --- clients --------------------------------------------------------------------------------------

    def answer(self, index: int) -> None:
        """A client knows now of everything up to `index`."""
        self.answered = max(self.answered, index)

    def write_answered(self, client: int, name: bytes, index: int) -> None:
        """A command was applied on the node that it was given to; index 0: and is outdated."""
        if index:
            self.clients[client].write_answered(name, index)

    def read_answered(self, host: Host, name: bytes, index: int) -> None:
        """A read barrier got its index."""
        client = host.reads.pop(name, None)
        if client is not None:
            self.clients[client].read_answered(host, name, index)

    # --- the end --------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        self.calm = True
        self.faults.end()
        patience = CALM_TIMEOUTS * max(host.timeout_us for host in self.hosts.values())
        limit, cap = self.now + patience, self.now + CATCHING_UP_MAX * patience
        self._calm_term = term = self._newest_term()
        applied = 0
        goal = Goal(self)
        while not goal.reached():
            if self.now > limit:
                now_applied, now_term = self._all_applied(), self._newest_term()
                if now_applied > applied and now_term == term and limit < cap:
                    # With one entry in flight at a time, catching up takes a round trip for each.
                    limit, applied = self.now + patience, now_applied
            if self.now > limit:
                if not self._must_progress():
                    self.counts["progress_not_promised"] += 1
                    break
                raise Violation(f"no progress within {CALM_TIMEOUTS} election timeouts: {goal.text()}")
            self.next()
        self.counts["simulated_us"] = self.now

    def kinds(self) -> set[str]:
        """The kinds of fault that there have been."""
        found = {name for name in (*FAULTS, *NETWORK_FAULTS) if self.counts[name]}
        rates = self.profile.clock_rates
        if max(rates) > min(rates):
            found.add("clock_rates")
        if self.profile.slow_factor > 1:
            found.add("slow_disk")
        return found

    def _all_applied(self) -> int:
        return sum(host.applied for host in self.hosts.values())

    def _newest_term(self) -> int:
        return max(host.raw.raft.term for host in self.hosts.values())

    def _must_progress(self) -> bool:
        """Whether a lack of progress is a fault; two cases are known to need an operator.

        Without PreVote, a member that lags behind a membership change can raise terms as fast as the only
        node that could lead, which never learns of them (seed 1256 did). And a leader that steps down on its
        own removal may not have told the others that it was committed, while its entries behind it, on nodes
        that vote no more, keep everybody from winning (seed 4003319 did). etcd's raft does the same.
        """
        if "membership" not in self.profile.faults:
            return True
        if not self.profile.pre_vote:
            return self._newest_term() < self._calm_term + TERMS_RACED
        return not self.profile.step_down_on_removal or self._somebody_could_win()

    def _somebody_could_win(self) -> bool:
        rafts = {host.id: host.raw.raft for host in self.hosts.values() if host.up}
        for raft in rafts.values():
            last, term = raft.raft_log.last_index(), raft.raft_log.last_term()
            votes = {id: other.raft_log.is_up_to_date(last, term) for id, other in rafts.items()}
            if raft.promotable() and raft.trk.config.voters.vote_result(votes) is VoteResult.VoteWon:
                return True
        return False


class Goal:
    """Progress: a leader, no joint configuration left, and a last entry applied by every member."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._next_look = 0
        self._proposed: set[int] = set()
        self._stage = "no leader"

    def reached(self) -> bool:
        """Whether all is well; looks once a tick, and proposes what is missing."""
        cluster = self._cluster
        if cluster.now < self._next_look:
            return False
        self._next_look = cluster.now + TICK_US
        self._switch_off_removed()
        leader = self._leader()
        if leader is None:
            return False
        raft = leader.raw.raft
        if raft.trk.config.voters.outgoing:
            self._stage = f"node {leader.id} leads term {raft.term}, still joint"
            if not raft.trk.config.auto_leave:
                cluster.faults.leave_joint(leader)
            return False
        if raft.term not in self._proposed:
            cluster.faults.propose(leader, b"last of term %d" % raft.term, self._proposed)
            return False
        return self._all_there(leader)

    def _switch_off_removed(self) -> None:
        """What an operator does: a removed leader would lead on. Until all members know of the removal, its
        log may be needed."""
        cluster = self._cluster
        for host in cluster.hosts.values():
            if not (host.up and host.removed and host.leads):
                continue
            index, conf = host.confs[-1]
            members = [cluster.hosts[id] for id in (*conf.voters, *conf.learners)]
            if all(member.applied >= index for member in members):
                host.die(power=False)
            for member in members:
                cluster.restart(member)

    def _leader(self) -> Host | None:
        leading = [host for host in self._cluster.hosts.values() if host.up and host.leads]
        newest = max(leading, key=lambda host: host.raw.raft.term, default=None)
        return newest if newest is not None and newest.lease_valid else None

    def _all_there(self, leader: Host) -> bool:
        cluster, raft = self._cluster, leader.raw.raft
        last = raft.raft_log.last_index()
        members = [cluster.hosts[id] for id in raft.trk.progress]
        for host in members:
            cluster.restart(host)
        behind = [host.id for host in members if host.applied < last]
        self._stage = f"node {leader.id} leads term {raft.term}, nodes {behind} have not applied entry {last}"
        return not behind

    def text(self) -> str:
        """What was missing."""
        return self._stage
