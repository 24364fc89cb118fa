"""Aligned 8-byte words of the segment: the only way that Python touches them.

`memoryview.cast("Q")` reads and writes one aligned word with one machine access. `struct.pack_into`
must not be used on a word that another process reads: it zeroes the field before it writes it.
"""

from __future__ import annotations

import threading
import time

_lock = threading.Lock()


def fence() -> None:
    """Order an earlier store before a later load, against the other process doing the reverse.

    Python has no fence; taking a lock is a locked instruction, which is a full barrier on x86-64.
    Nothing depends on it for safety: sleepers also wake at their next deadline.
    """
    with _lock:
        pass


def now_ns() -> int:
    """CLOCK_BOOTTIME in nanoseconds: monotonic, and counts the time that a machine is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class WordPage:
    """Words by name. `raw` is the memoryview of words for hot paths, with numbers from the layout."""

    __slots__ = ("names", "raw")

    def __init__(self, raw: memoryview, names: dict[str, int]) -> None:
        self.raw = raw
        self.names = names

    def __getitem__(self, name: str) -> int:
        value: int = self.raw[self.names[name]]
        return value

    def __setitem__(self, name: str, value: int) -> None:
        self.raw[self.names[name]] = value

    def add(self, name: str, count: int = 1) -> None:
        """Add to a counter that only this process writes."""
        self.raw[self.names[name]] = (self.raw[self.names[name]] + count) & (2**64 - 1)

    def as_dict(self) -> dict[str, int]:
        """All words, each read once."""
        return {name: self.raw[number] for name, number in self.names.items()}
