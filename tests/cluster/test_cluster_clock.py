"""The wall clock goes wrong by a year, backwards and forwards, at any time: nothing depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import pgcluster
from tests.support.disk_faults import DiskFaults
from tests.support.pgcluster import Node, eventually

pytestmark = pytest.mark.cluster
YEAR_S = 365 * 86400


def test_a_wall_clock_that_is_a_year_wrong_changes_nothing(template: Path) -> None:
    with pgcluster.cluster(template, 0, election_timeout="1000", heartbeat_interval="100") as cluster:
        faults: dict[str, DiskFaults] = {}

        def prepare(node: Node) -> None:
            faults[node.name] = node.with_disk_faults()

        cluster.up(3, prepare)
        leader = cluster.wait_agreed()
        term = leader.status()["term"]
        assert leader.value("SELECT pgraft_replicate_entry('before')") is True
        # While they run: on the leader, on a follower; backwards and forwards.
        for node, shift_s in zip(cluster.nodes, (-YEAR_S, YEAR_S, -YEAR_S // 2), strict=True):
            now = node.value("SELECT extract(epoch FROM clock_timestamp())::bigint")
            faults[node.name].set_clock(shift_s)
            shifted = node.value("SELECT extract(epoch FROM clock_timestamp())::bigint")
            assert abs(shifted - now - shift_s) < 600, (
                "the shift reaches PostgreSQL, so it reaches the worker"
            )
        with leader.connect() as session:
            for number in range(20):
                query = "SELECT pgraft_replicate_entry(%s), pgraft_is_leader()"
                assert session.execute(query, (f"during {number}",)).fetchone() == (True, True)
                session.execute("SELECT pg_sleep(0.1)")
        assert cluster.wait_agreed() is leader
        assert leader.status()["term"] == term, "no election"
        last = leader.value("SELECT max(extract(epoch FROM last_heartbeat)) FROM pgraft_get_cluster_status()")
        assert last < 60
        # And a start with the clock set back.
        follower = cluster.followers(leader)[0]
        follower.launch("restart", "-l", str(follower.log))
        cluster.wait_agreed()
        leader.kill_everything()
        new = cluster.wait_leader(cluster.followers(leader))
        leader.start()
        cluster.wait_agreed()
        assert new.value("SELECT pgraft_replicate_entry('after')") is True
        eventually(
            lambda: (
                leader.value("SELECT pgraft_log_get_entry(commit_index) FROM pgraft_log_get_stats()")
                == "after"
            ),
            "the entry on the node that was away",
        )
