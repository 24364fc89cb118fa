"""Membership changes as entry data, and one form for both versions.

An entry of type EntryConfChange holds a v1 change, EntryConfChangeV2 a v2 one, both in msgpack. Empty
data stands for the empty v2 change, which leaves a joint configuration.
"""

from __future__ import annotations

import msgspec

from pgraft.raft.errors import ErrMalformedMessage
from pgraft.raft.types import (
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeV2,
    Entry,
    EntryType,
)

EMPTY_CHANGE = ConfChangeV2()

_encoder = msgspec.msgpack.Encoder()
_decode_v1 = msgspec.msgpack.Decoder(ConfChange).decode
_decode_v2 = msgspec.msgpack.Decoder(ConfChangeV2).decode


def encode_conf_change(change: ConfChange | ConfChangeV2) -> Entry:
    """The entry to propose for `change`; term and index are set when it is appended."""
    if isinstance(change, ConfChange):
        return Entry(type=EntryType.EntryConfChange.value, data=_encoder.encode(change))
    data = b"" if change == EMPTY_CHANGE else _encoder.encode(change)
    return Entry(type=EntryType.EntryConfChangeV2.value, data=data)


def decode_conf_change(entry: Entry) -> ConfChange | ConfChangeV2:
    """The change that a membership entry holds. Raises ErrMalformedMessage when it does not hold one."""
    decode = _decode_v1 if entry.type == EntryType.EntryConfChange else _decode_v2
    if not entry.data and decode is _decode_v2:
        return EMPTY_CHANGE
    try:
        return decode(entry.data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ErrMalformedMessage(f"entry {entry.term}/{entry.index}: {error}") from error


def as_v2(change: ConfChange | ConfChangeV2) -> ConfChangeV2:
    """A v1 change as a v2 one with a single operation and the Auto transition."""
    if isinstance(change, ConfChangeV2):
        return change
    return ConfChangeV2(changes=(ConfChangeSingle(change.type, change.node_id),), context=change.context)


def leaves_joint(change: ConfChangeV2) -> bool:
    """Whether the change does nothing but leave a joint configuration; its context does not count."""
    return not change.changes and change.transition == ConfChangeTransition.ConfChangeTransitionAuto


def enters_joint(change: ConfChangeV2) -> bool:
    """Whether the change goes through a joint configuration: by wish, or as it has several operations."""
    return change.transition != ConfChangeTransition.ConfChangeTransitionAuto or len(change.changes) > 1


def auto_leaves(change: ConfChangeV2) -> bool:
    """Whether the leader leaves the joint configuration of `change` by itself."""
    return change.transition != ConfChangeTransition.ConfChangeTransitionJointExplicit
