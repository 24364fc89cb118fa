"""Running checksums of the committed entries, for nodes to compare: the same index and term may hold other
data after two leaders of one term.

The log is cut into blocks of BLOCK entries, the same on every node. Block 1 begins with entry 2: at index 1
stands the snapshot that all nodes of the initial cluster start from, so nobody has an entry there. The
running checksum at an index is that of all entries from the start of its block on, so it does not matter
where a node's own log begins. It is unknown where the start of the block is not kept.

The checksum is the crc32 of the entries' encodings, one behind the other, so that a batch takes one call: it
does not matter in which batches a node applied them. Kept in memory: the checksums behind each batch of the
block that is being filled and of the one before it, the last value (the end) of every block that was once
known, and the values at each index of one block that was read again.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from typing import Protocol
from zlib import crc32

import msgspec

from pgraft.raft.types import Entry

BLOCK = 1024
"""Entries in a block: its values are 4 KB, and a block that is read again is short work."""
FIRST_INDEX = 2
_encode = msgspec.msgpack.Encoder().encode
_SHORT, _LONG = 15, 65535
"""Up to how many items the head of a msgpack array takes one byte, and three."""
PIECE_BYTES = 64 * 1024
"""Entry bytes that one step of reading again takes, and at least one entry."""


class Kept(Protocol):
    """The entries that are kept (storage.Store)."""

    def first_index(self) -> int:
        """Index of the first one."""

    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        """[lo, hi), as many as fit `max_size` bytes, at least one."""


def block_of(index: int) -> int:
    """The block of entry `index`, 0 for index 1."""
    return (index - FIRST_INDEX) // BLOCK + 1


def first_of(block: int) -> int:
    """Index of the first entry of a block."""
    return (block - 1) * BLOCK + FIRST_INDEX


def last_of(block: int) -> int:
    """Index of the last entry of a block."""
    return first_of(block + 1) - 1


def pack(values: array[int] | list[int]) -> bytes:
    """Checksums as they travel: 4 bytes each, little-endian."""
    return struct.pack(f"<{len(values)}I", *values)


def unpack(data: bytes) -> tuple[int, ...]:
    """The checksums in `data`, whose length is a multiple of 4."""
    return struct.unpack(f"<{len(data) // 4}I", data)


def _extended(crc: int, entries: list[Entry]) -> int:
    """The checksum `crc`, with these entries behind it."""
    data, count = _encode(entries), len(entries)
    # Without the array's head, what is left is the same however the entries are cut into batches.
    return crc32(memoryview(data)[1 if count <= _SHORT else 3 if count <= _LONG else 5 :], crc)


class _Run:
    """A block up to entry `next - 1`: `values` holds the checksum behind each of `counts` entries of it."""

    __slots__ = ("block", "counts", "crc", "next", "values")

    def __init__(self, block: int) -> None:
        self.block = block
        self.crc = 0
        self.next = first_of(block)
        self.counts: array[int] = array("I")
        self.values: array[int] = array("I")

    def __len__(self) -> int:
        return self.next - first_of(self.block)

    def take(self, entries: list[Entry]) -> None:
        """Entries that follow, of this block. This is on the way of every commit."""
        self.crc = crc = _extended(self.crc, entries)
        self.next += len(entries)
        self.counts.append(self.next - first_of(self.block))
        self.values.append(crc)

    def before(self, count: int) -> tuple[int, int]:
        """(number of entries, checksum) of the last known place at or before `count` entries."""
        place = bisect_right(self.counts, count) - 1
        return (self.counts[place], self.values[place]) if place >= 0 else (0, 0)


class _Ends:
    """The last value of each block that is known: 8 bytes a block."""

    __slots__ = ("_base", "_known")

    def __init__(self) -> None:
        self._base = 0
        self._known: array[int] = array("Q")

    def get(self, block: int) -> int | None:
        place = block - self._base
        if not 0 <= place < len(self._known) or not self._known[place]:
            return None
        return self._known[place] - 1

    def put(self, block: int, end: int) -> None:
        if not self._known:
            self._base = block
        if block < self._base:
            self._known[0:0] = array("Q", bytes(8 * (self._base - block)))
            self._base = block
        missing = block - self._base + 1 - len(self._known)
        if missing > 0:
            self._known.frombytes(bytes(8 * missing))
        self._known[block - self._base] = end + 1

    def drop_before(self, block: int) -> None:
        gone = block - self._base
        if gone > 0:
            del self._known[:gone]
            self._base = block


class Checksums:
    """The checksums of one node. `applied` is the index of its last applied entry."""

    def __init__(self, kept: Kept, applied: int) -> None:
        self._kept = kept
        self._ends = _Ends()
        self._begin(applied)

    def _begin(self, applied: int) -> None:
        self.applied = applied
        self._previous: _Run | None = None
        self._reading: _Run | None = None
        self._read_to = 0
        self._whole: _Run | None = None
        # What stands in this block already is read again; where its start is gone, nothing is known of it.
        run = _Run(block_of(applied + 1))
        self._live: _Run | None = run if run.next > applied or run.next >= self._kept.first_index() else None

    # --- as entries are applied -------------------------------------------------------------------------

    def extend(self, entries: list[Entry]) -> None:
        """These were committed, and follow what was applied."""
        live = self._live
        first = entries[0].index
        self.applied = first + len(entries) - 1
        if live is None or live.next != first:
            self._go_on_at_next_block(entries)
        elif len(entries) < BLOCK - len(live):
            live.take(entries)
        else:
            self._fill(live, entries)

    def _fill(self, live: _Run, entries: list[Entry]) -> None:
        """As extend, over the ends of blocks."""
        while len(entries) >= (room := BLOCK - len(live)):
            live.take(entries[:room])
            self._ends.put(live.block, live.crc)
            self._ends.drop_before(block_of(self._kept.first_index()))
            self._previous = live
            self._live = live = _Run(live.block + 1)
            entries = entries[room:]
        if entries:
            live.take(entries)

    def _go_on_at_next_block(self, entries: list[Entry]) -> None:
        """Some of this block is not known (yet): what cannot be read again is left out."""
        first = entries[0].index
        start = first_of(block_of(first + BLOCK - 1))
        if start <= self.applied + 1:
            self._previous = None
            self._live = _Run(block_of(start))
            self._fill(self._live, entries[start - first :])

    def reset(self, index: int) -> None:
        """A snapshot at `index` took the place of all entries."""
        self._ends = _Ends()
        self._begin(index)

    # --- what is known ----------------------------------------------------------------------------------

    def newest(self) -> tuple[int, int]:
        """(index, running checksum) of the last applied entry; (0, 0) where it is not known."""
        value = self.at(self.applied) if self.applied else None
        return (self.applied, value) if value is not None else (0, 0)

    def at(self, index: int) -> int | None:
        """The running checksum at `index`, None where it is not known. Raises StorageError."""
        block = block_of(index)
        if index == last_of(block) and (end := self._ends.get(block)) is not None:
            return end
        for run in (self._live, self._previous, self._whole):
            if run is not None and run.block == block and index < run.next:
                return self._between(run, index)
        return None

    def _between(self, run: _Run, index: int) -> int | None:
        """The value within a batch: what is before is known, a few entries are read again."""
        start = first_of(run.block)
        count, crc = run.before(index - start + 1)
        missing = index - start + 1 - count
        if not missing:
            return crc
        if start + count < self._kept.first_index():
            return None
        entries = self._kept.entries(start + count, index + 1, PIECE_BYTES)
        return _extended(crc, entries) if len(entries) == missing else None

    def end(self, block: int) -> int | None:
        """The last value of a block, None where it is not known."""
        return self._ends.get(block)

    def ends_before(self, block: int, count: int) -> list[int]:
        """The last values of the blocks right before `block`, in order: `count`, or as many as are known."""
        found: list[int] = []
        for one in range(block - 1, max(0, block - 1 - count), -1):
            end = self._ends.get(one)
            if end is None:
                break
            found.append(end)
        return found[::-1]

    def values(self, block: int) -> array[int] | None:
        """The values at each index of a block, from its start on, as far as they were read again; None where
        they were not: `want` them."""
        whole = self._whole
        return whole.values if whole is not None and whole.block == block else None

    def keeps(self, block: int) -> bool:
        """Whether the values of a block are known, or can be read again."""
        return self._kept.first_index() <= first_of(block) <= self.applied

    # --- reading again ----------------------------------------------------------------------------------

    def want(self, block: int) -> None:
        """Read a block again up to what is applied now, in the steps of `work`. One at a time, to its end:
        whoever wants another one meanwhile asks again. Two wishes in turn would else begin anew for ever."""
        if self._reading is None and self.values(block) is None and self.keeps(block):
            self._reading = _Run(block)
            self._read_to = min(last_of(block), self.applied)

    def forget_part(self, block: int) -> None:
        """What was read again of a block that was not complete then is old news: it has more entries now."""
        if self._whole is not None and self._whole.block == block and len(self._whole) < BLOCK:
            self._whole = None

    @property
    def reads(self) -> bool:
        """Whether a block is being read again."""
        return self._reading is not None

    def work(self) -> None:
        """One step. Raises StorageError when the entries cannot be read."""
        live, reading = self._live, self._reading
        if live is not None and live.next <= self.applied:
            self._catch_up(live)
        elif reading is not None:
            self._read(reading)

    def _catch_up(self, live: _Run) -> None:
        """The block that is being filled is behind: this node has just started."""
        if live.next < self._kept.first_index():
            self._live = None
            return
        self._fill(live, self._kept.entries(live.next, self.applied + 1, PIECE_BYTES))

    def _read(self, run: _Run) -> None:
        if run.next < self._kept.first_index():
            self._reading = None
            return
        for entry in self._kept.entries(run.next, self._read_to + 1, PIECE_BYTES):
            run.take([entry])
        if run.next > self._read_to:
            if len(run) == BLOCK:
                self._ends.put(run.block, run.crc)
            self._whole, self._reading = run, None
