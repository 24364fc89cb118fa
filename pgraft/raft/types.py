"""The words that the consensus core, the storage and the wire share.

Names and meanings follow etcd-io/raft's raftpb (Entry, HardState, Snapshot, ConfState, Message,
ConfChangeV2), in Python spelling. Everything here is a plain value: a msgspec.Struct encoded as a
msgpack array, so that storage and wire need no conversion. Terms, indexes and ids are unsigned
64-bit integers; 0 means "none".
"""

from __future__ import annotations

import enum

import msgspec

NO_NODE = 0
"""The id that stands for "no node" (etcd's None)."""

LOCAL_APPEND_THREAD = 2**64 - 1
LOCAL_APPLY_THREAD = 2**64 - 2


class EntryType(enum.IntEnum):
    """What an entry carries: user data, a v1 membership change, or a v2 one."""

    EntryNormal = 0
    EntryConfChange = 1
    EntryConfChangeV2 = 2


class MessageType(enum.IntEnum):
    """Message types, numbered as in etcd's raftpb."""

    MsgHup = 0
    MsgBeat = 1
    MsgProp = 2
    MsgApp = 3
    MsgAppResp = 4
    MsgVote = 5
    MsgVoteResp = 6
    MsgSnap = 7
    MsgHeartbeat = 8
    MsgHeartbeatResp = 9
    MsgUnreachable = 10
    MsgSnapStatus = 11
    MsgCheckQuorum = 12
    MsgTransferLeader = 13
    MsgTimeoutNow = 14
    MsgReadIndex = 15
    MsgReadIndexResp = 16
    MsgPreVote = 17
    MsgPreVoteResp = 18
    MsgStorageAppend = 19
    MsgStorageAppendResp = 20
    MsgStorageApply = 21
    MsgStorageApplyResp = 22
    MsgForgetLeader = 23


class StateType(enum.IntEnum):
    """Raft roles, numbered as in etcd's raft."""

    StateFollower = 0
    StateCandidate = 1
    StateLeader = 2
    StatePreCandidate = 3


class Entry(msgspec.Struct, array_like=True, gc=False):
    """One entry of the entry log: term, index (from 1), EntryType number, data."""

    term: int = 0
    index: int = 0
    type: int = 0
    data: bytes = b""


class HardState(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What must be durable before a message that promises it: term, vote (0: none), commit."""

    term: int = 0
    vote: int = 0
    commit: int = 0


class ConfState(msgspec.Struct, array_like=True, frozen=True):
    """A configuration: voters, learners, the outgoing voters while joint, learners-to-be, auto_leave."""

    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    voters_outgoing: tuple[int, ...] = ()
    learners_next: tuple[int, ...] = ()
    auto_leave: bool = False


class SnapshotMetadata(msgspec.Struct, array_like=True, frozen=True):
    """Where a snapshot stands: configuration, index and term of the last entry it covers."""

    conf_state: ConfState = ConfState()
    index: int = 0
    term: int = 0


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """A snapshot: opaque data of the application (membership addresses, removed ids) and its place."""

    metadata: SnapshotMetadata = SnapshotMetadata()
    data: bytes = b""


class ConfChangeType(enum.IntEnum):
    """Single membership operations, numbered as in etcd's raftpb."""

    ConfChangeAddNode = 0
    ConfChangeRemoveNode = 1
    ConfChangeUpdateNode = 2
    ConfChangeAddLearnerNode = 3


class ConfChangeTransition(enum.IntEnum):
    """How a v2 change with several operations enters and leaves the joint configuration."""

    ConfChangeTransitionAuto = 0
    ConfChangeTransitionJointImplicit = 1
    ConfChangeTransitionJointExplicit = 2


class ConfChangeSingle(msgspec.Struct, array_like=True, frozen=True):
    """One operation of a v2 change: ConfChangeType number and node id."""

    type: int
    node_id: int


class ConfChange(msgspec.Struct, array_like=True, frozen=True):
    """A v1 change: one operation, with the application's context."""

    type: int
    node_id: int
    context: bytes = b""


class ConfChangeV2(msgspec.Struct, array_like=True, frozen=True):
    """A v2 change. With no changes and the Auto transition it leaves a joint configuration."""

    transition: int = 0
    changes: tuple[ConfChangeSingle, ...] = ()
    context: bytes = b""


class Message(msgspec.Struct, array_like=True, kw_only=True):
    """A Raft message. Which fields count depends on `type`; see etcd's raftpb for each."""

    type: MessageType
    to: int = 0
    from_: int = 0
    term: int = 0
    log_term: int = 0
    index: int = 0
    entries: list[Entry] = []
    commit: int = 0
    vote: int = 0
    snapshot: Snapshot | None = None
    reject: bool = False
    reject_hint: int = 0
    context: bytes = b""
    responses: list[Message] = []
