"""Whether a history of key-value clients is one that a linearizable store can have.

`python -m tests.support.kvcheck.check FILE` checks a saved history again.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.soak.checker import SHOWN_MAX, Violation
from tests.support.kvcheck.explain import explain
from tests.support.kvcheck.history import History
from tests.support.kvcheck.leases import LeaseRules, check_leases
from tests.support.kvcheck.local_reads import check_local_reads
from tests.support.kvcheck.partitions import Numbers, number, partitions, search
from tests.support.kvcheck.prepare import Prepared, ends_of_leases, prepare
from tests.support.kvcheck.watches import check_watches
from tests.support.linearizability import Verdict


class Rules(NamedTuple):
    """What to check beside linearizability, and how far to search.

    `visited_max` bounds the states of one partition's search. `monotonic_local`: local reads of one node
    never go back. The others: see `check_watches` and `LeaseRules`.
    """

    visited_max: int = 200_000
    monotonic_local: bool = False
    watch_complete_to: int | None = None
    watch_kept: int | None = None
    compacted_at: int | None = None
    leases: LeaseRules = LeaseRules()


@dataclass
class Result:
    """What was found. `undecided`: the keys of each partition whose search reached its bound."""

    violations: list[Violation] = field(default_factory=list)
    undecided: list[list[str]] = field(default_factory=list)
    operations: int = 0
    partitions: int = 0
    visited: int = 0

    @property
    def ok(self) -> bool:
        """No violation, and nothing left undecided."""
        return not self.violations and not self.undecided

    def __str__(self) -> str:
        lines = [str(one) for one in self.violations[:SHOWN_MAX]]
        lines += [f"not decided: keys {', '.join(keys[:8])} (too many orders)" for keys in self.undecided]
        lines.append(
            f"{self.operations} operations, {self.partitions} partitions, {self.visited} states visited:"
            f" {len(self.violations)} violations, {len(self.undecided)} partitions not decided"
        )
        return "\n".join(lines)


DEFAULT = Rules()


def check(history: History, rules: Rules = DEFAULT) -> Result:
    """Every rule on the whole history."""
    prepared = prepare(history, rules.leases.drift)
    numbers = number(prepared)
    result = Result(operations=len(prepared.ops) + len(prepared.local))
    result.violations += numbers.violations
    _check_partitions(prepared, numbers, rules, result)
    result.violations += check_local_reads(numbers.numbered, prepared.local, rules.monotonic_local)
    result.violations += check_watches(
        numbers.numbered,
        history.polls,
        complete_to=rules.watch_complete_to,
        kept=rules.watch_kept,
        compacted_at=rules.compacted_at,
    )
    ends = len(list(ends_of_leases(prepared.ops, history.leases, rules.leases.drift)))
    asked = numbers.numbered.ops[: len(prepared.ops) - ends]
    result.violations += check_leases(asked, history.leases, history.polls, rules.leases)
    return result


def _check_partitions(prepared: Prepared, numbers: Numbers, rules: Rules, result: Result) -> None:
    for keys, members in partitions(numbers.numbered.ops):
        found = search(numbers, members, rules.visited_max)
        result.partitions += 1
        result.visited += found.visited
        if found.verdict is Verdict.UNDECIDED:
            result.undecided.append(sorted(keys))
        elif found.verdict is Verdict.NOT_LINEARIZABLE:
            result.violations.append(explain(prepared, keys, rules.visited_max))


def counts(result: Result) -> dict[str, int]:
    """How often each rule was broken."""
    found: defaultdict[str, int] = defaultdict(int)
    for violation in result.violations:
        found[violation.rule] += 1
    return dict(found)


def main() -> int:
    """Exit code 1 for a violation, 2 when not all was decided."""
    result = check(History.load(Path(sys.argv[1])))
    print(result)
    return 1 if result.violations else 2 if result.undecided else 0


if __name__ == "__main__":
    sys.exit(main())
