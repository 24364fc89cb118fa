"""What PostgreSQL itself says about a data directory: postmaster.pid and pg_control.

Lines of postmaster.pid: src/include/utils/pidfile.h. pg_control: src/include/catalog/pg_control.h.
Import-light: the supervisor lives with what this module loads.
"""

from __future__ import annotations

import os
import re
import struct
from typing import NamedTuple

from pgraft import ownfile
from pgraft.postgres import process
from pgraft.postgres.process import ProcessRef

PID_FILE_BYTES_MAX = 8192
PID_MAX = 2**31 - 1
EXECUTABLE = "postgres"
_READY = ("ready", "standby")
_CONTROL_HEAD = struct.Struct("<QIIi")  # system identifier, control version, catalog version, state
_CONTROL_VERSIONS = range(1300, 2000)
_SOCKET_LOCK = re.compile(r"\.s\.PGSQL\.\d+\.lock")
_STATE_SHUT_DOWN = (1, 2)  # DB_SHUTDOWNED, DB_SHUTDOWNED_IN_RECOVERY


class PidFile(NamedTuple):
    """postmaster.pid; port 0 and empty texts where PostgreSQL has not come to write them yet."""

    pid: int
    data_dir: str
    port: int
    socket_dir: str
    listen_address: str
    status: str

    @property
    def is_ready(self) -> bool:
        """Whether pg_ctl would call the start finished."""
        return self.status in _READY


class LockFile(NamedTuple):
    """postmaster.pid or a socket's lock file, and the pid in it; 0 where it holds none."""

    path: str
    pid: int


class StaleLock(NamedTuple):
    """A lock file that nobody holds, and what shows it."""

    path: str
    why: str


def read_pid_file(pgdata: str) -> PidFile | None:
    """postmaster.pid of this data directory; None when there is none or it is not readable as one."""
    lines = _read_lines(os.path.join(pgdata, "postmaster.pid"), pgdata)
    if lines is None:
        return None
    try:
        pid = abs(int(lines[0]))  # a standalone backend writes it negative
        port = int(lines[3] or 0)
    except ValueError:
        return None
    return PidFile(pid, lines[1], port, lines[4].strip(), lines[5].strip(), lines[7].strip())


def find_postmaster(pgdata: str) -> ProcessRef | None:
    """The living postmaster of this data directory.

    Its pid file may be left from before a crash and the pid be another program's by now: a
    postmaster is a process called postgres that lives in the data directory.
    """
    pid_file = read_pid_file(pgdata)
    if pid_file is None:
        return None
    for ref in find_backends(pgdata):
        if ref.pid == pid_file.pid:
            return ref
    return None


def find_backends(pgdata: str) -> list[ProcessRef]:
    """All living PostgreSQL processes of this data directory, the postmaster among them."""
    return process.children_with_cwd(pgdata, EXECUTABLE)


def is_shut_down(pgdata: str) -> bool:
    """Whether pg_control says that the last stop was an orderly one."""
    try:
        with open(os.path.join(pgdata, "global", "pg_control"), "rb") as file:
            head = file.read(_CONTROL_HEAD.size)
    except OSError:
        return False
    if len(head) < _CONTROL_HEAD.size:
        return False
    _, control_version, _, state = _CONTROL_HEAD.unpack(head)
    return control_version in _CONTROL_VERSIONS and state in _STATE_SHUT_DOWN


def find_dying(pgdata: str, socket_dirs: list[str]) -> list[ProcessRef]:
    """Processes that the lock files name and that are about to end: PostgreSQL still sees their pids."""
    dying = [process.identify_dying(lock.pid) for lock in _lock_files(pgdata, socket_dirs)]
    return [ref for ref in dying if ref is not None]


def find_stale_locks(pgdata: str, socket_dirs: list[str]) -> list[StaleLock]:
    """Lock files of this data directory that PostgreSQL would believe, and that nobody holds.

    PostgreSQL takes a lock file for stale when no process of its user has its pid. A zombie has one for
    as long as its parent does not reap it: for ever where PID 1 of a container does not. And pids come
    round again, in a container soon. Only true when no process of this data directory is left
    (find_backends, find_dying).
    """
    return [
        StaleLock(lock.path, why)
        for lock in _lock_files(pgdata, socket_dirs)
        if (why := _why_stale(lock.pid, pgdata))
    ]


def find_unclear_lock(pgdata: str, socket_dirs: list[str]) -> LockFile | None:
    """A lock file that PostgreSQL believes although its process may be anything: it cannot be looked at."""
    backends = {ref.pid for ref in find_backends(pgdata)}
    for lock in _lock_files(pgdata, socket_dirs):
        if lock.pid not in backends and _believes(lock.pid) and not _why_stale(lock.pid, pgdata):
            return lock
    return None


def _why_stale(pid: int, pgdata: str) -> str:
    if pid == 0:
        # One that starts this moment has made the file and has yet to write it.
        alive = find_backends(pgdata)
        return "" if alive else "it is empty or damaged, and no process of its data directory lives"
    if process.is_zombie(pid):
        return f"its process {pid} is dead, and only waits for its parent to take note"
    # One that is dying is waited for, whatever it was.
    if process.identify_dying(pid) is None and process.runs_something_else(pid, pgdata, EXECUTABLE):
        return f"process {pid} is no PostgreSQL of this data directory"
    return ""


def _believes(pid: int) -> bool:
    """PostgreSQL's own question, in CreateLockFile (src/backend/utils/init/miscinit.c)."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return pid > 0


def _lock_files(pgdata: str, socket_dirs: list[str]) -> list[LockFile]:
    """postmaster.pid, and the sockets' lock files that name its process or its data directory."""
    found = []
    main = os.path.join(pgdata, "postmaster.pid")
    lines = _read_lines(main, pgdata)
    pid = 0
    if lines is not None:
        pid = _pid_of(lines)
        found.append(LockFile(main, pid))
    folders = {*socket_dirs, lines[4].strip() if lines else ""} - {""}
    for path in (path for folder in sorted(folders) for path in _socket_locks(folder)):
        socket_lines = _read_lines(path, pgdata)
        owner = _pid_of(socket_lines) if socket_lines else 0
        if socket_lines and owner and _is_mine(socket_lines[1], pgdata, same_process=owner == pid):
            found.append(LockFile(path, owner))
    return found


def _socket_locks(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [os.path.join(folder, name) for name in sorted(names) if _SOCKET_LOCK.fullmatch(name)]


def _pid_of(lines: list[str]) -> int:
    """0 where there is none."""
    try:
        pid = abs(int(lines[0]))  # a standalone backend writes it negative
    except ValueError:
        return 0
    return pid if pid <= PID_MAX else 0


def _is_mine(named: str, pgdata: str, *, same_process: bool) -> bool:
    """Whether a socket's lock file is this directory's: it names it, or names none and the same process. A
    stale pid may have come to another server's postmaster, whose lock is none of ours."""
    return os.path.realpath(named) == os.path.realpath(pgdata) if named else same_process


def _read_lines(path: str, pgdata: str) -> list[str] | None:
    """The lines of a lock file, eight at least; None where there is none to read.

    Sockets may lie in a directory where everybody may make files: only a regular file of the owner of the
    data directory counts, and nothing is waited for.
    """
    try:
        text = ownfile.read_own(path, PID_FILE_BYTES_MAX, owner=os.stat(pgdata).st_uid)
    except OSError:
        return None
    lines = text.decode("utf-8", "replace").splitlines()
    return lines + [""] * (8 - len(lines))
