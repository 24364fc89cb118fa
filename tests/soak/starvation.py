"""Whether the machine let the nodes run: how long their processes stood in line for a core.

An election that comes because a process was not run for most of an election timeout says nothing of
pgraft. The kernel counts that time for each process (the second number in /proc/PID/schedstat).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

SAMPLE_S = 0.05
NOTED_MS = 10
"""A shorter wait in one sample is not kept."""
SAMPLES_MAX = 200_000


class Waited(NamedTuple):
    """One process stood in line for `ms` before `at` (time.time())."""

    at: float
    pid: int
    ms: float


class Starvation:
    """Watches processes until closed."""

    def __init__(self, pids: list[int]) -> None:
        self._last = {pid: _waited_ns(pid) for pid in pids}
        self._noted: list[Waited] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="starvation", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            at = time.time()
            for pid, before in self._last.items():
                now = _waited_ns(pid)
                self._last[pid] = now
                ms = (now - before) / 1e6
                if ms >= NOTED_MS and len(self._noted) < SAMPLES_MAX:
                    self._noted.append(Waited(at, pid, ms))

    def worst_ms(self, since: float, until: float, window_s: float) -> float:
        """The longest time that one process stood in line within a window of `window_s` between these
        (time.time()). Short waits that are spread over more time than that have delayed nothing for long."""
        windows: dict[int, deque[Waited]] = {}
        worst = 0.0
        for waited in list(self._noted):
            if since <= waited.at <= until:
                window = windows.setdefault(waited.pid, deque())
                window.append(waited)
                while window[0].at < waited.at - window_s:
                    window.popleft()
                worst = max(worst, sum(one.ms for one in window))
        return worst

    def worst_sample_ms(self) -> float:
        """The longest wait of one process in one sample."""
        return max((waited.ms for waited in list(self._noted)), default=0)

    def close(self) -> None:
        """Watch no more."""
        self._over.set()
        self._thread.join()


def _waited_ns(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    except (OSError, IndexError):
        return 0  # it is gone, or the kernel does not count


def load() -> str:
    """The machine's load average, for people."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())
