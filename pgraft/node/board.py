"""Who was heard from, when, and what they said: the source of the status block and of the table
that a leader sends along with its heartbeats."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from pgraft.node.envelope import NodeStatus
from pgraft.node.membership import Membership, MembershipLog
from pgraft.raft.types import StateType
from pgraft.shm.blocks import StatusRow
from pgraft.shm.layout import MEMBERS_MAX, Role

_ROLES = {
    StateType.StateFollower: Role.FOLLOWER,
    StateType.StatePreCandidate: Role.PRE_CANDIDATE,
    StateType.StateCandidate: Role.CANDIDATE,
    StateType.StateLeader: Role.LEADER,
}


HEARD_MAX = 4 * MEMBERS_MAX
"""Nodes whose words are kept; beyond that the one that was silent longest and is no member goes."""


class Heard(msgspec.Struct):
    """The newest word of one node, and when it came (CLOCK_BOOTTIME ns), directly or by the leader."""

    at_ns: int
    status: NodeStatus


class Match(msgspec.Struct, frozen=True):
    """What a leader knows of a peer's log."""

    match_index: int
    next_index: int
    is_replicating: bool


def role_of(state: StateType, *, is_learner: bool) -> Role:
    """The status block's role for a core's state."""
    role = _ROLES[state]
    return Role.LEARNER if is_learner and role == Role.FOLLOWER else role


class Board:
    """What this node knows of the others."""

    def __init__(self, node_id: int, election_timeout_ms: int, members: MembershipLog) -> None:
        self._node_id = node_id
        self._members = members
        self._timeout_ns = election_timeout_ms * 1_000_000
        self._heard: dict[int, Heard] = {}

    def hear(self, status: NodeStatus, at_ns: int) -> None:
        """A node spoke at this time, for itself or through the leader."""
        heard = self._heard
        heard.pop(status.node_id, None)  # the newest stands last
        if len(heard) >= HEARD_MAX:
            members = self._members.current
            del heard[next(node_id for node_id in heard if members.get(node_id) is None)]
        heard[status.node_id] = Heard(at_ns, status)

    def hear_table(self, table: list[NodeStatus], leader: int, now_ns: int) -> None:
        """The leader told what it knows of everybody; what it says of members counts."""
        members = self._members.current
        for status in table:
            if status.node_id in (self._node_id, leader) or members.get(status.node_id) is None:
                continue
            # The leader may have heard it before this machine was started.
            at = max(0, now_ns - status.age_ms * 1_000_000)
            known = self._heard.get(status.node_id)
            if known is None or at >= known.at_ns:
                self.hear(status, at)

    def heard_ns(self, node_id: int) -> int:
        """When the node was last heard from, 0 for never."""
        heard = self._heard.get(node_id)
        return heard.at_ns if heard is not None else 0

    def is_reachable(self, node_id: int, now_ns: int) -> bool:
        """Whether the node was heard from within an election timeout; this node always is."""
        if node_id == self._node_id:
            return True
        heard = self._heard.get(node_id)
        return heard is not None and now_ns - heard.at_ns <= self._timeout_ns

    def yields(self, node_id: int) -> bool:
        """Whether the node said that it had better not lead."""
        heard = self._heard.get(node_id)
        return heard is not None and heard.status.yields

    def voters(self, membership: Membership, now_ns: int) -> tuple[int, int, int]:
        """(voters that can be reached, voters, voters needed), of the half that lacks most while joint."""
        worst = (0, 0, 0)
        for half in membership.halves():
            if not half:
                continue
            reached = sum(self.is_reachable(voter, now_ns) for voter in half)
            counts = (reached, len(half), len(half) // 2 + 1)
            if worst == (0, 0, 0) or counts[0] - counts[2] < worst[0] - worst[2]:
                worst = counts
        return worst

    def table(self, own: NodeStatus, incarnation_of: Callable[[int], int], now_ns: int) -> list[NodeStatus]:
        """All members that were heard, for the followers: each with its age, and its newest incarnation that
        is known here. Of others there may be more than a follower takes."""
        rows = [own]
        for node in self._members.current.nodes:
            heard = self._heard.get(node.node_id)
            if heard is not None and node.node_id != self._node_id:
                age_ms = max(0, now_ns - heard.at_ns) // 1_000_000
                newest = incarnation_of(node.node_id)
                rows.append(msgspec.structs.replace(heard.status, age_ms=age_ms, incarnation=newest))
        return rows

    def forget(self, node_id: int) -> None:
        """A node is a member no more."""
        self._heard.pop(node_id, None)

    def rows(
        self, membership: Membership, own: NodeStatus, matches: dict[int, Match], now_ns: int
    ) -> list[StatusRow]:
        """The rows of the status block, in id order."""
        rows = []
        for node in membership.nodes:
            if node.node_id == self._node_id:
                rows.append(_own_row(own, now_ns))
                continue
            heard = self._heard.get(node.node_id)
            status = heard.status if heard is not None else NodeStatus(node.node_id)
            row = StatusRow(node.node_id, status.role, status.term, status.commit_index, status.last_index)
            row.heard_boot_ns = heard.at_ns if heard is not None else 0
            row.is_learner = int(node.node_id in membership.conf_state.learners)
            match = matches.get(node.node_id)
            if match is not None:
                row.match_index, row.next_index = match.match_index, match.next_index
                row.is_replicating = int(match.is_replicating)
            rows.append(row)
        return rows


def _own_row(own: NodeStatus, now_ns: int) -> StatusRow:
    row = StatusRow(own.node_id, own.role, own.term, own.commit_index, own.last_index, now_ns)
    row.is_self = 1
    row.is_learner = int(own.is_learner)
    return row
