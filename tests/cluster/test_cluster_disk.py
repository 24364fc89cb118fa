"""What a bad disk does to a node: it leaves consensus loudly, others take over, PostgreSQL stays up."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.cluster.test_cluster_leases import Sampler, violations
from tests.support import pgcluster
from tests.support.disk_faults import DiskFaults, delay, fail, hang
from tests.support.pgcluster import Cluster, Node, eventually

pytestmark = pytest.mark.cluster
STALL_MS = 1500
TIMING = {"election_timeout": "500", "heartbeat_interval": "50"}
FULL_BYTES = 24 * 1024 * 1024


class FaultyCluster:
    """Three nodes whose disks can be told to fail, and what was acknowledged on them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.faults: dict[str, DiskFaults] = {}
        self.acknowledged: list[str] = []
        cluster.up(3, self._prepare)

    def _prepare(self, node: Node) -> None:
        self.faults[node.name] = node.with_disk_faults()

    def replicate(self, node: Node, text: str) -> None:
        assert node.value("SELECT pgraft_replicate_entry(%s)", text) is True
        self.acknowledged.append(text)

    def check(self) -> None:
        """Everything acknowledged is on every node, once and in order."""
        self.cluster.wait_agreed()
        for node in self.cluster.nodes:
            rows = node.sql(
                "SELECT t FROM pgraft_log_get_stats() s, generate_series(2, s.commit_index) i,"
                " LATERAL pgraft_log_get_entry(i) t WHERE t IS NOT NULL ORDER BY i"
            )
            texts = [row[0] for row in rows if not row[0].startswith("unknown")]
            assert texts == self.acknowledged, node.name


@contextlib.contextmanager
def faulty(template: Path, **settings: str) -> Iterator[FaultyCluster]:
    """Nobody hangs when it ends."""
    with pgcluster.cluster(template, 0, **(TIMING | settings)) as cluster:
        made = FaultyCluster(cluster)
        try:
            yield made
        finally:
            for faults in made.faults.values():
                faults.clear()


def _has_left(node: Node) -> None:
    """The node takes no part, says so, and its PostgreSQL serves."""
    eventually(lambda: node.status()["state"] == "error", f"state error of {node.name}")
    assert node.value("SELECT pgraft_is_leader()") is False
    assert node.value("SELECT pgraft_get_worker_state()") == "error"
    assert node.value("SELECT count(*) FROM pg_class") > 100
    assert node.log_text().count(f"ERROR:  pgraft: node {node.node_id} leaves consensus: ") == 1
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        node.execute("SELECT pgraft_replicate_entry('refused')")
    _shows_no_leader(node)


def _shows_no_leader(node: Node) -> None:
    """What it saw when it left is old: others lead by now. Its values stay, with a WARNING that says so."""
    assert node.status()["leader"] == 0
    notices: list[str] = []
    with node.connect() as session:
        session.add_notice_handler(
            lambda notice: notices.append(f"{notice.severity} {notice.message_detail}")
        )
        assert session.execute("SELECT pgraft_get_leader()").fetchone() == (0,)
        assert session.execute("SELECT 1 FROM pgraft_get_nodes() WHERE is_leader").fetchall() == []
        own = (
            "SELECT is_leader, state, term > 0, commit_index > 0 FROM pgraft_get_cluster_status()"
            " WHERE node_id = %s"
        )
        assert session.execute(own, [node.node_id]).fetchone() == (False, "Unreachable", True, True)
        assert session.execute("SELECT * FROM pgraft_log_get_replication_status()").fetchall() == []
    assert len(notices) == 3
    assert all(notice.startswith("WARNING") and node.status()["error"] in notice for notice in notices)


def _fails_as_unknown(node: Node) -> None:
    with pytest.raises(psycopg.errors.StatementCompletionUnknown):
        node.execute("SELECT pgraft_replicate_entry('unknown')")


@pytest.mark.parametrize("call", ["fdatasync", pytest.param("pwrite", marks=pytest.mark.slow)])
def test_a_failed_sync_is_never_tried_again(template: Path, call: str) -> None:
    with faulty(template) as it:
        leader = it.cluster.wait_agreed()
        it.replicate(leader, "before")
        # A second try would work, and mean nothing.
        it.faults[leader.name].set(fail(call, errno.EIO, times=1))
        _fails_as_unknown(leader)
        _has_left(leader)
        postmaster = leader.pid("postmaster")
        others = it.cluster.followers(leader)
        new = it.cluster.wait_leader(others)
        it.replicate(new, "meanwhile")
        calls = it.faults[leader.name].calls()
        assert [(one.call, one.action) for one in calls] == [(call, "fail")], "not a single call after it"
        assert "Input/output error" in leader.status()["error"]
        assert leader.pid("postmaster") == postmaster
        it.faults[leader.name].clear()
        leader.launch("restart", "-l", str(leader.log))
        it.check()


def test_a_sync_that_hangs_is_noticed_while_it_hangs(template: Path) -> None:
    with faulty(template, disk_stall_timeout=str(STALL_MS)) as it:
        leader = it.cluster.wait_agreed()
        it.replicate(leader, "before")
        faults = it.faults[leader.name]
        faults.set(hang("fdatasync"))
        _fails_as_unknown(leader)
        new = it.cluster.wait_leader(it.cluster.followers(leader))
        it.replicate(new, "meanwhile")
        said = f"ERROR:  pgraft: node {leader.node_id} leaves consensus: "
        eventually(lambda: said in leader.log_text(), "a line in the server log")
        _has_left(leader)
        assert f"longer than pgraft.disk_stall_timeout ({STALL_MS} ms)" in leader.log_text()
        assert not faults.calls("released"), "all this while the call had not returned"
        faults.clear()
        eventually(lambda: "answers again, too late" in leader.log_text(), "the end of the call")
        _has_left(leader)
        it.replicate(new, "still")
        # A stop does not wait for a disk that hangs.
        leader.launch("restart", "-l", str(leader.log))
        it.check()


SILENT_WORKER = "the raft worker of this node does not answer"


def _is_silent(node: Node) -> None:
    """Whoever asks hears at once that the worker is there and does not answer."""
    eventually(lambda: node.status()["state"] == "error", "state error")
    with node.connect() as session:
        notices: list[str | None] = []
        session.add_notice_handler(lambda notice: notices.append(notice.message_primary))
        row = session.execute("SELECT pgraft_get_worker_state(), pgraft_is_leader(), pgraft_get_leader()")
        assert row.fetchone() == ("error", False, 0)
        session.execute("SELECT pgraft_get_term()")
        assert notices == [SILENT_WORKER]
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=SILENT_WORKER) as caught:
            session.execute("SELECT pgraft_replicate_entry('refused')")
        assert "pgraft-launch status" in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize("part", ["*", "/raft", "identity"])
def test_a_disk_that_hangs_while_the_worker_starts_is_noticed(template: Path, part: str) -> None:
    """Of its successor, first in the lock of the directory, then in the log, then in the identity; and of
    the first worker of a start."""
    with pgcluster.cluster(template, 0, **TIMING, disk_stall_timeout=str(STALL_MS)) as cluster:
        made: list[DiskFaults] = []
        cluster.up(1, lambda node: made.append(node.with_disk_faults()))
        node, faults = cluster.nodes[0], made[0]
        assert node.value("SELECT pgraft_replicate_entry('kept')") is True
        said = f"ERROR:  pgraft: node {node.node_id} cannot go on starting: "
        again = f"the disk of node {node.node_id} answers again"
        try:
            if part == "identity":
                # It is written where a longer promise must be remembered.
                with (node.pgdata / "postgresql.conf").open("a") as conf:
                    conf.write("pgraft.election_timeout = 600\n")
                node.stop()
            faults.set(hang("fsync", part=part))
            if part == "identity":
                failed = node.start("-t", "60", ok=False)
                assert failed.returncode == 1
                assert "pgraft.disk_stall_timeout" in failed.stderr
            else:
                os.kill(node.pid("worker"), signal.SIGKILL)
            eventually(lambda: said in node.log_text(), "a line in the server log")
            assert f"longer than pgraft.disk_stall_timeout ({STALL_MS} ms)" in node.log_text()
            assert str(node.raft_dir) in node.log_text()
            assert not faults.calls("released"), "all this while the call had not returned"
            _is_silent(node)
            if part != "*":
                assert "pgraft.disk_stall_timeout" in node.status()["error"]
            faults.clear()
            eventually(lambda: again in node.log_text(), "the end of the call")
            eventually(lambda: node.status()["is_leader"], "leader again")
            assert node.log_text().count(said) == 1
            assert node.value("SELECT pgraft_replicate_entry('more')") is True
            if part == "*":
                node.stop()
                faults.set(hang("fsync"))
                assert node.start("-t", "5", ok=False).returncode == 1
                _is_silent(node)
                assert node.log_text().count(said) == 2
        finally:
            faults.clear()


@pytest.mark.slow
def test_a_node_whose_disk_hangs_can_be_stopped(template: Path) -> None:
    with faulty(template, disk_stall_timeout=str(STALL_MS)) as it:
        follower = it.cluster.followers(it.cluster.wait_agreed())[0]
        it.faults[follower.name].set(hang("fdatasync"))
        it.replicate(it.cluster.wait_agreed([n for n in it.cluster.nodes if n is not follower]), "one")
        eventually(lambda: it.faults[follower.name].calls("hang"), "a sync that hangs")
        follower.stop()
        assert not it.faults[follower.name].calls("released")
        it.faults[follower.name].clear()
        follower.start()
        it.check()


def test_a_disk_that_is_slow_for_seconds_costs_the_lease_and_no_more(template: Path) -> None:
    with faulty(template, disk_stall_timeout="60000") as it:
        stop = threading.Event()
        samplers = [Sampler(node, stop) for node in it.cluster.nodes]
        for sampler in samplers:
            sampler.start()
        try:
            for number in range(2):
                leader = it.cluster.wait_agreed()
                it.replicate(leader, f"before {number}")
                it.faults[leader.name].set(delay("fdatasync", 2500, times=1))
                _fails_as_unknown(leader)
                it.replicate(it.cluster.wait_leader(it.cluster.followers(leader)), f"meanwhile {number}")
                # It comes back by itself.
                it.cluster.wait_agreed()
                assert leader.status()["state"] == "running"
                it.check()
        finally:
            stop.set()
            for sampler in samplers:
                sampler.join()
        samples = [sample for sampler in samplers for sample in sampler.samples]
        assert len({sample.node_id for sample in samples if sample.leads}) > 1
        assert violations(samples) == []


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of FULL_BYTES, which PostgreSQL's user owns."""
    user = pgcluster.server_user()
    if user is None:
        pytest.skip("only root can mount a small file system")
    home = Path("/var/tmp", f"pgraft-small-{os.getpid()}")
    home.mkdir()
    owner = pwd.getpwnam(user)
    options = f"size={FULL_BYTES},mode=0700,uid={owner.pw_uid},gid={owner.pw_gid}"
    mount = ["mount", "-t", "tmpfs", "-o", options, "pgraft-small", str(home)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        home.rmdir()
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)
    home.rmdir()


def test_a_full_disk(template: Path, small_disk: Path) -> None:
    """The file system of one node's Raft state fills up under load; freed, the node comes back."""
    settings = TIMING | {"log_segment_size": "1"}
    with pgcluster.cluster(template, 0, **settings) as cluster:
        small: list[Node] = []

        def on_small_disk(node: Node) -> None:
            if not small:
                small.append(node)
                with (node.pgdata / "postgresql.conf").open("a") as conf:
                    conf.write(f"pgraft.data_dir = '{small_disk}/raft'\n")

        cluster.up(3, on_small_disk)
        full = small[0]
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(FULL_BYTES - 6 * 1024 * 1024))
        if cluster.wait_agreed() is not full:
            cluster.wait_leader().execute(f"SELECT pgraft_transfer_leadership({full.node_id})")
            cluster.wait_agreed()
        fills = "SELECT count(pgraft_replicate_entry(repeat('x', 100000))) FROM generate_series(1, 200)"
        with pytest.raises(psycopg.errors.StatementCompletionUnknown, match="No space left on device"):
            full.execute(fills)
        _has_left(full)
        others = cluster.followers(full)
        assert cluster.wait_leader(others).value(fills.replace("200", "20")) == 20
        cluster.wait_agreed(others)
        # Another start changes nothing: it goes as far as the room that is left, and says it again.
        full.launch("restart", "-l", str(full.log))
        eventually(lambda: "No space left on device" in full.status()["error"], "the same error again")
        full.stop()
        with contextlib.suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:
            while rest.write(bytes(4096)):
                pass
        # Not one byte is left. PostgreSQL, whose data lies elsewhere, comes up all the same.
        for command in ("start", "restart"):
            again = full.launch(command, "-l", str(full.log), ok=False)
            assert "Traceback" not in again.stderr + full.log_text()
            assert full.value("SELECT count(*) FROM pg_class") > 100
            if again.returncode == 0:
                # It had nothing to write that has no block already: it takes part until it has.
                continue
            assert "No space left on device" in again.stderr
            assert str(small_disk) in again.stderr
            assert full.value("SELECT pgraft_get_worker_state()") == "error"
            assert full.value("SELECT pgraft_get_leader()") == 0
            assert "No space left on device" in full.status()["error"]
        full.stop()
        (small_disk / "rest").unlink()
        ballast.unlink()
        full.start()
        cluster.wait_agreed()
        commit = cluster.wait_leader().value("SELECT commit_index FROM pgraft_log_get_stats()")
        assert full.value("SELECT commit_index FROM pgraft_log_get_stats()") >= commit
