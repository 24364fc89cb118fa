"""The limits of the state machines.

Every node judges a committed command by these numbers, so they are part of the meaning of an entry: a release
that changes one of them must give its commands a new kind byte (README.md, "How the format may grow").
"""

from __future__ import annotations

from typing import Final

INT64_MAX: Final = 2**63 - 1
"""Largest revision, lease id or version: SQL shows them as bigint."""

KEY_BYTES_MAX: Final = 1024
VALUE_BYTES_MAX: Final = 1024 * 1024
COMMAND_BYTES_MAX: Final = VALUE_BYTES_MAX + 64 * 1024
"""Of one encoded command. The largest value with its key and every number fits."""
TXN_OPERATIONS_MAX: Final = 128
"""In each list of a transaction: compares, success, failure."""
TXN_TEXT_BYTES_MAX: Final = VALUE_BYTES_MAX + 32 * 1024
"""Keys and values in one transaction. The rest of COMMAND_BYTES_MAX is room for the numbers beside them."""
TXN_RESPONSE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Keys and values that the gets and lists of one transaction may return."""
TXN_RESPONSE_ROWS_MAX: Final = 10_000
"""Rows that the gets and lists of one transaction may return."""
DELETES_MAX: Final = 10_000
"""Keys that one command may delete. That takes some 50 ms to apply, half of a heartbeat interval."""
BYTES_PER_KEY_MIN: Final = 64
"""A store limited to n bytes holds at most n / 64 keys, so that many tiny entries cannot take many times the
memory that the limit stands for."""

LEASES_MAX: Final = 10_000
LEASE_KEYS_MAX: Final = DELETES_MAX
"""Keys of one lease: they are all deleted by one command."""
LEASE_TTL_MS_MIN: Final = 1_000
LEASE_TTL_MS_MAX: Final = 10 * 365 * 24 * 3600 * 1_000

HISTORY_REVISIONS_MAX: Final = 10_000
HISTORY_EVENTS_MAX: Final = 100_000
HISTORY_STALE_BYTES_MAX: Final = 16 * 1024 * 1024
"""Memory of events whose value is not the current one any more; current values are shared with the store."""
EVENTS_SCANNED_MAX: Final = 20_000
"""Events that one read of the history looks at (a few ms), matching or not."""

CHUNK_BYTES_MAX: Final = 64 * 1024
"""Of one chunk of a snapshot stream."""
FRAME_HEAD_BYTES: Final = 13
PIECE_BYTES_MAX: Final = CHUNK_BYTES_MAX - FRAME_HEAD_BYTES
"""Of one piece of one machine's snapshot: it goes into one chunk, behind the head of a frame."""
BATCH_BYTES_MAX: Final = COMMAND_BYTES_MAX + CHUNK_BYTES_MAX
"""Of one batch of records in a snapshot: it may hold one of the largest values."""
