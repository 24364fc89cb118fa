"""Wrong settings: one clear line, a non-zero exit, and nothing left behind (SPEC section 2)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Node

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def made(template: Path) -> Iterator[Cluster]:
    """One node that was made and never started, for each test to break and mend."""
    with pgcluster.cluster(template, 0) as cluster:
        node = cluster.add(1)[0]
        node.init(cluster.initial_list() + f",node2=127.0.0.1:{pgcluster.free_port()}")
        yield cluster


@contextlib.contextmanager
def _with(node: Node, text: str) -> Iterator[None]:
    conf = node.pgdata / "postgresql.conf"
    before = conf.read_text()
    conf.write_text(before + text + "\n")
    try:
        yield
    finally:
        conf.write_text(before)


def _refused(node: Node, *words: str) -> None:
    done = node.start(ok=False)
    try:
        assert done.returncode != 0, done.stdout
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, done.stderr
        for word in words:
            assert word in lines[0], lines[0]
        assert "Traceback" not in done.stderr
        assert not (node.pgdata / "postmaster.pid").exists()
    finally:
        if done.returncode == 0:
            node.stop("immediate")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("pgraft.name = 'stranger'", ("pgraft.name", "stranger", "node1")),
        ("pgraft.initial_cluster = 'node1=h:1,node1=h:2'", ("pgraft.initial_cluster", "node1")),
        ("pgraft.initial_cluster = 'node1=127.0.0.1'", ("pgraft.initial_cluster", "127.0.0.1")),
        ("pgraft.election_timeout = '900ms'", ("pgraft.election_timeout", "900", "1000")),
        ("pgraft.election_timeout = 'soon'", ("pgraft.election_timeout", "soon")),
        ("pgraft.heartbeat_interval = 5", ("pgraft.heartbeat_interval", "5", "10")),
        ("pgraft.node_id = 2", ("pgraft.node_id", "2", "node1")),
        ("pgraft.data_dir = '/proc/pgraft'", ("pgraft.data_dir", "/proc/pgraft")),
        ("pgraft.initial_cluster_state = 'maybe'", ("pgraft.initial_cluster_state", "maybe", "existing")),
        ("pgraft.ssl_enabled = on", ("pgraft.ssl_",)),
    ],
)
def test_a_wrong_setting_is_one_clear_line(made: Cluster, setting: str, words: tuple[str, ...]) -> None:
    node = made.nodes[0]
    with _with(node, setting):
        _refused(node, *words)


def test_a_data_dir_inside_the_data_directory(made: Cluster) -> None:
    node = made.nodes[0]
    with _with(node, f"pgraft.data_dir = '{node.pgdata}/raft'"):
        _refused(node, "pgraft.data_dir", str(node.pgdata))


def test_a_port_in_use(made: Cluster) -> None:
    node = made.nodes[0]
    with contextlib.closing(socket.socket()) as other:
        other.bind(("127.0.0.1", node.raft_port))
        other.listen()
        _refused(node, str(node.raft_port), "in use")


def test_a_cluster_id_that_differs_from_the_stored_one(template: Path) -> None:
    with pgcluster.cluster(template, 1) as cluster:
        node = cluster.nodes[0]
        node.stop()
        with _with(node, "pgraft.cluster_id = 'renamed'"):
            _refused(node, "pgraft.cluster_id", "renamed", "'pgraft'")
        node.start()
        cluster.wait_agreed()


def test_autostart_off_leaves_it_to_pgraft_init(template: Path) -> None:
    with pgcluster.cluster(template, 0, autostart="off") as cluster:
        node = cluster.add(1)[0]
        node.init(cluster.initial_list())
        node.start()
        node.execute("CREATE EXTENSION pgraft")
        assert node.value("SELECT pgraft_get_worker_state()") == "initializing"
        assert node.value("SELECT pgraft_is_leader()") is False
        assert node.value("SELECT pgraft_init()") is True
        cluster.wait_agreed()
        assert node.value("SELECT pgraft_init()") is True
        assert node.value("SELECT pgraft_replicate_entry('joined')") is True
