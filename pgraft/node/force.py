"""A new cluster of one node, made offline of a node whose cluster has lost its majority for good.

The order of the writes is what keeps two clusters apart, whenever this is interrupted; see README.md,
"A new cluster by force".
"""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from pgraft.node.core import replay_membership
from pgraft.node.membership import ChangeContext, Membership, Node, encode_context
from pgraft.raft import codec
from pgraft.raft.types import ConfChange, ConfChangeType, Entry, HardState
from pgraft.storage import (
    Identity,
    Peers,
    StorageError,
    Store,
    load_identity,
    load_peers,
    new_member_id,
    open_store,
    place_of,
    remove_mark,
    save_peers,
    update_identity,
)

FORCED = "-forced-"
MARK_BYTES = 4
CLUSTER_ID_BYTES_MAX = 120


class Survivor(msgspec.Struct, frozen=True):
    """What one node has left of its cluster. Entries behind `commit_index` were acknowledged or not: it
    does not know."""

    cluster_id: str
    node_id: int
    term: int
    commit_index: int
    last_index: int
    last_term: int
    committed: Membership
    """What a start would restore: by it the node needs others, or does not."""
    membership: Membership
    """After the whole log: what the node is forced from."""

    @property
    def members(self) -> list[Node]:
        """Everybody who is a member by either."""
        nodes = {node.node_id: node for node in self.committed.nodes + self.membership.nodes}
        return [nodes[node_id] for node_id in sorted(nodes)]

    @property
    def is_member(self) -> bool:
        """Whether it is one of them: its removal counts once it is committed."""
        return self.node_id in [node.node_id for node in self.members]

    @property
    def is_alone(self) -> bool:
        """Whether it is the only voter already, and nobody else is a member: with the same start as before
        it would lead, and go on alone."""
        sole = (self.node_id,)
        return all(
            tuple(n.node_id for n in state.nodes) == sole for state in (self.committed, self.membership)
        )


def survey(data_dir: Path, segment_bytes: int) -> Survivor:
    """Look at the Raft state below `data_dir`, whose lock the caller holds.

    Raises StorageError and, for a log that no node could start with, MembershipError.
    """
    identity, store = _open(data_dir, segment_bytes)
    try:
        return _survivor(identity, store)
    finally:
        store.close()


def force_new_cluster(data_dir: Path, segment_bytes: int) -> str:
    """Make the node below `data_dir`, whose lock the caller holds, a cluster of its own; its new cluster id.

    Everything in its log counts as committed afterwards. Raises StorageError and MembershipError.
    """
    identity, store = _open(data_dir, segment_bytes)
    try:
        survivor = _survivor(identity, store)
        forced = _new_identity(data_dir, identity, survivor)
        # First of all: from here on no node of the old cluster talks to this one, nor it to them.
        update_identity(data_dir, forced)
        _bar_old_ids(data_dir, survivor)
        _leave_alone(store, survivor)
        # Whoever chose this node has decided whose log is right.
        remove_mark(data_dir)
    finally:
        store.close()
    return forced.cluster_id


def _open(data_dir: Path, segment_bytes: int) -> tuple[Identity, Store]:
    identity = load_identity(data_dir)
    if identity is None:
        raise StorageError(
            data_dir,
            None,
            "there is no Raft state of a node here",
            "pgraft.data_dir says where it is; a node that never ran has nothing to go on with.",
        )
    return identity, open_store(data_dir, segment_bytes=segment_bytes)


def _survivor(identity: Identity, store: Store) -> Survivor:
    last, written = store.last_index(), store.hard_state
    log, _ = replay_membership(store, last)  # the whole log counts, not only what is known to be committed
    return Survivor(
        identity.cluster_id,
        identity.node_id,
        written.term,
        written.commit,
        last,
        store.term(last),
        log.at(written.commit),
        log.current,
    )


def _new_identity(data_dir: Path, identity: Identity, survivor: Survivor) -> Identity:
    """A name that no other survivor can come to, though it is forced as well, and a member id of its own.

    It lives where the directory is now. A copy may be forced: as another member of another cluster it cannot
    be taken for its original, and nobody is left whom it would have to catch up with.
    """
    base, mark = identity.cluster_id.split(FORCED)[0], FORCED + secrets.token_hex(MARK_BYTES)
    while len((base + mark).encode()) > CLUSTER_ID_BYTES_MAX:
        base = base[:-1]
    own = _own_place(survivor)
    where = f"{own.address}:{own.port}" if own.address else ""
    return msgspec.structs.replace(
        identity,
        cluster_id=base + mark,
        member_id=new_member_id(),
        initial_members=f"{identity.node_id}:node{identity.node_id}={where}",
        formed=True,
        place=place_of(data_dir),
        incarnation=1,
        catching_up=False,
    )


def _own_place(survivor: Survivor) -> ChangeContext:
    """Where it is, though the end of its log may be its own removal."""
    own = survivor.membership.get(survivor.node_id) or survivor.committed.get(survivor.node_id)
    return ChangeContext(own.address, own.port) if own is not None else ChangeContext()


def _bar_old_ids(data_dir: Path, survivor: Survivor) -> None:
    """No disk is ever taken for an old node's again: who was not met gets a member id of nobody's."""
    known = dict(load_peers(data_dir).member_ids)
    for node in survivor.members:
        if node.node_id != survivor.node_id:
            known.setdefault(node.node_id, node.member_id or new_member_id())
    save_peers(data_dir, Peers(known))


def _leave_alone(store: Store, survivor: Survivor) -> None:
    """Append what makes this node the only member, and count the whole log as committed: one batch."""
    term = max(survivor.term, survivor.last_term) + 1
    entries: list[Entry] = []
    for change in _changes(survivor):
        entry = codec.encode_conf_change(change)
        place = survivor.last_index + 1 + len(entries)
        entries.append(msgspec.structs.replace(entry, term=term, index=place))
    store.append(HardState(term, 0, survivor.last_index + len(entries)), entries)


def _changes(survivor: Survivor) -> list[ConfChange]:
    own_id, membership = survivor.node_id, survivor.membership
    changes: list[ConfChange] = []
    if own_id not in membership.conf_state.voters:
        place = encode_context(_own_place(survivor))
        changes.append(ConfChange(ConfChangeType.ConfChangeAddNode, own_id, place))
    barred = encode_context(ChangeContext())
    changes += [
        ConfChange(ConfChangeType.ConfChangeRemoveNode, node.node_id, barred)
        for node in membership.nodes
        if node.node_id != own_id
    ]
    return changes
