"""Operations that share no key are searched apart; a request for several keys joins theirs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tests.soak.checker import Violation
from tests.support.kvcheck.history import Op, Result, keys_of
from tests.support.kvcheck.knowledge import Store
from tests.support.kvcheck.model import StoreModel
from tests.support.kvcheck.prepare import Prepared, happened, with_revisions
from tests.support.kvcheck.revisions import Numbered, Span, check_revisions, orders
from tests.support.linearizability import NEVER, Found, Search, Step


class Numbers(NamedTuple):
    """What revisions prove of all operations."""

    numbered: Numbered
    spans: list[Span]
    violations: list[Violation]


def number(prepared: Prepared) -> Numbers:
    """Find the revision of every write that can be known, and what follows from it."""
    numbered = Numbered(with_revisions(prepared.ops, prepared.sightings))
    return Numbers(numbered, *check_revisions(numbered, prepared.sightings, prepared.groups))


def partitions(ops: list[Op]) -> Iterator[tuple[set[str], list[int]]]:
    """Sets of keys, and the indexes of the operations on them."""
    root: dict[str, str] = {}

    def find(key: str) -> str:
        root.setdefault(key, key)
        while root[key] != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    for op in ops:
        first, *others = sorted(keys_of(op.request))
        for key in others:
            root[find(key)] = find(first)
        find(first)
    keys: defaultdict[str, set[str]] = defaultdict(set)
    members: defaultdict[str, list[int]] = defaultdict(list)
    for key in root:
        keys[find(key)].add(key)
    for index, op in enumerate(ops):
        members[find(min(keys_of(op.request)))].append(index)
    for name in sorted(keys):
        yield keys[name], members[name]


def search(numbers: Numbers, members: list[int], limit: int) -> Found[Store]:
    """Search an order of these operations; the found indexes are places in `members`."""
    ops = numbers.numbered.ops
    steps = [
        Step(*numbers.spans[index], happened(ops[index]), after)
        for index, after in zip(members, orders(numbers.numbered, members), strict=True)
    ]
    model = StoreModel([ops[index] for index in members], frozenset(numbers.numbered.at))
    return Search(steps, model, limit).run(model.initial())


def search_plainly(numbers: Numbers, members: list[int], limit: int) -> Found[Store]:
    """The same without what revisions prove: slower, but its dead ends can be read by people."""
    ops = [numbers.numbered.ops[index] for index in members]
    answered = [op.ret if op.result is Result.OK else NEVER for op in ops]
    steps = [Step(op.call, ret, happened(op)) for op, ret in zip(ops, answered, strict=True)]
    model = StoreModel(ops, frozenset(numbers.numbered.at))
    return Search(steps, model, limit).run(model.initial())
