"""Store: the stable part of Raft's log, as the core asks for it (raft.Storage) and as the worker writes it.

Everything lives in <data_dir>/raft: log files and the newest snapshot. Owner: the Raft worker, one
thread, under the lock of the data directory. After the first failed write or sync the Store refuses
every change (reading goes on): what the kernel holds and what the disk holds may differ from then
on, and a second sync that succeeds would not mean that the first one's data is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pgraft.raft.errors import ErrCompacted, ErrSnapOutOfDate, ErrUnavailable, InvariantViolation
from pgraft.raft.sizes import limit_size
from pgraft.raft.types import ConfState, Entry, EntryType, HardState, Snapshot
from pgraft.storage import files, log_file, snapshots
from pgraft.storage.cache import EntryCache
from pgraft.storage.data_dir import RAFT_NAME
from pgraft.storage.entry_log import EntryLog
from pgraft.storage.errors import DamagedLog, StorageError, failed_call

EMPTY_SNAPSHOT = Snapshot()


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What the start found: files and entries read, bytes of a torn tail cut, milliseconds taken."""

    files: int
    entries: int
    cut_bytes: int
    took_ms: int


def _unwatched() -> None:
    """Nobody wants to hear of the progress."""


def open_store(data_dir: Path, *, segment_bytes: int, progress: Callable[[], None] = _unwatched) -> Store:
    """Recover the Raft state below `data_dir`, whose lock the caller holds.

    `progress` is called every megabyte or so: a long log takes long, and so does a disk that hangs.
    DamagedLog (a StorageError) when what was durable does not read back: the node must not start.
    """
    return Store(data_dir, segment_bytes, progress)


class Store:
    """Entries from first_index to last_index on disk, the snapshot just before them, and the hard state."""

    def __init__(self, data_dir: Path, segment_bytes: int, progress: Callable[[], None]) -> None:
        started_ns = time.monotonic_ns()
        self._directory = data_dir / RAFT_NAME
        self._log = EntryLog(self._directory, segment_bytes)
        self._cache = EntryCache()
        self._stored: snapshots.StoredSnapshot | None = None
        self._snapshot = EMPTY_SNAPSHOT
        self._failed: StorageError | None = None
        self.sync_count = 0
        self.sync_ns_total = 0
        self.sync_ns_max = 0
        self._hard_state = HardState()
        try:
            self._recover(progress)
        except OSError as error:
            raise failed_call("open the Raft state", self._directory, error) from error
        self.recovered = Recovered(
            files=self._log.file_count,
            entries=self._log.index.last - self._log.index.first + 1,
            cut_bytes=self._log.cut_bytes,
            took_ms=(time.monotonic_ns() - started_ns) // 1_000_000,
        )

    # --- start ---------------------------------------------------------------------------------

    def _recover(self, progress: Callable[[], None]) -> None:
        self._prepare_directory()
        progress()
        self._stored = stored = snapshots.load_newest(self._directory)
        paths = log_file.list_files(self._directory)
        if stored:
            self._snapshot = stored.snapshot
            paths = self._wanted_files(paths, stored)
            snapshots.remove_others(self._directory, stored.path)
        self._log.open(self._without_unfinished_reset(paths), progress)
        self._check_recovered()

    def _prepare_directory(self) -> None:
        if not files.exists(self._directory):
            files.make_dir(self._directory)
            files.sync_dir(self._directory.parent)
        # What a killed process renamed may be in the kernel's cache only.
        files.sync_dir(self._directory)
        for name in files.list_names(self._directory):
            if name.endswith(files.TEMPORARY_SUFFIX):
                files.unlink(self._directory / name)

    def _wanted_files(self, paths: dict[int, Path], stored: snapshots.StoredSnapshot) -> dict[int, Path]:
        """Without the files that the snapshot made superfluous; those are removed."""
        if stored.first_file not in paths:
            raise DamagedLog(
                self._directory,
                None,
                f"log file number {stored.first_file}, which the snapshot needs, is missing",
            )
        for sequence in [number for number in paths if number < stored.first_file]:
            files.unlink(paths.pop(sequence))
        return paths

    def _without_unfinished_reset(self, paths: dict[int, Path]) -> dict[int, Path]:
        """Remove the newest file if it starts the log anew behind a snapshot that never became durable; it
        would be lost at the next start, with all that was appended to it."""
        while paths:
            newest = max(paths)
            if self._stored and self._stored.first_file >= newest:
                break
            path = paths[newest]
            fd = files.open_existing(path)
            try:
                header = log_file.read_header(fd, path, newest)
            finally:
                files.close(fd)
            if not header.reset_index:
                break
            files.unlink(paths.pop(newest))
            # Its number is given again; it must not come back beside the file that gets it.
            files.sync_dir(self._directory)
        return paths

    def _check_recovered(self) -> None:
        log, index = self._log, self._log.index
        place = self._snapshot.metadata
        if index.first > place.index + 1 or (place.index > index.last and self._stored):
            raise DamagedLog(
                self._directory,
                None,
                f"the snapshot stands at index {place.index}, but the log has entries {index.first} to"
                f" {index.last}",
            )
        if place.index and index.first <= place.index <= index.last:
            term = index.term(place.index)
            if term != place.term:
                raise DamagedLog(
                    self._directory, None, f"entry {place.index} has term {term}, its snapshot {place.term}"
                )
        index.drop_before(place.index + 1)
        state = _raised(log.hard_state, self._snapshot)
        if state.commit > index.last:
            raise StorageError(
                self._directory,
                None,
                f"the commit index on disk, {state.commit}, lies beyond the last entry on disk, {index.last}",
                "Entries that were once durable are gone: remove this node and add it again under a new id.",
            )
        self._hard_state = state

    # --- what the core asks (raft.Storage) -----------------------------------------------------

    def initial_state(self) -> tuple[HardState, ConfState]:
        """The hard state, and the configuration as of the snapshot."""
        return self._hard_state, self._snapshot.metadata.conf_state

    def first_index(self) -> int:
        """Index of the oldest entry kept, or of the next one when there is none."""
        return self._snapshot.metadata.index + 1

    def last_index(self) -> int:
        """Index of the newest entry; the snapshot's when there is none."""
        return self._log.index.last

    def term(self, index: int) -> int:
        """The term of the entry at `index`, or of the snapshot's. ErrCompacted, ErrUnavailable outside."""
        live = self._log.index
        if index > live.last:
            raise ErrUnavailable(f"entry {index}, last is {live.last}")
        if index >= live.first:
            return live.term(index)
        place = self._snapshot.metadata
        if index == place.index:
            return place.term
        raise ErrCompacted(f"entry {index}, first is {live.first}")

    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        """Entries [lo, hi), as many as fit `max_size` bytes but at least one; from memory when recent.

        ErrCompacted, ErrUnavailable outside of what is kept; StorageError when they cannot be read.
        """
        live = self._log.index
        if lo < live.first:
            raise ErrCompacted(f"entry {lo}, first is {live.first}")
        if hi > live.last + 1 or lo > live.last:
            raise ErrUnavailable(f"entries [{lo}, {hi}), last is {live.last}")
        cache = self._cache
        cached_from = cache.first if cache.entries else live.last + 1
        if lo >= cached_from:
            return limit_size(cache.entries[lo - cached_from : hi - cached_from], max_size)
        found = self._read(lo, min(hi, cached_from), max_size)
        if hi > cached_from and found[-1].index == cached_from - 1:
            found += cache.entries[: hi - cached_from]
        return limit_size(found, max_size)

    def snapshot(self) -> Snapshot:
        """The snapshot just before first_index (index 0 when there is none)."""
        return self._snapshot

    def _read(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        try:
            return self._log.read(lo, hi, max(max_size, 1))
        except msgspec.DecodeError as error:
            raise DamagedLog(self._directory, None, f"entry {lo} cannot be decoded: {error}") from error

    # --- what the worker writes ----------------------------------------------------------------

    @property
    def hard_state(self) -> HardState:
        """The newest hard state given to append."""
        return self._hard_state

    def append(self, hard_state: HardState | None, entries: list[Entry], *, must_sync: bool = True) -> None:
        """Store one Ready's entries and hard state (None: unchanged) as a batch: one write and one sync.

        Entries replace all that stand at and behind their first index. Without `must_sync` a change of the
        commit index alone is written but not synced. StorageError when it fails, and at every later call.
        """
        if self._failed is not None:
            raise self._failed
        state = self._hard_state
        if hard_state is not None and hard_state != state:
            must_sync = must_sync or hard_state.term != state.term or hard_state.vote != state.vote
            state = hard_state
        elif not entries:
            return
        if entries:
            entries = self._fitting(entries)
            must_sync = True
        last = entries[-1].index if entries else self._log.index.last
        if state.commit > last:
            raise InvariantViolation(f"hard state commits {state.commit}, the log ends at {last}")
        started_ns = time.monotonic_ns()
        try:
            self._log.append(state, entries, must_sync)
        except OSError as error:
            self._failed = failed_call("write to the entry log", self._directory, error)
            raise self._failed from error
        if must_sync:
            self._count_sync(time.monotonic_ns() - started_ns)
        if entries:
            self._cache.extend(entries)
        self._hard_state = state

    def persist(self, hard_state: HardState, entries: list[Entry], snapshot: Snapshot | None) -> None:
        """All that one Ready asks for, synced: the snapshot, then a batch with the entries behind it. Raises
        StorageError."""
        if snapshot is not None:
            # What is committed behind it goes with the entries.
            commit = min(hard_state.commit, snapshot.metadata.index)
            self.install_snapshot(snapshot, HardState(hard_state.term, hard_state.vote, commit))
        self.append(hard_state, entries)

    def bootstrap(self, snapshot: Snapshot) -> None:
        """The starting point of a node of the initial cluster: `snapshot` and an empty log behind it."""
        if not self.is_empty:
            raise InvariantViolation(f"bootstrap at {snapshot.metadata.index} of a store that is not empty")
        self.install_snapshot(snapshot)

    def install_snapshot(self, snapshot: Snapshot, hard_state: HardState | None = None) -> None:
        """Replace everything by `snapshot` and an empty log behind it, durably; all or nothing in a crash.

        `hard_state` (that of the same Ready; None: unchanged) goes with it, its term and commit raised to the
        snapshot's. ErrSnapOutOfDate when the snapshot is no newer than the one that is there.
        """
        self._check_newer(snapshot)
        state = _raised(hard_state or self._hard_state, snapshot)
        index = snapshot.metadata.index
        if state.commit > index:
            raise InvariantViolation(f"hard state commits {state.commit}, the snapshot ends at {index}")
        with self._all_or_failed("install a snapshot"):
            header = self._log.prepare_reset(index + 1, state)
            self._stored = snapshots.write_snapshot(self._directory, snapshot, header.sequence)
            self._log.start_anew(header)
            self._cache.clear()
            self._snapshot = snapshot
            self._hard_state = state
            self._remove_superfluous()

    def compact(self, snapshot: Snapshot) -> None:
        """Store `snapshot`, which must stand at a committed entry, and drop the entries up to there.

        Files are removed when all in them is dropped. ErrSnapOutOfDate as above.
        """
        self._check_newer(snapshot)
        place = snapshot.metadata
        if place.index > self._hard_state.commit or place.term != self.term(place.index):
            raise InvariantViolation(
                f"compaction at {place.index} of term {place.term}, commit is {self._hard_state.commit}"
            )
        with self._all_or_failed("compact the entry log"):
            self._log.sync()
            first_file = self._log.first_file_for(place.index + 1)
            self._stored = snapshots.write_snapshot(self._directory, snapshot, first_file)
            self._snapshot = snapshot
            self._log.index.drop_before(place.index + 1)
            self._cache.drop_before(place.index + 1)
            self._remove_superfluous()

    def close(self) -> None:
        """Make everything durable (unless a write failed before) and close the files."""
        if self._failed is None:
            with self._all_or_failed("sync the entry log"):
                self._log.sync()
        self._log.close()

    def _fitting(self, entries: list[Entry]) -> list[Entry]:
        """Without those that the snapshot covers; checked against what is there."""
        first, count = entries[0].index, len(entries)
        live = self._log.index
        if first < live.first:
            entries = entries[live.first - first :]
            if not entries:
                raise InvariantViolation(
                    f"entries up to {first + count - 1} are compacted, first is {live.first}"
                )
            first, count = entries[0].index, len(entries)
        if first > live.last + 1:
            raise InvariantViolation(f"entries from {first} leave a gap behind {live.last}")
        if first <= self._hard_state.commit:
            raise InvariantViolation(
                f"entries from {first} would replace committed ones up to {self._hard_state.commit}"
            )
        if entries[-1].index != first + count - 1:
            raise InvariantViolation(f"{count} entries from {first} end at {entries[-1].index}")
        return entries

    def _check_newer(self, snapshot: Snapshot) -> None:
        if self._failed is not None:
            raise self._failed
        index, have = snapshot.metadata.index, self._snapshot.metadata.index
        if index <= have:
            raise ErrSnapOutOfDate(f"{index}, have {have}")

    def _remove_superfluous(self) -> None:
        """Remove what the newest snapshot made superfluous; after a crash, the next start does it."""
        stored = self._stored
        if stored:
            self._log.drop_files_before(stored.first_file)
            snapshots.remove_others(self._directory, stored.path)

    @contextmanager
    def _all_or_failed(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = failed_call(doing, self._directory, error)
            raise self._failed from error
        except BaseException:
            self._failed = StorageError(self._directory, None, f"a change was interrupted: could not {doing}")
            raise

    def _count_sync(self, took_ns: int) -> None:
        self.sync_count += 1
        self.sync_ns_total += took_ns
        self.sync_ns_max = max(self.sync_ns_max, took_ns)

    # --- for the worker's bookkeeping ----------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """True while nothing was ever stored: no snapshot, no entries, no hard state."""
        return self._stored is None and self._log.index.last == 0 and self._hard_state == HardState()

    @property
    def failure(self) -> StorageError | None:
        """The error that ended this Store's part, if one did."""
        return self._failed

    @property
    def log_bytes(self) -> int:
        """Bytes of the log files that are used: headers and records, without what is preallocated."""
        return self._log.used_bytes

    @property
    def preallocated_bytes(self) -> int:
        """Bytes that the newest log file takes on disk beyond those."""
        return self._log.preallocated_bytes

    def compaction_point(self, keep_entries: int, keep_bytes: int, upto: int) -> int:
        """The largest index that can go, or 0: behind it, up to `upto`, at least `keep_entries` entries and
        `keep_bytes` log bytes stay."""
        live = self._log.index
        upto = min(upto, live.last)
        most = upto - keep_entries
        if most < live.first or (keep_bytes > 0 and self.log_bytes < keep_bytes):
            return 0
        if keep_bytes > 0:
            most = min(most, self._log.last_index_within(self._log.total_before(upto + 1) - keep_bytes))
        return most if most >= live.first else 0

    def conf_change_entries(self, lo: int, hi: int) -> list[Entry]:
        """The membership changes among entries [lo, hi), which must be kept; reads only records with one."""
        live = self._log.index
        found: list[Entry] = []
        for first in live.conf_records(lo, hi):
            for entry in self._read(max(first, live.first), min(hi, live.last + 1), 1):
                if entry.type != EntryType.EntryNormal and lo <= entry.index < hi:
                    found.append(entry)
        return found


def _raised(state: HardState, snapshot: Snapshot) -> HardState:
    """`state` with term and commit at least the snapshot's; a vote belongs to its term."""
    place = snapshot.metadata
    commit = max(state.commit, place.index)
    if place.term > state.term:
        return HardState(place.term, 0, commit)
    return HardState(state.term, state.vote, commit)
