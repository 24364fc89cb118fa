"""A Raft directory that belongs to somebody else is not started on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.node.boot import ConfigConflict, open_identity
from pgraft.postgres.settings import Member
from pgraft.storage import lock_data_dir
from tests.support.node_sim import make_config

MEMBERS = tuple(Member(number, f"node{number}", "127.0.0.1", 7000 + number) for number in (1, 2, 3))


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """The directory of node 1, as its first start leaves it, and locked."""
    tmp_path.chmod(0o700)
    with lock_data_dir(tmp_path):
        open_identity(make_config(tmp_path, 1, MEMBERS))
        yield tmp_path


def test_it_is_made_once(data_dir: Path) -> None:
    config = make_config(data_dir, 1, MEMBERS)
    assert open_identity(config) == open_identity(config)


def test_another_cluster(data_dir: Path) -> None:
    with pytest.raises(ConfigConflict, match=r'is "other", but .* belongs to cluster "sim"') as caught:
        open_identity(make_config(data_dir, 1, MEMBERS, cluster_id="other"))
    assert "pgraft.cluster_id = 'sim'" in caught.value.hint


def test_another_node(data_dir: Path) -> None:
    with pytest.raises(ConfigConflict, match="belongs to node 1") as caught:
        open_identity(make_config(data_dir, 2, MEMBERS))
    assert "add the node under a new id" in caught.value.hint


def test_another_node_whose_list_no_longer_counts(data_dir: Path) -> None:
    """The settings of node 2 on a copy of node 1's directory: the identity gives the id, but not the name."""
    with pytest.raises(ConfigConflict, match=r'"node2", which was node 2 when .* belongs to node 1'):
        open_identity(make_config(data_dir, 1, MEMBERS, name="node2"))
    open_identity(make_config(data_dir, 1, MEMBERS, name="renamed"))
    # A list in another order, or a longer one, says nothing.
    open_identity(make_config(data_dir, 1, (MEMBERS[1], MEMBERS[0])))
