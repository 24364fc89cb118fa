"""Reads from a node's own state may be old, but show a state that was.

When asked for: what a node shows never gets older.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from tests.soak.checker import Violation
from tests.support.kvcheck.history import Delete, Drop, Op, Put, Seen, branch_of
from tests.support.kvcheck.prepare import reads_of
from tests.support.kvcheck.revisions import Numbered
from tests.support.kvcheck.timeline import describe, timeline
from tests.support.kvcheck.watches import changes_of
from tests.support.linearizability import NEVER


class Period(NamedTuple):
    """A key had this value from revision `start` to before `end`; its write was called at `since`."""

    start: int
    end: int
    value: str | None
    since: int


class Past(NamedTuple):
    """Of one key: periods by known revisions, and (value, call) of writes without a known one."""

    periods: list[Period]
    possible: list[tuple[str | None, int]]


def check_local_reads(numbered: Numbered, reads: Sequence[Op], monotonic: bool) -> Iterator[Violation]:
    """`monotonic`: what began on a node after another read had ended there sees no older state."""
    pasts = pasts_of(numbered)
    by_node: defaultdict[int, list[Op]] = defaultdict(list)
    for op in sorted(reads, key=lambda op: op.call):
        by_node[op.node].append(op)
    for ops in by_node.values():
        yield from _check_node(pasts, ops, monotonic)


def _check_node(pasts: dict[str, Past], ops: list[Op], monotonic: bool) -> Iterator[Violation]:
    ended: list[tuple[int, int, int]] = []
    floor, newest = 0, -1
    for number, op in enumerate(ops):
        while ended and ended[0][0] < op.call:
            _, seen, which = heapq.heappop(ended)
            if seen > floor:
                floor, newest = seen, which
        options = [_options(pasts.get(key, _empty()), seen, op.ret) for key, seen in reads_of(op)]
        point = _earliest(options, 0, op.answer.revision)
        if point is None:
            yield Violation("local read of no state", f"the store was never like this:\n  {describe(op)}")
            continue
        if monotonic:
            later = _earliest(options, floor, op.answer.revision)
            if later is None:
                text = (
                    f"node {op.node} had shown revision {floor} or later before it showed an older state:\n"
                )
                yield Violation("local read went back", text + timeline([ops[newest], op]))
                continue
            point = later
        heapq.heappush(ended, (op.ret, point, number))


def _earliest(options: list[list[Period]], floor: int, told: int | None) -> int | None:
    """The first revision from `floor` on at which every key had what was seen."""
    point = floor if told is None else told
    moved = point >= floor
    while moved:
        moved = False
        for periods in options:
            start = min((one.start for one in periods if one.end > point), default=None)
            if start is None:
                return None
            if start > point:
                point, moved = start, True
        if not moved:
            return point if told is None or point == told else None
    return None


def _options(past: Past, seen: Seen, told: int) -> list[Period]:
    """Where a key had what was seen, by writes that had been called when it was told."""

    def fits(value: str | None) -> bool:
        return (value is not None) == seen.present and seen.value in (None, value)

    periods = [one for one in past.periods if fits(one.value) and one.since <= told]
    if seen.present and seen.mod_revision is not None:
        exact = [one for one in periods if one.start == seen.mod_revision]
        if exact or any(one.start == seen.mod_revision for one in past.periods):
            return exact
        end = min((one.start for one in past.periods if one.start > seen.mod_revision), default=NEVER)
        periods = []
    else:
        end = NEVER
    if any(fits(value) and since <= told for value, since in past.possible):
        start = seen.mod_revision if seen.present and seen.mod_revision is not None else 0
        periods.append(Period(start, end, seen.value, 0))
    return periods


def _empty() -> Past:
    return Past([Period(0, NEVER, None, 0)], [])


def pasts_of(numbered: Numbered) -> dict[str, Past]:
    """What each key was, one revision after the other."""
    changes: defaultdict[str, list[tuple[int, str | None, int]]] = defaultdict(list)
    possible: defaultdict[str, list[tuple[str | None, int]]] = defaultdict(list)
    for revision, index in numbered.at.items():
        for key, value in (changes_of(numbered.ops[index]) or {}).items():
            changes[key].append((revision, value, numbered.ops[index].call))
    placed = set(numbered.at.values())
    for index, op in enumerate(numbered.ops):
        if index not in placed:
            for key, value in may_change(op):
                possible[key].append((value, op.call))
    return {key: Past(list(_periods(changes[key])), possible[key]) for key in {*changes, *possible}}


def may_change(op: Op) -> Iterable[tuple[str, str | None]]:
    """Key and new value of each write that a request may have done."""
    branch = branch_of(op)
    for action in (*op.request.then, *op.request.otherwise) if branch is None else branch:
        match action:
            case Put():
                yield action.key, action.value
            case Delete() | Drop():
                yield action.key, None


def _periods(changes: list[tuple[int, str | None, int]]) -> Iterator[Period]:
    """One after the other, from the empty store on."""
    ordered: list[tuple[int, str | None, int]] = [
        (0, None, 0),
        *sorted(changes, key=lambda one: one[0]),
        (NEVER, None, 0),
    ]
    for (start, value, since), (end, _, _) in pairwise(ordered):
        yield Period(start, end, value, since)
