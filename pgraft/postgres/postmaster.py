"""What PostgreSQL itself says about a data directory: postmaster.pid and pg_control.

Lines of postmaster.pid: src/include/utils/pidfile.h. pg_control: src/include/catalog/pg_control.h.
Import-light: the supervisor lives with what this module loads.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from pgraft.postgres import process
from pgraft.postgres.process import ProcessRef

PID_FILE_BYTES_MAX = 8192
EXECUTABLE = "postgres"
_READY = ("ready", "standby")
_CONTROL_HEAD = struct.Struct("<QIIi")  # system identifier, control version, catalog version, state
_CONTROL_VERSIONS = range(1300, 2000)
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


def read_pid_file(pgdata: str) -> PidFile | None:
    """postmaster.pid of this data directory; None when there is none or it is not readable as one."""
    try:
        with open(os.path.join(pgdata, "postmaster.pid"), encoding="utf-8", errors="replace") as file:
            lines = file.read(PID_FILE_BYTES_MAX).splitlines()
    except OSError:
        return None
    lines += [""] * (8 - len(lines))
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


def clear_zombie_locks(pgdata: str, socket_dirs: list[str]) -> list[str]:
    """Remove the lock files of a postmaster that is a zombie; the paths that were removed.

    PostgreSQL takes a lock file for stale when no process has its pid, and a zombie has one. It stays
    for as long as its parent does not reap it: for ever where PID 1 of a container does not. Call it
    only when no process of this data directory is left (find_backends).
    """
    pid_file = read_pid_file(pgdata)
    if pid_file is None or not process.is_zombie(pid_file.pid):
        return []
    folders = {*socket_dirs, pid_file.socket_dir} - {""}
    paths = [os.path.join(folder, f".s.PGSQL.{pid_file.port}.lock") for folder in sorted(folders)]
    mine = [path for path in paths if _names_pid(path, pid_file.pid)]
    removed = [os.path.join(pgdata, "postmaster.pid"), *mine]
    for path in removed:
        os.unlink(path)
    return removed


def _names_pid(path: str, pid: int) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline(32).strip() == str(pid)
    except OSError:
        return False
