"""From the settings as read to a NodeConfig: validated, derived, or refused in one line.

Pure: what is on the disk or on the network is looked at in `environment.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from pgraft.hosts import HOST_BYTES_MAX, is_host
from pgraft.postgres.errors import SettingError
from pgraft.postgres.members import (
    NAME_BYTES_MAX,
    join_address,
    parse_members,
    split_address,
)
from pgraft.postgres.parse import parse_integer, parse_setting
from pgraft.postgres.settings import SETTINGS, Member, NodeConfig

HEARTBEATS_PER_ELECTION_MIN = 10
CLUSTER_ID_BYTES_MAX = 120
PATH_BYTES_MAX = 1272
"""Longest path that the segment's header can carry."""
SLOT_COUNT_MIN = 16
SLOT_COUNT_MAX = 4096
SLOT_COUNT_RESERVE = 8
"""Result slots beyond the processes that PostgreSQL can have: walsenders, superuser-reserved and the like."""

_SLOT_SETTINGS = ("max_connections", "max_worker_processes", "max_wal_senders")

Values = Mapping[str, str | int | bool]


class StoredIdentity(NamedTuple):
    """What the identity in data_dir says; it rules from the first start on."""

    cluster_id: str
    node_id: int


class Place(NamedTuple):
    """Who this node is in its cluster."""

    name: str
    node_id: int
    address: str
    port: int


def parse_values(raw: Mapping[str, str]) -> dict[str, str | int | bool]:
    """Every setting of the table with its type; defaults where `raw` has none."""
    values: dict[str, str | int | bool] = {}
    for setting in SETTINGS:
        text = raw.get(setting.name)
        values[setting.name] = setting.default if text is None else parse_setting(setting, text)
    return values


def text_of(values: Values, name: str) -> str:
    """A string setting."""
    return str(values[f"pgraft.{name}"])


def number_of(values: Values, name: str) -> int:
    """An integer setting, in its own unit."""
    return int(values[f"pgraft.{name}"])


def data_dir_of(values: Values, pgdata: str) -> str:
    """The directory of the Raft state."""
    path = text_of(values, "data_dir") or f"{pgdata.rstrip('/')}.pgraft"
    if not os.path.isabs(path):
        raise SettingError("pgraft.data_dir", path, "must be an absolute path")
    path = os.path.normpath(path)
    if len(path.encode()) > PATH_BYTES_MAX:
        raise SettingError("pgraft.data_dir", path, f"must be at most {PATH_BYTES_MAX} bytes long")
    inside = os.path.realpath(pgdata)
    if os.path.commonpath((inside, os.path.realpath(path))) == inside:
        raise SettingError(
            "pgraft.data_dir",
            path,
            f"must lie outside the data directory {pgdata}, where pg_basebackup would copy it and pg_rewind"
            " overwrite it",
        )
    return path


def slot_count_of(server: Mapping[str, str]) -> int:
    """Result slots: one for each PostgreSQL process that could wait at once, within bounds."""
    count = SLOT_COUNT_RESERVE
    for name in _SLOT_SETTINGS:
        count += parse_integer(server.get(name, "0"), "") or 0
    autovacuum = server.get("autovacuum_worker_slots", server.get("autovacuum_max_workers", "0"))
    count += (parse_integer(autovacuum, "") or 0) + 1
    return max(SLOT_COUNT_MIN, min(SLOT_COUNT_MAX, count))


def build_config(
    values: Values,
    server: Mapping[str, str],
    *,
    pgdata: str,
    data_dir: str,
    segment_name: str,
    stored: StoredIdentity | None,
) -> NodeConfig:
    """The validated configuration of this node.

    `values` come from parse_values, `server` from Reader.read_server. Raises SettingError for the
    first thing that is wrong.
    """
    members = parse_members(text_of(values, "initial_cluster"))
    _check_timing(values)
    _check_texts(values)
    place = _place(values, members, stored)
    if stored is not None:
        _check_stored(values, stored)
    listen = _listen_address(values, place)
    if not members:
        members = (Member(place.node_id, place.name, place.address, place.port),)
    return NodeConfig(
        name=place.name,
        node_id=place.node_id,
        cluster_id=text_of(values, "cluster_id"),
        initial_cluster=members,
        initial_cluster_state=text_of(values, "initial_cluster_state"),
        address=place.address,
        port=place.port,
        listen_host=listen[0],
        listen_port=listen[1],
        data_dir=data_dir,
        pgdata=pgdata,
        segment_name=segment_name,
        election_timeout_ms=number_of(values, "election_timeout"),
        heartbeat_interval_ms=number_of(values, "heartbeat_interval"),
        ssl_enabled=bool(values["pgraft.ssl_enabled"]),
        ssl_cert_file=_path_of(values, "ssl_cert_file", pgdata),
        ssl_key_file=_path_of(values, "ssl_key_file", pgdata),
        ssl_ca_file=_path_of(values, "ssl_ca_file", pgdata),
        autostart=bool(values["pgraft.autostart"]),
        max_entry_bytes=number_of(values, "max_entry_size") * 1024,
        command_ring_bytes=number_of(values, "command_ring_size") * 1024,
        slot_count=slot_count_of(server),
        log_keep_entries=number_of(values, "log_keep_entries"),
        log_keep_bytes=number_of(values, "log_keep_bytes") * 1024,
        snapshot_threshold=number_of(values, "snapshot_threshold"),
        log_segment_bytes=number_of(values, "log_segment_size") * 1024 * 1024,
        disk_stall_timeout_ms=number_of(values, "disk_stall_timeout"),
    )


def _path_of(values: Values, name: str, pgdata: str) -> str:
    """A file's path; relative ones count from the data directory, as PostgreSQL's own ssl files do."""
    path = text_of(values, name)
    if not path:
        if values["pgraft.ssl_enabled"]:
            raise SettingError(f"pgraft.{name}", path, "must name a file when pgraft.ssl_enabled is on")
        return ""
    return os.path.join(pgdata, path)


def _check_timing(values: Values) -> None:
    election = number_of(values, "election_timeout")
    heartbeat = number_of(values, "heartbeat_interval")
    if election < HEARTBEATS_PER_ELECTION_MIN * heartbeat:
        raise SettingError(
            "pgraft.election_timeout",
            f"{election}ms",
            f"must be at least {HEARTBEATS_PER_ELECTION_MIN} times pgraft.heartbeat_interval ({heartbeat}ms),"
            f" so at least {HEARTBEATS_PER_ELECTION_MIN * heartbeat}ms",
        )


def _check_texts(values: Values) -> None:
    cluster_id = text_of(values, "cluster_id")
    if not cluster_id or len(cluster_id.encode()) > CLUSTER_ID_BYTES_MAX:
        raise SettingError("pgraft.cluster_id", cluster_id, f"must be 1 to {CLUSTER_ID_BYTES_MAX} bytes long")
    name = text_of(values, "name")
    if len(name.encode()) > NAME_BYTES_MAX or any(c.isspace() or c in "=," for c in name):
        raise SettingError(
            "pgraft.name", name, f"must be at most {NAME_BYTES_MAX} bytes without spaces, commas or ="
        )
    address = text_of(values, "address")
    if address and not is_host(address):
        raise SettingError("pgraft.address", address, f"must be a host of at most {HOST_BYTES_MAX} bytes")


def _check_stored(values: Values, stored: StoredIdentity) -> None:
    cluster_id = text_of(values, "cluster_id")
    if cluster_id != stored.cluster_id:
        raise SettingError(
            "pgraft.cluster_id",
            cluster_id,
            f"must be '{stored.cluster_id}', the cluster of the stored identity in pgraft.data_dir",
        )
    node_id = number_of(values, "node_id")
    if node_id and node_id != stored.node_id:
        raise SettingError(
            "pgraft.node_id",
            node_id,
            f"must be {stored.node_id}, the id of the stored identity in pgraft.data_dir",
        )


def _place(values: Values, members: tuple[Member, ...], stored: StoredIdentity | None) -> Place:
    if text_of(values, "initial_cluster_state") == "existing":
        return _place_existing(values, members)
    if stored is not None and not _is_listed(values, members) and values["pgraft.port"]:
        # The list counts at the first start only: one that has forgotten this node does no harm
        # where address and port are given.
        return _place_stored(values, stored)
    member = _own_member(values, members)
    if member is None:
        return _place_explicit(values)
    _check_agreement(values, member)
    # The list counts at the first start only; afterwards the identity says who this is.
    if stored is None:
        _check_node_id(values, member)
    node_id = member.node_id if stored is None else stored.node_id
    return Place(member.name, node_id, member.address, member.port)


def _is_listed(values: Values, members: tuple[Member, ...]) -> bool:
    name = text_of(values, "name")
    return any(member.name == name for member in members)


def _place_stored(values: Values, stored: StoredIdentity) -> Place:
    if not text_of(values, "address"):
        raise SettingError("pgraft.address", "", "must be set where pgraft.port is")
    name = text_of(values, "name") or f"node{stored.node_id}"
    return Place(name, stored.node_id, text_of(values, "address"), number_of(values, "port"))


def _own_member(values: Values, members: tuple[Member, ...]) -> Member | None:
    """This node in the list, by name or by id; None when there is no list."""
    name, node_id = text_of(values, "name"), number_of(values, "node_id")
    if not members:
        return None
    rule = f"must be one of the names in pgraft.initial_cluster ({', '.join(m.name for m in members)})"
    if name:
        for member in members:
            if member.name == name:
                return member
        raise SettingError("pgraft.name", name, rule)
    if not node_id:
        raise SettingError("pgraft.name", name, rule)
    if node_id > len(members):
        raise SettingError(
            "pgraft.node_id", node_id, f"must be 1 to {len(members)}, a place in pgraft.initial_cluster"
        )
    return members[node_id - 1]


def _check_node_id(values: Values, member: Member) -> None:
    node_id = number_of(values, "node_id")
    if node_id and node_id != member.node_id:
        raise SettingError(
            "pgraft.node_id",
            node_id,
            f"must be {member.node_id}, the place of {member.name} in pgraft.initial_cluster, or unset",
        )


def _check_agreement(values: Values, member: Member) -> None:
    """pgraft.address and pgraft.port, where given, against the list."""
    where = join_address(member.address, member.port)
    address, port = text_of(values, "address"), number_of(values, "port")
    if address and address != member.address:
        raise SettingError(
            "pgraft.address",
            address,
            f"must agree with pgraft.initial_cluster, where {member.name} is {where}",
        )
    if port and port != member.port:
        raise SettingError(
            "pgraft.port", port, f"must agree with pgraft.initial_cluster, where {member.name} is {where}"
        )


def _place_explicit(values: Values) -> Place:
    """No list: a cluster of this node alone, which says its id and address itself."""
    node_id, address, port = (
        number_of(values, "node_id"),
        text_of(values, "address"),
        number_of(values, "port"),
    )
    if not (node_id or address or port):
        raise SettingError(
            "pgraft.initial_cluster",
            "",
            "must list the members as name=host:port, or set pgraft.node_id, pgraft.address and pgraft.port",
        )
    _require_explicit(values, "must be set when pgraft.initial_cluster is not")
    return Place(text_of(values, "name") or f"node{node_id}", node_id, address, port)


def _require_explicit(values: Values, rule: str) -> None:
    for name in ("node_id", "address", "port"):
        if not values[f"pgraft.{name}"]:
            raise SettingError(f"pgraft.{name}", values[f"pgraft.{name}"], rule)


def _place_existing(values: Values, members: tuple[Member, ...]) -> Place:
    """A node that waits to be added: it says who it is; the list is only where to look for the cluster."""
    _require_explicit(values, "must be set when pgraft.initial_cluster_state is existing")
    if not members:
        raise SettingError(
            "pgraft.initial_cluster",
            "",
            "must list some members to find the cluster by when pgraft.initial_cluster_state is existing",
        )
    node_id = number_of(values, "node_id")
    name = text_of(values, "name") or f"node{node_id}"
    for member in members:
        if member.name == name:
            _check_agreement(values, member)
    return Place(name, node_id, text_of(values, "address"), number_of(values, "port"))


def _listen_address(values: Values, place: Place) -> tuple[str, int]:
    text = text_of(values, "listen_address")
    if not text:
        return place.address, place.port
    address = split_address(text)
    if address is None:
        raise SettingError("pgraft.listen_address", text, "must be host:port")
    return ("0.0.0.0" if address[0] == "*" else address[0]), address[1]
