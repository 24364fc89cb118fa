"""What a leader does with each message (sections 5.3, 6, 8; dissertation 3.10 and 6.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgraft.raft import codec, election, membership, replication, stability
from pgraft.raft.config import PENDING_READS_MAX, ReadOnlyOption
from pgraft.raft.errors import ErrMalformedMessage, ErrProposalDropped, invariant
from pgraft.raft.handlers import Handler, ignore, table
from pgraft.raft.read_only import ReadState, position_of
from pgraft.raft.sizes import payload_size
from pgraft.raft.tracker import PROBE, REPLICATE, SNAPSHOT, Progress
from pgraft.raft.types import NO_NODE, Entry, EntryType, Message, MessageType

if TYPE_CHECKING:
    from pgraft.raft.raft import Raft

MSG_APP_RESP = MessageType.MsgAppResp
NORMAL = EntryType.EntryNormal.value


# Proposals


def propose_data(r: Raft, data: list[bytes]) -> None:
    """Append one normal entry for each item of `data` and send them: the short way for a batch."""
    _refuse_if_unable(r)
    term = r.term
    first = r.raft_log.last_index() + 1
    _append_and_send(r, [Entry(term, index, NORMAL, item) for index, item in enumerate(data, first)])


def handle_prop(r: Raft, m: Message) -> None:
    """Append the proposed entries and send them. Raises ErrProposalDropped."""
    if not m.entries:
        raise ErrMalformedMessage("proposal without entries")
    _refuse_if_unable(r)
    first = r.raft_log.last_index() + 1
    entries = [Entry(r.term, index, e.type, e.data) for index, e in enumerate(m.entries, first)]
    pending = r.pending_conf_index
    for position, entry in enumerate(entries):
        if entry.type != NORMAL:
            if _may_change_membership(r, entry):
                r.pending_conf_index = entry.index
            else:
                # An entry that changes nothing, so that the proposer still sees it come by.
                entries[position] = Entry(entry.term, entry.index)
    try:
        _append_and_send(r, entries)
    except ErrProposalDropped:
        r.pending_conf_index = pending
        raise


def _refuse_if_unable(r: Raft) -> None:
    if r.id not in r.trk.progress:
        raise ErrProposalDropped("this leader has been removed")
    if r.lead_transferee != NO_NODE:
        raise ErrProposalDropped(f"leadership is being transferred to {r.lead_transferee}")


def _may_change_membership(r: Raft, entry: Entry) -> bool:
    change = codec.as_v2(codec.decode_conf_change(entry))
    if r.config.disable_conf_change_validation:
        return True
    if r.pending_conf_index > r.raft_log.applied:
        return False  # one at a time, and not before the entries of earlier terms are applied
    if not change.changes and not r.trk.config.voters.is_joint():
        return False
    # Nothing else can change the configuration in between: what is possible now is so when it is applied.
    return membership.is_possible(r, change)


def _append_and_send(r: Raft, entries: list[Entry]) -> None:
    if not append_entries(r, entries):
        raise ErrProposalDropped(f"{r.uncommitted_size} bytes are uncommitted already")
    replication.bcast_append(r)


def append_entries(r: Raft, entries: list[Entry]) -> bool:
    """Append entries of ours, whose term and index are set; False when too much is uncommitted.

    Our own acknowledgement waits until they are durable, as a follower's does.
    """
    if not _increase_uncommitted(r, entries):
        return False
    r.raft_log.append(entries)
    r.msgs_after_append.append(
        Message(type=MSG_APP_RESP, to=r.id, from_=r.id, term=r.term, index=entries[-1].index)
    )
    return True


def append_empty(r: Raft) -> None:
    """The entry that a term begins with: it commits what earlier terms left (section 8)."""
    appended = append_entries(r, [Entry(r.term, r.raft_log.last_index() + 1)])
    invariant(appended, "the empty entry of a new leader was dropped")


def _increase_uncommitted(r: Raft, entries: list[Entry]) -> bool:
    limit = r.config.max_uncommitted_entries_size
    if not limit:
        return True
    size = payload_size(entries)
    if r.uncommitted_size > 0 and size > 0 and r.uncommitted_size + size > limit:
        # One proposal of any size passes when nothing is uncommitted, and so do empty entries: a leader
        # that begins, or leaves a joint configuration, is never held up.
        return False
    r.uncommitted_size += size
    return True


# Answers of followers


def handle_app_resp(r: Raft, m: Message) -> None:
    """A follower acknowledged entries, or rejected an append; or our own entries are durable."""
    progress = r.trk.progress.get(m.from_)
    if progress is None:
        return
    progress.recent_active = True
    if m.reject:
        _handle_rejection(r, m, progress)
    elif progress.maybe_update(m.index) or (progress.match == m.index and progress.state is PROBE):
        _handle_acknowledgement(r, m, progress)


def _handle_rejection(r: Raft, m: Message, progress: Progress) -> None:
    hint = m.reject_hint
    if m.log_term > 0:
        # The follower's entries behind the hint are of terms beyond ours there. Skip ours that are of
        # terms beyond the hint's: both sides jump whole terms, instead of one entry a round trip.
        hint, _ = r.raft_log.find_conflict_by_term(m.reject_hint, m.log_term)
    if progress.maybe_decr_to(m.index, hint):
        if progress.state is REPLICATE:
            progress.become_probe()
        replication.send_append(r, m.from_)


def _handle_acknowledgement(r: Raft, m: Message, progress: Progress) -> None:
    state = progress.state
    if state is REPLICATE:
        progress.inflights.free_le(m.index)
    elif state is PROBE:
        progress.become_replicate()
    elif progress.match + 1 >= r.raft_log.first_index():
        # Wherever the snapshot that arrived stood: our log reaches back to it, so entries will do.
        progress.become_probe()
        progress.become_replicate()
    own = m.from_ == r.id
    if replication.maybe_commit(r):
        if r.pending_read_index:
            release_pending_reads(r)
        replication.bcast_append(r)
    elif not own and progress.can_bump_commit(r.raft_log.committed):
        # Not strictly necessary, as heartbeats carry it too, but this is sooner.
        replication.send_append(r, m.from_)
    if own:
        return
    last = r.raft_log.last_index()
    while progress.next <= last and replication.maybe_send_append(r, m.from_, progress, send_if_empty=False):
        pass
    if m.from_ == r.lead_transferee and progress.match == last:
        replication.send_timeout_now(r, m.from_)


def handle_heartbeat_resp(r: Raft, m: Message) -> None:
    """A follower is there: let it have what it lacks, and count it for the waiting reads."""
    progress = r.trk.progress.get(m.from_)
    if progress is None:
        return
    progress.recent_active = True
    progress.flow_paused = False
    if progress.match < r.raft_log.last_index() or progress.state is PROBE:
        # An empty append too, where the window is full or the follower is probed: see maybe_send_append.
        replication.send_append(r, m.from_)
    if m.context:
        r.read_only.acknowledge(m.from_, position_of(m.context))
        _answer_confirmed_reads(r)


def handle_snap_status(r: Raft, m: Message) -> None:
    """The snapshot was sent (and its fate will show in an answer), or could not be."""
    progress = r.trk.progress.get(m.from_)
    if progress is None or progress.state is not SNAPSHOT:
        return
    if m.reject:
        progress.pending_snapshot = 0  # else probing would start behind a snapshot that never arrived
    progress.become_probe()
    # Wait for the answer, or for the next heartbeat's, before the next append.
    progress.flow_paused = True


def handle_unreachable(r: Raft, m: Message) -> None:
    """An append was probably lost: find out where the follower stands before streaming on."""
    progress = r.trk.progress.get(m.from_)
    if progress is not None and progress.state is REPLICATE:
        progress.become_probe()


# Time


def handle_beat(r: Raft, m: Message) -> None:
    """Heartbeats are due."""
    replication.bcast_heartbeat(r)


def handle_check_quorum(r: Raft, m: Message) -> None:
    """Step down unless a quorum has been heard from since the last check."""
    if not r.trk.quorum_active():
        r.become_follower(r.term, NO_NODE)
    for id, progress in r.trk.items():
        if id != r.id:
            progress.recent_active = False


# Transfer of leadership


def handle_transfer_leader(r: Raft, m: Message) -> None:
    """Hand leadership to `m.from_` once its log is complete; proposals are refused meanwhile."""
    progress = r.trk.progress.get(m.from_)
    if progress is None or progress.is_learner or r.lead_transferee == m.from_:
        return
    r.abort_leader_transfer()
    if m.from_ == r.id:
        return
    r.election_elapsed = 0  # the transfer has one election timeout
    r.lead_transferee = m.from_
    if progress.match == r.raft_log.last_index():
        replication.send_timeout_now(r, m.from_)
    else:
        replication.send_append(r, m.from_)


# Reads


def handle_read_index(r: Raft, m: Message) -> None:
    """Find an index to read at. Before the first commit of the term, the commit index may be old news."""
    if len(m.entries) != 1:
        raise ErrMalformedMessage(f"read index with {len(m.entries)} entries")
    if len(r.pending_read_index) + len(r.read_only) >= PENDING_READS_MAX:
        return
    r.pending_read_index.append(m)
    if _committed_in_current_term(r):
        release_pending_reads(r)


def _committed_in_current_term(r: Raft) -> bool:
    return r.raft_log.match_term(r.raft_log.committed, r.term)


def release_pending_reads(r: Raft) -> None:
    """Answer the requests that waited for the term's first commit, or start a round for them."""
    requests, r.pending_read_index = r.pending_read_index, []
    if r.read_only.option is ReadOnlyOption.ReadOnlyLeaseBased:
        for request in requests:
            _answer_read(r, request, r.raft_log.committed)
        return
    for request in requests:
        r.read_only.add(request, r.raft_log.committed)
    r.read_only.acknowledge(r.id, r.read_only.newest_position())
    _answer_confirmed_reads(r)  # at once, where we are the only voter
    if len(r.read_only):
        replication.bcast_heartbeat(r)


def _answer_confirmed_reads(r: Raft) -> None:
    for status in r.read_only.release(r.trk.config.voters):
        _answer_read(r, status.request, status.index)


def _answer_read(r: Raft, request: Message, index: int) -> None:
    if request.from_ in (NO_NODE, r.id):
        r.read_states.append(ReadState(index=index, request_ctx=request.entries[0].data))
        return
    r.send(Message(type=MessageType.MsgReadIndexResp, to=request.from_, index=index, entries=request.entries))


HANDLERS: tuple[Handler, ...] = table(
    {
        MessageType.MsgHup: ignore,
        MessageType.MsgBeat: handle_beat,
        MessageType.MsgProp: handle_prop,
        MessageType.MsgApp: ignore,
        MessageType.MsgAppResp: handle_app_resp,
        MessageType.MsgVote: election.handle_vote,
        MessageType.MsgVoteResp: ignore,
        MessageType.MsgSnap: ignore,
        MessageType.MsgHeartbeat: ignore,
        MessageType.MsgHeartbeatResp: handle_heartbeat_resp,
        MessageType.MsgUnreachable: handle_unreachable,
        MessageType.MsgSnapStatus: handle_snap_status,
        MessageType.MsgCheckQuorum: handle_check_quorum,
        MessageType.MsgTransferLeader: handle_transfer_leader,
        MessageType.MsgTimeoutNow: ignore,
        MessageType.MsgReadIndex: handle_read_index,
        MessageType.MsgReadIndexResp: ignore,
        MessageType.MsgPreVote: election.handle_vote,
        MessageType.MsgPreVoteResp: ignore,
        MessageType.MsgStorageAppend: ignore,
        MessageType.MsgStorageAppendResp: stability.handle_storage_append_resp,
        MessageType.MsgStorageApply: ignore,
        MessageType.MsgStorageApplyResp: stability.handle_storage_apply_resp,
        MessageType.MsgForgetLeader: ignore,
    }
)
