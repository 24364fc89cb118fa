"""How things stand, as this node knows them: what commands and membership changes are decided by."""

from __future__ import annotations

from pgraft.node import answers
from pgraft.node.board import Board
from pgraft.node.core import Core
from pgraft.node.membership import Membership
from pgraft.node.roster import Roster
from pgraft.postgres.settings import NodeConfig
from pgraft.raft import ErrProposalDropped
from pgraft.raft.types import ConfChange


class Standing:
    """Members, leader, indexes and reachable nodes. `now` is the turn's time (CLOCK_BOOTTIME ns)."""

    def __init__(self, config: NodeConfig, core: Core, roster: Roster, board: Board) -> None:
        self.node_id = config.node_id
        self.election_timeout_ns = config.election_timeout_ms * 1_000_000
        self.now = 0
        self.out_reason = ""
        self._core = core
        self._raft = core.raft
        self._roster = roster
        self._board = board

    @property
    def membership(self) -> Membership:
        """Members after everything applied."""
        return self._core.membership_log.current

    @property
    def leads(self) -> bool:
        """Whether this node is the leader of its term, and a member."""
        return self._core.leads and not self.out_reason

    @property
    def leader_id(self) -> int:
        """The leader, 0 when none is known."""
        return self._raft.lead

    @property
    def applied(self) -> int:
        """Index of the last applied entry."""
        return self._core.applied

    @property
    def last_index(self) -> int:
        """Index of the last entry."""
        return self._raft.raft_log.last_index()

    def voters(self) -> answers.Voters:
        """Voters that can be reached, all, and needed."""
        return self._board.voters(self.membership, self.now)

    @property
    def can_propose_change(self) -> bool:
        """Whether this node leads, and the core knows of no change that it has not applied."""
        return self.leads and self._raft.pending_conf_index <= self._raft.raft_log.applied

    def propose_change(self, change: ConfChange) -> int:
        """Propose a membership change; its index, or 0 when one is pending or it was dropped."""
        if not self.can_propose_change:
            return 0
        try:
            self._core.raw.propose_conf_change(change)
        except ErrProposalDropped:
            return 0
        return self.last_index

    def match_of(self, node_id: int) -> int:
        """How far a peer's log matches, as the leader knows."""
        progress = self._raft.trk.progress.get(node_id)
        return progress.match if progress is not None else 0

    def is_reachable(self, node_id: int) -> bool:
        """Whether the node was heard from within an election timeout."""
        return self._board.is_reachable(node_id, self.now)

    def refusal_of(self, node_id: int) -> str:
        """Why the connection to a peer was refused, empty when it was not."""
        return self._roster.refusal_text(node_id)

    def member_id_of(self, node_id: int) -> int:
        """The member id that a peer is known by, or came with; 0 for none."""
        return self._roster.member_id_of(node_id)

    def begin_transfer(self, node_id: int) -> None:
        """Start to hand leadership over."""
        self._core.raw.transfer_leader(node_id)

    def can_take_over(self, node_id: int) -> bool:
        """Whether leadership can be handed to this node: it was heard lately, and is connected."""
        return self.is_reachable(node_id) and not self._roster.is_lost(node_id)

    def silence_of(self, node_id: int) -> str:
        """Since when a node was not heard, and whether the connection to it is broken; a sentence."""
        heard_ns = self._board.heard_ns(node_id)
        lost = " and the connection to it is broken" if self._roster.is_lost(node_id) else ""
        if not heard_ns:
            return f"It was not heard yet{lost}."
        return f"It was last heard {max(0, self.now - heard_ns) / 1e9:.1f} s ago{lost}."

    def best_successor(self, *, serving: bool = False) -> int:
        """The voter that can be reached and whose log reaches furthest, 0 when there is none.

        One that had better not lead itself comes last, and with `serving` not at all.
        """
        voters = [
            voter
            for voter in self.membership.conf_state.voters
            if voter != self.node_id
            and self.can_take_over(voter)
            and not (serving and self._board.yields(voter))
        ]
        return max(voters, key=lambda voter: (not self._board.yields(voter), self.match_of(voter)), default=0)
