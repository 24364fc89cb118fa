"""The settings, in one table: names, types, ranges, defaults and descriptions.

The C that defines them in PostgreSQL (sql/pgraft_settings.h) is made from this table, and the
supervisor validates with it, so that both always agree.
"""

from __future__ import annotations

import enum

import msgspec


class Kind(enum.Enum):
    """PostgreSQL's type of a setting."""

    STRING = "string"
    INTEGER = "integer"
    BOOL = "bool"
    ENUM = "enum"


class Context(enum.Enum):
    """When a setting can change, in PostgreSQL's words."""

    POSTMASTER = "postmaster"
    USER = "user"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One setting. `unit` is "", "ms", "kB" or "MB"; integer defaults and ranges are in that unit."""

    name: str
    kind: Kind
    default: str | int | bool
    short: str
    long: str = ""
    unit: str = ""
    minimum: int = 0
    maximum: int = 0
    options: tuple[str, ...] = ()
    context: Context = Context.POSTMASTER
    is_private: bool = False
    """Shown to superusers and pg_read_all_settings only, and never anybody else's to set."""


def _string(name: str, default: str, short: str, long: str = "", *, is_private: bool = False) -> Setting:
    return Setting(
        name=name, kind=Kind.STRING, default=default, short=short, long=long, is_private=is_private
    )


def _integer(
    name: str,
    default: int,
    bounds: tuple[int, int],
    short: str,
    *,
    unit: str = "",
    long: str = "",
    context: Context = Context.POSTMASTER,
) -> Setting:
    return Setting(
        name=name,
        kind=Kind.INTEGER,
        default=default,
        minimum=bounds[0],
        maximum=bounds[1],
        unit=unit,
        short=short,
        long=long,
        context=context,
    )


def _bool(name: str, default: bool, short: str, *, context: Context = Context.POSTMASTER) -> Setting:
    return Setting(name=name, kind=Kind.BOOL, default=default, short=short, context=context)


INT_MAX = 2**31 - 1

SETTINGS: tuple[Setting, ...] = (
    _string("pgraft.name", "", "Name of this node.", "One of the names in pgraft.initial_cluster."),
    _string(
        "pgraft.initial_cluster",
        "",
        "Members at the first start, as name=host:port,...",
        "The same on every node; a node's id is its place in the list, from 1."
        " Counts at the first start only.",
    ),
    Setting(
        name="pgraft.initial_cluster_state",
        kind=Kind.ENUM,
        default="new",
        options=("new", "existing"),
        short="Whether this node forms a new cluster or waits to be added to an existing one.",
    ),
    _string(
        "pgraft.listen_address",
        "",
        "host:port that the Raft port binds.",
        "Empty: this node's own address in pgraft.initial_cluster.",
    ),
    _string("pgraft.cluster_id", "pgraft", "Name of the cluster; peers of another one are refused."),
    _integer(
        "pgraft.node_id", 0, (0, INT_MAX), "Id of this node; 0 takes its place in pgraft.initial_cluster."
    ),
    _string("pgraft.address", "", "Host name or address by which peers reach this node."),
    _integer("pgraft.port", 0, (0, 65535), "Raft port by which peers reach this node."),
    _string(
        "pgraft.data_dir",
        "",
        "Directory of the Raft state.",
        "Empty: the data directory's path with .pgraft added. It must lie outside the data directory.",
        is_private=True,
    ),
    _integer(
        "pgraft.election_timeout",
        1000,
        (100, 600_000),
        "An election starts after one to two of these without a leader.",
        unit="ms",
        long="At least ten times pgraft.heartbeat_interval.",
    ),
    _integer(
        "pgraft.heartbeat_interval", 100, (10, 60_000), "Time between a leader's heartbeats.", unit="ms"
    ),
    _bool("pgraft.ssl_enabled", False, "Mutual TLS between nodes."),
    _string("pgraft.ssl_cert_file", "", "Certificate of this node, PEM."),
    _string("pgraft.ssl_key_file", "", "Private key of this node, PEM, readable by its owner only."),
    _string("pgraft.ssl_ca_file", "", "Certificates of the authorities that sign nodes, PEM."),
    _bool("pgraft.autostart", True, "Take part in consensus at start; off leaves it to pgraft_init()."),
    _integer(
        "pgraft.max_entry_size",
        1024,
        (1, 1024),
        "Largest text that pgraft_replicate_entry takes, in UTF-8.",
        unit="kB",
    ),
    _integer(
        "pgraft.command_ring_size",
        1024,
        (16, 65536),
        "Size of the ring by which sessions hand commands to the worker.",
        unit="kB",
    ),
    _integer(
        "pgraft.log_keep_entries",
        1_000_000,
        (1000, INT_MAX),
        "Committed entries that are kept at least, whatever their size.",
        long="Older ones go when pgraft.log_keep_bytes is exceeded, too.",
    ),
    _integer(
        "pgraft.log_keep_bytes",
        1_048_576,
        (1024, INT_MAX),
        "Bytes of committed entries that are kept at least, whatever their number.",
        unit="kB",
        long="Older ones go when pgraft.log_keep_entries is exceeded, too.",
    ),
    _integer(
        "pgraft.snapshot_threshold",
        10_000,
        (100, INT_MAX),
        "Entries beyond those to keep after which a snapshot is written and the log compacted.",
    ),
    _integer(
        "pgraft.log_segment_size",
        16,
        (1, 1024),
        "Size of one file of the entry log.",
        unit="MB",
    ),
    _integer(
        "pgraft.proposal_timeout",
        10_000,
        (100, INT_MAX),
        "How long a command waits for its outcome.",
        unit="ms",
        context=Context.USER,
    ),
    _integer(
        "pgraft.add_node_timeout",
        60_000,
        (1000, INT_MAX),
        "How long pgraft_add_node waits for the newcomer to catch up.",
        unit="ms",
        context=Context.USER,
    ),
    _integer(
        "pgraft.disk_stall_timeout",
        10_000,
        (100, INT_MAX),
        "A sync of the entry log that takes longer ends this node's part in consensus.",
        unit="ms",
    ),
    _bool(
        "pgraft.forward_proposals",
        False,
        "Send commands of this session to the leader when this node is not.",
        context=Context.USER,
    ),
)

BY_NAME: dict[str, Setting] = {setting.name: setting for setting in SETTINGS}


class Member(msgspec.Struct, frozen=True):
    """A member of the initial cluster: its id is its place in the list, from 1."""

    node_id: int
    name: str
    address: str
    port: int


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the processes of one node need, validated and derived; written by the supervisor
    to <data_dir>/run/node.json for the worker and the network process. Times in ms, sizes in bytes."""

    name: str
    node_id: int
    cluster_id: str
    initial_cluster: tuple[Member, ...]
    initial_cluster_state: str
    address: str
    port: int
    listen_host: str
    listen_port: int
    data_dir: str
    pgdata: str
    segment_name: str
    election_timeout_ms: int
    heartbeat_interval_ms: int
    ssl_enabled: bool
    ssl_cert_file: str
    ssl_key_file: str
    ssl_ca_file: str
    autostart: bool
    max_entry_bytes: int
    command_ring_bytes: int
    slot_count: int
    log_keep_entries: int
    log_keep_bytes: int
    snapshot_threshold: int
    log_segment_bytes: int
    disk_stall_timeout_ms: int
