"""The key-value store as a sequential model for the search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

from tests.support.kvcheck.history import Op, Put, Seen, Target, keys_of
from tests.support.kvcheck.knowledge import Cell, Frame, Store, Turn, allows_more
from tests.support.kvcheck.prepare import happened, reads_of


class StoreModel:
    """The operations of one partition of the keys, for `linearizability.Search`. `taken`: see `Frame`."""

    def __init__(self, ops: Sequence[Op], taken: frozenset[int]) -> None:
        self.ops = ops
        self.keys = sorted(set().union(*(keys_of(op.request) for op in ops)))
        place = {key: place for place, key in enumerate(self.keys)}
        self.frame = Frame(place, taken, counts=any(_looks_at_age(op) for op in ops))
        self.touched = [keys_of(op.request) for op in ops]
        self.exposed = self._exposed()
        self.known: dict[tuple[Store, int], tuple[Store, ...]] = {}

    def _exposed(self) -> list[bool]:
        """Of each operation, whether any answer may depend on the revision of what it put."""
        told: set[tuple[str, str | None]] = set()
        compared: set[str] = set()
        known = {0, *self.frame.taken}
        for op in self.ops:
            for key, seen in reads_of(op):
                if seen.mod_revision is not None or seen.create_revision is not None:
                    told.add((key, seen.value))  # value None: it may be any
            for one in op.request.compares:
                if one.target in (Target.MOD, Target.CREATE) and one.operand not in known:
                    compared.add(one.key)
        return [
            any(
                action.key in compared or {(action.key, action.value), (action.key, None)} & told
                for action in (*op.request.then, *op.request.otherwise)
                if isinstance(action, Put)
            )
            for op in self.ops
        ]

    def initial(self) -> Store:
        """An empty store."""
        return Store((Cell(),) * len(self.keys))

    def following(self, state: Store, index: int) -> tuple[Store, ...]:
        """Both branches of a transaction when it is not told which one ran."""
        known = self.known.get((state, index))
        if known is None:
            known = self.known[state, index] = tuple(self._following(state, self.ops[index]))
        return known

    def _following(self, state: Store, op: Op) -> list[Store]:
        branches = (True, False) if op.answer.succeeded is None and op.request.compares else (None,)
        found: list[Store] = []
        for branch in branches:
            store = self._run(state, op, op.answer.succeeded if branch is None else branch)
            if store is not None and store not in found:
                found.append(store)
        return found

    def _run(self, state: Store, op: Op, succeeded: bool | None) -> Store | None:
        turn = Turn(self.frame, state, op.answer.revision)
        if op.request.compares and not turn.compare(op.request.compares, succeeded is not False):
            return None
        actions = op.request.otherwise if succeeded is False else op.request.then
        told = op.answer.results or repeat(None, len(actions))
        if not all(turn.act(*pair) for pair in zip(actions, told, strict=False)):
            return None
        return turn.end()

    def needs(self, before: Store, state: Store, optional: int, index: int) -> bool:
        """Two writes to different keys may change places, but not where that may move a told revision.

        Of two optional ones that may, the later in `ops` comes second.
        """
        op = self.ops[index]
        if not self.touched[optional] & self.touched[index]:
            pinned = op.answer.revision is not None or self.exposed[optional]
            return pinned or (optional < index and not happened(op))
        without = self.following(before, index)
        return any(
            not any(allows_more(other, one) for other in without) for one in self.following(state, index)
        )

    def describe(self, state: Store, keys: set[str]) -> Iterator[str]:
        """What the keys hold, for people."""
        for key in sorted(keys & set(self.keys)):
            yield f"{key} is {state.cells[self.frame.place[key]]}"


def _looks_at_age(op: Op) -> bool:
    """Whether create_revision or version matter."""
    if any(one.target in (Target.CREATE, Target.VERSION) for one in op.request.compares):
        return True
    seen = [one for one in op.answer.results if isinstance(one, Seen)]
    return any(one.create_revision is not None or one.version is not None for one in seen)
