"""The way to the worker: records into the inbound ring, and what happens when it is full."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from pgraft.transport.limits import UNDELIVERED_RECORDS_MAX


class Ring(Protocol):
    """The writing end of a ring (pgraft.shm.rings.RingWriter)."""

    def put(self, *parts: bytes | bytearray | memoryview) -> bool:
        """Write one record, not yet visible; False when there is no room."""
        ...

    def publish(self) -> bool:
        """Make what was put visible; False when there was nothing new."""
        ...


class Inbox:
    """Records keep their order. When the ring is full they wait here, and `on_stall` stops all
    reading, so that what waits is no more than one receive buffer had in it."""

    __slots__ = ("_hurry", "_on_stall", "_ring", "_ring_bell", "_waiting")

    def __init__(self, ring: Ring, ring_bell: Callable[[], None], on_stall: Callable[[], None]) -> None:
        self._ring = ring
        self._ring_bell = ring_bell
        self._on_stall = on_stall
        self._hurry = False
        self._waiting: deque[tuple[bytes, bytes]] = deque()

    @property
    def stalled(self) -> bool:
        """Whether records wait for room."""
        return bool(self._waiting)

    def deliver(self, prefix: bytes, body: bytes | memoryview, hurry: bool = True) -> bool:
        """Hand over one record; False only when even the waiting room is full and it is dropped.

        One without `hurry` does not wake the worker, who reads it when it wakes by itself.
        """
        self._hurry = self._hurry or hurry
        if not self._waiting and self._ring.put(prefix, body):
            return True
        if len(self._waiting) >= UNDELIVERED_RECORDS_MAX:
            return False
        self._waiting.append((prefix, bytes(body)))
        if len(self._waiting) == 1:
            self._on_stall()
        return True

    def publish(self) -> None:
        """Show the worker everything that was put, and wake it when it sleeps. Once a turn."""
        if self._ring.publish() and self._hurry:
            self._hurry = False
            self._ring_bell()

    def retry(self) -> bool:
        """Put what waits as far as there is room now; whether all of it went."""
        waiting = self._waiting
        while waiting and self._ring.put(*waiting[0]):
            waiting.popleft()
        return not waiting
