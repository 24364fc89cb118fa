"""What storage raises. Each error names its file, and where it helps the offset and what to do."""

from __future__ import annotations

import errno
from pathlib import Path

DAMAGE_HINT = (
    "Check the disk. When the file cannot be restored, remove this node with pgraft_remove_node(), "
    "empty pgraft.data_dir, and add it again under a new id; do not edit or delete single files."
)


VERSION_HINT = (
    "If another version of pgraft wrote it, start that version; nothing is lost. If none did, it is damage. "
    + DAMAGE_HINT
)


class OtherVersion(ValueError):
    """A file says that it has another format version: from another pgraft, or damaged right there."""

    def __init__(self, found: int, read: int) -> None:
        super().__init__(f"the file has format version {found}, this pgraft reads {read}")


def hint_of(error: Exception) -> str:
    """What an operator can do about a file that cannot be used because of `error`."""
    return VERSION_HINT if isinstance(error, OtherVersion) else DAMAGE_HINT


class StorageError(Exception):
    """A file of the Raft state cannot be read or written as it must be.

    `subject` is the file or directory, `offset` the byte in it where that is known, `what` the
    complaint and `hint` what an operator can do; str() joins them into one line.
    """

    def __init__(self, subject: Path, offset: int | None, what: str, hint: str = "") -> None:
        place = f' at offset {offset} of file "{subject}"' if offset is not None else f' in "{subject}"'
        super().__init__(what + place)
        self.subject = subject
        self.offset = offset
        self.what = what
        self.hint = hint


class DamagedLog(StorageError):
    """Bytes that were once durable do not read back: the node must not start on them."""

    def __init__(self, subject: Path, offset: int | None, what: str, hint: str = DAMAGE_HINT) -> None:
        super().__init__(subject, offset, what, hint)


class DataDirLocked(StorageError):
    """Another process holds the data directory; `holder_pid` is 0 when it left no pid."""

    def __init__(self, subject: Path, holder_pid: int) -> None:
        holder = f"process {holder_pid}" if holder_pid else "another process"
        super().__init__(
            subject,
            None,
            f"the lock is held by {holder}",
            "Is a Raft worker of this node still running? Only one may use pgraft.data_dir.",
        )
        self.holder_pid = holder_pid


def failed_call(doing: str, subject: Path, error: OSError, offset: int | None = None) -> StorageError:
    """The StorageError for a system call that failed while `doing` something to `subject`."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            hint = "Free space on the file system of pgraft.data_dir, then start the node again."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            hint = "The owner of pgraft.data_dir must be able to write to it; then start the node again."
        case errno.EIO:
            hint = "Check the disk and the kernel's log before starting the node again."
        case _:
            hint = "Remove the cause, then start the node again."
    return StorageError(subject, offset, f"could not {doing}: {error.strerror or error}", hint)
