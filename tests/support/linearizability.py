"""Whether operations that overlapped can be put into one order that a sequential model allows.

The search is Wing and Gong's with Lowe's memoisation, as porcupine does it: calls and returns stand in a
doubly linked list, an operation may come next when no other one returned before it was called, and a pair of
(set of placed operations, state) is visited once. Three rules are added; none of them loses an order.

- An optional operation (nobody knows whether it happened) never has to be placed. It is placed only where
  the operation behind it needs it.
- A required operation that fits and leaves the state as it is is placed at once: every order that
  places it later is also an order when it comes first.
- `after` holds operations that are known to come first, as by the revisions that a store answered.

The search knows nothing of keys or values: those are the model's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Generic, NamedTuple, Protocol, TypeVar

NEVER = 2**62
"""The return time of an operation whose outcome nobody learned."""

State = TypeVar("State")


class Step(NamedTuple):
    """One operation for the search. `after` is a bitset of the steps that come before it."""

    call: int
    ret: int
    required: bool
    after: int = 0


class Model(Protocol[State]):
    """What the search asks; a step is named by its index. States are hashable and never change."""

    def following(self, state: State, index: int) -> tuple[State, ...]:
        """The states that the step may lead to; none when its answer contradicts the state.

        Asked again and again: remember the answers.
        """

    def needs(self, before: State, state: State, optional: int, index: int) -> bool:
        """Whether `index`, next in `state`, can tell that `optional` led from `before` to `state`.

        When it answers False, the optional step can as well be left out, or placed later.
        """


class Verdict(enum.Enum):
    """UNDECIDED: the bound on visited states was reached before an answer."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNDECIDED = "not decided"


class Found(NamedTuple, Generic[State]):
    """The end of a search: the order found, or the longest one, its last state and what fitted no more."""

    verdict: Verdict
    order: tuple[int, ...]
    state: State
    stuck: tuple[int, ...]
    visited: int


class _Node(NamedTuple, Generic[State]):
    """A place in the search. `before`: the state in front of an optional step that is to be needed."""

    placed: int
    state: State
    before: State | None = None
    optional: int = -1


class Search(Generic[State]):
    """One search; `run` may be called once."""

    def __init__(self, steps: Sequence[Step], model: Model[State], limit: int) -> None:
        self.steps = steps
        self.model = model
        self.limit = limit
        self.events = _Events(steps)
        self.seen: set[_Node[State]] = set()
        self.required = sum(step.required for step in steps)

    def run(self, initial: State) -> Found[State]:
        """Depth first, without recursion. `limit` bounds the visited nodes."""
        node: _Node[State] = _Node(0, initial)
        path: list[int] = []
        left = self.required
        best: tuple[int, tuple[int, ...], _Node[State]] = (left, (), node)
        pending = [self._choices(node)]
        while left and pending:
            choice = next(pending[-1], None)
            if choice is None:
                pending.pop()
                if path:
                    left += self._take_back(path)
                continue
            index, node = choice
            if node in self.seen:
                continue
            if len(self.seen) >= self.limit:
                return self._found(Verdict.UNDECIDED, best)
            self.seen.add(node)
            self.events.lift(index)
            path.append(index)
            left -= self.steps[index].required
            if left < best[0]:
                best = (left, tuple(path), node)
            pending.append(self._choices(node))
        return self._found(Verdict.NOT_LINEARIZABLE if left else Verdict.LINEARIZABLE, best)

    def _take_back(self, path: list[int]) -> bool:
        index = path.pop()
        self.events.restore(index)
        return self.steps[index].required

    def _found(self, verdict: Verdict, best: tuple[int, tuple[int, ...], _Node[State]]) -> Found[State]:
        _, order, node = best
        events = _Events(self.steps)
        for index in order:
            events.lift(index)
        stuck = tuple(index for index in events.first() if self.steps[index].required)
        return Found(verdict, order, node.state, stuck, len(self.seen))

    def _choices(self, node: _Node[State]) -> Iterator[tuple[int, _Node[State]]]:
        """What may be placed next: one step that changes nothing, or the required, then the optional ones."""
        first = [one for one in self.events.first() if not self.steps[one].after & ~node.placed]
        required = [one for one in first if self.steps[one].required and self._may_follow(node, one)]
        for index in required:
            if self.model.following(node.state, index) == (node.state,):
                yield index, _Node(node.placed | 1 << index, node.state)
                return
        for index in required:
            for state in self.model.following(node.state, index):
                yield index, _Node(node.placed | 1 << index, state)
        for index in first:
            if not self.steps[index].required and self._may_follow(node, index):
                for state in self.model.following(node.state, index):
                    if state != node.state:
                        yield index, _Node(node.placed | 1 << index, state, node.state, index)

    def _may_follow(self, node: _Node[State], index: int) -> bool:
        if node.before is None:
            return True
        return self.model.needs(node.before, node.state, node.optional, index)


class _Events:
    """Calls and returns in order of time, doubly linked. Optional steps have no return.

    Slot 0 is the head; the call of step i is slot 2i + 1, its return 2i + 2. At equal times calls come
    first, so that only a return strictly before a call orders two operations.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        times = [(step.call, 0, 2 * index + 1) for index, step in enumerate(steps)]
        times += [(step.ret, 1, 2 * index + 2) for index, step in enumerate(steps) if step.required]
        slots = [0, *(slot for _, _, slot in sorted(times)), 0]
        self.required = [step.required for step in steps]
        self.next = [0] * (2 * len(steps) + 1)
        self.previous = [0] * (2 * len(steps) + 1)
        for one, other in pairwise(slots):
            self.next[one] = other
            self.previous[other] = one

    def first(self) -> Iterator[int]:
        """The steps that were called before any step left in the list returned."""
        slot = self.next[0]
        while slot & 1:
            yield slot >> 1
            slot = self.next[slot]

    def lift(self, index: int) -> None:
        """Take a step out."""
        for slot in self._slots(index):
            self.next[self.previous[slot]] = self.next[slot]
            self.previous[self.next[slot]] = self.previous[slot]

    def restore(self, index: int) -> None:
        """Put back the step that was taken out last."""
        for slot in reversed(self._slots(index)):
            self.next[self.previous[slot]] = slot
            self.previous[self.next[slot]] = slot

    def _slots(self, index: int) -> tuple[int, ...]:
        return (2 * index + 1, 2 * index + 2) if self.required[index] else (2 * index + 1,)
