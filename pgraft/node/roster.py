"""Whom the network process talks to, and who this node is: addresses, member ids, refusals.

Peers remember each other's member id and newest incarnation, durably and before the first message of a
connection is looked at: a node whose disk was emptied or replaced is refused under its old id, and so is an
older copy of one whose directory was adopted in another place.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from pgraft.log import log
from pgraft.node.envelope import NodeStatus
from pgraft.node.membership import Membership, Node
from pgraft.postgres.settings import NodeConfig
from pgraft.ranges import INCARNATION_JUMP_MAX
from pgraft.shm.blocks import MemberRow, MembersWriter
from pgraft.shm.layout import MEMBERS_MAX
from pgraft.shm.rings import RingWriter
from pgraft.shm.segment import Segment
from pgraft.storage import Identity, Peers, load_peers, save_peers, update_identity
from pgraft.transport.records import (
    NetIdentity,
    PeerHello,
    RecordKind,
    Refusal,
    RefusedStart,
    WorkerStart,
    pack,
)

PRESENT_MAX = 4 * MEMBERS_MAX
"""Peers whose newest member id is kept in memory; beyond that the oldest that is no member goes."""


class Leaving(msgspec.Struct, frozen=True):
    """A node that was removed and still hears so, until `until_ns`."""

    node: Node
    index: int
    until_ns: int


class Roster:
    """Members as the network process sees them, and what it tells about peers."""

    def __init__(
        self,
        config: NodeConfig,
        identity: Identity,
        segment: Segment,
        ring: RingWriter,
        start: WorkerStart,
    ) -> None:
        self._config = config
        self._dir = Path(config.data_dir)
        self.identity = identity
        self._writer = MembersWriter(segment)
        self._network_epoch = segment.network_ref("epoch")
        self._told_epoch = -1
        self._ring = ring
        peers = load_peers(self._dir)
        self._member_ids = dict(peers.member_ids)
        self._incarnations = dict(peers.incarnations)
        self.start = start
        self._present: dict[int, PeerHello] = {}
        self._refused_starts: dict[int, RefusedStart] = {}
        self._to_refuse: list[int] = []
        self._lost: set[int] = set()
        self._membership = Membership()
        self._met: dict[int, Node] = {}
        self._refusals: dict[int, Refusal] = {}
        self.leaving: dict[int, Leaving] = {}
        self._published: tuple[object, ...] = ()
        self._own_place: tuple[str, int] | None = None

    def tell_network(self) -> bool:
        """Tell a network process that is new who this node is, and whom it is to refuse; whether something
        was written."""
        epoch = self._network_epoch.load()
        if epoch == self._told_epoch:
            return bool(self._to_refuse) and self._tell_refused()
        identity = self.identity
        body = NetIdentity(
            identity.cluster_id,
            identity.node_id,
            identity.member_id,
            identity.initial_members,
            self._config.initial_cluster_state,
            identity.formed,
            self._config.election_timeout_ms,
            identity.incarnation,
            self.start,
        )
        if self._ring.put(pack(RecordKind.IDENTITY, identity.node_id, body)):
            self._told_epoch = epoch
        return True

    def _tell_refused(self) -> bool:
        """In their order; what finds no room is told with the next turn."""
        while self._to_refuse:
            node_id = self._to_refuse[0]
            if not self._ring.put(pack(RecordKind.REFUSE_START, node_id, self._refused_starts[node_id])):
                break
            del self._to_refuse[0]
        return True

    def update(self, identity: Identity) -> None:
        """Store a changed identity. Raises StorageError."""
        update_identity(self._dir, identity)
        told_differs = identity.formed != self.identity.formed
        self.identity = identity
        if told_differs:
            self._told_epoch = -1

    def publish(self, membership: Membership) -> None:
        """Show the members to the network process and to every backend, when they changed. Raises
        StorageError."""
        self._membership = membership
        self._remember()
        self._compare_own(membership.get(self.identity.node_id))
        rows = {node.node_id: self._row(node, membership) for node in membership.nodes}
        for node_id, leaving in self.leaving.items():
            rows.setdefault(node_id, self._row(leaving.node, membership, is_leaving=True))
        if not membership.nodes:
            # Waiting to be added: answer whoever speaks to us, at the address that it gave.
            for node_id, node in self._met.items():
                rows.setdefault(node_id, self._row(node, membership, is_leaving=True))
        published = (tuple(rows.values()), membership.removed)
        if published != self._published:
            self._published = published
            self._writer.publish(*published)

    def _row(self, node: Node, membership: Membership, *, is_leaving: bool = False) -> MemberRow:
        return MemberRow(
            node.node_id,
            node.address,
            node.port,
            node.node_id in membership.conf_state.learners,
            is_leaving,
            self._own_or_known_id(node.node_id),
            self.incarnation_of(node.node_id),
        )

    def _own_or_known_id(self, node_id: int) -> int:
        if node_id == self.identity.node_id:
            return self.identity.member_id
        return self._member_ids.get(node_id, 0)

    def incarnation_of(self, node_id: int) -> int:
        """The newest incarnation of a node that is known; 1 where none was heard of."""
        if node_id == self.identity.node_id:
            return self.identity.incarnation
        return self._incarnations.get(node_id, 1)

    def hello(self, node_id: int, hello: PeerHello) -> None:
        """A peer connected: remember its member id and incarnation before its messages count. Raises
        StorageError."""
        self._refusals.pop(node_id, None)
        self._met.pop(node_id, None)
        if len(self._met) >= MEMBERS_MAX:
            del self._met[next(iter(self._met))]
        self._met[node_id] = Node(node_id, hello.address, hello.port)
        self._present.pop(node_id, None)
        if len(self._present) >= PRESENT_MAX:
            members = self._membership
            del self._present[next(one for one in self._present if members.get(one) is None)]
        self._present[node_id] = hello
        self._remember()

    def heard_of(self, table: Iterable[NodeStatus]) -> bool:
        """A leader told what it knows of all members; whether an incarnation was news. Raises
        StorageError."""
        higher = {
            row.node_id: row.incarnation
            for row in table
            if row.node_id in self._member_ids and self._is_next(row.node_id, row.incarnation)
        }
        higher.pop(self.identity.node_id, None)
        if higher:
            self._incarnations |= higher
            self._save()
        return bool(higher)

    def _is_next(self, node_id: int, incarnation: int) -> bool:
        known = self._incarnations.get(node_id, 1)
        return known < incarnation <= known + INCARNATION_JUMP_MAX

    def _save(self) -> None:
        save_peers(self._dir, Peers(self._member_ids, self._incarnations))

    def _remember(self) -> None:
        """Write down the member ids of voters: as the membership tells them, else as first met. And their
        incarnations: the highest that came with that member id.

        Who never voted may come back with another disk, and a node that was away meanwhile must not hold on
        to the first one.
        """
        own = self.identity.node_id
        new: dict[int, int] = {}
        newer: dict[int, int] = {}
        for node in self._membership.nodes:
            if node.node_id == own or not self._membership.is_voter(node.node_id):
                continue
            known = self._member_ids.get(node.node_id, 0)
            present = self._present.get(node.node_id)
            member_id = node.member_id or known or (present.member_id if present is not None else 0)
            if member_id != known:
                new[node.node_id] = member_id
                self._incarnations.pop(node.node_id, None)
            if present is None or present.member_id != member_id:
                continue
            if self._is_next(node.node_id, present.incarnation):
                newer[node.node_id] = present.incarnation
        if new or newer:
            self._member_ids |= new
            self._incarnations |= newer
            self._save()

    def _compare_own(self, own: Node | None) -> None:
        """Say when this node lives elsewhere than the others look for it: they hear it only when it calls."""
        config = self._config
        told = (own.address, own.port) if own is not None else None
        if told == self._own_place:
            return
        self._own_place = told
        here = (config.address, config.port)
        if told is not None and told != here:
            log(
                "LOG",
                f"node {config.node_id} is at {here[0]}:{here[1]} by its settings, and at {told[0]}:{told[1]}"
                " by the list of members",
                hint="If it has moved, on the leader:"
                f" SELECT pgraft_update_node({config.node_id}, '{here[0]}', {here[1]})",
            )

    def member_id_of(self, node_id: int) -> int:
        """The member id that this peer is known by, or came with; 0 for none."""
        present = self._present.get(node_id)
        return self._member_ids.get(node_id, 0) or (present.member_id if present is not None else 0)

    def is_trusted(self, node_id: int) -> bool:
        """Whether the newest connection of this peer is of the member that is remembered, with no less than
        it had acknowledged. A node that is no member may speak too: whose configuration lags must still hear
        new voters."""
        present, refused = self._present.get(node_id), self._refused_starts.get(node_id)
        if present is not None and refused is not None and present.start.start_id == refused.start_id:
            return False
        return self.is_known(node_id)

    def is_known(self, node_id: int) -> bool:
        """Whether it came with the member id and the incarnation that are remembered."""
        known, present = self._member_ids.get(node_id), self._present.get(node_id)
        if present is None:
            # Its greeting went to an earlier worker, or stood here until others came; the network process
            # has checked it.
            return known is not None or self._membership.get(node_id) is not None
        if known is None:
            return True
        return known == present.member_id and present.incarnation >= self.incarnation_of(node_id)

    def refuse_start(self, node_id: int, refused: RefusedStart) -> None:
        """A peer's worker started with less than it had acknowledged: none of its messages counts any more,
        and the network process is told, each time that it has let that one in."""
        if node_id not in self._refused_starts and len(self._refused_starts) >= PRESENT_MAX:
            oldest = next(iter(self._refused_starts))
            del self._refused_starts[oldest]
            self._to_refuse = [one for one in self._to_refuse if one != oldest]
        self._refused_starts[node_id] = refused
        if node_id not in self._to_refuse:
            self._to_refuse.append(node_id)

    def refused(self, node_id: int, refusal: Refusal) -> None:
        """A peer refuses this node, or this node's connection to it."""
        self._refusals[node_id] = refusal

    def connected(self, node_id: int) -> None:
        """A connection stands: what was refused before is over."""
        self._lost.discard(node_id)
        self._refusals.pop(node_id, None)

    def disconnected(self, node_id: int) -> None:
        """This node's connection to a peer is gone: who is no member may come back as another."""
        if len(self._lost) < PRESENT_MAX:
            self._lost.add(node_id)
        if self._membership.get(node_id) is None:
            self._present.pop(node_id, None)

    def is_lost(self, node_id: int) -> bool:
        """Whether this node's connection to the peer broke, and does not stand again."""
        return node_id in self._lost

    def refusal_text(self, node_id: int) -> str:
        """Why the connection to a peer was refused last, empty when it was not."""
        refusal = self._refusals.get(node_id)
        return refusal.text if refusal is not None else ""

    def left(self, node: Node, index: int, until_ns: int) -> None:
        """A voter was removed. Its member id stays known: under the same node id only the same disk may
        come back, since the votes that an emptied one has forgotten could count in an old configuration."""
        self.leaving[node.node_id] = Leaving(node, index, until_ns)

    def taken_back(self, node_id: int) -> None:
        """A newcomer that never became a voter was taken back: its id is free for any disk."""
        self._incarnations.pop(node_id, None)
        if self._member_ids.pop(node_id, None) is not None:
            self._save()

    def came(self, node_id: int) -> None:
        """A node is a member (again)."""
        self.leaving.pop(node_id, None)

    def farewells_over(self, now_ns: int) -> list[int]:
        """Ids of removed nodes that have been told for long enough."""
        over = [node_id for node_id, leaving in self.leaving.items() if leaving.until_ns <= now_ns]
        for node_id in over:
            del self.leaving[node_id]
        return over

    def log_waiting(self) -> None:
        """Say what a node that is to be added to a running cluster waits for."""
        config = self._config
        call = f"SELECT pgraft_add_node({config.node_id}, '{config.address}', {config.port})"
        log("LOG", f"node {config.node_id} waits to be added", hint=f"On the leader: {call}")
