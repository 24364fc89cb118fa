"""RawNode: the way to drive a Raft node, and Ready, what it wants done.

The loop, in the synchronous mode: call tick, step, propose, …; while has_ready(), take ready(), then
 1. store hard_state, entries and snapshot, durably where must_sync or a snapshot says so;
 2. send messages. A leader's MsgApp, MsgHeartbeat and MsgSnap may leave before 1 is done, as they promise
    nothing; all others only after it;
 3. apply committed_entries (membership changes by apply_conf_change);
 4. advance().

With async_storage_writes there is no advance(): `messages` hold a MsgStorageAppend and a MsgStorageApply
for local threads, each with the responses to deliver once it has been carried out, in order.
"""

from __future__ import annotations

import msgspec

from pgraft.raft import codec, leader, membership
from pgraft.raft.config import Config
from pgraft.raft.errors import (
    ErrStepLocalMsg,
    ErrStepPeerNotFound,
    invariant,
)
from pgraft.raft.raft import LEADER, Raft
from pgraft.raft.read_only import ReadState
from pgraft.raft.status import (
    BasicStatus,
    SoftState,
    Status,
    basic_status_of,
    hard_state_of,
    soft_state_of,
    status_of,
)
from pgraft.raft.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    ConfChange,
    ConfChangeV2,
    ConfState,
    Entry,
    HardState,
    Message,
    MessageType,
    Snapshot,
    StateType,
)

EMPTY_HARD_STATE = HardState()

LOCAL_MESSAGES = frozenset(
    {
        MessageType.MsgHup,
        MessageType.MsgBeat,
        MessageType.MsgUnreachable,
        MessageType.MsgSnapStatus,
        MessageType.MsgCheckQuorum,
        MessageType.MsgStorageAppend,
        MessageType.MsgStorageAppendResp,
        MessageType.MsgStorageApply,
        MessageType.MsgStorageApplyResp,
        MessageType.MsgForgetLeader,
    }
)
RESPONSE_MESSAGES = frozenset(
    {
        MessageType.MsgAppResp,
        MessageType.MsgVoteResp,
        MessageType.MsgHeartbeatResp,
        MessageType.MsgUnreachable,
        MessageType.MsgReadIndexResp,
        MessageType.MsgPreVoteResp,
        MessageType.MsgStorageAppendResp,
        MessageType.MsgStorageApplyResp,
    }
)


class Ready(msgspec.Struct):
    """What is to be done; see the head of this module. Lists are not to be changed."""

    soft_state: SoftState | None
    hard_state: HardState | None
    read_states: list[ReadState]
    entries: list[Entry]
    snapshot: Snapshot | None
    committed_entries: list[Entry]
    messages: list[Message]
    must_sync: bool


def is_local_target(id: int) -> bool:
    """Whether `id` stands for one of the local threads of the asynchronous mode."""
    return id in (LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD)


class RawNode:
    """A Raft node. Not safe for threads; nothing in here blocks."""

    __slots__ = ("_async", "_prev_hard", "_prev_lead", "_prev_state", "_steps_on_advance", "raft")

    def __init__(self, config: Config) -> None:
        self.raft = Raft(config)
        self._async = config.async_storage_writes
        self._prev_lead = self.raft.lead
        self._prev_state = self.raft.state
        self._prev_hard = hard_state_of(self.raft)
        self._steps_on_advance: list[Message] = []

    # In

    def tick(self) -> None:
        """One tick of the clock has passed."""
        self.raft.tick()

    def ticks_to_deadline(self) -> int:
        """Ticks until the node does something by itself, at least 1."""
        return self.raft.ticks_to_deadline()

    def campaign(self) -> None:
        """Try to become leader now."""
        self.raft.step(Message(type=MessageType.MsgHup))

    def propose(self, data: bytes) -> None:
        """Propose one entry. Raises ErrProposalDropped."""
        self.propose_entries([data])

    def propose_entries(self, data: list[bytes]) -> None:
        """Propose several entries at once, all or none. Raises ErrProposalDropped."""
        r = self.raft
        if not data:
            return
        if r.state is LEADER:
            leader.propose_data(r, data)
            return
        entries = [Entry(data=item) for item in data]
        r.step(Message(type=MessageType.MsgProp, from_=r.id, entries=entries))

    def propose_conf_change(self, change: ConfChange | ConfChangeV2) -> None:
        """Propose a membership change; it takes effect when it is applied. Raises ErrProposalDropped.

        One that is not possible now (another is pending, say) enters the log as an empty entry.
        """
        entry = codec.encode_conf_change(change)
        self.raft.step(Message(type=MessageType.MsgProp, from_=self.raft.id, entries=[entry]))

    def apply_conf_change(self, change: ConfChange | ConfChangeV2) -> ConfState:
        """Apply a committed membership change; the resulting configuration. Raises ErrConfChange.

        Must be called for each committed one; one that the application refuses is passed with node id 0.
        """
        return membership.apply_conf_change(self.raft, codec.as_v2(change))

    def step(self, m: Message) -> None:
        """Handle a message from a peer or a local thread. Raises RaftError when it is refused."""
        kind = m.type
        if kind in LOCAL_MESSAGES and not is_local_target(m.from_):
            raise ErrStepLocalMsg
        if (
            kind in RESPONSE_MESSAGES
            and m.from_ not in self.raft.trk.progress
            and not is_local_target(m.from_)
        ):
            raise ErrStepPeerNotFound
        self.raft.step(m)

    def report_unreachable(self, id: int) -> None:
        """The last message to `id` was probably lost."""
        self.raft.step(Message(type=MessageType.MsgUnreachable, from_=id))

    def report_another_log(self, id: int) -> None:
        """`id` came back with another log than the one that it acknowledged from. Not in etcd, where a node
        never does: rejections of what it had acknowledged would count as stale, and it would get nothing."""
        r = self.raft
        progress = r.trk.progress.get(id)
        if progress is not None and id != r.id and r.state is StateType.StateLeader:
            progress.restart(match=0, next=r.raft_log.last_index() + 1)

    def report_snapshot(self, id: int, ok: bool) -> None:
        """The snapshot for `id` was sent, or could not be. Must be called for each MsgSnap: until then, or
        until its answer, the follower gets nothing."""
        self.raft.step(Message(type=MessageType.MsgSnapStatus, from_=id, reject=not ok))

    def transfer_leader(self, id: int) -> None:
        """Hand leadership to `id`. Given up after an election timeout."""
        self.raft.step(Message(type=MessageType.MsgTransferLeader, from_=id))

    def forget_leader(self) -> None:
        """Forget the leader without a new term, so as to vote for another at once."""
        self.raft.step(Message(type=MessageType.MsgForgetLeader))

    def read_index(self, context: bytes) -> None:
        """Ask for an index to read at; the answer comes as a ReadState with the same context, or never
        (leader lost): ask again."""
        self.raft.step(Message(type=MessageType.MsgReadIndex, entries=[Entry(data=context)]))

    # Out

    def has_ready(self) -> bool:
        """Whether ready() would return anything to do."""
        r = self.raft
        log = r.raft_log
        unstable = log.unstable
        return bool(
            r.msgs
            or r.msgs_after_append
            or unstable.has_next_entries()
            or log.has_next_committed(not self._async)
            or self._hard_state_changed()
            or r.lead != self._prev_lead
            or r.state is not self._prev_state
            or unstable.next_snapshot() is not None
            or r.read_states
        )

    def _hard_state_changed(self) -> bool:
        r, previous = self.raft, self._prev_hard
        return r.raft_log.committed != previous.commit or r.term != previous.term or r.vote != previous.vote

    def ready(self) -> Ready:
        """All that is to be done now. In the synchronous mode advance() must follow before the next one."""
        r = self.raft
        invariant(not self._steps_on_advance, "ready() called again before advance()")
        log = r.raft_log
        previous = self._prev_hard
        entries = log.unstable.next_entries()
        ready = Ready(
            soft_state=soft_state_of(r)
            if r.lead != self._prev_lead or r.state is not self._prev_state
            else None,
            hard_state=hard_state_of(r) if self._hard_state_changed() else None,
            read_states=r.read_states,
            entries=entries,
            snapshot=log.unstable.next_snapshot(),
            committed_entries=log.next_committed(not self._async),
            messages=r.msgs,
            must_sync=bool(entries) or r.term != previous.term or r.vote != previous.vote,
        )
        if self._async:
            self._hand_to_threads(ready)
        else:
            self._keep_for_advance(ready)
        self._accept(ready)
        return ready

    def _accept(self, ready: Ready) -> None:
        """What is in `ready` is not handed out again."""
        r = self.raft
        if ready.soft_state is not None:
            self._prev_lead = r.lead
            self._prev_state = r.state
        if ready.hard_state is not None:
            self._prev_hard = ready.hard_state
        r.read_states = []
        r.msgs = []
        r.msgs_after_append = []
        log = r.raft_log
        log.unstable.accept_in_progress()
        committed = ready.committed_entries
        if committed:
            log.accept_applying(committed[-1].index, log.page_size(committed), not self._async)

    def _keep_for_advance(self, ready: Ready) -> None:
        """Promises to others leave with the Ready; what this node is to hear of its own waits for advance."""
        r = self.raft
        own = self._steps_on_advance
        for m in r.msgs_after_append:
            if m.to == r.id:
                own.append(m)
            else:
                ready.messages.append(m)
        if ready.entries or ready.snapshot is not None:
            own.append(self._storage_append_resp(ready))
        if ready.committed_entries:
            own.append(self._storage_apply_resp(ready))

    def _hand_to_threads(self, ready: Ready) -> None:
        r = self.raft
        if ready.entries or ready.hard_state is not None or ready.snapshot is not None or r.msgs_after_append:
            ready.messages.append(self._storage_append(ready))
        if ready.committed_entries:
            ready.messages.append(
                Message(
                    type=MessageType.MsgStorageApply,
                    to=LOCAL_APPLY_THREAD,
                    from_=r.id,
                    entries=ready.committed_entries,
                    responses=[self._storage_apply_resp(ready)],
                )
            )

    def _storage_append(self, ready: Ready) -> Message:
        r = self.raft
        hard_state = ready.hard_state or EMPTY_HARD_STATE
        responses = r.msgs_after_append
        if r.raft_log.unstable.entries or ready.snapshot is not None:
            responses.append(self._storage_append_resp(ready))
        return Message(
            type=MessageType.MsgStorageAppend,
            to=LOCAL_APPEND_THREAD,
            from_=r.id,
            term=hard_state.term,
            vote=hard_state.vote,
            commit=hard_state.commit,
            entries=ready.entries,
            snapshot=ready.snapshot,
            responses=responses,
        )

    def _storage_append_resp(self, ready: Ready) -> Message:
        """Says that the log up to its last unstable entry is durable: the appends before were carried out
        in order. It carries our term and is dropped in a later one, as entries that were overwritten and
        written again may look the same (index and term) and not be durable yet."""
        r = self.raft
        log = r.raft_log
        unstable = bool(log.unstable.entries)
        return Message(
            type=MessageType.MsgStorageAppendResp,
            to=r.id,
            from_=LOCAL_APPEND_THREAD,
            term=r.term,
            index=log.last_index() if unstable else 0,
            log_term=log.last_term() if unstable else 0,
            snapshot=ready.snapshot,
        )

    def _storage_apply_resp(self, ready: Ready) -> Message:
        return Message(
            type=MessageType.MsgStorageApplyResp,
            to=self.raft.id,
            from_=LOCAL_APPLY_THREAD,
            entries=ready.committed_entries,
        )

    def advance(self, ready: Ready | None = None) -> None:
        """What the last ready() asked for has been done. Synchronous mode only."""
        invariant(not self._async, "advance() with async_storage_writes")
        steps, self._steps_on_advance = self._steps_on_advance, []
        for m in steps:
            self.raft.step(m)

    # Introspection

    def status(self) -> Status:
        """A copy of the node's state, with the followers' progress on a leader."""
        return status_of(self.raft)

    def basic_status(self) -> BasicStatus:
        """A copy of the cheap part."""
        return basic_status_of(self.raft)

    def set_randomized_election_timeout(self, ticks: int) -> None:
        """For tests: override the chance of the current election timeout."""
        self.raft.randomized_election_timeout = ticks
