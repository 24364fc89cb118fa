"""How long to wait before the next connection attempt: exponential, with jitter, bounded."""

from __future__ import annotations

from collections.abc import Callable

from pgraft.transport.limits import BACKOFF_FIRST_MS, BACKOFF_MAX_MS


class Backoff:
    """Doubles from BACKOFF_FIRST_MS to BACKOFF_MAX_MS. `chance` gives numbers in [0, 1).

    The jitter takes up to half away, so that nodes which lost a peer together do not return together.
    """

    __slots__ = ("_chance", "_ms")

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._ms = BACKOFF_FIRST_MS

    def next_ms(self) -> float:
        """The wait after one more failure."""
        wait = self._ms
        self._ms = min(2 * self._ms, BACKOFF_MAX_MS)
        return wait * (0.5 + 0.5 * self._chance())

    def longest_ms(self) -> float:
        """The wait after an answer that will not change by itself soon."""
        self._ms = BACKOFF_MAX_MS
        return self.next_ms()

    def reset(self) -> None:
        """The peer is there: start small again."""
        self._ms = BACKOFF_FIRST_MS
