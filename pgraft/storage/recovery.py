"""Reading entry-log files back at start: replay, and telling a torn tail from damage.

The rule. A batch is written only when every batch up to its `synced` number is durable. So when the
record at some offset is bad, and a good record with `synced` >= the bad batch's number stands behind
it, the bad one was durable once: that is damage, and the start is refused. Without such a record the
crash came before a sync had returned, nobody was promised anything, and the log ends there. (Damage
to the very last batch cannot be told from tearing.) Every file but the newest was synced before the
next was made, so in those any bad record is damage; the next file's header says how many batches
there must be. And once that next file was durable, a seal was put behind the last batch: a newest file
with one is not the newest that there was, and the entries behind it are gone.

Replay makes no object per entry or record that lasts; it checks every checksum. Its inner loop runs
once a record (a million times, at worst), which is why it is one function with local names.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from pgraft.raft.types import HardState
from pgraft.storage import files
from pgraft.storage.errors import DamagedLog, failed_call
from pgraft.storage.format import (
    CONF_CHANGE,
    CRC_FROM,
    LAST_OF_BATCH,
    NUMBER_MAX,
    PAYLOAD_BYTES_MAX,
    RECORD_HEADER_BYTES,
    RECORD_SCAN,
    SEAL,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    mark_bytes,
    record_hard_state,
    record_synced,
)
from pgraft.storage.index import LogIndex
from pgraft.storage.log_file import read_part

CHUNK_BYTES = 1024 * 1024
"""What is read at a time; grows only for a record that is larger."""


class Replay(msgspec.Struct, kw_only=True):
    """What replay has found so far: carried from file to file."""

    index: LogIndex
    next_batch: int
    hard_state: HardState
    progress: Callable[[], None]
    """Called for each chunk that is read."""
    last_record: int = 0
    """Offset of the newest file's last record of a whole batch, 0 when it has none."""


class _Window:
    """A part of a file in memory, moved along it. `view[at - base]` is the byte at offset `at`."""

    __slots__ = ("_buffer", "_fd", "_path", "_size", "base", "filled", "view")

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._size = files.size_of(fd)
        self._buffer = bytearray(CHUNK_BYTES)
        self.view = memoryview(self._buffer)
        self.base = 0
        self.filled = 0

    def move(self, at: int, needed: int) -> bool:
        """Show the file from `at` on, at least `needed` bytes; False when the file has not that many."""
        if at + needed > self._size:
            return False
        if needed > len(self._buffer):
            self._buffer = bytearray(needed)
            self.view = memoryview(self._buffer)
        self.base = at
        self.filled = 0
        while self.filled < min(len(self._buffer), self._size - at):
            try:
                got = files.read_into(self._fd, self.view[self.filled :], at + self.filled)
            except OSError as error:
                raise failed_call("read the entry log", self._path, error, at + self.filled) from error
            if got == 0:
                break
            self.filled += got
        return self.filled >= needed


def replay_file(fd: int, path: Path, header: SegmentHeader, replay: Replay) -> int:
    """Take in the file's good batches from its start; the offset behind the last one is returned.

    Stops quietly at the first record that is not good: the caller decides what that means.
    DamagedLog when good records do not follow one another.
    """
    window = _Window(fd, path)
    index = replay.index
    unpack, crc32 = RECORD_SCAN.unpack_from, zlib.crc32
    mark, salt, sequence = header.mark, header.salt, header.sequence
    batch = replay.next_batch
    pending: list[tuple[int, int, int, int, int]] = []
    replay.last_record = 0
    end = at = SEGMENT_HEADER_BYTES
    following, term, next_point = index.last + 1, 0, 0
    while window.move(at, RECORD_HEADER_BYTES):
        replay.progress()
        view, base, filled = window.view, window.base, window.filled
        pos, last_good, needed = 0, -1, 0
        while pos + RECORD_HEADER_BYTES <= filled:
            found, crc, size, count, flags, number, first, of_term = unpack(view, pos)
            if found != mark or number != batch or size > PAYLOAD_BYTES_MAX:
                needed = -1
                break
            stop = pos + RECORD_HEADER_BYTES + size
            if stop > filled:
                needed = stop - pos
                break
            if crc32(view[pos + CRC_FROM : stop], salt) != crc:
                needed = -1
                break
            if flags == LAST_OF_BATCH and first == following and of_term == term and base + pos < next_point:
                following += count
                batch += 1
                last_good = pos
                end = base + stop
            else:
                index.last = following - 1
                pending.append((base + pos, first, count, of_term, flags))
                if flags & LAST_OF_BATCH:
                    _take_in(index, path, sequence, pending)
                    pending.clear()
                    batch += 1
                    last_good = pos
                    end = base + stop
                    following = index.last + 1
                    if count:
                        term, next_point = of_term, index.next_point
            pos = stop
        index.last = following - 1
        if last_good >= 0:
            replay.hard_state = state = record_hard_state(view, last_good)
            replay.last_record = base + last_good
            if max(state.term, state.commit) > NUMBER_MAX:
                raise DamagedLog(path, replay.last_record, f"term {state.term}, commit {state.commit}")
        at = base + pos
        if needed < 0 or (needed and not window.move(at, needed)):
            break
    replay.next_batch = batch
    return end


def _take_in(
    index: LogIndex, path: Path, sequence: int, pending: list[tuple[int, int, int, int, int]]
) -> None:
    for offset, first, count, term, flags in pending:
        if count == 0:
            continue
        if first > index.last + 1:
            raise DamagedLog(path, offset, f"entries {index.last + 1} to {first - 1} are missing")
        if term > NUMBER_MAX:
            raise DamagedLog(path, offset, f"entry {first} has term {term}, which no log has")
        index.add(sequence, offset, first, count, term, bool(flags & CONF_CHANGE))


def torn_tail_bytes(fd: int, path: Path, header: SegmentHeader, end: int, replay: Replay) -> int:
    """How many bytes behind `end`, where the good batches of the newest file end, are not zero's rest.

    0: the log ends cleanly. More: a torn tail, to be cut. DamagedLog when a good record there says
    that the next batch, which does not read back, was durable, or that there was a newer file.
    """
    size = files.size_of(fd)
    wanted = mark_bytes(header.mark)
    last_used = end
    at = end
    while at < size:
        replay.progress()
        data = read_part(fd, path, at, min(CHUNK_BYTES, size - at))
        used = len(data.rstrip(b"\0"))
        if used:
            last_used = at + used
        found = data.find(wanted)
        while found >= 0:
            _check_later_record(fd, path, header, at + found, end, replay.next_batch)
            found = data.find(wanted, found + 1)
        if at + len(data) == size:
            break
        at += len(data) - (len(wanted) - 1)
    return last_used - end


def _check_later_record(
    fd: int, path: Path, header: SegmentHeader, at: int, bad_at: int, bad_batch: int
) -> None:
    head = files.read_at(fd, RECORD_HEADER_BYTES, at)
    if len(head) < RECORD_HEADER_BYTES:
        return
    _, crc, size, _, flags, number, _, _ = RECORD_SCAN.unpack_from(head)
    was_durable = record_synced(head, 0) >= bad_batch
    if number <= bad_batch or not (was_durable or flags == SEAL) or size > PAYLOAD_BYTES_MAX:
        return
    payload = files.read_at(fd, size, at + RECORD_HEADER_BYTES)
    if len(payload) != size or zlib.crc32(payload, zlib.crc32(head[CRC_FROM:], header.salt)) != crc:
        return
    if was_durable:
        raise DamagedLog(path, bad_at, f"batch {bad_batch} is damaged (batch {number} behind it is whole)")
    raise DamagedLog(path, None, f"log file number {header.sequence + 1}, which comes after it, is missing")
