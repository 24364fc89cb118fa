"""Rings of records between processes: one reader each.

Positions only grow; position p lives at byte p % capacity. A record is a 16-byte header (its own
position, payload length, crc32 of the payload) and the payload, padded to 16. The writer publishes
by storing `head`, the reader gives room back by storing `tail`, and each stores only its own word.
The position and the checksum show a record that is not wholly visible, since neither side has
fences from Python.
"""

from __future__ import annotations

import struct
import zlib

from pgraft.shm.layout import RECORD_HEADER_BYTES

_HEADER = struct.Struct("<QII")
_VISIBLE_TRIES = 64


class WordRef:
    """One word of a page, by number."""

    __slots__ = ("number", "words")

    def __init__(self, words: memoryview, number: int) -> None:
        self.words = words
        self.number = number

    def load(self) -> int:
        value: int = self.words[self.number]
        return value

    def store(self, value: int) -> None:
        self.words[self.number] = value


class RecordTooLarge(ValueError):
    """A record larger than half of its ring; the caller has a limit of its own that should hold."""


def record_bytes(length: int) -> int:
    """Room that a payload of `length` bytes takes in a ring."""
    return (RECORD_HEADER_BYTES + length + 15) & ~15


class RingWriter:
    """The writing end of a ring between two Python processes; `publish` makes what was put visible."""

    __slots__ = ("_head", "_next", "_ring", "_tail", "capacity")

    def __init__(self, ring: memoryview, head: WordRef, tail: WordRef) -> None:
        self._ring = ring
        self._head = head
        self._tail = tail
        self._next = head.load()
        self.capacity = len(ring)

    def put(self, *parts: bytes | bytearray | memoryview) -> bool:
        """Write one record made of `parts`, not yet visible; False when there is no room for it."""
        length = 0
        crc = 0
        for part in parts:
            length += len(part)
            crc = zlib.crc32(part, crc)
        size = (RECORD_HEADER_BYTES + length + 15) & ~15
        if size > self.capacity // 2:
            raise RecordTooLarge(f"record of {length} bytes in a ring of {self.capacity}")
        start = self._next
        if self.capacity - (start - self._tail.load()) < size:
            return False
        at = start % self.capacity
        _HEADER.pack_into(self._ring, at, start, length, crc)
        at += RECORD_HEADER_BYTES
        for part in parts:
            at = self._copy(at % self.capacity, part)
        self._next = start + size
        return True

    def _copy(self, at: int, part: bytes | bytearray | memoryview) -> int:
        end = at + len(part)
        if end <= self.capacity:
            self._ring[at:end] = part
            return end
        split = self.capacity - at
        self._ring[at:] = part[:split]
        self._ring[: end - self.capacity] = part[split:]
        return end

    def publish(self) -> bool:
        """Make everything that was put visible; False when there was nothing new."""
        if self._head.load() == self._next:
            return False
        self._head.store(self._next)
        return True


class RingReader:
    """The reading end of a ring. `damage` counts the times that its bytes made no sense."""

    __slots__ = ("_head", "_ring", "_tail", "capacity", "damage")

    def __init__(self, ring: memoryview, head: WordRef, tail: WordRef) -> None:
        self._ring = ring
        self._head = head
        self._tail = tail
        self.capacity = len(ring)
        self.damage = 0

    def pending(self) -> bool:
        """Whether there is something to read."""
        return self._head.load() != self._tail.load()

    def used_bytes(self) -> int:
        """Bytes that are written and not yet read."""
        return self._head.load() - self._tail.load()

    def position(self) -> int:
        """Where the next record will be read."""
        return self._tail.load()

    def skip_all(self) -> None:
        """Forget everything that waits, without reading it."""
        self._tail.store(self._head.load())

    def read(self, bytes_max: int) -> list[bytes]:
        """Take waiting records, about `bytes_max` of them, and give their room back before returning."""
        head = self._head.load()
        tail = self._tail.load()
        if head == tail:
            return []
        if not 0 < head - tail <= self.capacity:
            self._skip_damage(head)
            return []
        records: list[bytes] = []
        stop = min(head, tail + bytes_max)
        while tail < stop:
            record = self._record(tail, head)
            if record is None:
                self._skip_damage(head)
                return records
            records.append(record)
            tail += (RECORD_HEADER_BYTES + len(record) + 15) & ~15
        self._tail.store(tail)
        return records

    def _record(self, tail: int, head: int) -> bytes | None:
        for _ in range(_VISIBLE_TRIES):
            at = tail % self.capacity
            stamp, length, crc = _HEADER.unpack_from(self._ring, at)
            if stamp == tail and length <= head - tail - RECORD_HEADER_BYTES:
                payload = self._payload(at + RECORD_HEADER_BYTES, length)
                if zlib.crc32(payload) == crc:
                    return payload
        return None

    def _payload(self, at: int, length: int) -> bytes:
        at %= self.capacity
        end = at + length
        if end <= self.capacity:
            return bytes(self._ring[at:end])
        return bytes(self._ring[at:]) + bytes(self._ring[: end - self.capacity])

    def _skip_damage(self, head: int) -> None:
        self.damage += 1
        self._tail.store(head)
