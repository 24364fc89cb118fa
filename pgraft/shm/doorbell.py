"""Doorbells: FIFOs that wake a sleeping reader without polling.

The reader says that it is about to sleep (its `sleeping` word), fences, looks at its rings once
more, then waits. The writer publishes, fences, and makes the system call only when the reader
sleeps. On a machine where the fence is weaker, a bell lost in that window costs the time to the
sleeper's next deadline, never a record.
"""

from __future__ import annotations

import os
from pathlib import Path

from pgraft import ownfile
from pgraft.shm.layout import Sleep
from pgraft.shm.rings import WordRef
from pgraft.shm.words import fence

WORKER_BELL = "worker.bell"
NETWORK_BELL = "network.bell"
_DRAIN_BYTES = 4096


def open_bell(path: Path) -> int:
    """Open a bell's FIFO, readable and writable so that neither end ever sees the other go away.

    OSError when there is none, or something else under its name (ForeignFile).
    """
    return ownfile.open_own(path, os.O_RDWR, kind=ownfile.Kind.FIFO)


def ring_fd(fd: int) -> None:
    """Ring without asking whether anyone sleeps; a full FIFO is as good as a rung bell."""
    try:
        os.write(fd, b"\0")
    except BlockingIOError:
        return


class Bell:
    """The ringing end."""

    __slots__ = ("_sleeping", "fd")

    def __init__(self, path: Path, sleeping: WordRef) -> None:
        self.fd = open_bell(path)
        self._sleeping = sleeping

    def ring(self) -> None:
        """Wake the reader when it sleeps. Publish first."""
        fence()
        if self._sleeping.load():
            ring_fd(self.fd)


class BellListener:
    """The sleeping end: `fd` goes into the reader's selector."""

    __slots__ = ("_sleeping", "fd")

    def __init__(self, path: Path, sleeping: WordRef) -> None:
        self.fd = open_bell(path)
        self._sleeping = sleeping
        sleeping.store(0)

    def about_to_sleep(self, sleep: Sleep = Sleep.FOR_ANYONE) -> None:
        """Announce the sleep; look at the rings once more after this, before waiting."""
        self._sleeping.store(sleep.value)
        fence()

    def awake(self, *, rung: bool) -> None:
        """Call after waiting; `rung` when the selector reported `fd`."""
        self._sleeping.store(0)
        if rung:
            try:
                os.read(self.fd, _DRAIN_BYTES)
            except BlockingIOError:
                return
