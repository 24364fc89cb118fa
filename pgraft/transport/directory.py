"""Who is in the cluster, as this process knows it: the worker's members block, and what peers said."""

from __future__ import annotations

import msgspec

from pgraft.transport.handshake import Remembered
from pgraft.transport.limits import REFUSED_STARTS_MAX, UNKNOWN_PEERS_MAX
from pgraft.transport.records import RefusedStart


class PeerAddress(msgspec.Struct, frozen=True):
    """One other member: where it is, its member id (0: not known yet), and whether it does not vote yet:
    then it may still come with another disk."""

    node_id: int
    address: str
    port: int
    member_id: int = 0
    is_learner: bool = False
    incarnation: int = 1


class _Learned(msgspec.Struct, frozen=True):
    """What a peer came with."""

    member_id: int = 0
    incarnation: int = 1


class Directory:
    """The worker's word counts first; a member id that it does not know yet is learned from the
    first peer that comes with one, for the life of this process, and so are higher incarnations."""

    def __init__(self) -> None:
        self.initial: dict[int, str] = {}
        """Addresses by node id in this node's own pgraft.initial_cluster, until it is a member itself."""
        self.members: dict[int, PeerAddress] = {}
        self.removed: frozenset[int] = frozenset()
        self._learned: dict[int, _Learned] = {}
        self._refused_starts: dict[int, RefusedStart] = {}

    def update(self, members: dict[int, PeerAddress], removed: frozenset[int]) -> None:
        """The worker published another membership. Who left it is forgotten: it may come back with
        another member id once it has been added again."""
        for node_id in self.members:
            if node_id not in members:
                self._learned.pop(node_id, None)
        self.members = members
        self.removed = removed

    def address_of(self, node_id: int) -> str:
        """Where that node is by our own knowledge, whatever it says about itself; empty for unknown."""
        member = self.members.get(node_id)
        return member.address if member is not None else self.initial.get(node_id, "")

    def is_removed(self, node_id: int) -> bool:
        """Whether this id was removed, and not added again."""
        return node_id in self.removed and node_id not in self.members

    def remembered(self, node_id: int) -> Remembered:
        """What a handshake of this node is judged by."""
        member = self.members.get(node_id)
        known = member.member_id if member is not None else 0
        pinned = member is None or not member.is_learner
        learned = self._learned.get(node_id, _Learned()) if pinned or known else _Learned()
        member_id = known or learned.member_id
        incarnation = member.incarnation if member is not None else 1
        if learned.member_id == member_id:
            incarnation = max(incarnation, learned.incarnation)
        refused = self._refused_starts.get(node_id)
        return Remembered(
            member_id,
            self.is_removed(node_id),
            incarnation,
            refused.start_id if refused is not None else 0,
            refused.refusal if refused is not None else None,
        )

    def learn(self, node_id: int, member_id: int, incarnation: int) -> None:
        """A handshake passed: the first member id seen is the one, and the highest incarnation."""
        if self.remembered(node_id).member_id not in (0, member_id):
            return
        is_new = node_id not in self._learned and node_id not in self.members
        if is_new and len(self._learned) >= len(self.members) + UNKNOWN_PEERS_MAX:
            return
        known = self._learned.get(node_id)
        if known is not None and known.member_id == member_id:
            incarnation = max(incarnation, known.incarnation)
        self._learned[node_id] = _Learned(member_id, incarnation)

    def refuse_start(self, node_id: int, refused: RefusedStart) -> None:
        """The worker wants no more of a peer's worker since this start; the newest of each peer counts."""
        self._refused_starts.pop(node_id, None)
        if len(self._refused_starts) >= REFUSED_STARTS_MAX:
            del self._refused_starts[next(iter(self._refused_starts))]
        self._refused_starts[node_id] = refused

    def forget_stranger(self, node_id: int) -> None:
        """The last connection of an id that is no member is gone."""
        if node_id not in self.members:
            self._learned.pop(node_id, None)
