"""When an adopted directory has everything that an older copy of it may have promised."""

from __future__ import annotations

from pgraft.node.envelope import NodeStatus


class CatchUp:
    """Listens to the leader. Pure.

    A leader that shows this incarnation in its table takes no answer of an older copy any more. So what it
    counts as committed then, its own first entry included, is all that can stand on such an answer.
    """

    def __init__(self, node_id: int, incarnation: int) -> None:
        self._own = (node_id, incarnation)
        self._term = 0
        self._index = 0

    def hear(self, leader: NodeStatus, table: list[NodeStatus]) -> None:
        """What the leader of the present term says of itself and of all."""
        knows = any((row.node_id, row.incarnation) == self._own for row in table)
        if knows and leader.term != self._term:
            self._term, self._index = leader.term, leader.commit_index

    def is_done(self, term: int, applied: int, applied_term: int) -> bool:
        """Whether the last applied entry is one of the leader's own term, and at or behind that index."""
        return self._term == term == applied_term and applied >= self._index
