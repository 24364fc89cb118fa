"""Failover: the leader's whole node is killed with -9; how long until SQL elsewhere says true."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable

import psycopg

from bench.cluster import Node, PgraftCluster
from bench.samples import BenchError, percentile

SAMPLE_PAUSE_S = 0.002
FAILOVER_WAIT_S = 60.0
SETTLE_ELECTIONS = 2.5
"""Election timeouts to wait before a kill: a restarted worker gives no vote in its first one."""


@dataclasses.dataclass(frozen=True)
class FailoverFigures:
    """Seconds from the kill to true, over all kills."""

    election_timeout_ms: int
    heartbeat_interval_ms: int
    kills: int
    median_s: float
    p99_s: float
    worst_s: float
    each_s: list[float]


class _Watcher(threading.Thread):
    """Asks one node again and again until it says that it leads, or it is told to stop."""

    def __init__(self, node: Node, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.node = node
        self.stop = stop
        self.true_at: float | None = None
        self.asked = 0
        self.error = ""

    def run(self) -> None:
        try:
            with psycopg.connect(self.node.dsn, autocommit=True) as connection:
                while not self.stop.wait(SAMPLE_PAUSE_S):
                    row = connection.execute("SELECT pgraft_is_leader()", prepare=True).fetchone()
                    self.asked += 1
                    if row is not None and row[0] is True:
                        self.true_at = time.monotonic()
                        self.stop.set()
        except psycopg.Error as error:
            self.error = str(error).strip()


def one_kill(cluster: PgraftCluster) -> tuple[float, Node, list[Node]]:
    """Kill the leader's node: (seconds until another node's SQL says true, the killed one, the others)."""
    leader, followers = cluster.healthy()
    stop = threading.Event()
    watchers = [_Watcher(node, stop) for node in followers]
    for watcher in watchers:
        watcher.start()
    _wait_until_asking(watchers)
    killed_at = cluster.kill_node(leader)
    stop.wait(FAILOVER_WAIT_S)
    stop.set()
    for watcher in watchers:
        watcher.join(10)
    times = [watcher.true_at for watcher in watchers if watcher.true_at is not None]
    if not times:
        errors = "; ".join(watcher.error for watcher in watchers if watcher.error)
        raise BenchError(f"no new leader {FAILOVER_WAIT_S:.0f} s after the kill of {leader.name} {errors}")
    if min(times) < killed_at:
        raise BenchError(f"a follower said true while {leader.name} still led")
    return min(times) - killed_at, leader, followers


def _wait_until_asking(watchers: list[_Watcher]) -> None:
    deadline = time.monotonic() + 10
    while any(watcher.asked < 5 for watcher in watchers):
        if time.monotonic() > deadline:
            raise BenchError(f"a follower does not answer: {[watcher.error for watcher in watchers]}")
        time.sleep(0.01)


def measure(
    cluster: PgraftCluster,
    kills: int,
    timing_ms: tuple[int, int],
    rng: random.Random,
    progress: Callable[[str], None],
) -> FailoverFigures:
    """Kill the leader's node `kills` times; each comes back and catches up before the next."""
    election_ms, heartbeat_ms = timing_ms
    cluster.set(
        {
            "pgraft.election_timeout": f"{election_ms}ms",
            "pgraft.heartbeat_interval": f"{heartbeat_ms}ms",
        }
    )
    times: list[float] = []
    for number in range(1, kills + 1):
        # Anywhere between two heartbeats, so that the kills do not all fall at the same point.
        time.sleep(SETTLE_ELECTIONS * election_ms / 1000 + rng.random() * heartbeat_ms / 1000)
        took, killed, _ = one_kill(cluster)
        times.append(took)
        progress(f"failover {election_ms}/{heartbeat_ms} ms: kill {number} of {kills}: {took:.2f} s")
        cluster.start_node(cluster.pgdata[killed.name])
        cluster.healthy()
    ordered = sorted(times)
    return FailoverFigures(
        election_timeout_ms=election_ms,
        heartbeat_interval_ms=heartbeat_ms,
        kills=kills,
        median_s=percentile(ordered, 0.5),
        p99_s=percentile(ordered, 0.99),
        worst_s=ordered[-1],
        each_s=times,
    )
