"""What comes through the segment: peer rings, the command ring, slots, and the blocks that are read back."""

from __future__ import annotations

import atexit
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pgraft.node.commands import RESTARTED, CommandSource
from pgraft.shm import layout, place, segment
from pgraft.shm.blocks import BlockUnreadable, read_members, read_status
from pgraft.shm.place import SegmentError
from pgraft.shm.rings import RingReader, WordRef
from pgraft.shm.segment import Segment
from pgraft.transport import records
from pgraft.transport.records import RecordMalformed
from tests.fuzz.disk import directory
from tests.fuzz.target import U64_MAX, Taker, Target, noise

RING_BYTES = 1024
SLOTS = 2
COMMAND_RING_BYTES = 16 * 1024
NOW_NS = 10**15
_HEADER = struct.Struct("<QII")


def record(taker: Taker, position: int, payload: bytes) -> bytes:
    """A ring record; now and then its header lies."""
    stamp, length, crc = position, len(payload), zlib.crc32(payload)
    if taker.chance(10):
        match taker.byte() % 3:
            case 0:
                stamp = taker.near(stamp) & U64_MAX
            case 1:
                length = taker.near(length) & 0xFFFFFFFF
            case _:
                crc ^= 1 << taker.below(32)
    padded = _HEADER.pack(stamp, length, crc) + payload
    return padded + bytes(-len(padded) % 16)


def fill(ring: memoryview, taker: Taker, start: int, make: object) -> int:
    """Put records into a ring from `start` on; the head behind them."""
    at = start
    while taker.left and at - start < len(ring):
        whole = record(taker, at, make(taker))  # type: ignore[operator]
        for number, byte in enumerate(whole):
            ring[(at + number) % len(ring)] = byte
        at += len(whole)
    return at


# --- peer rings -------------------------------------------------------------------------------------------


def peer_record(taker: Taker) -> bytes:
    """A record of the network process."""
    kind = taker.choice((1, 2, 3, 4, 5, 6, taker.byte()))
    return struct.pack("<IIQ", kind, 0, taker.near(2)) + taker.bytes(taker.byte() % 64)


def rings(data: bytes) -> None:
    """A reader ends, gives all room back, and hands out what was written or nothing."""
    taker = Taker(data)
    ring = bytearray(RING_BYTES)
    start = taker.choice((0, 16, 1008, 2**32, 2**63))
    head = fill(memoryview(ring), taker, start, peer_record)
    words = memoryview(bytearray(16)).cast("Q")
    words[0] = (taker.near(head) if taker.chance(6) else head) & U64_MAX
    words[1] = (taker.near(start) if taker.chance(8) else start) & U64_MAX
    reader = RingReader(memoryview(ring), WordRef(words, 0), WordRef(words, 1))
    turns = 0
    while reader.pending():
        turns += 1
        if turns > RING_BYTES:
            raise AssertionError(f"the reader does not end: head {words[0]}, tail {words[1]}")
        for raw in reader.read(200):
            unpack(raw)


def unpack(raw: bytes) -> None:
    """Every way in which the worker or the network process reads a record."""
    for read in (
        records.unpack_prefix,
        records.unpack_identity,
        records.unpack_peer_hello,
        records.unpack_refusal,
    ):
        try:
            found = read(raw)
        except RecordMalformed:
            continue
        if found is None:
            raise AssertionError(f"{read.__name__} gave nothing")


def unpacking(data: bytes) -> None:
    """A record of any bytes."""
    unpack(data)


# --- commands ---------------------------------------------------------------------------------------------


@cache
def shared() -> Segment:
    """One segment for all inputs."""
    name = place.new_name(directory())
    made = segment.create(name, command_ring_bytes=COMMAND_RING_BYTES, slot_count=SLOTS)
    run_dir = directory() / "run"
    run_dir.mkdir()
    segment.make_fifos(run_dir, SLOTS)
    segment.open_for_use(made, 1)
    atexit.register(place.unlink, name)
    atexit.register(made.close)
    return made


@cache
def zeros() -> bytes:
    """What the segment's regions are set back to before each input."""
    return bytes(
        shared().bytes_at(layout.WORKER_PAGE, shared().header["inbound_offset"] - layout.WORKER_PAGE)
    )


@contextmanager
def fresh() -> Iterator[Segment]:
    """The segment as it was made. Views that an input asks for end with it."""
    found, kept = shared(), zeros()
    before = len(found._views)
    found.bytes_at(layout.WORKER_PAGE, len(kept))[:] = kept
    try:
        yield found
    finally:
        for view in found._views[before:]:
            view.release()
        del found._views[before:]


def command(taker: Taker) -> bytes:
    """What a backend puts into the ring: twelve words and a piece of data."""
    data = taker.bytes(taker.byte() % 40)
    total = len(data) if taker.chance(2) else taker.near(len(data), 0, 2 * len(data))
    words = [taker.near(1, 2, 4, 8), taker.near(0, 1), taker.near(1), taker.byte() % 2, total]
    words += [taker.near(0, len(data)), taker.near(1000), taker.near(1, 2), taker.near(7000), 1, 0, 0]
    packed = struct.pack("<12Q", *(word & U64_MAX for word in words))
    return packed[: taker.byte()] if taker.chance(20) else packed + data


def commands(data: bytes) -> None:
    """Commands come out whole and within their bounds, and each is answered."""
    with fresh() as found:
        run_commands(found, Taker(data))


def run_commands(found: Segment, taker: Taker) -> None:
    """Fill the ring and the slots, and take everything."""
    for number in range(SLOTS):
        slot = found.slot(number)
        slot.words[0] = taker.near((1 << 32) | 1, 0) & U64_MAX
        slot.words[1] = taker.near(1) & U64_MAX
        slot.words[2] = taker.near(64) & U64_MAX
        slot.words[3] = taker.near(2) & U64_MAX
    header = found.header
    ring = found.bytes_at(header["command_offset"] + layout.COMMAND_RING_OFFSET, COMMAND_RING_BYTES)
    head = fill(ring, taker, 0, command)
    found.command_head().store((taker.near(head) if taker.chance(10) else head) & U64_MAX)
    source = CommandSource(found, Path(directory() / "run"), 4096)
    try:
        source.answer_taken_earlier(RESTARTED)
        for _ in range(300):
            if not source.pending():
                break
            for one in source.take(NOW_NS):
                if one.slot >= SLOTS or len(one.data) > 4096 or one.deadline_ns < NOW_NS:
                    raise AssertionError(f"{one}")
                source.answer(one, RESTARTED)
        else:
            raise AssertionError("the command ring is never empty")
    finally:
        source.close()


# --- blocks -----------------------------------------------------------------------------------------------


def blocks(data: bytes) -> None:
    """Whatever stands in the segment, its readers give something within bounds or say that they cannot."""
    with fresh() as found:
        run_blocks(found, Taker(data))


def run_blocks(found: Segment, taker: Taker) -> None:
    """Fill both blocks, change the header, and look."""
    header = bytes(found.bytes_at(0, layout.PAGE_BYTES))
    places = (
        (layout.STATUS_OFFSET, layout.STATUS_COPY_BYTES),
        (found.header["members_offset"], layout.MEMBERS_COPY_BYTES),
    )
    try:
        for offset, size in places:
            used = size if taker.chance(2) else taker.below(size) + 1
            body = bytearray(struct.pack("<Q", used) + bytes(max(0, used - 16)))
            for _ in range(taker.byte() % 12):
                at = taker.below(max(len(body) - 8, 1)) // 8 * 8
                body[at : at + 8] = struct.pack("<Q", taker.near(0, 1, 64, 256, 1024) & U64_MAX)
            del body[max(used - 8, 0) :]
            crc = zlib.crc32(body) ^ taker.chance(8)
            whole = (struct.pack("<Q", crc) + body)[:size]
            found.bytes_at(offset, len(whole))[:] = whole
        for _ in range(taker.byte() % 3):
            word = taker.choice(tuple(layout.HEADER_WORDS.values()))
            found.words_at(0, layout.PAGE_BYTES)[word] = taker.near(found.words_at(0, 4096)[word]) & U64_MAX
        look(found)
    finally:
        found.bytes_at(0, layout.PAGE_BYTES)[:] = header


def look(found: Segment) -> None:
    """Attach as another process does, and read."""
    try:
        segment._check(found)
        status, members = read_status(found), read_members(found)
    except (SegmentError, BlockUnreadable):
        return
    if len(status.rows) > layout.MEMBERS_MAX or len(members.members) > layout.MEMBERS_MAX:
        raise AssertionError(f"{len(status.rows)} and {len(members.members)} rows")
    if len(members.removed) > layout.REMOVED_MAX:
        raise AssertionError(f"{len(members.removed)} removed")


TARGETS = (
    Target("rings", rings, noise(6, 200), 2048),
    Target("records", unpacking, (b"\2" + bytes(15) + b"\x94\x01\xa1a\x01\x01", *noise(4, 40)), 512),
    Target("commands", commands, noise(6, 300), 2048),
    Target("blocks", blocks, noise(6, 100), 1024),
)
