"""One leader at a time, as SQL shows it, through freezes, kills and cuts (SPEC section 4)."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Node, eventually

pytestmark = pytest.mark.cluster
ROUNDS = 6


class Sample:
    """One request: when it was sent and answered, by which node, what it said."""

    __slots__ = ("leads", "node_id", "received", "sent", "term")

    def __init__(self, node_id: int, sent: float, received: float, leads: bool, term: int) -> None:
        self.node_id, self.sent, self.received = node_id, sent, received
        self.leads, self.term = leads, term


class Sampler(threading.Thread):
    """Asks one node many times a second, and connects again where it must."""

    def __init__(self, node: Node, stop: threading.Event) -> None:
        super().__init__()
        self.node = node
        self.stop_event = stop
        self.samples: list[Sample] = []

    def run(self) -> None:
        while not self.stop_event.is_set():
            with contextlib.suppress(psycopg.Error), self.node.connect() as session:
                while not self.stop_event.wait(0.002):
                    sent = time.monotonic()
                    row = session.execute("SELECT pgraft_is_leader(), pgraft_get_term()").fetchone()
                    assert row is not None
                    self.samples.append(Sample(self.node.node_id, sent, time.monotonic(), row[0], row[1]))
            self.stop_event.wait(0.02)


def violations(samples: list[Sample]) -> list[tuple[Sample, Sample]]:
    """Requests sent after another node's true with a higher term was received, that returned true."""
    trues = sorted((s for s in samples if s.leads), key=lambda s: s.received)
    found = []
    newest: Sample | None = None
    by_sent = sorted(trues, key=lambda s: s.sent)
    done = 0
    for sample in by_sent:
        while done < len(trues) and trues[done].received < sample.sent:
            if newest is None or trues[done].term > newest.term:
                newest = trues[done]
            done += 1
        if newest is not None and newest.term > sample.term and newest.node_id != sample.node_id:
            found.append((newest, sample))
    return found


def test_the_check_sees_a_violation() -> None:
    good = [Sample(1, 0, 1, True, 5), Sample(2, 2, 3, True, 6), Sample(1, 4, 5, False, 5)]
    assert violations(good) == []
    assert violations([*good, Sample(1, 6, 7, True, 5)]) != []
    assert violations([Sample(1, 0, 4, True, 5), Sample(2, 1, 2, True, 6)]) == []


def test_never_two_leaders_through_freezes_and_kills(template: Path) -> None:
    with pgcluster.cluster(template, 3, election_timeout="500", heartbeat_interval="50") as cluster:
        stop = threading.Event()
        samplers = [Sampler(node, stop) for node in cluster.nodes]
        for sampler in samplers:
            sampler.start()
        terms = set()
        try:
            for number in range(ROUNDS):
                leader = cluster.wait_agreed()
                terms.add(leader.status()["term"])
                others = cluster.followers(leader)
                _disturb(cluster, leader, others, kill=number % 2 == 1)
            cluster.wait_agreed()
        finally:
            stop.set()
            for sampler in samplers:
                sampler.join()
        samples = [sample for sampler in samplers for sample in sampler.samples]
        assert len(terms) >= ROUNDS // 2
        assert sum(sample.leads for sample in samples) > 50
        assert violations(samples) == []


def _disturb(cluster: Cluster, leader: Node, others: list[Node], *, kill: bool) -> None:
    if kill:
        psutil.Process(leader.pid("worker")).kill()
        psutil.Process(leader.pid("network")).kill()
        eventually(lambda: leader.status()["state"] == "running", "the worker to run again")
        return
    worker = psutil.Process(leader.pid("worker"))
    worker.suspend()
    try:
        cluster.wait_leader(others)
        assert leader.value("SELECT pgraft_is_leader()") is False
    finally:
        worker.resume()


def test_a_frozen_leader_turns_false_by_itself(template: Path) -> None:
    with pgcluster.cluster(template, 1) as cluster:
        node = cluster.nodes[0]
        worker = psutil.Process(node.pid("worker"))
        with node.connect() as session:
            assert session.execute("SELECT pgraft_is_leader()").fetchone() == (True,)
            frozen = time.monotonic()
            worker.suspend()
            try:
                while session.execute("SELECT pgraft_is_leader()").fetchone() == (True,):
                    assert time.monotonic() - frozen < 1.5
                eventually(
                    lambda: session.execute("SELECT pgraft_get_worker_state()").fetchone() == ("error",),
                    "the worker state to be error",
                )
            finally:
                worker.resume()
            eventually(
                lambda: session.execute("SELECT pgraft_is_leader()").fetchone() == (True,), "a lease again"
            )


def test_a_minority_accepts_nothing(template: Path) -> None:
    """Two of three nodes gone: SPEC's bounds are one election timeout for the lease, two and a heartbeat
    for commands; the slack is for a busy machine."""
    timeout_s, heartbeat_s, slack_s = 2.0, 0.2, 2.0
    settings = {"election_timeout": "2000", "heartbeat_interval": "200"}
    with pgcluster.cluster(template, 3, **settings) as cluster:
        leader = cluster.wait_agreed()
        session = leader.connect()
        pending: list[tuple[float, psycopg.Error | None]] = []

        def replicate(setup: str = "SELECT 1") -> None:
            with leader.connect() as other:
                other.execute(setup)
                try:
                    other.execute("SELECT pgraft_replicate_entry('lost')")
                    pending.append((time.monotonic(), None))
                except psycopg.Error as error:
                    pending.append((time.monotonic(), error))

        doomed = [process for node in cluster.followers(leader) for process in node.processes()]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        gone = time.monotonic()
        threads = [threading.Thread(target=replicate) for _ in range(3)]
        for thread in threads:
            thread.start()
        while session.execute("SELECT pgraft_is_leader()").fetchone() == (True,):
            assert time.monotonic() - gone < timeout_s + slack_s
            time.sleep(0.01)
        for thread in threads:
            thread.join(timeout=60)
        assert len(pending) == 3
        for at, error in pending:
            assert error is not None
            assert error.sqlstate in ("40003", "55000")
            assert "1 of 3 voters can be reached, 2 are needed" in str(error)
            assert at - gone < 2 * timeout_s + heartbeat_s + slack_s
        pending.clear()
        started = time.monotonic()
        replicate()
        at, error = pending[0]
        assert error is not None
        assert error.sqlstate == "55000"
        assert "1 of 3 voters can be reached, 2 are needed" in str(error)
        assert at - started < 2 * timeout_s + heartbeat_s + slack_s
        session.close()
