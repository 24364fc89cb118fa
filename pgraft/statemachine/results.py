"""What commands and reads return.

Results of commands travel to the node of the session that asked, as msgpack arrays that begin with the number
of the result. Later releases may append fields; older ones ignore those.
"""

from __future__ import annotations

import enum

import msgspec


class Refusal(enum.IntEnum):
    """Why a command had no effect."""

    INVALID = 1
    """The request makes no sense or breaks a limit of its own: the proposer should have seen it."""
    LEASE_UNKNOWN = 2
    LEASE_EXISTS = 3
    LEASES_FULL = 4
    LEASE_KEYS_FULL = 5
    STORE_FULL = 6
    TOO_MANY_DELETES = 7
    RESPONSE_TOO_LARGE = 8


class Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A key with everything that the store knows of it."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease_id: int


class PutResponse(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """A put inside a transaction was done."""


class DeleteResponse(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """How many keys it deleted."""

    deleted: int


class GetResponse(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """The key, or None."""

    row: Row | None


class ListResponse(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """The rows, and whether `max_rows` left some out."""

    rows: tuple[Row, ...]
    more: bool


Response = PutResponse | DeleteResponse | GetResponse | ListResponse


class Refused(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """The command changed nothing. `reason` is a Refusal, or one of a newer release; `text` is for people."""

    reason: int
    text: str


class PutDone(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """The key was set, as this revision."""

    revision: int


class DeleteDone(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """How many keys were deleted (0 or 1); the store's revision afterwards."""

    revision: int
    deleted: int


class CompareAndSetDone(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """Whether the key had the expected revision; the store's revision afterwards."""

    revision: int
    succeeded: bool


class TxnDone(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """Which list was run, one response for each of its operations; the store's revision afterwards."""

    revision: int
    succeeded: bool
    responses: tuple[Response, ...]


class LeaseGranted(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """The lease exists."""

    lease_id: int
    ttl_ms: int


class LeaseEnded(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """The lease does not exist any more; `existed` says whether it did. The store's revision afterwards."""

    revision: int
    lease_id: int
    existed: bool
    deleted: int


class HistoryCompacted(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """Watches can begin behind `first_kept_revision` - 1, and no earlier."""

    first_kept_revision: int


class StoreReset(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """The store is empty as of this revision; `deleted` keys are gone."""

    revision: int
    deleted: int


Result = (
    Refused
    | PutDone
    | DeleteDone
    | CompareAndSetDone
    | TxnDone
    | LeaseGranted
    | LeaseEnded
    | HistoryCompacted
    | StoreReset
)


class Listing(msgspec.Struct, frozen=True):
    """Rows in key order at one revision, and whether `max_rows` left some out."""

    revision: int
    rows: tuple[Row, ...]
    more: bool


class Event(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One change of one key. A key changes at most once in a revision. `value` None: it was deleted."""

    revision: int
    key: bytes
    value: bytes | None


class EventPage(msgspec.Struct, frozen=True):
    """Events in order, whole revisions only. Everything up to `through_revision` has been looked at: the
    next read goes on behind it, also when nothing matched."""

    events: tuple[Event, ...]
    through_revision: int


class Compacted(msgspec.Struct, frozen=True):
    """The history does not reach back as far as was asked for."""

    first_kept_revision: int


class Stats(msgspec.Struct, frozen=True):
    """Figures of the store. `bytes` of keys and values; `history_bytes` of values that are not current."""

    keys: int
    bytes: int
    revision: int
    first_kept_revision: int
    leases: int
    leased_keys: int
    events: int
    history_bytes: int
    applied_index: int
