"""Every system call on files of the Raft state, in one place.

Callers use these through the module (`files.write_at(...)`), never by name, so that tests can put
a fault layer in their place: one that records the calls, fails them, or loses what was not synced;
or a disk that exists in memory only. Nothing here catches an error; `OSError` is for the caller to
explain.
"""

from __future__ import annotations

import os
from pathlib import Path

FILE_MODE = 0o600
DIR_MODE = 0o700
TEMPORARY_SUFFIX = ".tmp"


def create(path: Path) -> int:
    """Create a file that must not exist yet, mode 0600, and return its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)


def open_existing(path: Path) -> int:
    """Open an existing file for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def open_to_read(path: Path) -> int:
    """Open an existing file for reading only."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def close(fd: int) -> None:
    """Close a descriptor that one of the above gave."""
    os.close(fd)


def size_of(fd: int) -> int:
    """Length of a file in bytes."""
    return os.fstat(fd).st_size


def read_at(fd: int, length: int, offset: int) -> bytes:
    """At most `length` bytes at `offset`; fewer at the end of the file."""
    return os.pread(fd, length, offset)


def read_into(fd: int, view: memoryview, offset: int) -> int:
    """Fill `view` from `offset` on; how many bytes came, 0 at the end of the file."""
    return os.preadv(fd, [view], offset)


def exists(path: Path) -> bool:
    """Whether a file or directory of this name is there."""
    return path.exists()


def list_names(directory: Path) -> list[str]:
    """The names in a directory, in no order."""
    return os.listdir(directory)


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`: one pwrite, unless the kernel takes less than everything."""
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def sync_data(fd: int) -> None:
    """fdatasync: data, and what is needed to read it back."""
    os.fdatasync(fd)


def sync_file(fd: int) -> None:
    """fsync: data and all metadata."""
    os.fsync(fd)


def sync_dir(path: Path) -> None:
    """Make creations, renames and removals in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def allocate(fd: int, length: int) -> None:
    """Reserve blocks up to `length`, as zeros, so that later syncs write no sizes."""
    os.posix_fallocate(fd, 0, length)


def truncate(fd: int, length: int) -> None:
    """Cut a file; what lies behind `length` reads as zeros when it is reserved again."""
    os.ftruncate(fd, length)


def rename(old: Path, new: Path) -> None:
    """Give a file its final name, replacing what had it."""
    os.rename(old, new)


def unlink(path: Path) -> None:
    """Remove a file."""
    os.unlink(path)


def make_dir(path: Path) -> None:
    """Create a directory, mode 0700 whatever the umask."""
    os.mkdir(path, DIR_MODE)
    os.chmod(path, DIR_MODE)


def change_mode(path: Path, mode: int) -> None:
    """Change a file's or directory's permissions."""
    os.chmod(path, mode)


def temporary(path: Path) -> Path:
    """Where a file is prepared before it gets its name; leftovers are removed at the next start."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def create_aside(path: Path) -> int:
    """Create the temporary file that will become `path`, removing what a crash left of one."""
    aside = temporary(path)
    if exists(aside):
        unlink(aside)
    return create(aside)


def put_in_place(path: Path) -> None:
    """Rename the (already synced) temporary file of `path` to it, durably."""
    rename(temporary(path), path)
    sync_dir(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, atomically and durably: written aside, synced, renamed, folder synced."""
    fd = create_aside(path)
    try:
        write_at(fd, data, 0)
        sync_file(fd)
    finally:
        close(fd)
    put_in_place(path)
