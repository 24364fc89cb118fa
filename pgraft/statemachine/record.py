"""A key's record: its numbers and its value in one bytes object, and nothing else in memory.

    u64 create_revision, u64 mod_revision, u64 version, u64 lease_id, then the value

Records are never changed; store, history, snapshots and results share them. A record of version 0 is the
event of a deletion and has no value.
"""

from __future__ import annotations

import struct
from typing import Final

from pgraft.statemachine.results import Event, Row

RECORD_HEAD_BYTES: Final = 32
_HEAD: Final = struct.Struct("<QQQQ")
_U64: Final = struct.Struct("<Q")


def make_record(create_revision: int, mod_revision: int, version: int, lease_id: int, value: bytes) -> bytes:
    """The record of a key."""
    return _HEAD.pack(create_revision, mod_revision, version, lease_id) + value


def make_deletion(revision: int) -> bytes:
    """The record of an event that deleted a key."""
    return _HEAD.pack(0, revision, 0, 0)


def head_of(record: bytes) -> tuple[int, int, int, int]:
    """create_revision, mod_revision, version, lease_id."""
    return _HEAD.unpack_from(record)


def mod_revision_of(record: bytes) -> int:
    """The revision that wrote it."""
    return int(_U64.unpack_from(record, 8)[0])


def lease_of(record: bytes) -> int:
    """The lease of the key, 0: none."""
    return int(_U64.unpack_from(record, 24)[0])


def row_of(key: bytes, record: bytes) -> Row:
    """A key as readers see it."""
    create, mod, version, lease = _HEAD.unpack_from(record)
    return Row(key, record[RECORD_HEAD_BYTES:], create, mod, version, lease)


def event_of(key: bytes, record: bytes) -> Event:
    """A change as watchers see it."""
    _, revision, version, _ = _HEAD.unpack_from(record)
    return Event(revision, key, record[RECORD_HEAD_BYTES:] if version else None)
