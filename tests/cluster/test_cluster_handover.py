"""Leadership that is handed over: a planned stop, and a leader whose PostgreSQL does not come back."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import threading
from pathlib import Path

import psycopg
import pytest

from tests.support import pgcluster
from tests.support.leader_watch import handover
from tests.support.pgcluster import Cluster, Node, eventually
from tests.support.sql_load import Load, load

pytestmark = pytest.mark.cluster

HEARTBEAT_MS = 100
ELECTION_MS = 1000
"""The defaults."""


def planned_stop(cluster: Cluster, work: Load) -> float:
    """Stop the leader under load and start it again; ms from its last true to another's first."""
    leader = cluster.wait_leader()
    with handover(leader, cluster.followers(leader)) as watch:
        work.wait_for(50)
        stop = threading.Thread(target=leader.stop)
        stop.start()
        gap = watch.gap_ms()
        stop.join()
    work.wait_for(50)
    leader.start()
    return gap


def _stops(template: Path, count: int) -> list[float]:
    with pgcluster.cluster(template, 3) as cluster:
        with load(cluster) as work:
            gaps = [planned_stop(cluster, work) for _ in range(count)]
        work.check([cluster.wait_agreed()])
        told = f"{len(work.acknowledged)} acknowledged, {len(work.unknown)} unknown, {work.refused} refused"
    median, worst = statistics.median(gaps), max(gaps)
    print(f"\n{count} planned stops under load: median {median:.1f} ms, worst {worst:.1f} ms; {told}")
    return gaps


def test_a_planned_stop_of_the_leader_costs_no_election_and_loses_nothing(template: Path) -> None:
    # An election takes 1000 ms and more; how much less than a heartbeat it is, the slow test measures.
    assert max(_stops(template, 2)) < ELECTION_MS / 2


@pytest.mark.slow
def test_a_planned_stop_costs_less_than_a_heartbeat(template: Path) -> None:
    gaps = _stops(template, 20)
    assert statistics.median(gaps) < HEARTBEAT_MS


def test_a_leader_whose_postgres_does_not_come_back_lets_another_lead(template: Path) -> None:
    with pgcluster.cluster(template, 3, election_timeout="500", heartbeat_interval="50") as cluster:
        leader = cluster.wait_agreed()
        # Without it PostgreSQL does not start.
        control = leader.pgdata / "global" / "pg_control"
        aside = control.rename(leader.pgdata / "pg_control.aside")
        os.kill(leader.pid("postmaster"), signal.SIGKILL)
        others = cluster.followers(leader)
        successor = cluster.wait_leader(others)
        assert "PostgreSQL does not serve here" in leader.log_text()
        assert leader.status()["state"] == "running", "its Raft part goes on"
        assert successor.value("SELECT pgraft_replicate_entry('by one that serves')") is True
        aside.rename(control)
        eventually(lambda: _serves(leader), "PostgreSQL to come back")
        # It may lead again.
        assert successor.value("SELECT pgraft_transfer_leadership(%s)", leader.node_id) is True
        assert cluster.wait_leader([leader]) is leader


def _serves(node: Node) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        return bool(node.value("SELECT pgraft_get_worker_state()") == "running")
    return False
