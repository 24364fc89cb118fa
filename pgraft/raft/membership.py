"""Configurations in use: applying a change, restoring from a snapshot, leaving a joint one (section 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgraft.raft import codec, confchange, replication
from pgraft.raft.errors import ErrConfChange, ErrProposalDropped, invariant
from pgraft.raft.tracker import Progress, ProgressTracker, TrackerConfig
from pgraft.raft.types import NO_NODE, ConfChangeV2, ConfState, Message, MessageType, Snapshot, StateType

if TYPE_CHECKING:
    from pgraft.raft.raft import Raft

LEADER = StateType.StateLeader


def apply_conf_change(r: Raft, change: ConfChangeV2) -> ConfState:
    """Count with the configuration that `change` leads to. Raises ErrConfChange, with nothing changed."""
    return switch_to_config(r, *_next_config(r, change))


def is_possible(r: Raft, change: ConfChangeV2) -> bool:
    """Whether apply_conf_change would accept `change` now."""
    try:
        _next_config(r, change)
    except ErrConfChange:
        return False
    return True


def _next_config(r: Raft, change: ConfChangeV2) -> confchange.NextConfig:
    changer = confchange.Changer(r.trk, r.raft_log.last_index())
    if codec.leaves_joint(change):
        return changer.leave_joint()
    if codec.enters_joint(change):
        return changer.enter_joint(codec.auto_leaves(change), change.changes)
    return changer.simple(change.changes)


def switch_to_config(r: Raft, config: TrackerConfig, progress: dict[int, Progress]) -> ConfState:
    """Count with `config` from now on."""
    r.trk.use(config, progress)
    conf_state = config.conf_state()
    own = r.trk.progress.get(r.id)
    r.is_learner = own is not None and own.is_learner
    if r.state is not LEADER:
        return conf_state
    if own is None or own.is_learner:
        # Removed or demoted while leading. Unless told to step down, it leads on, without counting
        # itself, until another is elected: the change is committed everywhere it matters sooner.
        if r.config.step_down_on_removal:
            r.become_follower(r.term, NO_NODE)
        return conf_state
    if replication.maybe_commit(r):
        # A smaller quorum may commit more at once.
        replication.bcast_append(r)
    else:
        # Newcomers need not wait for a heartbeat.
        for id, peer in r.trk.items():
            if id != r.id:
                replication.maybe_send_append(r, id, peer, send_if_empty=False)
    if r.lead_transferee != NO_NODE and r.lead_transferee not in config.voters.ids():
        r.abort_leader_transfer()
    return conf_state


def maybe_auto_leave(r: Raft) -> None:
    """Propose to leave a joint configuration that is to be left without being asked."""
    if r.state is not LEADER or not r.trk.config.auto_leave or r.raft_log.applied < r.pending_conf_index:
        return
    entry = codec.encode_conf_change(codec.EMPTY_CHANGE)
    try:
        r.step(Message(type=MessageType.MsgProp, from_=r.id, entries=[entry]))
    except ErrProposalDropped:
        # A leadership transfer is running. Either the new leader leaves, or we try again at the next
        # entry that is applied.
        return


def restore(r: Raft, snapshot: Snapshot) -> bool:
    """Begin anew from a leader's snapshot; False when there is no need to, or no right."""
    log = r.raft_log
    metadata = snapshot.metadata
    if metadata.index <= log.committed:
        return False
    invariant(r.state is StateType.StateFollower, f"restoring a snapshot as {r.state.name}")
    conf_state = metadata.conf_state
    # learners_next are in voters_outgoing.
    if r.id not in conf_state.voters + conf_state.learners + conf_state.voters_outgoing:
        return False
    if log.match_term(metadata.index, metadata.term):
        # We have these entries: they are committed, and the log may stay.
        log.commit_to(metadata.index)
        return False
    log.restore(snapshot)
    r.trk = ProgressTracker(r.trk.max_inflight, r.trk.max_inflight_bytes)
    confchange.restore(r.trk, log.last_index(), conf_state)
    restored = switch_to_config(r, r.trk.config, r.trk.progress)
    invariant(
        confchange.equivalent(conf_state, restored), f"configuration {conf_state} was restored as {restored}"
    )
    return True
