"""What clients of the key-value store asked and were told, in a form that can be kept as lines of JSON.

    Op       one request: get, put, compare-and-set, delete, exists or transaction, and its answer
    Listing  all keys of a prefix, read at one revision
    Poll     one call of the watch function
    LeaseCall  a grant, keep-alive or revocation of a lease

Times are nanoseconds of one clock that all clients share. A request is always a transaction, as in etcd: the
others are made by `put`, `get` and so on. What an answer does not tell is None; the more it tells (above
all revisions), the stronger and the faster the check.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Literal

import msgspec

from tests.soak.history import Result as Result


class Target(enum.Enum):
    """What a comparison looks at. Of an absent key, revisions and version are 0; its value equals nothing."""

    VALUE = "value"
    MOD = "mod_revision"
    CREATE = "create_revision"
    VERSION = "version"


class Compare(msgspec.Struct, frozen=True):
    """A condition of a transaction."""

    key: str
    target: Target
    sign: Literal["=", "!=", "<", ">"]
    operand: int | str


class Put(msgspec.Struct, frozen=True, tag="put"):
    """Sets a key; `lease` 0 is none."""

    key: str
    value: str
    lease: int = 0


class Get(msgspec.Struct, frozen=True, tag="get"):
    """Reads a key; told as Seen."""

    key: str


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Removes a key; told as a bool: whether there was one."""

    key: str


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """Removes a key if it hangs on this lease: the end of a lease, which the checker adds itself."""

    key: str
    lease: int


Action = Put | Get | Delete | Drop


class Request(msgspec.Struct, frozen=True):
    """When all comparisons hold, `then`, else `otherwise`; at one revision."""

    then: tuple[Action, ...]
    compares: tuple[Compare, ...] = ()
    otherwise: tuple[Action, ...] = ()


class Seen(msgspec.Struct, frozen=True):
    """What a get told of a key. None: not told. `pgraft_kv_exists` tells `present` alone."""

    present: bool
    value: str | None = None
    mod_revision: int | None = None
    create_revision: int | None = None
    version: int | None = None


ABSENT = Seen(False)


class Answer(msgspec.Struct, frozen=True):
    """What was told. `results` has one element per action of the branch that ran, or none at all.

    `revision` is the store's after the request: the request's own when it wrote.
    """

    succeeded: bool | None = None
    results: tuple[Seen | bool | None, ...] = ()
    revision: int | None = None


UNTOLD = Answer()


class Op(msgspec.Struct, frozen=True, tag="op"):
    """One request. `ret` is when the answer came, or when the client gave up (Result.UNKNOWN).

    `local`: answered from one node's state, which may be old.
    """

    client: int
    node: int
    call: int
    ret: int
    request: Request
    result: Result = Result.OK
    answer: Answer = UNTOLD
    local: bool = False


class Row(msgspec.Struct, frozen=True):
    """One key of a listing."""

    key: str
    seen: Seen


class Listing(msgspec.Struct, frozen=True, tag="listing"):
    """All keys that begin with `prefix`, and no other, at one moment."""

    client: int
    node: int
    call: int
    ret: int
    prefix: str
    rows: tuple[Row, ...]
    local: bool = False
    revision: int | None = None


class Event(msgspec.Struct, frozen=True):
    """A change as a watcher got it; `value` is None for a delete."""

    revision: int
    key: str
    value: str | None
    kind: Literal["put", "delete"]


class Poll(msgspec.Struct, frozen=True, tag="poll"):
    """One call of `pgraft_kv_watch`. `compacted` is the first kept revision, when the error named one.

    A watcher goes on behind the last revision it got; polls that ended in another error are left out.
    """

    watcher: int
    node: int
    call: int
    ret: int
    prefix: str
    after_revision: int
    events: tuple[Event, ...] = ()
    compacted: int | None = None


class LeaseCall(msgspec.Struct, frozen=True, tag="lease"):
    """`kind` as the SQL functions are called. OK of a keep-alive: the lease lived, and has its TTL again."""

    kind: Literal["grant", "keep_alive", "revoke"]
    client: int
    node: int
    lease: int
    call: int
    ret: int
    result: Result = Result.OK
    ttl: int = 0


Item = Op | Listing | Poll | LeaseCall


class History:
    """All of a run. Appending is safe from any thread."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.listings: list[Listing] = []
        self.polls: list[Poll] = []
        self.leases: list[LeaseCall] = []

    def add(self, item: Item) -> None:
        """Keep one item."""
        match item:
            case Op():
                self.ops.append(item)
            case Listing():
                self.listings.append(item)
            case Poll():
                self.polls.append(item)
            case LeaseCall():
                self.leases.append(item)

    def save(self, path: Path) -> None:
        """One JSON object a line."""
        encode = msgspec.json.Encoder().encode
        with path.open("wb") as file:
            for item in (*self.ops, *self.listings, *self.polls, *self.leases):
                file.write(encode(item) + b"\n")

    @classmethod
    def load(cls, path: Path) -> History:
        """What `save` wrote."""
        history = cls()
        decoder = msgspec.json.Decoder(Item)
        with path.open("rb") as file:
            for line in file:
                history.add(decoder.decode(line))
        return history


def put(key: str, value: str, lease: int = 0) -> Request:
    """As `pgraft_kv_put` and `pgraft_kv_put_with_lease`."""
    return Request((Put(key, value, lease),))


def get(key: str) -> Request:
    """As `pgraft_kv_get` and `pgraft_kv_exists`."""
    return Request((Get(key),))


def delete(key: str) -> Request:
    """As `pgraft_kv_delete`."""
    return Request((Delete(key),))


def compare_and_set(key: str, expected_revision: int, value: str | None) -> Request:
    """As `pgraft_kv_compare_and_set`; its boolean is `Answer.succeeded`."""
    action = Delete(key) if value is None else Put(key, value)
    return Request((action,), (Compare(key, Target.MOD, "=", expected_revision),))


def branch_of(op: Op) -> tuple[Action, ...] | None:
    """The actions that ran; None when that is not told."""
    if op.answer.succeeded is None and op.request.compares:
        return None
    return op.request.otherwise if op.answer.succeeded is False else op.request.then


def keys_of(request: Request) -> set[str]:
    """Every key that a request may touch."""
    parts = (*request.compares, *request.then, *request.otherwise)
    return {part.key for part in parts}


def may_write(request: Request) -> bool:
    """Whether it holds anything but reads."""
    return any(not isinstance(action, Get) for action in (*request.then, *request.otherwise))
