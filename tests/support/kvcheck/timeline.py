"""Operations as lines that a person reads: what was asked, what was told, and bars over a common time."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.kvcheck.history import (
    Action,
    Compare,
    Drop,
    Get,
    Op,
    Put,
    Request,
    Result,
    Seen,
    branch_of,
)
from tests.support.kvcheck.prepare import Sighting

WIDTH = 48
SHOWN_MAX = 40


def timeline(ops: Sequence[Op], notes: Sequence[str] = ()) -> str:
    """One line an operation, in the order given: a note, a bar from call to return, and the words.

    `>` at the end of a bar: the client never learned the outcome, so it may be done later still.
    """
    if not ops:
        return "  (no operation)\n"
    start = min(op.call for op in ops)
    length = max(max(op.ret for op in ops) - start, 1)
    marks = notes or [""] * len(ops)
    width = max(len(mark) for mark in marks)
    lines = [f"  {'':{width}} |{'0 ms':<{WIDTH - 12}}{length / 1e6:>8.3f} ms |"]
    lines += [
        f"  {mark:{width}} |{_bar(op, start, length)}| {describe(op)}"
        for op, mark in zip(ops, marks, strict=True)
    ]
    return "\n".join(lines) + "\n"


def _bar(op: Op, start: int, length: int) -> str:
    first = (op.call - start) * (WIDTH - 1) // length
    last = max((op.ret - start) * (WIDTH - 1) // length, first)
    if op.result is Result.UNKNOWN:
        return (" " * first + "[" + "." * (WIDTH - 2 - first) + ">")[:WIDTH].ljust(WIDTH)
    bar = "#" if first == last else "[" + "=" * (last - first - 1) + "]"
    return (" " * first + bar).ljust(WIDTH)


def describe(op: Op) -> str:
    """Who asked what of which node, and what it was told."""
    local = ", from the node's own state" if op.local else ""
    return f"client {op.client}, node {op.node}{local}: {_request(op.request)} -> {_answer(op)}"


def describe_sighting(sighting: Sighting) -> str:
    """A watcher's event, or the read that saw a revision."""
    if sighting.op is not None:
        return describe(sighting.op)
    return f"a watcher got {sighting.key}={_short(sighting.value)} at revision {sighting.revision}"


def _request(request: Request) -> str:
    then = _actions(request.then)
    if not request.compares:
        return then
    compares = " and ".join(_compare(one) for one in request.compares)
    otherwise = f" else {_actions(request.otherwise)}" if request.otherwise else ""
    return f"if {compares}: {then}{otherwise}"


def _compare(compare: Compare) -> str:
    return f"{compare.target.value}({compare.key}) {compare.sign} {compare.operand}"


def _actions(actions: Sequence[Action]) -> str:
    return ", ".join(_action(one) for one in actions) or "nothing"


def _action(action: Action) -> str:
    match action:
        case Put():
            lease = f" with lease {action.lease}" if action.lease else ""
            return f"put {action.key}={_short(action.value)}{lease}"
        case Get():
            return f"get {action.key}"
        case Drop():
            return f"end of lease {action.lease} removes {action.key}"
    return f"delete {action.key}"


def _answer(op: Op) -> str:
    at = "" if op.answer.revision is None else f", revision {op.answer.revision}"
    if op.result is Result.UNKNOWN:
        return f"unknown, but seen{at[1:]}" if at else "unknown"
    words = [] if op.answer.succeeded is None else ["succeeded" if op.answer.succeeded else "not succeeded"]
    branch = branch_of(op) or ()
    words += [_told(told) for _, told in zip(branch, op.answer.results, strict=False) if told is not None]
    return (", ".join(words) or "ok") + at


def _told(told: Seen | bool) -> str:
    if isinstance(told, bool):
        return "removed" if told else "was absent"
    if not told.present:
        return "absent"
    value = "present" if told.value is None else _short(told.value)
    return value if told.mod_revision is None else f"{value} of revision {told.mod_revision}"


def _short(value: str) -> str:
    return repr(value) if len(value) <= 24 else f"{value[:20]!r}... ({len(value)} characters)"
