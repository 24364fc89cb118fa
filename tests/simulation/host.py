"""One node of the simulation: an executor of the production Replica over simulated disk, network, clock.

Everything that a node does goes through `pgraft.node.turn`, part by part; between any two parts the node can
be frozen or die. What stands in a real node's segment survives the death of its process and is kept here:
lease word, status and members block, the two rings. Times are nanoseconds; the clock is the node's own: it
runs at a rate of its own, and starts anew when the machine loses power.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from pgraft.node.boot import (
    applied_before,
    build_node,
    initial_members_text,
    open_durable_state,
    open_identity,
)
from pgraft.node.commands import Answer, Command
from pgraft.node.envelope import encode
from pgraft.node.node import Replica
from pgraft.node.outputs import Inputs, LogLine, MembersBlock, Outputs, Sending, Shown
from pgraft.node.turn import Part, carry_out, turn
from pgraft.postgres.settings import Member, NodeConfig
from pgraft.raft.types import Entry, HardState, Snapshot, StateType
from pgraft.shm.blocks import Status
from pgraft.shm.layout import CommandKind, Outcome, Yields
from pgraft.storage import Identity, Store, create_identity, save_peers, update_identity
from pgraft.transport.records import HURRY, NO_HURRY, RecordKind, prefix
from tests.simulation.disk import Disk
from tests.simulation.profile import MS

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

LEADER = StateType.StateLeader
CALM_SYNC_NS = 200_000
UNKNOWN = Answer(Outcome.ERROR_UNKNOWN)
_WRITES = frozenset((Part.FILES, Part.PERSIST, Part.COMPACT))


class Request(msgspec.Struct, frozen=True):
    """What a session has put into the command ring."""

    client: int
    number: int
    kind: int
    data: bytes = b""
    arg1: int = 0
    arg2: int = 0
    timeout_ms: int = 400
    forward: bool = False


def config_of(cluster: Cluster, id: int) -> NodeConfig:
    """A node's settings."""
    profile = cluster.profile
    initial = tuple(Member(one, f"node{one}", "127.0.0.1", 7000 + one) for one in range(1, profile.nodes + 1))
    return NodeConfig(
        name=f"node{id}",
        node_id=id,
        cluster_id="simulated",
        initial_cluster=initial,
        initial_cluster_state="new" if id <= profile.nodes else "existing",
        address="127.0.0.1",
        port=7000 + id,
        listen_host="127.0.0.1",
        listen_port=7000 + id,
        data_dir=f"/simulated/{id}",
        pgdata="/nonexistent",
        segment_name="",
        election_timeout_ms=profile.election_ms[id - 1],
        heartbeat_interval_ms=profile.heartbeat_ms,
        ssl_enabled=False,
        ssl_cert_file="",
        ssl_key_file="",
        ssl_ca_file="",
        autostart=True,
        max_entry_bytes=1 << 20,
        command_ring_bytes=1 << 20,
        slot_count=16,
        log_keep_entries=profile.keep_entries,
        log_keep_bytes=0,
        snapshot_threshold=profile.snapshot_threshold,
        log_segment_bytes=profile.segment_bytes,
        disk_stall_timeout_ms=60_000,
    )


class Host:
    """A node, and the `turn.Executor` of its replica. `life` counts its processes."""

    replica: Replica
    store: Store

    def __init__(self, cluster: Cluster, id: int, disk: Disk) -> None:
        profile = cluster.profile
        self.cluster = cluster
        self.checks = cluster.checks
        self.id = id
        self.disk = disk
        self.config = config_of(cluster, id)
        self.rng = random.Random(cluster.rng.getrandbits(64))
        self.rate = profile.clock_rates[id - 1]
        self.timeout_ns = profile.election_ms[id - 1] * MS
        self.sync_ns = profile.sync_ns * (profile.slow_factor if id == profile.slow_node else 1)
        self.clock_base = cluster.now
        self.clock_offset = 10_000_000 * MS + self.rng.randrange(10_000 * MS)
        self.member_id = id * 1000 + 1
        self.life = 0
        self.died_at: dict[int, int] = {}
        self.up = False
        self.has_network = True
        self.stall_next_ns = 0
        self.freeze_in = 0
        self.freeze_behind: Part | None = None
        self.freeze_ns = 0
        self.yields = Yields.NO
        self.network_epoch = 1
        self.lease_end = 0
        self.status: Status | None = None
        self.members = MembersBlock((), ())
        self.shown = Shown()
        self.ring: deque[Request] = deque()
        self.taken: dict[int, Request] = {}
        self.inbox: list[bytes] = []
        self.applied = 0
        self.parts: Iterator[Part] | None = None
        self.wake_no = 0
        self.hurry = False
        self._inputs = Inputs()
        self._slot = 0

    # --- the clock ------------------------------------------------------------------------------------

    def local(self, true_ns: int) -> int:
        """What this node's clock shows at a true time."""
        return self.clock_offset + int((true_ns - self.clock_base) * self.rate)

    def true(self, local_ns: int) -> int:
        """The first true time at which its clock shows this."""
        return self.clock_base + int((local_ns - self.clock_offset) / self.rate) + 1

    # --- life -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new process on what is on disk. Raises StorageError."""
        self.disk.settle()
        self.life += 1
        self.lease_end = 0
        self.inbox = []
        self._unknown([*self.taken.values()])
        self.taken = {}
        if self.life == 1:
            self._make_identity()
        identity = open_identity(self.config)
        self.store = open_durable_state(self.config, identity, lambda: None)
        self.checks.recovered(self)
        self.replica = build_node(
            self.config,
            identity,
            self.store,
            now_ns=self.local(self.cluster.now),
            chance=self.rng,
            applied=applied_before(self.status, self.store),
            limits=self.cluster.profile.limits,
        )
        self.up = True
        self.applied = self.replica.core.applied
        self.parts = None
        self.checks.started(self)

    def _make_identity(self) -> None:
        identity = Identity(
            cluster_id=self.config.cluster_id,
            node_id=self.id,
            member_id=self.member_id,
            initial_members=initial_members_text(self.config),
            formed=False,
            election_timeout_ms=self.config.election_timeout_ms,
        )
        create_identity(self.disk.home, identity)

    def die(self, *, power: bool) -> None:
        """The process ends; with `power` the whole machine does, with clock, segment and sessions."""
        self.up = False
        self.parts = None
        self.died_at[self.life] = self.cluster.now
        self.cluster.disks.close_all(self.disk)
        if power:
            self._lose_power()

    def lose_power(self) -> None:
        """The machine goes down after its process."""
        self._lose_power()

    def _lose_power(self) -> None:
        self.disk.lose_power(self.rng)
        self.lease_end = 0
        self.status = None
        self.members = MembersBlock((), ())
        self.network_epoch += 1
        self.clock_base = self.cluster.now
        self.clock_offset = 10_000_000 * MS + self.rng.randrange(1000 * MS)
        lost = [*self.taken.values(), *self.ring]
        self.ring.clear()
        self.taken = {}
        self._unknown(lost)

    def leave(self) -> None:
        """A disk error: this node takes part no more until it is started again."""
        self.lease_end = 0
        self.die(power=False)
        self._unknown([*self.taken.values()])
        self.taken = {}

    def _unknown(self, requests: list[Request]) -> None:
        for request in requests:
            self.cluster.answered_by(self, request, UNKNOWN)

    # --- what it shows --------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether the core is leader."""
        return self.up and self.replica.core.leads

    @property
    def lease_valid(self) -> bool:
        """What pgraft_is_leader() would say now, on a machine that is up."""
        return self.lease_end > self.local(self.cluster.now)

    @property
    def is_member(self) -> bool:
        """Whether its own membership has it."""
        return self.replica.core.membership_log.current.get(self.id) is not None

    def knows(self, id: int) -> bool:
        """Whether its network process calls this node."""
        return any(row.node_id == id for row in self.members.rows)

    def bars(self, id: int) -> bool:
        """Whether its network process refuses this node, since it was removed."""
        return id in self.members.removed and not self.knows(id)

    # --- turns ----------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A session puts a command into the ring."""
        self.ring.append(request)
        if not self.replica_gathers():
            self.begin()

    def replica_gathers(self) -> bool:
        """Whether sessions need not ring, since a batch is on its way."""
        return self.up and self.replica.outputs.gathers_until_ns > self.local(self.cluster.now)

    def take_in(self, record: bytes, *, hurry: bool = True) -> None:
        """The network process puts a record on the ring, and rings where it is to be read at once."""
        self.inbox.append(record)
        if hurry:
            self.begin()

    def begin(self) -> None:
        """Begin a turn, unless one is going on or the process is stopped."""
        if not self.up:
            return
        if self.parts is not None or self.cluster.is_paused(self):
            self.hurry = True
            return
        self.hurry = False
        self.parts = turn(self.replica, self, self._inputs)
        self.go_on()

    def go_on(self) -> None:
        """Do parts of the turn until one takes time, the process is frozen, or the turn is over."""
        cluster, parts = self.cluster, self.parts
        if parts is None:
            return
        for part in parts:
            if part is Part.STEP:
                self._stepped()
            took = self._disk_ns() if part in _WRITES else 0
            took += self._freeze_ns(part)
            if took:
                cluster.resume_later(self, took)
                return
        self.parts = None
        self._over()

    def _freeze_ns(self, part: Part) -> int:
        """How long the process stands still behind this part."""
        cluster = self.cluster
        if cluster.calm:
            return 0
        if self.freeze_behind is not None:
            if part is self.freeze_behind:
                self.freeze_behind = None
                return self.freeze_ns
        elif self.freeze_in:
            self.freeze_in -= 1
            if not self.freeze_in:
                cluster.counts[f"frozen_behind_{part.value}"] += 1
                return self.freeze_ns
        every = cluster.profile.freeze_every
        if every and self.rng.random() * every < 1:
            cluster.counts["frozen"] += 1
            return int(self.rng.choice((0.2, 1.2, 2.5)) * self.timeout_ns)
        return 0

    def _stepped(self) -> None:
        self.checks.stepped(self, self.replica.outputs)

    def _over(self) -> None:
        """The turn is over: when is the next one?"""
        outputs = self.replica.outputs
        self.checks.turned(self)
        if self.hurry or outputs.more or (self.ring and not self.replica_gathers()):
            self.cluster.again(self)
            return
        due = outputs.deadline_ns
        if self.ring:
            due = min(due, outputs.gathers_until_ns)
        self.cluster.wake_at(self, max(self.true(due), self.cluster.now + 1))

    def stop(self) -> None:
        """A planned end: everybody who waits is answered."""
        for _ in carry_out(self.replica.stop(self.local(self.cluster.now)), self):
            pass
        self.store.close()
        self.die(power=False)

    # --- in (turn.Executor) ---------------------------------------------------------------------------

    def note(self, inputs: Inputs) -> None:
        """What the executor knows by itself."""
        inputs.unsent, inputs.yields, inputs.network_epoch = [], self.yields, self.network_epoch

    def read_records(self) -> list[bytes]:
        """What has come."""
        records, self.inbox = self.inbox, []
        self.hurry = False
        return records

    def clock_ns(self) -> int:
        """Its own clock."""
        return self.local(self.cluster.now)

    def take_commands(self, now_ns: int) -> list[Command]:
        """All that sessions have asked; from now on a death leaves their outcome unknown."""
        commands = []
        while self.ring:
            request = self.ring.popleft()
            self._slot += 1
            self.taken[self._slot] = request
            deadline = now_ns + request.timeout_ms * MS
            commands.append(
                Command(
                    request.kind,
                    self._slot,
                    request.number,
                    request.forward,
                    deadline,
                    request.timeout_ms,
                    request.arg1,
                    request.arg2,
                    request.data,
                )
            )
        return commands

    # --- out (turn.Executor) --------------------------------------------------------------------------

    def save_identity(self, identity: Identity) -> None:
        """Write and sync it."""
        update_identity(self.disk.home, identity)

    def save_peers(self, member_ids: dict[int, int]) -> None:
        """Write and sync them."""
        save_peers(self.disk.home, member_ids)

    def show_lease(self, end_ns: int) -> None:
        """The word in the segment."""
        self.lease_end = end_ns
        if end_ns:
            self.checks.lease(self)

    def tell_network(self, records: list[bytes]) -> None:
        """The simulated network knows who everybody is."""

    def send(self, sendings: list[Sending]) -> None:
        """Put envelopes on their way."""
        for sending in sendings:
            self.checks.sending(self, sending.to, sending.envelope)
            self.cluster.send(self, sending)

    def record_of(self, sending: Sending) -> bytes:
        """What its receiver's network process puts on the ring."""
        hurry = HURRY if sending.hurry else NO_HURRY
        return prefix(RecordKind.MESSAGE, self.id) + hurry + encode(sending.envelope)

    def persist(self, hard_state: HardState, entries: list[Entry], snapshot: Snapshot | None) -> None:
        """The real store, on the simulated disk."""
        self.checks.writing(self, hard_state, entries, snapshot)
        self.store.persist(hard_state, entries, snapshot)
        self.checks.written(self)

    def compact(self, snapshot: Snapshot) -> None:
        """The real store."""
        self.store.compact(snapshot)
        self.cluster.counts["compacted"] += 1

    def publish(self, outputs: Outputs) -> None:
        """What the segment shows."""
        if outputs.members is not None:
            self.members = outputs.members
        if outputs.status is not None:
            self.checks.published(self, outputs.status)
            self.status = msgspec.structs.replace(outputs.status)
        if outputs.lease_begin_ns is not None:
            self.show_lease(outputs.lease_begin_ns)
        if outputs.shown is not self.shown:
            self.checks.shown(self, outputs.shown)
            self.shown = outputs.shown

    def answer(self, answers: list[tuple[Command, Answer]]) -> None:
        """Sessions get them."""
        for command, answer in answers:
            if answer.outcome == Outcome.PROGRESS:
                continue
            request = self.taken.pop(command.slot)
            self.checks.answering(self, request.kind, answer)
            self.cluster.answered_by(self, request, answer)

    def log(self, lines: list[LogLine]) -> None:
        """Nobody reads it; a replay with --log prints it."""
        if self.cluster.shows_log:
            for line in lines:
                print(f"{self.cluster.now / 1e6:10.3f} node {self.id}: {line.message} {line.detail}")

    # --- the disk -------------------------------------------------------------------------------------

    def _disk_ns(self) -> int:
        if self.cluster.calm:
            return CALM_SYNC_NS
        took = self.sync_ns + self.rng.randrange(self.sync_ns)
        took += self.stall_next_ns
        self.stall_next_ns = 0
        return took


__all__ = ["CommandKind", "Host", "Request"]
