"""The definition of linearizability, tried out order by order: slow, short, and apart from the checker."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import msgspec

from tests.support.kvcheck.history import Answer, History, Op, Result, Seen, may_write
from tests.unit.support.kv_store import Store


def is_linearizable(history: History) -> bool:
    """For a few operations on a whole store, without listings, leases and watchers; revisions begin at 2."""
    ops = [op for op in history.ops if op.result is not Result.ERROR and not op.local]
    return _goes_on(Store(), [op for op in ops if op.result is Result.OK or may_write(op.request)])


def _goes_on(store: Store, left: list[Op]) -> bool:
    if all(op.result is Result.UNKNOWN for op in left):
        return True
    end = min(op.ret for op in left if op.result is Result.OK)
    for place, op in enumerate(left):
        if op.call <= end:
            after = copy.deepcopy(store)
            answer = after.apply(op.request, None)
            fits = op.result is Result.UNKNOWN or _agrees(op.answer, answer)
            if fits and _goes_on(after, left[:place] + left[place + 1 :]):
                return True
    return False


def _agrees(told: Answer, true: Answer) -> bool:
    if told.revision not in (None, true.revision) or told.succeeded not in (None, true.succeeded):
        return False
    return all(_fits(*pair) for pair in zip(told.results, true.results, strict=False))


def _fits(told: Seen | bool | None, true: Seen | bool | None) -> bool:
    if not isinstance(told, Seen) or not isinstance(true, Seen) or told.present != true.present:
        return told is None or told == true
    pairs = (
        (told.value, true.value),
        (told.mod_revision, true.mod_revision),
        (told.create_revision, true.create_revision),
        (told.version, true.version),
    )
    return all(one in (None, other) for one, other in pairs)


def perturbed(history: History, rng: random.Random) -> History:
    """One answer is replaced by another one of the same form, or one operation moves in time."""
    ops = list(history.ops)
    place = rng.randrange(len(ops))
    op = ops[place]
    others = list(_alike(ops, op))
    if op.result is Result.OK and others and rng.random() < 0.7:
        answer = rng.choice(others)
        ops[place] = msgspec.structs.replace(op, answer=answer)
    else:
        by = rng.choice((-8, -3, 3, 8)) * 1_000_000
        ops[place] = msgspec.structs.replace(op, call=max(op.call + by, 0), ret=max(op.ret + by, 0))
    other = History()
    other.ops = [op for op in ops if not op.local]
    return other


def _alike(ops: list[Op], op: Op) -> Iterator[Answer]:
    forms = [type(action) for action in (*op.request.then, *op.request.otherwise)]
    for one in ops:
        same = [type(action) for action in (*one.request.then, *one.request.otherwise)] == forms
        same = same and bool(one.request.compares) == bool(op.request.compares)
        if one is not op and one.result is Result.OK and same and one.answer != op.answer:
            yield one.answer
