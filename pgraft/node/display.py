"""What this node shows of itself: to its sessions in the status block, to peers in its envelopes."""

from __future__ import annotations

from pgraft.node.board import Board, Match, role_of
from pgraft.node.core import Core
from pgraft.node.envelope import NodeStatus
from pgraft.node.outputs import Outputs
from pgraft.postgres.settings import NodeConfig
from pgraft.raft import ProgressState
from pgraft.raft.types import StateType
from pgraft.shm.blocks import Status
from pgraft.shm.layout import Role


class Display:
    """The content of the status block, and what of it has changed."""

    def __init__(self, config: NodeConfig, core: Core, board: Board) -> None:
        self._node_id = config.node_id
        self._core = core
        self._raft = core.raft
        self._board = board
        self._shown = Status()
        self._basis: tuple[object, ...] = ()
        self._rows_shown_ns = 0
        self._every_ns = config.heartbeat_interval_ms * 1_000_000 // 2

    def own_status(self, *, yields: bool = False) -> NodeStatus:
        """This node's word of itself."""
        raft = self._raft
        role = self._own_role()
        raft_log = raft.raft_log
        return NodeStatus(
            self._node_id,
            role,
            raft.term,
            raft_log.committed,
            raft_log.last_index(),
            0,
            role == Role.LEARNER,
            yields,
        )

    def _own_role(self) -> Role:
        learners = self._core.membership_log.current.conf_state.learners
        return role_of(self._raft.state, is_learner=self._node_id in learners)

    def _matches(self) -> dict[int, Match]:
        if self._raft.state != StateType.StateLeader:
            return {}
        return {
            node_id: Match(progress.match, progress.next, progress.state == ProgressState.StateReplicate)
            for node_id, progress in self._raft.trk.progress.items()
        }

    def publish(self, outputs: Outputs, role: tuple[int, int, StateType], removed: bool, now: int) -> None:
        """Have shown what is new: indexes at once, the rows of members at least every half heartbeat.

        `role` is (term, leader, state); when it, the membership or `removed` changes, so do the rows.
        """
        raft_log = self._raft.raft_log
        basis = (role, self._core.membership_log.current, removed)
        first_index = self._first_index(outputs)
        if basis != self._basis or now - self._rows_shown_ns >= self._every_ns:
            self._basis, self._rows_shown_ns = basis, now
            outputs.status = self._shown = self._whole(removed, first_index, now)
            outputs.rows_changed = True
            return
        status = self._shown
        indexes = (raft_log.committed, self._core.applied, first_index)
        if indexes == (status.commit_index, status.applied, status.first_index):
            return
        status.commit_index, status.applied, status.first_index = indexes
        status.last_index = raft_log.last_index()
        status.published_boot_ns = now
        outputs.status = status

    def _first_index(self, outputs: Outputs) -> int:
        """The first index once these outputs have been carried out."""
        coming = outputs.compact or outputs.snapshot
        return coming.metadata.index + 1 if coming is not None else self._core.store.first_index()

    def _whole(self, removed: bool, first_index: int, now: int) -> Status:
        raft = self._raft
        membership = self._core.membership_log.current
        own = self.own_status()
        reached, _, needed = self._board.voters(membership, now)
        leader = 0 if removed else raft.lead
        node = membership.get(leader) if leader else None
        return Status(
            role=own.role,
            leader_id=leader,
            term=raft.term,
            vote=raft.vote,
            commit_index=own.commit_index,
            last_index=own.last_index,
            applied=self._core.applied,
            first_index=first_index,
            published_boot_ns=now,
            voters_reachable=reached,
            voters_needed=needed,
            leader_port=node.port if node is not None else 0,
            rows=self._board.rows(membership, own, self._matches(), now),
        )
