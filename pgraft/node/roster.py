"""Whom the network process talks to, and who this node is: addresses, member ids, refusals.

Peers remember each other's member id, durably and before the first message of a connection is
answered, so that a node whose disk was emptied or replaced is refused under its old id. What is to be
written and shown goes into the outputs of the step (`give`).
"""

from __future__ import annotations

import msgspec

from pgraft.node.membership import Membership, Node
from pgraft.node.outputs import LogLines, MembersBlock, Outputs
from pgraft.postgres.settings import NodeConfig
from pgraft.shm.blocks import MemberRow
from pgraft.shm.layout import MEMBERS_MAX
from pgraft.storage import Identity
from pgraft.transport.records import NetIdentity, PeerHello, RecordKind, Refusal, pack

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
        self, config: NodeConfig, identity: Identity, member_ids: dict[int, int], log: LogLines
    ) -> None:
        self._config = config
        self._log = log
        self.identity = identity
        self._told_epoch = -1
        self._member_ids = member_ids
        self._identity_changed = False
        self._peers_changed = False
        self._present: dict[int, int] = {}
        self._lost: set[int] = set()
        self._membership = Membership()
        self._met: dict[int, Node] = {}
        self._refusals: dict[int, Refusal] = {}
        self.leaving: dict[int, Leaving] = {}
        self._shown: MembersBlock | None = None
        self._members_changed = False
        self._own_place: tuple[str, int] | None = None

    def give(self, outputs: Outputs, network_epoch: int) -> None:
        """Have written and shown what has changed, and a new network process told who this node is."""
        if self._identity_changed:
            self._identity_changed = False
            outputs.identity = self.identity
        if self._peers_changed:
            self._peers_changed = False
            outputs.peers = dict(self._member_ids)
        if self._members_changed:
            self._members_changed = False
            outputs.members = self._shown
        if network_epoch != self._told_epoch:
            self._told_epoch = network_epoch
            outputs.network = [self._identity_record()]

    def tell_again(self) -> None:
        """A record for the network process found no room."""
        self._told_epoch = -1

    def _identity_record(self) -> bytes:
        identity = self.identity
        body = NetIdentity(
            identity.cluster_id,
            identity.node_id,
            identity.member_id,
            identity.initial_members,
            self._config.initial_cluster_state,
            identity.formed,
            self._config.election_timeout_ms,
        )
        return pack(RecordKind.IDENTITY, identity.node_id, body)

    def update(self, identity: Identity) -> None:
        """Have a changed identity stored."""
        self._identity_changed = True
        told_differs = identity.formed != self.identity.formed
        self.identity = identity
        if told_differs:
            self._told_epoch = -1

    def publish(self, membership: Membership) -> None:
        """Show the members to the network process and to every backend, when they changed."""
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
        shown = MembersBlock(tuple(rows.values()), membership.removed)
        if shown != self._shown:
            self._shown = shown
            self._members_changed = True

    def _row(self, node: Node, membership: Membership, *, is_leaving: bool = False) -> MemberRow:
        return MemberRow(
            node.node_id,
            node.address,
            node.port,
            node.node_id in membership.conf_state.learners,
            is_leaving,
            self._own_or_known_id(node.node_id),
        )

    def _own_or_known_id(self, node_id: int) -> int:
        if node_id == self.identity.node_id:
            return self.identity.member_id
        return self._member_ids.get(node_id, 0)

    def hello(self, node_id: int, hello: PeerHello) -> None:
        """A peer connected: remember its member id before its messages count."""
        self._refusals.pop(node_id, None)
        self._met.pop(node_id, None)
        if len(self._met) >= MEMBERS_MAX:
            del self._met[next(iter(self._met))]
        self._met[node_id] = Node(node_id, hello.address, hello.port)
        self._present.pop(node_id, None)
        if len(self._present) >= PRESENT_MAX:
            members = self._membership
            del self._present[next(one for one in self._present if members.get(one) is None)]
        self._present[node_id] = hello.member_id
        self._remember()

    def _remember(self) -> None:
        """Write down the member ids of voters: as the membership tells them, else as first met.

        Who never voted may come back with another disk, and a node that was away meanwhile must not hold on
        to the first one.
        """
        own = self.identity.node_id
        new: dict[int, int] = {}
        for node in self._membership.nodes:
            if node.node_id == own or not self._membership.is_voter(node.node_id):
                continue
            known = self._member_ids.get(node.node_id, 0)
            member_id = node.member_id or known or self._present.get(node.node_id, 0)
            if member_id != known:
                new[node.node_id] = member_id
        if new:
            self._member_ids |= new
            self._peers_changed = True

    def _compare_own(self, own: Node | None) -> None:
        """Say when this node lives elsewhere than the others look for it: they hear it only when it calls."""
        config = self._config
        told = (own.address, own.port) if own is not None else None
        if told == self._own_place:
            return
        self._own_place = told
        here = (config.address, config.port)
        if told is not None and told != here:
            self._log(
                "LOG",
                f"node {config.node_id} is at {here[0]}:{here[1]} by its settings, and at {told[0]}:{told[1]}"
                " by the list of members",
                hint="If it has moved, on the leader:"
                f" SELECT pgraft_update_node({config.node_id}, '{here[0]}', {here[1]})",
            )

    def member_id_of(self, node_id: int) -> int:
        """The member id that this peer is known by, or came with; 0 for none."""
        return self._member_ids.get(node_id, 0) or self._present.get(node_id, 0)

    def is_trusted(self, node_id: int) -> bool:
        """Whether the newest connection of this peer came with the member id that is remembered. A node
        that is no member may speak too: whose configuration lags must still hear new voters."""
        known, present = self._member_ids.get(node_id), self._present.get(node_id)
        if present is None:
            # Its greeting went to an earlier worker, or stood here until others came; the network process
            # has checked it.
            return known is not None or self._membership.get(node_id) is not None
        return known is None or known == present

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
        if self._member_ids.pop(node_id, None) is not None:
            self._peers_changed = True

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
        self._log("LOG", f"node {config.node_id} waits to be added", hint=f"On the leader: {call}")
