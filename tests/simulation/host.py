"""One node of the simulation: the real core, store, lease and promises, between a disk and a network.

In the synchronous mode a turn keeps the order of pgraft.node.core; in the asynchronous one, writes and
applications are carried out later, by events of their own. The clock is the node's own: it runs at a
rate of its own, and starts anew when the machine loses power. Times are microseconds.
"""

from __future__ import annotations

import copy
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pgraft.node import checksums
from pgraft.node.checksums import Checksums
from pgraft.node.core import BootStorage
from pgraft.node.divergence import Audit, conflict
from pgraft.node.envelope import Digest
from pgraft.node.lease import Lease
from pgraft.node.membership import admitting
from pgraft.node.quiet import Quiet
from pgraft.raft import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    Config,
    ConfState,
    Entry,
    HardState,
    Message,
    MessageType,
    ProgressState,
    RaftError,
    RawNode,
    ReadOnlyOption,
    Ready,
    Snapshot,
    SnapshotMetadata,
    StateType,
    decode_conf_change,
)
from pgraft.raft.errors import ErrConfChange
from pgraft.storage import Store, open_store
from tests.simulation.checks import Violation
from tests.simulation.disk import Disk
from tests.simulation.machine import Machine
from tests.simulation.profile import TICK_US

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

LEADER = StateType.StateLeader
SNAPSHOT = ProgressState.StateSnapshot
MSG_APP = MessageType.MsgApp
MSG_HEARTBEAT = MessageType.MsgHeartbeat
MSG_SNAP = MessageType.MsgSnap
MSG_TIMEOUT_NOW = MessageType.MsgTimeoutNow
FROM_LEADER = frozenset((MSG_APP, MSG_HEARTBEAT, MSG_SNAP))
TURNS_MAX = 64
CALM_SYNC_US = 200
WRITES_AT_ONCE = 16
NS = 1000
"""A microsecond in nanoseconds."""
NO_HARD_STATE = HardState()
BLOCK = 16
"""Entries in a block of checksums: small, so that a run has many of them."""
BOOTSTRAP = 1
"""Index and term of the snapshot that the nodes of the initial cluster start from."""


@contextmanager
def small_blocks() -> Iterator[None]:
    """While a seed runs. Other tests of this process have blocks of production's size."""
    kept, checksums.BLOCK = checksums.BLOCK, BLOCK
    try:
        yield
    finally:
        checksums.BLOCK = kept


class Envelope:
    """Messages of one turn for one peer, and the lease's round and echo around them."""

    __slots__ = (
        "digest",
        "echo",
        "echo_term",
        "life",
        "messages",
        "promise",
        "round",
        "sender",
        "sent_at",
        "term",
        "to",
    )

    def __init__(self, sender: Host, to: int, messages: list[Message], sent_at: int) -> None:
        self.sender = sender.id
        self.life = sender.life
        self.term = sender.raw.raft.term
        self.to = to
        self.messages = messages
        self.sent_at = sent_at
        self.round = 0
        self.echo = 0
        self.echo_term = 0
        self.promise = 0
        self.digest: Digest | None = None

    def part(self, message: Message) -> Envelope:
        """One of its messages, on its own way."""
        part = copy.copy(self)
        part.messages = [message]
        return part


class Host:
    """A node. `life` counts its processes; `at` is the true time within the present turn."""

    def __init__(self, cluster: Cluster, id: int, disk: Disk, data_dir: Path) -> None:
        profile = cluster.profile
        self.cluster = cluster
        self.checks = cluster.checks
        self.id = id
        self.disk = disk
        self.data_dir = data_dir
        self.rng = random.Random(cluster.rng.getrandbits(64))
        self.rate = profile.clock_rates[id - 1]
        self.election_tick = profile.election_ticks[id - 1]
        self.timeout_us = self.election_tick * TICK_US
        self.promise_us = (self.election_tick - 1) * TICK_US
        self.sync_us = profile.sync_us * (profile.slow_factor if id == profile.slow_node else 1)
        self.clock_base = cluster.now
        self.clock_offset = self.rng.randrange(10_000_000)
        self.life = 0
        self.died_at: dict[int, int] = {}
        self.up = False
        self.out = ""
        self.busy_until = 0
        self.stall_next_us = 0
        self.lease_end = 0
        self.at = 0

    # --- the clock ------------------------------------------------------------------------------------

    def local(self, true_us: int) -> int:
        """What this node's clock shows at a true time."""
        return self.clock_offset + int((true_us - self.clock_base) * self.rate)

    def true(self, local_us: int) -> int:
        """The first true time at which its clock shows this."""
        return self.clock_base + int((local_us - self.clock_offset) / self.rate) + 1

    # --- life -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new process on what is on disk. Raises StorageError."""
        profile, first = self.cluster.profile, self.life == 0
        self.disk.settle()
        self.life += 1
        self.up = True
        self.out = ""
        self.at = self.cluster.now
        self.busy_until = 0
        self.store: Store = open_store(self.data_dir, segment_bytes=profile.segment_bytes)
        if first and self.id <= profile.nodes:
            self._bootstrap(profile.nodes)
        self.checks.recovered(self)
        self.machine = Machine(profile.clients)
        self.lease = Lease()
        self.lease_end = 0
        self.led_term = 0
        local = self.local(self.cluster.now)
        self.quiet = Quiet(local if first else local + self.timeout_us)
        self.last_tick = local
        self.queues: dict[int, list[Message]] = {}
        self.echoes: dict[int, tuple[int, int]] = {}
        self.beats = False
        self.snapshots: dict[int, int] = {}
        self.waiting: dict[bytes, int] = {}
        self.reads: dict[bytes, int] = {}
        self.appends: deque[Message] = deque()
        self.applies: deque[Message] = deque()
        self.removed = False
        self.durable = self.store.hard_state
        self._resume()
        self.sums = Checksums(self.store, self.applied)
        self.audit = Audit(self.id, self.sums, self.timeout_us * NS)
        self.role = (self.raw.raft.term, self.raw.raft.lead, self.raw.raft.state)
        self.checks.started(self)

    def _bootstrap(self, nodes: int) -> None:
        voters = ConfState(voters=tuple(range(1, nodes + 1)))
        place = SnapshotMetadata(voters, BOOTSTRAP, BOOTSTRAP)
        self.store.bootstrap(Snapshot(place, Machine(self.cluster.profile.clients).encode()))
        self.store.append(HardState(BOOTSTRAP, 0, BOOTSTRAP), [])

    def _resume(self) -> None:
        """Take up from the snapshot; with resume_at_commit, as pgraft.node does, from the commit index."""
        store = self.store
        snapshot, hard_state = store.snapshot(), store.hard_state
        self.applied = snapshot.metadata.index
        self.confs: list[tuple[int, ConfState]] = [(self.applied, snapshot.metadata.conf_state)]
        self.machine.load(snapshot.data)
        known = self.checks.conf_at(self.applied)
        self.widened = known is not None and known != snapshot.metadata.conf_state
        storage: Store | BootStorage = store
        replayed = self._stored(self.applied + 1, hard_state.commit + 1)
        known_changes = all(entry.index in self.checks.confs for entry in replayed if entry.type)
        if self.cluster.profile.resume_at_commit and not self.widened and known_changes:
            conf = self.checks.conf_at(hard_state.commit) or snapshot.metadata.conf_state
            for entry in replayed:
                self.applied = entry.index
                if entry.type:
                    self.confs.append((entry.index, self.checks.conf_at(entry.index) or conf))
                else:
                    self.machine.apply(entry)
                self.machine.remember(entry.index)
            storage = BootStorage(store, hard_state, conf)
        self.raw = RawNode(self._config(storage))

    def _stored(self, lo: int, hi: int) -> list[Entry]:
        return self.store.entries(lo, hi, 1 << 40) if lo < hi else []

    def _config(self, storage: Store | BootStorage) -> Config:
        profile = self.cluster.profile
        return Config(
            id=self.id,
            election_tick=self.election_tick,
            heartbeat_tick=profile.heartbeat_tick,
            storage=storage,
            rng=self.rng,
            applied=self.applied,
            async_storage_writes=profile.asynchronous,
            max_size_per_msg=profile.message_bytes,
            max_committed_size_per_ready=profile.page_bytes,
            max_uncommitted_entries_size=profile.uncommitted_bytes,
            max_inflight_msgs=profile.inflight_messages,
            max_inflight_bytes=profile.inflight_bytes,
            check_quorum=profile.check_quorum,
            pre_vote=profile.pre_vote,
            read_only_option=(
                ReadOnlyOption.ReadOnlyLeaseBased if profile.lease_reads else ReadOnlyOption.ReadOnlySafe
            ),
            disable_proposal_forwarding=not profile.forwarding,
            step_down_on_removal=profile.step_down_on_removal,
        )

    def die(self, *, power: bool) -> None:
        """The process ends; with `power` the whole machine does, its clock and its kernel's memory too."""
        self.up = False
        self.died_at[self.life] = self.cluster.now
        self.cluster.disks.close_all(self.disk)
        if power:
            self.disk.lose_power(self.rng)
            self.lease_end = 0
            self.clock_base = self.cluster.now
            self.clock_offset = self.rng.randrange(1_000_000)

    def leave(self, why: str) -> None:
        """A disk error: this node takes part no more until it is started again."""
        self.out = why
        self.lease_end = 0
        self.die(power=False)

    # --- what it is given -----------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether the core is leader."""
        return self.raw.raft.state is LEADER

    @property
    def lease_valid(self) -> bool:
        """What pgraft_is_leader() would say now."""
        return self.lease_end > self.local(self.cluster.now)

    def tick(self) -> None:
        """Let the core have the ticks that have passed by its own clock."""
        local = self.local(self.cluster.now)
        ticks = (local - self.last_tick) // TICK_US
        self.last_tick += ticks * TICK_US
        raw = self.raw
        for _ in range(min(ticks, 2 * self.election_tick)):
            if (
                local < self.quiet.until_ns
                and raw.raft.state is not LEADER
                and raw.raft.ticks_to_deadline() <= 1
            ):
                break  # it would campaign, with a vote of its own that is promised away
            raw.tick()
        if self.snapshots:
            self._report_snapshots(local)

    def _report_snapshots(self, local: int) -> None:
        for id, sent in list(self.snapshots.items()):
            progress = self.raw.raft.trk.progress.get(id)
            if progress is None or progress.state is not SNAPSHOT:
                del self.snapshots[id]
            elif local - sent > self.timeout_us:
                del self.snapshots[id]
                self.raw.report_snapshot(id, False)

    def receive(self, envelope: Envelope) -> None:
        """What a peer sent."""
        local = self.local(self.cluster.now)
        raft = self.raw.raft
        follows = False
        for message in envelope.messages:
            if self.quiet.drops(message, local):
                continue
            self.step(message)
            if message.type in FROM_LEADER and message.term == raft.term:
                follows = True
        if envelope.round and follows and raft.lead == envelope.sender and raft.term == envelope.term:
            self.quiet.promise(local + self.promise_us)
            self.echoes[envelope.sender] = (envelope.round, envelope.term)
            self.queues.setdefault(envelope.sender, [])
        if envelope.echo and raft.state is LEADER and envelope.echo_term == raft.term:
            self.lease.answer(envelope.sender, envelope.echo, envelope.promise)
        if envelope.digest is not None:
            self._hear_digest(envelope, envelope.digest)

    def _hear_digest(self, envelope: Envelope, digest: Digest) -> None:
        raft, now_ns = self.raw.raft, self.local(self.cluster.now) * NS
        if raft.state is LEADER:
            if digest.asks:
                self.audit.asked(envelope.sender, digest)
        elif raft.lead == envelope.sender and raft.term == envelope.term:
            self.audit.follow(raft.lead, raft.term)
            self.audit.hear(digest, now_ns)
            self.cluster.counts["digests_heard"] += 1
            self.cluster.counts["blocks_answered"] += bool(digest.answers)

    def step(self, message: Message) -> None:
        """One message to the core; it may refuse it. No true leader differs in what is committed."""
        raft = self.raw.raft
        committed = raft.raft_log.committed
        try:
            self.raw.step(message)
        except RaftError:
            self.cluster.counts["refused"] += 1
            return
        if message.type in FROM_LEADER and raft.lead == message.from_ and raft.term == message.term:
            found = conflict(raft.raft_log, committed, message)
            if found is not None:
                raise Violation(f"node {self.id}: {found}, {message}")

    # --- a turn ---------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do all that is ready. Raises StorageError and Killed."""
        self.at = self.cluster.now
        raw = self.raw
        raft = raw.raft
        lost = raft.state is LEADER and self.lease.ended and self.lease.term == raft.term
        if lost and not raft.lead_transferee and not self.removed:
            raft.become_follower(raft.term, 0)  # a failed transfer has cost the lease for this term
        take = self._hand_over if self.cluster.profile.asynchronous else self._carry_out
        for _ in range(TURNS_MAX):
            if not raw.has_ready():
                break
            ready = raw.ready()
            self.checks.ready(self, ready)
            self._notice_role()
            take(ready)
        self.audit.poll(self.local(self.at) * NS)
        if self.audit.suspects:
            raise Violation(f"node {self.id} takes its log for another one than its leader's")
        self._flush()
        self.busy_until = self.at
        self.checks.after(self)

    def _carry_out(self, ready: Ready) -> None:
        hard_state = ready.hard_state
        old = self.durable
        promises = hard_state is not None and (hard_state.term != old.term or hard_state.vote != old.vote)
        early = self.leads and not promises
        after: list[Message] = []
        for message in ready.messages:
            if early and message.type in FROM_LEADER:
                self._queue(message)
            else:
                after.append(message)
        if hard_state is not None:
            self.durable = hard_state
        if promises or ready.entries or ready.snapshot is not None:
            self._flush()
            self._persist(self.durable, ready.entries, ready.snapshot, promises)
        for message in after:
            self._queue(message)
        if ready.committed_entries:
            self._apply(ready.committed_entries)
        for read in ready.read_states:
            self.cluster.read_answered(self, read.request_ctx, read.index)
        self.raw.advance(ready)

    def _hand_over(self, ready: Ready) -> None:
        for message in ready.messages:
            if message.to == LOCAL_APPEND_THREAD:
                self.appends.append(message)
                if len(self.appends) == 1:
                    self.cluster.write_later(self, self._disk_us())
            elif message.to == LOCAL_APPLY_THREAD:
                self.applies.append(message)
                if len(self.applies) == 1:
                    self.cluster.apply_later(self, self.rng.randrange(2000))
            else:
                self._queue(message)
        for read in ready.read_states:
            self.cluster.read_answered(self, read.request_ctx, read.index)

    def write(self) -> None:
        """The append thread carries out the oldest writes."""
        for _ in range(min(len(self.appends), WRITES_AT_ONCE)):
            self._write_one(self.appends[0])
        if self.appends:
            self.cluster.write_later(self, self._disk_us())

    def _write_one(self, message: Message) -> None:
        hard_state = HardState(message.term, message.vote, message.commit)
        changed = hard_state != NO_HARD_STATE
        if changed:
            self.durable = hard_state
        if changed or message.entries or message.snapshot is not None:
            self._persist(self.durable, message.entries, message.snapshot, changed)
        self.appends.popleft()
        self._respond(message.responses)

    def apply(self) -> None:
        """The apply thread carries out the oldest page."""
        message = self.applies.popleft()
        self._apply([entry for entry in message.entries if entry.index > self.applied])
        self._respond(message.responses)
        if self.applies:
            self.cluster.apply_later(self, self.rng.randrange(2000))

    def _respond(self, responses: list[Message]) -> None:
        for response in responses:
            if response.to == self.id:
                self.step(response)
            else:
                self._queue(response)

    # --- the disk -------------------------------------------------------------------------------------

    def _disk_us(self) -> int:
        if self.cluster.calm:
            return CALM_SYNC_US
        took = self.sync_us + self.rng.randrange(self.sync_us)
        if self.stall_next_us:
            took += self.stall_next_us
            self.stall_next_us = 0
        return took

    def _persist(
        self, hard_state: HardState, entries: list[Entry], snapshot: Snapshot | None, promises: bool
    ) -> None:
        checks, store = self.checks, self.store
        if snapshot is not None and snapshot.metadata.index > store.snapshot().metadata.index:
            place = snapshot.metadata
            state = HardState(hard_state.term, hard_state.vote, place.index)
            checks.writing(self, state, place.index, place.term)
            store.install_snapshot(snapshot, state)
            checks.written(self)
            self._install(snapshot)
        if promises or entries:
            last = entries[-1] if entries else None
            checks.writing(self, hard_state, last.index if last else 0, last.term if last else 0)
            store.append(hard_state, entries)
            checks.written(self)
        if not self.cluster.profile.asynchronous:
            self.at += self._disk_us()

    def _install(self, snapshot: Snapshot) -> None:
        place = snapshot.metadata
        self.applied = place.index
        self.confs = [(place.index, place.conf_state)]
        known = self.checks.conf_at(place.index)
        self.widened = known is not None and known != place.conf_state
        self.machine.load(snapshot.data)
        self.audit.restored(place.index)
        self.checks.installed(self, place.index)
        self._note_membership()

    def compact(self) -> bool:
        """Drop the log up to somewhere before what is applied; whether anything went."""
        store = self.store
        upto = min(self.applied, store.hard_state.commit, store.last_index())
        upto -= self.cluster.profile.keep_entries
        first = store.first_index()
        if upto < first:
            return False
        point = self.rng.randrange(first, upto + 1)
        conf = self.confs[bisect_right(self.confs, point, key=lambda pair: pair[0]) - 1][1]
        place = SnapshotMetadata(conf, point, store.term(point))
        snapshot = Snapshot(place, self.machine.encode_at(point))
        store.compact(snapshot)
        self.machine.forget_before(point)
        self.confs = [(point, conf), *(pair for pair in self.confs if pair[0] > point)]
        return True

    # --- applying -------------------------------------------------------------------------------------

    def _apply(self, entries: list[Entry]) -> None:
        checks, machine = self.checks, self.machine
        if entries:
            self.sums.extend(entries)
        for entry in entries:
            checks.applied(self, entry)
            self.applied = index = entry.index
            if entry.type:
                self._apply_change(entry)
            else:
                name = machine.apply(entry)
                if name is not None and name in self.waiting:
                    self.cluster.write_answered(self.waiting.pop(name), name, machine.first_index(name))
            machine.remember(index)
            checks.state(index, machine.state)
        if entries and self.leads and entries[-1].term == self.raw.raft.term:
            self.led_term = entries[-1].term

    def _apply_change(self, entry: Entry) -> None:
        # A snapshot that is still being written has brought its configuration already.
        if self.raw.raft.raft_log.unstable.snapshot is not None:
            return
        try:
            conf = self.raw.apply_conf_change(decode_conf_change(entry))
        except ErrConfChange:
            conf = self.confs[-1][1]
        self.confs.append((entry.index, conf))
        self.checks.conf(self, entry.index, conf)
        self._note_membership()

    def _note_membership(self) -> None:
        conf = self.confs[-1][1]
        was_removed, self.removed = (
            self.removed,
            self.id not in conf.voters + conf.learners + conf.voters_outgoing,
        )
        if self.removed and not was_removed:
            self.lease.end()

    # --- what leaves ----------------------------------------------------------------------------------

    def _notice_role(self) -> None:
        raft = self.raw.raft
        role = (raft.term, raft.lead, raft.state)
        if role == self.role:
            return
        (old_term, _, old_state), self.role = self.role, role
        self.audit.follow(raft.lead, raft.term)
        led, leads = old_state is LEADER, raft.state is LEADER
        if led and (not leads or raft.term != old_term):
            self.lease.end()
            self._publish_lease()
        if leads and (not led or raft.term != old_term):
            self.lease.begin(raft.term)
            self.cluster.elected(self)
        self.checks.role(self)

    def _queue(self, message: Message) -> None:
        self.checks.sending(self, message)
        kind = message.type
        if kind is MSG_HEARTBEAT:
            self.beats = True
        elif kind is MSG_TIMEOUT_NOW:
            self.lease.end()
            self._publish_lease()
        elif kind is MSG_SNAP and message.snapshot is not None:
            fitting = admitting(message.snapshot, message.to)
            message = msgspec.structs.replace(message, snapshot=fitting)
            self.snapshots[message.to] = self.local(self.at)
            self.cluster.counts["snapshots_sent"] += 1
        queue = self.queues.get(message.to)
        if queue is None:
            self.queues[message.to] = [message]
        else:
            queue.append(message)

    def _flush(self) -> None:
        local = self.local(self.at)
        asks = self.leads and not self.lease.ended and (self.beats or self.lease_end == 0 or self._alone())
        if asks:
            self.lease.answer(self.id, local, self.timeout_us)
        self._publish_lease()
        self.beats = False
        if not self.queues:
            return
        queues, self.queues = self.queues, {}
        for to, messages in queues.items():
            envelope = Envelope(self, to, messages, self.at)
            if asks:
                envelope.round = local
            echo = self.echoes.pop(to, None)
            if echo is not None:
                envelope.echo, envelope.echo_term = echo
                envelope.promise = self.promise_us
            envelope.digest = self._digest(to, messages, local * NS)
            self.cluster.send(envelope)

    def _digest(self, to: int, messages: list[Message], now_ns: int) -> Digest | None:
        if self.leads:
            return self.audit.word(to) if any(m.type is MSG_HEARTBEAT for m in messages) else None
        return self.audit.question(now_ns) if self.raw.raft.lead == to else None

    def _alone(self) -> bool:
        return self.raw.raft.trk.config.voters.ids() == {self.id}

    def _publish_lease(self) -> None:
        raft = self.raw.raft
        end = 0
        if raft.state is LEADER and self.led_term == raft.term and not self.removed:
            voters = raft.trk.config.voters
            end = self.lease.end_ns((voters.incoming, voters.outgoing))
        self.lease_end = end
        if end:
            self.checks.lease(self)
