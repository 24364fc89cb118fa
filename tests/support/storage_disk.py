"""A disk that can lose what was not synced: the fault layer of the storage tests.

`RecordingDisk` stands in for pgraft.storage.files. Every call is carried out and recorded; `crash`
then builds what a crash after any number of calls can leave: durable contents, plus a choice of the
calls that no sync had covered - all of them, none, or any subset, with writes torn at any byte or
with any sectors of them missing. Directory entries are treated in the same way.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pgraft.storage import files

SECTOR_BYTES = 512
NAMES = [
    "create",
    "open_existing",
    "close",
    "write_at",
    "sync_data",
    "sync_file",
    "sync_dir",
    "allocate",
    "truncate",
    "rename",
    "unlink",
    "make_dir",
    "change_mode",
]
REAL: dict[str, Callable[..., Any]] = {name: getattr(files, name) for name in NAMES}


class Call(NamedTuple):
    """One recorded call: its name and arguments; files by inode number (of our own count)."""

    name: str
    inode: int = 0
    path: str = ""
    other: str = ""
    offset: int = 0
    data: bytes = b""


class Killed(BaseException):
    """The process dies before a call."""


class RecordingDisk:
    """Carries out and records what pgraft.storage.files is asked to do below `root`.

    `kill_at` is the number of the call before which the process dies; what the kernel has, stays. With
    `sync_fails` that call, if it is a sync, fails instead, as Linux does it: the written pages count as
    clean from then on, so that no later sync writes them, though a reader still sees them.
    """

    def __init__(self, root: Path, monkeypatch: Any) -> None:
        self.root = root
        self.calls: list[Call] = []
        self.kill_at = -1
        self.sync_fails = False
        self._inode_of_fd: dict[int, int] = {}
        self._inode_of_path: dict[str, int] = {}
        self._next_inode = 1
        for name in NAMES:
            monkeypatch.setattr(files, name, self._wrap(name, REAL[name]))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        handler = getattr(self, f"_{name}")

        def call(*args: Any) -> Any:
            return handler(real, *args)

        return call

    def _record(self, call: Call) -> None:
        if len(self.calls) != self.kill_at:
            self.calls.append(call)
            return
        self.kill_at = -1
        if self.sync_fails and call.name == "sync":
            self.calls.append(call._replace(name="sync_failed"))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        for fd in list(self._inode_of_fd):
            self._close(os.close, fd)
        raise Killed

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self.root)

    def _create(self, real: Any, path: Path) -> int:
        inode = self._next_inode
        self._record(Call("create", inode, self._relative(path)))
        self._next_inode += 1
        fd: int = real(path)
        self._inode_of_fd[fd] = self._inode_of_path[self._relative(path)] = inode
        return fd

    def _open_existing(self, real: Any, path: Path) -> int:
        fd: int = real(path)
        self._inode_of_fd[fd] = self._inode_of_path[self._relative(path)]
        return fd

    def _close(self, real: Any, fd: int) -> None:
        self._inode_of_fd.pop(fd, None)
        real(fd)

    def _write_at(self, real: Any, fd: int, data: bytes, offset: int) -> None:
        self._record(Call("write", self._inode_of_fd[fd], offset=offset, data=data))
        real(fd, data, offset)

    def _sync_data(self, real: Any, fd: int) -> None:
        self._record(Call("sync", self._inode_of_fd[fd]))

    def _sync_file(self, real: Any, fd: int) -> None:
        self._record(Call("sync", self._inode_of_fd[fd]))

    def _sync_dir(self, real: Any, path: Path) -> None:
        self._record(Call("sync_dir", path=self._relative(path)))

    def _allocate(self, real: Any, fd: int, length: int) -> None:
        self._record(Call("allocate", self._inode_of_fd[fd], offset=length))
        # Sparse is enough here, and much cheaper.
        os.ftruncate(fd, max(length, os.fstat(fd).st_size))

    def _truncate(self, real: Any, fd: int, length: int) -> None:
        self._record(Call("truncate", self._inode_of_fd[fd], offset=length))
        real(fd, length)

    def _rename(self, real: Any, old: Path, new: Path) -> None:
        self._record(Call("rename", path=self._relative(old), other=self._relative(new)))
        real(old, new)
        self._inode_of_path[self._relative(new)] = self._inode_of_path.pop(self._relative(old))

    def _unlink(self, real: Any, path: Path) -> None:
        self._record(Call("unlink", path=self._relative(path)))
        real(path)
        self._inode_of_path.pop(self._relative(path))

    def _make_dir(self, real: Any, path: Path) -> None:
        self._record(Call("make_dir", path=self._relative(path)))
        real(path)

    def _change_mode(self, real: Any, path: Path, mode: int) -> None:
        real(path, mode)

    def load(self, image: dict[str, bytes]) -> None:
        """Start from an image: write its files, and record them as durable."""
        for name, data in image.items():
            path = self.root / name
            if not path.parent.exists():
                files.make_dir(path.parent)
            fd = files.create(path)
            files.write_at(fd, data, 0)
            files.sync_file(fd)
            files.close(fd)
            files.sync_dir(path.parent)


class Choice:
    """What becomes of calls that were not synced: "all", "none", or "some" by a random generator."""

    def __init__(self, what: str, rng: random.Random) -> None:
        self.what = what
        self.rng = rng

    def keeps(self) -> bool:
        """Whether one call of a directory, or a truncation, survives."""
        return self.what == "all" or (self.what == "some" and self.rng.random() < 0.5)

    def torn(self, old: bytearray, offset: int, data: bytes) -> bytes:
        """What stands where `data` was written over `old`."""
        before = bytes(old[offset : offset + len(data)]).ljust(len(data), b"\0")
        if self.what != "some":
            return data if self.what == "all" else before
        match self.rng.randrange(5):
            case 0:
                return before
            case 1:
                return data
            case 2:
                cut = self.rng.randrange(len(data) + 1)
                return data[:cut] + before[cut:]
            case 3:
                cut = self.rng.randrange(len(data) + 1)
                return before[:cut] + data[cut:]
            case _:
                return self._sectors(before, offset, data)

    def _sectors(self, before: bytes, offset: int, data: bytes) -> bytes:
        mixed = bytearray(before)
        at = 0
        while at < len(data):
            end = min(len(data), at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES)
            if self.rng.random() < 0.5:
                mixed[at:end] = data[at:end]
            at = end
        return bytes(mixed)


def crash(calls: list[Call], choice: Choice) -> dict[str, bytes]:
    """The files, by relative path, that a crash after `calls` leaves."""
    contents = _contents(calls, choice)
    return {name: bytes(contents[inode]) for name, inode in _names(calls, choice).items()}


def _contents(calls: list[Call], choice: Choice) -> dict[int, bytearray]:
    durable: dict[int, bytearray] = {}
    pending: dict[int, list[Call]] = {}
    for call in calls:
        match call.name:
            case "create":
                durable[call.inode] = bytearray()
                pending[call.inode] = []
            case "write" | "truncate" | "allocate":
                pending[call.inode].append(call)
            case "sync":
                for waiting in pending[call.inode]:
                    _apply(durable[call.inode], waiting, Choice("all", choice.rng))
                pending[call.inode] = []
            case "sync_failed":
                pending[call.inode] = []
            case _:
                pass
    for inode, waiting_calls in pending.items():
        for waiting in waiting_calls:
            _apply(durable[inode], waiting, choice)
    return durable


def _apply(content: bytearray, call: Call, choice: Choice) -> None:
    match call.name:
        case "write":
            data = choice.torn(content, call.offset, call.data)
            if choice.what != "none":
                content.extend(bytes(max(0, call.offset + len(data) - len(content))))
                content[call.offset : call.offset + len(data)] = data
        case "truncate":
            if choice.keeps():
                del content[call.offset :]
        case _:
            if choice.keeps():
                content.extend(bytes(max(0, call.offset - len(content))))


def _names(calls: list[Call], choice: Choice) -> dict[str, int]:
    durable: dict[str, int] = {}
    pending: list[Call] = []
    for call in calls:
        match call.name:
            case "create" | "rename" | "unlink":
                pending.append(call)
            case "sync_dir":
                kept = []
                for waiting in pending:
                    if str(Path(waiting.path).parent) == call.path:
                        _apply_name(durable, waiting)
                    else:
                        kept.append(waiting)
                pending = kept
            case _:
                pass
    for waiting in pending:
        if choice.keeps():
            _apply_name(durable, waiting)
    return durable


def _apply_name(names: dict[str, int], call: Call) -> None:
    match call.name:
        case "create":
            names[call.path] = call.inode
        case "rename":
            # A rename whose creation was lost takes the creation with it: both are in one directory.
            if call.path in names:
                names[call.other] = names.pop(call.path)
        case _:
            names.pop(call.path, None)
