"""The preloaded library that other tests rely on does what it says, and nothing elsewhere."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.disk_faults import DiskFaults, Rule, delay, fail, hang, tear

STEPS = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
def told(name, call):
    began = time.monotonic()
    try:
        call()
        result = 0
    except OSError as error:
        result = error.errno
    print(name, result, int((time.monotonic() - began) * 1000), flush=True)
for line in sys.stdin:
    match line.strip():
        case "fdatasync": told("fdatasync", lambda: os.fdatasync(fd))
        case "fsync": told("fsync", lambda: os.fsync(fd))
        case "pwrite": told("pwrite", lambda: os.pwrite(fd, b"x" * 1000, 0))
        case "fallocate": told("fallocate", lambda: os.posix_fallocate(fd, 0, 4096))
        case "clock": print("clock", int(time.time()), int(time.monotonic()), flush=True)
"""


class _Process:
    """A process that does what it is told to a file, one line at a time."""

    def __init__(self, faults: DiskFaults, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", STEPS, str(path)],
            env=os.environ | faults.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, call: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(call + "\n")
        self.process.stdin.flush()

    def answer(self) -> tuple[int, int]:
        """errno and milliseconds of what was asked."""
        assert self.process.stdout is not None
        _, error, took_ms = self.process.stdout.readline().split()
        return int(error), int(took_ms)

    def do(self, call: str) -> tuple[int, int]:
        self.ask(call)
        return self.answer()

    def close(self) -> int:
        self.process.communicate()
        return self.process.returncode


@pytest.fixture
def below(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.mkdir()
    return path


@pytest.mark.parametrize("call", ["fdatasync", "fsync", "pwrite", "fallocate"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_calls_fail_as_often_as_told(tmp_path: Path, below: Path, call: str, error: int) -> None:
    faults = DiskFaults(tmp_path, below)
    inside, outside = _Process(faults, below / "a"), _Process(faults, tmp_path / "b")
    assert inside.do(call)[0] == 0
    faults.set(fail(call, error, times=1))
    assert outside.do(call)[0] == 0
    assert inside.do(call)[0] == error
    assert inside.do(call)[0] == 0
    faults.set(fail(call, error))
    assert [inside.do(call)[0] for _ in range(3)] == [error] * 3
    faults.clear()
    assert inside.do(call)[0] == 0
    assert inside.close() == 0
    assert outside.close() == 0
    assert [one.action for one in faults.calls()] == ["fail", "passed", "fail", "fail", "fail", "passed"]
    assert {one.path for one in faults.calls()} == {str(below / "a")}


def test_a_hang_ends_with_its_rule_and_a_delay_by_itself(tmp_path: Path, below: Path) -> None:
    faults = DiskFaults(tmp_path, below)
    process = _Process(faults, below / "a")
    faults.set(delay("pwrite", 200), hang("fdatasync"))
    assert process.do("pwrite")[1] >= 200
    process.ask("fdatasync")
    end = time.monotonic() + 30
    while not faults.calls("hang"):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not faults.calls("released")
    faults.clear()
    assert process.answer()[0] == 0
    assert faults.calls("released")
    assert process.close() == 0


@pytest.mark.parametrize("part", ["*", "log-"])
def test_rules_are_for_files_whose_path_has_the_part(tmp_path: Path, below: Path, part: str) -> None:
    faults = DiskFaults(tmp_path, below)
    faults.set(Rule("pwrite", "fail", errno.EIO, 0, part))
    log, other = _Process(faults, below / "log-1"), _Process(faults, below / "snap-1")
    assert log.do("pwrite")[0] == errno.EIO
    assert other.do("pwrite")[0] == (errno.EIO if part == "*" else 0)
    assert (log.close(), other.close()) == (0, 0)


def test_a_torn_write_is_the_last_of_its_process(tmp_path: Path, below: Path) -> None:
    faults = DiskFaults(tmp_path, below)
    process = _Process(faults, below / "a")
    faults.set(tear(512))
    process.ask("pwrite")
    assert process.close() == -signal.SIGKILL
    assert (below / "a").read_bytes() == b"x" * 512


def test_the_wall_clock_jumps_and_the_monotonic_one_does_not(tmp_path: Path, below: Path) -> None:
    faults = DiskFaults(tmp_path, below)
    process = _Process(faults, below / "a")
    year_s = 365 * 86400
    before = process.do("clock")
    faults.set_clock(-year_s)
    after = process.do("clock")
    assert process.close() == 0
    assert -year_s <= after[0] - before[0] < -year_s + 60
    assert 0 <= after[1] - before[1] < 60
