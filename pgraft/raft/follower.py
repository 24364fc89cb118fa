"""What a follower does with each message (sections 5.3, 7), and the handling of a leader's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pgraft.raft import election, membership, stability
from pgraft.raft.config import ReadOnlyOption
from pgraft.raft.errors import ErrMalformedMessage, ErrProposalDropped
from pgraft.raft.handlers import Handler, ignore, table
from pgraft.raft.read_only import ReadState
from pgraft.raft.types import NO_NODE, Message, MessageType, Snapshot

if TYPE_CHECKING:
    from pgraft.raft.raft import Raft

MSG_APP_RESP = MessageType.MsgAppResp


# From the leader


def handle_app(r: Raft, m: Message) -> None:
    """Entries from the leader."""
    r.election_elapsed = 0
    r.lead = m.from_
    append_from_leader(r, m)


def handle_heartbeat(r: Raft, m: Message) -> None:
    """The leader is there."""
    r.election_elapsed = 0
    r.lead = m.from_
    heartbeat_from_leader(r, m)


def handle_snap(r: Raft, m: Message) -> None:
    """A snapshot from the leader."""
    r.election_elapsed = 0
    r.lead = m.from_
    snapshot_from_leader(r, m)


def append_from_leader(r: Raft, m: Message) -> None:
    """Append, and acknowledge or reject with a hint at where the logs may still be equal."""
    entries = m.entries
    if entries and (entries[0].index != m.index + 1 or entries[-1].index != m.index + len(entries)):
        raise ErrMalformedMessage(
            f"append at {m.index} with {len(entries)} entries [{entries[0].index}, {entries[-1].index}]"
        )
    log = r.raft_log
    if m.index < log.committed:
        # Old news: all up to our commit index is known to be equal.
        _acknowledge(r, m.from_, log.committed)
        return
    last_new = log.maybe_append(m.index, m.log_term, entries, m.commit)
    if last_new is not None:
        _acknowledge(r, m.from_, last_new)
        return
    hint, hint_term = log.find_conflict_by_term(min(m.index, log.last_index()), m.log_term)
    r.send(
        Message(
            type=MSG_APP_RESP, to=m.from_, index=m.index, reject=True, reject_hint=hint, log_term=hint_term
        )
    )


def _acknowledge(r: Raft, to: int, index: int) -> None:
    r.msgs_after_append.append(Message(type=MSG_APP_RESP, to=to, from_=r.id, term=r.term, index=index))


def heartbeat_from_leader(r: Raft, m: Message) -> None:
    """Take the commit index and answer."""
    r.raft_log.commit_to(m.commit)
    r.send(Message(type=MessageType.MsgHeartbeatResp, to=m.from_, context=m.context))


def snapshot_from_leader(r: Raft, m: Message) -> None:
    """Restore, and acknowledge what we then have."""
    restored = membership.restore(r, m.snapshot if m.snapshot is not None else Snapshot())
    _acknowledge(r, m.from_, r.raft_log.last_index() if restored else r.raft_log.committed)


# From others


def handle_prop(r: Raft, m: Message) -> None:
    """Forward a proposal to the leader. Raises ErrProposalDropped."""
    if r.lead == NO_NODE:
        raise ErrProposalDropped("no leader is known")
    if r.config.disable_proposal_forwarding:
        raise ErrProposalDropped("proposals are not forwarded")
    _forward(r, m)


def handle_to_leader(r: Raft, m: Message) -> None:
    """Forward a request to the leader, if one is known."""
    if r.lead != NO_NODE:
        _forward(r, m)


def _forward(r: Raft, m: Message) -> None:
    # The same message may have been handed to others: change a copy.
    r.send(msgspec.structs.replace(m, to=r.lead, term=0))


def handle_forget_leader(r: Raft, m: Message) -> None:
    """Forget the leader without a new term, to vote for another at once. Not while a lease may be in
    use: it stands on our promise not to vote."""
    if r.read_only.option is not ReadOnlyOption.ReadOnlyLeaseBased:
        r.lead = NO_NODE


def handle_timeout_now(r: Raft, m: Message) -> None:
    """The leader hands over: campaign at once, without a pre-vote."""
    election.hup(r, election.Campaign.TRANSFER)


def handle_read_index_resp(r: Raft, m: Message) -> None:
    """The leader's answer to a read that was asked here."""
    if len(m.entries) != 1:
        raise ErrMalformedMessage(f"read index answer with {len(m.entries)} entries")
    r.read_states.append(ReadState(index=m.index, request_ctx=m.entries[0].data))


HANDLERS: tuple[Handler, ...] = table(
    {
        MessageType.MsgHup: election.handle_hup,
        MessageType.MsgBeat: ignore,
        MessageType.MsgProp: handle_prop,
        MessageType.MsgApp: handle_app,
        MessageType.MsgAppResp: ignore,
        MessageType.MsgVote: election.handle_vote,
        MessageType.MsgVoteResp: ignore,
        MessageType.MsgSnap: handle_snap,
        MessageType.MsgHeartbeat: handle_heartbeat,
        MessageType.MsgHeartbeatResp: ignore,
        MessageType.MsgUnreachable: ignore,
        MessageType.MsgSnapStatus: ignore,
        MessageType.MsgCheckQuorum: ignore,
        MessageType.MsgTransferLeader: handle_to_leader,
        MessageType.MsgTimeoutNow: handle_timeout_now,
        MessageType.MsgReadIndex: handle_to_leader,
        MessageType.MsgReadIndexResp: handle_read_index_resp,
        MessageType.MsgPreVote: election.handle_vote,
        MessageType.MsgPreVoteResp: ignore,
        MessageType.MsgStorageAppend: ignore,
        MessageType.MsgStorageAppendResp: stability.handle_storage_append_resp,
        MessageType.MsgStorageApply: ignore,
        MessageType.MsgStorageApplyResp: stability.handle_storage_apply_resp,
        MessageType.MsgForgetLeader: handle_forget_leader,
    }
)
