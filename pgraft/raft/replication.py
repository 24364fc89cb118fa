"""A leader's sending: appends, snapshots, heartbeats, and when to commit (sections 5.3, 5.4.2, 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgraft.raft.errors import ErrCompacted, ErrSnapshotTemporarilyUnavailable, ErrUnavailable, invariant
from pgraft.raft.sizes import payload_size
from pgraft.raft.tracker import REPLICATE, Progress
from pgraft.raft.types import Entry, Message, MessageType

if TYPE_CHECKING:
    from pgraft.raft.raft import Raft

MSG_APP = MessageType.MsgApp
MSG_SNAP = MessageType.MsgSnap
MSG_HEARTBEAT = MessageType.MsgHeartbeat
MSG_TIMEOUT_NOW = MessageType.MsgTimeoutNow


def send_append(r: Raft, to: int) -> None:
    """Send what `to` needs next, an empty append if that is nothing; paused followers get nothing."""
    maybe_send_append(r, to, r.trk.progress[to], send_if_empty=True)


def bcast_append(r: Raft) -> None:
    """send_append to every other node."""
    own = r.id
    for id, progress in r.trk.progress.items():
        if id != own:
            maybe_send_append(r, id, progress, send_if_empty=True)


def maybe_send_append(r: Raft, to: int, progress: Progress, *, send_if_empty: bool) -> bool:
    """Send an append, or a snapshot where the log no longer reaches back; False when nothing was sent."""
    if progress.is_paused():
        return False
    log = r.raft_log
    previous = progress.next - 1
    entries: list[Entry] = []
    try:
        previous_term = log.term(previous)
        # A full window while streaming: only an empty append, as a probe. If everything in flight was
        # lost, its answer is what gets the stream going again.
        if progress.state is not REPLICATE or not progress.inflights.full():
            entries = log.entries(progress.next, r.max_msg_size)
    except (ErrCompacted, ErrUnavailable):
        return _maybe_send_snapshot(r, to, progress)
    if not entries and not send_if_empty:
        return False
    r.msgs.append(
        Message(
            type=MSG_APP,
            to=to,
            from_=r.id,
            term=r.term,
            log_term=previous_term,
            index=previous,
            entries=entries,
            commit=log.committed,
        )
    )
    size = payload_size(entries) if progress.inflights.max_bytes else 0
    progress.sent_entries(len(entries), size)
    progress.sent_commit = log.committed
    return True


def _maybe_send_snapshot(r: Raft, to: int, progress: Progress) -> bool:
    if not progress.recent_active:
        # It would be lost on a node that is away.
        return False
    try:
        snapshot = r.raft_log.snapshot()
    except ErrSnapshotTemporarilyUnavailable:
        return False
    invariant(snapshot.metadata.index != 0, f"the storage has no snapshot for {to}, next is {progress.next}")
    progress.become_snapshot(snapshot.metadata.index)
    r.send(Message(type=MSG_SNAP, to=to, snapshot=snapshot))
    return True


def bcast_heartbeat(r: Raft) -> None:
    """A heartbeat to every other node, with the position of the newest waiting read."""
    context = r.read_only.context()
    for id, progress in r.trk.items():
        if id == r.id:
            continue
        # Not the commit index itself: the follower may not have (or may yet lose) what lies behind match.
        commit = min(progress.match, r.raft_log.committed)
        r.send(Message(type=MSG_HEARTBEAT, to=id, commit=commit, context=context))
        progress.sent_commit = commit


def send_timeout_now(r: Raft, to: int) -> None:
    """Tell the target of a leadership transfer to campaign at once."""
    r.send(Message(type=MSG_TIMEOUT_NOW, to=to))


def maybe_commit(r: Raft) -> bool:
    """Commit what a quorum has, if the last of it is of the current term."""
    index = r.trk.committed()
    return index > r.raft_log.committed and r.raft_log.maybe_commit(index, r.term)
