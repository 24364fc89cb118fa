"""Who a process is: its pid *and* its start time, since pids come round again.

Read from /proc/<pid>/stat, the same number everywhere in pgraft (the header words *_start of the
segment, run/supervisor.json): field 22, in clock ticks since boot. Import-light: the supervisor
lives with what this module loads.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from typing import NamedTuple

_STAT_FIELD_STATE = 0  # counted behind the command's closing parenthesis
_STAT_FIELD_FLAGS = 6
_STAT_FIELD_START = 19
_PF_EXITING = 4  # include/linux/sched.h
_DEAD_STATES = ("Z", "X", "x")
COMMAND_LINE_BYTES_MAX = 64 * 1024


class ProcessRef(NamedTuple):
    """One process, for all time."""

    pid: int
    start: int


Program = Callable[[int], bool]
"""Whether the process of this pid runs what it should. OSError where it cannot be told."""


def _stat(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    # The command stands in parentheses and may itself hold spaces and parentheses.
    return text[text.rfind(")") + 2 :].split()


def start_ticks(pid: int) -> int | None:
    """The start time of a living process; None when there is none (a zombie is not living)."""
    fields = _stat(pid) if pid > 0 else None
    if fields is None or fields[_STAT_FIELD_STATE] in _DEAD_STATES:
        return None
    return int(fields[_STAT_FIELD_START])


def identify(pid: int) -> ProcessRef | None:
    """The living process that has this pid now."""
    start = start_ticks(pid)
    return None if start is None else ProcessRef(pid, start)


def child_ref(pid: int) -> ProcessRef:
    """The identity of a child of ours that has not been reaped: its pid cannot be anyone else's.

    Works for one that has died already (a zombie keeps its stat); start 0 stands for unknown.
    """
    fields = _stat(pid)
    return ProcessRef(pid, int(fields[_STAT_FIELD_START]) if fields else 0)


def is_alive(ref: ProcessRef) -> bool:
    """Whether exactly this process lives."""
    return start_ticks(ref.pid) == ref.start


def is_zombie(pid: int) -> bool:
    """Whether the process has died and its parent has not taken note."""
    fields = _stat(pid)
    return fields is not None and fields[_STAT_FIELD_STATE] == "Z"


def identify_dying(pid: int) -> ProcessRef | None:
    """The process of this pid, when it is past its last instruction and has not ended yet.

    It frees its memory, which takes a large one a quarter of a second: it has no program any more, and
    its pid, its shared memory and its sockets are still there.
    """
    fields = _stat(pid)
    if fields is None or fields[_STAT_FIELD_STATE] in _DEAD_STATES:
        return None
    if not int(fields[_STAT_FIELD_FLAGS]) & _PF_EXITING:
        return None
    return ProcessRef(pid, int(fields[_STAT_FIELD_START]))


def open_pidfd(ref: ProcessRef, program: Program | None = None) -> int | None:
    """A descriptor that becomes readable when this process ends; None when it has ended already.

    With `program`, also None when that process is not ours or runs something else: so a pid that comes
    from a file or from memory must be opened before it is signalled.
    """
    if ref.pid <= 0:
        return None
    try:
        descriptor = os.pidfd_open(ref.pid)
    except OSError:
        return None
    # Opened by number, so the number may have passed to another process just before: check after. While
    # the descriptor's process lives, the number is its own, and what /proc says is said of it.
    is_it = start_ticks(ref.pid) == ref.start and (program is None or is_own(ref.pid, program))
    if not is_it or (program is not None and _has_ended(descriptor)):
        os.close(descriptor)
        return None
    return descriptor


def is_own(pid: int, program: Program) -> bool:
    """Whether a process is this user's, and runs that. One of another user is not, hidden or not."""
    try:
        return _user_ids(pid) == (os.getuid(), os.geteuid()) and program(pid)
    except OSError:
        return False


def is_running(ref: ProcessRef, program: Program) -> bool:
    """Whether exactly this process lives, is ours, and runs that."""
    descriptor = open_pidfd(ref, program)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def _user_ids(pid: int) -> tuple[int, int] | None:
    """Real and effective user id."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("Uid:"):
                _, real, effective, *_ = line.split()
                return int(real), int(effective)
    return None


def _has_ended(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


def module_words(pid: int, module: str) -> list[str] | None:
    """The arguments of a process that runs `python -m module`; None of another. OSError: it has ended."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = [os.fsdecode(word) for word in file.read(COMMAND_LINE_BYTES_MAX).split(b"\0")]
    for number, word in enumerate(words[1:], 1):
        if word == "-m":
            return words[number + 2 : -1] if words[number + 1 : number + 2] == [module] else None
        if not word.startswith("-"):
            return None
    return None


def runs_in(executable: str, device: int, inode: int) -> Program:
    """A program of this file name whose working directory is that one."""
    return lambda pid: _runs_in(pid, (device, inode), executable)


def wait_ended(ref: ProcessRef, timeout_s: float) -> bool:
    """Wait until the process has ended; False when it has not within the time."""
    descriptor = open_pidfd(ref)
    if descriptor is None:
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(max(0, int(timeout_s * 1000))))
    finally:
        os.close(descriptor)


def children_with_cwd(directory: str, executable: str) -> list[ProcessRef]:
    """Living processes that run a program of this file name in this working directory.

    So a postmaster and its backends are found (they live in their data directory) even when the
    postmaster is dead and its pid file tells nothing about them. Those of other users are not seen.
    """
    try:
        wanted = os.stat(directory)
    except OSError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and _runs_in(int(entry), (wanted.st_dev, wanted.st_ino), executable):
                ref = identify(int(entry))
                found += [ref] if ref is not None else []
    return found


def runs_something_else(pid: int, directory: str, executable: str) -> bool:
    """Whether it certainly is none of `children_with_cwd`; False, too, where this user may not see it."""
    try:
        wanted = os.stat(directory)
        return not _runs_in(pid, (wanted.st_dev, wanted.st_ino), executable)
    except OSError:
        return False


def _runs_in(pid: int, directory: tuple[int, int], executable: str) -> bool:
    """OSError where it cannot be told: the process has ended, or is not this user's to look at."""
    if _program(pid) != executable:
        return False
    cwd = os.stat(f"/proc/{pid}/cwd")
    return (cwd.st_dev, cwd.st_ino) == directory


def _program(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))
    except FileNotFoundError:
        # A dying one has lost its program with its memory, and keeps its directory and its name longer.
        if identify_dying(pid) is None:
            raise
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
