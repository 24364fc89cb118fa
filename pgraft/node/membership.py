"""Who the members are, with their addresses: the state machine that membership changes apply to.

The core knows ids only; addresses, member ids and removed ids travel in the change's context and
in the snapshot's data. Past states are kept back to the snapshot, since compaction needs the
membership as it was at the index that it compacts to.
"""

from __future__ import annotations

import msgspec

from pgraft.hosts import is_host
from pgraft.raft.types import (
    ConfChange,
    ConfChangeType,
    ConfState,
    Entry,
    EntryType,
    Snapshot,
    SnapshotMetadata,
)
from pgraft.ranges import MEMBER_ID_MAX, NODE_ID_MAX, PORT_MAX
from pgraft.shm.layout import MEMBERS_MAX

REMOVED_IDS_MAX = 1024
_CHANGE_TYPES = frozenset(int(member) for member in ConfChangeType)
CHANGE_BYTES_MAX = 512
"""Of a membership change in an entry: it holds one address. So little is never nested too deeply to be read,
however deep the stack of its reader is: a change that the door has let in can be applied everywhere."""
# msgspec raises the second one for a text that is not UTF-8, the third for too many lists in lists.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class MembershipError(Exception):
    """A stored or received membership that cannot be read."""


class Node(msgspec.Struct, array_like=True, frozen=True):
    """A member: where peers reach it, and the member id that it voted with first (0: not told)."""

    node_id: int
    address: str
    port: int
    member_id: int = 0


class ChangeContext(msgspec.Struct, array_like=True, frozen=True):
    """What a membership change carries beside ids: address and member id, or that the id is not barred
    after."""

    address: str = ""
    port: int = 0
    forget: bool = False
    member_id: int = 0


class _SnapshotData(msgspec.Struct, array_like=True, frozen=True):
    nodes: tuple[Node, ...] = ()
    removed: tuple[int, ...] = ()


class Membership(msgspec.Struct, frozen=True):
    """One state of the membership. `nodes` in id order; `removed` in order of removal."""

    nodes: tuple[Node, ...] = ()
    removed: tuple[int, ...] = ()
    conf_state: ConfState = ConfState()

    def get(self, node_id: int) -> Node | None:
        """The member with this id."""
        for node in self.nodes:
            if node.node_id == node_id:
                return node
        return None

    def is_voter(self, node_id: int) -> bool:
        """Whether this id votes, in either half while joint."""
        return node_id in self.conf_state.voters or node_id in self.conf_state.voters_outgoing

    def halves(self) -> tuple[frozenset[int], frozenset[int]]:
        """Incoming and outgoing voters."""
        return frozenset(self.conf_state.voters), frozenset(self.conf_state.voters_outgoing)

    def to_snapshot(self, index: int, term: int) -> Snapshot:
        """This state as the snapshot at `index`."""
        data = msgspec.msgpack.encode(_SnapshotData(self.nodes, self.removed))
        return Snapshot(SnapshotMetadata(self.conf_state, index, term), data)

    def apply(self, change: ConfChange, conf_state: ConfState) -> Membership:
        """The state after `change`, which gives `conf_state`."""
        context = decode_context(change.context)
        nodes = {node.node_id: node for node in self.nodes}
        removed = tuple(node for node in self.removed if node != change.node_id)
        match ConfChangeType(change.type):
            case ConfChangeType.ConfChangeRemoveNode:
                nodes.pop(change.node_id, None)
                if not context.forget:
                    removed = (*removed, change.node_id)[-REMOVED_IDS_MAX:]
            case ConfChangeType.ConfChangeUpdateNode if change.node_id not in nodes:
                removed = self.removed
            case _ if context.address:
                known = nodes.get(change.node_id)
                member_id = context.member_id or (known.member_id if known is not None else 0)
                nodes[change.node_id] = Node(change.node_id, context.address, context.port, member_id)
            case _:
                nodes.setdefault(change.node_id, Node(change.node_id, "", 0))
        return Membership(tuple(nodes[node] for node in sorted(nodes)), removed, conf_state)


def from_snapshot(snapshot: Snapshot) -> Membership:
    """The membership that a snapshot carries. Raises MembershipError."""
    try:
        data = msgspec.msgpack.decode(snapshot.data, type=_SnapshotData)
    except _UNREADABLE as error:
        raise MembershipError(f"snapshot at index {snapshot.metadata.index}: {error}") from error
    state = snapshot.metadata.conf_state
    wrong = _wrong_data(data) or wrong_conf_state(state)
    if wrong:
        raise MembershipError(f"snapshot at index {snapshot.metadata.index}: {wrong}")
    return Membership(data.nodes, data.removed, state)


def _wrong_data(data: _SnapshotData) -> str:
    """What of the members cannot be, empty when it is all in range."""
    if len(data.nodes) > MEMBERS_MAX or len(data.removed) > REMOVED_IDS_MAX:
        return f"{len(data.nodes)} members and {len(data.removed)} removed ids"
    for node in data.nodes:
        if not 1 <= node.node_id <= NODE_ID_MAX or not _is_possible(node):
            return f"member {node.node_id} at port {node.port}"
    if len({node.node_id for node in data.nodes}) != len(data.nodes):
        return "a member stands there twice"
    for node_id in data.removed:
        if not 1 <= node_id <= NODE_ID_MAX:
            return f"removed id {node_id}"
    return ""


def _is_possible(at: Node | ChangeContext) -> bool:
    """Whether the address, where there is one, is a host's, and port and member id are in their ranges."""
    fits = not at.address or is_host(at.address)
    return fits and 0 <= at.port <= PORT_MAX and 0 <= at.member_id <= MEMBER_ID_MAX


def wrong_conf_state(state: ConfState) -> str:
    """Why no cluster can have this configuration, empty when one can: what the core could not restore."""
    voters, outgoing = frozenset(state.voters), frozenset(state.voters_outgoing)
    learners, later = frozenset(state.learners), frozenset(state.learners_next)
    lists = (state.voters, state.voters_outgoing, state.learners, state.learners_next)
    if not voters:
        return "no voters"
    everybody = voters | outgoing | learners | later
    # One more: a snapshot is widened by a receiver that it does not have yet.
    if len(everybody) > MEMBERS_MAX + 1 or not all(1 <= node <= NODE_ID_MAX for node in everybody):
        return f"{len(everybody)} members, ids {min(everybody)} to {max(everybody)}"
    if sum(map(len, lists)) != sum(map(len, map(frozenset, lists))):
        return "a member stands in a list twice"
    if learners & (voters | outgoing) or later & voters or not later <= outgoing:
        return "a learner that votes"
    if state.auto_leave and not outgoing:
        return "it leaves a joint configuration that it is not in"
    return ""


def admitting(snapshot: Snapshot, node_id: int) -> Snapshot:
    """The snapshot as `node_id` may restore it: at least as a learner.

    It stands right before the first kept entry, which may lie before the entry that adds the
    receiver, and nobody restores a configuration without itself. Being a learner early changes no
    quorum, and the kept entries lead the receiver to the same configuration as everybody else.
    """
    metadata = snapshot.metadata
    state = metadata.conf_state
    if node_id in state.voters + state.learners + state.voters_outgoing:
        return snapshot
    widened = msgspec.structs.replace(state, learners=tuple(sorted((*state.learners, node_id))))
    return Snapshot(SnapshotMetadata(widened, metadata.index, metadata.term), snapshot.data)


def decode_context(context: bytes) -> ChangeContext:
    """The context of a change; one that cannot be read counts as empty, the same on every node."""
    if not context:
        return ChangeContext()
    try:
        found = msgspec.msgpack.decode(context, type=ChangeContext)
    except _UNREADABLE:
        return ChangeContext()
    return found if _is_possible(found) else ChangeContext()


def encode_context(context: ChangeContext) -> bytes:
    """Bytes for a change's context."""
    return msgspec.msgpack.encode(context)


def decode_change(entry: Entry) -> ConfChange | None:
    """The change in an entry; None for an entry of user data. pgraft proposes v1 changes only. Raises
    MembershipError for one that no pgraft has written."""
    if entry.type != EntryType.EntryConfChange:
        return None
    if len(entry.data) > CHANGE_BYTES_MAX:
        raise MembershipError(f"the membership change at index {entry.index}: {len(entry.data)} bytes")
    try:
        change = msgspec.msgpack.decode(entry.data, type=ConfChange)
    except _UNREADABLE as error:
        raise MembershipError(f"the membership change at index {entry.index}: {error}") from error
    if change.type not in _CHANGE_TYPES or not 0 <= change.node_id <= NODE_ID_MAX:
        raise MembershipError(
            f"the membership change at index {entry.index}: type {change.type} of node {change.node_id}"
        )
    return change


class MembershipLog:
    """The current membership and its past states back to the snapshot."""

    def __init__(self, index: int, state: Membership) -> None:
        self._states: list[tuple[int, Membership]] = [(index, state)]

    @property
    def current(self) -> Membership:
        """The state after everything applied."""
        return self._states[-1][1]

    def record(self, index: int, state: Membership) -> None:
        """The change at `index` led to `state`."""
        self._states.append((index, state))

    def at(self, index: int) -> Membership:
        """The state after everything up to `index` was applied."""
        found = self._states[0][1]
        for at, state in self._states:
            if at > index:
                break
            found = state
        return found

    def forget_before(self, index: int) -> None:
        """The log is compacted to `index`: earlier states are not asked for any more."""
        kept = self.at(index)
        self._states = [(index, kept), *((at, state) for at, state in self._states if at > index)]

    def reset(self, index: int, state: Membership) -> None:
        """A snapshot replaced everything."""
        self._states = [(index, state)]


def conf_state_after(state: ConfState, change: ConfChange) -> ConfState:
    """What a single v1 change makes of a configuration that is not joint (dissertation 4.1)."""
    voters = [node for node in state.voters if node != change.node_id]
    learners = [node for node in state.learners if node != change.node_id]
    match ConfChangeType(change.type):
        case ConfChangeType.ConfChangeAddNode:
            voters.append(change.node_id)
        case ConfChangeType.ConfChangeAddLearnerNode:
            learners.append(change.node_id)
        case ConfChangeType.ConfChangeRemoveNode:
            pass
        case ConfChangeType.ConfChangeUpdateNode:
            return state
    if change.node_id == 0:
        return state
    return ConfState(tuple(sorted(voters)), tuple(sorted(learners)))
