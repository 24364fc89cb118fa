"""Torn tails are cut, other damage stops the start with file and offset."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from pgraft.raft.types import ConfState, Entry, HardState, Snapshot, SnapshotMetadata
from pgraft.storage import (
    DamagedLog,
    Peers,
    StorageError,
    Store,
    create_identity,
    files,
    load_identity,
    load_peers,
    open_store,
    save_peers,
)
from pgraft.storage.format import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from tests.support.storage_model import Model, state_of
from tests.unit.storage.test_storage_identity import IDENTITY

SEGMENT_BYTES = 64 * 1024


def opened(data_dir: Path, segment_bytes: int = SEGMENT_BYTES) -> Store:
    """The Store of a data directory."""
    return open_store(data_dir, segment_bytes=segment_bytes)


def fill(data_dir: Path, batches: int, segment_bytes: int = SEGMENT_BYTES) -> list[tuple[int, int]]:
    """Write batches of one entry each; where each begins and ends in its file."""
    it = opened(data_dir, segment_bytes)
    places = []
    for index in range(1, batches + 1):
        start = it._log._end or SEGMENT_HEADER_BYTES
        it.append(HardState(1, 1, index - 1), [Entry(1, index, 0, b"%d " % index * 20)])
        places.append((start, it._log._end))
    it.close()
    return places


def log_files(data_dir: Path) -> list[Path]:
    """The log files, oldest first."""
    return sorted((data_dir / "raft").glob("log-*"))


def flip(path: Path, offset: int, mask: int = 1) -> None:
    """Change bits of one byte."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def test_every_flipped_byte_is_found(data_dir: Path) -> None:
    places = fill(data_dir, 12)
    (path,) = log_files(data_dir)
    whole = path.read_bytes()
    for offset in range(SEGMENT_HEADER_BYTES, places[-1][1], 3):
        flip(path, offset, 1 << offset % 8)
        batch = next(i for i, (start, end) in enumerate(places) if start <= offset < end)
        if batch == len(places) - 1:
            it = opened(data_dir)
            assert it.last_index() == len(places) - 1
            assert it.recovered.cut_bytes > 0
            it.close()
        else:
            with pytest.raises(DamagedLog, match=f"batch {batch + 1} is damaged") as caught:
                opened(data_dir)
            assert caught.value.subject == path
            assert caught.value.offset == places[batch][0]
            assert "pgraft_remove_node" in caught.value.hint
        path.write_bytes(whole)


def test_damage_in_the_header_of_a_file(data_dir: Path) -> None:
    fill(data_dir, 3)
    (path,) = log_files(data_dir)
    whole = path.read_bytes()
    for offset in range(0, 84, 4):
        flip(path, offset)
        with pytest.raises(DamagedLog) as caught:
            opened(data_dir)
        assert caught.value.subject == path
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["log-*", "snap-*", "identity", "peers"])
def test_another_format_version_is_no_damage(data_dir: Path, kind: str) -> None:
    """Whoever goes back to an older pgraft must not be told to empty the directory."""
    create_identity(data_dir, IDENTITY)
    save_peers(data_dir, Peers({1: 2}))
    it = opened(data_dir)
    it.bootstrap(Snapshot(data=b"", metadata=SnapshotMetadata(ConfState((1,)), 1, 1)))
    it.close()
    (path,) = [found for found in data_dir.rglob(kind) if found.is_file()]
    data = path.read_bytes()
    # The rest may be laid out in another way, the checksum's place too.
    is_binary = data[:6] == b"PGRAFT"
    path.write_bytes(data[:8] + b"\x09\0\0\0" + data[11:-1] if is_binary else data.replace(b" 1 ", b" 9 ", 1))
    with pytest.raises(DamagedLog, match="format version 9, this pgraft reads 1") as caught:
        (load_identity if kind == "identity" else load_peers if kind == "peers" else opened)(data_dir)
    assert caught.value.subject == path
    assert "start that version; nothing is lost" in caught.value.hint


def test_damage_at_the_end_of_an_older_file(data_dir: Path) -> None:
    fill(data_dir, 60, 4096)
    oldest, second, *_ = log_files(data_dir)
    last_byte = len(oldest.read_bytes().rstrip(b"\0")) - RECORD_HEADER_BYTES - 1
    whole = oldest.read_bytes()
    flip(oldest, last_byte)
    with pytest.raises(DamagedLog, match=r"batch [0-9]+ is damaged or missing") as caught:
        opened(data_dir, 4096)
    assert caught.value.subject == oldest
    assert caught.value.offset is not None
    assert 0 < caught.value.offset <= last_byte
    oldest.write_bytes(whole)
    second.rename(second.with_suffix(".away"))
    with pytest.raises(DamagedLog, match="log file number 2, which comes before it, is missing"):
        opened(data_dir, 4096)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_newest_file_that_is_gone_is_missed(data_dir: Path, lost: int) -> None:
    fill(data_dir, 120, 4096)
    paths = log_files(data_dir)
    for path in paths[-lost:]:
        path.unlink()
    last = paths[-lost - 1]
    missing = f"log file number {len(paths) - lost + 1}, which comes after it, is missing"
    with pytest.raises(DamagedLog, match=missing) as caught:
        opened(data_dir, 4096)
    assert caught.value.subject == last
    # What says so also says that every batch before it was durable.
    flip(last, len(last.read_bytes().rstrip(b"\0")) - RECORD_HEADER_BYTES - 1)
    with pytest.raises(DamagedLog, match=r"batch [0-9]+ is damaged") as caught:
        opened(data_dir, 4096)
    assert caught.value.subject == last


def test_a_log_without_seals_is_read(data_dir: Path) -> None:
    """As an earlier pgraft wrote it, or when power failed right before."""
    fill(data_dir, 120, 4096)
    it = opened(data_dir, 4096)
    state = state_of(it)
    it.close()
    for path in log_files(data_dir)[:-1]:
        data = path.read_bytes()
        path.write_bytes(data[: it._log._files[int(path.name[4:20], 16)].end].ljust(len(data), b"\0"))
        assert path.read_bytes() != data
    it = opened(data_dir, 4096)
    assert state_of(it) == state
    it.close()


def test_torn_tail_is_cut_and_cut_again(data_dir: Path) -> None:
    places = fill(data_dir, 10)
    (path,) = log_files(data_dir)
    whole = path.read_bytes()
    start, end = places[-1]
    for keep in range(start + 1, end):
        path.write_bytes(whole[:keep].ljust(len(whole), b"\0"))
        for expected in (keep - start, 0):
            it = opened(data_dir)
            assert it.last_index() == 9
            assert it.recovered.cut_bytes == len(whole[start:keep].rstrip(b"\0")) * bool(expected)
            it.close()
        assert path.read_bytes()[start:] == bytes(len(whole) - start)
    # Behind the cut, life goes on; then it is torn again.
    it = opened(data_dir)
    it.append(HardState(2, 0, 9), [Entry(2, 10, 0, b"ten")])
    new_end = it._log._end
    it.append(HardState(2, 0, 10), [Entry(2, 11, 0, b"eleven" * 50)])
    it.close()
    flip(path, new_end + 100)
    it = opened(data_dir)
    assert it.last_index() == 10
    assert it.hard_state == HardState(2, 0, 9)
    it.append(None, [Entry(2, 11, 0, b"again")])
    state = state_of(it)
    it.close()
    it = opened(data_dir)
    assert state_of(it) == state
    it.close()


def test_a_lost_unsynced_commit_with_a_later_batch_is_a_torn_tail(data_dir: Path) -> None:
    it = opened(data_dir)
    it.append(HardState(1, 1, 0), [Entry(1, 1, 0, b"one")])
    start = it._log._end
    it.append(HardState(1, 1, 1), [], must_sync=False)
    lost_end = it._log._end
    it.append(None, [Entry(1, 2, 0, b"two")])
    it.close()
    (path,) = log_files(data_dir)
    whole = path.read_bytes()
    # The disk wrote the later batch but not the earlier one, and the sync of both never returned.
    path.write_bytes(whole[:start] + bytes(lost_end - start) + whole[lost_end:])
    it = opened(data_dir)
    assert it.last_index() == 1
    assert it.hard_state == HardState(1, 1, 0)
    # The same place, the same batch numbers: nothing of the old tail may count again.
    it.append(HardState(1, 1, 1), [], must_sync=False)
    it.close()
    it = opened(data_dir)
    assert (it.last_index(), it.recovered.cut_bytes) == (1, 0)
    it.append(None, [Entry(1, 2, 0, b"other")])
    it.close()
    assert lost_end - start == RECORD_HEADER_BYTES


def test_what_users_store_is_never_taken_for_a_record(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    fill(tmp_path / "other", 50)
    (other,) = log_files(tmp_path / "other")
    records = other.read_bytes().rstrip(b"\0")[SEGMENT_HEADER_BYTES:]
    fill(data_dir, 5)
    it = opened(data_dir)
    start = it._log._end
    it.append(None, [Entry(1, 6, 0, records)])
    it.close()
    (path,) = log_files(data_dir)
    flip(path, start + 60)
    it = opened(data_dir)
    assert it.last_index() == 5, "batches 7 to 50 stand in the data of the torn one, and mean nothing"
    assert it.recovered.cut_bytes > len(records)
    it.close()


def test_a_damaged_snapshot_is_refused(data_dir: Path) -> None:
    it = opened(data_dir)
    model = Model(random.Random(1))
    while not model.snapshot.metadata.index:
        model.step(it)
    it.close()
    (path,) = (data_dir / "raft").glob("snap-*")
    whole = path.read_bytes()
    for offset in range(0, len(whole), 1 + len(whole) // 200):
        flip(path, offset)
        with pytest.raises(DamagedLog, match="the snapshot cannot be used") as caught:
            opened(data_dir)
        assert caught.value.subject == path
        path.write_bytes(whole)
    path.write_bytes(whole[:-1])
    with pytest.raises(DamagedLog):
        opened(data_dir)
    path.write_bytes(whole)
    for log in log_files(data_dir):
        log.unlink()
    with pytest.raises(DamagedLog, match="which the snapshot needs, is missing"):
        opened(data_dir)


def test_damage_that_is_met_while_reading(data_dir: Path) -> None:
    places = fill(data_dir, 20)
    it = opened(data_dir)
    (path,) = log_files(data_dir)
    flip(path, places[7][0] + RECORD_HEADER_BYTES + 5)
    with pytest.raises(DamagedLog) as caught:
        it.entries(8, 9, 1000)
    assert (caught.value.subject, caught.value.offset) == (path, places[7][0])
    it.close()


@pytest.mark.parametrize("call", ["read_at", "read_into"])
def test_a_read_that_fails_at_start_is_named_with_file_and_offset(
    data_dir: Path, monkeypatch: Any, call: str
) -> None:
    """A bad sector: the header's, one among the records, one behind them."""
    places = fill(data_dir, 60, 4096)
    path = log_files(data_dir)[-1]
    bad = {"read_at": [0, places[-1][1]], "read_into": [places[-1][0]]}[call]
    real = getattr(files, call)
    failing = -1

    def reading(fd: int, what: Any, offset: int) -> Any:
        """As the kernel does it: what is before the bad sector, and then nothing but the error."""
        if os.readlink(f"/proc/self/fd/{fd}") != str(path) or offset > failing:
            return real(fd, what, offset)
        if offset == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        length = what if isinstance(what, int) else len(what)
        short = min(length, failing - offset)
        return real(fd, short if isinstance(what, int) else what[:short], offset)

    monkeypatch.setattr(files, call, reading)
    for failing in bad:
        with pytest.raises(StorageError, match="Input/output error") as caught:
            opened(data_dir, 4096)
        assert (caught.value.subject, caught.value.offset) == (path, failing)
        assert "Check the disk" in caught.value.hint
    failing = -1
    opened(data_dir, 4096).close()
