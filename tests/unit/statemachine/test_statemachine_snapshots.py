"""Snapshot streams: bounded chunks, any cut, and every sort of damage found and named."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable

import msgspec
import pytest

from pgraft.statemachine import commands as c
from pgraft.statemachine import limits
from pgraft.statemachine.batches import pieces_of
from pgraft.statemachine.codec import encode_command
from pgraft.statemachine.errors import SnapshotDamaged, SnapshotTooNew
from pgraft.statemachine.frames import FRAME_END, FRAME_HEAD, FRAME_PIECE, FRAME_SECTION, frame
from pgraft.statemachine.key_value_restore import KeyValueRestorer
from pgraft.statemachine.record import make_deletion, make_record
from pgraft.statemachine.registry import StateMachines
from pgraft.statemachine.restore import StateMachinesRestorer
from pgraft.statemachine.snapshot_records import (
    Batch,
    EventBatch,
    KeyBatch,
    LeaseBatch,
    SectionHead,
    StoreHead,
    StreamHead,
)

ROOM = 2**40


def restore(chunks: Iterable[bytes]) -> StateMachines:
    restorer = StateMachinesRestorer()
    for chunk in chunks:
        restorer.feed(chunk)
    return restorer.finish()


def filled(value_bytes: int = 300, keys: int = 900) -> StateMachines:
    machines = StateMachines()
    commands: list[c.Command] = [c.LeaseGrant(5, 1000)]
    commands += [c.Put(b"%05d" % n, b"v" * (value_bytes + n % 7), ROOM, 5 * (n % 2)) for n in range(keys)]
    commands += [c.Delete(b"%05d" % n) for n in range(0, keys, 3)]
    for index, command in enumerate(commands, 1):
        machines.apply(index, b"\x02" + encode_command(command))
    machines.apply(len(commands) + 1, b"\x01the last one is text")
    return machines


@pytest.mark.parametrize("value_bytes", [0, 300, 60_000, limits.VALUE_BYTES_MAX - 7])
def test_chunks_are_bounded_whatever_the_values(value_bytes: int) -> None:
    machines = filled(value_bytes, keys=30 if value_bytes > 1000 else 3000)
    chunks = list(machines.snapshot())
    assert max(map(len, chunks)) <= limits.CHUNK_BYTES_MAX
    # And not many small ones either.
    total = sum(map(len, chunks))
    assert len(chunks) <= total / limits.CHUNK_BYTES_MAX * 2 + 6
    copy = restore(chunks)
    assert list(copy.snapshot()) == chunks
    assert copy.applied_index == machines.applied_index
    assert copy.key_value.applied_index == machines.applied_index - 1
    assert copy.key_value.stats() == machines.key_value.stats()


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_may_be_cut_anywhere(seed: int) -> None:
    rng = random.Random(seed)
    whole = b"".join(filled(70_000, 20).snapshot())
    cuts = sorted(rng.randrange(len(whole)) for _ in range(rng.choice([0, 5, 500])))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert b"".join(restore(parts).snapshot()) == whole


def test_equal_stores_give_equal_bytes_whatever_led_to_them() -> None:
    one, two = StateMachines(), StateMachines()
    for index, (a, b) in enumerate([(3, 1), (1, 2), (2, 3)], 1):
        one.apply(index, b"\x02" + encode_command(c.LeaseGrant(a, 1000)))
        two.apply(index, b"\x02" + encode_command(c.LeaseGrant(b, 1000)))
    assert list(one.snapshot()) == list(two.snapshot())


def test_an_empty_node_has_a_snapshot_too() -> None:
    copy = restore(StateMachines().snapshot())
    assert (copy.applied_index, copy.key_value.revision) == (0, 0)
    copy.apply(1, b"\x02" + encode_command(c.Put(b"k", b"v", ROOM)))
    assert copy.key_value.revision == 1


def test_every_flipped_byte_is_found() -> None:
    chunks = list(filled(20, 30).snapshot())
    whole = b"".join(chunks)
    rng = random.Random(1)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        with pytest.raises(SnapshotDamaged, match="snapshot stream, frame"):
            restore([bytes(damaged)])


def test_a_stream_that_ends_early_is_found_wherever_it_ends() -> None:
    whole = b"".join(filled(20, 30).snapshot())
    for at in range(len(whole)):
        with pytest.raises(SnapshotDamaged, match="the stream ends before its last frame"):
            restore([whole[:at]])


def test_chunks_that_are_lost_repeated_exchanged_or_appended_are_found() -> None:
    chunks = list(filled(3000, 100).snapshot())
    assert len(chunks) > 6
    for at in range(len(chunks)):
        with pytest.raises(SnapshotDamaged):
            restore(chunks[:at] + chunks[at + 1 :])
        with pytest.raises(SnapshotDamaged):
            restore(chunks[: at + 1] + chunks[at:])
    with pytest.raises(SnapshotDamaged, match=r"frame 2 at byte \d+: frame 3 stands in its place"):
        restore([*chunks[:2], chunks[3], chunks[2], *chunks[4:]])
    for tail in (b"x", chunks[0]):
        with pytest.raises(SnapshotDamaged, match="something stands behind the end"):
            restore([*chunks, tail])


HEAD = msgspec.msgpack.encode(StreamHead(1, 9, ("key_value",)))
SECTION = msgspec.msgpack.encode(SectionHead("key_value", 1))


def stream(*frames: tuple[int, bytes]) -> bytes:
    return b"".join(frame(number, kind, payload) for number, (kind, payload) in enumerate(frames))


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([(FRAME_SECTION, SECTION)], "it does not begin with its head"),
        ([(FRAME_HEAD, HEAD), (FRAME_HEAD, HEAD)], "a frame of kind 1 where none can be"),
        ([(FRAME_HEAD, HEAD), (9, b"")], "a frame of kind 9 where none can be"),
        ([(FRAME_HEAD, HEAD), (FRAME_PIECE, b"")], "a piece outside of any section"),
        ([(FRAME_HEAD, HEAD), (FRAME_END, b"")], "it ends before the sections key_value"),
        ([(FRAME_HEAD, b"\xc1")], "its head cannot be read"),
        ([(FRAME_HEAD, HEAD), (FRAME_SECTION, b"\xc1")], "a section's head cannot be read"),
        (
            [(FRAME_HEAD, HEAD), (FRAME_SECTION, msgspec.msgpack.encode(SectionHead("other", 1)))],
            r"section other where \['key_value'\] is due",
        ),
        ([(FRAME_HEAD, HEAD), (FRAME_SECTION, SECTION), (FRAME_END, b"")], "key-value: it has no head"),
        ([(FRAME_HEAD, msgspec.msgpack.encode(StreamHead(1, 9, ("key_value",) * 2)))], "an impossible head"),
        ([(FRAME_HEAD, msgspec.msgpack.encode(StreamHead(1, -1, ())))], "an impossible head"),
    ],
)
def test_streams_that_contradict_themselves(frames: list[tuple[int, bytes]], text: str) -> None:
    with pytest.raises(SnapshotDamaged, match=text):
        restore([stream(*frames)])


def test_a_frame_is_never_longer_than_a_chunk() -> None:
    head = struct.pack("<IIIB", limits.PIECE_BYTES_MAX + 1, 0, 0, FRAME_HEAD)
    with pytest.raises(SnapshotDamaged, match="65524 bytes, at most 65523 are possible"):
        restore([head])


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (
            [(FRAME_HEAD, msgspec.msgpack.encode(StreamHead(2, 9, ())))],
            "the snapshot has format 2, this release reads up to 1",
        ),
        (
            [(FRAME_HEAD, msgspec.msgpack.encode(StreamHead(1, 9, ("key_value", "failover"))))],
            "the snapshot holds failover, which this release does not have",
        ),
        (
            [(FRAME_HEAD, HEAD), (FRAME_SECTION, msgspec.msgpack.encode(SectionHead("key_value", 2)))],
            "section key_value has format 2, this release reads up to 1",
        ),
    ],
)
def test_a_newer_snapshot_says_so(frames: list[tuple[int, bytes]], text: str) -> None:
    with pytest.raises(SnapshotTooNew, match=text):
        restore([stream(*frames)])


def test_an_older_snapshot_without_a_machine_gives_an_empty_one() -> None:
    head = msgspec.msgpack.encode(StreamHead(1, 9, ()))
    machines = restore([stream((FRAME_HEAD, head), (FRAME_END, b""))])
    assert (machines.applied_index, machines.key_value.revision) == (9, 0)


def test_a_machine_is_never_ahead_of_the_whole() -> None:
    machines = filled(1, 5)
    chunks = list(machines.snapshot())
    chunks[0] = frame(0, FRAME_HEAD, msgspec.msgpack.encode(StreamHead(1, 2, ("key_value",))))
    with pytest.raises(SnapshotDamaged, match="section key_value is at index 8, the stream at 2"):
        restore(chunks)


# --- a key-value section whose checksums are right and whose content is not --------------------


def record(mod: int, lease: int = 0, value: bytes = b"v", create: int = 1, version: int = 1) -> bytes:
    return make_record(create, mod, version, lease, value)


def feed(*batches: Batch) -> None:
    restorer = KeyValueRestorer()
    for batch in batches:
        for piece in pieces_of(msgspec.msgpack.encode(batch)):
            restorer.feed(piece)
    restorer.finish()


STORE = StoreHead(9, 5, 4, 0, 1, 2)
KEYS = KeyBatch([b"k"], [record(5)])
EVENTS = EventBatch([b"x", b"k"], [make_deletion(4), b""])


def test_the_examples_below_are_right_but_for_one_thing() -> None:
    feed(STORE, KEYS, EVENTS)
    feed(StoreHead(0, 0, 1, 0, 0, 0))


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        ([KEYS], "it does not begin with its head"),
        ([STORE, STORE], "two heads"),
        ([STORE, KEYS], r"it has \(0, 1, 0\) leases, keys and events, its head says \(0, 1, 2\)"),
        ([StoreHead(9, 5, 7, 0, 0, 0)], "impossible numbers"),
        ([StoreHead(-1, 5, 6, 0, 0, 0)], "impossible numbers"),
        ([StoreHead(9, 10_001, 1, 0, 0, 0)], "too much history"),
        ([StoreHead(9, 5, 4, 0, 1, 0), KEYS], "its events end at revision 3, it is at 5"),
        ([STORE, KEYS, EVENTS, KEYS], "keys behind events"),
        ([STORE, LeaseBatch([1], [])], "1 leases with 0 times to live"),
        ([STORE, LeaseBatch([0], [1000])], "lease 0 of 1000 ms"),
        ([STORE, LeaseBatch([1, 1], [1000, 1000])], "lease 1 of 1000 ms, or there twice"),
        ([STORE, LeaseBatch([1], [999])], "lease 1 of 999 ms"),
        ([STORE, LeaseBatch([1] * 10_001, [1000] * 10_001)], "more than 10000 leases"),
        ([STORE, KeyBatch([b"k"], [])], "1 keys with 0 records"),
        ([STORE, KeyBatch([b"k"], [b"short"])], "a key or value beyond its limits"),
        ([STORE, KeyBatch([b""], [record(5)])], "a key or value beyond its limits"),
        ([STORE, KeyBatch([b"k" * 1025], [record(5)])], "a key or value beyond its limits"),
        (
            [STORE, KeyBatch([b"k"], [record(5, value=b"v" * (limits.VALUE_BYTES_MAX + 1))])],
            "a key or value beyond its limits",
        ),
        ([STORE, KeyBatch([b"a\0b"], [record(5)])], "a zero byte in a key or value"),
        ([STORE, KeyBatch([b"k"], [record(5, value=b"\0")])], "a zero byte in a key or value"),
        ([STORE, KeyBatch([b"\xc3", b"\xa4"], [record(5), record(4)])], "not UTF-8"),
        ([STORE, KeyBatch([b"k"], [record(5, value=b"\xff")])], "not UTF-8"),
        ([STORE, KeyBatch([b"b", b"a"], [record(5), record(4)])], "key b'a' .*, behind key b'b'"),
        (
            [STORE, KeyBatch([b"a"], [record(5)]), KeyBatch([b"a"], [record(5)])],
            "key b'a' .*, behind key b'a'",
        ),
        ([STORE, KeyBatch([b"k"], [record(6)])], "key b'k' with revision 6"),
        ([STORE, KeyBatch([b"k"], [record(3, create=4)])], "created at 4"),
        ([STORE, KeyBatch([b"k"], [record(3, create=0)])], "created at 0"),
        ([STORE, KeyBatch([b"k"], [record(3, version=0)])], "version 0"),
        ([STORE, KeyBatch([b"k"], [record(5, lease=3)])], "key b'k' of lease 3, which is missing"),
        ([STORE, KEYS, EventBatch([b"x"], [b""])], "an event whose value is missing"),
        ([STORE, KEYS, EventBatch([b"x", b"y"], [make_deletion(4)])], "2 keys with 1 records"),
        ([STORE, KEYS, EventBatch([b"k"], [b""])], "an event of revision 5 behind one of 3"),
        ([STORE, KEYS, EventBatch([b"x"], [make_deletion(3)])], "an event of revision 3, which is not kept"),
        (
            [STORE, EventBatch([b"x"] * 3, [make_deletion(n) for n in (4, 5, 6)])],
            "revision 6 behind one of 5",
        ),
        ([STORE, EventBatch([b"x"], [make_deletion(4) + b"v"])], "a deletion of b'x' with a value"),
    ],
)
def test_a_store_that_cannot_be_is_refused(batches: list[Batch], text: str) -> None:
    with pytest.raises(SnapshotDamaged, match=f"key-value: .*{text}"):
        feed(*batches)


def test_a_lease_with_too_many_keys_is_refused() -> None:
    count = limits.LEASE_KEYS_MAX + 1
    keys = [b"%06d" % number for number in range(count)]
    with pytest.raises(SnapshotDamaged, match="more than 10000 keys of lease 1"):
        feed(STORE, LeaseBatch([1], [1000]), KeyBatch(keys, [record(5, lease=1)] * count))


def test_batches_that_cannot_be_read() -> None:
    restorer = KeyValueRestorer()
    with pytest.raises(SnapshotDamaged, match="key-value: a batch of 3 bytes cannot be read"):
        restorer.feed(struct.pack("<I", 3) + b"abc")
    restorer = KeyValueRestorer()
    with pytest.raises(SnapshotDamaged, match="a batch of 1179649 bytes, at most 1179648 are possible"):
        restorer.feed(struct.pack("<I", limits.BATCH_BYTES_MAX + 1))
    restorer = KeyValueRestorer()
    restorer.feed(b"\x05\0\0\0ab")
    with pytest.raises(SnapshotDamaged, match="it ends 6 bytes into a batch"):
        restorer.finish()
    deep = b"\x96\x01" + b"\x91" * 5000
    with pytest.raises(SnapshotDamaged, match="cannot be read"):
        KeyValueRestorer().feed(struct.pack("<I", len(deep)) + deep)
