"""Opening files that somebody else could have put there: believed only when they are ours.

A run file, a doorbell or a segment has a name that other users may know, and some lie in a directory
where everybody may make files. So each is opened without following a link and without waiting, and what
was opened is looked at through its descriptor, where nobody can exchange it any more.

Import-light: the supervisor lives with what this module loads.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from pathlib import Path

WRITABLE_BY_OTHERS = 0o022
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ForeignFile(OSError):
    """A file is there, and it is not ours or not what it should be. `strerror` says what is wrong."""


class Kind(enum.Enum):
    """What the file must be."""

    REGULAR = "a regular file"
    FIFO = "a FIFO"


_KINDS = (
    (stat.S_ISREG, Kind.REGULAR.value),
    (stat.S_ISFIFO, Kind.FIFO.value),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISSOCK, "a socket"),
)


def open_own(
    path: str | Path,
    flags: int = os.O_RDONLY,
    *,
    kind: Kind = Kind.REGULAR,
    owner: int | None = None,
    is_private: bool = False,
) -> int:
    """Open a file of this kind that belongs to `owner` (we ourselves, unless told otherwise).

    Others may not be able to write it. `is_private`: its mode is 0600 and it has one name. Never waits.
    A missing file is FileNotFoundError; one that must not be believed is ForeignFile.
    """
    owner = os.geteuid() if owner is None else owner
    try:
        descriptor = os.open(path, flags | _FLAGS, 0o600)
    except OSError as error:
        raise _explained(error, path, kind, owner) from error
    wrong = _what_is_wrong(os.fstat(descriptor), kind, owner, is_private=is_private)
    if wrong:
        os.close(descriptor)
        raise ForeignFile(errno.EPERM, wrong, str(path))
    return descriptor


def read_own(path: str | Path, bytes_max: int, *, owner: int | None = None) -> bytes:
    """What a regular file of ours holds, `bytes_max` of it at most. Errors as of `open_own`."""
    descriptor = open_own(path, owner=owner)
    try:
        pieces = []
        while bytes_max > 0 and (piece := os.read(descriptor, bytes_max)):
            pieces.append(piece)
            bytes_max -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def _what_is_wrong(found: os.stat_result, kind: Kind, owner: int, *, is_private: bool) -> str:
    """Empty when nothing is."""
    mode = stat.S_IMODE(found.st_mode)
    named = next((name for matches, name in _KINDS if matches(found.st_mode)), "a device")
    if named != kind.value:
        return f"is {named}, not {kind.value}"
    if found.st_uid != owner:
        return f"belongs to the user with uid {found.st_uid}, not to uid {owner}"
    if is_private and mode != 0o600:
        return f"has mode {mode:04o}, not 0600"
    if is_private and found.st_nlink != 1:
        return f"has {found.st_nlink} names (hard links), not one"
    if mode & WRITABLE_BY_OTHERS:
        return f"has mode {mode:04o}: others may write it"
    return ""


def _explained(error: OSError, path: str | Path, kind: Kind, owner: int) -> OSError:
    """Of a file that could not be opened: what it is, where that is the reason."""
    if error.errno in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.EISDIR):
        try:
            wrong = _what_is_wrong(os.lstat(path), kind, owner, is_private=False)
        except OSError:
            return error
        if wrong:
            return ForeignFile(error.errno, wrong, str(path))
    return error
