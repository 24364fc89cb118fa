"""A node whose committed entries are not its leader's names the entry, and takes no part any more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Node, eventually

pytestmark = pytest.mark.cluster
INDEX = 5
CHANGE = """
import sys
from pathlib import Path
from pgraft.raft.types import Entry, HardState
from pgraft.storage import lock_data_dir, open_store

data_dir, index = Path(sys.argv[1]), int(sys.argv[2])
with lock_data_dir(data_dir):
    store = open_store(data_dir, segment_bytes=16 << 20)
    state, last = store.hard_state, store.last_index()
    kept = store.entries(index, last + 1, 1 << 30)
    old = kept[0]
    # As a second leader of the same term would have had it committed.
    store._hard_state = HardState(state.term, state.vote, index - 1)
    store.append(state, [Entry(old.term, index, 0, b"\\x01of another leader"), *kept[1:]])
    store.close()
"""


def make_differ(node: Node) -> None:
    """Another committed entry of the same index and term in a stopped node's Raft directory."""
    pgcluster.run(*pgcluster.as_server_user(sys.executable, "-c", CHANGE, str(node.raft_dir), str(INDEX)))


def entry(node: Node) -> str:
    return str(node.value(f"SELECT pgraft_log_get_entry({INDEX})"))


@pytest.fixture
def cluster(template: Path) -> Iterator[Cluster]:
    with pgcluster.cluster(template, 3) as made:
        yield made


def test_a_node_whose_committed_entry_differs_leaves_and_names_it(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    for number in range(2 * INDEX):
        leader.value(f"SELECT pgraft_replicate_entry('entry {number}')")
    cluster.wait_agreed()
    odd = cluster.followers(leader)[0]
    odd.stop()
    make_differ(odd)
    odd.start()
    left = (
        f"node {odd.node_id} leaves consensus: entry {INDEX}, which is committed, is another one here than on"
    )
    eventually(lambda: left in odd.log_text(), "the line that names the entry")
    text = odd.log_text()
    assert f"than on node {leader.node_id}, the leader of term" in text
    assert f"pgraft_remove_node({odd.node_id})" in text
    page = odd.status()
    assert (page["state"], page["is_leader"]) == ("error", False)
    assert f"entry {INDEX}" in page["error"]
    with pytest.raises(psycopg.Error, match="takes no part in consensus") as refused:
        odd.value("SELECT pgraft_replicate_entry('x')")
    assert f"entry {INDEX}" in str(refused.value)
    assert odd.value("SELECT pgraft_is_leader()") is False
    # An operator can compare, and the others go on.
    assert entry(odd) == "of another leader"
    assert entry(leader) != entry(odd)
    others = [node for node in cluster.nodes if node is not odd]
    assert cluster.wait_agreed(others).value("SELECT pgraft_replicate_entry('on')") is True
    stays_out(odd, others, cluster)


def stays_out(odd: Node, others: list[Node], cluster: Cluster) -> None:
    """A restart does not make it a voter again: if it won an election, those would leave that are right."""
    odd.stop()
    odd.start(ok=False)
    eventually(
        lambda: "an earlier start has found that its log has diverged" in odd.log_text(), "its refusal"
    )
    eventually(lambda: odd.value("SELECT 1") == 1, "PostgreSQL, which goes on")
    assert odd.status()["state"] == "error"
    assert entry(odd) == "of another leader"
    leader = cluster.wait_agreed(others)
    assert leader.value("SELECT pgraft_replicate_entry('without it')") is True
    assert odd.status()["commit_index"] < leader.status()["commit_index"]
