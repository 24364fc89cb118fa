"""What ends the wait of a command, and with which SQLSTATE (SPEC section 3)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Node, eventually
from tests.support.segments import attach_any

pytestmark = pytest.mark.cluster
AT_ONCE_S = 5
"""Far below every timeout that could end the wait instead."""


@pytest.fixture(scope="module")
def stuck(template: Path) -> Iterator[tuple[Cluster, Node]]:
    """A leader whose followers hang, so that nothing it appends is committed, for a while.

    A long election timeout keeps it leader meanwhile.
    """
    with pgcluster.cluster(template, 3, election_timeout="20000", heartbeat_interval="1000") as made:
        yield made, made.wait_agreed()


class _Waiter(threading.Thread):
    """A session that replicates an entry and keeps the error that it got."""

    def __init__(self, node: Node, setup: str = "SELECT 1") -> None:
        super().__init__()
        self.session = node.connect()
        self.session.execute(setup)
        self.pid = self.session.info.backend_pid
        self.error: psycopg.Error | None = None
        self.took_s = 0.0

    def run(self) -> None:
        started = time.monotonic()
        with self.session:
            try:
                self.session.execute("SELECT pgraft_replicate_entry('waiting')")
            except psycopg.Error as error:
                self.error = error
            self.took_s = time.monotonic() - started

    def ended(self) -> psycopg.Error:
        """The error, once the wait is over."""
        self.join(timeout=60)
        assert not self.is_alive()
        assert self.error is not None
        return self.error


@contextlib.contextmanager
def _hanging(cluster: Cluster, leader: Node) -> Iterator[None]:
    workers = [psutil.Process(node.pid("worker")) for node in cluster.followers(leader)]
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.resume()


def _waits(node: Node, pid: int) -> bool:
    return bool(
        node.sql(
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Extension'"
            " AND wait_event ILIKE 'pgraft%%'",
            pid,
        )
    )


def _check_unknown(error: psycopg.Error, sqlstate: str) -> None:
    assert error.sqlstate == sqlstate
    context = error.diag.context or ""
    assert "may or may not have been committed" in context, context


def test_statement_timeout(stuck: tuple[Cluster, Node]) -> None:
    cluster, leader = stuck
    with _hanging(cluster, leader):
        waiter = _Waiter(leader, "SET statement_timeout = '500ms'")
        waiter.start()
        _check_unknown(waiter.ended(), "57014")
        assert waiter.took_s < AT_ONCE_S
    cluster.wait_agreed()


def test_cancel(stuck: tuple[Cluster, Node]) -> None:
    cluster, leader = stuck
    with _hanging(cluster, leader):
        waiter = _Waiter(leader)
        waiter.start()
        eventually(lambda: _waits(leader, waiter.pid), "a wait event of pgraft's own")
        cancelled = time.monotonic()
        leader.sql("SELECT pg_cancel_backend(%s)", waiter.pid)
        _check_unknown(waiter.ended(), "57014")
        assert time.monotonic() - cancelled < AT_ONCE_S
    cluster.wait_agreed()


def test_terminate(stuck: tuple[Cluster, Node]) -> None:
    cluster, leader = stuck
    with _hanging(cluster, leader):
        waiter = _Waiter(leader)
        waiter.start()
        eventually(lambda: _waits(leader, waiter.pid), "a wait event of pgraft's own")
        ended = time.monotonic()
        leader.sql("SELECT pg_terminate_backend(%s)", waiter.pid)
        _check_unknown(waiter.ended(), "57P01")
        assert time.monotonic() - ended < AT_ONCE_S
    cluster.wait_agreed()


def test_proposal_timeout(stuck: tuple[Cluster, Node]) -> None:
    cluster, leader = stuck
    with _hanging(cluster, leader):
        waiter = _Waiter(leader, "SET pgraft.proposal_timeout = '700ms'")
        waiter.start()
        error = waiter.ended()
        assert error.sqlstate == "40003"
        assert "may or may not" in (error.diag.message_detail or "")
        assert waiter.took_s < AT_ONCE_S
    cluster.wait_agreed()


def test_a_killed_worker_leaves_the_outcome_unknown(stuck: tuple[Cluster, Node]) -> None:
    cluster, leader = stuck
    with _hanging(cluster, leader):
        waiter = _Waiter(leader)
        waiter.start()
        eventually(lambda: _waits(leader, waiter.pid), "the session to wait")
        before = leader.value("SELECT last_index FROM pgraft_log_get_stats()")
        eventually(lambda: leader.status()["commit_index"] < before or True, "an appended entry")
        psutil.Process(leader.pid("worker")).kill()
        error = waiter.ended()
        assert error.sqlstate == "40003"
        assert "restarted" in (error.diag.message_primary or "")
        assert waiter.took_s < AT_ONCE_S + 5
    cluster.wait_agreed(timeout=120)


FORWARD = "SET pgraft.forward_proposals = on; SET pgraft.proposal_timeout = '300s'"


@pytest.mark.parametrize("whose", ["the leader's", "its own"])
def test_a_killed_network_process_ends_the_wait_of_a_forwarded_command(
    stuck: tuple[Cluster, Node], whose: str
) -> None:
    """The call goes down with it: nobody will ever answer, and the lost connection says so."""
    cluster, _ = stuck
    leader = cluster.wait_agreed()
    follower = cluster.followers(leader)[0]
    network = psutil.Process((leader if whose == "the leader's" else follower).pid("network"))
    waiter = _Waiter(follower, FORWARD)
    taken = _taken(follower)
    network.suspend()
    waiter.start()
    # From here on the call stands in a ring or a socket of the process that hangs.
    eventually(lambda: _taken(follower) > taken, "the worker to take the command")
    killed = time.monotonic()
    network.kill()
    error = waiter.ended()
    assert error.sqlstate == "40003"
    assert "the connection to the leader broke" in (error.diag.message_primary or "")
    assert time.monotonic() - killed < 3 * AT_ONCE_S, "a new process, a connection and a round trip"
    assert cluster.wait_agreed() is leader
    with follower.connect() as session:
        session.execute(FORWARD)
        assert session.execute("SELECT pgraft_replicate_entry('on')").fetchone() == (True,)


def _taken(node: Node) -> int:
    """How many commands the node's worker has taken and handled."""
    segment = attach_any(node.segment_name)
    try:
        return int(segment.worker["commands_taken"])
    finally:
        segment.close()


def test_stop_fast_ends_the_wait(stuck: tuple[Cluster, Node]) -> None:
    """Last in this file: it stops the leader's node."""
    cluster, _ = stuck
    leader = cluster.wait_agreed()
    with _hanging(cluster, leader):
        waiter = _Waiter(leader)
        waiter.start()
        eventually(lambda: _waits(leader, waiter.pid), "the session to wait")
        leader.stop("fast")
        _check_unknown(waiter.ended(), "57P01")
