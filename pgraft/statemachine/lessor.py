"""When leases run out: the leader's clock, beside the replicated machine that has none.

A lessor lives as long as one leadership. A new leader makes one when it has applied the first entry of its
own term, so that no expiry that an earlier leader proposed can still be on its way, and every time to live
starts again: nothing that an earlier leader answered to a keep-alive is cut short. The caller passes the
time in, by CLOCK_BOOTTIME.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from pgraft.statemachine.results import LeaseEnded, LeaseGranted, StoreReset

_NS_PER_MS: Final = 1_000_000
_HEAP_SLACK: Final = 64
"""So many items of leases that ended may stand in the heap beside as many as there are leases."""


class Lessor:
    """Deadlines of leases."""

    __slots__ = ("_deadlines", "_expiring", "_heap", "_offered", "_ttls_ms")

    def __init__(self, ttls_ms: Mapping[int, int], now_ns: int) -> None:
        """`ttls_ms`: what the machine's `leases()` says; `now_ns`: when this node became leader."""
        self._ttls_ms = dict(ttls_ms)
        self._deadlines = {lease_id: now_ns + ttl * _NS_PER_MS for lease_id, ttl in ttls_ms.items()}
        self._heap: list[tuple[int, int]] = []
        """An item for each lease that counts down, with a deadline that is the lease's or an earlier one of
        it. Items of leases that ended, or of which there is a second item, are dropped when they come up."""
        self._expiring: set[int] = set()
        """Leases that `due` has returned at some time: they cannot be kept alive."""
        self._offered: set[int] = set()
        """Those of them that `due` does not return again."""
        self._rebuild_heap()

    def applied(self, result: object, now_ns: int) -> None:
        """A command was applied with this result: follow what it did to leases."""
        if isinstance(result, LeaseGranted):
            self._start(result.lease_id, result.ttl_ms, now_ns)
        elif isinstance(result, LeaseEnded):
            self._forget(result.lease_id)
        elif isinstance(result, StoreReset):
            for lease_id in list(self._ttls_ms):
                self._forget(lease_id)

    def keep_alive(self, lease_id: int, now_ns: int) -> int | None:
        """Start the lease's time again: what is left now, in ms. None when there is no such lease, or `due`
        has returned it. Answer only under a valid leader lease: a deposed leader's counts for nothing."""
        if lease_id in self._expiring or lease_id not in self._ttls_ms:
            return None
        ttl_ms = self._ttls_ms[lease_id]
        self._deadlines[lease_id] = now_ns + ttl_ms * _NS_PER_MS
        return ttl_ms

    def time_left_ms(self, lease_id: int, now_ns: int) -> int | None:
        """What is left of a lease, rounded down; 0 when it runs out, None when there is none."""
        deadline = self._deadlines.get(lease_id)
        return None if deadline is None else max(0, deadline - now_ns) // _NS_PER_MS

    def due(self, now_ns: int, most: int) -> list[int]:
        """At most `most` leases whose time is over, to be proposed as LeaseExpire. Each is returned once, and
        cannot be kept alive any more."""
        found: list[int] = []
        while len(found) < most:
            deadline = self.next_deadline()
            if deadline is None or deadline > now_ns:
                break
            lease_id = heappop(self._heap)[1]
            self._expiring.add(lease_id)
            self._offered.add(lease_id)
            found.append(lease_id)
        return found

    def not_proposed(self, lease_id: int) -> None:
        """The expiry was not taken into the log (too much is under way there): `due` returns it again. It
        still cannot be kept alive, since its time is over."""
        if lease_id in self._offered:
            self._offered.discard(lease_id)
            heappush(self._heap, (self._deadlines[lease_id], lease_id))

    def next_deadline(self) -> int | None:
        """When `due` has something to return next, in ns; None while nothing counts down."""
        heap = self._heap
        while heap:
            deadline, lease_id = heap[0]
            now = self._deadlines.get(lease_id)
            if now is None or lease_id in self._offered:
                heappop(heap)
            elif now != deadline:
                heapreplace(heap, (now, lease_id))
            else:
                return deadline
        return None

    def _start(self, lease_id: int, ttl_ms: int, now_ns: int) -> None:
        self._ttls_ms[lease_id] = ttl_ms
        self._deadlines[lease_id] = now_ns + ttl_ms * _NS_PER_MS
        heappush(self._heap, (self._deadlines[lease_id], lease_id))
        if len(self._heap) > 2 * len(self._deadlines) + _HEAP_SLACK:
            self._rebuild_heap()

    def _rebuild_heap(self) -> None:
        """Without items of leases that ended, which would else stay until their time is over."""
        items = self._deadlines.items()
        self._heap = [(deadline, lease_id) for lease_id, deadline in items if lease_id not in self._offered]
        heapify(self._heap)

    def _forget(self, lease_id: int) -> None:
        self._ttls_ms.pop(lease_id, None)
        self._deadlines.pop(lease_id, None)
        self._expiring.discard(lease_id)
        self._offered.discard(lease_id)
