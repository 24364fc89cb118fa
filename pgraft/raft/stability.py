"""What the storage and the application report back: written, applied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgraft.raft import membership
from pgraft.raft.sizes import payload_size
from pgraft.raft.types import Message, Snapshot

if TYPE_CHECKING:
    from pgraft.raft.raft import Raft


def handle_storage_append_resp(r: Raft, m: Message) -> None:
    """Entries up to (index, log_term), and perhaps a snapshot, are durable."""
    if m.index:
        r.raft_log.unstable.stable_to(m.index, m.log_term)
    if m.snapshot is not None:
        applied_snapshot(r, m.snapshot)


def handle_storage_apply_resp(r: Raft, m: Message) -> None:
    """The entries have been applied."""
    if m.entries:
        applied_to(r, m.entries[-1].index, r.raft_log.page_size(m.entries))
        reduce_uncommitted(r, m)


def applied_snapshot(r: Raft, snapshot: Snapshot) -> None:
    """The snapshot is durable, and with it everything up to its index is applied."""
    index = snapshot.metadata.index
    r.raft_log.unstable.stable_snapshot_to(index)
    applied_to(r, index, 0)


def applied_to(r: Raft, index: int, size: int) -> None:
    """Entries up to `index`, `size` bytes of them, have been applied."""
    log = r.raft_log
    log.applied_to(max(index, log.applied), size)
    membership.maybe_auto_leave(r)


def reduce_uncommitted(r: Raft, m: Message) -> None:
    """The entries no longer count as uncommitted. Entries of earlier terms were never counted, so the
    sum may come out below zero, and is then zero."""
    if r.uncommitted_size:
        r.uncommitted_size = max(0, r.uncommitted_size - payload_size(m.entries))
