"""Directives `committed` and `vote`."""

from __future__ import annotations

from collections.abc import Iterable

from pgraft.raft.quorum import INDEX_MAX, JointConfig, majority_committed, majority_vote
from tests.conformance.datafile import Case

COMMANDS = frozenset({"committed", "vote"})
PLACEHOLDER = "_"


class QuorumRunner:
    """Stateless."""

    def run(self, case: Case) -> str:
        """The output of one directive."""
        named = case.named()
        first = _ids(named["cfg"].values if "cfg" in named else ())
        joint = "cfgj" in named
        second = _ids(v for v in named["cfgj"].values if v != "zero") if joint else []
        key = "idx" if case.command == "committed" else "votes"
        values = named[key].values if key in named else ()
        voters = list(dict.fromkeys(first + second))
        if len(voters) != len(values):
            listed = " ".join(f"{voter}:{{}}" for voter in sorted(voters))
            return f"error: mismatched input (explicit or _) for voters map[{listed}]: [{' '.join(values)}]"
        answers = {voter: value for voter, value in zip(voters, values, strict=True) if value != PLACEHOLDER}
        incoming, outgoing = frozenset(first), frozenset(second) if joint else None
        if case.command == "committed":
            acked = {voter: int(value) for voter, value in answers.items()}
            return run_committed(incoming, outgoing, acked)
        return run_vote(incoming, outgoing, {voter: value == "y" for voter, value in answers.items()})


def _ids(values: Iterable[str]) -> list[int]:
    return [int(value) for value in values]


def run_committed(incoming: frozenset[int], outgoing: frozenset[int] | None, acked: dict[int, int]) -> str:
    """The picture and the index; lines that say so where another way of reckoning disagrees."""
    if outgoing is None:
        index = majority_committed(incoming, acked.get)
        others = {
            "alternative computation": _alternative(incoming, acked),
            "self-joint quorum": JointConfig(incoming, incoming).committed_index(acked.get),
            "zero-joint quorum": JointConfig(incoming).committed_index(acked.get),
        }
    else:
        index = JointConfig(incoming, outgoing).committed_index(acked.get)
        others = {"symmetry": JointConfig(outgoing, incoming).committed_index(acked.get)}
    lines = [f"{_index(other)} <-- via {way}\n" for way, other in others.items() if other != index]
    return draw(incoming | (outgoing or frozenset()), acked) + "".join(lines) + _index(index)


def _alternative(voters: frozenset[int], acked: dict[int, int]) -> int:
    """The largest acknowledged index that enough voters have reached, by trying each."""
    if not voters:
        return INDEX_MAX
    best = 0
    for candidate in acked.values():
        reached = sum(1 for voter in voters if acked.get(voter, 0) >= candidate)
        if reached > len(voters) // 2:
            best = max(best, candidate)
    return best


def _index(index: int) -> str:
    return "∞" if index == INDEX_MAX else str(index)


def draw(voters: frozenset[int], acked: dict[int, int]) -> str:
    """A bar for each voter, as long as the number of voters that it is ahead of."""
    if not voters:
        return "<empty majority quorum>"
    count = len(voters)
    ranked = sorted(voters, key=lambda voter: (acked.get(voter, 0), voter))
    behind = [acked.get(voter, 0) for voter in ranked]
    bars = {voter: behind.index(acked.get(voter, 0)) for voter in ranked}
    lines = [" " * count + "    idx\n"]
    for voter in sorted(voters):
        bar = "x" * bars[voter] + ">" + " " * (count - bars[voter]) if voter in acked else "?" + " " * count
        lines.append(f"{bar} {acked.get(voter, 0):5d}    (id={voter})\n")
    return "".join(lines)


def run_vote(incoming: frozenset[int], outgoing: frozenset[int] | None, votes: dict[int, bool]) -> str:
    """The result; a line that says so where another way of reckoning disagrees."""
    if outgoing is None:
        result = majority_vote(incoming, votes)
        others = {"zero-joint quorum": JointConfig(incoming).vote_result(votes)}
    else:
        result = JointConfig(incoming, outgoing).vote_result(votes)
        others = {"symmetry": JointConfig(outgoing, incoming).vote_result(votes)}
    lines = [f"{other.name} <-- via {way}\n" for way, other in others.items() if other is not result]
    return "".join(lines) + result.name
