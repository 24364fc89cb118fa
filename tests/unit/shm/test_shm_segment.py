"""Creating, attaching, retiring: what is checked, and what stays behind."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pgraft.shm import layout
from pgraft.shm import segment as segments
from pgraft.shm.place import SHM_DIR, SegmentError, new_name, unlink
from pgraft.shm.segment import Segment, attach, create
from tests.support.shm_peer import ROOT, made_segment, peer, unique_name


def test_a_new_segment_is_private_whole_and_reserved(segment: Segment) -> None:
    found = os.stat(SHM_DIR / segment.name)
    assert found.st_mode & 0o777 == 0o600
    assert found.st_size >= segment.header["segment_bytes"]
    assert found.st_blocks * 512 >= segment.header["segment_bytes"], "its pages are not reserved"
    header = segment.header
    assert header["magic"] == layout.MAGIC
    assert header["layout_version"] == layout.LAYOUT_VERSION
    assert header["slot_count"] == 4


def test_regions_follow_one_another_without_overlap(segment: Segment) -> None:
    header = segment.header
    ends = [
        (0, layout.STATUS_OFFSET),
        (layout.STATUS_OFFSET, 2 * layout.STATUS_COPY_BYTES),
        (header["members_offset"], 2 * layout.MEMBERS_COPY_BYTES),
        (header["command_offset"], layout.COMMAND_RING_OFFSET + header["command_ring_bytes"]),
        (header["slots_offset"], header["slot_count"] * layout.SLOT_BYTES),
        (header["inbound_offset"], header["inbound_bytes"]),
        (header["outbound_offset"], header["outbound_bytes"]),
    ]
    for (start, size), (following, _) in itertools.pairwise(ends):
        assert start + size <= following
        assert following % layout.PAGE_BYTES == 0


def test_an_odd_ring_size_keeps_the_slots_aligned() -> None:
    with made_segment(unique_name("odd"), command_ring_bytes=17 * 1024) as segment:
        assert segment.header["slots_offset"] % layout.PAGE_BYTES == 0
        attach(segment.name).close()


def test_attaching_sees_what_the_creator_writes(segment: Segment) -> None:
    other = attach(segment.name)
    segment.worker["lease_end_ns"] = 5
    segment.set_text("cluster_id", "żółw")
    assert other.worker["lease_end_ns"] == 5
    assert other.text("cluster_id") == "żółw"
    other.close()


def test_a_text_is_cut_between_characters(segment: Segment) -> None:
    room = layout.WORKER_TEXTS["error"][1]
    segment.set_worker_text("error", "ż" * room)
    assert segment.worker_text("error") == "ż" * (room // 2)


def test_a_reader_cannot_write(segment: Segment) -> None:
    other = attach(segment.name, readonly=True)
    segment.worker["state"] = 3
    assert other.worker["state"] == 3
    with pytest.raises(TypeError):
        other.worker["state"] = 1
    other.close()


def test_retiring_shows_to_all_and_ends_the_lease(segment: Segment) -> None:
    other = attach(segment.name)
    segment.worker["lease_end_ns"] = 2**63
    segment.retire()
    assert other.header["retired"] == 1
    assert other.worker["lease_end_ns"] == 0
    other.close()


def test_a_name_is_taken_once(segment: Segment) -> None:
    with pytest.raises(SegmentError, match="exists already"):
        create(segment.name, command_ring_bytes=64 * 1024, slot_count=4)
    assert (SHM_DIR / segment.name).exists()


@pytest.mark.parametrize(
    ("word", "value", "says"),
    [
        ("magic", 0, "no pgraft header"),
        ("layout_version", 99, "layout version 99"),
        ("segment_bytes", 2**40, "shorter than its header says"),
        ("slots_offset", 2**50, "does not fit"),
        ("slot_count", 0, "does not fit"),
        ("inbound_bytes", 2**63, "does not fit"),
        ("command_ring_bytes", 8, "out of step"),
        ("members_offset", 12289, "does not fit"),
    ],
)
def test_what_is_not_ours_is_not_attached(segment: Segment, word: str, value: int, says: str) -> None:
    segment.header[word] = value
    for readonly in (False, True):
        with pytest.raises(SegmentError, match=says):
            attach(segment.name, readonly=readonly)


def test_nothing_too_short_and_something_foreign() -> None:
    name = unique_name("foreign")
    with pytest.raises(SegmentError, match="no segment"):
        attach(name)
    path = SHM_DIR / name
    try:
        for content, says in ((b"x" * 100, "only 100 bytes"), (b"x" * 100_000, "no pgraft header")):
            path.write_bytes(content)
            path.chmod(0o600)
            with pytest.raises(SegmentError, match=says):
                attach(name)
    finally:
        unlink(name)
    unlink(name)


def test_a_full_dev_shm_is_a_clear_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(segments.os, "posix_fallocate", full)
    name = unique_name("full")
    with pytest.raises(SegmentError, match="No space left"):
        create(name, command_ring_bytes=64 * 1024, slot_count=4)
    assert not (SHM_DIR / name).exists()


def test_the_lock_is_shared_and_robust(segment: Segment) -> None:
    """Taken by a process that is killed, it is given to the next one with EOWNERDEAD."""
    libc = ctypes.CDLL(None, use_errno=True)
    at = segment.header["command_offset"] + layout.COMMAND_LOCK_OFFSET
    lock = (ctypes.c_char * layout.LOCK_BYTES).from_buffer(segment.bytes_at(at, layout.LOCK_BYTES))
    child = os.fork()
    if child == 0:
        libc.pthread_mutex_lock(lock)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert libc.pthread_mutex_trylock(lock) == errno.EOWNERDEAD
    assert libc.pthread_mutex_consistent(lock) == 0
    assert libc.pthread_mutex_unlock(lock) == 0
    assert libc.pthread_mutex_trylock(lock) == 0
    assert libc.pthread_mutex_unlock(lock) == 0
    del lock


def test_the_segment_survives_its_creators_kill() -> None:
    name = unique_name("survivor")
    try:
        with peer("create", name) as process:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        segment = attach(name, readonly=True)
        assert segment.header["node_id"] == 77
        assert segment.header["epoch"] == 5
        segment.close()
    finally:
        unlink(name)


def test_attaching_and_leaving_removes_nothing(segment: Segment) -> None:
    with peer("attach", segment.name) as process:
        assert process.wait(10) == 0
    assert (SHM_DIR / segment.name).exists()


def test_nothing_is_registered_and_no_tracker_runs() -> None:
    """The tracker is a child process, started by the first registration."""
    name = unique_name("tracked")
    script = f"""
import os
from multiprocessing import resource_tracker
from pgraft.shm.place import unlink
from pgraft.shm.segment import attach, create, open_for_use
made = create({name!r}, command_ring_bytes=65536, slot_count=4)
open_for_use(made, 1)
attach({name!r}).close()
attach({name!r}, readonly=True).close()
made.close()
unlink({name!r})
assert resource_tracker._resource_tracker._pid is None, "a tracker runs"
with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
    children = file.read()
assert children == "", children
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_one_data_directory_one_stem_and_a_new_name_each_time(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    first, second = new_name(tmp_path), new_name(tmp_path / "link")
    assert first != second
    assert first.rpartition(".")[0] == second.rpartition(".")[0]
    assert new_name(tmp_path / "other").rpartition(".")[0] != first.rpartition(".")[0]


def test_an_answer_is_read_whole_or_not_at_all(segment: Segment) -> None:
    slot = segment.slot(3)
    assert slot.owner_pid == 0
    slot.answer(7, 1, 2, 3, b"payload")
    assert slot.read_answer() == (7, 1, 2, 3, b"payload")
    slot.answer(8, 1, payload=b"x" * (layout.SLOT_PAYLOAD_BYTES + 1))
    answer = slot.read_answer()
    assert answer is not None
    assert len(answer[4]) == layout.SLOT_PAYLOAD_BYTES
    at = segment.header["slots_offset"] + 3 * layout.SLOT_BYTES + layout.SLOT_PAYLOAD_OFFSET
    segment.bytes_at(at, 1)[0] ^= 1
    assert slot.read_answer() is None
    with pytest.raises(SegmentError, match="no result slot 4"):
        segment.slot(4)
