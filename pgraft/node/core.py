"""The consensus core over what is stored: which Ready is taken, and what of it goes before what.

A step takes at most one Ready: the leader's appends and heartbeats may leave at the same time as its own
write (dissertation 10.2.1); term, vote and entries are then synced; only then goes what promises them.
That a Ready was carried out is told to the core at the start of the next step. Nothing here writes.
"""

from __future__ import annotations

import random
from typing import Protocol

import msgspec

from pgraft.node.membership import (
    Membership,
    MembershipError,
    MembershipLog,
    conf_state_after,
    decode_change,
    from_snapshot,
    wrong_conf_state,
)
from pgraft.node.outputs import Outputs
from pgraft.postgres.settings import NodeConfig
from pgraft.raft import Config, RawNode, Ready
from pgraft.raft.types import (
    NO_NODE,
    ConfState,
    Entry,
    HardState,
    Snapshot,
    StateType,
)

TICKS_PER_HEARTBEAT = 10
UNCOMMITTED_BYTES_MAX = 64 * 1024 * 1024

_CAMPAIGNS = frozenset((StateType.StateCandidate, StateType.StatePreCandidate))


class Limits(msgspec.Struct, frozen=True):
    """How much goes at once. The simulator has smaller ones, so that little data reaches them."""

    message_entry_bytes: int = 512 * 1024
    inflight_messages: int = 256
    inflight_bytes: int = 1536 * 1024
    """To one peer; two peers' worth of it fits into the outbound ring."""
    uncommitted_bytes: int = UNCOMMITTED_BYTES_MAX
    committed_bytes_per_step: int = 1024 * 1024


class Stored(Protocol):
    """What is on disk, to read (storage.Store). Everything that an earlier step wanted written is in it."""

    @property
    def hard_state(self) -> HardState: ...
    @property
    def log_bytes(self) -> int: ...
    @property
    def is_empty(self) -> bool: ...
    def initial_state(self) -> tuple[HardState, ConfState]: ...
    def first_index(self) -> int: ...
    def last_index(self) -> int: ...
    def term(self, index: int) -> int: ...
    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]: ...
    def snapshot(self) -> Snapshot: ...
    def compaction_point(self, keep_entries: int, keep_bytes: int, upto: int) -> int: ...
    def conf_change_entries(self, lo: int, hi: int) -> list[Entry]: ...


class BootStorage:
    """The store as the core sees it at start: with the configuration of what has been applied."""

    def __init__(self, store: Stored, hard_state: HardState, conf_state: ConfState) -> None:
        self._initial = (hard_state, conf_state)
        self.entries = store.entries
        self.term = store.term
        self.first_index = store.first_index
        self.last_index = store.last_index
        self.snapshot = store.snapshot

    def initial_state(self) -> tuple[HardState, ConfState]:
        """Hard state, and the configuration at its commit index."""
        return self._initial


def replay_membership(store: Stored, applied: int = 0) -> tuple[MembershipLog, HardState]:
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
    """RawNode and what is stored, one Ready at a time.

    `applied` is the index of the last entry that was applied here; the core's own follows with `advance`.
    """

    def __init__(
        self,
        config: NodeConfig,
        store: Stored,
        chance: random.Random,
        applied: int = 0,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self.store = store
        self.membership_log, hard_state = replay_membership(store, applied)
        self._durable = hard_state
        self._written_commit = store.hard_state.commit
        self._taken: Ready | None = None
        self.tick_ns = config.heartbeat_interval_ms * 1_000_000 // TICKS_PER_HEARTBEAT
        self.election_tick = config.election_timeout_ms * TICKS_PER_HEARTBEAT // config.heartbeat_interval_ms
        # A tick less than the core waits, since the first one may come at once.
        self.promise_ns = (self.election_tick - 1) * self.tick_ns
        self.applied = max(hard_state.commit, store.snapshot().metadata.index)
        storage = BootStorage(store, hard_state, self.membership_log.current.conf_state)
        self.raw = RawNode(
            Config(
                id=config.node_id,
                election_tick=self.election_tick,
                heartbeat_tick=TICKS_PER_HEARTBEAT,
                storage=storage,
                applied=self.applied,
                max_size_per_msg=limits.message_entry_bytes,
                max_committed_size_per_ready=limits.committed_bytes_per_step,
                max_uncommitted_entries_size=limits.uncommitted_bytes,
                max_inflight_msgs=limits.inflight_messages,
                max_inflight_bytes=limits.inflight_bytes,
                check_quorum=True,
                pre_vote=True,
                disable_proposal_forwarding=True,
                step_down_on_removal=True,
                rng=chance,
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

    # --- one Ready --------------------------------------------------------------------------------------

    def advance(self) -> None:
        """All that the last Ready asked for has been carried out."""
        taken = self._taken
        if taken is not None:
            self._taken = None
            self.raw.advance(taken)

    def take(self) -> Ready | None:
        """What is to be done now, if anything. Once a step."""
        if not self.raw.has_ready():
            return None
        self._taken = ready = self.raw.ready()
        return ready

    def promises(self, ready: Ready) -> bool:
        """Whether term or vote change, which nothing may overtake."""
        new, old = ready.hard_state, self._durable
        return new is not None and (new.term != old.term or new.vote != old.vote)

    def persist(self, ready: Ready, promises: bool, outputs: Outputs) -> bool:
        """Have written what must be; whether there is anything. A commit index alone is not written: it
        promises nothing, and goes along with the next batch."""
        if ready.hard_state is not None:
            self._durable = ready.hard_state
        if not promises and not ready.entries and ready.snapshot is None:
            return False
        outputs.snapshot, outputs.entries = ready.snapshot, ready.entries
        self._write(outputs)
        return True

    def persist_commit(self, outputs: Outputs) -> None:
        """Have the commit index written, so that the next start knows it."""
        if self._durable.commit > self._written_commit:
            self._write(outputs)

    def _write(self, outputs: Outputs) -> None:
        outputs.hard_state = self._durable
        self._written_commit = self._durable.commit

    def has_more(self, *, also_new: bool) -> bool:
        """Whether a Ready will be there as soon as the last one is carried out. `also_new`: something was
        given to the core since that was taken."""
        if also_new and self.raw.has_ready():
            return True
        taken, raft = self._taken, self.raft
        if taken is None:
            return False
        if taken.snapshot is not None or raft.state in _CAMPAIGNS or raft.trk.config.auto_leave:
            # Entries behind the snapshot; this node's own vote.
            return True
        if taken.committed_entries and taken.committed_entries[-1].index < raft.raft_log.committed:
            return True
        # No other voter can have acknowledged these entries yet, since their messages leave with them.
        voters = raft.trk.config.voters
        alone = len(voters.incoming) == 1 or len(voters.outgoing) == 1
        return alone and bool(taken.entries) and raft.state is StateType.StateLeader

    # --- compaction -------------------------------------------------------------------------------------

    def compact(self, config: NodeConfig, *, threshold: int) -> Snapshot | None:
        """The snapshot that takes the place of what need not be kept, when at least `threshold` entries can
        go. It stands right before the first kept entry, so that a newcomer receives all of them. Raises
        StorageError.
        """
        store = self.store
        # Only what the store knows to be committed can go.
        applied = min(self.applied, store.hard_state.commit)
        point = store.compaction_point(config.log_keep_entries, config.log_keep_bytes, applied)
        if point - (store.first_index() - 1) < threshold:
            return None
        snapshot = self.membership_log.at(point).to_snapshot(point, store.term(point))
        self.membership_log.forget_before(point)
        return snapshot
