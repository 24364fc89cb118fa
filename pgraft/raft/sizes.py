"""Sizes of entries in bytes, for the limits on messages, windows and pages.

An entry counts as many bytes as its protobuf form in etcd would have, so that limits mean the same.
The exact size is only worked out near a limit: a bound that is cheap to compute decides the rest.
"""

from __future__ import annotations

from pgraft.raft.types import Entry

NO_LIMIT = 2**64 - 1
ENTRY_OVERHEAD_BYTES_MAX = 35
"""Three tagged varints of at most ten bytes (type: one), and the data's tag and length."""


def _varint_bytes(value: int) -> int:
    return (value.bit_length() + 6) // 7 or 1


def entry_size(entry: Entry) -> int:
    """Bytes that the entry counts for in max_size_per_msg and max_committed_size_per_ready."""
    size = 3 + _varint_bytes(entry.type) + _varint_bytes(entry.term) + _varint_bytes(entry.index)
    length = len(entry.data)
    return size + 1 + _varint_bytes(length) + length if length else size


def entries_size(entries: list[Entry]) -> int:
    """Sum of entry_size."""
    return sum(map(entry_size, entries))


def payload_size(entries: list[Entry]) -> int:
    """Bytes of user data: what counts as in flight and as uncommitted. 0 for empty entries."""
    return sum([len(entry.data) for entry in entries])


def limit_size(entries: list[Entry], max_size: int) -> list[Entry]:
    """The longest prefix of `entries` within `max_size` bytes, but at least one entry."""
    if max_size == NO_LIMIT or len(entries) <= 1:
        return entries
    if payload_size(entries) + len(entries) * ENTRY_OVERHEAD_BYTES_MAX <= max_size:
        return entries
    size = 0
    for count, entry in enumerate(entries):
        size += entry_size(entry)
        if size > max_size and count:
            return entries[:count]
    return entries
