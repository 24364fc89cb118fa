"""Frames: every split, every damaged byte, and whose fault it is."""

from __future__ import annotations

import random
import struct
import zlib

import pytest

from pgraft.transport.framing import (
    HEADER_BYTES,
    MAGIC,
    PROTOCOL_VERSION,
    FrameDecoder,
    FrameType,
    LocalViolation,
    RemoteViolation,
    ViolationKind,
    encode_frame,
)
from pgraft.transport.limits import FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX


def decoder(established: bool = True) -> FrameDecoder:
    made = FrameDecoder()
    if established:
        made.established(PROTOCOL_VERSION)
    return made


def feed(made: FrameDecoder, data: bytes) -> list[tuple[int, bytes]]:
    return [(kind, bytes(payload)) for kind, payload in made.feed(memoryview(data))]


def raw_header(
    magic: bytes = MAGIC,
    version: int = PROTOCOL_VERSION,
    kind: int = 4,
    length: int = 0,
    payload: bytes = b"",
) -> bytes:
    fields = struct.pack("<4sBBI", magic, version, kind, length)
    checked = fields + struct.pack("<H", zlib.crc32(fields) & 0xFFFF)
    return checked + struct.pack("<I", zlib.crc32(payload, zlib.crc32(checked)))


THREE = [(4, b""), (4, b"hello"), (5, b"12345678")]
STREAM = b"".join(encode_frame(FrameType(kind), payload) for kind, payload in THREE)


def test_every_split_in_two_gives_the_same_frames() -> None:
    for at in range(len(STREAM) + 1):
        made = decoder()
        assert feed(made, STREAM[:at]) + feed(made, STREAM[at:]) == THREE
        assert made.held_bytes == 0


def test_byte_by_byte_and_random_splits() -> None:
    made = decoder()
    assert [frame for byte in STREAM for frame in feed(made, bytes([byte]))] == THREE
    chance = random.Random(5)
    long_one = [(4, chance.randbytes(chance.choice([0, 1, 100, 70_000]))) for _ in range(40)]
    stream = b"".join(encode_frame(FrameType.MESSAGE, payload) for _, payload in long_one)
    for _ in range(5):
        made, got, at = decoder(), [], 0
        while at < len(stream):
            step = chance.choice([1, 15, 16, 17, 1000, 65536])
            got += feed(made, stream[at : at + step])
            at += step
        assert got == long_one


def test_returned_payloads_stay_whole_while_the_next_frame_is_held() -> None:
    made = decoder()
    made.feed(memoryview(STREAM[:20]))
    frames = made.feed(memoryview(STREAM[20:50]))
    kept = [bytes(payload) for _, payload in frames]
    assert [bytes(payload) for _, payload in frames] == kept


@pytest.mark.parametrize("established", [True, False])
def test_every_flipped_bit_is_found_at_once(established: bool) -> None:
    """Also in the length: who waits for as much as a damaged one promises swallows what follows."""
    whole = encode_frame(FrameType.MESSAGE if established else FrameType.HELLO, b"some payload")
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteViolation):
            feed(decoder(established), bytes(damaged))


def test_a_damaged_header_is_found_before_its_payload_comes() -> None:
    header = encode_frame(FrameType.MESSAGE, bytes(1000))[:HEADER_BYTES]
    assert feed(decoder(), header) == []
    for bit in range(80):
        damaged = bytearray(header)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteViolation):
            feed(decoder(), bytes(damaged))


def test_a_handshake_is_read_one_frame_at_a_time() -> None:
    made = decoder(False)
    welcome = encode_frame(FrameType.WELCOME, b"w")
    assert feed(made, welcome + STREAM) == [(2, b"w")]
    made.established(PROTOCOL_VERSION)
    assert feed(made, b"") == THREE


def test_truncated_frame_is_held_not_given() -> None:
    made = decoder()
    assert feed(made, STREAM[:-1]) == THREE[:-1]
    assert made.held_bytes == HEADER_BYTES + 7


@pytest.mark.parametrize(("established", "limit"), [(False, HANDSHAKE_BYTES_MAX), (True, FRAME_BYTES_MAX)])
def test_length_is_bounded_before_anything_is_kept(established: bool, limit: int) -> None:
    made = decoder(established)
    assert feed(made, raw_header(kind=1 if not established else 4, length=limit)) == []
    made = decoder(established)
    with pytest.raises(RemoteViolation) as caught:
        feed(made, raw_header(length=limit + 1))
    assert caught.value.kind is ViolationKind.LENGTH
    assert made.held_bytes == 0


def test_largest_frame_passes() -> None:
    payload = bytes(FRAME_BYTES_MAX)
    assert feed(decoder(), encode_frame(FrameType.MESSAGE, payload)) == [(4, payload)]


def test_sending_too_much_is_this_nodes_fault() -> None:
    with pytest.raises(LocalViolation):
        encode_frame(FrameType.MESSAGE, bytes(FRAME_BYTES_MAX + 1))


def test_what_is_not_ours() -> None:
    with pytest.raises(RemoteViolation, match=r"pgraft\.ssl_enabled"):
        feed(decoder(False), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdef")
    with pytest.raises(RemoteViolation, match="GET / HTTP"):
        feed(decoder(False), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def test_types_and_versions() -> None:
    with pytest.raises(RemoteViolation) as caught:
        feed(decoder(), raw_header(kind=99))
    assert caught.value.kind is ViolationKind.TYPE
    with pytest.raises(RemoteViolation) as caught:
        feed(decoder(), raw_header(version=PROTOCOL_VERSION + 1))
    assert caught.value.kind is ViolationKind.VERSION
    # A hello of any version is let through, so that it can be answered with the reason.
    future = encode_frame(FrameType.HELLO, b"x", version=200)
    assert feed(decoder(False), future) == [(1, b"x")]
    with pytest.raises(RemoteViolation) as caught:
        feed(decoder(False), encode_frame(FrameType.MESSAGE, b"x"))
    assert caught.value.kind is ViolationKind.VERSION


def test_random_garbage_never_gives_frames_nor_other_errors() -> None:
    chance = random.Random(11)
    for _ in range(2000):
        made = decoder(chance.random() < 0.5)
        try:
            assert feed(made, chance.randbytes(chance.randrange(200))) == []
        except RemoteViolation:
            continue
