"""How a node comes to its state at start: identity, store, first membership, and the parts of a `Replica`.

This runs before the first step: it reads and writes files, and looks into the segment.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec

from pgraft.log import log
from pgraft.node.board import Board
from pgraft.node.core import Core, Limits
from pgraft.node.desk import BOOTSTRAP_INDEX, Desk
from pgraft.node.membership import Membership
from pgraft.node.membership import Node as MemberNode
from pgraft.node.node import Replica
from pgraft.node.outbox import Outbox
from pgraft.node.outputs import LogLines
from pgraft.node.quiet import Quiet
from pgraft.node.roster import Roster
from pgraft.postgres.settings import NodeConfig
from pgraft.raft.types import ConfState, HardState
from pgraft.shm.blocks import BlockUnreadable, Status, read_status
from pgraft.shm.segment import Segment
from pgraft.storage import (
    Identity,
    Store,
    create_identity,
    load_identity,
    load_peers,
    new_member_id,
    open_store,
    update_identity,
)

COPIED_HINT = (
    "A Raft directory cannot be copied from another node: point pgraft.data_dir at an empty one and add the"
    " node under a new id."
)
BOOTSTRAP_TERM = 1
"""The term of the snapshot that every node of the initial cluster starts from."""


class ConfigConflict(Exception):
    """The settings do not fit what is stored. `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def initial_members_text(config: NodeConfig) -> str:
    """The initial list in one spelling, for peers to compare."""
    return ",".join(f"{m.node_id}:{m.name}={m.address}:{m.port}" for m in config.initial_cluster)


def open_identity(config: NodeConfig) -> Identity:
    """The stored identity, made at the first start. Raises ConfigConflict and StorageError."""
    data_dir = Path(config.data_dir)
    stored = load_identity(data_dir)
    if stored is None:
        identity = Identity(
            cluster_id=config.cluster_id,
            node_id=config.node_id,
            member_id=new_member_id(),
            initial_members=initial_members_text(config),
            formed=False,
            election_timeout_ms=config.election_timeout_ms,
        )
        create_identity(data_dir, identity)
        return identity
    if stored.cluster_id != config.cluster_id:
        raise ConfigConflict(
            f'pgraft.cluster_id is "{config.cluster_id}", but {data_dir} belongs to cluster'
            f' "{stored.cluster_id}"',
            f"Set pgraft.cluster_id = '{stored.cluster_id}', or point pgraft.data_dir at an empty directory.",
        )
    if stored.node_id != config.node_id:
        raise ConfigConflict(
            f'this node is node {config.node_id} ("{config.name}") by its settings, but {data_dir} belongs'
            f" to node {stored.node_id}",
            COPIED_HINT,
        )
    _check_name(config, stored)
    return stored


def _check_name(config: NodeConfig, stored: Identity) -> None:
    """The list in the settings counts no more; that of the first start tells a copied directory."""
    names = {}
    for member in stored.initial_members.split(","):
        node_id, _, rest = member.partition(":")
        names[rest.partition("=")[0]] = node_id
    meant = names.get(config.name, "")
    if meant and meant != str(stored.node_id):
        raise ConfigConflict(
            f'pgraft.name is "{config.name}", which was node {meant} when the cluster was made, but'
            f" {config.data_dir} belongs to node {stored.node_id}",
            COPIED_HINT,
        )


def _quiet(config: NodeConfig, identity: Identity, store: Store, now: int) -> tuple[Quiet, Identity]:
    """For how long no vote is given. A node that never heard of a leader has promised nothing."""
    longest = max(identity.election_timeout_ms, config.election_timeout_ms)
    may_have_promised = identity.formed or store.hard_state.term > BOOTSTRAP_TERM
    quiet = Quiet(now + longest * 1_000_000 if may_have_promised else now)
    return quiet, msgspec.structs.replace(identity, election_timeout_ms=longest)


def open_durable_state(config: NodeConfig, identity: Identity, progress: Callable[[], None]) -> Store:
    """The store, with the initial membership in it at the first start. Raises StorageError, and what
    `progress` raises, which is called again and again meanwhile."""
    store = open_store(Path(config.data_dir), segment_bytes=config.log_segment_bytes, progress=progress)
    if not store.is_empty or config.initial_cluster_state != "new" or identity.formed:
        return store
    nodes = tuple(MemberNode(m.node_id, m.address, m.port) for m in config.initial_cluster)
    voters = ConfState(voters=tuple(node.node_id for node in nodes))
    first = Membership(nodes, (), voters)
    store.bootstrap(first.to_snapshot(BOOTSTRAP_INDEX, BOOTSTRAP_TERM))
    progress()
    store.append(HardState(BOOTSTRAP_TERM, 0, BOOTSTRAP_INDEX), [])
    return store


def shown_before(segment: Segment) -> Status | None:
    """What an earlier worker of this segment showed last, if there was one."""
    try:
        return read_status(segment)
    except BlockUnreadable:
        return None


def applied_before(status: Status | None, store: Store) -> int:
    """What an earlier worker of this segment showed as committed: it was, and was on disk before.

    The commit index on disk lags behind (it is never written alone), and sessions that have read the later
    one must not see it go back. Nothing is believed of a log with an older term: not the same one.
    """
    if status is None:
        return 0
    return min(status.commit_index, store.last_index()) if status.term <= store.hard_state.term else 0


def build_node(
    config: NodeConfig,
    identity: Identity,
    store: Store,
    *,
    now_ns: int,
    chance: random.Random,
    applied: int = 0,
    limits: Limits | None = None,
) -> Replica:
    """Put the parts together. `applied` is known to have been applied here; `chance` gives all that the node
    does by chance; `now_ns` is the time of the start. Raises StorageError."""
    if store.is_empty and identity.formed:
        raise ConfigConflict(
            f"{config.data_dir} has an identity but no Raft state any more",
            "Its log was removed by hand. Remove this node from the cluster, empty the directory, and add it"
            " under a new id.",
        )
    quiet, promised = _quiet(config, identity, store, now_ns)
    if promised != identity:
        update_identity(Path(config.data_dir), promised)
    lines = LogLines()
    core = Core(config, store, chance, applied, limits)
    outbox = Outbox(config.node_id, core.promise_ns // 1_000_000)
    board = Board(config.node_id, config.election_timeout_ms, core.membership_log)
    roster = Roster(config, promised, load_peers(Path(config.data_dir)), lines)
    desk = Desk(config, core, roster, board, outbox, chance.getrandbits(63), lines)
    node = Replica(config, core, roster, board, outbox, desk, quiet, lines, now_ns)
    if not core.membership_log.current.nodes:
        roster.log_waiting()
    if store.recovered.cut_bytes:
        log(
            "LOG",
            f"node {config.node_id} cut a torn batch of {store.recovered.cut_bytes} bytes off its entry log",
            detail="It was being written when the node went down, and was never acknowledged.",
        )
    return node
