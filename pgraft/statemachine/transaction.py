"""Transactions: compare, then one of two lists of operations. As etcd's Txn."""

from __future__ import annotations

from itertools import islice
from typing import TypeVar, assert_never

from pgraft.statemachine.commands import (
    EQUAL,
    LESS,
    NOT_EQUAL,
    TARGET_CREATE_REVISION,
    TARGET_EXISTS,
    TARGET_LEASE,
    TARGET_MOD_REVISION,
    TARGET_VALUE,
    Compare,
    DeleteOp,
    GetOp,
    ListOp,
    Operation,
    PutOp,
    Txn,
)
from pgraft.statemachine.limits import DELETES_MAX, TXN_RESPONSE_BYTES_MAX, TXN_RESPONSE_ROWS_MAX
from pgraft.statemachine.record import RECORD_HEAD_BYTES, head_of, row_of
from pgraft.statemachine.results import (
    DeleteResponse,
    GetResponse,
    ListResponse,
    PutResponse,
    Refusal,
    Response,
    Row,
    TxnDone,
)
from pgraft.statemachine.sorted_map import after_prefix
from pgraft.statemachine.store import RequestRefused, Store

_Comparable = TypeVar("_Comparable", int, bytes)


def run_txn(store: Store, txn: Txn) -> TxnDone:
    """Run it and commit. Raises RequestRefused, and the caller takes back what it did until then."""
    succeeded = all(_holds(store, compare) for compare in txn.compare)
    run = _Run(store)
    responses = tuple(map(run.operate, txn.success if succeeded else txn.failure))
    store.check_size(txn.max_bytes)
    return TxnDone(store.commit(), succeeded, responses)


class _Run:
    """The operations of one transaction, and how much room its responses have left."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows_left = TXN_RESPONSE_ROWS_MAX
        self._bytes_left = TXN_RESPONSE_BYTES_MAX

    def operate(self, operation: Operation) -> Response:
        """Run one operation."""
        match operation:
            case PutOp(key, value, lease_id):
                self._store.put(key, value, lease_id)
                return PutResponse()
            case DeleteOp(key, is_prefix):
                return DeleteResponse(self._delete_prefix(key) if is_prefix else int(self._store.delete(key)))
            case GetOp(key):
                record = self._store.keys.get(key)
                return GetResponse(None if record is None else self._row(key, record))
            case ListOp():
                return self._list(operation)
            case _:
                assert_never(operation)

    def _delete_prefix(self, prefix: bytes) -> int:
        items = self._store.keys.items(prefix, after_prefix(prefix))
        keys = [key for key, _ in islice(items, DELETES_MAX + 1)]
        self._store.count_deletes(len(keys))
        for key in keys:
            self._store.delete(key)
        return len(keys)

    def _list(self, operation: ListOp) -> ListResponse:
        prefix, most = operation.prefix, operation.max_rows
        items = self._store.keys.items(prefix, after_prefix(prefix))
        rows = tuple(self._row(key, record) for key, record in (islice(items, most) if most else items))
        return ListResponse(rows, next(items, None) is not None)

    def _row(self, key: bytes, record: bytes) -> Row:
        self._rows_left -= 1
        self._bytes_left -= len(key) + len(record) - RECORD_HEAD_BYTES
        if self._rows_left < 0 or self._bytes_left < 0:
            text = (
                f"the gets and lists of the transaction find more than {TXN_RESPONSE_ROWS_MAX} rows or "
                f"{TXN_RESPONSE_BYTES_MAX} bytes: give its lists a smaller max_rows"
            )
            raise RequestRefused(Refusal.RESPONSE_TOO_LARGE, text)
        return row_of(key, record)


def _holds(store: Store, compare: Compare) -> bool:
    """Whether a condition holds. All numbers of an absent key are 0; its value is unlike any other, so a
    condition on it never holds (etcd's applyCompare)."""
    record = store.keys.get(compare.key)
    if compare.target == TARGET_VALUE:
        return record is not None and _compare(record[RECORD_HEAD_BYTES:], compare.op, compare.value)
    if compare.target == TARGET_EXISTS:
        return _compare(int(record is not None), compare.op, compare.number)
    create, mod, version, lease = (0, 0, 0, 0) if record is None else head_of(record)
    if compare.target == TARGET_CREATE_REVISION:
        number = create
    elif compare.target == TARGET_MOD_REVISION:
        number = mod
    else:
        number = lease if compare.target == TARGET_LEASE else version
    return _compare(number, compare.op, compare.number)


def _compare(found: _Comparable, op: int, given: _Comparable) -> bool:
    if op == EQUAL:
        return found == given
    if op == NOT_EQUAL:
        return found != given
    return found < given if op == LESS else found > given
