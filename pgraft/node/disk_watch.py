"""Sees a disk that does not answer while it does not answer.

A sync that hangs holds the worker's one thread, and a process in such a call cannot even be killed. So a
second thread looks on: the worker counts up at every step of its work and says when it sleeps; one step that
lasts longer than `pgraft.disk_stall_timeout` ends the node's part in consensus, at once and for good.

A worker that starts is watched from its first call on. It has promised nothing: another one starts when the
disk answers.

Only time that this thread has lived through counts: a process that was stopped, or a machine that was
suspended, in the middle of a sync has no bad disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pgraft.shm.words import now_ns as clock

LOOKS_PER_STALL = 10
PERIOD_MS_MIN, PERIOD_MS_MAX = 10, 1000
_MS = 1_000_000


class DiskStalled(Exception):
    """A call on a file took longer than the node may wait for its disk: it takes part no more."""


class DiskWatch:
    """The worker's thread writes `step`, `idle` and `on_stall`, the watching one `stalled`."""

    on_stall: Callable[[str], None]
    """Gets the reason, once, in the watching thread."""

    def __init__(self, stall_ms: int, data_dir: str) -> None:
        self.step = 0
        self.idle = False
        self.stalled = ""
        self._stall_ms = stall_ms
        self._data_dir = data_dir
        self._period_ms = min(max(stall_ms // LOOKS_PER_STALL, PERIOD_MS_MIN), PERIOD_MS_MAX)
        self._over = threading.Event()
        self._quiet_ns = 0
        self._seen = -1
        self._last_ns = 0

    def start(self, on_stall: Callable[[str], None]) -> None:
        """Watch from now on."""
        self.on_stall = on_stall
        self._last_ns = clock()

        def run() -> None:
            while not self._over.wait(self._period_ms / 1000):
                if self.look(clock()):
                    self.on_stall(self.stalled)
                    return

        threading.Thread(target=run, name="disk watch", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()

    def look(self, now_ns: int) -> bool:
        """Whether the step that is under way has lasted too long."""
        passed = min(now_ns - self._last_ns, 2 * self._period_ms * _MS)
        self._last_ns = now_ns
        if self.idle or self.step != self._seen:
            self._seen, self._quiet_ns = self.step, 0
            return False
        self._quiet_ns += passed
        if self._quiet_ns < self._stall_ms * _MS:
            return False
        self.stalled = (
            f'a read, write or sync below "{self._data_dir}" has not returned for {self._quiet_ns // _MS} ms,'
            f" longer than pgraft.disk_stall_timeout ({self._stall_ms} ms)"
        )
        return True

    def next_step(self) -> None:
        """Progress. DiskStalled when it came too late: what was promised meanwhile may not be sent."""
        self.step += 1
        if self.stalled:
            raise DiskStalled(self.stalled)
