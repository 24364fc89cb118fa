"""Rings: order, room, wrap-around, damage; within a process and across two."""

from __future__ import annotations

import random
from collections import deque

import pytest

from pgraft.shm.layout import RECORD_HEADER_BYTES
from pgraft.shm.rings import RecordTooLarge, RingReader, RingWriter, WordRef, record_bytes
from pgraft.shm.segment import Segment
from tests.support.shm_peer import peer, records, small_reader

CAPACITY = 4096


class Pair:
    """Both ends of a ring in plain memory."""

    def __init__(self, capacity: int = CAPACITY, start: int = 0) -> None:
        self.bytes = bytearray(capacity)
        words = memoryview(bytearray(16)).cast("Q")
        words[0] = words[1] = start
        self.head, self.tail = WordRef(words, 0), WordRef(words, 1)
        self.writer = RingWriter(memoryview(self.bytes), self.head, self.tail)
        self.reader = RingReader(memoryview(self.bytes), self.head, self.tail)

    def put(self, record: bytes) -> bool:
        return self.writer.put(record) and self.writer.publish()


def test_records_come_out_in_order_and_only_once_published() -> None:
    pair = Pair()
    assert pair.writer.put(b"one", b"", memoryview(b" and a half"))
    assert pair.writer.put(b"")
    assert not pair.reader.pending()
    assert pair.reader.read(CAPACITY) == []
    assert pair.writer.publish()
    assert not pair.writer.publish()
    assert pair.reader.read(CAPACITY) == [b"one and a half", b""]
    assert pair.reader.read(CAPACITY) == []


def test_reading_is_bounded_by_bytes_and_goes_on_where_it_stopped() -> None:
    pair = Pair()
    for number in range(10):
        pair.put(bytes([number]) * 100)
    first = pair.reader.read(300)
    assert 1 <= len(first) < 10
    assert first + pair.reader.read(CAPACITY) == [bytes([number]) * 100 for number in range(10)]


def test_a_full_ring_takes_nothing_until_there_is_room() -> None:
    pair = Pair()
    size = record_bytes(240)
    for _ in range(CAPACITY // size):
        assert pair.put(b"x" * 240)
    assert pair.reader.used_bytes() == CAPACITY
    assert not pair.writer.put(b"")
    assert not pair.writer.publish()
    assert len(pair.reader.read(1)) == 1
    assert pair.put(b"y" * 240)
    assert pair.reader.read(CAPACITY)[-1] == b"y" * 240


def test_a_record_may_fill_half_of_the_ring_and_no_more() -> None:
    pair = Pair()
    largest = CAPACITY // 2 - RECORD_HEADER_BYTES
    assert pair.put(b"x" * largest)
    with pytest.raises(RecordTooLarge, match=str(largest + 1)):
        pair.writer.put(b"x" * (largest + 1))


@pytest.mark.parametrize("seed", range(5))
def test_random_sizes_against_a_queue(seed: int) -> None:
    chance = random.Random(seed)
    pair = Pair(start=2**63 + 16 * chance.randrange(1000))
    expected: deque[bytes] = deque()
    got = 0
    for _ in range(3000):
        if chance.random() < 0.55:
            record = chance.randbytes(chance.choice((0, 1, 15, 16, 17, chance.randrange(1500))))
            if pair.put(record):
                expected.append(record)
        else:
            for record in pair.reader.read(chance.randrange(1, 3000)):
                assert record == expected.popleft(), f"seed {seed}"
                got += 1
    assert got > 500
    assert pair.reader.damage == 0


def test_a_new_writer_goes_on_behind_what_was_published() -> None:
    pair = Pair()
    pair.put(b"first")
    pair.writer.put(b"put, and never published: its process died")
    after = RingWriter(memoryview(pair.bytes), pair.head, pair.tail)
    after.put(b"second")
    after.publish()
    assert pair.reader.read(CAPACITY) == [b"first", b"second"]


def test_skip_all_forgets_what_waits() -> None:
    pair = Pair()
    pair.put(b"old")
    pair.reader.skip_all()
    pair.put(b"new")
    assert pair.reader.read(CAPACITY) == [b"new"]


@pytest.mark.parametrize("at", [0, 8, 12, 16, 20])
def test_damage_is_found_and_left_behind(at: int) -> None:
    pair = Pair()
    pair.put(b"before")
    start = pair.head.load()
    pair.put(b"damaged record")
    pair.bytes[start + at] ^= 0x40
    assert pair.reader.read(CAPACITY) == [b"before"]
    assert pair.reader.damage == 1
    assert not pair.reader.pending()
    pair.put(b"after")
    assert pair.reader.read(CAPACITY) == [b"after"]


@pytest.mark.parametrize("head", [2 * CAPACITY, 2**64 - 16])
def test_a_head_that_makes_no_sense_is_damage(head: int) -> None:
    pair = Pair()
    pair.head.store(head)
    assert pair.reader.read(CAPACITY) == []
    assert pair.reader.damage == 1


def test_a_record_of_an_earlier_lap_is_not_taken_for_a_new_one() -> None:
    pair = Pair()
    for _ in range(8):
        pair.put(b"x" * (CAPACITY // 8 - RECORD_HEADER_BYTES))
        pair.reader.read(CAPACITY)
    pair.head.store(CAPACITY + CAPACITY // 8)
    assert pair.reader.read(CAPACITY) == []
    assert pair.reader.damage == 1


@pytest.mark.parametrize("seed", range(3))
def test_two_processes(segment: Segment, seed: int) -> None:
    """A small ring, so that it wraps hundreds of times, and is full most of the time."""
    count = 4000
    reader = small_reader(segment)
    expected = records(seed, count)
    got = 0
    with peer("ring", segment.name, seed, count) as process:
        while got < count:
            for record in reader.read(8192):
                assert record == next(expected), f"seed {seed}, record {got}"
                got += 1
            assert reader.damage == 0, f"seed {seed}, after record {got}"
            assert process.poll() in (None, 0)
    assert next(expected, None) is None
