"""Whether a history is one that pgraft promises: each rule is a function from a history to violations.

`python -m tests.soak.checker FILE` checks a saved history again.
"""

from __future__ import annotations

import heapq
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.soak.history import Command, Entry, History, Reading, Result

SHOWN_MAX = 20


class Violation(NamedTuple):
    """A broken promise."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


class Log:
    """What all nodes agree on: index to entry, and where each key stands."""

    def __init__(self, entries: list[Entry]) -> None:
        self.at: dict[int, Entry] = {}
        self.indexes: defaultdict[str, set[int]] = defaultdict(set)
        for entry in entries:
            self.at.setdefault(entry.index, entry)
            if entry.key:
                self.indexes[entry.key].add(entry.index)


def check(history: History) -> list[Violation]:
    """Every violation of every rule, in the order of RULES."""
    log = Log(history.entries)
    return [violation for rule in RULES for violation in rule(history, log)]


# --- the log ------------------------------------------------------------------------------------------------


def logs_are_equal(history: History, log: Log) -> Iterator[Violation]:
    """An index holds one entry, on every node and at every time."""
    for entry in history.entries:
        first = log.at[entry.index]
        if (entry.key, entry.digest) != (first.key, first.digest):
            yield Violation("logs differ", f"{_entry(first)}, but {_entry(entry)}")


def logs_are_whole(history: History, log: Log) -> Iterator[Violation]:
    """What was read at the end has no gap, and is as long on every node."""
    read: defaultdict[int, set[int]] = defaultdict(set)
    for entry in history.entries:
        if entry.final:
            read[entry.node_id].add(entry.index)
    for node_id, indexes in sorted(read.items()):
        missing = set(log.at) - indexes
        if missing:
            yield Violation("log not whole", f"node {node_id} has nothing at {_some(missing)}")


def acknowledged_is_there_once(history: History, log: Log) -> Iterator[Violation]:
    """What was acknowledged stands at one index; what was refused at none; the rest at most once."""
    for command in history.commands:
        indexes = sorted(log.indexes.get(command.key, ()))
        if command.result is Result.OK and not indexes:
            yield Violation("lost", f"{_command(command)} is not in the log")
        if command.result is Result.ERROR and indexes:
            yield Violation("refused but there", f"{_command(command)} is at {indexes}")
        if len(indexes) > 1:
            yield Violation("twice", f"{_command(command)} is at {indexes}")


def texts_are_unchanged(history: History, log: Log) -> Iterator[Violation]:
    """What is in the log was sent by a client, to the letter."""
    sent = {command.key: command.digest for command in history.commands}
    for index, entry in log.at.items():
        if not entry.key:
            continue
        if entry.key not in sent:
            yield Violation("never sent", f"{entry.key[:80]!r} at {index}")
        elif sent[entry.key] != entry.digest:
            yield Violation("changed", f"{entry.key} at {index} is not the text that was sent")


def order_respects_time(history: History, log: Log) -> Iterator[Violation]:
    """What was sent after another entry's acknowledgement stands behind it."""
    standing = [(min(log.indexes[one.key]), one) for one in history.commands if one.key in log.indexes]
    latest: Command | None = None
    for index, command in sorted(standing, key=lambda pair: pair[0]):
        if command.result is Result.OK and latest is not None and latest.sent_ns > command.told_ns:
            where = min(log.indexes[latest.key])
            yield Violation(
                "order",
                f"{latest.key} at {where} was sent {_ms(latest.sent_ns - command.told_ns)} after"
                f" {command.key} at {index} had been acknowledged",
            )
        if latest is None or command.sent_ns > latest.sent_ns:
            latest = command


# --- what readers saw -----------------------------------------------------------------------------------


def terms_never_go_back(history: History, _: Log) -> Iterator[Violation]:
    """The term of one node grows."""
    for reading in history.readings:
        if reading.term_after and reading.term > reading.term_after:
            yield Violation("term went back", f"within {_reading(reading)}")
    for readings in _by_node(history).values():
        yield from _never_back(readings, "term went back", lambda r: r.term, lambda r: r.term_after or r.term)


def commit_indexes_never_go_back(history: History, _: Log) -> Iterator[Violation]:
    """The commit index of one node grows, as long as its segment lives.

    A commit index is written with the next batch only. A node that was killed whole, segment and all, may
    start with an older one; nobody was promised more than the entries.
    """
    rule = "commit index went back"
    for readings in _by_life(history):
        yield from _never_back(readings, rule, lambda r: r.commit_index, lambda r: r.commit_index)


def _by_node(history: History) -> dict[int, list[Reading]]:
    found: defaultdict[int, list[Reading]] = defaultdict(list)
    for reading in sorted(history.readings, key=lambda r: r.asked_ns):
        found[reading.node_id].append(reading)
    return found


def _by_life(history: History) -> Iterator[list[Reading]]:
    """Readings of one node and one segment each, without those that may be of either."""
    for node_id, readings in _by_node(history).items():
        lives = sorted((life.last_ns, life.first_ns) for life in history.lives if life.node_id == node_id)
        begins = 0
        for last_ns, first_ns in [*lives, (2**63, 2**63)]:
            yield [one for one in readings if begins <= one.asked_ns and one.told_ns <= last_ns]
            begins = first_ns


def _never_back(
    readings: list[Reading], rule: str, first: Callable[[Reading], int], last: Callable[[Reading], int]
) -> Iterator[Violation]:
    """Of two readings of which one had ended when the other began; zeros tell nothing."""
    ended: list[tuple[int, int]] = []
    floor = 0
    for reading in readings:
        while ended and ended[0][0] < reading.asked_ns:
            floor = max(floor, heapq.heappop(ended)[1])
        if first(reading) and first(reading) < floor:
            yield Violation(rule, f"{floor} had been read before {_reading(reading)}")
        heapq.heappush(ended, (reading.told_ns, last(reading)))


def one_leader_a_term(history: History, _: Log) -> Iterator[Violation]:
    """Whoever names a leader of a term names the same one, and it is the one that holds leases."""
    leaders: dict[int, tuple[int, Reading]] = {}
    for reading in history.readings:
        if reading.term != reading.term_after or not reading.term:
            continue
        for leader in (reading.leader, reading.node_id if reading.is_leader else 0):
            if not leader:
                continue
            known, where = leaders.setdefault(reading.term, (leader, reading))
            if known != leader:
                text = f"node {known} by {_reading(where)}, node {leader} by {_reading(reading)}"
                yield Violation("two leaders in a term", text)


def one_leader_at_a_time(history: History, _: Log) -> Iterator[Violation]:
    """No lease of an older term holds when one of a newer term has been seen.

    A lease of a term, seen at two moments, keeps others out between them. So the older leader's last moment
    must not lie surely (the call began after) behind the newer one's first (the call had ended).
    """
    first: dict[int, Reading] = {}
    last: dict[int, Reading] = {}
    for reading in history.readings:
        if not reading.is_leader or not reading.term or reading.term != reading.term_after:
            continue
        if reading.term not in first or reading.told_ns < first[reading.term].told_ns:
            first[reading.term] = reading
        if reading.term not in last or reading.asked_ns > last[reading.term].asked_ns:
            last[reading.term] = reading
    newer: Reading | None = None
    for term in sorted(first, reverse=True):
        if newer is not None and last[term].asked_ns > newer.told_ns:
            yield Violation("two leaders at a time", f"{_reading(last[term])} came after {_reading(newer)}")
        if newer is None or first[term].told_ns < newer.told_ns:
            newer = first[term]


RULES: tuple[Callable[[History, Log], Iterator[Violation]], ...] = (
    logs_are_equal,
    logs_are_whole,
    acknowledged_is_there_once,
    texts_are_unchanged,
    order_respects_time,
    terms_never_go_back,
    commit_indexes_never_go_back,
    one_leader_a_term,
    one_leader_at_a_time,
)


def _entry(entry: Entry) -> str:
    when = "" if entry.final else " (read during the run)"
    return f"node {entry.node_id} has {entry.key or 'nothing'}/{entry.digest} at {entry.index}{when}"


def _command(command: Command) -> str:
    return (
        f"{command.key} (client {command.client} on node {command.node_id}, told {command.result.value}"
        f" at {command.told_ns} {command.said})"
    )


def _reading(reading: Reading) -> str:
    leads = "leads" if reading.is_leader else f"follows {reading.leader}"
    return (
        f"node {reading.node_id} {leads} at term {reading.term}..{reading.term_after}, commit"
        f" {reading.commit_index} [{reading.asked_ns}, {reading.told_ns}]"
    )


def _some(numbers: set[int]) -> str:
    shown = sorted(numbers)[:5]
    return ", ".join(map(str, shown)) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms"


def main() -> int:
    """Check a saved history; exit code 1 when it is wrong."""
    violations = check(History.load(Path(sys.argv[1])))
    for violation in violations[:SHOWN_MAX]:
        print(violation)
    print(f"{len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
