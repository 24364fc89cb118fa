"""The consensus core: Raft as in etcd-io/raft, sans I/O. See README.md in this folder.

Messages and ticks go into a RawNode; what is to be stored, sent and applied comes out as a Ready.
"""

from __future__ import annotations

from pgraft.raft.codec import as_v2, decode_conf_change, encode_conf_change
from pgraft.raft.config import Config, ReadOnlyOption
from pgraft.raft.errors import (
    ErrCompacted,
    ErrConfChange,
    ErrConfig,
    ErrMalformedMessage,
    ErrProposalDropped,
    ErrSnapOutOfDate,
    ErrSnapshotTemporarilyUnavailable,
    ErrStepLocalMsg,
    ErrStepPeerNotFound,
    ErrUnavailable,
    InvariantViolation,
    RaftError,
    invariant,
)
from pgraft.raft.quorum import JointConfig, VoteResult
from pgraft.raft.raft import Raft
from pgraft.raft.rawnode import RawNode, Ready
from pgraft.raft.read_only import ReadState
from pgraft.raft.sizes import NO_LIMIT, entry_size
from pgraft.raft.status import BasicStatus, SoftState, Status
from pgraft.raft.storage import MemoryStorage, Storage
from pgraft.raft.tracker import Inflights, Progress, ProgressState, ProgressTracker, TrackerConfig
from pgraft.raft.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NO_NODE,
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
    StateType,
)

ReadOnlySafe = ReadOnlyOption.ReadOnlySafe
ReadOnlyLeaseBased = ReadOnlyOption.ReadOnlyLeaseBased

__all__ = [
    "LOCAL_APPEND_THREAD",
    "LOCAL_APPLY_THREAD",
    "NO_LIMIT",
    "NO_NODE",
    "BasicStatus",
    "ConfChange",
    "ConfChangeSingle",
    "ConfChangeTransition",
    "ConfChangeType",
    "ConfChangeV2",
    "ConfState",
    "Config",
    "Entry",
    "EntryType",
    "ErrCompacted",
    "ErrConfChange",
    "ErrConfig",
    "ErrMalformedMessage",
    "ErrProposalDropped",
    "ErrSnapOutOfDate",
    "ErrSnapshotTemporarilyUnavailable",
    "ErrStepLocalMsg",
    "ErrStepPeerNotFound",
    "ErrUnavailable",
    "HardState",
    "Inflights",
    "InvariantViolation",
    "JointConfig",
    "MemoryStorage",
    "Message",
    "MessageType",
    "Progress",
    "ProgressState",
    "ProgressTracker",
    "Raft",
    "RaftError",
    "RawNode",
    "ReadOnlyLeaseBased",
    "ReadOnlyOption",
    "ReadOnlySafe",
    "ReadState",
    "Ready",
    "Snapshot",
    "SnapshotMetadata",
    "SoftState",
    "StateType",
    "Status",
    "Storage",
    "TrackerConfig",
    "VoteResult",
    "as_v2",
    "decode_conf_change",
    "encode_conf_change",
    "entry_size",
    "invariant",
]
