"""The consensus core with its storage: what is durable before what is sent.

A turn takes everything that the core has ready: the leader's appends and heartbeats go out first,
at the same time as its own write (dissertation 10.2.1); term, vote and entries are then synced;
only then goes what promises them. Nothing here decides; it orders.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from pgraft.node.disk_watch import DiskWatch
from pgraft.node.membership import (
    Membership,
    MembershipError,
    MembershipLog,
    conf_state_after,
    decode_change,
    from_snapshot,
    wrong_conf_state,
)
from pgraft.postgres.settings import NodeConfig
from pgraft.raft import Config, RawNode, Ready
from pgraft.raft.types import (
    NO_NODE,
    ConfState,
    Entry,
    HardState,
    Message,
    MessageType,
    Snapshot,
    StateType,
)
from pgraft.shm.words import now_ns as clock
from pgraft.storage import Store

TICKS_PER_HEARTBEAT = 10
MESSAGE_ENTRY_BYTES_MAX = 512 * 1024
INFLIGHT_MESSAGES_MAX = 256
INFLIGHT_BYTES_MAX = 1536 * 1024
"""To one peer; two peers' worth of it fits into the outbound ring."""
UNCOMMITTED_BYTES_MAX = 64 * 1024 * 1024
COMMITTED_BYTES_PER_TURN_MAX = 1024 * 1024
TURNS_MAX = 64
"""Ready rounds in one turn; what is left comes in the next, after messages and commands were read."""

_BEFORE_SYNC = frozenset((MessageType.MsgApp, MessageType.MsgHeartbeat, MessageType.MsgSnap))


class BootStorage:
    """The store as the core sees it at start: with the configuration of what has been applied."""

    def __init__(self, store: Store, hard_state: HardState, conf_state: ConfState) -> None:
        self._initial = (hard_state, conf_state)
        self.entries = store.entries
        self.term = store.term
        self.first_index = store.first_index
        self.last_index = store.last_index
        self.snapshot = store.snapshot

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Hard state, and the configuration at its commit index."""
        return self._initial


class Effects(Protocol):
    """What a turn does to the world, in the order of the calls."""

    def send(self, message: Message) -> None:
        """Queue a message for its peer."""

    def flush(self) -> None:
        """Let everything queued go now; a sync follows."""

    def on_role(self) -> None:
        """Term, leader or role may have changed."""

    def on_committed(self, entries: list[Entry]) -> None:
        """These were committed, and are applied now."""

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """A snapshot took the place of the log."""

    def on_read(self, index: int, context: bytes) -> None:
        """A read barrier got its index."""


def replay_membership(store: Store, applied: int = 0) -> tuple[MembershipLog, HardState]:
    """The membership at the commit index, rebuilt from the snapshot and the changes behind it.

    That index is the one on disk, or `applied`, where it is known that so much had been applied. Raises
    MembershipError and StorageError.
    """
    written = store.hard_state
    hard_state = HardState(written.term, written.vote, max(written.commit, applied))
    snapshot = store.snapshot()
    index = snapshot.metadata.index
    log = MembershipLog(index, from_snapshot(snapshot) if index else Membership())
    for entry in store.conf_change_entries(index + 1, hard_state.commit + 1):
        change = decode_change(entry)
        if change is not None:
            state = log.current
            after = conf_state_after(state.conf_state, change)
            wrong = wrong_conf_state(after)
            if wrong:
                raise MembershipError(f"the membership change at index {entry.index} leads to {wrong}")
            log.record(entry.index, state.apply(change, after))
    return log, hard_state


class Core:
    """RawNode and Store, turn by turn."""

    def __init__(self, config: NodeConfig, store: Store, seed: int, applied: int = 0) -> None:
        self.store = store
        self.membership_log, hard_state = replay_membership(store, applied)
        self._durable = hard_state
        self._written_commit = store.hard_state.commit
        self.watch = DiskWatch(config.disk_stall_timeout_ms, config.data_dir)
        self.syncs = 0
        self.sync_ns_total = 0
        self.sync_ns_max = 0
        self.tick_ns = config.heartbeat_interval_ms * 1_000_000 // TICKS_PER_HEARTBEAT
        self.election_tick = config.election_timeout_ms * TICKS_PER_HEARTBEAT // config.heartbeat_interval_ms
        # A tick less than the core waits, since the first one may come at once.
        self.promise_ns = (self.election_tick - 1) * self.tick_ns
        storage = BootStorage(store, hard_state, self.membership_log.current.conf_state)
        self.raw = RawNode(
            Config(
                id=config.node_id,
                election_tick=self.election_tick,
                heartbeat_tick=TICKS_PER_HEARTBEAT,
                storage=storage,
                applied=max(hard_state.commit, store.snapshot().metadata.index),
                max_size_per_msg=MESSAGE_ENTRY_BYTES_MAX,
                max_committed_size_per_ready=COMMITTED_BYTES_PER_TURN_MAX,
                max_uncommitted_entries_size=UNCOMMITTED_BYTES_MAX,
                max_inflight_msgs=INFLIGHT_MESSAGES_MAX,
                max_inflight_bytes=INFLIGHT_BYTES_MAX,
                check_quorum=True,
                pre_vote=True,
                disable_proposal_forwarding=True,
                step_down_on_removal=True,
                rng=random.Random(seed),
            )
        )
        self.raft = self.raw.raft

    @property
    def leads(self) -> bool:
        """Whether the core is the leader of its term."""
        return self.raft.state == StateType.StateLeader

    def resign(self) -> None:
        """Lead no more, without a successor: an election follows."""
        self.raft.become_follower(self.raft.term, NO_NODE)

    def turn(self, effects: Effects) -> bool:
        """Do all that is ready. Returns whether there is more. Raises StorageError and DiskStalled."""
        self.watch.next_step()
        for _ in range(TURNS_MAX):
            if not self.raw.has_ready():
                return False
            self._once(self.raw.ready(), effects)
        return self.raw.has_ready()

    def _once(self, ready: Ready, effects: Effects) -> None:
        effects.on_role()
        after: list[Message] = []
        early = self.leads and not self._promises(ready)
        for message in ready.messages:
            if early and message.type in _BEFORE_SYNC:
                effects.send(message)
            else:
                after.append(message)
        snapshot = ready.snapshot
        if ready.entries or ready.hard_state is not None or snapshot is not None:
            self._persist(ready, effects.flush)
        if snapshot is not None:
            effects.on_snapshot(snapshot)
        if after:
            for message in after:
                effects.send(message)
            effects.flush()
        if ready.committed_entries:
            effects.on_committed(ready.committed_entries)
        for read in ready.read_states:
            effects.on_read(read.index, read.request_ctx)
        self.raw.advance(ready)

    def _promises(self, ready: Ready) -> bool:
        """Whether term or vote change, which nothing may overtake."""
        new, old = ready.hard_state, self._durable
        return new is not None and (new.term != old.term or new.vote != old.vote)

    def _persist(self, ready: Ready, flush: Callable[[], None]) -> None:
        hard_state = ready.hard_state or self._durable
        promised = self._promises(ready)
        self._durable = hard_state
        # A commit index alone is not written: it promises nothing, and goes along with the next batch.
        if not promised and not ready.entries and ready.snapshot is None:
            return
        flush()
        started_ns = clock()
        if ready.snapshot is not None:
            # Entries behind it, and their commit, may have come in the same turn: they go after it.
            commit = min(hard_state.commit, ready.snapshot.metadata.index)
            at_snapshot = HardState(hard_state.term, hard_state.vote, commit)
            self.store.install_snapshot(ready.snapshot, at_snapshot)
        if promised or ready.entries:
            self.store.append(hard_state, ready.entries)
        self._written_commit = hard_state.commit
        self._count_sync(clock() - started_ns)

    def _count_sync(self, took_ns: int) -> None:
        self.syncs += 1
        self.sync_ns_total += took_ns
        self.sync_ns_max = max(self.sync_ns_max, took_ns)
        self.watch.next_step()

    def write_commit(self) -> None:
        """Write the commit index, so that the next start knows it. Raises StorageError."""
        if self._durable.commit > self._written_commit:
            self.store.append(self._durable, [])
            self._written_commit = self._durable.commit

    def compact(self, config: NodeConfig, *, threshold: int) -> int:
        """Compact the log to what must be kept, when at least `threshold` entries can go.

        Returns the index of the snapshot that takes their place, 0 when nothing was done. The
        snapshot stands right before the first kept entry, so that a newcomer receives all of them.
        Raises StorageError.
        """
        store = self.store
        # Only what the store knows to be committed can go.
        applied = min(self.raft.raft_log.applied, store.hard_state.commit)
        point = store.compaction_point(config.log_keep_entries, config.log_keep_bytes, applied)
        if point - (store.first_index() - 1) < threshold:
            return 0
        store.compact(self.membership_log.at(point).to_snapshot(point, store.term(point)))
        self.membership_log.forget_before(point)
        return point
