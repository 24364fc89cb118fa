"""What comes in from the network: frames, handshakes, and whole sessions in both directions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import msgspec

from pgraft.transport import complaints, handshake, outgoing
from pgraft.transport.channel import Buffer
from pgraft.transport.connection import Wire
from pgraft.transport.directory import PeerAddress
from pgraft.transport.framing import (
    HEADER_BYTES,
    FrameDecoder,
    FrameType,
    RemoteViolation,
    encode_frame,
)
from pgraft.transport.handshake import Hello, Local, Refused, Remembered, Welcome
from pgraft.transport.hub import Hub
from pgraft.transport.inbox import Inbox
from pgraft.transport.incoming import IncomingSession
from pgraft.transport.limits import FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX, LOG_TEXT_CHARS_MAX, RECEIVE_BYTES
from pgraft.transport.loop import READ, Loop
from pgraft.transport.outgoing import OutgoingSession, Peer, PeerState
from pgraft.transport.records import NetIdentity
from pgraft.transport.resolver import Resolver
from tests.fuzz.target import Taker, Target, chunks, noise

IDENTITY = NetIdentity("c", 1, 77, "the list", "new", True, 1000)
LOCAL = Local(identity=IDENTITY, instance_id=5, address="127.0.0.1", port=7001)
MEMBER = PeerAddress(2, "127.0.0.1", 7002, 88)
NOTHING = memoryview(b"")


# --- frames -----------------------------------------------------------------------------------------------


def stream(taker: Taker) -> bytes:
    """Bytes as a peer could send them: frames that are right, nearly right, or noise."""
    parts = []
    while taker.left and len(parts) < 16:
        how = taker.byte() % 8
        if how < 5:
            kind = taker.choice(tuple(FrameType))
            version = 1 if how else taker.byte()
            parts.append(encode_frame(kind, payload_of(kind, taker), version))
        elif how == 5:
            frame = bytearray(encode_frame(FrameType.MESSAGE, taker.bytes(8)))
            frame[taker.below(len(frame))] ^= 1 << taker.below(8)
            parts.append(bytes(frame))
        else:
            parts.append(taker.bytes(taker.byte()))
    return b"".join(parts)


def payload_of(kind: FrameType, taker: Taker) -> bytes:
    """Its payload: what belongs there with some fields changed, or anything."""
    how = taker.byte() % 8
    if how == 7:
        return taker.bytes(taker.byte())
    if how == 6:
        return bytes(taker.choice((HANDSHAKE_BYTES_MAX, HANDSHAKE_BYTES_MAX + 1, 70_000)))
    match kind:
        case FrameType.HELLO:
            return changed(hello(), taker)
        case FrameType.WELCOME:
            return changed(welcome(), taker)
        case FrameType.REFUSED:
            return changed({"code": 1, "text": "no", "hint": "", "node_id": 2}, taker)
        case FrameType.PING | FrameType.PONG:
            return taker.bytes(8).ljust(8, b"\0")
        case FrameType.MESSAGE:
            return taker.bytes(taker.byte() % 40)


def hello() -> dict[str, object]:
    """A hello that passes."""
    fields = {"protocol_version": 1, "min_version": 1, "cluster_id": "c", "node_id": 2, "member_id": 88}
    fields |= {
        "instance_id": 9,
        "expected_receiver": 1,
        "initial_state": "new",
        "initial_members": "the list",
    }
    fields |= {"formed": True, "address": "127.0.0.1", "port": 7002}
    return fields | {"incarnation": 2, "start": [5, 6, 7]}


def welcome() -> dict[str, object]:
    """A welcome that passes."""
    fields = {"protocol_version": 1, "cluster_id": "c", "node_id": 2, "member_id": 88, "instance_id": 9}
    return fields | {"address": "127.0.0.1", "port": 7002, "incarnation": 2, "start": [5, 6, 7]}


def changed(fields: dict[str, object], taker: Taker) -> bytes:
    """The map with a few fields given other values, or dropped, as msgpack."""
    for _ in range(taker.byte() % 4):
        name = taker.choice(tuple(fields) or ("x",))
        match taker.byte() % 5:
            case 0:
                fields[name] = taker.number()
            case 1:
                fields[name] = -taker.number() // 2
            case 2:
                fields[name] = taker.text()
            case 3:
                fields[name] = taker.choice((None, True, 1.5, [], {}, b"\xff", [[[]]]))
            case _:
                fields.pop(name, None)
    return msgspec.msgpack.encode(fields)


def decoded(pieces: Sequence[bytes], established: bool) -> tuple[list[tuple[int, bytes]], str]:
    """The frames that a decoder makes of `pieces`, and how it ended."""
    decoder = FrameDecoder()
    limit = HANDSHAKE_BYTES_MAX
    if established:
        decoder.established(1)
        limit = FRAME_BYTES_MAX
    found: list[tuple[int, bytes]] = []
    try:
        for piece in pieces:
            frames = decoder.feed(memoryview(piece))
            while frames:
                found += [(kind, bytes(payload)) for kind, payload in frames]
                frames = decoder.feed(NOTHING) if not established else []
            if decoder.held_bytes > limit + HEADER_BYTES + max(map(len, pieces)):
                raise AssertionError(f"{decoder.held_bytes} bytes are held")
    except RemoteViolation as violation:
        return found, violation.kind.name
    return found, ""


def frames(data: bytes) -> None:
    """However the bytes are cut, the same frames come out, and the same verdict."""
    taker = Taker(data)
    established = taker.chance(2)
    whole = taker.rest() if taker.chance(3) else stream(taker)
    one, end_one = decoded([whole], established)
    two, end_two = decoded(chunks(whole, Taker(data[::-1])), established)
    if end_one != end_two:
        raise AssertionError(f"{end_one!r} in one piece, {end_two!r} in several")
    # Frames before a violation in the same piece are not handed out.
    if two[: len(one)] != one or (not end_one and one != two):
        raise AssertionError(f"{len(one)} frames in one piece, {len(two)} in several")


# --- handshakes -------------------------------------------------------------------------------------------


def handshakes(data: bytes) -> None:
    """A payload is refused by name, or judged; whatever it says, what we answer and log stays bounded."""
    taker = Taker(data)
    kind = taker.choice((FrameType.HELLO, FrameType.WELCOME, FrameType.REFUSED))
    payload = memoryview(taker.rest() if taker.chance(3) else payload_of(kind, taker))
    remembered = Remembered(taker.choice((0, 88, 89)), taker.chance(5))
    word: Hello | Welcome | Refused
    try:
        if kind is FrameType.HELLO:
            word = handshake.decode_hello(payload)
            refusal = handshake.judge_hello(word, LOCAL, remembered)
            again: object = handshake.decode_hello(memoryview(handshake.encode(word)))
        elif kind is FrameType.WELCOME:
            word = handshake.decode_welcome(payload)
            refusal = handshake.judge_welcome(word, LOCAL, 2, remembered)
            again = handshake.decode_welcome(memoryview(handshake.encode(word)))
        else:
            word = handshake.decode_refused(payload)
            refusal = None
            again = handshake.decode_refused(memoryview(handshake.encode(word)))
    except RemoteViolation:
        return
    if again != word:
        raise AssertionError(f"{word} became {again}")
    if refusal is None:
        if not isinstance(word, Refused) and word.cluster_id != IDENTITY.cluster_id:
            raise AssertionError("another cluster was let in")
        return
    if len(refusal.text) > 2 * LOG_TEXT_CHARS_MAX or "\n" in refusal.text:
        raise AssertionError(f"a refusal of {len(refusal.text)} characters: {refusal.text[:80]!r}")


# --- sessions ---------------------------------------------------------------------------------------------


class ScriptedChannel:
    """A socket that delivers what the input says."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)
        self.greedy = False
        self.shake_writes = False
        self.sent = bytearray()
        self.closed = False

    def fileno(self) -> int:
        return self._fd

    def shake(self) -> None:
        """Nothing comes before the first frame."""

    def recv_into(self, room: memoryview) -> int:
        if not self._pieces:
            return 0
        piece = self._pieces.pop(0)
        if len(piece) > len(room):
            self._pieces.insert(0, piece[len(room) :])
            piece = piece[: len(room)]
        room[: len(piece)] = piece
        return len(piece)

    def send(self, parts: Sequence[Buffer], size: int) -> int:
        self.sent += b"".join(parts)
        return size

    def end_writing(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._fd)


class CountingRing:
    """Takes records, and checks that each is one."""

    def __init__(self) -> None:
        self.records = 0

    def put(self, *parts: bytes | bytearray | memoryview) -> bool:
        if sum(map(len, parts)) > FRAME_BYTES_MAX + HEADER_BYTES:
            raise AssertionError("a record that is longer than a frame")
        self.records += 1
        return True

    def publish(self) -> bool:
        return False


@cache
def hub() -> Hub:
    """One hub for all inputs; each input leaves it as it found it."""
    complaints.log = lambda *_, **__: None  # type: ignore[assignment]
    outgoing.log = lambda *_, **__: None  # type: ignore[assignment]
    wire = Wire(Loop())
    made = Hub(wire, Inbox(CountingRing(), lambda: None, lambda: None), 1, "127.0.0.1", 7001, 5)
    made.set_identity(IDENTITY)
    made.shared.directory.update({2: MEMBER}, frozenset({4}))
    return made


@contextmanager
def left_clean(of: Hub) -> Iterator[None]:
    """Whatever a session did, nothing of it stays behind."""
    yield
    if of.incoming or len(of._lobby) or of.sessions():
        raise AssertionError(f"sessions stay behind: {of.incoming}")
    left = [key for key in of.shared.wire.loop.timers._due if key != "lobby" and key[0] != "peer"]  # type: ignore[index]
    if left or of.shared.wire.loop._handlers:
        raise AssertionError(f"timers {left}, watched {of.shared.wire.loop._handlers}")
    of.shared.wire.loop.timers._due.clear()


def run_session(session: IncomingSession | OutgoingSession, channel: ScriptedChannel) -> None:
    """Let it receive until it ends."""
    while not channel.closed and not session.connection.closed:
        before = len(channel._pieces)
        session.connection._handle(READ)
        if session.ended and len(channel._pieces) in (0, before):
            break
    if len(channel.sent) > 3 * RECEIVE_BYTES:
        raise AssertionError(f"{len(channel.sent)} bytes were sent to somebody who may be nobody")
    found, end = decoded([bytes(channel.sent)], False)
    if end not in ("", "VERSION", "ORDER"):
        raise AssertionError(f"this node itself broke the protocol: {end}, {found}")


def incoming_session(data: bytes) -> None:
    """Somebody connects and says what the input says."""
    taker = Taker(data)
    of = hub()
    channel = ScriptedChannel(chunks(stream(taker), Taker(data[::-1])))
    with left_clean(of):
        session = IncomingSession(of, of._lobby, channel, "9.9.9.9:9", "9.9.9.9")
        of._lobby.enter(session, 5000)
        run_session(session, channel)
        if session.who is not None and session.who.node_id in (1, 4):
            raise AssertionError("one who may not was let in")
        session.on_lost("the input is used up")


def outgoing_session(data: bytes) -> None:
    """We connect to a member, and it says what the input says."""
    taker = Taker(data)
    of = hub()
    channel = ScriptedChannel(chunks(stream(taker), Taker(data[::-1])))
    with left_clean(of):
        peer = Peer(of.shared, resolver(), MEMBER, lambda _: None, lambda _peer, _session: None)
        peer.state = PeerState.GREETING
        session = peer.session = OutgoingSession(of.shared, channel, "9.9.9.9:9", peer)
        session.connection.shake()
        run_session(session, channel)
        if session.who is not None and (session.who.node_id, session.who.member_id) != (2, 88):
            raise AssertionError("another one was taken for node 2")
        peer.close()


@cache
def resolver() -> Resolver:
    """One resolver, which is asked for numeric addresses only."""
    return Resolver(hub().shared.wire.loop, lambda _: None)


_GOOD_HELLO = encode_frame(FrameType.HELLO, msgspec.msgpack.encode(hello()))
_GOOD_WELCOME = encode_frame(FrameType.WELCOME, msgspec.msgpack.encode(welcome()))
_TAIL = encode_frame(FrameType.PING, b"12345678") + encode_frame(FrameType.MESSAGE, b"\x01hello")

TARGETS = (
    Target("frames", frames, (b"\0\1" + _GOOD_HELLO + _TAIL, b"\1\1" + _TAIL, *noise(4, 64))),
    Target(
        "handshakes", handshakes, (b"\0\1" + _GOOD_HELLO[16:], b"\1\1" + _GOOD_WELCOME[16:], *noise(4, 64))
    ),
    Target("incoming", incoming_session, (bytes(20), b"\1\0\0\0\1\3\0\0\0\0", *noise(4, 64))),
    Target("outgoing", outgoing_session, (b"\1\1\0\0\1\3\0\0\0\0", *noise(4, 64))),
)
