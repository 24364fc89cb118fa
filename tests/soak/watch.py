"""Looks at every node's segment many times a second: who holds a lease, and since when nobody does.

What `pgraft_is_leader()` would say, without a session and its time.
"""

from __future__ import annotations

import contextlib
import threading

from pgraft.shm.layout import LOCK_BYTES
from pgraft.shm.place import SegmentError
from pgraft.shm.segment import Segment
from pgraft.shm.words import now_ns
from tests.soak.history import Life
from tests.support.pgcluster import Node
from tests.support.segments import attach_any

LOOK_S = 0.005
DOUBLE_MAX = 20


class Watch:
    """Runs until `close`. `double` holds moments at which two nodes surely held a lease."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._segments: dict[int, Segment] = {}
        self._ring_locks: dict[int, memoryview] = {}
        self._epochs: dict[int, tuple[int, int]] = {}
        self.lives: list[Life] = []
        """New segments, as they came."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._led_ns = 0
        self.leader = 0
        """Node id of who holds a lease now; 0 for nobody."""
        self.double: list[str] = []
        self.longest_gap_s = 0.0
        """Without any lease, after the first one."""
        self.gaps = 0
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def words(self, node_id: int) -> dict[str, int]:
        """The header of the node's segment, {} without one."""
        with self._lock:
            segment = self._segments.get(node_id)
            return segment.header.as_dict() if segment is not None else {}

    def ring_owner(self, node_id: int) -> int:
        """Pid of the backend that holds the lock of the command ring; 0 for nobody.

        The third word of glibc's pthread_mutex_t (struct __pthread_mutex_s: lock, count, owner).
        """
        with self._lock:
            lock = self._ring_locks.get(node_id)
            return lock[1] & 0xFFFFFFFF if lock is not None else 0

    def without_s(self) -> float:
        """For how long nobody has held a lease now."""
        return 0.0 if self.leader or not self._led_ns else (now_ns() - self._led_ns) / 1e9

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()
        with self._lock:
            for segment in self._segments.values():
                segment.close()
            self._segments.clear()

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            with self._lock:
                self._look()

    def _look(self) -> None:
        # Twice, and only what held both times and holds still: between two readings this thread may wait
        # for a core long enough for one leader to go and another to come.
        once = [self._lease_end_ns(node) for node in self._nodes]
        again = [self._lease_end_ns(node) for node in self._nodes]
        now = now_ns()
        leaders = [
            node.node_id for node, a, b in zip(self._nodes, once, again, strict=True) if a > now and b > now
        ]
        if len(leaders) > 1 and len(self.double) < DOUBLE_MAX:
            self.double.append(f"nodes {leaders} hold leases at {now}: {once}, then {again}")
        if leaders:
            if self._led_ns and not self.leader:
                self.gaps += 1
                self.longest_gap_s = max(self.longest_gap_s, (now - self._led_ns) / 1e9)
            self._led_ns = now
        self.leader = leaders[0] if leaders else 0

    def _lease_end_ns(self, node: Node) -> int:
        segment = self._segments.get(node.node_id)
        if segment is None or segment.header["retired"]:
            segment = self._attach(node)
        if segment is None:
            return 0
        self._epochs[node.node_id] = (segment.header["epoch"], now_ns())
        return segment.worker["lease_end_ns"]

    def _attach(self, node: Node) -> Segment | None:
        self._ring_locks.pop(node.node_id, None)
        old = self._segments.pop(node.node_id, None)
        if old is not None:
            old.close()
        with contextlib.suppress(OSError, SegmentError):
            segment = attach_any(node.segment_name)
            self._segments[node.node_id] = segment
            self._ring_locks[node.node_id] = segment.words_at(segment.header["command_offset"], LOCK_BYTES)
            epoch, seen_ns = self._epochs.get(node.node_id, (segment.header["epoch"], 0))
            if epoch != segment.header["epoch"]:
                self.lives.append(Life(node.node_id, seen_ns, now_ns()))
        return self._segments.get(node.node_id)
