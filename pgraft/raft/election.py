"""Terms and votes (sections 5.1, 5.2, 5.4.1; dissertation 9.6 for PreVote, 6.2 for CheckQuorum)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from pgraft.raft import stability
from pgraft.raft.types import NO_NODE, EntryType, Message, MessageType, StateType

if TYPE_CHECKING:
    from pgraft.raft.raft import Raft

LEADER = StateType.StateLeader
MSG_APP = MessageType.MsgApp
MSG_HEARTBEAT = MessageType.MsgHeartbeat
MSG_SNAP = MessageType.MsgSnap
MSG_APP_RESP = MessageType.MsgAppResp
MSG_VOTE = MessageType.MsgVote
MSG_VOTE_RESP = MessageType.MsgVoteResp
MSG_PRE_VOTE = MessageType.MsgPreVote
MSG_PRE_VOTE_RESP = MessageType.MsgPreVoteResp
MSG_STORAGE_APPEND_RESP = MessageType.MsgStorageAppendResp

CAMPAIGN_TRANSFER = b"CampaignTransfer"
"""Context of a vote request made at the leader's own wish: a lease does not stand against it."""


class Campaign(enum.Enum):
    """Why votes are asked for."""

    PRE_ELECTION = enum.auto()
    ELECTION = enum.auto()
    TRANSFER = enum.auto()


def step_other_term(r: Raft, m: Message) -> bool:
    """Apply the term rule to a message of another term; False when that is all it deserves."""
    if m.term > r.term:
        return _step_higher_term(r, m)
    _step_lower_term(r, m)
    return False


def _step_higher_term(r: Raft, m: Message) -> bool:
    kind = m.type
    if kind is MSG_PRE_VOTE or kind is MSG_VOTE:
        forced = m.context == CAMPAIGN_TRANSFER
        in_lease = r.check_quorum and r.lead != NO_NODE and r.election_elapsed < r.election_timeout
        if in_lease and not forced:
            # Heard from a leader within the election timeout: neither vote nor move to the term.
            return False
    if kind is MSG_PRE_VOTE or (kind is MSG_PRE_VOTE_RESP and not m.reject):
        # A pre-vote is about a term that nobody has entered yet. When it is granted, the term is the one
        # we asked for; when refused, it is a real one, and we may be behind.
        return True
    from_leader = kind is MSG_APP or kind is MSG_HEARTBEAT or kind is MSG_SNAP
    r.become_follower(m.term, m.from_ if from_leader else NO_NODE)
    return True


def _step_lower_term(r: Raft, m: Message) -> None:
    kind = m.type
    if (r.check_quorum or r.pre_vote) and (kind is MSG_HEARTBEAT or kind is MSG_APP):
        # A leader of an older term, which our votes cannot reach while others are in its lease: tell it of
        # our term, so that it steps down and we are not cut off for ever.
        r.send(Message(type=MSG_APP_RESP, to=m.from_))
    elif kind is MSG_PRE_VOTE:
        # Tell a pre-candidate of a newer term; else one that is behind might never learn of it.
        r.send(Message(type=MSG_PRE_VOTE_RESP, to=m.from_, term=r.term, reject=True))
    elif kind is MSG_STORAGE_APPEND_RESP and m.snapshot is not None:
        # The entries written may have been overwritten since, so they do not count as stable; a snapshot
        # holds committed state, in whatever term it was written.
        stability.applied_snapshot(r, m.snapshot)


def handle_hup(r: Raft, m: Message) -> None:
    """The election timeout has passed, or the application wants a campaign."""
    hup(r, Campaign.PRE_ELECTION if r.pre_vote else Campaign.ELECTION)


def hup(r: Raft, campaign: Campaign) -> None:
    """Campaign, unless this node leads, may not lead, or has yet to apply a membership change."""
    if r.state is LEADER or not r.promotable() or has_unapplied_conf_changes(r):
        return
    start_campaign(r, campaign)


def has_unapplied_conf_changes(r: Raft) -> bool:
    """Whether a committed membership change is not applied yet: we would count with the wrong quorum."""
    log = r.raft_log
    if log.applied >= log.committed:
        return False
    pages = log.scan(log.applied + 1, log.committed + 1, log.max_applying_size)
    return any(entry.type != EntryType.EntryNormal for page in pages for entry in page)


def start_campaign(r: Raft, campaign: Campaign) -> None:
    """Ask all voters for their vote, or their pre-vote."""
    if campaign is Campaign.PRE_ELECTION:
        r.become_pre_candidate()
        kind, answer, term = MSG_PRE_VOTE, MSG_PRE_VOTE_RESP, r.term + 1
    else:
        r.become_candidate()
        kind, answer, term = MSG_VOTE, MSG_VOTE_RESP, r.term
    context = CAMPAIGN_TRANSFER if campaign is Campaign.TRANSFER else b""
    log = r.raft_log
    for id in r.trk.voter_ids():
        if id == r.id:
            # Our own vote counts once it is durable, as everybody else's.
            r.send(Message(type=answer, to=id, term=term))
            continue
        r.send(
            Message(
                type=kind,
                to=id,
                term=term,
                index=log.last_index(),
                log_term=log.last_term(),
                context=context,
            )
        )


def handle_vote(r: Raft, m: Message) -> None:
    """Answer a vote request. Learners vote too: whoever asks counts them as voters, and they may be
    promoted already without knowing it."""
    can_vote = (
        r.vote == m.from_  # asked again
        or (r.vote == NO_NODE and r.lead == NO_NODE)
        or (m.type is MSG_PRE_VOTE and m.term > r.term)
    )
    granted = can_vote and r.raft_log.is_up_to_date(m.index, m.log_term)
    answer = MSG_VOTE_RESP if m.type is MSG_VOTE else MSG_PRE_VOTE_RESP
    # A granted pre-vote goes back with the term it was asked for, as ours would be stale to the asker.
    term = m.term if granted else r.term
    r.send(Message(type=answer, to=m.from_, term=term, reject=not granted))
    if granted and m.type is MSG_VOTE:
        r.election_elapsed = 0
        r.vote = m.from_
