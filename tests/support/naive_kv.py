"""A key-value store written as plainly as can be, to compare the real one with; and random commands for
both."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from pgraft.statemachine import commands as c
from pgraft.statemachine.limits import HISTORY_REVISIONS_MAX
from pgraft.statemachine.results import Refusal

Row = tuple[bytes, bytes, int, int, int, int]
"""key, value, create_revision, mod_revision, version, lease_id"""
Event = tuple[int, bytes, bytes | None]


class No(Exception):
    """The command is refused for this reason."""


@dataclass
class NaiveStore:
    """Every command copies the whole store and keeps the copy when it was not refused."""

    revision: int = 0
    rows: dict[bytes, Row] = field(default_factory=dict)
    leases: dict[int, int] = field(default_factory=dict)
    history: list[Event] = field(default_factory=list)
    first_kept: int = 1
    _size_at_last_revision: int = 0

    def apply(self, command: c.Command) -> tuple[object, ...]:
        """What happened, in the words of `said` below."""
        rows, leases, revision = dict(self.rows), dict(self.leases), self.revision
        try:
            said = self._run(command)
        except No as refused:
            self.rows, self.leases, self.revision = rows, leases, revision
            return ("refused", refused.args[0])
        if not isinstance(command, c.Reset):
            self._record(rows)
        return said

    def list_rows(self, prefix: bytes, after: bytes | None) -> list[Row]:
        """Rows in key order."""
        return [
            row
            for key, row in sorted(self.rows.items())
            if key.startswith(prefix) and (after is None or key > after)
        ]

    def events(self, prefix: bytes, after_revision: int) -> list[Event] | int:
        """Events in order, or the first kept revision."""
        if after_revision + 1 < self.first_kept:
            return self.first_kept
        return [e for e in self.history if e[0] > after_revision and e[1].startswith(prefix)]

    def _run(self, command: c.Command) -> tuple[object, ...]:
        match command:
            case c.Put():
                self._put(command.key, command.value, command.lease_id)
                self._check_room(command.max_bytes)
                return ("put",)
            case c.Delete():
                return ("deleted", int(self.rows.pop(command.key, None) is not None))
            case c.CompareAndSet():
                row = self.rows.get(command.key)
                if (row[3] if row else 0) != command.expected_revision:
                    return ("compared", False)
                if command.value is None:
                    self.rows.pop(command.key, None)
                else:
                    self._put(command.key, command.value, 0)
                    self._check_room(command.max_bytes)
                return ("compared", True)
            case c.Txn():
                succeeded = all(self._holds(x) for x in command.compare)
                done = [self._operate(x) for x in (command.success if succeeded else command.failure)]
                self._check_room(command.max_bytes)
                return ("txn", succeeded, done)
            case c.LeaseGrant():
                if command.lease_id in self.leases:
                    raise No(Refusal.LEASE_EXISTS)
                self.leases[command.lease_id] = command.ttl_ms
                return ("granted", command.lease_id, command.ttl_ms)
            case c.LeaseRevoke() | c.LeaseExpire():
                existed = self.leases.pop(command.lease_id, None) is not None
                gone = [key for key, row in self.rows.items() if existed and row[5] == command.lease_id]
                for key in gone:
                    del self.rows[key]
                return ("ended", existed, len(gone))
            case c.CompactHistory():
                self.first_kept, self.history = self.revision + 1, []
                return ("compacted", self.first_kept)
            case c.Reset():
                count = len(self.rows)
                self.revision += 1
                self.rows, self.leases, self.history, self.first_kept = {}, {}, [], self.revision + 1
                return ("reset", count)

    def _put(self, key: bytes, value: bytes, lease_id: int) -> None:
        if lease_id and lease_id not in self.leases:
            raise No(Refusal.LEASE_UNKNOWN)
        old = self.rows.get(key)
        create, version = (old[2], old[4] + 1) if old else (self.revision + 1, 1)
        self.rows[key] = (key, value, create, self.revision + 1, version, lease_id)

    def _check_room(self, max_bytes: int) -> None:
        size = sum(len(key) + len(row[1]) for key, row in self.rows.items())
        if size > self._size_at_last_revision and (size > max_bytes or len(self.rows) * 64 > max_bytes):
            raise No(Refusal.STORE_FULL)

    def _operate(self, operation: c.Operation) -> tuple[object, ...]:
        match operation:
            case c.PutOp():
                self._put(operation.key, operation.value, operation.lease_id)
                return ("put",)
            case c.DeleteOp():
                gone = [
                    key
                    for key in self.rows
                    if (key.startswith(operation.key) if operation.is_prefix else key == operation.key)
                ]
                for key in gone:
                    del self.rows[key]
                return ("deleted", len(gone))
            case c.GetOp():
                return ("got", self.rows.get(operation.key))
            case c.ListOp():
                rows = self.list_rows(operation.prefix, None)
                most = operation.max_rows or len(rows)
                return ("listed", rows[:most], len(rows) > most)

    def _holds(self, compare: c.Compare) -> bool:
        row = self.rows.get(compare.key)
        if compare.target == c.TARGET_VALUE:
            return row is not None and _ordered(row[1], compare.op, compare.value)
        _, _, create, mod, version, lease = row or (b"", b"", 0, 0, 0, 0)
        numbers = {
            c.TARGET_VERSION: version,
            c.TARGET_CREATE_REVISION: create,
            c.TARGET_MOD_REVISION: mod,
            c.TARGET_LEASE: lease,
            c.TARGET_EXISTS: int(row is not None),
        }
        return _ordered(numbers[compare.target], compare.op, compare.number)

    def _record(self, before: dict[bytes, Row]) -> None:
        """The difference is one revision. The order within it is the order of the operations, which does not
        show here: it is compared by key."""
        changed = {key for key in before.keys() | self.rows.keys() if before.get(key) != self.rows.get(key)}
        self._size_at_last_revision = sum(len(key) + len(row[1]) for key, row in self.rows.items())
        if not changed:
            return
        self.revision += 1
        for key in sorted(changed):
            row = self.rows.get(key)
            self.history.append((self.revision, key, row[1] if row else None))
        self.first_kept = max(self.first_kept, self.revision - HISTORY_REVISIONS_MAX + 1)
        while self.history[0][0] < self.first_kept:
            del self.history[0]


def _ordered(found: int | bytes, op: int, given: int | bytes) -> bool:
    sign = (found > given) - (found < given)  # type: ignore[operator]
    return {c.EQUAL: sign == 0, c.NOT_EQUAL: sign != 0, c.LESS: sign < 0, c.GREATER: sign > 0}[op]


class Commands:
    """Random commands over few keys and leases, so that they meet each other. Most of them are valid."""

    def __init__(self, seed: int, keys: int = 40, max_bytes: int = 2000, wipes: bool = True) -> None:
        """`wipes`: many keys at once may be deleted; without it the store grows."""
        self.rng = random.Random(seed)
        self.names = [f"{letter}{number}".encode() for letter in "aäb日" for number in range(keys // 4)]
        self.max_bytes = max_bytes
        self.wipes = wipes
        self.revision = 0
        """Of the store, as far as the caller keeps it up to date: compares then often hold."""

    def next(self) -> c.Command:
        """One command."""
        kinds = [self._put, self._delete, self._compare_and_set, self._txn, self._lease, self._rare]
        return self.rng.choices(kinds, [40, 12, 12, 20, 14, 1])[0]()

    def _key(self) -> bytes:
        return self.rng.choice(self.names)

    def _value(self) -> bytes:
        return self.rng.choice("xyzü").encode() * self.rng.choice([0, 1, 3, 50, 400])

    def _lease_id(self) -> int:
        return self.rng.choice([0, 0, 0, 1, 2, 3])

    def _put(self) -> c.Command:
        return c.Put(self._key(), self._value(), self.max_bytes, self._lease_id())

    def _delete(self) -> c.Command:
        return c.Delete(self._key())

    def _compare_and_set(self) -> c.Command:
        expected = self.rng.choice([0, max(0, self.revision - self.rng.randrange(20))])
        value = None if self.rng.random() < 0.3 else self._value()
        return c.CompareAndSet(self._key(), expected, value, self.max_bytes)

    def _txn(self) -> c.Command:
        compare = tuple(self._compare() for _ in range(self.rng.choice([0, 0, 1, 2])))
        return c.Txn(compare, self._operations(), self._operations(), self.max_bytes)

    def _compare(self) -> c.Compare:
        target = self.rng.randrange(6)
        if target == c.TARGET_VALUE:
            return c.Compare(self._key(), target, self.rng.randrange(4), 0, self._value())
        if target == c.TARGET_EXISTS:
            return c.Compare(self._key(), target, self.rng.randrange(2), self.rng.randrange(2))
        return c.Compare(self._key(), target, self.rng.randrange(4), self.rng.randrange(5))

    def _operations(self) -> tuple[c.Operation, ...]:
        made: list[c.Operation] = []
        for _ in range(self.rng.randrange(6)):
            kind = self.rng.randrange(5)
            prefix = self._key()[: self.rng.choice([1, 3])].decode(errors="ignore").encode()
            if kind == 0:
                made.append(c.DeleteOp(self._key()))
            elif kind == 1 and self.wipes and self.rng.random() < 0.3:
                made.append(c.DeleteOp(prefix, True))
            elif kind == 2:
                made.append(c.GetOp(self._key()))
            elif kind == 3:
                made.append(c.ListOp(prefix, self.rng.randrange(4)))
            else:
                made.append(c.PutOp(self._key(), self._value(), self._lease_id()))
        return tuple(made)

    def _lease(self) -> c.Command:
        lease_id = self.rng.choice([1, 2, 3])
        kind = self.rng.randrange(4)
        if kind < 2:
            return c.LeaseGrant(lease_id, self.rng.choice([1000, 60_000]))
        return c.LeaseRevoke(lease_id) if kind == 2 else c.LeaseExpire(lease_id)

    def _rare(self) -> c.Command:
        return c.CompactHistory() if not self.wipes or self.rng.random() < 0.8 else c.Reset()
