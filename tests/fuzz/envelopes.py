"""Messages of peers as bytes: the envelope, and the membership changes within entries."""

from __future__ import annotations

import msgspec

from pgraft.node import envelope
from pgraft.node.envelope import BadEnvelope, Call, Envelope, NodeStatus, Reply
from pgraft.node.membership import MembershipError, decode_context, from_snapshot
from pgraft.raft import codec
from pgraft.raft.errors import ErrMalformedMessage
from pgraft.raft.types import (
    ConfChange,
    ConfState,
    Entry,
    EntryType,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
)
from tests.fuzz.target import Taker, Target, noise

WHOLE = Envelope(
    2,
    3,
    NodeStatus(2, 4, 3, 5, 6, 0, False),
    [
        Message(type=MessageType.MsgApp, to=1, from_=2, term=3, entries=[Entry(3, 7, 0, b"\1x")]),
        Message(
            type=MessageType.MsgSnap,
            to=1,
            from_=2,
            term=3,
            snapshot=Snapshot(SnapshotMetadata(ConfState((1, 2, 3)), 5, 2), b"\x92\x90\x90"),
        ),
    ],
    7,
    8,
    3,
    900,
    [NodeStatus(1)],
    [Call(1, 2, 1, 1000, 0, 0, b"text")],
    [Reply(1, 2, 1, 9)],
    0,
)


def envelopes(data: bytes) -> None:
    """Bytes are an envelope or are refused by name; one that is taken is the same when encoded again."""
    try:
        found = envelope.decode(data)
    except BadEnvelope:
        return
    again = envelope.decode(envelope.encode(found))
    if again != found:
        raise AssertionError(f"{found} became {again}")


def changes(data: bytes) -> None:
    """Entries, contexts and snapshots: each reader refuses what it cannot read, by name."""
    taker = Taker(data)
    kind = taker.choice((EntryType.EntryConfChange, EntryType.EntryConfChangeV2))
    body = taker.rest()
    try:
        change = codec.decode_conf_change(Entry(1, 1, kind, body))
        back = codec.decode_conf_change(codec.encode_conf_change(change))
        if back != change:
            raise AssertionError(f"{change} became {back}")
        codec.as_v2(change)
    except ErrMalformedMessage:
        pass
    decode_context(body)
    try:
        from_snapshot(Snapshot(SnapshotMetadata(index=3), body))
    except MembershipError:
        return


_CHANGE = msgspec.msgpack.encode(ConfChange(0, 4, msgspec.msgpack.encode(("host", 7001, False))))

TARGETS = (
    Target("envelopes", envelopes, (envelope.encode(WHOLE), *noise(4, 60))),
    Target("changes", changes, (b"\0" + _CHANGE, b"\1" + _CHANGE, *noise(4, 40)), 8192),
)
