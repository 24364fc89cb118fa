"""A connection with somebody at the other end: handshake first, then messages.

`Session` has what both directions share; outgoing.py and incoming.py add their halves of the
handshake. `Shared` is what all sessions of the process use.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from pgraft.log import Level, log
from pgraft.transport import handshake
from pgraft.transport.channel import Channel
from pgraft.transport.complaints import Complaints
from pgraft.transport.connection import Connection, Wire
from pgraft.transport.directory import Directory
from pgraft.transport.framing import Frame, FrameType, RemoteViolation, ViolationKind
from pgraft.transport.handshake import Hello, Local, Refused, Welcome
from pgraft.transport.inbox import Inbox
from pgraft.transport.limits import CONNECT_TIMEOUT_MS_MIN
from pgraft.transport.records import (
    NO_HURRY,
    PeerHello,
    RecordKind,
    Refusal,
    RefusalCode,
    WorkerStart,
    pack,
    prefix,
)

if TYPE_CHECKING:
    from pgraft.transport.tls import TlsContext

_MESSAGE = int(FrameType.MESSAGE)
_PREFIX_BYTES = len(prefix(RecordKind.MESSAGE, 0))
_NONCE_BYTES = 8


class Who(msgspec.Struct, frozen=True):
    """The other end of an established session, as it presented itself."""

    node_id: int
    member_id: int
    instance_id: int
    address: str
    port: int
    incarnation: int
    start: WorkerStart

    def hello_record(self) -> bytes:
        """What the worker is told about it."""
        hello = PeerHello(
            self.member_id, self.address, self.port, self.instance_id, self.incarnation, self.start
        )
        return pack(RecordKind.PEER_HELLO, self.node_id, hello)


def who_says(word: Hello | Welcome) -> Who:
    """The sender of a hello or a welcome."""
    return Who(
        word.node_id,
        word.member_id,
        word.instance_id,
        word.address,
        word.port,
        word.incarnation,
        word.start,
    )


class Shared:
    """What the sessions of one process share. `local` is None until the worker said who we are."""

    def __init__(self, wire: Wire, inbox: Inbox, directory: Directory, node_id: int) -> None:
        self.wire = wire
        self.inbox = inbox
        self.directory = directory
        self.node_id = node_id
        self.complaints = Complaints()
        self.local: Local | None = None
        self.tls: TlsContext | None = None
        self.debug = False
        self.user_timeout_ms = 2_000
        self.connect_timeout_ms = float(CONNECT_TIMEOUT_MS_MIN)

    def control(self, record: bytes) -> bool:
        """Hand the worker a record that is no message."""
        return self.inbox.deliver(record[:_PREFIX_BYTES], record[_PREFIX_BYTES:])


class Session(ABC):
    """Owner of one Connection. Subclasses say what a handshake frame means and what a loss does."""

    def __init__(self, shared: Shared, channel: Channel, at: str) -> None:
        self.shared = shared
        self.channel = channel
        self.at = at
        self.who: Who | None = None
        self._prefix = b""
        self._nonce = b""
        self._asked = b""
        self._on_pong: Callable[[], None] | None = None
        self.ended = False
        self.connection = Connection(shared.wire, channel, self)

    # --- what subclasses say ----------------------------------------------------------------------

    @abstractmethod
    def on_shaken(self) -> None:
        """Frames may go out now."""

    @abstractmethod
    def on_handshake(self, kind: int, payload: memoryview) -> None:
        """A frame before `establish`. Raises RemoteViolation."""

    @abstractmethod
    def on_refused(self, refused: Refused) -> None:
        """The other side does not let us in, or not any more."""

    @abstractmethod
    def on_unfinished(self) -> None:
        """Bytes of a frame have come that is not whole yet."""

    @abstractmethod
    def refuse(self, refusal: Refusal) -> None:
        """Say why on both sides, and end; also of an established session."""

    @abstractmethod
    def on_lost(self, reason: str) -> None:
        """The connection is gone; end the session."""

    # --- established --------------------------------------------------------------------------------

    def establish(self, who: Who, version: int) -> bool:
        """The handshake passed: messages may come, once the worker was told from whom. False when it
        cannot be told now, having been silent for long: nothing is established."""
        if not self.shared.control(who.hello_record()):
            return False
        self.who = who
        self._prefix = prefix(RecordKind.MESSAGE, who.node_id)
        self.connection.established(version)
        if self.shared.inbox.stalled:
            self.connection.pause()
        self.shared.directory.learn(who.node_id, who.member_id, who.incarnation)
        return True

    def on_frames(self, frames: list[Frame]) -> None:
        """Frames from the connection, in order."""
        deliver = self.shared.inbox.deliver
        for kind, payload in frames:
            if self.ended:
                return
            if self.who is None:
                self.on_handshake(kind, payload)
            elif kind == _MESSAGE:
                if not deliver(self._prefix, payload, payload[:1] != NO_HURRY):
                    self.shared.wire.counters.dropped += 1
            else:
                self._on_control(kind, payload)
        if self._asked:
            # The newest question only: who asks ten thousand times at once would have the process to itself.
            asked, self._asked = self._asked, b""
            self.connection.send_frame(FrameType.PONG, asked)
        if self.shared.debug and self.who is not None:
            log("DEBUG", f"{len(frames)} frames from node {self.who.node_id}")

    def _on_control(self, kind: int, payload: memoryview) -> None:
        match kind:
            case FrameType.PING:
                if len(payload) != _NONCE_BYTES:
                    raise RemoteViolation(ViolationKind.LENGTH, f"ping of {len(payload)} bytes")
                self._asked = bytes(payload)
            case FrameType.PONG:
                if self._on_pong is not None and payload == self._nonce:
                    answered, self._on_pong = self._on_pong, None
                    answered()
            case FrameType.REFUSED:
                self.on_refused(handshake.decode_refused(payload))
            case _:
                raise RemoteViolation(ViolationKind.ORDER, f"{FrameType(kind).name} after the handshake")

    def probe(self, on_alive: Callable[[], None]) -> None:
        """Ask for a sign of life; an answer to an earlier question does not count."""
        self._nonce = os.urandom(_NONCE_BYTES)
        self._on_pong = on_alive
        self.connection.send_frame(FrameType.PING, self._nonce)

    def judge_certificate(self, cluster_id: str, node_id: int, address: str) -> Refusal | None:
        """Whether the certificate at the other end names the node that it says it is; without TLS it does."""
        tls = self.shared.tls
        return tls.judge_peer(self.channel, cluster_id, node_id, address) if tls is not None else None

    # --- refusing and ending ----------------------------------------------------------------------

    def say_refused(self, refusal: Refusal) -> None:
        """Tell the other side why, then finish: the caller sees to it that the wait is bounded."""
        local = self.shared.local
        node_id = local.identity.node_id if local is not None else 0
        word = Refused(code=refusal.code, text=refusal.text, hint=refusal.hint, node_id=node_id)
        self.connection.send_frame(FrameType.REFUSED, handshake.encode(word))
        self.connection.finish()
        self.ended = True

    def complain(self, refusal: Refusal, node_id: int) -> None:
        """This side's line in the log, and the count."""
        self.shared.wire.counters.refused += 1
        if refusal.code == RefusalCode.NOT_READY:
            return
        name = RefusalCode(refusal.code).name.lower()
        self.shared.complaints.log(
            ("refusing", node_id, refusal.code),
            "WARNING",
            f"refused node {node_id} at {self.at}: {refusal.text}",
            detail=f"Reason: {name}.",
            hint=refusal.hint,
        )

    def on_overdue(self) -> None:
        """Slower than any link that a cluster could work with, or somebody who wants our memory."""
        self.shared.wire.counters.timed_out += 1
        self.give_up("a frame was not finished in time")

    def give_up(self, why: str) -> None:
        """Close an established session that takes too much."""
        if self.who is not None:
            node_id = self.who.node_id
            self.shared.complaints.log(
                ("gave up", node_id, why),
                "LOG",
                f"closed the connection with node {node_id} at {self.at}: {why}",
            )
        self.on_lost(why)

    def on_violation(self, violation: RemoteViolation) -> None:
        """The peer broke the protocol, or has no right to speak it: say so, count it, close."""
        self._report(violation)
        self.on_lost(str(violation))

    def _report(self, violation: RemoteViolation) -> None:
        """The line in the log, and the count. What the other side found in us (an alert) is not counted."""
        counters = self.shared.wire.counters
        who = f"node {self.who.node_id} at {self.at}" if self.who is not None else self.at
        subject: tuple[object, ...] = (self.who.node_id if self.who else self.at.rpartition(":")[0],)
        level: Level = "WARNING"
        match violation.kind:
            case ViolationKind.CERTIFICATE:
                counters.refused += 1
                # OpenSSL has some seventy reasons: who mends one and has another hears of it at once.
                subject += (str(violation),)
            case ViolationKind.TLS_ALERT:
                subject += (str(violation),)
            case _:
                counters.malformed += 1
                level = "LOG"
        self.shared.complaints.log(
            ("malformed", violation.kind, *subject),
            level,
            f"closed the connection with {who}: {violation}",
            hint=violation.hint,
        )
