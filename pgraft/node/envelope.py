"""What travels between two raft workers in one frame: the core's messages and what goes with them.

Around the messages stand the lease's round and its answer, the sender's own status, on heartbeats
the leader's table of everybody's, and forwarded commands with their answers. The core's messages
stay as they are, so that etcd's scenarios stay equal.
"""

from __future__ import annotations

import msgspec

from pgraft.raft.types import Message

ENVELOPE_ENTRY_BYTES_MAX = 1536 * 1024
"""Entry bytes in one envelope; with the largest entry and all overhead a frame stays below its limit."""


class NodeStatus(msgspec.Struct, array_like=True):
    """What one node says of itself, or the leader of each: role is shm.layout.Role.

    `age_ms` is the time since the leader heard from that node; 0 in a node's own words.
    `yields` says that it had better not lead (layout.Yields). `incarnation` is the newest one of that node
    that is known to who says so.
    """

    node_id: int
    role: int = 0
    term: int = 0
    commit_index: int = 0
    last_index: int = 0
    age_ms: int = 0
    is_learner: bool = False
    yields: bool = False
    incarnation: int = 1


class Call(msgspec.Struct, array_like=True):
    """A command sent on to the leader. `nonce` and `number` name it for the answer only."""

    nonce: int
    number: int
    kind: int
    timeout_ms: int
    arg1: int = 0
    arg2: int = 0
    data: bytes = b""


class Reply(msgspec.Struct, array_like=True):
    """The outcome of a Call, as layout.Outcome with its values and payload."""

    nonce: int
    number: int
    outcome: int
    value1: int = 0
    value2: int = 0
    payload: bytes = b""


class Inquiry(msgspec.Struct, array_like=True):
    """Calls that the sender still waits for: of which its answer will not come, the leader says so."""

    nonce: int
    numbers: list[int]


class Digest(msgspec.Struct, array_like=True):
    """Checksums of committed entries, as checksums.py counts them: what divergence.py says.

    A leader's word, with heartbeats: the running `checksum` at `index` (0: not known), and the `ends` of the
    blocks right before that one. A follower's question: the block `asks`, whose end here is `checksum` (0:
    not known). The leader's answer, with its word: the block `answers` with all its `values` there, none
    where there is nothing to compare.
    """

    index: int = 0
    checksum: int = 0
    ends: bytes = b""
    asks: int = 0
    answers: int = 0
    values: bytes = b""


class Envelope(msgspec.Struct, array_like=True):
    """One frame's content.

    `round` is the leader's send time (its own CLOCK_BOOTTIME ns) of a round that asks for a lease
    answer, 0 when it asks for none; `echo` the newest round that the sender has answered for, of
    the term `echo_term`, with `promise_ms`: for how long it gives no vote. `removed_index` tells
    the receiver that the membership change at this index removed it.

    Fields are added at the end: who does not know them passes over them, and who does not get them has None.
    """

    sender: int
    term: int
    status: NodeStatus
    messages: list[Message] = []
    round: int = 0
    echo: int = 0
    echo_term: int = 0
    promise_ms: int = 0
    table: list[NodeStatus] = []
    calls: list[Call] = []
    replies: list[Reply] = []
    removed_index: int = 0
    digest: Digest | None = None
    inquiry: Inquiry | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


class BadEnvelope(ValueError):
    """Bytes from a peer that are not an envelope."""


def encode(envelope: Envelope) -> bytes:
    """Bytes of one frame."""
    return _encoder.encode(envelope)


def decode(data: bytes) -> Envelope:
    """The envelope in `data`. Raises BadEnvelope."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # A message can hold messages; a peer decides how deep.
        raise BadEnvelope(str(error)) from error
