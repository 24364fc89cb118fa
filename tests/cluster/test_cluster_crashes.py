"""Each part may die alone, or all at once (SPEC section 4)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Node, eventually

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(template: Path) -> Iterator[Cluster]:
    """Three nodes with short timing, so that the tests are quick."""
    with pgcluster.cluster(template, 3, election_timeout="500", heartbeat_interval="50") as made:
        yield made


def _replicate(node: Node, texts: list[str]) -> None:
    with node.connect() as session:
        for text in texts:
            assert session.execute("SELECT pgraft_replicate_entry(%s)", (text,)).fetchone() == (True,)


def _entries(node: Node) -> list[str]:
    return [
        row[0]
        for row in node.sql(
            "SELECT t FROM pgraft_log_get_stats() s, generate_series(2, s.commit_index) i,"
            " LATERAL pgraft_log_get_entry(i) t WHERE t IS NOT NULL ORDER BY i"
        )
    ]


def _leads_by_sql(nodes: list[Node], since: float, timeout: float = 30) -> tuple[Node, float]:
    """The first of these nodes whose SQL says that it leads, and how long that took."""
    sessions = {node: node.connect() for node in nodes}
    try:
        while time.monotonic() - since < timeout:
            for node, session in sessions.items():
                if session.execute("SELECT pgraft_is_leader()").fetchone() == (True,):
                    return node, time.monotonic() - since
            time.sleep(0.005)
    finally:
        for session in sessions.values():
            session.close()
    raise AssertionError(f"no leader within {timeout} s")


def test_the_leaders_whole_node_dies(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    others = cluster.followers(leader)
    texts = [f"before {number}" for number in range(50)]
    _replicate(leader, texts)
    leader.kill_everything()
    new, took_s = _leads_by_sql(others, time.monotonic())
    # SPEC section 6 says 1.5 s at worst with this timing; bench measures it, this is an upper bound.
    assert took_s < 10
    more = [f"after {number}" for number in range(20)]
    _replicate(new, more)
    cluster.wait_agreed(others)
    for node in others:
        assert _entries(node) == texts + more
    leader.start()
    cluster.wait_agreed()
    assert _entries(leader) == texts + more
    assert leader.value("SELECT pgraft_get_leader()") == new.node_id


def test_everything_dies_at_once(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    texts = [f"entry {number}" for number in range(100)]
    _replicate(leader, texts)
    doomed = [process for node in cluster.nodes for process in node.processes()]
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(doomed, timeout=30)
    for node in cluster.nodes:
        page = node.status()
        assert page["state"] == "stopped"
        assert not page["is_leader"]
    cluster.start_all()
    leader = cluster.wait_agreed()
    for node in cluster.nodes:
        assert _entries(node) == texts
    _replicate(leader, ["and on"])


def test_the_inspector_reads_a_dead_nodes_segment(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    term = leader.value("SELECT pgraft_get_term()")
    leader.kill_everything()
    page = pgcluster.run(
        *pgcluster.as_server_user(pgcluster.INSPECT, "show", "-D", str(leader.pgdata))
    ).stdout
    assert str(term) in page
    assert str(leader.raft_port) in page


def test_the_worker_dies(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    _replicate(leader, ["kept"])
    before = leader.pid("worker")
    postmaster = leader.pid("postmaster")
    killed = time.monotonic()
    psutil.Process(before).kill()
    eventually(lambda: leader.pid("worker") not in (0, before), "a new worker")
    eventually(lambda: leader.status()["state"] == "running", "the new worker to run")
    assert time.monotonic() - killed < 10
    new = cluster.wait_agreed()
    _replicate(new, ["and on"])
    cluster.wait_agreed()
    assert leader.pid("postmaster") == postmaster
    for node in cluster.nodes:
        assert _entries(node) == ["kept", "and on"]


def test_the_network_process_dies(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    before = leader.pid("network")
    worker, postmaster = leader.pid("worker"), leader.pid("postmaster")
    psutil.Process(before).kill()
    eventually(lambda: leader.pid("network") not in (0, before), "a new network process")
    new = cluster.wait_agreed()
    _replicate(new, ["and on"])
    cluster.wait_agreed()
    assert (leader.pid("worker"), leader.pid("postmaster")) == (worker, postmaster)


def test_the_supervisor_dies_and_start_takes_over(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    pids = leader.status()["pids"]
    psutil.Process(pids["supervisor"]).kill()
    eventually(lambda: not psutil.pid_exists(pids["supervisor"]), "the end of the supervisor")
    _replicate(leader, ["without supervisor"])
    leader.start()
    after = leader.status()["pids"]
    assert after["supervisor"] not in (0, pids["supervisor"])
    for part in ("worker", "network", "postmaster"):
        assert after[part] == pids[part], part
    # What was taken over is looked after again.
    psutil.Process(after["worker"]).kill()
    eventually(lambda: leader.pid("worker") not in (0, after["worker"]), "a new worker")
    cluster.wait_agreed()
    leader.stop()
    for pid in after.values():
        eventually(lambda pid=pid: not psutil.pid_exists(pid), "the end of everything")  # type: ignore[misc]


def test_the_postmaster_dies(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    pids = leader.status()["pids"]
    psutil.Process(pids["postmaster"]).kill()
    eventually(lambda: leader.pid("postmaster") not in (0, pids["postmaster"]), "a new postmaster")

    def answers() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            return bool(leader.value("SELECT pgraft_get_worker_state() = 'running'"))
        return False

    eventually(answers, "PostgreSQL to answer again")
    after = leader.status()["pids"]
    assert (after["worker"], after["network"]) == (pids["worker"], pids["network"])
    _replicate(cluster.wait_agreed(), ["and on"])


def test_pg_ctl_stop_stops_the_node(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    others = cluster.followers(leader)
    pids = leader.status()["pids"]
    pg_ctl = str(pgcluster.bindir(cluster.major) / "pg_ctl")
    pgcluster.run(*pgcluster.as_server_user(pg_ctl, "stop", "-D", str(leader.pgdata), "-m", "fast"))
    for pid in pids.values():
        eventually(lambda pid=pid: not psutil.pid_exists(pid), "the end of everything")  # type: ignore[misc]
    assert leader.launch("status", ok=False).returncode == 3
    cluster.wait_agreed(others)
    segments = {node.segment_name for node in others}
    assert all(Path("/dev/shm", name).exists() for name in segments)
    leader.start()
    cluster.wait_agreed()


def test_readers_after_the_runtime_is_gone(cluster: Cluster) -> None:
    node = cluster.followers(cluster.wait_agreed())[0]
    pids = node.status()["pids"]
    for part in ("supervisor", "worker", "network"):
        psutil.Process(pids[part]).kill()
    notices: list[str] = []
    with node.connect() as session:
        session.add_notice_handler(lambda notice: notices.append(notice.severity_nonlocalized or ""))

        def state() -> str:
            row = session.execute("SELECT pgraft_get_worker_state()").fetchone()
            assert row is not None
            return str(row[0])

        eventually(lambda: state() == "stopped", "the worker state to be stopped")
        assert session.execute("SELECT pgraft_is_leader()").fetchone() == (False,)
        assert session.execute("SELECT pgraft_get_leader()").fetchone() == (0,)
        notices.clear()
        row = session.execute("SELECT count(*) FROM pgraft_get_nodes()").fetchone()
        assert row == (3,)
        assert "WARNING" in notices
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
            session.execute("SELECT pgraft_replicate_entry('x')")
        assert "pgraft-launch" in (caught.value.diag.message_hint or "")
    node.start()
    cluster.wait_agreed()
