"""Why no order exists: the shortest beginning of the history that has none, with as few reads as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from tests.soak.checker import Violation
from tests.support.kvcheck.history import UNTOLD, Op, Result, keys_of, may_write
from tests.support.kvcheck.knowledge import Store
from tests.support.kvcheck.model import StoreModel
from tests.support.kvcheck.partitions import Numbers, number, search, search_plainly
from tests.support.kvcheck.prepare import Prepared
from tests.support.kvcheck.timeline import SHOWN_MAX, describe, timeline
from tests.support.linearizability import Found, Verdict

SHRINK_VISITED_MAX = 2_000
SHRINK_READS_MAX = 300
SHRINK_SEARCHES_MAX = 60

Searcher = Callable[[Numbers, list[int], int], Found[Store]]


def explain(prepared: Prepared, keys: set[str], limit: int) -> Violation:
    """`keys` are those of a partition that is known not to be linearizable."""
    few = min(limit, SHRINK_VISITED_MAX)
    told = {op.ret for op in prepared.ops if op.result is Result.OK and keys_of(op.request) & keys}
    ends = sorted(told | {one.told for one in prepared.sightings if one.key in keys})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if _fails(cut(prepared, ends[middle]), keys, few):
            high = middle
        else:
            low = middle + 1
    end = ends[low]
    numbers = number(cut(prepared, end))
    members = _members(numbers, keys)
    plainly = search_plainly(numbers, members, few).verdict is Verdict.NOT_LINEARIZABLE
    by = search_plainly if plainly else search
    members = _shrink(numbers, members, by, few)
    found = by(numbers, members, few if plainly else limit)
    return Violation("not linearizable", _text(numbers, members, found, end))


def cut(prepared: Prepared, end: int) -> Prepared:
    """The history as it was known at a time: what was not answered by then is unknown."""
    return Prepared(
        list(_known(prepared.ops, end)),
        [],
        [],
        [one for one in prepared.sightings if one.told <= end],
    )


def _known(ops: list[Op], end: int) -> Iterator[Op]:
    for op in ops:
        if op.call <= end:
            if op.ret <= end:
                yield op
            elif may_write(op.request):
                yield msgspec.structs.replace(op, result=Result.UNKNOWN, answer=UNTOLD)


def _members(numbers: Numbers, keys: set[str]) -> list[int]:
    return [index for index, op in enumerate(numbers.numbered.ops) if keys_of(op.request) & keys]


def _fails(prepared: Prepared, keys: set[str], limit: int) -> bool:
    numbers = number(prepared)
    return search(numbers, _members(numbers, keys), limit).verdict is Verdict.NOT_LINEARIZABLE


def _shrink(numbers: Numbers, members: list[int], by: Searcher, limit: int) -> list[int]:
    """Leave out reads without which there is still no order, in large parts first."""
    reads = [index for index in members if not may_write(numbers.numbered.ops[index].request)]
    reads = reads[-SHRINK_READS_MAX:]
    size = max(len(reads) // 2, 1)
    left = SHRINK_SEARCHES_MAX
    while reads and left > 0:
        for start in range(0, len(reads), size):
            without = set(reads[start : start + size])
            fewer = [index for index in members if index not in without]
            left -= 1
            if left < 0:
                break
            if by(numbers, fewer, limit).verdict is Verdict.NOT_LINEARIZABLE:
                members = fewer
        reads = [index for index in reads if index in set(members)]
        if size == 1:
            break
        size = size // 2
    return members


def _text(numbers: Numbers, members: list[int], found: Found[Store], end: int) -> str:
    """The longest order, numbered, and what does not fit behind it."""
    ops = [numbers.numbered.ops[index] for index in members]
    model = StoreModel(ops, frozenset())
    stuck = [ops[one] for one in found.stuck]
    touched = set[str]().union(*(keys_of(op.request) for op in stuck))
    placed = [ops[one] for one in found.order]
    rest = [op for one, op in enumerate(ops) if one not in {*found.order, *found.stuck}]
    notes = [f"{number}." for number in range(1, len(placed) + 1)][-SHOWN_MAX:]
    shown = placed[-SHOWN_MAX:] + stuck + rest[-SHOWN_MAX:]
    notes += ["!!"] * len(stuck) + ["?"] * min(len(rest), SHOWN_MAX)
    last = [op for op in ops if op.ret == end and op.result is Result.OK]
    head = f"keys {', '.join(model.keys)}" if len(model.keys) > 1 else f"key {model.keys[0]}"
    left_out = len(placed) - SHOWN_MAX
    lines = [
        f"{head}: no order of these operations explains the answers.",
        f"All is well until {end / 1e6:.3f} ms, when this was answered:",
        *(f"  {describe(op)}" for op in last),
        "The longest order found is numbered; behind it, "
        + "; ".join(model.describe(found.state, touched))
        + ".",
        "What is marked !! would have to come next, but contradicts that"
        + (" (? are others that are not placed):" if rest else ":"),
        *([f"  ({left_out} earlier operations, all placed, are not shown)"] if left_out > 0 else []),
        timeline(shown, notes),
    ]
    return "\n".join(lines)
