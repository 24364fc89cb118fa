"""Processes that are dead and still there: zombies that nobody reaps, and one that does not get to its end.

Run as a script, this file is the parent that keeps them so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.postgres import process
from tests.support.pgcluster import eventually

_ROOT = Path(__file__).resolve().parents[2]
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NAME = 15
_CLONE_NEWPID = 0x20000000
_NOT_PERMITTED = 77


@contextlib.contextmanager
def never_reaping(argv: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run a command to its end below a process that becomes its orphans' parent, and reaps none of them."""
    with _keeper("never-reaping", *argv, environment=environment) as keeper:
        said = _line(keeper)
        assert said == "0", f"{argv}: exit code {said}"
        yield


class Dying:
    """A postgres that was killed and has not ended: its pid is there, its program is not."""

    def __init__(self, keeper: subprocess.Popen[bytes], pid: int) -> None:
        self._keeper = keeper
        self.pid = pid

    def let_go(self) -> None:
        """It ends now."""
        self._keeper.communicate()


@contextlib.contextmanager
def held_dying(uid: int, directory: Path) -> Iterator[Dying]:
    """A dying process of this user in this directory, for as long as wanted; where that is not permitted the
    test is skipped."""
    with _keeper("dying", str(uid), str(directory), environment=dict(os.environ)) as keeper:
        said = _line(keeper)
        if said == "":
            keeper.wait()
            assert keeper.returncode == _NOT_PERMITTED
            pytest.skip("no PID namespace can be made here")
        os.kill(int(said), signal.SIGKILL)
        eventually(lambda: process.identify_dying(int(said)), "the process to begin to die")
        yield Dying(keeper, int(said))


@contextlib.contextmanager
def _keeper(*words: str, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "tests.support.undead", *words]
    keeper = subprocess.Popen(argv, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield keeper
    finally:
        if keeper.returncode is None:
            keeper.communicate()


def _line(keeper: subprocess.Popen[bytes]) -> str:
    assert keeper.stdout is not None
    return keeper.stdout.readline().decode().strip()


def _never_reap(argv: list[str]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    done = subprocess.run(argv, cwd="/", stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    print(done.returncode, flush=True)
    sys.stdin.read()


def _keep_dying(uid: int, directory: str) -> None:
    """The first process of a PID namespace cannot end before all others of it are reaped: one is, late."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWPID) != 0:
        sys.exit(_NOT_PERMITTED)
    first = os.fork()
    if first == 0:
        ctypes.CDLL(None).prctl(_PR_SET_NAME, b"postgres", 0, 0, 0)
        os.chdir(directory)
        os.setuid(uid)
        signal.pause()
    other = os.fork()
    if other == 0:
        signal.pause()
    print(first, flush=True)
    sys.stdin.read()
    os.waitpid(other, 0)
    os.waitpid(first, 0)


if __name__ == "__main__":
    if sys.argv[1] == "dying":
        _keep_dying(int(sys.argv[2]), sys.argv[3])
    else:
        _never_reap(sys.argv[2:])
