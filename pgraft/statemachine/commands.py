"""The commands of the key-value store, as entries carry them behind the kind byte 0x02.

msgpack arrays that begin with the number of the command. Keys and values are UTF-8. `max_bytes` is the
proposer's `pgraft.kv_max_bytes`: the setting may differ from node to node, and every node must judge alike,
so the command carries it. Decoding refuses fields that are not known (README.md, "How the format may
grow").
"""

from __future__ import annotations

from typing import Final

import msgspec

TARGET_VERSION: Final = 0
TARGET_CREATE_REVISION: Final = 1
TARGET_MOD_REVISION: Final = 2
TARGET_LEASE: Final = 3
TARGET_VALUE: Final = 4
TARGET_EXISTS: Final = 5

EQUAL: Final = 0
NOT_EQUAL: Final = 1
LESS: Final = 2
GREATER: Final = 3


class Put(msgspec.Struct, array_like=True, tag=1, forbid_unknown_fields=True, frozen=True, gc=False):
    """Set a key. Lease 0: none, and a lease that the key had lets go of it."""

    key: bytes
    value: bytes
    max_bytes: int
    lease_id: int = 0


class Delete(msgspec.Struct, array_like=True, tag=2, forbid_unknown_fields=True, frozen=True, gc=False):
    """Delete a key, where it exists."""

    key: bytes


class CompareAndSet(
    msgspec.Struct, array_like=True, tag=3, forbid_unknown_fields=True, frozen=True, gc=False
):
    """Set the key (value None: delete it) if its mod_revision is the expected one; 0: if it is absent."""

    key: bytes
    expected_revision: int
    value: bytes | None
    max_bytes: int


class Compare(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """One condition. `number` counts for number targets and for TARGET_EXISTS (0 or 1), `value` for
    TARGET_VALUE."""

    key: bytes
    target: int
    op: int
    number: int = 0
    value: bytes = b""


class PutOp(msgspec.Struct, array_like=True, tag=1, forbid_unknown_fields=True, frozen=True, gc=False):
    """A put inside a transaction."""

    key: bytes
    value: bytes
    lease_id: int = 0


class DeleteOp(msgspec.Struct, array_like=True, tag=2, forbid_unknown_fields=True, frozen=True, gc=False):
    """Delete a key, or all keys with this prefix."""

    key: bytes
    is_prefix: bool = False


class GetOp(msgspec.Struct, array_like=True, tag=3, forbid_unknown_fields=True, frozen=True, gc=False):
    """Read a key."""

    key: bytes


class ListOp(msgspec.Struct, array_like=True, tag=4, forbid_unknown_fields=True, frozen=True, gc=False):
    """Read the keys with this prefix, at most `max_rows` of them; 0: all."""

    prefix: bytes
    max_rows: int = 0


Operation = PutOp | DeleteOp | GetOp | ListOp


class Txn(msgspec.Struct, array_like=True, tag=4, forbid_unknown_fields=True, frozen=True):
    """`success` when every compare holds, else `failure`, as one revision."""

    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...]
    max_bytes: int


class LeaseGrant(msgspec.Struct, array_like=True, tag=5, forbid_unknown_fields=True, frozen=True, gc=False):
    """A new lease. The proposer chooses the id (at random, from 1)."""

    lease_id: int
    ttl_ms: int


class LeaseRevoke(msgspec.Struct, array_like=True, tag=6, forbid_unknown_fields=True, frozen=True, gc=False):
    """End a lease and delete its keys, because somebody asked for it."""

    lease_id: int


class LeaseExpire(msgspec.Struct, array_like=True, tag=7, forbid_unknown_fields=True, frozen=True, gc=False):
    """End a lease and delete its keys, because the leader saw its time run out."""

    lease_id: int


class CompactHistory(
    msgspec.Struct, array_like=True, tag=8, forbid_unknown_fields=True, frozen=True, gc=False
):
    """Drop the history of events."""


class Reset(msgspec.Struct, array_like=True, tag=9, forbid_unknown_fields=True, frozen=True, gc=False):
    """Empty the store: keys, leases, history. The revision goes on growing."""


Command = Put | Delete | CompareAndSet | Txn | LeaseGrant | LeaseRevoke | LeaseExpire | CompactHistory | Reset
