"""The leader's lease, by the rule of README.md, "The lease".

Lease end = send time of the newest round that a quorum has answered + 0.85 x the shortest promise
among the voters that answered it. A voter that answered gives no vote for its promise, counted
from when it got the round, so from after it was sent; any other leader needs a vote from one of
them. 0.85 covers clocks that run at rates up to a tenth apart.
"""

from __future__ import annotations

from collections.abc import Iterable

LEASE_PERCENT = 85


class Lease:
    """Counts answered rounds while this node leads in one term. Times in CLOCK_BOOTTIME ns."""

    def __init__(self) -> None:
        self.term = 0
        self._answers: dict[int, tuple[int, int]] = {}
        self._ended = True
        self.changed = True

    def begin(self, term: int) -> None:
        """This node became leader at `term`: nobody has answered yet."""
        self.term = term
        self._answers = {}
        self._ended = False
        self.changed = True

    def end(self) -> None:
        """No lease any more in this term: leadership is gone, or is being handed over."""
        self._ended = True
        self.changed = True

    @property
    def ended(self) -> bool:
        """Whether no lease can come in this term any more."""
        return self._ended

    def answer(self, voter: int, round_ns: int, promise_ns: int) -> None:
        """`voter` answered the round sent at `round_ns`, and promises no vote for `promise_ns`."""
        known = self._answers.get(voter)
        if known is None or round_ns > known[0]:
            self._answers[voter] = (round_ns, promise_ns)
            self.changed = True

    def end_ns(self, halves: Iterable[frozenset[int]]) -> int:
        """When the lease ends, 0 when there is none. `halves` are the voters, two sets while joint."""
        self.changed = False
        if self._ended:
            return 0
        starts = [self._quorum_start(half) for half in halves if half]
        if not starts or 0 in starts:
            return 0
        start = min(starts)
        promises = [
            promise
            for half in halves
            for voter in half
            if (answer := self._answers.get(voter)) is not None
            for sent, promise in (answer,)
            if sent >= start
        ]
        return start + min(promises) * LEASE_PERCENT // 100

    def _quorum_start(self, half: frozenset[int]) -> int:
        sent = sorted((self._answers.get(voter, (0, 0))[0] for voter in half), reverse=True)
        return sent[len(half) // 2]
