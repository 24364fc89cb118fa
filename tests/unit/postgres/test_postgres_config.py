"""Validation: every wrong setting is one line that names it, and the rest is derived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pgraft.postgres import config
from pgraft.postgres.config import SLOT_COUNT_MAX, StoredIdentity
from pgraft.postgres.errors import SettingError
from pgraft.postgres.members import join_address, parse_members, split_address
from pgraft.postgres.settings import SETTINGS, Member, NodeConfig

LIST = "node1=10.0.0.1:7001,node2=10.0.0.2:7001,node3=10.0.0.3:7001"
SERVER = {
    "max_connections": "100",
    "autovacuum_max_workers": "3",
    "max_worker_processes": "8",
    "max_wal_senders": "10",
}


def build(stored: StoredIdentity | None = None, **settings: str) -> NodeConfig:
    """The configuration of these settings, on top of a good one."""
    given = {"name": "node2", "initial_cluster": LIST} | settings
    values = config.parse_values({f"pgraft.{name}": text for name, text in given.items() if text})
    return config.build_config(
        values,
        SERVER,
        pgdata="/srv/pg",
        data_dir=config.data_dir_of(values, "/srv/pg"),
        segment_name="s",
        stored=stored,
    )


def refusal(stored: StoredIdentity | None = None, **settings: str) -> str:
    """The line that refuses them."""
    with pytest.raises(SettingError) as caught:
        build(stored, **settings)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_node_is_its_place_in_the_list() -> None:
    node = build()
    assert (node.node_id, node.name) == (2, "node2")
    assert (node.address, node.port, node.listen_host, node.listen_port) == (
        "10.0.0.2",
        7001,
        "10.0.0.2",
        7001,
    )
    assert node.initial_cluster[2] == Member(3, "node3", "10.0.0.3", 7001)
    assert node.data_dir == "/srv/pg.pgraft"


def test_sizes_come_in_bytes_and_times_in_ms() -> None:
    node = build(election_timeout="2s", heartbeat_interval="150", max_entry_size="64kB", log_keep_bytes="2GB")
    assert (node.election_timeout_ms, node.heartbeat_interval_ms) == (2000, 150)
    assert (node.max_entry_bytes, node.log_keep_bytes) == (65536, 2 * 1024**3)


def test_a_node_can_be_named_by_its_id() -> None:
    assert build(name="", node_id="3").name == "node3"


def test_a_cluster_of_one_needs_no_list() -> None:
    node = build(name="", initial_cluster="", node_id="5", address="10.0.0.5", port="7005")
    assert node.initial_cluster == (Member(5, "node5", "10.0.0.5", 7005),)


def test_a_newcomer_says_who_it_is_and_need_not_be_listed() -> None:
    node = build(name="node4", initial_cluster_state="existing", node_id="4", address="10.0.0.4", port="7001")
    assert (node.node_id, node.address, len(node.initial_cluster)) == (4, "10.0.0.4", 3)


def test_the_listen_address_may_differ() -> None:
    node = build(listen_address="0.0.0.0:8001")
    assert (node.address, node.port, node.listen_host, node.listen_port) == (
        "10.0.0.2",
        7001,
        "0.0.0.0",
        8001,
    )
    assert build(listen_address="*:8001").listen_host == "0.0.0.0"
    assert build(listen_address="[::1]:8001").listen_host == "::1"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "foo"}, "pgraft.name = 'foo': must be one of the names in pgraft.initial_cluster (node1,"),
        ({"name": ""}, "pgraft.name = '': must be one of the names"),
        ({"name": "", "initial_cluster": ""}, "pgraft.initial_cluster = '': must list the members"),
        ({"initial_cluster": ""}, "pgraft.initial_cluster = '': must list the members"),
        ({"initial_cluster": "node2=1:1,node2=2:2"}, "two nodes are called node2"),
        ({"initial_cluster": "a=h:1,node2=h:1"}, "a and node2 both have h:1"),
        ({"initial_cluster": "node2"}, "item 1 is 'node2'"),
        ({"initial_cluster": "node2=h:1,"}, "item 2 is ''"),
        ({"initial_cluster": "node2=h"}, "item 1"),
        ({"initial_cluster": "node2=h:0"}, "item 1"),
        ({"initial_cluster": "node2=h:65536"}, "item 1"),
        ({"initial_cluster": "node2=h:1x"}, "item 1"),
        ({"initial_cluster": "node2=::1:7001"}, "item 1"),
        ({"initial_cluster": "=h:1"}, "item 1"),
        (
            {"initial_cluster": ",".join(f"n{i}=h:{i}" for i in range(1, 66))},
            "holds 65 nodes, 64 are allowed",
        ),
        (
            {"election_timeout": "999", "heartbeat_interval": "100"},
            "pgraft.election_timeout = '999ms': must be",
        ),
        ({"node_id": "1"}, "pgraft.node_id = 1: must be 2, the place of node2"),
        ({"name": "", "node_id": "4"}, "pgraft.node_id = 4: must be 1 to 3"),
        ({"address": "10.0.0.9"}, "pgraft.address = '10.0.0.9': must agree"),
        ({"port": "7002"}, "pgraft.port = 7002: must agree"),
        ({"initial_cluster": "", "name": "", "node_id": "1"}, "pgraft.address = '': must be set"),
        ({"initial_cluster": "", "name": "", "node_id": "1", "address": "h"}, "pgraft.port = 0: must be set"),
        ({"initial_cluster_state": "existing"}, "pgraft.node_id = 0: must be set when"),
        ({"initial_cluster_state": "existing", "node_id": "4"}, "pgraft.address = '': must be set when"),
        (
            {
                "initial_cluster_state": "existing",
                "node_id": "4",
                "address": "h",
                "port": "1",
                "initial_cluster": "",
            },
            "must list some members",
        ),
        ({"listen_address": "7001"}, "pgraft.listen_address = '7001': must be host:port"),
        ({"data_dir": "/srv/pg"}, "must lie outside the data directory"),
        ({"data_dir": "/srv/pg/raft"}, "must lie outside the data directory"),
        ({"data_dir": "/srv/other/../pg/raft"}, "must lie outside the data directory"),
        ({"data_dir": "raft"}, "must be an absolute path"),
        ({"data_dir": "/" + 1300 * "x"}, "at most 1272 bytes"),
        ({"cluster_id": 121 * "x"}, "must be 1 to 120 bytes"),
        ({"ssl_enabled": "on"}, "pgraft.ssl_cert_file = '': must name a file"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(settings: dict[str, str], words: str) -> None:
    assert words in refusal(**settings)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.maximum], ids=lambda s: s.name)
def test_integers_out_of_range_are_refused(setting: Any) -> None:
    for value in (setting.minimum - 1, setting.maximum + 1):
        with pytest.raises(SettingError, match="must be an integer from"):
            config.parse_values({setting.name: str(value)})


def test_the_stored_identity_rules() -> None:
    stored = StoredIdentity("pgraft", 7)
    assert build(stored).node_id == 7
    assert "must be 7, the id of the stored identity" in refusal(stored, node_id="2")
    assert "must be 'pgraft', the cluster of the stored identity" in refusal(stored, cluster_id="other")
    forgotten = build(stored, name="gone", address="10.0.0.7", port="7007")
    assert (forgotten.node_id, forgotten.address) == (7, "10.0.0.7")


def test_a_link_into_the_data_directory_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / "pg").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pg")
    values = config.parse_values({"pgraft.data_dir": str(tmp_path / "link" / "raft")})
    with pytest.raises(SettingError, match="must lie outside"):
        config.data_dir_of(values, str(tmp_path / "pg"))


def test_slots_follow_the_number_of_processes_within_bounds() -> None:
    assert config.slot_count_of(SERVER) == 100 + 3 + 8 + 10 + 1 + config.SLOT_COUNT_RESERVE
    newer = SERVER | {"autovacuum_worker_slots": "16"}
    assert config.slot_count_of(newer) - config.slot_count_of(SERVER) == 13
    assert config.slot_count_of(SERVER | {"max_connections": "100000"}) == SLOT_COUNT_MAX


@pytest.mark.parametrize("text", ["10.0.0.1:7001", "[2001:db8::1]:1", "a.example:65535"])
def test_addresses_go_there_and_back(text: str) -> None:
    address = split_address(text)
    assert address is not None
    assert join_address(*address) == text


def test_spaces_around_items_are_allowed() -> None:
    assert [m.name for m in parse_members(" a = h:1 , b=h:2 ")] == ["a", "b"]
