"""A key-value store as batches: its numbers, leases, keys, events (snapshot_records.py).

Batches are cut by the bytes of what they hold, never by how the store happens to be laid out in memory:
equal stores give equal bytes on every node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

import msgspec

from pgraft.statemachine.batches import pieces_of
from pgraft.statemachine.history import History
from pgraft.statemachine.snapshot_records import Batch, EventBatch, KeyBatch, LeaseBatch, StoreHead
from pgraft.statemachine.sorted_map import SortedMap
from pgraft.statemachine.store import Store

_BATCH_TEXT_BYTES: Final = 48 * 1024
"""A batch is complete when it holds so much. With the head it is a piece, unless its last value is large."""
_BATCH_LEASES: Final = 2048
_KEY_OVERHEAD_BYTES: Final = 10
"""Of msgpack, for a key and its record."""

_encode: Final = msgspec.msgpack.Encoder().encode


def store_pieces(store: Store, applied_index: int) -> Iterator[bytes]:
    """The store as it is now, in pieces made as they are asked for. What is kept until then are copies of
    blocks and lists, not of keys and values."""
    head = StoreHead(
        applied_index,
        store.revision,
        store.history.first_kept,
        len(store.leases),
        len(store.keys),
        len(store.history),
    )
    return _pieces(head, store.leases.ttls_ms(), store.keys.copy(), store.history.copy())


def _pieces(head: StoreHead, leases: dict[int, int], keys: SortedMap, history: History) -> Iterator[bytes]:
    yield from _encoded(head)
    ids = iter(sorted(leases))
    while some := list(islice(ids, _BATCH_LEASES)):
        yield from _encoded(LeaseBatch(some, [leases[lease_id] for lease_id in some]))
    for some_keys, records in _batched(keys.items()):
        yield from _encoded(KeyBatch(some_keys, records))
    for some_keys, records in _batched(_events(history, keys)):
        yield from _encoded(EventBatch(some_keys, records))


def _encoded(batch: Batch) -> Iterator[bytes]:
    return pieces_of(_encode(batch))


def _events(history: History, keys: SortedMap) -> Iterator[tuple[bytes, bytes]]:
    """Events; one whose record is the key's current one goes without it."""
    for key, record in history.items():
        yield key, b"" if keys.get(key) == record else record


def _batched(items: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Keys and records in portions of about _BATCH_TEXT_BYTES."""
    keys: list[bytes] = []
    records: list[bytes] = []
    size = 0
    for key, record in items:
        keys.append(key)
        records.append(record)
        size += len(key) + len(record) + _KEY_OVERHEAD_BYTES
        if size >= _BATCH_TEXT_BYTES:
            yield keys, records
            keys, records, size = [], [], 0
    if keys:
        yield keys, records
