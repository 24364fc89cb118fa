"""Who is in the cluster, as this process knows it: the worker's members block, and what peers said."""

from __future__ import annotations

import msgspec

from pgraft.transport.handshake import Remembered
from pgraft.transport.limits import UNKNOWN_PEERS_MAX


class PeerAddress(msgspec.Struct, frozen=True):
    """One other member: where it is, its member id (0: not known yet), and whether it does not vote yet:
    then it may still come with another disk."""

    node_id: int
    address: str
    port: int
    member_id: int = 0
    is_learner: bool = False


class Directory:
    """The worker's word counts first; a member id that it does not know yet is learned from the
    first peer that comes with one, for the life of this process."""

    def __init__(self) -> None:
        self.initial: dict[int, str] = {}
        """Addresses by node id in this node's own pgraft.initial_cluster, until it is a member itself."""
        self.members: dict[int, PeerAddress] = {}
        self.removed: frozenset[int] = frozenset()
        self._learned: dict[int, int] = {}

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
        learned = self._learned.get(node_id, 0) if pinned else 0
        return Remembered(known or learned, self.is_removed(node_id))

    def learn(self, node_id: int, member_id: int) -> None:
        """A handshake passed: the first member id seen is the one."""
        member = self.members.get(node_id)
        if node_id in self._learned and not (member is not None and member.is_learner):
            return
        if node_id not in self.members and len(self._learned) >= len(self.members) + UNKNOWN_PEERS_MAX:
            return
        self._learned[node_id] = member_id

    def forget_stranger(self, node_id: int) -> None:
        """The last connection of an id that is no member is gone."""
        if node_id not in self.members:
            self._learned.pop(node_id, None)
