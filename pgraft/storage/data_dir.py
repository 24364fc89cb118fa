"""The directory of the Raft state: who may use it, and the lock that one process holds on it.

The rules are PostgreSQL's (src/backend/utils/init/miscinit.c, checkDataDir): it must be owned by the
user that runs, and nobody else may get in. An empty directory is given the right permissions, one
with something in it is refused: whoever opened it up has to say so.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType

from pgraft.storage import files
from pgraft.storage.errors import DataDirLocked, StorageError, failed_call

LOCK_NAME = "LOCK"
RAFT_NAME = "raft"
"""Entry log, hard state and snapshots."""
PID_BYTES_MAX = 32


class LockedDir:
    """Holds the exclusive lock on a data directory until `release`, or until the process ends."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def release(self) -> None:
        """Let another process use the directory. Harmless when done twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> LockedDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def prepare_data_dir(path: Path) -> None:
    """Create the directory (and its parents) where it is missing, mode 0700, durably; check owner and mode.

    StorageError when it is not a directory of ours alone.
    """
    try:
        _create_missing(path)
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise StorageError(path, None, "this is not a directory", "Set pgraft.data_dir to a directory.")
        if found.st_uid != os.geteuid():
            raise StorageError(
                path,
                None,
                f"the data directory has wrong ownership: user {found.st_uid}, not {os.geteuid()}",
                "The node must be started by the user that owns pgraft.data_dir.",
            )
        if stat.S_IMODE(found.st_mode) != files.DIR_MODE:
            _correct_mode(path, stat.S_IMODE(found.st_mode))
    except OSError as error:
        raise failed_call("prepare the data directory", path, error) from error


def lock_data_dir(path: Path) -> LockedDir:
    """Prepare the directory and lock it. DataDirLocked, with the holder's pid, if another process did."""
    prepare_data_dir(path)
    lock = path / LOCK_NAME
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, files.FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Cut behind the pid, not before it: on a full disk the file keeps the block that it has.
            os.ftruncate(fd, os.pwrite(fd, f"{os.getpid()}\n".encode(), 0))
            # A rename that a killed process left to the kernel is durable before anybody relies on it.
            files.sync_dir(path)
        except BlockingIOError as error:
            holder = os.pread(fd, PID_BYTES_MAX, 0).strip()
            os.close(fd)
            raise DataDirLocked(lock, int(holder) if holder.isdigit() else 0) from error
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise failed_call("lock the data directory", lock, error) from error
    return LockedDir(path, fd)


def _create_missing(path: Path) -> None:
    missing = [path] if not path.exists() else []
    while missing and not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for directory in reversed(missing):
        files.make_dir(directory)
        files.sync_dir(directory.parent)


def _correct_mode(path: Path, mode: int) -> None:
    if mode & 0o077 and os.listdir(path):
        raise StorageError(
            path,
            None,
            f"the data directory has invalid permissions: {mode:04o}, should be u=rwx (0700)",
            f"chmod 0700 {path}, after making sure that nobody else wrote to it.",
        )
    files.change_mode(path, files.DIR_MODE)
