"""What is wrong with a command by itself, whatever the store holds.

A proposer asks before it proposes, so that its session gets a clear error and nothing is written. The
machine asks again when it applies the entry, with the same answer on every node, since entries come from
other nodes, too.
"""

from __future__ import annotations

from typing import assert_never

from pgraft.statemachine.commands import (
    EQUAL,
    GREATER,
    NOT_EQUAL,
    TARGET_EXISTS,
    TARGET_VALUE,
    Command,
    CompactHistory,
    Compare,
    CompareAndSet,
    Delete,
    DeleteOp,
    GetOp,
    LeaseExpire,
    LeaseGrant,
    LeaseRevoke,
    ListOp,
    Operation,
    Put,
    PutOp,
    Reset,
    Txn,
)
from pgraft.statemachine.limits import (
    INT64_MAX,
    KEY_BYTES_MAX,
    LEASE_TTL_MS_MAX,
    LEASE_TTL_MS_MIN,
    TXN_OPERATIONS_MAX,
    TXN_TEXT_BYTES_MAX,
    VALUE_BYTES_MAX,
)


def validate(command: Command) -> str:
    """Why no store can run this command, one clear line; empty when there is nothing wrong with it."""
    match command:
        case Put(key, value, max_bytes, lease_id):
            return (
                wrong_key(key)
                or wrong_value(value)
                or _wrong_lease(lease_id, 0)
                or _wrong_number(max_bytes, "max_bytes")
            )
        case Delete(key):
            return wrong_key(key)
        case CompareAndSet():
            return _wrong_compare_and_set(command)
        case Txn():
            return _wrong_txn(command)
        case LeaseGrant(lease_id, ttl_ms):
            return _wrong_lease(lease_id, 1) or _wrong_ttl(ttl_ms)
        case LeaseRevoke(lease_id) | LeaseExpire(lease_id):
            return _wrong_lease(lease_id, 1)
        case CompactHistory() | Reset():
            return ""
        case _:
            assert_never(command)


def wrong_key(key: bytes) -> str:
    """Why this is no key, empty when it is one."""
    return wrong_text(key, "key", KEY_BYTES_MAX) if key else "a key must not be empty"


def wrong_value(value: bytes) -> str:
    """Why this is no value, empty when it is one."""
    return wrong_text(value, "value", VALUE_BYTES_MAX)


def wrong_prefix(prefix: bytes) -> str:
    """Why no key can have this prefix, empty when one can. The empty one is every key's."""
    return wrong_text(prefix, "prefix", KEY_BYTES_MAX)


def wrong_text(text: bytes, what: str, bytes_max: int) -> str:
    """Why no SQL session could read this back as text of that size, empty when it could."""
    if len(text) > bytes_max:
        return f"the {what} has {len(text)} bytes of UTF-8, at most {bytes_max} are possible"
    if b"\0" in text:
        return f"the {what} contains a zero byte, which no text in PostgreSQL can"
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return f"the {what} is not valid UTF-8"
    return ""


def _wrong_number(number: int, what: str) -> str:
    return "" if 0 <= number <= INT64_MAX else f"{what} is {number}, it must be 0 to {INT64_MAX}"


def _wrong_lease(lease_id: int, least: int) -> str:
    in_range = least <= lease_id <= INT64_MAX
    return "" if in_range else f"the lease id is {lease_id}, it must be {least} to {INT64_MAX}"


def _wrong_ttl(ttl_ms: int) -> str:
    if LEASE_TTL_MS_MIN <= ttl_ms <= LEASE_TTL_MS_MAX:
        return ""
    return f"the lease's time to live is {ttl_ms} ms, it must be 1 s to 10 years ({LEASE_TTL_MS_MAX} ms)"


def _wrong_compare_and_set(command: CompareAndSet) -> str:
    return (
        wrong_key(command.key)
        or ("" if command.value is None else wrong_value(command.value))
        or _wrong_number(command.expected_revision, "the expected revision")
        or _wrong_number(command.max_bytes, "max_bytes")
    )


def _wrong_txn(txn: Txn) -> str:
    size = 0
    for number, compare in enumerate(txn.compare):
        wrong = _wrong_compare(compare)
        if wrong:
            return f"compare[{number}]: {wrong}"
        size += len(compare.key) + len(compare.value)
    for name, operations in (("success", txn.success), ("failure", txn.failure)):
        wrong = _wrong_operations(name, operations)
        if wrong:
            return wrong
        size += sum(map(_text_bytes, operations))
    if len(txn.compare) > TXN_OPERATIONS_MAX:
        return f"compare: {len(txn.compare)} conditions, at most {TXN_OPERATIONS_MAX} are possible"
    if size > TXN_TEXT_BYTES_MAX:
        return (
            f"keys and values have {size} bytes of UTF-8 together, at most {TXN_TEXT_BYTES_MAX} are possible"
        )
    return _wrong_number(txn.max_bytes, "max_bytes")


def _wrong_compare(compare: Compare) -> str:
    wrong = wrong_key(compare.key)
    if wrong:
        return f"key: {wrong}"
    if not 0 <= compare.target <= TARGET_EXISTS or not EQUAL <= compare.op <= GREATER:
        return f"target {compare.target} with op {compare.op} is none that there is"
    if compare.target == TARGET_EXISTS:
        possible = compare.op in (EQUAL, NOT_EQUAL) and compare.number in (0, 1)
        return (
            ""
            if possible
            else "op: whether a key exists can be compared by = and != with true and false only"
        )
    wrong = wrong_value(compare.value) if compare.target == TARGET_VALUE else ""
    return wrong or _wrong_number(compare.number, "value")


def _wrong_operations(name: str, operations: tuple[Operation, ...]) -> str:
    if len(operations) > TXN_OPERATIONS_MAX:
        return f"{name}: {len(operations)} operations, at most {TXN_OPERATIONS_MAX} are possible"
    for number, operation in enumerate(operations):
        wrong = _wrong_operation(operation)
        if wrong:
            return f"{name}[{number}].{wrong}"
    return _overlap(name, operations)


def _wrong_operation(operation: Operation) -> str:
    match operation:
        case PutOp(key, value, lease_id):
            return (
                _at("put.key", wrong_key(key))
                or _at("put.value", wrong_value(value))
                or _at("put.lease", _wrong_lease(lease_id, 0))
            )
        case DeleteOp(key, is_prefix):
            return _at("delete.prefix", wrong_prefix(key)) if is_prefix else _at("delete.key", wrong_key(key))
        case GetOp(key):
            return _at("get.key", wrong_key(key))
        case ListOp(prefix, max_rows):
            return _at("list.prefix", wrong_prefix(prefix)) or _at(
                "list.max_rows", _wrong_number(max_rows, "max_rows")
            )
        case _:
            assert_never(operation)


def _at(path: str, wrong: str) -> str:
    return f"{path}: {wrong}" if wrong else ""


def _overlap(name: str, operations: tuple[Operation, ...]) -> str:
    """A key may change once in a revision, so no key may be put twice, or put and deleted (as in etcd)."""
    puts: dict[bytes, int] = {}
    for number, operation in enumerate(operations):
        if isinstance(operation, PutOp):
            if operation.key in puts:
                return f"{name}[{number}].put.key: {name}[{puts[operation.key]}] puts the same key"
            puts[operation.key] = number
    for number, operation in enumerate(operations):
        if isinstance(operation, DeleteOp):
            hit = next((key for key in puts if _deletes(operation, key)), None)
            if hit is not None:
                return f"{name}[{number}].delete: {name}[{puts[hit]}] puts a key that this deletes"
    return ""


def _deletes(operation: DeleteOp, key: bytes) -> bool:
    return key.startswith(operation.key) if operation.is_prefix else key == operation.key


def _text_bytes(operation: Operation) -> int:
    match operation:
        case PutOp(key, value):
            return len(key) + len(value)
        case DeleteOp(key) | GetOp(key) | ListOp(key):
            return len(key)
        case _:
            assert_never(operation)
