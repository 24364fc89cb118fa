"""What snapshots are made of, as data. README.md draws the stream."""

from __future__ import annotations

import msgspec


class StreamHead(msgspec.Struct, array_like=True, frozen=True):
    """The first frame: format of the stream, the applied index of the whole, the sections in order."""

    format_version: int
    applied_index: int
    sections: tuple[str, ...]


class SectionHead(msgspec.Struct, array_like=True, frozen=True):
    """The first frame of a section: whose it is, and the format of what follows."""

    name: str
    format_version: int


class StoreHead(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """The first batch of a key-value store: its numbers, and how many records follow."""

    applied_index: int
    revision: int
    first_kept_revision: int
    leases: int
    keys: int
    events: int


class LeaseBatch(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """Leases in order of their ids. Which keys they have is in the keys' records."""

    lease_ids: list[int]
    ttls_ms: list[int]


class KeyBatch(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """Keys in order, and their records (record.py)."""

    keys: list[bytes]
    records: list[bytes]


class EventBatch(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """Events in order. An empty record: the key's current record is the event's."""

    keys: list[bytes]
    records: list[bytes]


Batch = StoreHead | LeaseBatch | KeyBatch | EventBatch
