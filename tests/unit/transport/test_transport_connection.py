"""One connection over a socket pair: sends that the kernel takes in parts, and ends."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence

import pytest

from pgraft.transport.channel import Buffer, PlainChannel
from pgraft.transport.connection import Connection, Wire
from pgraft.transport.framing import (
    PROTOCOL_VERSION,
    Frame,
    FrameDecoder,
    FrameType,
    RemoteViolation,
    encode_frame,
)
from pgraft.transport.limits import RECEIVE_BYTES, SEND_QUEUE_BYTES_MAX
from pgraft.transport.loop import Loop


class Miser(PlainChannel):
    """A socket that takes a few bytes at a time, and sometimes none."""

    __slots__ = ("chance",)

    def send(self, parts: Sequence[Buffer], size: int) -> int:
        if self.chance.random() < 0.3:
            raise BlockingIOError
        data = b"".join(parts)
        assert len(data) == size
        return super().send([data[: self.chance.randrange(1, 3000)]], size)


class Flood(PlainChannel):
    """A socket that has more, and more."""

    __slots__ = ("reads",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.greedy = True
        self.reads = 0
        self.recv_into = self.receive

    def receive(self, room: memoryview) -> int:
        self.reads += 1
        assert self.reads < 1000, "it keeps the loop to itself"
        frame = encode_frame(FrameType.MESSAGE, bytes(16_000), PROTOCOL_VERSION)
        room[: len(frame)] = frame
        return len(frame)


class Ear:
    """An owner that keeps what it hears."""

    def __init__(self) -> None:
        self.lost = ""

    def on_shaken(self) -> None:
        """Nothing to do."""

    def on_frames(self, frames: list[Frame]) -> None:
        assert [kind for kind, _ in frames] == [FrameType.MESSAGE]

    def on_unfinished(self) -> None:
        raise AssertionError

    def on_overdue(self) -> None:
        raise AssertionError

    def on_lost(self, reason: str) -> None:
        self.lost = reason

    def on_violation(self, violation: RemoteViolation) -> None:
        raise AssertionError(violation)


Ends = tuple[Loop, Connection, socket.socket, Ear]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    loop, ear = Loop(), Ear()
    channel = Miser(ours)
    channel.chance = random.Random(1)
    connection = Connection(Wire(loop), channel, ear)
    connection.shake()
    connection.established(PROTOCOL_VERSION)
    yield loop, connection, theirs, ear
    connection.close()
    theirs.close()
    loop.close()


def receive(ends: Ends, decoder: FrameDecoder) -> list[bytes]:
    loop, _, theirs, _ = ends
    loop.dispatch(loop.poll(0.01))
    try:
        data = theirs.recv(1 << 20)
    except BlockingIOError:
        return []
    return [bytes(payload) for _, payload in decoder.feed(memoryview(data))]


def test_partial_sends_keep_every_byte_in_order(ends: Ends) -> None:
    _, connection, _, _ = ends
    chance = random.Random(2)
    decoder = FrameDecoder()
    decoder.established(PROTOCOL_VERSION)
    sent: list[bytes] = []
    got: list[bytes] = []
    for _ in range(200):
        bodies = [chance.randbytes(chance.choice([0, 3, 500, 9000])) for _ in range(chance.randrange(1, 5))]
        assert connection.send_messages(bodies) == 0
        sent += bodies
        got += receive(ends, decoder)
    while connection.queued_bytes or len(got) < len(sent):
        got += receive(ends, decoder)
    assert got == sent


def test_whole_frames_are_dropped_when_the_queue_is_full(ends: Ends) -> None:
    _, connection, _, _ = ends
    decoder = FrameDecoder()
    decoder.established(PROTOCOL_VERSION)
    kept: list[bytes] = []
    for number in range(600):
        body = b"%05d" % number + bytes(20_000)
        if connection.send_messages([body]) == 0:
            kept.append(body)
        assert connection.queued_bytes <= SEND_QUEUE_BYTES_MAX
    assert 150 < len(kept) < 600
    small = [b"small"] * 3
    too_much = bytes(100_000)
    assert connection.send_messages([*small, too_much]) >= 1
    got: list[bytes] = []
    while connection.queued_bytes:
        got += receive(ends, decoder)
    got += receive(ends, decoder)
    assert got[: len(kept)] == kept
    assert too_much not in got


def test_finish_sends_what_waits_then_ends(ends: Ends) -> None:
    loop, connection, theirs, ear = ends
    body = bytes(1_000_000)
    connection.send_messages([body])
    connection.finish()
    assert connection.send_messages([b"too late"]) == 1
    decoder = FrameDecoder()
    decoder.established(PROTOCOL_VERSION)
    got: list[bytes] = []
    theirs.send(b"ignored, not even a frame")
    while True:
        loop.dispatch(loop.poll(0.01))
        try:
            data = theirs.recv(1 << 20)
        except BlockingIOError:
            continue
        if not data:
            break
        got += [bytes(payload) for _, payload in decoder.feed(memoryview(data))]
    assert got == [body]
    assert not ear.lost
    theirs.close()
    loop.dispatch(loop.poll(1))
    assert ear.lost


def test_who_never_stops_sending_does_not_keep_the_loop(ends: Ends) -> None:
    loop, _, theirs, ear = ends
    ours, other = socket.socketpair()
    with ours, other:
        channel = Flood(ours)
        connection = Connection(Wire(loop), channel, ear)
        connection.shake()
        connection.established(PROTOCOL_VERSION)
        other.send(b"ready to be read")
        loop.dispatch(loop.poll(1))
        first = channel.reads
        assert first * 16_000 >= RECEIVE_BYTES
        loop.dispatch(loop.poll(1))
        assert channel.reads == 2 * first
        connection.close()
    theirs.close()
