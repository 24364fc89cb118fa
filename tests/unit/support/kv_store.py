"""A key-value store in one place, that keeps every state it had: what the checker is tried on.

It is written apart from the checker's model, with numbers where that has bounds.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from tests.support.kvcheck.history import (
    Action,
    Answer,
    Compare,
    Delete,
    Event,
    Get,
    Op,
    Put,
    Request,
    Seen,
    Target,
)


class Version(NamedTuple):
    """A key from a revision on; value None: absent. `op` wrote it."""

    revision: int
    value: str | None
    create: int = 0
    age: int = 0
    lease: int = 0
    op: Op | None = None

    def seen(self) -> Seen:
        if self.value is None:
            return Seen(False)
        return Seen(True, self.value, self.revision, self.create, self.age)


NEVER_WRITTEN = Version(0, None)


class Store:
    """`apply` runs requests one after the other."""

    def __init__(self) -> None:
        self.revision = 1
        self.versions: dict[str, list[Version]] = {}
        self.log: list[Event] = []

    def now(self, key: str) -> Version:
        """What the key is."""
        return self.versions.get(key, [NEVER_WRITTEN])[-1]

    def at(self, key: str, revision: int) -> Version:
        """What the key was."""
        return next(
            (one for one in reversed(self.versions.get(key, [])) if one.revision <= revision), NEVER_WRITTEN
        )

    def apply(self, request: Request, op: Op | None, force: bool = False) -> Answer:
        """Do it at once. `force`: a broken store, which takes every comparison for true."""
        holds = force or all(self._holds(one) for one in request.compares)
        number = self.revision + 1
        results = tuple(
            self._act(action, number, op) for action in (request.then if holds else request.otherwise)
        )
        if any(one and one[-1].revision == number for one in self.versions.values()):
            self.revision = number
        return Answer(holds if request.compares else None, results, self.revision)

    def _holds(self, compare: Compare) -> bool:
        version = self.now(compare.key)
        if compare.target is Target.VALUE and version.value is None:
            return False
        mod = 0 if version.value is None else version.revision
        mine = {
            Target.VALUE: version.value,
            Target.MOD: mod,
            Target.CREATE: version.create,
            Target.VERSION: version.age,
        }[compare.target]
        match compare.sign:
            case "=":
                return mine == compare.operand
            case "!=":
                return mine != compare.operand
            case "<":
                return mine < compare.operand  # type: ignore[operator]
        return mine > compare.operand  # type: ignore[operator]

    def _act(self, action: Action, number: int, op: Op | None) -> Seen | bool | None:
        version = self.now(action.key)
        match action:
            case Get():
                return version.seen()
            case Put():
                create = version.create or number
                new = Version(number, action.value, create, version.age + 1, action.lease, op)
                self._write(action.key, new)
                return None
            case Delete():
                if version.value is not None:
                    self._write(action.key, Version(number, None, op=op))
                return version.value is not None
        return None

    def _write(self, key: str, version: Version) -> None:
        self.versions.setdefault(key, []).append(version)
        event = Event(version.revision, key, version.value, "delete" if version.value is None else "put")
        self.log.append(event)

    def expire(self, lease: int) -> list[str]:
        """Remove the keys of a lease, at one revision."""
        keys = [key for key, versions in self.versions.items() if versions[-1].lease == lease]
        for key in keys:
            self._write(key, Version(self.revision + 1, None))
        self.revision += bool(keys)
        return keys

    def behind(self, prefix: str, after: int, until: int) -> list[Event]:
        """The events of a prefix, up to a revision."""
        return [one for one in self.log if after < one.revision <= until and one.key.startswith(prefix)]


class Replica:
    """A node that is behind the store, and never goes back."""

    def __init__(self, rng: random.Random, store: Store) -> None:
        self.rng = rng
        self.store = store
        self.applied = 0

    def catch_up(self) -> int:
        """The revision that this node has now."""
        self.applied = max(self.applied, self.store.revision - self.rng.choice((0, 0, 1, 3, 10)))
        return self.applied
