"""Records on the two rings between the raft worker and the network process, for both sides.

A record's payload is a 16-byte prefix (kind, zero, node id) and a body. What a node id means:

    kind               direction            node id            body
    MESSAGE            worker -> network    receiver           HURRY or NO_HURRY, then the envelope,
                                                               opaque here
    IDENTITY           worker -> network    this node          msgpack NetIdentity
    REFUSE_START       worker -> network    the peer           msgpack RefusedStart
    MESSAGE            network -> worker    sender             the same
    PEER_HELLO         network -> worker    the peer           msgpack PeerHello
    REFUSED_BY_PEER    network -> worker    who refused us     msgpack Refusal
    PEER_CONNECTED     network -> worker    the peer           empty
    PEER_DISCONNECTED  network -> worker    the peer           empty
"""

from __future__ import annotations

import enum
import struct
from typing import TypeVar

import msgspec

_PREFIX = struct.Struct("<IIQ")
PREFIX_BYTES = _PREFIX.size
ENVELOPE_OFFSET = PREFIX_BYTES + 1
"""Where the envelope begins in a MESSAGE record, behind HURRY or NO_HURRY."""


HURRY = b"\x01"
NO_HURRY = b"\x00"
"""Before an envelope that the receiver need not be woken for: an idle cluster's answers to heartbeats."""


class RecordKind(enum.IntEnum):
    """What a record is."""

    MESSAGE = 1
    PEER_HELLO = 2
    REFUSED_BY_PEER = 3
    PEER_CONNECTED = 4
    PEER_DISCONNECTED = 5
    IDENTITY = 6
    REFUSE_START = 7


class RefusalCode(enum.IntEnum):
    """Why a node is not let in. Numbers are part of the wire protocol."""

    OTHER_CLUSTER = 1
    PROTOCOL_VERSION = 2
    WRONG_RECEIVER = 3
    SELF = 4
    MEMBER_ID_CHANGED = 5
    DUPLICATE = 6
    REMOVED = 7
    INITIAL_CLUSTER_DIFFERS = 8
    NOT_READY = 9
    TOO_MANY = 10
    CERTIFICATE = 11
    SUPERSEDED = 12
    INCARNATION_JUMP = 13
    SHORTER_LOG = 14


class WorkerStart(msgspec.Struct, array_like=True, frozen=True):
    """What a Raft worker found on its disk when it started: the term of its hard state, and its last index.

    `start_id` is random for each start, and 0 for a worker of a release that does not tell.
    """

    start_id: int = 0
    term: int = 0
    last_index: int = 0


class NetIdentity(msgspec.Struct, array_like=True, frozen=True):
    """Who this node is, from the worker, who owns the storage that says so.

    The first thing that a worker writes when it starts, and again whenever NETWORK.epoch changes or
    one of the fields does. Until it came the network process answers NOT_READY.
    """

    cluster_id: str
    node_id: int
    member_id: int
    initial_members: str
    initial_state: str  # "new" or "existing"
    formed: bool
    election_timeout_ms: int
    incarnation: int = 1
    start: WorkerStart = WorkerStart()


class PeerHello(msgspec.Struct, array_like=True, frozen=True):
    """Who is at the other end of a connection; before its first message. instance_id: a random number of
    each start of its network process. incarnation: how often its directory was adopted in another place."""

    member_id: int
    address: str
    port: int
    instance_id: int
    incarnation: int = 1
    start: WorkerStart = WorkerStart()


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    """Why a peer refuses this node: RefusalCode number, what is wrong, what to do about it."""

    code: int
    text: str
    hint: str = ""


class RefusedStart(msgspec.Struct, array_like=True, frozen=True):
    """A worker's start that found less on its disk than that member had acknowledged, and why it is
    refused."""

    start_id: int
    refusal: Refusal


_Body = TypeVar("_Body")
_encode = msgspec.msgpack.Encoder().encode
_identity = msgspec.msgpack.Decoder(NetIdentity)
_hello = msgspec.msgpack.Decoder(PeerHello)
_refusal = msgspec.msgpack.Decoder(Refusal)
_refused_start = msgspec.msgpack.Decoder(RefusedStart)


class RecordMalformed(ValueError):
    """A record on a ring that this version does not understand."""


def prefix(kind: RecordKind, node_id: int) -> bytes:
    """What goes before the body; a writer hands both to its ring as parts of one record."""
    return _PREFIX.pack(kind, 0, node_id)


def pack(kind: RecordKind, node_id: int, body: msgspec.Struct | bytes = b"") -> bytes:
    """A whole record; a struct body is encoded."""
    encoded = body if isinstance(body, bytes) else _encode(body)
    return _PREFIX.pack(kind, 0, node_id) + encoded


def unpack_prefix(record: bytes) -> tuple[int, int]:
    """(kind number, node id); the body starts at PREFIX_BYTES. Raises RecordMalformed."""
    if len(record) < PREFIX_BYTES:
        raise RecordMalformed(f"record of {len(record)} bytes has no room for its prefix")
    kind, _, node_id = _PREFIX.unpack_from(record)
    return kind, node_id


def unpack_identity(record: bytes) -> NetIdentity:
    """The body of an IDENTITY record. Raises RecordMalformed."""
    return _unpack(_identity, record)


def unpack_peer_hello(record: bytes) -> PeerHello:
    """The body of a PEER_HELLO record. Raises RecordMalformed."""
    return _unpack(_hello, record)


def unpack_refusal(record: bytes) -> Refusal:
    """The body of a REFUSED_BY_PEER record. Raises RecordMalformed."""
    return _unpack(_refusal, record)


def unpack_refused_start(record: bytes) -> RefusedStart:
    """The body of a REFUSE_START record. Raises RecordMalformed."""
    return _unpack(_refused_start, record)


def _unpack(decoder: msgspec.msgpack.Decoder[_Body], record: bytes) -> _Body:
    try:
        return decoder.decode(memoryview(record)[PREFIX_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordMalformed(str(error)) from error
