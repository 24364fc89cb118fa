"""The running cluster as faults see it: nodes, their processes, who leads, and what is struck already."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Hashable

import psutil

from pgraft.postgres.process import ProcessRef, identify, is_alive, open_pidfd
from tests.soak.history import History
from tests.soak.watch import Watch
from tests.support.pgcluster import Cluster, Node

PARTS = ("supervisor", "worker", "network", "postmaster")
LEADER_PERCENT = 40
"""So often a fault asks for the leader, which any one node is less often."""


class Field:
    """Handed to every fault."""

    def __init__(self, cluster: Cluster, watch: Watch, history: History, election_timeout_ms: int) -> None:
        self.cluster = cluster
        self.watch = watch
        self.history = history
        self.election_timeout_s = election_timeout_ms / 1000
        self._claims: set[Hashable] = set()
        self._lock = threading.Lock()

    @property
    def nodes(self) -> list[Node]:
        """All of them, by id."""
        return self.cluster.nodes

    def node(self, node_id: int) -> Node:
        """The node with this id."""
        return self.nodes[node_id - 1]

    def choose(self, chance: random.Random) -> Node:
        """Any node, the leader more often than the others."""
        any_one, percent = chance.choice(self.nodes), chance.randrange(100)
        leader = self.watch.leader
        return self.node(leader) if leader and percent < LEADER_PERCENT else any_one

    # --- claims: what one fault has struck, another must leave alone until it is mended ----------------

    def claim(self, *what: Hashable) -> bool:
        """Take all of these, or none; False when one is taken."""
        with self._lock:
            if any(one in self._claims for one in what):
                return False
            self._claims.update(what)
            return True

    def release(self, *what: Hashable) -> None:
        """Give back."""
        with self._lock:
            self._claims.difference_update(what)

    # --- processes ----------------------------------------------------------------------------------------

    def part(self, node: Node, part: str) -> ProcessRef | None:
        """The living process of this part, by the segment's header."""
        words = self.watch.words(node.node_id)
        ref = ProcessRef(words.get(f"{part}_pid", 0), words.get(f"{part}_start", 0))
        return ref if ref.pid and is_alive(ref) else None

    def backends(self, node: Node) -> list[ProcessRef]:
        """The node's client sessions, oldest first."""
        postmaster = self.part(node, "postmaster")
        found = []
        with contextlib.suppress(psutil.Error):
            if postmaster is None:
                return []
            for child in psutil.Process(postmaster.pid).children():
                with contextlib.suppress(psutil.Error):
                    title = " ".join(child.cmdline())
                    if title.startswith(f"postgres: {self.cluster.superuser} postgres "):
                        found.append(child)
        refs = (identify(process.pid) for process in sorted(found, key=lambda one: one.pid))
        return [ref for ref in refs if ref is not None]

    def await_stopped(self, ref: ProcessRef) -> None:
        """Until a process that was sent SIGSTOP has stopped, or is gone."""
        while is_alive(ref):
            with contextlib.suppress(psutil.Error):
                if psutil.Process(ref.pid).status() == psutil.STATUS_STOPPED:
                    return
            time.sleep(0.0005)


def send(ref: ProcessRef, number: int) -> bool:
    """Send a signal to exactly this process; whether it was there."""
    descriptor = open_pidfd(ref)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
