"""When pgraft_is_leader() turned true or false on each node, as a session of it sees: a process for
each, so that watching one node, or making load, does not hold up the others.

Run as a program (`python -m tests.support.leader_watch DSN`) it writes a line per change. "true T": a
call that said true for the first time had returned by T; "false T" (or "gone T", when the session
ended): the last call that said true had been made at T. All in seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg

from tests.support.pgcluster import Failed, Node

POLL_S = 0.001
READY_S = 30


class Handover:
    """Watches a leader and the others, while leadership goes from the one to one of those."""

    def __init__(self, leader: Node, others: Sequence[Node]) -> None:
        self._leader = leader.node_id
        self._events: queue.Queue[tuple[int, str, float]] = queue.Queue()
        self._children: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []
        self.successor = 0
        for node in (leader, *others):
            self._watch(node)
        try:
            ready = {self._events.get(timeout=READY_S)[0] for _ in self._children}
        except queue.Empty:
            self.close()
            raise Failed("a watching session did not come up") from None
        if len(ready) != len(self._children):
            self.close()
            raise Failed("leadership changed before it was to change")

    def _watch(self, node: Node) -> None:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.leader_watch", node.dsn],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        thread = threading.Thread(target=self._read, args=(node.node_id, child))
        thread.start()
        self._children.append(child)
        self._threads.append(thread)

    def _read(self, node_id: int, child: subprocess.Popen[str]) -> None:
        with contextlib.closing(child.stdout or sys.stdin) as lines:
            for line in lines:
                what, at = line.split()
                self._events.put((node_id, what, float(at)))

    def gap_ms(self, timeout_s: float = 60) -> float:
        """From the last call on the old leader that said true to the first on another that did."""
        last = first = None
        end = time.monotonic() + timeout_s
        while last is None or first is None:
            try:
                node_id, what, at = self._events.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise Failed(f"old leader's last true: {last}, new leader's first: {first}") from None
            if node_id == self._leader and what != "true":
                last = at
            elif node_id != self._leader and what == "true" and first is None:
                first, self.successor = at, node_id
        return (first - last) * 1000

    def close(self) -> None:
        """End the sessions."""
        for child in self._children:
            child.terminate()
            child.wait(10)
        for thread in self._threads:
            thread.join(10)


@contextlib.contextmanager
def handover(leader: Node, others: Sequence[Node]) -> Iterator[Handover]:
    """A watch over all of them."""
    watch = Handover(leader, others)
    try:
        yield watch
    finally:
        watch.close()


def _watch(dsn: str) -> None:
    last_true, was = 0.0, None
    with psycopg.connect(dsn, autocommit=True) as session:
        while True:
            asked = time.monotonic()
            try:
                row = session.execute("SELECT pgraft_is_leader()", prepare=True).fetchone()
            except psycopg.Error:
                print("gone", last_true, flush=True)
                return
            leads = row is not None and bool(row[0])
            if leads != was:
                print("true" if leads else "false", time.monotonic() if leads else last_true, flush=True)
            if leads:
                last_true = asked
            was = leads
            time.sleep(POLL_S)


if __name__ == "__main__":
    _watch(sys.argv[1])
