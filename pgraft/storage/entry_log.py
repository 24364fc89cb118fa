"""The entry log: files of bounded size, appended with one write and one sync a batch.

Owner: the Raft worker, one thread. Only the newest file is written to. A file is preallocated and
gets its name when its header is durable. An error in the middle of a change leaves this object
unusable; Store sees to that. Errors of system calls that change something leave here as OSError, for
Store to explain; those of reading, and of the start, name their file.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

from pgraft.raft.types import Entry, HardState
from pgraft.storage import files
from pgraft.storage.errors import DamagedLog, failed_call
from pgraft.storage.format import (
    CONF_CHANGE,
    SEAL_BYTES,
    SEGMENT_HEADER_BYTES,
    BatchWriter,
    SegmentHeader,
    decode_entries,
    pack_segment_header,
    record_synced,
)
from pgraft.storage.index import LogIndex
from pgraft.storage.log_file import LogFile, Record, file_name, read_header, read_part, walk_records
from pgraft.storage.recovery import Replay, replay_file, torn_tail_bytes

SEGMENT_BYTES_MIN = 4096
"""Smallest size of a file (tests use it; the setting's own minimum is far above)."""
WRITE_AHEAD_BYTES = 128 * 1024
"""Zeros written behind a batch that reaches blocks not written before. A sync of blocks that were only
reserved must change the file system's metadata, a sync of blocks once written need not (measured on ext4,
three writers of 8 kB batches: 0.21 instead of 0.37 ms)."""
NEW_LOG = SegmentHeader(
    mark=0, salt=0, sequence=0, first_index=1, first_batch=1, hard_state=HardState(), reset_index=0
)


class EntryLog:
    """Entries, and the hard state that travels with them, on disk."""

    def __init__(self, directory: Path, segment_bytes: int) -> None:
        self._directory = directory
        self._segment_bytes = max(segment_bytes, SEGMENT_BYTES_MIN)
        self._files: dict[int, LogFile] = {}
        self._current = LogFile(directory, NEW_LOG, 0)
        self._fd = -1
        self._end = 0
        self._written = 0
        self._capacity = 0
        self._next_batch = 1
        self._synced_batch = 0
        self._writer = BatchWriter(0, 0)
        self._reader_fd = -1
        self._reader_sequence = 0
        self.index = LogIndex(1)
        self.hard_state = HardState()
        self.cut_bytes = 0

    # --- start ---------------------------------------------------------------------------------

    def open(self, paths: dict[int, Path], progress: Callable[[], None]) -> None:
        """Replay the given files (by sequence, in order), cut a torn tail, and be ready to append.

        DamagedLog when they are not whole. With no files the first append makes one.
        """
        replay = Replay(index=self.index, next_batch=0, hard_state=HardState(), progress=progress)
        newest = max(paths, default=0)
        for sequence, path in paths.items():
            try:
                fd = files.open_existing(path)
                try:
                    self._replay(fd, path, sequence, replay)
                    if sequence == newest:
                        self._adopt(fd, replay)
                        fd = -1
                finally:
                    if fd >= 0:
                        files.close(fd)
            except OSError as error:
                raise failed_call("open the entry log", path, error) from error

    def _replay(self, fd: int, path: Path, sequence: int, replay: Replay) -> None:
        header = read_header(fd, path, sequence)
        if not self._files:
            self.index.reset(header.first_index)
            replay.next_batch = header.first_batch
        elif self._current.header.sequence != sequence - 1:
            raise DamagedLog(path, None, f"log file number {sequence - 1}, which comes before it, is missing")
        elif replay.next_batch != header.first_batch:
            raise DamagedLog(
                self._current.path,
                self._current.end,
                f"batch {replay.next_batch} is damaged or missing (the next file begins with batch"
                f" {header.first_batch})",
            )
        replay.hard_state = header.hard_state
        file = LogFile(path, header, self._current.total if self._files else 0)
        file.end = replay_file(fd, path, header, replay)
        self._files[sequence] = self._current = file

    def _adopt(self, fd: int, replay: Replay) -> None:
        """Make the newest file the one to append to.

        Its last batches may stand in the kernel's cache only, or even belong to a sync that failed and
        cannot be repeated; so those not known to be durable are written once more, and synced.
        """
        file = self._current
        self.cut_bytes = torn_tail_bytes(fd, file.path, file.header, file.end, replay)
        if self.cut_bytes:
            files.truncate(fd, file.end)
        start = self._unsynced_start(fd, replay)
        if start < file.end:
            files.write_at(fd, read_part(fd, file.path, start, file.end - start), start)
        capacity = max(self._segment_bytes, file.end)
        if files.size_of(fd) < capacity:
            files.allocate(fd, capacity)
        files.sync_file(fd)
        self._use(fd, file, capacity)
        self._next_batch = replay.next_batch
        self._synced_batch = replay.next_batch - 1
        self.hard_state = replay.hard_state

    def _unsynced_start(self, fd: int, replay: Replay) -> int:
        """Where to begin to cover every batch that the newest record does not know to be durable."""
        file = self._current
        if not replay.last_record:
            return file.end
        synced = record_synced(read_part(fd, file.path, replay.last_record, file.end - replay.last_record), 0)
        index = self.index
        for point in range(len(index.point_file) - 1, -1, -1):
            if index.point_file[point] != file.header.sequence:
                break
            record = next(walk_records(fd, file, index.point_offset[point]))
            if record.batch <= synced:
                return record.offset
        return SEGMENT_HEADER_BYTES

    # --- writing -------------------------------------------------------------------------------

    def append(self, state: HardState, entries: list[Entry], sync: bool) -> None:
        """Write one batch: the hard state, and entries that follow the last one or replace a suffix.

        The caller has checked that they fit. Not durable before a later append when `sync` is false.
        """
        batch = self._next_batch
        data, marks = self._writer.encode(batch, self._synced_batch, state, entries)
        at = self._end
        if at + len(data) + SEAL_BYTES > self._capacity:
            self.roll(SEGMENT_HEADER_BYTES + len(data) + SEAL_BYTES)
            at = self._end
            data, marks = self._writer.encode(batch, self._synced_batch, state, entries)
        end = at + len(data)
        if end > self._written:
            ahead = min(WRITE_AHEAD_BYTES, self._capacity - end)
            self._written = end + ahead
            data += bytes(ahead)
        files.write_at(self._fd, data, at)
        if sync:
            files.sync_data(self._fd)
            self._synced_batch = batch
        sequence = self._current.header.sequence
        for mark in marks:
            if mark.count:
                is_conf = bool(mark.flags & CONF_CHANGE)
                self.index.add(sequence, at + mark.offset, mark.first_index, mark.count, mark.term, is_conf)
        self._end = self._current.end = end
        self._next_batch = batch + 1
        self.hard_state = state

    def roll(self, bytes_needed: int) -> None:
        """Go on in a new file, large enough for `bytes_needed`; what is in the old one becomes durable.

        It begins behind the last entry, also where the batch to come replaces some: if that batch never
        comes, they count, and this file may one day be the only one.
        """
        self.sync()
        header = self._next_header(self.index.last + 1, self.hard_state, 0)
        fd, capacity = self._create(header, bytes_needed)
        if self._fd >= 0:
            # From now on the new file, where acknowledged entries will stand, must be there.
            files.write_at(self._fd, self._writer.encode_seal(self._next_batch, self.hard_state), self._end)
            files.sync_data(self._fd)
        self._switch(fd, header, capacity)

    def prepare_reset(self, first_index: int, state: HardState) -> SegmentHeader:
        """Make the file of a log that starts anew at `first_index`. It counts once a snapshot names it
        (`start_anew` then goes on in it); after a crash before that, it is removed."""
        self.sync()
        header = self._next_header(first_index, state, first_index - 1)
        fd, _ = self._create(header, 0)
        files.close(fd)
        return header

    def start_anew(self, header: SegmentHeader) -> None:
        """Forget all entries and go on in the file that `prepare_reset` made."""
        fd = files.open_existing(self._directory / file_name(header))
        self._switch(fd, header, self._segment_bytes)
        self.index.reset(header.first_index)
        self.hard_state = header.hard_state

    def sync(self) -> None:
        """Make everything that was appended durable."""
        if self._synced_batch != self._next_batch - 1:
            files.sync_data(self._fd)
            self._synced_batch = self._next_batch - 1

    def close(self) -> None:
        """Give the descriptors back; nothing is written."""
        for fd in (self._fd, self._reader_fd):
            if fd >= 0:
                files.close(fd)
        self._fd = self._reader_fd = -1

    def _next_header(self, first_index: int, state: HardState, reset_index: int) -> SegmentHeader:
        return SegmentHeader(
            mark=_random_u32() | 1,
            salt=_random_u32(),
            sequence=self._current.header.sequence + 1,
            first_index=first_index,
            first_batch=self._next_batch,
            hard_state=state,
            reset_index=reset_index,
        )

    def _create(self, header: SegmentHeader, bytes_needed: int) -> tuple[int, int]:
        path = self._directory / file_name(header)
        capacity = max(self._segment_bytes, bytes_needed)
        fd = files.create_aside(path)
        try:
            files.allocate(fd, capacity)
            files.write_at(fd, pack_segment_header(header), 0)
            files.sync_file(fd)
            files.put_in_place(path)
        except BaseException:
            files.close(fd)
            raise
        return fd, capacity

    def _switch(self, fd: int, header: SegmentHeader, capacity: int) -> None:
        file = LogFile(self._directory / file_name(header), header, self._current.total if self._files else 0)
        self._files[header.sequence] = file
        if self._fd >= 0:
            files.close(self._fd)
        self._use(fd, file, capacity)

    def _use(self, fd: int, file: LogFile, capacity: int) -> None:
        self._fd = fd
        self._current = file
        self._end = self._written = file.end
        self._capacity = capacity
        self._writer = BatchWriter(file.header.mark, file.header.salt)

    # --- dropping ------------------------------------------------------------------------------

    def first_file_for(self, first_index: int) -> int:
        """Sequence of the oldest file that is needed when only entries from `first_index` on are kept."""
        if first_index > self.index.last:
            return self._current.header.sequence
        return self.index.point_file[self.index.point_of(first_index)]

    def drop_files_before(self, sequence: int) -> None:
        """Remove the files before number `sequence`, oldest first."""
        for old in [number for number in self._files if number < sequence]:
            if old == self._reader_sequence:
                files.close(self._reader_fd)
                self._reader_fd, self._reader_sequence = -1, 0
            files.unlink(self._files[old].path)
            del self._files[old]

    # --- reading -------------------------------------------------------------------------------

    @property
    def file_count(self) -> int:
        """Number of files."""
        return len(self._files)

    @property
    def used_bytes(self) -> int:
        """Headers and records in the files; what is only preallocated does not count."""
        if not self._files:
            return 0
        return self._current.total - next(iter(self._files.values())).start

    @property
    def preallocated_bytes(self) -> int:
        """Bytes reserved on disk behind the last record."""
        return max(0, self._capacity - self._end)

    def read(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """Live entries of [low, high), read from disk; at least one, and no more than about `bytes_max`
        of data (up to a record more)."""
        taken: list[Entry] = []
        size = 0
        point = self.index.point_of(low)
        while low < high and size < bytes_max:
            end = min(high, self.index.end_of_point(point))
            file = self._files[self.index.point_file[point]]
            for record in walk_records(self._fd_of(file), file, self.index.point_offset[point]):
                if record.first + record.entries <= low:
                    continue
                part = self._decode(file, record)[low - record.first : end - record.first]
                taken += part
                low += len(part)
                size += len(record.payload)
                if low >= end or size >= bytes_max:
                    break
            else:
                raise DamagedLog(file.path, file.end, f"entry {low} is not where the index says")
            point += 1
        return taken

    def total_before(self, index: int) -> int:
        """Log bytes before the record that holds `index` (last + 1: all log bytes)."""
        if index > self.index.last:
            return self._current.total
        point = self.index.point_of(index)
        file = self._files[self.index.point_file[point]]
        for record in walk_records(self._fd_of(file), file, self.index.point_offset[point]):
            if record.entries and index < record.first + record.entries:
                return file.start + record.offset
        raise DamagedLog(file.path, file.end, f"entry {index} is not where the index says")

    def last_index_within(self, total: int) -> int:
        """The newest entry whose record ends within the first `total` log bytes; first - 1 if none does."""
        index = self.index
        point = bisect_right(range(len(index.point_index)), total, key=self._total_at_point) - 1
        if point < 0:
            return index.first - 1
        found = index.point_index[point] - 1
        end = index.end_of_point(point)
        file = self._files[index.point_file[point]]
        for record in walk_records(self._fd_of(file), file, index.point_offset[point]):
            if file.start + record.end > total or found >= end - 1:
                break
            if record.entries:
                found = min(record.first + record.entries, end) - 1
        return found

    def _total_at_point(self, point: int) -> int:
        return self._files[self.index.point_file[point]].start + self.index.point_offset[point]

    def _decode(self, file: LogFile, record: Record) -> list[Entry]:
        entries = decode_entries(record.payload)
        indexes = [entry.index for entry in entries]
        if (
            len(entries) != record.entries
            or indexes != list(range(record.first, record.first + len(entries)))
            or any(entry.term != record.term for entry in entries)
        ):
            raise DamagedLog(file.path, record.offset, "a record holds other entries than its header says")
        return entries

    def _fd_of(self, file: LogFile) -> int:
        """A descriptor to read `file`; besides the newest file's, only one is kept open."""
        if file is self._current:
            return self._fd
        sequence = file.header.sequence
        if sequence != self._reader_sequence:
            try:
                fd = files.open_to_read(file.path)
            except OSError as error:
                raise failed_call("open the entry log", file.path, error) from error
            if self._reader_fd >= 0:
                files.close(self._reader_fd)
            self._reader_fd, self._reader_sequence = fd, sequence
        return self._reader_fd


def _random_u32() -> int:
    # Not the secrets module: it brings in OpenSSL, megabytes for eight bytes.
    return int.from_bytes(os.urandom(4), "little")
