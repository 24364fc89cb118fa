"""The Store: what it promises to the core and to the worker, fault by fault."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgraft.raft.errors import ErrCompacted, ErrSnapOutOfDate, ErrUnavailable, InvariantViolation
from pgraft.raft.types import ConfState, Entry, EntryType, HardState, Snapshot, SnapshotMetadata
from pgraft.storage import StorageError, Store, files, open_store, store
from pgraft.storage.cache import EntryCache
from pgraft.storage.entry_log import WRITE_AHEAD_BYTES
from pgraft.storage.format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from tests.support.storage_model import NO_LIMIT, state_of

SEGMENT_BYTES = 64 * 1024


def opened(data_dir: Path, segment_bytes: int = SEGMENT_BYTES) -> Store:
    """The Store of a data directory."""
    return open_store(data_dir, segment_bytes=segment_bytes)


def snapshot_at(index: int, term: int = 1, data: bytes = b"members") -> Snapshot:
    """A snapshot with three voters."""
    return Snapshot(SnapshotMetadata(ConfState((1, 2, 3)), index, term), data)


def some(first: int, last: int, term: int = 1, data: bytes = b"x" * 100) -> list[Entry]:
    """Entries first..last."""
    return [Entry(term, index, 0, data) for index in range(first, last + 1)]


def test_new_store_is_empty_and_bootstrap_is_durable(data_dir: Path) -> None:
    new = opened(data_dir)
    assert new.is_empty
    assert (new.first_index(), new.last_index(), new.term(0)) == (1, 0, 0)
    new.close()
    new = opened(data_dir)
    assert new.is_empty
    new.bootstrap(snapshot_at(1))
    assert not new.is_empty
    new.close()
    again = opened(data_dir)
    assert not again.is_empty
    assert (again.first_index(), again.last_index()) == (2, 1)
    assert again.snapshot() == snapshot_at(1)
    assert again.initial_state() == (HardState(1, 0, 1), ConfState((1, 2, 3)))
    with pytest.raises(InvariantViolation, match="not empty"):
        again.bootstrap(snapshot_at(5))
    again.close()


def test_term_and_vote_survive_without_entries(data_dir: Path) -> None:
    first = opened(data_dir)
    first.append(HardState(3, 2, 0), [])
    first.close()
    second = opened(data_dir)
    assert second.hard_state == HardState(3, 2, 0)
    assert not second.is_empty
    second.close()


def test_append_is_one_write_and_one_sync_a_batch(data_dir: Path, monkeypatch: Any) -> None:
    it = opened(data_dir)
    it.append(HardState(1, 1, 0), some(1, 1))
    calls: list[str] = []
    for name in ("write_at", "sync_data", "sync_file"):
        monkeypatch.setattr(files, name, recorder(calls, name, getattr(files, name)))
    it.append(None, some(2, 65))
    assert calls == ["write_at", "sync_data"]
    calls.clear()
    it.append(HardState(1, 1, 65), [], must_sync=False)
    assert calls == ["write_at"]
    it.append(HardState(1, 1, 65), [])
    it.append(None, [])
    assert calls == ["write_at"], "nothing new is nothing to write"
    it.append(HardState(2, 1, 65), [], must_sync=False)
    assert calls == ["write_at", "write_at", "sync_data"], "a term is always synced"
    it.close()


def test_zeros_are_written_ahead_once_and_never_past_the_file(data_dir: Path, monkeypatch: Any) -> None:
    segment_bytes = WRITE_AHEAD_BYTES + 20_000
    it = opened(data_dir, segment_bytes)
    writes: list[tuple[int, int]] = []
    real = files.write_at

    def noting(fd: int, data: bytes, offset: int) -> None:
        writes.append((offset, len(data)))
        real(fd, data, offset)

    monkeypatch.setattr(files, "write_at", noting)
    for index in range(1, 481):
        it.append(None, some(index, index, data=b"x" * 200))
    (log,) = (data_dir / "raft").glob("log-*")
    first, second = [(offset, size) for offset, size in writes if size > 1000]
    assert first[1] > WRITE_AHEAD_BYTES
    assert second[0] + second[1] == segment_bytes
    assert max(offset + size for offset, size in writes) == segment_bytes
    assert log.stat().st_size == segment_bytes
    it.close()
    assert opened(data_dir, segment_bytes).recovered.cut_bytes == 0


def recorder(calls: list[str], name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, noting its calls."""

    def call(*args: Any) -> Any:
        calls.append(name)
        return real(*args)

    return call


def test_replaced_suffix_does_not_come_back(data_dir: Path) -> None:
    it = opened(data_dir, 4096)
    it.append(HardState(1, 0, 0), some(1, 10))
    it.append(None, some(11, 40))
    it.append(HardState(2, 0, 4), some(6, 7, term=2))
    for _ in range(3):
        assert it.last_index() == 7
        assert [e.term for e in it.entries(1, 8, NO_LIMIT)] == [1] * 5 + [2] * 2
        assert [it.term(i) for i in range(1, 8)] == [1] * 5 + [2] * 2
        with pytest.raises(ErrUnavailable):
            it.term(8)
        it.close()
        it = opened(data_dir, 4096)
    it.append(HardState(3, 0, 7), some(8, 8, term=3))
    it.close()
    it = opened(data_dir, 4096)
    assert [e.term for e in it.entries(4, 9, NO_LIMIT)] == [1, 1, 2, 2, 3]
    it.close()


def test_errors_outside_of_what_is_kept(data_dir: Path) -> None:
    it = opened(data_dir)
    it.bootstrap(snapshot_at(10))
    it.append(None, some(11, 20))
    assert it.term(10) == 1
    with pytest.raises(ErrCompacted):
        it.term(9)
    with pytest.raises(ErrCompacted):
        it.entries(10, 12, NO_LIMIT)
    with pytest.raises(ErrUnavailable):
        it.entries(15, 22, NO_LIMIT)
    assert [e.index for e in it.entries(12, 21, 1)] == [12]
    assert [e.index for e in it.entries(12, 21, 350)] == [12, 13, 14]
    it.close()


def test_misuse_is_refused_before_anything_is_written(data_dir: Path) -> None:
    it = opened(data_dir)
    it.append(HardState(1, 0, 0), some(1, 10))
    it.append(HardState(1, 0, 5), [])
    before = it.log_bytes
    with pytest.raises(InvariantViolation, match="gap"):
        it.append(None, some(12, 12))
    with pytest.raises(InvariantViolation, match="committed"):
        it.append(None, some(5, 6, term=2))
    with pytest.raises(InvariantViolation, match="end at"):
        it.append(None, [*some(11, 11), *some(13, 13)])
    with pytest.raises(InvariantViolation, match="commits 11"):
        it.append(HardState(1, 0, 11), [])
    with pytest.raises(InvariantViolation, match="compaction"):
        it.compact(snapshot_at(6))
    with pytest.raises(InvariantViolation, match="entry 12 of 17000010 bytes"):
        it.append(None, [*some(11, 11), *some(12, 12, data=bytes(17_000_000))])
    assert it.log_bytes == before
    it.append(None, some(11, 11))
    it.close()


def test_old_entries_are_read_from_disk_and_new_ones_from_memory(data_dir: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(store, "EntryCache", lambda: EntryCache(20_000))
    it = opened(data_dir, 16 * 1024)
    for first in range(1, 1000, 3):
        entries = [Entry(1 + i // 100, i, 0, b"%d" % i * 10) for i in range(first, first + 3)]
        it.append(None, entries)
    assert it.recovered.files == 0
    whole = it.entries(1, it.last_index() + 1, NO_LIMIT)
    assert [e.data for e in whole] == [b"%d" % i * 10 for i in range(1, it.last_index() + 1)]
    for low in range(1, it.last_index(), 37):
        assert it.entries(low, low + 1, NO_LIMIT) == whole[low - 1 : low]
        part = it.entries(low, it.last_index() + 1, 3000)
        assert part == whole[low - 1 : low - 1 + len(part)]
    monkeypatch.setattr(os, "pread", None)
    last = it.last_index()
    assert it.entries(last - 50, last + 1, NO_LIMIT) == whole[-51:]
    assert it.term(1) == 1, "terms never need the disk"
    it.close()


def test_an_entry_larger_than_a_file(data_dir: Path) -> None:
    it = opened(data_dir, 4096)
    large = os.urandom(3_000_000)
    it.append(None, [*some(1, 1), Entry(1, 2, 0, large), *some(3, 3)])
    it.append(None, some(4, 4))
    it.close()
    it = opened(data_dir, 4096)
    assert it.entries(2, 3, 1) == [Entry(1, 2, 0, large)]
    assert len(it.entries(1, 5, NO_LIMIT)) == 4
    it.close()


def test_compaction_drops_whole_files_and_keeps_the_rest(data_dir: Path) -> None:
    it = opened(data_dir, 4096)
    for index in range(1, 201):
        it.append(HardState(1 + index // 50, 1, index - 1), some(index, index, term=1 + index // 50))
    names = len(list((data_dir / "raft").glob("log-*")))
    size = it.log_bytes
    snapshot = snapshot_at(150, term=4)
    it.compact(snapshot)
    for _ in range(2):
        assert (it.first_index(), it.last_index()) == (151, 200)
        assert it.snapshot() == snapshot
        assert it.log_bytes < size / 2
        assert len(list((data_dir / "raft").glob("log-*"))) < names / 2
        assert len(list((data_dir / "raft").glob("snap-*"))) == 1
        assert [e.index for e in it.entries(151, 201, NO_LIMIT)] == list(range(151, 201))
        with pytest.raises(ErrSnapOutOfDate):
            it.compact(snapshot_at(150, term=4))
        it.close()
        it = opened(data_dir, 4096)
    it.append(HardState(5, 1, 200), [])
    it.compact(snapshot_at(200, term=5))
    assert (it.first_index(), it.last_index()) == (201, 200)
    it.append(None, some(201, 201, term=5))
    state = state_of(it)
    it.close()
    it = opened(data_dir, 4096)
    assert state_of(it) == state
    it.close()


def test_compaction_point_keeps_until_both_limits_are_exceeded(data_dir: Path) -> None:
    it = opened(data_dir, 16 * 1024)
    for index in range(1, 1001):
        it.append(None, some(index, index))
    it.append(HardState(1, 0, 1000), [])
    assert it.compaction_point(100, 0, 1000) == 900
    assert it.compaction_point(100, 0, 950) == 850
    assert it.compaction_point(1000, 0, 1000) == 0
    assert it.compaction_point(0, it.log_bytes, 1000) == 0
    record = RECORD_HEADER_BYTES + len(some(1, 1)[0].data) + 8
    for keep in (record * 10, record * 333, record * 700):
        point = it.compaction_point(10, keep, 1000)
        end = it._log.total_before(1001)
        assert end - it._log.total_before(point + 1) >= keep
        assert end - it._log.total_before(point + 2) < keep + SEGMENT_HEADER_BYTES * 2
        assert it.compaction_point(900, keep, 1000) == min(point, 100)
    it.compact(snapshot_at(500))
    assert it.compaction_point(100, 0, 1000) == 900
    assert it.compaction_point(500, 0, 1000) == 0
    it.close()


def test_a_new_file_whose_first_batch_never_came_can_be_the_only_one(
    data_dir: Path, monkeypatch: Any
) -> None:
    """That batch was to replace the last entry, which stayed instead, was committed and compacted."""
    it = opened(data_dir, 4096)
    append_many(it, 1, 16)
    real = files.write_at

    def fail(fd: int, data: bytes, offset: int) -> None:
        if offset == SEGMENT_HEADER_BYTES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd, data, offset)

    monkeypatch.setattr(files, "write_at", fail)
    with pytest.raises(StorageError):
        it.append(HardState(2, 0, 0), some(16, 16, term=2, data=b"x" * 4000))
    monkeypatch.undo()
    it.close()
    it = opened(data_dir, 4096)
    assert (it.recovered.files, it.last_index(), it.term(16)) == (2, 16, 1)
    it.append(HardState(3, 0, 16), [])
    it.compact(snapshot_at(16))
    state = state_of(it)
    it.close()
    it = opened(data_dir, 4096)
    assert it.recovered.files == 1
    assert state_of(it) == state
    it.close()


def test_a_file_that_cannot_be_opened_is_named_whatever_is_asked(data_dir: Path, monkeypatch: Any) -> None:
    it = opened(data_dir, 4096)
    append_many(it, 1, 100)
    it.append(HardState(1, 0, 100), [])
    it.close()
    it = opened(data_dir, 4096)
    keep = it.log_bytes // 2

    def fail(path: Path) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(files, "open_to_read", fail)
    for ask in (lambda: it.compaction_point(10, keep, 100), lambda: it.entries(1, 2, NO_LIMIT)):
        with pytest.raises(StorageError, match="Too many open files") as caught:
            ask()
        assert caught.value.subject.name.startswith("log-")
    monkeypatch.undo()
    assert it.compaction_point(10, keep, 100)
    assert it.entries(1, 2, NO_LIMIT)
    it.close()


def test_install_snapshot_replaces_everything(data_dir: Path) -> None:
    it = opened(data_dir)
    it.append(HardState(2, 1, 3), some(1, 10, term=2))
    with pytest.raises(InvariantViolation, match="commits 3"):
        it.install_snapshot(snapshot_at(2, term=2))
    it.install_snapshot(snapshot_at(7, term=3), HardState(4, 0, 7))
    for _ in range(2):
        assert (it.first_index(), it.last_index()) == (8, 7)
        assert it.initial_state() == (HardState(4, 0, 7), ConfState((1, 2, 3)))
        with pytest.raises(ErrSnapOutOfDate):
            it.install_snapshot(snapshot_at(7, term=3))
        it.close()
        it = opened(data_dir)
    it.append(None, some(8, 9, term=4))
    assert len(it.entries(8, 10, NO_LIMIT)) == 2
    it.close()


def test_an_installed_snapshot_raises_term_and_commit_but_keeps_no_foreign_vote(data_dir: Path) -> None:
    it = opened(data_dir)
    it.append(HardState(2, 3, 0), [])
    it.install_snapshot(snapshot_at(7, term=5))
    assert it.hard_state == HardState(5, 0, 7)
    it.close()
    it = opened(data_dir)
    assert it.hard_state == HardState(5, 0, 7)
    it.close()


def test_membership_changes_are_found_without_reading_everything(data_dir: Path) -> None:
    it = opened(data_dir, 8192)
    changes = {5, 6, 77, 300}
    for first in range(1, 401, 4):
        it.append(
            None,
            [
                Entry(
                    1,
                    i,
                    int(EntryType.EntryConfChangeV2 if i in changes else EntryType.EntryNormal),
                    b"c" * 50,
                )
                for i in range(first, first + 4)
            ],
        )
    for _ in range(2):
        assert [e.index for e in it.conf_change_entries(1, 401)] == [5, 6, 77, 300]
        assert [e.index for e in it.conf_change_entries(6, 300)] == [6, 77]
        assert it.conf_change_entries(78, 300) == []
        it.close()
        it = opened(data_dir, 8192)
    it.append(HardState(2, 0, 70), some(77, 78, term=2))
    assert [e.index for e in it.conf_change_entries(1, 79)] == [5, 6]
    it.compact(snapshot_at(5))
    assert [e.index for e in it.conf_change_entries(6, 79)] == [6]
    it.close()


@pytest.mark.parametrize("call", ["write_at", "sync_data"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_after_a_failed_write_or_sync_nothing_more_is_written(
    data_dir: Path, monkeypatch: Any, call: str, code: int
) -> None:
    it = opened(data_dir)
    it.append(HardState(1, 1, 0), some(1, 3))
    kept = getattr(files, call)

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, call, fail)
    with pytest.raises(StorageError, match=os.strerror(code)) as caught:
        it.append(None, some(4, 4))
    assert ("Free space" if code == errno.ENOSPC else "kernel's log") in caught.value.hint
    monkeypatch.setattr(files, call, kept)
    for change in (
        lambda: it.append(None, some(4, 4)),
        lambda: it.append(HardState(2, 0, 0), []),
        lambda: it.compact(snapshot_at(2)),
        lambda: it.install_snapshot(snapshot_at(9)),
    ):
        with pytest.raises(StorageError):
            change()
    assert it.failure is not None
    assert it.last_index() == 3
    assert len(it.entries(1, 4, NO_LIMIT)) == 3
    it.close()
    it = opened(data_dir)
    assert it.last_index() in (3, 4), "what the failed call left is there or not, but nothing else"
    it.close()


@pytest.mark.parametrize("call", ["allocate", "rename", "sync_dir", "sync_file"])
def test_a_file_that_cannot_be_made_ends_it_too(data_dir: Path, monkeypatch: Any, call: str) -> None:
    it = opened(data_dir, 4096)
    it.append(None, some(1, 3))
    real = getattr(files, call)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, call, fail)
    with pytest.raises(StorageError, match="No space left"):
        append_many(it, 4, 100)
    last = it.last_index()
    monkeypatch.setattr(files, call, real)
    with pytest.raises(StorageError):
        it.append(None, some(last + 1, last + 1))
    it.close()
    it = opened(data_dir, 4096)
    assert it.last_index() == last
    it.append(None, some(last + 1, last + 1))
    it.close()


@pytest.mark.parametrize("change", ["compact", "install_snapshot"])
@pytest.mark.parametrize("call", ["write_at", "sync_file", "rename", "unlink"])
def test_a_snapshot_that_cannot_be_stored_ends_it_too(
    data_dir: Path, monkeypatch: Any, change: str, call: str
) -> None:
    it = opened(data_dir)
    it.bootstrap(snapshot_at(1))
    it.append(HardState(1, 0, 5), some(2, 9))

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, call, fail)
    with pytest.raises(StorageError, match="Input/output error"):
        getattr(it, change)(snapshot_at(5 if change == "compact" else 20))
    monkeypatch.undo()
    with pytest.raises(StorageError):
        it.append(None, some(it.last_index() + 1, it.last_index() + 1))
    it.close()
    it = opened(data_dir)
    assert (it.first_index(), it.last_index()) in ((2, 9), (6, 9), (21, 20))
    it.close()


def append_many(it: Store, first: int, last: int) -> None:
    """Entries first..last, a batch each."""
    for index in range(first, last + 1):
        it.append(None, some(index, index))


def test_commit_beyond_the_log_is_refused_at_start(data_dir: Path) -> None:
    it = opened(data_dir)
    it.append(None, some(1, 5))
    # Past the Store's own check: a batch that says more than the log holds.
    it._log.append(HardState(1, 0, 9), [], True)
    it.close()
    with pytest.raises(StorageError, match=r"commit index on disk, 9, lies beyond the last entry on disk, 5"):
        opened(data_dir)


def test_files_are_for_the_owner_only_and_preallocated(data_dir: Path) -> None:
    it = opened(data_dir)
    it.bootstrap(snapshot_at(1))
    it.append(None, some(2, 3))
    directory = data_dir / "raft"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    (log,) = directory.glob("log-*")
    assert log.stat().st_size == SEGMENT_BYTES
    assert it.log_bytes + it.preallocated_bytes == SEGMENT_BYTES
    assert it.log_bytes < 1000
    it.close()
    assert log.stat().st_size == SEGMENT_BYTES


def test_leftovers_are_removed_and_descriptors_given_back(data_dir: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    it = opened(data_dir, 4096)
    for index in range(1, 100):
        it.append(HardState(1, 0, index - 1), some(index, index))
    it.entries(1, 90, NO_LIMIT)
    it.compact(snapshot_at(50))
    it.entries(51, 90, NO_LIMIT)
    it.close()
    (data_dir / "raft" / "log-0000000000000099-0000000000000001.pgl.tmp").write_bytes(b"half")
    (data_dir / "raft" / "snap-0000000000000003-0000000000000001.pgs.tmp").write_bytes(b"half")
    it = opened(data_dir, 4096)
    assert not list((data_dir / "raft").glob("*.tmp"))
    it.close()
    assert len(os.listdir("/proc/self/fd")) == before
