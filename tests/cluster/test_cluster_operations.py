"""Membership as operators change it, on a cluster that is at work (SPEC section 1, README "Membership
in operation")."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Node, eventually, free_port
from tests.support.sql_load import Load, load

pytestmark = pytest.mark.cluster

TIMING = {"election_timeout": "500", "heartbeat_interval": "50"}


@pytest.fixture
def three(template: Path) -> Iterator[Cluster]:
    """Three nodes."""
    with pgcluster.cluster(template, 3, **TIMING) as made:
        yield made


def ask(cluster: Cluster, what: str, *parameters: object) -> Node:
    """Have the leader, whoever it is, change the members; asked again where the answer was unknown.

    Returns who did it.
    """

    def once() -> Node | None:
        leader = cluster.leader([node for node in cluster.nodes if node.pgdata.exists()])
        if leader is None:
            return None
        try:
            return leader if leader.value(f"SELECT {what}", *parameters) is True else None
        except (psycopg.errors.StatementCompletionUnknown, psycopg.OperationalError):
            return None
        except psycopg.errors.ObjectNotInPrerequisiteState as error:
            # Leadership was on its way elsewhere: nothing was changed.
            if "leader" in str(error):
                return None
            raise

    found: Node = eventually(once, what)
    return found


def add(cluster: Cluster, node: Node) -> Node:
    """pgraft_add_node of this node."""
    return ask(cluster, "pgraft_add_node(%s, '127.0.0.1', %s)", node.node_id, node.raft_port)


def members(node: Node) -> list[int]:
    """Ids of the members, learners too."""
    return [row[0] for row in node.sql("SELECT node_id FROM pgraft_get_nodes()")]


def check(cluster: Cluster, work: Load, nodes: list[Node]) -> Node:
    """All agree, and everything that was acknowledged is there."""
    leader = cluster.wait_agreed(nodes)
    work.check([leader])
    return leader


def test_a_leader_lost_in_an_addition_a_dead_node_and_two_administrators(three: Cluster) -> None:
    leader = three.wait_agreed()
    late = three.newcomer(three.nodes[:3], start=False)
    with load(three, 2) as work:
        work.wait_for(20)

        def first_call() -> None:
            with pytest.raises(psycopg.Error) as caught:
                leader.value("SELECT pgraft_add_node(%s, '127.0.0.1', %s)", late.node_id, late.raft_port)
            told.append(caught.value)

        told: list[psycopg.Error] = []
        call = threading.Thread(target=first_call)
        call.start()
        learners = "SELECT count(*) FROM pgraft_get_learners()"
        eventually(lambda: leader.value(learners) == 1, "a learner")
        others = three.followers(leader)[:2]
        eventually(lambda: all(node.value(learners) == 1 for node in others), "a learner everywhere")
        leader.kill_everything()
        call.join()
        successor = three.wait_leader(others)
        eventually(
            lambda: "addition of node 4 is not finished" in successor.log_text(), "a line that says so"
        )
        assert successor.value(learners) == 1
        late.start()
        late.execute("CREATE EXTENSION pgraft")
        add(three, late)
        # The dead one is replaced: removed by one administrator, while another adds its successor.
        replacement = three.newcomer(three.nodes[:3])
        adding = threading.Thread(target=add, args=(three, replacement))
        adding.start()
        ask(three, "pgraft_remove_node(%s)", leader.node_id)
        adding.join()
        work.wait_for(20)
    left = [node for node in three.nodes if node is not leader]
    now = check(three, work, left)
    assert members(now) == sorted(node.node_id for node in left)
    # Who was removed says so when it comes back, and takes no part.
    leader.start(ok=False)
    eventually(lambda: leader.status()["state"] == "stopped", "node 1 to stay out")
    assert "was removed from the cluster" in str(leader.status()["error"])
    assert "was removed from the cluster" in leader.log_text()
    said = "was removed from the cluster and takes no part any more"
    lines = leader.log_text().count(said)
    assert lines > 0
    leader.launch("restart", "-l", str(leader.log))
    eventually(lambda: leader.log_text().count(said) > lines, "node 1 to say so again")
    eventually(lambda: leader.status()["state"] == "stopped", "node 1 to stay out again")


def test_a_node_moves_and_what_leaves_no_quorum_is_refused(three: Cluster) -> None:
    leader = three.wait_agreed()
    moved, other = three.followers(leader)
    moved.stop()
    text = (moved.pgdata / "postgresql.conf").read_text()
    old, moved.raft_port = moved.raft_port, free_port()
    (moved.pgdata / "postgresql.conf").write_text(text.replace(f":{old}", f":{moved.raft_port}"))
    # Two of three can be reached: none of them can be spared, and the dead one counts.
    eventually(lambda: _state(leader, moved) == "Unreachable", "silence of the one that moves")
    for node in (leader, other):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="would leave no quorum"):
            leader.value("SELECT pgraft_remove_node(%s)", node.node_id)
    assert leader.value("SELECT pgraft_is_leader()") is True
    moved.start()
    eventually(
        lambda: f"pgraft_update_node({moved.node_id}" in moved.log_text(), "a line that says what to do"
    )
    update = "SELECT pgraft_update_node(%s, '127.0.0.1', %s)"
    assert leader.value(update, moved.node_id, moved.raft_port) is True
    three.wait_agreed()
    for node in three.nodes:
        ports = dict(node.sql("SELECT node_id, port FROM pgraft_get_nodes()"))
        assert ports[moved.node_id] == moved.raft_port
    # The others find it there: it leads, and one that restarts follows it.
    assert leader.value("SELECT pgraft_transfer_leadership(%s)", moved.node_id) is True
    leader.stop()
    leader.start()
    assert three.wait_agreed() is moved


def _state(leader: Node, node: Node) -> str:
    row = "SELECT state FROM pgraft_get_cluster_status() WHERE node_id = %s"
    return str(leader.value(row, node.node_id))


@pytest.mark.slow
def test_three_to_five_to_seven_nodes_and_back_under_load(three: Cluster) -> None:
    three.wait_agreed()
    with load(three) as work:
        for _ in range(4):
            add(three, three.newcomer(three.nodes[:3]))
            work.wait_for(20)
        assert len(members(three.wait_leader())) == 7
        for node in three.nodes[:4]:
            # The leader among them, when its turn comes.
            ask(three, "pgraft_remove_node(%s)", node.node_id)
            work.wait_for(20)
            node.stop()
    left = three.nodes[4:]
    assert members(check(three, work, left)) == [node.node_id for node in left]
