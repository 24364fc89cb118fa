"""Disks in memory, under the real pgraft.storage: what was not synced can be lost, torn or reordered.

`installed()` puts them in the place of pgraft.storage.files. Each file has the bytes that the kernel
would show and the bytes that are durable; the calls between the two wait for a sync. Losing power
leaves the durable bytes and any choice of the waiting calls; killing the process leaves the kernel's.
A sync that fails marks the waiting writes as clean, as Linux does: no later sync writes them.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgraft.storage import entry_log, files
from pgraft.storage.data_dir import RAFT_NAME
from tests.support.storage_disk import Choice, Killed

_WRITE, _GROW, _CUT = range(3)


class File:
    """One file. `waiting`: calls since its last sync, as (what, offset, data)."""

    __slots__ = ("disk", "durable", "kernel", "waiting")

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.kernel = bytearray()
        self.durable = bytearray()
        self.waiting: list[tuple[int, int, bytes]] = []

    def sync(self) -> None:
        """All that waits becomes durable."""
        for what, offset, data in self.waiting:
            if what == _WRITE:
                _put(self.durable, offset, data)
            elif what == _GROW:
                _grow(self.durable, offset)
            else:
                del self.durable[offset:]
        self.waiting = []

    def lose_power(self, choice: Choice) -> None:
        """Only what is durable is left, and what `choice` lets survive."""
        for what, offset, data in self.waiting:
            if what == _WRITE:
                torn = choice.torn(self.durable, offset, data)
                if choice.what != "none":
                    _put(self.durable, offset, torn)
            elif choice.keeps():
                if what == _GROW:
                    _grow(self.durable, offset)
                else:
                    del self.durable[offset:]
        self.waiting = []
        self.kernel = bytearray(self.durable)


class Disk:
    """One node's directories, `home` and "raft" below it; names are whole paths.

    `kill_in`, `fail_in`: calls until one kills the process, or fails; 0: none.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.names: dict[str, File] = {}
        self.durable_names: dict[str, File] = {}
        self.waiting_names: list[tuple[str, str, File | None]] = []
        self.kill_in = 0
        self.fail_in = 0
        self.calls = 0
        self.syncs = 0

    def call(self) -> None:
        """Before each call that changes something."""
        self.calls += 1
        if self.kill_in:
            self.kill_in -= 1
            if not self.kill_in:
                raise Killed
        if self.fail_in > 1:
            self.fail_in -= 1

    def fails(self) -> bool:
        """Whether this write or sync is the one to fail."""
        if self.fail_in != 1:
            return False
        self.fail_in = 0
        return True

    def sync_names(self, directory: str) -> None:
        """Creations, renames and removals in a directory become durable."""
        later = []
        for waiting in self.waiting_names:
            if os.path.dirname(waiting[0]) == directory:
                _rename(self.durable_names, *waiting)
            else:
                later.append(waiting)
        self.waiting_names = later

    def lose_power(self, rng: random.Random) -> None:
        """The machine goes down; each call that no sync covered may or may not have reached the disk."""
        choice = Choice(rng.choice(("all", "none", "some", "some")), rng)
        # In the order of their making: a set's order would differ from process to process.
        for file in dict.fromkeys([*self.names.values(), *self.durable_names.values()]):
            file.lose_power(choice)
        for name, other, created in self.waiting_names:
            if choice.keeps():
                _rename(self.durable_names, name, other, created)
        self.waiting_names = []
        self.names = dict(self.durable_names)
        self.settle()

    def settle(self) -> None:
        """A new process begins."""
        self.kill_in = self.fail_in = 0


def _put(content: bytearray, offset: int, data: bytes) -> None:
    _grow(content, offset + len(data))
    content[offset : offset + len(data)] = data


def _grow(content: bytearray, length: int) -> None:
    if len(content) < length:
        content.extend(bytes(length - len(content)))


def _rename(names: dict[str, File], name: str, other: str, file: File | None) -> None:
    """A creation (`file` given), a removal (`other` empty) or a renaming."""
    if file is not None:
        names[name] = file
    elif not other:
        names.pop(name, None)
    elif name in names:
        names[other] = names.pop(name)


class Disks:
    """The disks of a cluster, as pgraft.storage.files sees them."""

    def __init__(self) -> None:
        self._of: dict[str, Disk] = {}
        self._open: dict[int, File] = {}
        self._next_fd = 1000

    def add(self, home: Path) -> Disk:
        """A new, empty disk, whose directories are there and durable."""
        disk = self._of[str(home)] = self._of[str(home / RAFT_NAME)] = Disk(home)
        return disk

    def give(self, file: File) -> int:
        """A descriptor for `file`."""
        self._next_fd += 1
        self._open[self._next_fd] = file
        return self._next_fd

    def close_all(self, disk: Disk) -> None:
        """The process that had the disk's files open is gone."""
        for fd in [fd for fd, file in self._open.items() if file.disk is disk]:
            del self._open[fd]

    # --- in place of pgraft.storage.files -------------------------------------------------------------

    def create(self, path: Path) -> int:
        """See files."""
        disk = self._of[str(path.parent)]
        disk.call()
        name = str(path)
        if name in disk.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        file = disk.names[name] = File(disk)
        disk.waiting_names.append((name, "", file))
        return self.give(file)

    def open_existing(self, path: Path) -> int:
        """See files."""
        file = self._of[str(path.parent)].names.get(str(path))
        if file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self.give(file)

    def close(self, fd: int) -> None:
        """See files."""
        del self._open[fd]

    def size_of(self, fd: int) -> int:
        """See files."""
        return len(self._open[fd].kernel)

    def read_at(self, fd: int, length: int, offset: int) -> bytes:
        """See files."""
        return bytes(self._open[fd].kernel[offset : offset + length])

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        """See files."""
        data = self._open[fd].kernel[offset : offset + len(view)]
        view[: len(data)] = data
        return len(data)

    def exists(self, path: Path) -> bool:
        """See files."""
        return str(path) in self._of or str(path) in self._of[str(path.parent)].names

    def list_names(self, directory: Path) -> list[str]:
        """See files."""
        below = str(directory) + "/"
        names = self._of[str(directory)].names
        return [
            name[len(below) :] for name in names if name.startswith(below) and "/" not in name[len(below) :]
        ]

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        """See files."""
        file = self._open[fd]
        file.disk.call()
        if file.disk.fails():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _put(file.kernel, offset, data)
        file.waiting.append((_WRITE, offset, data))

    def sync_data(self, fd: int) -> None:
        """See files."""
        file = self._open[fd]
        disk = file.disk
        disk.call()
        disk.syncs += 1
        if disk.fails():
            file.waiting = []
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        file.sync()

    def sync_dir(self, path: Path) -> None:
        """See files."""
        disk = self._of.get(str(path))
        if disk is not None:
            disk.call()
            disk.sync_names(str(path))

    def allocate(self, fd: int, length: int) -> None:
        """See files."""
        file = self._open[fd]
        file.disk.call()
        _grow(file.kernel, length)
        file.waiting.append((_GROW, length, b""))

    def truncate(self, fd: int, length: int) -> None:
        """See files."""
        file = self._open[fd]
        file.disk.call()
        del file.kernel[length:]
        file.waiting.append((_CUT, length, b""))

    def rename(self, old: Path, new: Path) -> None:
        """See files."""
        disk = self._of[str(old.parent)]
        disk.call()
        disk.names[str(new)] = disk.names.pop(str(old))
        disk.waiting_names.append((str(old), str(new), None))

    def unlink(self, path: Path) -> None:
        """See files."""
        disk = self._of[str(path.parent)]
        disk.call()
        del disk.names[str(path)]
        disk.waiting_names.append((str(path), "", None))


_REPLACED = (
    "create",
    "open_existing",
    "close",
    "size_of",
    "read_at",
    "read_into",
    "exists",
    "list_names",
    "write_at",
    "sync_data",
    "sync_dir",
    "allocate",
    "truncate",
    "rename",
    "unlink",
)


@contextmanager
def installed(disks: Disks, rng: random.Random) -> Iterator[None]:
    """Let pgraft.storage work on `disks`; what it takes by chance comes from `rng`."""
    replaced = {name: getattr(disks, name) for name in _REPLACED}
    replaced["open_to_read"] = disks.open_existing
    replaced["sync_file"] = disks.sync_data
    before = {name: getattr(files, name) for name in replaced}
    chance = entry_log._random_u32
    for name, call in replaced.items():
        setattr(files, name, call)
    entry_log._random_u32 = lambda: rng.getrandbits(32)
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(files, name, call)
        entry_log._random_u32 = chance
