"""What watchers got: every change behind a revision, in order, none twice, none missing, as written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.soak.checker import Violation
from tests.support.kvcheck.history import Delete, Event, Op, Poll, Put, branch_of
from tests.support.kvcheck.prepare import writes_of
from tests.support.kvcheck.revisions import Numbered
from tests.support.kvcheck.timeline import describe

Changes = dict[int, dict[str, str | None]]
"""Revision to what it made of each key it changed; None: removed."""


def check_watches(
    numbered: Numbered,
    polls: Sequence[Poll],
    *,
    complete_to: int | None = None,
    kept: int | None = None,
    compacted_at: int | None = None,
) -> Iterator[Violation]:
    """Each poll is whole from `after_revision` to its last event; so reconnects need no rule of their own.

    `complete_to`: every watcher must have got what was done up to this revision (the run waited for it).
    `kept`: so many revisions of history are never compacted unless asked (first at the time `compacted_at`).
    """
    known = {revision: changes_of(numbered.ops[index]) or {} for revision, index in numbered.at.items()}
    writers = _Writers(numbered)
    public: Changes = {revision: dict(changes) for revision, changes in known.items()}
    for poll in polls:
        for event in poll.events:
            first = public.setdefault(event.revision, {})
            if event.revision not in known and first.setdefault(event.key, event.value) != event.value:
                text = f"{_event(event)}, but another poll got {first[event.key]!r}"
                yield Violation("watchers disagree", f"{_poll(poll)}\n  {text}")
    revisions = sorted(public)
    for poll in polls:
        yield from _order(poll)
        yield from _origin(poll, known, writers)
        yield from _missing(poll, public, revisions)
        yield from _compaction(poll, writers, kept, compacted_at)
    if complete_to is not None:
        yield from _incomplete(polls, public, complete_to)


def changes_of(op: Op) -> dict[str, str | None] | None:
    """What a request surely made of keys; None when that is not told."""
    written = writes_of(op)
    if written is None:
        return None
    branch = branch_of(op) or ()
    changes: dict[str, str | None] = {}
    for action in branch:
        if action.key in written and isinstance(action, Put | Delete):
            changes[action.key] = action.value if isinstance(action, Put) else None
    return changes


class _Writers:
    """The writes without a known revision, by what they may have done."""

    def __init__(self, numbered: Numbered) -> None:
        self.numbered = numbered
        self.calls: defaultdict[tuple[str, str | None], list[int]] = defaultdict(list)
        self.unnumbered: list[int] = []
        placed = set(numbered.at.values())
        for index, op in enumerate(numbered.ops):
            if index in placed or writes_of(op) == set():
                continue
            self.unnumbered.append(op.call)
            branch = branch_of(op)
            for action in (*op.request.then, *op.request.otherwise) if branch is None else branch:
                value = action.value if isinstance(action, Put) else None
                self.calls[action.key, value].append(op.call)

    def may_have(self, event: Event, told: int) -> bool:
        """Whether somebody asked for this change before `told`."""
        return any(call <= told for call in self.calls.get((event.key, event.value), ()))

    def highest(self, told: int) -> int:
        """No revision above this one had been given at `told`."""
        numbered = self.numbered
        called = (one for one in reversed(numbered.revisions) if numbered.ops[numbered.at[one]].call <= told)
        return next(called, 0) + sum(call <= told for call in self.unnumbered)


def _order(poll: Poll) -> Iterator[Violation]:
    """Behind `after_revision`, growing; the keys of one revision come once each."""
    before = (poll.after_revision, set[str]())
    for event in poll.events:
        if not event.key.startswith(poll.prefix):
            yield Violation("watch of another prefix", f"{_poll(poll)}\n  {_event(event)}")
        if event.revision < before[0] or (event.revision == before[0] and not before[1]):
            yield Violation(
                "watch out of order", f"{_poll(poll)}\n  {_event(event)} after revision {before[0]}"
            )
            continue
        if event.revision > before[0]:
            before = (event.revision, set())
        if event.key in before[1]:
            yield Violation("watch event twice", f"{_poll(poll)}\n  {_event(event)}")
        before[1].add(event.key)


def _origin(poll: Poll, known: Changes, writers: _Writers) -> Iterator[Violation]:
    """Every event is a write that somebody had asked for, with its value and kind."""
    for event in poll.events:
        if (event.kind == "delete") != (event.value is None):
            yield Violation("watch kind", f"{_poll(poll)}\n  {_event(event)} says {event.kind}")
        elif event.revision in known:
            op = writers.numbered.ops[writers.numbered.at[event.revision]]
            changes = known[event.revision]
            if event.key not in changes or changes[event.key] != event.value:
                text = f"{_event(event)}, but that revision is\n  {describe(op)}"
                yield Violation("watch event differs", f"{_poll(poll)}\n  {text}")
            elif op.call > poll.ret:
                text = f"{_event(event)} came before this was asked:\n  {describe(op)}"
                yield Violation("watch event too early", f"{_poll(poll)}\n  {text}")
        elif not writers.may_have(event, poll.ret):
            yield Violation("watch event from nowhere", f"{_poll(poll)}\n  nobody wrote {_event(event)}")


def _missing(poll: Poll, public: Changes, revisions: list[int]) -> Iterator[Violation]:
    """From `after_revision` to the last event nothing is left out, also of the last revision."""
    if not poll.events:
        return
    got = {(event.revision, event.key) for event in poll.events}
    for revision in _between(revisions, poll.after_revision, poll.events[-1].revision):
        for key, value in public[revision].items():
            if key.startswith(poll.prefix) and (revision, key) not in got:
                text = f"{_poll(poll)}\n  has no {_change(revision, key, value)}"
                yield Violation("watch event missing", text)


def _between(revisions: list[int], after: int, last: int) -> Iterator[int]:
    return (one for one in revisions if after < one <= last)


def _compaction(
    poll: Poll, writers: _Writers, kept: int | None, compacted_at: int | None
) -> Iterator[Violation]:
    if poll.compacted is None:
        return
    if poll.after_revision + 1 >= poll.compacted:
        text = f"{_poll(poll)}\n  was refused, but all it asked for is kept (from {poll.compacted} on)"
        yield Violation("watch refused", text)
    asked = compacted_at is not None and compacted_at <= poll.ret
    if kept is not None and not asked and poll.compacted > writers.highest(poll.ret) - kept + 1:
        text = f"{_poll(poll)}\n  history begins at {poll.compacted}; {kept} revisions should be kept"
        yield Violation("history too short", text)


def _incomplete(polls: Sequence[Poll], public: Changes, complete_to: int) -> Iterator[Violation]:
    """What a watcher did not get by its end."""
    by_watcher: defaultdict[int, list[Poll]] = defaultdict(list)
    for poll in polls:
        by_watcher[poll.watcher].append(poll)
    for own in by_watcher.values():
        ends = [(poll.events[-1].revision if poll.events else poll.after_revision, poll) for poll in own]
        reached, last = max(ends, key=lambda one: one[0])
        for revision in _between(sorted(public), reached, complete_to):
            for key, value in public[revision].items():
                if key.startswith(last.prefix):
                    text = f"{_poll(last)}\n  was the last, without {_change(revision, key, value)}"
                    yield Violation("watch event missing", text)


def _poll(poll: Poll) -> str:
    return (
        f"watcher {poll.watcher}, node {poll.node}, prefix {poll.prefix!r} behind {poll.after_revision},"
        f" {len(poll.events)} events [{poll.call / 1e6:.3f} ms, {poll.ret / 1e6:.3f} ms]"
    )


def _event(event: Event) -> str:
    return _change(event.revision, event.key, event.value)


def _change(revision: int, key: str, value: str | None) -> str:
    return f"revision {revision}: " + (f"delete {key}" if value is None else f"put {key}={value[:24]!r}")
