"""The SQL functions that read the segment, against a stand-in for the runtime."""

from __future__ import annotations

import datetime
import os
import time

import psycopg
import pytest

from pgraft import __version__
from pgraft.shm.blocks import MemberRow, StatusRow
from pgraft.shm.layout import Role, WorkerState
from pgraft.shm.words import now_ns
from tests.support.shim_harness import (
    ELECTION_TIMEOUT_MS,
    FakeRuntime,
    Server,
    living_process,
    start_ticks,
    until,
)

GONE = "pgraft is not running on this node"
SILENT = "the raft worker of this node does not answer"


def test_the_version_is_that_of_the_source(pg: Server) -> None:
    with pg.connect() as session:
        assert session.value("SELECT pgraft_get_version()") == __version__
        assert session.value("SELECT extversion FROM pg_extension WHERE extname = 'pgraft'") == __version__


def test_without_any_runtime_nothing_fails(pg: Server) -> None:
    with pg.connect() as session:
        assert session.value("SELECT pgraft_is_leader()") is False
        assert session.value("SELECT pgraft_get_leader()") == 0
        assert session.value("SELECT pgraft_get_worker_state()") == "stopped"
        assert session.messages == []
        assert session.value("SELECT pgraft_get_term()") == 0
        assert session.rows("SELECT * FROM pgraft_get_nodes()") == []
        assert session.rows("SELECT * FROM pgraft_get_cluster_status()") == []
        assert session.rows("SELECT * FROM pgraft_log_get_stats()") == [(0, 0, 0, 0)]
        assert session.rows("SELECT * FROM pgraft_log_get_replication_status()") == []
        assert session.messages == [("WARNING", GONE)] * 5
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=GONE) as caught:
            session.value("SELECT pgraft_replicate_entry('x')")
        assert "pgraft-launch" in (caught.value.diag.message_hint or "")


def test_readers_show_the_blocks(pg: Server, runtime: FakeRuntime) -> None:
    with pg.connect() as session:
        assert session.value("SELECT pgraft_is_leader()") is True
        assert session.value("SELECT pgraft_get_leader()") == 1
        assert session.value("SELECT pgraft_get_term()") == 5
        assert session.value("SELECT pgraft_get_worker_state()") == "running"
        assert session.rows("SELECT * FROM pgraft_get_nodes()") == [
            (1, "10.0.0.1", 7001, True),
            (2, "10.0.0.2", 7002, False),
            (3, "10.0.0.3", 7003, False),
        ]
        assert session.rows("SELECT * FROM pgraft_log_get_stats()") == [(4096, 11, 10, 10)]
        status = session.rows("SELECT * FROM pgraft_get_cluster_status()")
        assert [row[:8] for row in status] == [
            (1, "10.0.0.1", 7001, True, "Leader", 5, 10, 11),
            (2, "10.0.0.2", 7002, False, "Follower", 5, 9, 11),
            (3, "10.0.0.3", 7003, False, "Unreachable", 0, 0, 0),
        ]
        assert status[0][8] == datetime.timedelta(0)
        assert datetime.timedelta(0) < status[1][8] < datetime.timedelta(seconds=5)
        assert status[2][8] is None
        replication = session.rows("SELECT * FROM pgraft_log_get_replication_status()")
        assert [row[:4] for row in replication] == [(2, 11, 12, True), (3, 0, 0, False)]
        assert session.messages == []


@pytest.mark.parametrize(
    ("role", "text"),
    [
        (Role.FOLLOWER, "Follower"),
        (Role.CANDIDATE, "Candidate"),
        (Role.PRE_CANDIDATE, "PreCandidate"),
        (Role.LEARNER, "Learner"),
        (Role.UNKNOWN, "Unreachable"),
    ],
)
def test_states_by_role(pg18: Server, runtime: FakeRuntime, role: Role, text: str) -> None:
    runtime.publish(rows=[StatusRow(2, role, heard_boot_ns=now_ns())])
    with pg18.connect() as session:
        assert session.value("SELECT state FROM pgraft_get_cluster_status()") == text


def test_a_silent_node_is_unreachable_and_keeps_its_values(pg18: Server, runtime: FakeRuntime) -> None:
    heard = now_ns() - 2 * ELECTION_TIMEOUT_MS * 1_000_000
    runtime.publish(rows=[StatusRow(2, Role.FOLLOWER, 4, 3, 2, heard)])
    with pg18.connect() as session:
        row = session.rows(
            "SELECT state, term, commit_index, last_log_index FROM pgraft_get_cluster_status()"
        )
        assert row == [("Unreachable", 4, 3, 2)]


def test_a_follower_names_the_leader(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.publish(leader=2, role=Role.FOLLOWER)
    with pg18.connect() as session:
        assert session.rows("SELECT * FROM pgraft_log_get_replication_status()") == []
        assert len(session.messages) == 1
        assert "node 2 at 10.0.0.2:7002" in session.messages[0][1]


def test_the_lease_runs_out_by_itself(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.lead(lease_ms=100)
    with pg18.connect() as session:
        assert session.value("SELECT pgraft_is_leader()") is True
        runtime.stop()
        time.sleep(0.1)
        assert session.value("SELECT pgraft_is_leader()") is False


def test_a_lease_that_no_setting_allows_is_none(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.segment.worker["lease_end_ns"] = 2**63 - 1
    with pg18.connect() as session:
        assert session.value("SELECT pgraft_is_leader()") is False


def test_a_silent_worker_is_an_error(pg: Server, runtime: FakeRuntime) -> None:
    with pg.connect() as session:
        assert session.value("SELECT pgraft_get_leader()") == 1
        runtime.beating = False
        until(lambda: session.value("SELECT pgraft_get_worker_state()") == "error", "error")
        assert session.value("SELECT pgraft_get_leader()") == 0
        assert session.messages == []
        assert session.value("SELECT pgraft_get_term()") == 5
        assert session.messages == [("WARNING", SILENT)]
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=SILENT) as caught:
            session.value("SELECT pgraft_replicate_entry('x')")
        assert "silent for an election timeout" in (caught.value.diag.message_detail or "")
        assert "pgraft-launch status" in (caught.value.diag.message_hint or "")
        runtime.segment.set_worker_text("error", "the disk of this node hangs")
        runtime.segment.worker["state"] = WorkerState.ERROR
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=SILENT) as caught:
            session.value("SELECT pgraft_replicate_entry('x')")
        assert caught.value.diag.message_detail == "the disk of this node hangs"


def test_a_dead_worker_is_stopped(pg: Server, runtime: FakeRuntime) -> None:
    with living_process() as child:
        runtime.segment.header["worker_pid"] = child.pid
        runtime.segment.header["worker_start"] = start_ticks(child.pid)
        runtime.beating = False
        runtime.segment.worker["beat_ns"] = 1
        with pg.connect() as session:
            until(lambda: session.value("SELECT pgraft_get_worker_state()") == "error", "error")
            child.kill()
            # Not reaped yet: a zombie is dead, too.
            until(lambda: session.value("SELECT pgraft_get_worker_state()") == "stopped", "stopped")
            child.wait()
            assert session.value("SELECT pgraft_get_worker_state()") == "stopped"
            assert session.value("SELECT pgraft_get_term()") == 5


def test_a_reused_pid_is_not_the_worker(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.beating = False
    runtime.segment.worker["beat_ns"] = 1
    runtime.segment.header["worker_start"] += 1
    with pg18.connect() as session:
        until(lambda: session.value("SELECT pgraft_get_worker_state()") == "stopped", "stopped")


def test_a_process_of_another_user_is_not_the_worker(pg18: Server, runtime: FakeRuntime) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has two users here")
    runtime.beating = False
    runtime.segment.worker["beat_ns"] = 1
    runtime.segment.header["worker_pid"], runtime.segment.header["worker_start"] = (
        os.getpid(),
        start_ticks(os.getpid()),
    )
    with pg18.connect() as session:
        until(lambda: session.value("SELECT pgraft_get_worker_state()") == "stopped", "stopped")


LEFT = "this node takes no part in consensus"


def test_a_leader_that_left_consensus_shows_no_leader(pg: Server, runtime: FakeRuntime) -> None:
    """Its disk failed: the worker beats, and its last status says that it leads."""
    runtime.segment.worker["lease_end_ns"] = 0
    runtime.segment.set_worker_text("error", "cannot sync the log: Input/output error")
    runtime.segment.worker["state"] = WorkerState.ERROR
    with pg.connect() as session:
        details: list[str] = []
        session.connection.add_notice_handler(lambda notice: details.append(notice.message_detail or ""))
        assert session.value("SELECT pgraft_is_leader()") is False
        assert session.value("SELECT pgraft_get_leader()") == 0
        assert session.messages == []
        assert session.rows("SELECT node_id FROM pgraft_get_nodes() WHERE is_leader") == []
        own = session.rows("SELECT is_leader, state, term, commit_index FROM pgraft_get_cluster_status()")[0]
        assert own == (False, "Unreachable", 5, 10)
        assert session.rows("SELECT * FROM pgraft_log_get_replication_status()") == []
        assert session.value("SELECT pgraft_get_term()") == 5
        assert session.messages == [("WARNING", LEFT)] * 4
        assert all("cannot sync the log: Input/output error" in detail for detail in details)


def test_a_leader_whose_disk_hangs_shows_no_leader(pg18: Server, runtime: FakeRuntime) -> None:
    """The thread that watches says so; the worker does not beat."""
    runtime.stop()
    runtime.segment.worker["lease_end_ns"] = 0
    runtime.segment.set_worker_text("error", "the disk hangs")
    runtime.segment.worker["state"] = WorkerState.ERROR
    with pg18.connect() as session:
        details: list[str] = []
        session.connection.add_notice_handler(lambda notice: details.append(notice.message_detail or ""))
        until(
            lambda: session.rows("SELECT * FROM pgraft_get_nodes()") and session.messages[-1][1] == SILENT,
            "silence",
        )
        assert session.value("SELECT pgraft_get_leader()") == 0
        assert "It left consensus: the disk hangs." in details[-1]
        assert session.rows("SELECT * FROM pgraft_log_get_replication_status()") == []
        assert session.rows("SELECT state FROM pgraft_get_cluster_status()")[0] == ("Unreachable",)


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (WorkerState.INITIALIZING, "initializing"),
        (WorkerState.ERROR, "error"),
        (WorkerState.STOPPED, "stopped"),
    ],
)
def test_worker_states(pg18: Server, runtime: FakeRuntime, state: WorkerState, text: str) -> None:
    runtime.segment.worker["state"] = state
    with pg18.connect() as session:
        assert session.value("SELECT pgraft_get_worker_state()") == text


def test_a_stopped_worker_that_is_there_answers(pg18: Server, runtime: FakeRuntime) -> None:
    """That of a removed node says so; when it has gone, at once nothing runs, however fresh its beat."""
    runtime.segment.worker["state"] = WorkerState.STOPPED
    with pg18.connect() as session:
        assert session.value("SELECT pgraft_replicate_entry('x')") is True
        assert session.value("SELECT pgraft_get_worker_state()") == "stopped"
        runtime.segment.header["worker_start"] += 1
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=GONE):
            session.value("SELECT pgraft_replicate_entry('x')")


def test_nodes_that_leave_are_no_members(pg18: Server, runtime: FakeRuntime) -> None:
    rows = (
        MemberRow(1, "a", 1),
        MemberRow(2, "b", 2, is_leaving=True),
        MemberRow(3, "c", 3, is_learner=True),
    )
    runtime.members.publish(rows, ())
    with pg18.connect() as session:
        assert session.rows("SELECT node_id FROM pgraft_get_nodes()") == [(1,), (3,)]
        assert session.rows("SELECT * FROM pgraft_get_learners()") == [(3, "c", 3)]


@pytest.mark.parametrize("state", [WorkerState.STOPPED, WorkerState.RUNNING])
def test_a_worker_that_has_not_begun(pg18: Server, runtime: FakeRuntime, state: WorkerState) -> None:
    """Its start counts as a beat; what the page says is that of the worker before it, or of none."""
    runtime.stop()
    worker, header = runtime.segment.worker, runtime.segment.header
    worker["state"], worker["beat_ns"], worker["started_boot_ns"] = state, 0, 1
    with living_process() as child, pg18.connect() as session:
        try:
            header["election_timeout_ms"] = 10_000
            header["epoch"] += 1
            header["worker_pid"], header["worker_start"] = child.pid, start_ticks(child.pid)
            shown = "initializing" if state == WorkerState.STOPPED else "running"
            until(lambda: session.value("SELECT pgraft_get_worker_state()") == shown, shown)
            assert runtime.segment.worker_state(now_ns()).name.lower() == shown
            header["election_timeout_ms"] = 100
            header["epoch"] += 1
            until(lambda: session.value("SELECT pgraft_get_worker_state()") == "error", "error")
            assert runtime.segment.worker_state(now_ns()) == WorkerState.ERROR
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=SILENT):
                session.value("SELECT pgraft_replicate_entry('x')")
            assert session.value("SELECT pgraft_get_leader()") == 0
            # It has begun, and ended, and only its process is there still.
            worker["started_boot_ns"], worker["state"] = now_ns(), WorkerState.STOPPED
            assert session.value("SELECT pgraft_get_worker_state()") == "stopped"
            assert runtime.segment.worker_state(now_ns()) == WorkerState.STOPPED
        finally:
            child.kill()


def test_a_worker_that_starts_and_is_silent_is_an_error(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.stop()
    runtime.segment.worker["state"] = WorkerState.INITIALIZING
    with pg18.connect() as session:
        until(lambda: session.value("SELECT pgraft_get_worker_state()") == "error", "error")
        assert runtime.segment.worker_state(now_ns()) == WorkerState.ERROR


def test_a_block_that_was_half_written_leaves_the_other(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.publish()
    runtime.segment.worker["status_selector"] ^= 1
    with pg18.connect() as session:
        assert session.value("SELECT pgraft_get_term()") == 5
        offset = 3 * 4096 + runtime.segment.worker["status_selector"] * 3 * 4096
        runtime.segment.bytes_at(offset + 16, 8)[:] = b"\xff" * 8
        assert session.value("SELECT pgraft_get_term()") == 5
        assert session.messages == []
        offset = 3 * 4096 + (1 - runtime.segment.worker["status_selector"]) * 3 * 4096
        runtime.segment.bytes_at(offset + 16, 8)[:] = b"\xff" * 8
        assert session.value("SELECT pgraft_get_term()") == 0
        assert session.messages == [("WARNING", "the status of pgraft in shared memory is damaged")]


def test_a_session_follows_to_a_new_segment(pg: Server, runtime: FakeRuntime) -> None:
    with pg.connect() as session:
        assert session.value("SELECT pgraft_get_term()") == 5
        runtime.stop()
        runtime.segment.retire()
        assert session.value("SELECT pgraft_is_leader()") is False
        second = FakeRuntime(pg.data_dir).start()
        try:
            second.publish()
            second.lead()
            until(lambda: session.value("SELECT pgraft_is_leader()"), "leader again")
            assert session.value("SELECT pgraft_replicate_entry('x')") is True
            assert [command.data for command in second.taken] == [b"x"]
        finally:
            second.close()


def test_a_taken_over_segment_has_a_new_epoch(pg18: Server, runtime: FakeRuntime) -> None:
    with pg18.connect() as session:
        assert session.value("SELECT pgraft_replicate_entry('x')") is True
        runtime.segment.header["epoch"] = 2
        until(lambda: session.value("SELECT pgraft_get_leader()") == 1, "seen again")
        time.sleep(0.11)
        assert session.value("SELECT pgraft_replicate_entry('y')") is True


def test_other_versions_are_told_once(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.segment.set_text("version", "9.9.9")
    with pg18.connect() as session:
        for _ in range(3):
            assert session.value("SELECT pgraft_is_leader()") is True
            session.value("SELECT pgraft_get_term()")
        assert len(session.messages) == 1
        assert "9.9.9" in session.messages[0][1]
