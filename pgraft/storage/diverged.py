"""The mark of a node whose committed log differs from its leader's: it is not to take part again.

A file beside the identity. Owner: the Raft worker; an operator who finds that this node is the one that is
right removes it by hand.
"""

from __future__ import annotations

from pathlib import Path

from pgraft.storage import files
from pgraft.storage.errors import failed_call

DIVERGED_NAME = "diverged"
_TEXT_BYTES_MAX = 1000


def write_mark(data_dir: Path, reason: str) -> None:
    """Set the mark, durably, with one line that says why. Raises StorageError."""
    path = data_dir / DIVERGED_NAME
    try:
        files.replace(path, reason.encode()[:_TEXT_BYTES_MAX] + b"\n")
    except OSError as error:
        raise failed_call("write the mark of a diverged log", path, error) from error


def read_mark(data_dir: Path) -> str | None:
    """Why this node is not to take part, None when there is no mark. Raises StorageError."""
    path = data_dir / DIVERGED_NAME
    try:
        fd = files.open_to_read(path)
        try:
            return files.read_at(fd, _TEXT_BYTES_MAX, 0).decode(errors="replace").strip()
        finally:
            files.close(fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failed_call("read the mark of a diverged log", path, error) from error


def remove_mark(data_dir: Path) -> None:
    """Take the mark away, durably, where there is one: an operator has decided. Raises StorageError."""
    path = data_dir / DIVERGED_NAME
    try:
        if files.exists(path):
            files.unlink(path)
            files.sync_dir(data_dir)
    except OSError as error:
        raise failed_call("remove the mark of a diverged log", path, error) from error
