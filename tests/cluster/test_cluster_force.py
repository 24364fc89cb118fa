"""When a majority is gone for good: a new cluster by force, from the last survivor to new nodes."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import psycopg
import pytest

from pgraft.transport.tls_files import TlsFiles
from pgraft_launcher.certificates import Authority, files_of
from tests.support import pgcluster
from tests.support.certificates import replace
from tests.support.pgcluster import Node, eventually
from tests.support.sql_load import log_of

pytestmark = pytest.mark.cluster

FLAG = "--accept-data-loss"
ENTRIES = 30


def lose(node: Node) -> None:
    """The machine burns down."""
    node.kill_everything()
    shutil.rmtree(node.raft_dir)
    shutil.rmtree(node.pgdata)


def test_the_segment_of_a_lost_machine_is_cleaned_up(template: Path) -> None:
    with pgcluster.cluster(template, 0) as cluster:
        node = cluster.add(1)[0]
        node.init(cluster.initial_list())
        node.start()
        left = Path("/dev/shm", node.segment_name)
        lose(node)
        assert left.exists()
    assert not left.exists()


@pytest.mark.parametrize("count", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_cluster_that_lost_its_majority_goes_on_from_one_survivor(template: Path, count: int) -> None:
    with pgcluster.cluster(template, count, election_timeout="500", heartbeat_interval="50") as cluster:
        leader = cluster.wait_agreed()
        for number in range(ENTRIES):
            assert leader.value("SELECT pgraft_replicate_entry(%s)", f"entry {number}") is True
        survivor, *rest = cluster.followers(leader)
        rest.append(leader)
        lost, old = rest[-(count // 2 + 1) :], rest[: -(count // 2 + 1)]
        for node in lost:
            lose(node)
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="has no leader"):
            survivor.value("SELECT pgraft_replicate_entry('nobody hears it')")

        # Not while it runs, and not without being told that it may lose something.
        assert "is running" in survivor.launch("force-new-cluster", FLAG, ok=False).stderr
        for node in (survivor, *old):
            node.stop()
        identity = (survivor.raft_dir / "identity").read_bytes()
        shown = survivor.launch("force-new-cluster", ok=False)
        assert shown.returncode == 1
        assert FLAG in shown.stderr
        assert f"its last entry is {ENTRIES + 2} of term" in shown.stdout
        assert (survivor.raft_dir / "identity").read_bytes() == identity

        done = survivor.launch("force-new-cluster", FLAG)
        found = re.search(r'a cluster of its own, "(pgraft-forced-[0-9a-f]{8})"', done.stdout)
        assert found is not None, done.stdout
        assert survivor.launch("force-new-cluster", FLAG).stdout.count("only member already") == 1
        survivor.start()
        assert cluster.wait_leader([survivor]) is survivor
        assert log_of(survivor)[:ENTRIES] == [f"entry {number}" for number in range(ENTRIES)]

        for node in old:
            node.start(ok=False)
            eventually(lambda: 'cluster "pgraft"' in survivor.log_text(), "the refusal of the old survivor")
            assert node.value("SELECT pgraft_get_leader()") == 0
        new = [cluster.newcomer([survivor], "--cluster-id", found[1]) for _ in range(2)]
        for node in new:
            add = "SELECT pgraft_add_node(%s, '127.0.0.1', %s)"
            assert survivor.value(add, node.node_id, node.raft_port) is True
        cluster.wait_agreed([survivor, *new])
        assert survivor.value("SELECT pgraft_replicate_entry('three again')") is True
        survivor.kill_everything()
        after = cluster.wait_leader(new)
        assert after.value("SELECT pgraft_replicate_entry('two of three')") is True
        expected = [f"entry {number}" for number in range(ENTRIES)]
        assert [text for text in log_of(after) if text.startswith("entry")] == expected
        for node in old:
            assert node.value("SELECT pgraft_get_leader()") == 0


@pytest.mark.parametrize("signed_by", ["init", pytest.param("authority", marks=pytest.mark.slow)])
def test_with_tls_what_it_prints_leads_to_a_leader(template: Path, signed_by: str) -> None:
    timing = {"election_timeout": "1s", "heartbeat_interval": "100"}
    with pgcluster.cluster(template, 2, tls=True, **timing) as cluster:
        survivor = cluster.wait_agreed()
        (lost,) = cluster.followers(survivor)
        assert survivor.value("SELECT pgraft_replicate_entry('by both')") is True
        # Nobody knows yet that it is gone: its removal gets into the log, and is never committed.
        os.kill(lost.pid("worker"), signal.SIGSTOP)
        with pytest.raises(psycopg.errors.StatementCompletionUnknown):
            survivor.value("SELECT pgraft_remove_node(%s)", lost.node_id)
        lose(lost)
        survivor.stop()
        shown = survivor.launch("force-new-cluster", ok=False)
        assert f"members 1 (127.0.0.1:{cluster.nodes[0].raft_port}), 2 (127.0.0.1" in shown.stdout
        done = survivor.launch("force-new-cluster", FLAG)
        found = re.search(r'a cluster of its own, "(pgraft-forced-[0-9a-f]{8})"', done.stdout)
        assert found is not None, done.stdout
        uri = f"pgraft://{found[1]}/{survivor.node_id}"
        for printed in (done, survivor.launch("force-new-cluster", FLAG)):
            assert f"URI:{uri}, signed by your authority" in printed.stdout
            assert f"--cluster-id {found[1]} and another --make-certs DIR" in printed.stdout
        assert "must name this node" in survivor.start(ok=False).stderr

        certificates = cluster.certificates
        if signed_by == "init":
            certificates = cluster.root / "tls-of-the-new-cluster"
            words = ["--name", survivor.name, "--initial-cluster", cluster.initial_list()]
            words += ["--pg-port", str(survivor.pg_port), *pgcluster.settings_words(cluster.settings)]
            words += ["--cluster-id", found[1], "--make-certs", str(certificates)]
            survivor.launch("init", *words)
        else:
            made = files_of(cluster.root, survivor.node_id)
            Authority.of(certificates).issue(made, uri)
            files = TlsFiles(*map(str, made))
            replace(certificates, survivor.node_id, files, owner_of=survivor.pgdata)
        survivor.start()
        assert cluster.wait_leader([survivor]) is survivor
        assert log_of(survivor) == ["by both"]
        node = cluster.newcomer([survivor], "--cluster-id", found[1], "--make-certs", str(certificates))
        add = "SELECT pgraft_add_node(%s, '127.0.0.1', %s)"
        assert survivor.value(add, node.node_id, node.raft_port) is True
        cluster.wait_agreed([survivor, node])
