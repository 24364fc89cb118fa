"""The key-value machine: commands and reads. README.md gives its semantics, which are etcd's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final, assert_never

from pgraft.raft.errors import InvariantViolation
from pgraft.statemachine.codec import decode_command
from pgraft.statemachine.commands import (
    Command,
    CompactHistory,
    CompareAndSet,
    Delete,
    LeaseExpire,
    LeaseGrant,
    LeaseRevoke,
    Put,
    Reset,
    Txn,
)
from pgraft.statemachine.history import History
from pgraft.statemachine.key_value_snapshot import store_pieces
from pgraft.statemachine.limits import LEASES_MAX
from pgraft.statemachine.record import mod_revision_of, row_of
from pgraft.statemachine.results import (
    Compacted,
    CompareAndSetDone,
    DeleteDone,
    EventPage,
    HistoryCompacted,
    LeaseEnded,
    LeaseGranted,
    Listing,
    PutDone,
    Refusal,
    Refused,
    Result,
    Row,
    Stats,
    StoreReset,
)
from pgraft.statemachine.sorted_map import after_prefix
from pgraft.statemachine.store import RequestRefused, Store
from pgraft.statemachine.transaction import run_txn
from pgraft.statemachine.validation import validate

_UNREADABLE: Final = Refused(Refusal.INVALID, "the entry holds no key-value command that can be read")


class KeyValueMachine:
    """A key-value store. Reads may come between any two applies; they see all of the applied commands."""

    __slots__ = ("_applied_index", "_store")

    def __init__(self, store: Store | None = None, applied_index: int = 0) -> None:
        self._store = Store() if store is None else store
        self._applied_index = applied_index

    # --- the state machine ---------------------------------------------------------------------

    @property
    def applied_index(self) -> int:
        """Index of the last entry applied to this machine."""
        return self._applied_index

    @property
    def revision(self) -> int:
        """The store's revision: how often it changed."""
        return self._store.revision

    def apply(self, index: int, data: bytes) -> Result:
        """Run the committed command at `index`. InvariantViolation when it has been applied already."""
        if index <= self._applied_index:
            raise InvariantViolation(f"key-value entry {index} applied behind entry {self._applied_index}")
        self._applied_index = index
        command = decode_command(data)
        if command is None:
            return _UNREADABLE
        wrong = validate(command)
        if wrong:
            return Refused(Refusal.INVALID, wrong)
        try:
            return self._run(command)
        except RequestRefused as refused:
            self._store.undo()
            return refused.result

    def snapshot(self) -> Iterator[bytes]:
        """The state as it is now, in pieces that are made as they are asked for."""
        return store_pieces(self._store, self._applied_index)

    # --- reads -------------------------------------------------------------------------------

    def get(self, key: bytes) -> Row | None:
        """The key, or None."""
        record = self._store.keys.get(key)
        return None if record is None else row_of(key, record)

    def exists(self, key: bytes) -> bool:
        """Whether there is such a key."""
        return self._store.keys.get(key) is not None

    def list_rows(self, prefix: bytes, after: bytes | None, max_rows: int) -> Listing:
        """At most `max_rows` keys with this prefix that are above `after`, in key order."""
        items = self._store.keys.items(_start(prefix, after), after_prefix(prefix))
        rows = tuple(row_of(key, record) for key, record in islice(items, max_rows))
        return Listing(self._store.revision, rows, next(items, None) is not None)

    def scan(self, prefix: bytes, after: bytes | None) -> tuple[int, Iterator[Row]]:
        """The revision, and all keys with this prefix above `after` as they are at that revision, whatever is
        applied while they are iterated over."""
        items = self._store.keys.copy().items(_start(prefix, after), after_prefix(prefix))
        return self._store.revision, (row_of(key, record) for key, record in items)

    def list_keys(self) -> Iterator[bytes]:
        """All keys in order, as they are now."""
        return (key for key, _ in self._store.keys.copy().items())

    def events(
        self, prefix: bytes, after_revision: int, max_rows: int, max_bytes: int
    ) -> EventPage | Compacted:
        """What happened behind `after_revision` to keys with this prefix (history.History.read)."""
        return self._store.history.read(prefix, after_revision, max_rows, max_bytes)

    def leases(self) -> dict[int, int]:
        """Time to live in ms of every lease, by id: what a new leader's lessor starts from."""
        return self._store.leases.ttls_ms()

    def lease_keys(self, lease_id: int) -> list[bytes]:
        """The keys of a lease, in order."""
        return self._store.leases.keys_of(lease_id)

    def stats(self) -> Stats:
        """Figures."""
        store = self._store
        return Stats(
            keys=len(store.keys),
            bytes=store.size,
            revision=store.revision,
            first_kept_revision=store.history.first_kept,
            leases=len(store.leases),
            leased_keys=store.leases.attached,
            events=len(store.history),
            history_bytes=store.history.stale_bytes,
            applied_index=self._applied_index,
        )

    # --- commands ----------------------------------------------------------------------------

    def _run(self, command: Command) -> Result:
        store = self._store
        match command:
            case Put(key, value, max_bytes, lease_id):
                store.put(key, value, lease_id)
                store.check_size(max_bytes)
                return PutDone(store.commit())
            case Delete(key):
                deleted = store.delete(key)
                return DeleteDone(store.commit(), int(deleted))
            case CompareAndSet():
                return self._compare_and_set(command)
            case Txn():
                return run_txn(store, command)
            case LeaseGrant(lease_id, ttl_ms):
                return self._grant(lease_id, ttl_ms)
            case LeaseRevoke(lease_id) | LeaseExpire(lease_id):
                return self._end_lease(lease_id)
            case CompactHistory():
                store.history = History(store.revision + 1)
                return HistoryCompacted(store.history.first_kept)
            case Reset():
                deleted_keys = store.reset()
                return StoreReset(store.revision, deleted_keys)
            case _:
                assert_never(command)

    def _compare_and_set(self, command: CompareAndSet) -> CompareAndSetDone:
        store = self._store
        record = store.keys.get(command.key)
        if (0 if record is None else mod_revision_of(record)) != command.expected_revision:
            return CompareAndSetDone(store.revision, False)
        if command.value is None:
            store.delete(command.key)
        else:
            store.put(command.key, command.value, 0)
            store.check_size(command.max_bytes)
        return CompareAndSetDone(store.commit(), True)

    def _grant(self, lease_id: int, ttl_ms: int) -> LeaseGranted | Refused:
        leases = self._store.leases
        if lease_id in leases:
            return Refused(Refusal.LEASE_EXISTS, f"there is a lease {lease_id} already")
        if len(leases) >= LEASES_MAX:
            return Refused(
                Refusal.LEASES_FULL, f"there are {LEASES_MAX} leases, which is as many as there can be"
            )
        leases.grant(lease_id, ttl_ms)
        return LeaseGranted(lease_id, ttl_ms)

    def _end_lease(self, lease_id: int) -> LeaseEnded:
        """Revoked or expired. That there is none any more is no error: both may have been proposed."""
        store = self._store
        if lease_id not in store.leases:
            return LeaseEnded(store.revision, lease_id, False, 0)
        keys = store.leases.keys_of(lease_id)
        for key in keys:
            store.delete(key)
        store.leases.remove(lease_id)
        return LeaseEnded(store.commit(), lease_id, True, len(keys))


def _start(prefix: bytes, after: bytes | None) -> bytes:
    """The first key that a list may begin with."""
    return prefix if after is None or after < prefix else after + b"\0"
