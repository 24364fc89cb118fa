"""Quorum arithmetic: majorities, and joint configurations that need both majorities (section 6).

A voter set is a frozenset of ids. The empty set agrees to everything, which makes a joint
configuration with an empty half behave as the other half alone.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping

import msgspec

INDEX_MAX = 2**64 - 1
"""What the empty majority has committed: everything."""


class VoteResult(enum.IntEnum):
    """The state of an election."""

    VotePending = 1
    VoteLost = 2
    VoteWon = 3


def majority_committed(voters: Iterable[int], acked: Callable[[int], int | None]) -> int:
    """The largest index that a majority of `voters` has acknowledged; no answer counts as 0."""
    indexes = sorted(acked(voter) or 0 for voter in voters)
    if not indexes:
        return INDEX_MAX
    return indexes[(len(indexes) - 1) // 2]


def majority_vote(voters: Iterable[int], votes: Mapping[int, bool]) -> VoteResult:
    """Won with a majority of yes, lost when the yes still possible cannot make one, else pending."""
    answers = [votes.get(voter) for voter in voters]
    needed = len(answers) // 2 + 1
    if not answers or answers.count(True) >= needed:
        return VoteResult.VoteWon
    if len(answers) - answers.count(False) < needed:
        return VoteResult.VoteLost
    return VoteResult.VotePending


def describe_majority(voters: Iterable[int]) -> str:
    """`(1 2 3)`."""
    return "(" + " ".join(map(str, sorted(voters))) + ")"


class JointConfig(msgspec.Struct, frozen=True):
    """Two voter sets that must both agree. Outside a membership change `outgoing` is empty."""

    incoming: frozenset[int] = frozenset()
    outgoing: frozenset[int] = frozenset()

    def ids(self) -> frozenset[int]:
        """Every voter of either half."""
        return self.incoming | self.outgoing

    def is_joint(self) -> bool:
        """Whether two majorities are needed."""
        return bool(self.outgoing)

    def committed_index(self, acked: Callable[[int], int | None]) -> int:
        """What both halves have acknowledged: the smaller of the two."""
        incoming = majority_committed(self.incoming, acked)
        if not self.outgoing:
            return incoming
        return min(incoming, majority_committed(self.outgoing, acked))

    def vote_result(self, votes: Mapping[int, bool]) -> VoteResult:
        """Won when both halves are won, lost when either is lost."""
        incoming = majority_vote(self.incoming, votes)
        outgoing = majority_vote(self.outgoing, votes)
        if VoteResult.VoteLost in (incoming, outgoing):
            return VoteResult.VoteLost
        if incoming is outgoing is VoteResult.VoteWon:
            return VoteResult.VoteWon
        return VoteResult.VotePending

    def __str__(self) -> str:
        if not self.outgoing:
            return describe_majority(self.incoming)
        return f"{describe_majority(self.incoming)}&&{describe_majority(self.outgoing)}"
