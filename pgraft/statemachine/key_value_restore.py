"""A key-value machine from the pieces of its snapshot.

The checksums of the stream find damage. What is checked here is that the content could be a store, since a
peer sent it: numbers that contradict each other, keys out of order or over their limits would do harm much
later, on every read.
"""

from __future__ import annotations

from typing import Final, assert_never

import msgspec

from pgraft.statemachine.batches import BatchReader
from pgraft.statemachine.codec import UNREADABLE
from pgraft.statemachine.errors import SnapshotDamaged
from pgraft.statemachine.history import History
from pgraft.statemachine.key_value import KeyValueMachine
from pgraft.statemachine.limits import (
    HISTORY_EVENTS_MAX,
    HISTORY_REVISIONS_MAX,
    INT64_MAX,
    KEY_BYTES_MAX,
    LEASE_KEYS_MAX,
    LEASE_TTL_MS_MAX,
    LEASE_TTL_MS_MIN,
    LEASES_MAX,
    VALUE_BYTES_MAX,
)
from pgraft.statemachine.record import RECORD_HEAD_BYTES, head_of, make_deletion
from pgraft.statemachine.snapshot_records import Batch, EventBatch, KeyBatch, LeaseBatch, StoreHead
from pgraft.statemachine.store import Store

FORMAT_VERSION: Final = 1
NAME: Final = "key-value"

_decode: Final = msgspec.msgpack.Decoder(Batch).decode


class KeyValueRestorer:
    """Fed with pieces, gives the machine."""

    __slots__ = ("_head", "_last_key", "_last_revision", "_reader", "_store")

    def __init__(self) -> None:
        self._reader = BatchReader(NAME)
        self._head: StoreHead | None = None
        self._store = Store()
        self._last_key = b""
        self._last_revision = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece. Raises SnapshotDamaged."""
        for data in self._reader.feed(piece):
            try:
                batch = _decode(data)
            except UNREADABLE as error:
                raise SnapshotDamaged(
                    f"{NAME}: a batch of {len(data)} bytes cannot be read: {error}"
                ) from error
            self._take(batch)

    def finish(self) -> KeyValueMachine:
        """The machine. Raises SnapshotDamaged when something is missing."""
        self._reader.finish()
        head, store = self._head, self._store
        if head is None:
            raise SnapshotDamaged(f"{NAME}: it has no head")
        found = (len(store.leases), len(store.keys), len(store.history))
        expected = (head.leases, head.keys, head.events)
        _check(found == expected, f"it has {found} leases, keys and events, its head says {expected}")
        _check(
            store.history.newest == head.revision,
            f"its events end at revision {store.history.newest}, it is at {head.revision}",
        )
        return KeyValueMachine(store, head.applied_index)

    def _take(self, batch: Batch) -> None:
        if isinstance(batch, StoreHead):
            self._take_head(batch)
            return
        _check(self._head is not None, "it does not begin with its head")
        match batch:
            case LeaseBatch(lease_ids, ttls_ms):
                self._take_leases(lease_ids, ttls_ms)
            case KeyBatch(keys, records):
                _check(len(self._store.history) == 0, "keys behind events")
                self._take_keys(keys, records)
            case EventBatch(keys, records):
                self._take_events(keys, records)
            case _:
                assert_never(batch)

    def _take_head(self, head: StoreHead) -> None:
        _check(self._head is None, "it has two heads")
        numbers_fit = 1 <= head.first_kept_revision <= head.revision + 1 <= INT64_MAX
        _check(numbers_fit and 0 <= head.applied_index <= INT64_MAX, f"impossible numbers: {head}")
        kept = head.revision + 1 - head.first_kept_revision
        _check(
            kept <= HISTORY_REVISIONS_MAX and head.events <= HISTORY_EVENTS_MAX, f"too much history: {head}"
        )
        self._head = head
        self._store.revision = head.revision
        self._store.history = History(head.first_kept_revision)
        self._last_revision = head.first_kept_revision - 1

    def _take_leases(self, lease_ids: list[int], ttls_ms: list[int]) -> None:
        leases = self._store.leases
        _check(len(lease_ids) == len(ttls_ms), f"{len(lease_ids)} leases with {len(ttls_ms)} times to live")
        _check(len(leases) + len(lease_ids) <= LEASES_MAX, f"more than {LEASES_MAX} leases")
        for lease_id, ttl_ms in zip(lease_ids, ttls_ms, strict=True):
            possible = 1 <= lease_id <= INT64_MAX and LEASE_TTL_MS_MIN <= ttl_ms <= LEASE_TTL_MS_MAX
            _check(possible and lease_id not in leases, f"lease {lease_id} of {ttl_ms} ms, or there twice")
            leases.grant(lease_id, ttl_ms)

    def _take_keys(self, keys: list[bytes], records: list[bytes]) -> None:
        _check_texts(keys, records)
        store, last, revision = self._store, self._last_key, self._store.revision
        for key, record in zip(keys, records, strict=True):
            create, mod, version, lease = head_of(record)
            if not (key > last and 1 <= create <= mod <= revision and 1 <= version <= INT64_MAX):
                numbers = f"revision {mod}, created at {create}, version {version}"
                raise SnapshotDamaged(f"{NAME}: key {key!r} with {numbers}, behind key {last!r}")
            store.keys.append(key, record)
            store.size += len(key) + len(record) - RECORD_HEAD_BYTES
            if lease:
                self._attach(lease, key)
            last = key
        self._last_key = last

    def _attach(self, lease_id: int, key: bytes) -> None:
        leases = self._store.leases
        _check(lease_id in leases, f"key {key!r} of lease {lease_id}, which is missing")
        _check(
            leases.count_of(lease_id) < LEASE_KEYS_MAX, f"more than {LEASE_KEYS_MAX} keys of lease {lease_id}"
        )
        leases.attach(lease_id, key)

    def _take_events(self, keys: list[bytes], records: list[bytes]) -> None:
        current = [record or self._store.keys.get(key) for key, record in zip(keys, records, strict=False)]
        whole = [record for record in current if record is not None]
        _check(len(whole) == len(current), "an event whose value is missing")
        _check_texts(keys, whole)
        history = self._store.history
        for key, given, record in zip(keys, records, whole, strict=True):
            _, revision, version, _ = head_of(record)
            if revision != self._last_revision:
                in_order = revision == self._last_revision + 1 and revision <= self._store.revision
                _check(in_order, f"an event of revision {revision} behind one of {self._last_revision}")
                history.add_revision()
                self._last_revision = revision
            _check(version > 0 or record == make_deletion(revision), f"a deletion of {key!r} with a value")
            _check(
                history.newest >= history.first_kept, f"an event of revision {revision}, which is not kept"
            )
            history.add_event(key, record, bool(given))


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise SnapshotDamaged(f"{NAME}: {problem}")


def _check_texts(keys: list[bytes], records: list[bytes]) -> None:
    """Every key and value within its limits, and text that PostgreSQL can have.

    Joined by zero bytes, which none of them may contain, they are checked at the speed of C.
    """
    _check(len(keys) == len(records), f"{len(keys)} keys with {len(records)} records")
    values = [record[RECORD_HEAD_BYTES:] for record in records]
    shortest = min(map(len, records), default=RECORD_HEAD_BYTES)
    longest = max(map(len, values), default=0)
    key_lengths = [len(key) for key in keys] or [1]
    fits = min(key_lengths) >= 1 and max(key_lengths) <= KEY_BYTES_MAX and longest <= VALUE_BYTES_MAX
    _check(fits and shortest >= RECORD_HEAD_BYTES, "a key or value beyond its limits")
    for texts in (keys, values):
        joined = b"\0".join(texts)
        _check(joined.count(b"\0") == max(len(texts) - 1, 0), "a zero byte in a key or value")
        try:
            joined.decode()
        except UnicodeDecodeError as error:
            raise SnapshotDamaged(f"{NAME}: a key or value is not UTF-8: {error.reason}") from error
