"""The two processes of a node for real: kills, a freeze, and an orderly end. No PostgreSQL."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pgraft.shm.layout import CommandKind, Outcome, WorkerState
from pgraft.storage import load_identity, update_identity
from tests.support.node_processes import ProcessCluster, ProcessNode, process_cluster, wait_until

ELECTION_MS = 500


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ProcessCluster]:
    with process_cluster(tmp_path, election_timeout_ms=ELECTION_MS, heartbeat_interval_ms=50) as made:
        yield made


def replicate(node: ProcessNode, *texts: bytes) -> None:
    for text in texts:
        assert node.call(CommandKind.REPLICATE, text) == Outcome.OK


def assert_everywhere(cluster: ProcessCluster, *texts: bytes) -> None:
    leader = cluster.wait_leader()
    wait_until(
        lambda: all(node.status.commit_index >= leader.status.commit_index for node in cluster.nodes),
        10,
        "they did not agree",
    )
    for node in cluster.nodes:
        assert cluster.texts(node) == list(texts), f"node {node.id}"


def test_kill_of_the_leaders_worker_and_a_new_one(cluster: ProcessCluster) -> None:
    leader = cluster.wait_leader()
    replicate(leader, b"one", b"two")
    leader.signal_worker(signal.SIGKILL)
    leader.start_worker()
    successor = cluster.wait_leader(cluster.others(leader))
    replicate(successor, b"three")
    wait_until(lambda: leader.status.leader_id == successor.id, 10, "it did not follow")
    assert leader.segment.worker["epoch"] == 2
    assert_everywhere(cluster, b"one", b"two", b"three")


def test_kill_of_the_leaders_network_process_and_a_new_one(cluster: ProcessCluster) -> None:
    leader = cluster.wait_leader()
    replicate(leader, b"one")
    leader.kill_network()
    leader.start_network()
    wait_until(lambda: leader.segment.network["epoch"] == 2, 10, "no network process")
    replicate(cluster.wait_leader(), b"two")
    assert_everywhere(cluster, b"one", b"two")


def test_a_frozen_workers_lease_ends_by_itself(cluster: ProcessCluster) -> None:
    leader = cluster.wait_leader()
    others = cluster.others(leader)
    replicate(leader, b"one")
    leader.signal_worker(signal.SIGSTOP)
    began = time.monotonic()
    overlaps = 0
    while not any(node.lease_valid for node in others):
        assert time.monotonic() - began < 10, "nobody took over"
    assert not leader.lease_valid
    successor = cluster.wait_leader(others)
    replicate(successor, b"two")
    leader.signal_worker(signal.SIGCONT)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        overlaps += leader.lease_valid
    assert overlaps == 0
    assert leader.call(CommandKind.REPLICATE, b"lost") == Outcome.ERROR_STATE
    assert_everywhere(cluster, b"one", b"two")


def test_all_killed_at_once_come_back_with_everything(cluster: ProcessCluster) -> None:
    replicate(cluster.wait_leader(), b"one")
    for node in cluster.nodes:
        node.kill_network()
        node.signal_worker(signal.SIGKILL)
    for node in cluster.nodes:
        node.start_network()
        node.start_worker()
    # The word of the killed worker stays until it runs out or the new one begins.
    wait_until(lambda: all(node.segment.worker["epoch"] == 2 for node in cluster.nodes), 10, "no new workers")
    replicate(cluster.wait_leader(), b"two")
    assert_everywhere(cluster, b"one", b"two")


def test_an_orderly_end_hands_over_and_leaves_zero(cluster: ProcessCluster) -> None:
    leader = cluster.wait_leader()
    replicate(leader, b"one")
    wait_until(lambda: leader.status.voters_reachable == 3, 10, "not all are there")
    assert leader.worker is not None
    leader.worker.terminate()
    assert leader.worker.wait(5) == 0
    assert not leader.lease_valid
    assert leader.segment.worker["state"] == WorkerState.STOPPED
    cluster.wait_leader(cluster.others(leader), ELECTION_MS / 1000)
    for node in cluster.nodes:
        assert node.stop() == [0, 0]


def test_a_single_nodes_lease_ends_with_its_worker(tmp_path: Path) -> None:
    with process_cluster(tmp_path, 1, election_timeout_ms=ELECTION_MS, heartbeat_interval_ms=50) as cluster:
        (node,) = cluster.nodes
        cluster.wait_leader()
        replicate(node, b"one")
        assert node.stop() == [0, 0]
        assert node.segment.worker["lease_end_ns"] == 0


@pytest.mark.parametrize("stale", [False, True])
def test_a_worker_refuses_a_directory_from_another_machine(tmp_path: Path, stale: bool) -> None:
    """Also where something else than pgraft-launch has started it; a supervisor does not try it again."""
    with process_cluster(tmp_path, 1, election_timeout_ms=ELECTION_MS, heartbeat_interval_ms=50) as cluster:
        node = cluster.nodes[0]
        cluster.wait_leader()
        assert node.stop() == [0, 0]
        found = load_identity(node.dir)
        assert found is not None
        assert found.place is not None
        away = msgspec.structs.replace(found.place, machine="the other one")
        update_identity(node.dir, msgspec.structs.replace(found, place=away))
        if stale:
            # The run directory came with the copy, and speaks of the original's directory.
            config = msgspec.structs.replace(node.config, data_dir="/srv/elsewhere")
            (node.dir / "run" / "node.json").write_bytes(msgspec.json.encode(config))
        before = (node.dir / "identity").read_bytes()
        node.start_worker()
        assert node.worker is not None
        assert node.worker.wait(15) == 3
        text = (node.dir / "log").read_text()
        assert ("node.json is of /srv/elsewhere" if stale else "it belongs to machine the other one") in text
        assert (node.dir / "identity").read_bytes() == before
