"""Copies of a node's Raft directory beside its original, and directories that are moved: real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support import pgcluster
from tests.support.pgcluster import Node, eventually, run
from tests.support.sql_load import Load, log_of

pytestmark = pytest.mark.cluster
TIMING = {"election_timeout": "500", "heartbeat_interval": "50"}
QUIET_S = 6.0
"""Many election timeouts, in which nobody may come to lead."""
STATE = ("LOCK", "identity", "peers")


def copy_of(node: Node) -> Node:
    """A copy of the stopped node's two directories, as another node in the folder: with the same name
    and id, on other ports."""
    copy = Node(node.cluster, node.node_id, f"copy-of-{node.name}")
    for source, to in ((node.pgdata, copy.pgdata), (node.raft_dir, copy.raft_dir)):
        run("cp", "-a", str(source), str(to))
    with (copy.pgdata / "postgresql.conf").open("a") as conf:
        conf.write(f"port = {copy.pg_port}\npgraft.listen_address = '127.0.0.1:{copy.raft_port}'\n")
    node.cluster.nodes.append(copy)
    return copy


def back_up(node: Node) -> Node:
    """The copy of a node that goes on afterwards."""
    node.stop()
    copy = copy_of(node)
    node.start()
    node.cluster.wait_agreed([one for one in node.cluster.nodes if one is not copy])
    return copy


def state_of(node: Node) -> dict[str, bytes]:
    """What of its Raft directory is on disk: every file, and its content where that is short."""
    paths = [path for path in node.raft_dir.rglob("*") if path.is_file()]
    found = {str(path): b"%d" % path.stat().st_mtime_ns for path in paths}
    return found | {name: (node.raft_dir / name).read_bytes() for name in STATE}


@contextlib.contextmanager
def frozen(node: Node) -> Iterator[None]:
    """Its worker and its network process stopped, and going on afterwards."""
    pids = [node.pid("worker"), node.pid("network")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


class TermsLed:
    """Looks again and again who says that he leads, and in which term."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seen: dict[int, set[str]] = {}
        self._thread.start()

    def _run(self) -> None:
        query = "SELECT pgraft_get_term(), pgraft_is_leader(), pgraft_get_term()"
        while not self._ended.wait(0.02):
            for node in self._nodes:
                with contextlib.suppress(psycopg.Error):
                    before, leads, after = node.sql(query)[0]
                    if leads and before == after:
                        self.seen.setdefault(before, set()).add(node.name)

    def end(self) -> None:
        """No term had two."""
        self._ended.set()
        self._thread.join()
        assert all(len(names) == 1 for names in self.seen.values()), self.seen


def test_a_copy_beside_its_frozen_original(template: Path) -> None:
    with pgcluster.cluster(template, 3, **TIMING) as cluster:
        leader = cluster.wait_agreed()
        original, third = cluster.followers(leader)
        copy = back_up(original)
        voters = [leader, third]
        load = Load(cluster, 2)
        terms = TermsLed([leader, third, original, copy])
        load.start()
        load.wait_for(20)
        with frozen(original):
            # The attack: it was let in, and counted.
            before = state_of(copy)
            refused = copy.start(ok=False)
            assert refused.returncode == 1
            assert len(refused.stderr.splitlines()) == 1
            assert "the Raft state does not belong where it is: its file LOCK" in refused.stderr
            assert "pgraft-launch adopt -D DIR" in refused.stderr
            assert not copy.status()["pids"]["postmaster"]
            assert state_of(copy) == before
            foreground = copy.launch("run", ok=False)
            assert "does not belong where it is" in foreground.stderr
            assert state_of(copy) == before

            done = copy.launch("adopt")
            assert "as incarnation 2" in done.stdout
            assert "gives no vote until it has caught up" in done.stdout
            copy.start()
            eventually(lambda: "has caught up at index" in copy.log_text(), "the copy to catch up")
            load.wait_for(20)
            third.stop("immediate")
            load.wait_for(20)
            third.start()
        # The original wakes up, on connections that stood.
        eventually(lambda: original.status()["state"] == "error", "the original to see it")
        assert "this one is an older copy" in original.status()["error"]
        assert original.value("SELECT pgraft_get_worker_state()") == "error"
        for node in voters:
            eventually(
                lambda node=node: f"refused node {original.node_id} at " in node.log_text(), "its log line"
            )
        assert "refuses this node" in original.log_text()
        load.wait_for(20)
        leader.kill_everything()
        after = cluster.wait_leader([third, copy])
        load.wait_for(20)
        load.stop()
        terms.end()
        assert original.status()["state"] == "error"
        kept = log_of(after)
        assert [text for text in load.acknowledged if text not in set(kept)] == []
        restarted = original.launch("restart", ok=False)
        assert "does not belong" not in restarted.stderr
        eventually(lambda: original.status()["state"] == "error", "the original to hear it again")


def test_an_older_copy_does_not_elect_who_lacks_entries(template: Path) -> None:
    with pgcluster.cluster(template, 3, **TIMING) as cluster:
        leader = cluster.wait_agreed()
        lost, lagging = cluster.followers(leader)
        copy = back_up(lost)
        leader = cluster.wait_agreed([leader, lost, lagging])
        lagging.stop("immediate")
        leader = cluster.wait_leader([leader, lost])
        entries = [f"entry {number}" for number in range(20)]
        for text in entries:
            assert leader.value("SELECT pgraft_replicate_entry(%s)", text) is True
        if leader is lost:
            pytest.fail("the leader is the one that was restarted")
        leader.kill_everything()
        lost.kill_everything()
        shutil.rmtree(lost.raft_dir)
        copy.launch("adopt")
        copy.start()
        lagging.start()
        assert copy.status()["state"] == "running"
        assert "note             adopted" in copy.launch("status").stdout
        with pytest.raises(pgcluster.Failed):
            cluster.wait_leader([copy, lagging], timeout=QUIET_S)
        leader.start()
        after = cluster.wait_leader([leader, copy, lagging])
        cluster.wait_agreed([leader, copy, lagging])
        for node in (after, copy, lagging):
            assert [text for text in log_of(node) if text.startswith("entry")] == entries
        eventually(lambda: "has caught up at index" in copy.log_text(), "the copy to catch up")


def test_a_directory_that_was_set_back_is_refused(template: Path) -> None:
    """Its files are older ones, in their place: as after the snapshot of a machine."""
    with pgcluster.cluster(template, 3, **TIMING) as cluster:
        leader = cluster.wait_agreed()
        node = cluster.followers(leader)[0]
        copy = back_up(node)
        cluster.nodes.remove(copy)
        leader = cluster.wait_agreed()
        for number in range(20):
            assert leader.value("SELECT pgraft_replicate_entry(%s)", f"entry {number}") is True
        cluster.wait_agreed()
        node.kill_everything()
        for name in ("raft", "identity", "peers"):
            run("rm", "-rf", str(node.raft_dir / name))
            run("cp", "-a", str(copy.raft_dir / name), str(node.raft_dir / name))
        node.start(ok=False)
        eventually(lambda: node.status()["state"] == "error", "the refusal")
        assert "and had acknowledged everything up to" in node.status()["error"]
        eventually(lambda: f"refused node {node.node_id} at " in leader.log_text(), "the leader's line")
        assert leader.value("SELECT pgraft_replicate_entry('with two')") is True


@pytest.mark.parametrize("count", [1, 2])
def test_moving_a_node_of_few(template: Path, count: int) -> None:
    with pgcluster.cluster(template, count, **TIMING) as cluster:
        node = cluster.wait_agreed()
        assert node.value("SELECT pgraft_replicate_entry('before')") is True
        before = (node.raft_dir / "identity").read_bytes()
        for number in range(2):
            node.launch("restart")
            assert (node.raft_dir / "identity").read_bytes() == before, number
        assert "there is nothing to adopt" in nothing(node)
        # Within its file system.
        node.stop()
        for path in (node.pgdata, node.raft_dir):
            path.rename(path.with_name(f"moved-{path.name}"))
        node.pgdata, node.raft_dir = (
            path.with_name(f"moved-{path.name}") for path in (node.pgdata, node.raft_dir)
        )
        node.start()
        cluster.wait_agreed()
        # To another disk, as good as.
        node.stop()
        for path in (node.pgdata, node.raft_dir):
            run("cp", "-a", str(path), f"{path}.new")
            shutil.rmtree(path)
            Path(f"{path}.new").rename(path)
        refused = node.start(ok=False)
        assert "does not belong where it is" in refused.stderr
        if count == 1:
            forced = node.launch("force-new-cluster", "--accept-data-loss", ok=False)
            assert "pgraft-launch adopt" in forced.stderr
        assert "counts as complete" in node.launch("adopt", "--complete").stdout
        node.start()
        leader = cluster.wait_agreed()
        assert log_of(leader)[:1] == ["before"]
        assert leader.value("SELECT pgraft_replicate_entry('after')") is True
        assert "is running" in node.launch("adopt", ok=False).stderr


def nothing(node: Node) -> str:
    """What `adopt` says of a stopped node in its place; it runs again afterwards."""
    node.stop()
    done = node.launch("adopt")
    node.start()
    node.cluster.wait_agreed()
    return done.stdout


def test_a_forced_copy_is_of_a_cluster_of_its_own(template: Path) -> None:
    """It needs no other word: nothing of the old cluster takes it for its original."""
    with pgcluster.cluster(template, 3, **TIMING) as made:
        leader = made.wait_agreed()
        node = made.followers(leader)[0]
        copy = back_up(node)
        done = copy.launch("force-new-cluster", "--accept-data-loss")
        assert "is now a cluster of its own" in done.stdout
        copy.start()
        assert made.wait_leader([copy]) is copy
        others = [one for one in made.nodes if one is not copy]
        assert made.wait_agreed(others).value("SELECT pgraft_replicate_entry('the old cluster')") is True
        assert copy.value("SELECT pgraft_replicate_entry('the new one')") is True
