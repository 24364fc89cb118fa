"""Growing, shrinking, and who is refused (SPEC sections 1 and 2)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest

from pgraft.storage import load_identity, place_of, update_identity
from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Node, eventually

pytestmark = pytest.mark.cluster


@pytest.fixture
def single(template: Path) -> Iterator[Cluster]:
    """One node, a cluster of itself."""
    settings = {"election_timeout": "500", "heartbeat_interval": "50"}
    with pgcluster.cluster(template, 1, **settings) as made:
        yield made


def _add(leader: Node, node: Node, notices: list[str] | None = None) -> bool:
    with leader.connect() as session:
        if notices is not None:
            session.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        row = session.execute(
            "SELECT pgraft_add_node(%s, '127.0.0.1', %s)", (node.node_id, node.raft_port)
        ).fetchone()
    return row == (True,)


def _members(node: Node) -> list[int]:
    return [row[0] for row in node.sql("SELECT node_id FROM pgraft_get_nodes()")]


def test_a_single_node_grows_to_three_and_shrinks_again(single: Cluster) -> None:
    leader = single.wait_agreed()
    for number in range(20):
        leader.value("SELECT pgraft_replicate_entry(%s)", f"alone {number}")
    for _ in range(2):
        newcomer = single.newcomer(single.nodes[:1])
        assert newcomer.value("SELECT pgraft_get_worker_state()") == "initializing"
        notices: list[str] = []
        assert _add(leader, newcomer, notices)
        assert any("learner" in notice for notice in notices), notices
        # Asked again, it is true again.
        assert _add(leader, newcomer)
    single.wait_agreed()
    for node in single.nodes:
        assert _members(node) == [1, 2, 3]
        assert node.value("SELECT pgraft_log_get_entry(3)") == "alone 0"
        assert node.value("SELECT pgraft_get_worker_state()") == "running"
    third = single.nodes[2]
    assert leader.value("SELECT pgraft_remove_node(3)") is True
    eventually(
        lambda: third.value("SELECT pgraft_get_worker_state()") == "stopped", "the end of node 3's part"
    )
    assert third.value("SELECT pgraft_is_leader()") is False
    assert _members(leader) == [1, 2]
    # A removed node that starts again is refused, until it is added again.
    third.stop()
    third.start(ok=False)
    eventually(lambda: "removed" in third.log_text(), "a line that says that node 3 was removed")
    eventually(lambda: third.status()["state"] == "stopped", "node 3 to stay out")
    assert _add(leader, third)
    eventually(lambda: third.status()["state"] == "running", "node 3 to take part again")
    single.wait_agreed()
    assert _members(third) == [1, 2, 3]


def test_the_leader_can_be_removed(single: Cluster) -> None:
    leader = single.wait_agreed()
    others = [single.newcomer(single.nodes[:1]), single.newcomer(single.nodes[:1])]
    for node in others:
        assert _add(leader, node)
    single.wait_agreed()
    assert leader.value("SELECT pgraft_remove_node(1)") is True
    new = single.wait_agreed(others)
    assert _members(new) == [2, 3]
    assert new.value("SELECT pgraft_replicate_entry('without the old leader')") is True
    eventually(
        lambda: leader.value("SELECT pgraft_get_worker_state()") == "stopped", "node 1 to stop its part"
    )
    assert leader.value("SELECT pgraft_is_leader()") is False
    for command in ("pgraft_replicate_entry('x')", "pgraft_init()"):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="removed"):
            leader.value(f"SELECT {command}")


def test_a_newcomer_that_never_comes_leaves_the_cluster_as_it_was(single: Cluster) -> None:
    leader = single.wait_agreed()
    port = pgcluster.free_port()
    with leader.connect() as session:
        session.execute("SET pgraft.add_node_timeout = '1500ms'")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
            session.execute("SELECT pgraft_add_node(2, '127.0.0.1', %s)", (port,))
    assert "did not catch up" in (caught.value.diag.message_primary or "")
    assert "as it was" in (caught.value.diag.message_detail or "")
    assert _members(leader) == [1]
    assert leader.value("SELECT pgraft_replicate_entry('still alone')") is True
    # The id is free: a real newcomer may have it.
    newcomer = single.newcomer(single.nodes[:1])
    assert _add(leader, newcomer)


def test_a_newcomer_can_be_removed_while_it_is_waited_for(single: Cluster) -> None:
    leader = single.wait_agreed()
    port = pgcluster.free_port()
    with leader.connect() as session:
        # The call is gone, the operation goes on: nobody has to wait until pgraft.add_node_timeout.
        session.execute("SET statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.execute("SELECT pgraft_add_node(77, '127.0.0.1', %s)", (port,))
    assert 77 in _members(leader)
    assert leader.value("SELECT pgraft_remove_node(77)") is True
    assert 77 not in _members(leader)
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="did not catch up"):
        leader.sql("SELECT set_config('pgraft.add_node_timeout', '1s', false), pgraft_add_node(77, 'x', 1)")


def test_the_only_node_cannot_be_removed(single: Cluster) -> None:
    leader = single.wait_agreed()
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="only voter"):
        leader.value("SELECT pgraft_remove_node(1)")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="not a member"):
        leader.value("SELECT pgraft_remove_node(7)")


def test_an_emptied_raft_directory_is_refused(template: Path) -> None:
    settings = {"election_timeout": "500", "heartbeat_interval": "50"}
    with pgcluster.cluster(template, 3, **settings) as cluster:
        leader = cluster.wait_agreed()
        victim = cluster.followers(leader)[0]
        victim.stop()
        shutil.rmtree(victim.raft_dir)
        victim.start(ok=False)
        for node in cluster.nodes:
            eventually(
                lambda node=node: "add it" in node.log_text() and "under a new node id" in node.log_text(),  # type: ignore[misc]
                f"a line in the log of {node.name} that says what to do",
            )
        assert victim.value("SELECT pgraft_get_leader()") == 0
        assert leader.value("SELECT pgraft_replicate_entry('two of three')") is True
        # What to do: remove it, and add it under a new id.
        assert leader.value("SELECT pgraft_remove_node(%s)", victim.node_id) is True


def as_cloned(copy: Node) -> None:
    """What the copy of a whole machine would say of itself: that everything is where it was."""
    found = load_identity(copy.raft_dir)
    assert found is not None
    update_identity(copy.raft_dir, msgspec.structs.replace(found, place=place_of(copy.raft_dir)))
    shutil.chown(copy.raft_dir / "identity", copy.raft_dir.owner(), copy.raft_dir.group())


def test_a_copy_of_a_raft_directory_is_refused(template: Path) -> None:
    settings = {"election_timeout": "500", "heartbeat_interval": "50"}
    with pgcluster.cluster(template, 3, **settings) as cluster:
        leader = cluster.wait_agreed()
        original = cluster.followers(leader)[0]
        copy = Node(cluster, original.node_id, f"{original.name}-copy")
        cluster.nodes.append(copy)
        original.stop()
        for source, target in ((original.pgdata, copy.pgdata), (original.raft_dir, copy.raft_dir)):
            pgcluster.run("cp", "-a", str(source), str(target))
        original.start()
        cluster.wait_agreed(cluster.nodes[:3])
        with (copy.pgdata / "postgresql.conf").open("a") as conf:
            conf.write(f"port = {copy.pg_port}\npgraft.listen_address = '127.0.0.1:{copy.raft_port}'\n")
            conf.write(f"pgraft.data_dir = '{copy.raft_dir}'\n")
        as_cloned(copy)
        copy.start(ok=False)
        eventually(lambda: "copy" in leader.log_text(), "a line in the leader's log")
        eventually(lambda: "refuse" in copy.log_text(), "a line in the copy's log")
        assert copy.value("SELECT pgraft_get_leader()") == 0
        assert original.value("SELECT pgraft_get_leader()") == leader.node_id
        cluster.wait_agreed(cluster.nodes[:3])


def test_a_copy_made_of_a_living_node_leaves_that_one_alone(template: Path) -> None:
    with pgcluster.cluster(template, 1, election_timeout="500", heartbeat_interval="50") as cluster:
        original = cluster.nodes[0]
        original.stop()
        copy = Node(cluster, 1, "copy")
        cluster.nodes.append(copy)
        pgcluster.run("cp", "-a", str(original.pgdata), str(copy.pgdata))
        original.start()
        cluster.wait_agreed([original])
        pids = original.status()["pids"]
        # With what names the living processes and their segment.
        pgcluster.run("cp", "-a", str(original.raft_dir), str(copy.raft_dir))
        with (copy.pgdata / "postgresql.conf").open("a") as conf:
            conf.write(f"port = {copy.pg_port}\n")
        assert set(copy.status()["pids"].values()) == {None}
        assert copy.launch("stop", ok=False).returncode == 1
        pg_ctl = pgcluster.as_server_user(str(pgcluster.bindir(cluster.major) / "pg_ctl"), "-D")
        pgcluster.run(*pg_ctl, str(copy.pgdata), "start", "-w", "-l", str(copy.log))
        assert copy.sql("SELECT pgraft_is_leader(), pgraft_get_worker_state()") == [(False, "stopped")]
        pgcluster.run(*pg_ctl, str(copy.pgdata), "stop", "-m", "immediate")
        # The other one has the Raft port: it is refused, and not taken over.
        assert "does not belong where it is" in copy.start(ok=False).stderr
        as_cloned(copy)
        assert "cannot be bound" in copy.start(ok=False).stderr
        assert original.status()["pids"] == pids
        assert original.status()["is_leader"] is True


def test_another_clusters_id_is_refused_on_both_sides(template: Path) -> None:
    with pgcluster.cluster(template, 0, election_timeout="500", heartbeat_interval="50") as cluster:
        nodes = cluster.add(3)
        text = cluster.initial_list()
        for node in nodes:
            node.init(text)
        with (nodes[2].pgdata / "postgresql.conf").open("a") as conf:
            conf.write("pgraft.cluster_id = 'another'\n")
        cluster.start_all()
        cluster.wait_agreed(nodes[:2])
        for node in (nodes[0], nodes[2]):
            eventually(lambda node=node: 'cluster "another"' in node.log_text(), "the refusal in the log")  # type: ignore[misc]
        assert nodes[2].status()["leader"] == 0


def test_differing_lists_of_initial_members_are_refused_on_both_sides(template: Path) -> None:
    with pgcluster.cluster(template, 0, election_timeout="500", heartbeat_interval="50") as cluster:
        nodes = cluster.add(2)
        right = cluster.initial_list()
        nodes[0].init(right)
        nodes[1].init(right + f",node3=127.0.0.1:{pgcluster.free_port()}")
        cluster.start_all()
        for node in nodes:
            eventually(lambda node=node: "node3=" in node.log_text(), "both lists in the log")  # type: ignore[misc]
            assert node.status()["leader"] == 0
