"""What a candidate and a pre-candidate do with each message (section 5.2; dissertation 9.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgraft.raft import election, follower, replication, stability
from pgraft.raft.errors import ErrProposalDropped
from pgraft.raft.handlers import Handler, ignore, table
from pgraft.raft.quorum import VoteResult
from pgraft.raft.types import NO_NODE, Message, MessageType, StateType

if TYPE_CHECKING:
    from pgraft.raft.raft import Raft

PRE_CANDIDATE = StateType.StatePreCandidate


def handle_prop(r: Raft, m: Message) -> None:
    """There is no leader to propose to. Raises ErrProposalDropped."""
    raise ErrProposalDropped("no leader is known")


def handle_app(r: Raft, m: Message) -> None:
    """Another was elected in this term: follow it."""
    r.become_follower(m.term, m.from_)
    follower.append_from_leader(r, m)


def handle_heartbeat(r: Raft, m: Message) -> None:
    """Another was elected in this term: follow it."""
    r.become_follower(m.term, m.from_)
    follower.heartbeat_from_leader(r, m)


def handle_snap(r: Raft, m: Message) -> None:
    """Another was elected in this term: follow it."""
    r.become_follower(m.term, m.from_)
    follower.snapshot_from_leader(r, m)


def handle_vote_resp(r: Raft, m: Message) -> None:
    """Count an answer; a majority decides, either way."""
    r.trk.record_vote(m.from_, not m.reject)
    result = r.trk.vote_result()
    if result is VoteResult.VoteWon:
        if r.state is PRE_CANDIDATE:
            election.start_campaign(r, election.Campaign.ELECTION)
        else:
            r.become_leader()
            replication.bcast_append(r)
    elif result is VoteResult.VoteLost:
        # A refused pre-vote carries its sender's term: our own is the one to stay in.
        r.become_follower(r.term, NO_NODE)


CANDIDATE = {
    MessageType.MsgHup: election.handle_hup,
    MessageType.MsgBeat: ignore,
    MessageType.MsgProp: handle_prop,
    MessageType.MsgApp: handle_app,
    MessageType.MsgAppResp: ignore,
    MessageType.MsgVote: election.handle_vote,
    MessageType.MsgVoteResp: handle_vote_resp,
    MessageType.MsgSnap: handle_snap,
    MessageType.MsgHeartbeat: handle_heartbeat,
    MessageType.MsgHeartbeatResp: ignore,
    MessageType.MsgUnreachable: ignore,
    MessageType.MsgSnapStatus: ignore,
    MessageType.MsgCheckQuorum: ignore,
    MessageType.MsgTransferLeader: ignore,
    MessageType.MsgTimeoutNow: ignore,
    MessageType.MsgReadIndex: ignore,
    MessageType.MsgReadIndexResp: ignore,
    MessageType.MsgPreVote: election.handle_vote,
    MessageType.MsgPreVoteResp: ignore,
    MessageType.MsgStorageAppend: ignore,
    MessageType.MsgStorageAppendResp: stability.handle_storage_append_resp,
    MessageType.MsgStorageApply: ignore,
    MessageType.MsgStorageApplyResp: stability.handle_storage_apply_resp,
    MessageType.MsgForgetLeader: ignore,
}
# Answers to a pre-vote may still come in when the election has begun, and must not count as votes.
PRE_CANDIDATE_ONLY = {
    MessageType.MsgVoteResp: ignore,
    MessageType.MsgPreVoteResp: handle_vote_resp,
}

CANDIDATE_HANDLERS: tuple[Handler, ...] = table(CANDIDATE)
PRE_CANDIDATE_HANDLERS: tuple[Handler, ...] = table(CANDIDATE | PRE_CANDIDATE_ONLY)
