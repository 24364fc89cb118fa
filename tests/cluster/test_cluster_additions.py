"""Adding a node over slow links and under load, with somebody killed in the middle of it.

Whoever is killed, and at which stage: the cluster agrees and commits, nothing that was acknowledged is
lost, and asking again, or for the removal, ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from pgraft.shm.blocks import StatusRow, read_status
from tests.cluster.test_cluster_operations import add, ask, check, members
from tests.soak.places import Doors
from tests.soak.proxy import Faults, proxy
from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Failed, Node, eventually
from tests.support.segments import attach_any
from tests.support.sql_load import Load, load

pytestmark = pytest.mark.cluster

TIMING = {"election_timeout": "1s", "heartbeat_interval": "100"}
DELAY_MS = 60
"""One way, between any two nodes."""
BACKLOG = 8
"""Entries of a megabyte that a newcomer has to fetch: a second or so of catching up, over these links."""
LOOK_S = 0.001
STAGE_WAIT_S = 30


class Stage(StrEnum):
    """How far the addition is when somebody is killed."""

    LEARNER = "right after the learner entry"
    CATCH_UP = "while it catches up"
    PROMOTION = "right before the promotion, or in it"


class Victim(StrEnum):
    """Who is killed."""

    SESSION = "the session, by pg_terminate_backend"
    BACKEND = "the session's backend, by kill -9"
    LEADER = "the leader's worker"
    NEWCOMER = "the newcomer"


class Progress:
    """What the leader knows of the newcomer, from its segment: many times faster than by SQL."""

    def __init__(self, leader: Node, newcomer: Node) -> None:
        self._segment = attach_any(leader.segment_name)
        self._id = newcomer.node_id

    def close(self) -> None:
        """Look no more."""
        self._segment.close()

    def wait(self, stage: Stage) -> None:
        """Until the addition has come to this stage."""
        self._until(lambda row: True, stage)
        if stage is Stage.CATCH_UP:
            self._until(lambda row: row.match_index > 0, stage)
        elif stage is Stage.PROMOTION:
            target = read_status(self._segment).last_index
            self._until(lambda row: row.match_index >= target or not row.is_learner, stage)

    def _until(self, there: Callable[[StatusRow], bool], stage: Stage) -> None:
        end = time.monotonic() + STAGE_WAIT_S
        while time.monotonic() < end:
            rows = [row for row in read_status(self._segment).rows if row.node_id == self._id]
            if rows and there(rows[0]):
                return
            time.sleep(LOOK_S)  # a segment tells nobody that it has changed
        raise Failed(f"not within {STAGE_WAIT_S} s: {stage}")


class Call:
    """pgraft_add_node in a session of its own; what it was told."""

    def __init__(self, leader: Node, late: Node) -> None:
        self._session = leader.connect()
        self._late = late
        self.pid = self._session.info.backend_pid
        self.told: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        words = (self._late.node_id, self._late.raft_port)
        try:
            with self._session as session:
                row = session.execute("SELECT pgraft_add_node(%s, '127.0.0.1', %s)", words).fetchone()
            self.told = row
        except psycopg.Error as error:
            self.told = error

    def join(self) -> None:
        """Until it has been told something: success, or that nobody knows, or that the session is gone."""
        self._thread.join()
        unknown = (psycopg.errors.StatementCompletionUnknown, psycopg.OperationalError)
        assert self.told == (True,) or isinstance(self.told, unknown), self.told


@contextlib.contextmanager
def slow(template: Path, newcomers: int) -> Iterator[Cluster]:
    """Three nodes over slow links, as those that come will be, with something to catch up."""
    doors = Doors(3 + newcomers)
    with proxy(doors.plan(1)) as relay:
        relay.links({pair: Faults(delay_ms=DELAY_MS) for pair in doors.pairs})
        with pgcluster.cluster(template, 3, place=doors.place, **TIMING) as cluster:
            leader = cluster.wait_agreed()
            backlog = "SELECT pgraft_replicate_entry(repeat('x', 1000000)) FROM generate_series(1, %s)"
            assert len(leader.sql(backlog, BACKLOG)) == BACKLOG
            assert relay.counts().delayed > 0
            yield cluster


def strike(victim: Victim, call: Call, leader: Node, worker: int, late: list[psutil.Process]) -> None:
    """Kill whoever it is."""
    match victim:
        case Victim.SESSION:
            leader.value("SELECT pg_terminate_backend(%s)", call.pid)
        case Victim.BACKEND:
            os.kill(call.pid, signal.SIGKILL)
        case Victim.LEADER:
            os.kill(worker, signal.SIGKILL)
        case Victim.NEWCOMER:
            for process in late:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(late, timeout=30)


def interrupted(cluster: Cluster, work: Load, victim: Victim, stage: Stage, *, remove: bool) -> None:
    """Add a node, with somebody killed at a stage of it; end it by asking again, or by a removal. Then
    the node is removed, if it is there."""
    here = cluster.nodes[:3]
    late = cluster.newcomer(here)
    leader = cluster.wait_leader(here)
    worker, processes = leader.pid("worker"), late.processes()
    progress = Progress(leader, late)
    try:
        call = Call(leader, late)
        progress.wait(stage)
        strike(victim, call, leader, worker, processes)
        # Whoever is gone: the others commit.
        work.wait_for(10)
    finally:
        progress.close()
    if victim is Victim.NEWCOMER:
        late.start()
    if not remove:
        add(cluster, late)
        call.join()
        follow(cluster, [*here, late])
        assert late.value("SELECT count(*) FROM pgraft_get_learners()") == 0
    ask(cluster, "pgraft_remove_node(%s)", late.node_id)
    if remove:
        call.join()
    work.wait_for(10)
    late.stop()
    follow(cluster, here)


def follow(cluster: Cluster, nodes: list[Node]) -> None:
    """Until one of these nodes leads, all of them follow it, and nobody else is a member; others are at
    work, so that their indexes differ."""
    leader = cluster.wait_leader(nodes)
    ids = [node.node_id for node in nodes]

    def agreed() -> bool:
        pages = [node.status() for node in nodes]
        return len({(page["leader"], page["term"]) for page in pages}) == 1 and pages[0]["leader"] in ids

    eventually(agreed, f"agreement of {ids}")
    for node in (leader, nodes[-1]):
        eventually(lambda node=node: members(node) == ids, f"{ids} as the members")  # type: ignore[misc]


def test_an_addition_over_slow_links_is_interrupted_and_ended(template: Path) -> None:
    with slow(template, 3) as cluster:
        with load(cluster, 2) as work:
            interrupted(cluster, work, Victim.SESSION, Stage.CATCH_UP, remove=False)
            interrupted(cluster, work, Victim.LEADER, Stage.LEARNER, remove=True)
            interrupted(cluster, work, Victim.NEWCOMER, Stage.CATCH_UP, remove=False)
        check(cluster, work, cluster.nodes[:3])


@pytest.mark.slow
@pytest.mark.parametrize("victim", Victim)
def test_whoever_is_killed_at_whichever_stage_of_an_addition(template: Path, victim: Victim) -> None:
    with slow(template, 2 * len(Stage)) as cluster:
        with load(cluster, 2) as work:
            for stage in Stage:
                for remove in (False, True):
                    interrupted(cluster, work, victim, stage, remove=remove)
        check(cluster, work, cluster.nodes[:3])
    print(f"\n{victim}: {len(work.acknowledged)} acknowledged, {len(work.unknown)} unknown")
