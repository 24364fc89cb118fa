"""The JSON document of pgraft_kv_txn as a command. README.md describes the document."""

from __future__ import annotations

from typing import Final

import msgspec

from pgraft.statemachine.codec import UNREADABLE
from pgraft.statemachine.commands import (
    EQUAL,
    GREATER,
    LESS,
    NOT_EQUAL,
    TARGET_CREATE_REVISION,
    TARGET_EXISTS,
    TARGET_LEASE,
    TARGET_MOD_REVISION,
    TARGET_VALUE,
    TARGET_VERSION,
    Compare,
    DeleteOp,
    GetOp,
    ListOp,
    Operation,
    PutOp,
    Txn,
)
from pgraft.statemachine.errors import TxnDocumentError
from pgraft.statemachine.limits import INT64_MAX
from pgraft.statemachine.validation import validate

DOCUMENT_BYTES_MAX: Final = 8 * 1024 * 1024
"""A value of 1 MiB may take six times as much when every character of it is escaped."""
_TARGETS: Final = {
    "version": TARGET_VERSION,
    "create_revision": TARGET_CREATE_REVISION,
    "mod_revision": TARGET_MOD_REVISION,
    "lease": TARGET_LEASE,
    "value": TARGET_VALUE,
    "exists": TARGET_EXISTS,
}
_OPS: Final = {"=": EQUAL, "!=": NOT_EQUAL, "<": LESS, ">": GREATER}
_KINDS: Final = ("put", "delete", "get", "list")


def parse_txn(document: bytes, max_bytes: int) -> Txn:
    """The command for a document in UTF-8; `max_bytes` is the proposer's pgraft.kv_max_bytes.

    Raises TxnDocumentError, whose text begins with the path of what is wrong. What comes back is valid.
    """
    if len(document) > DOCUMENT_BYTES_MAX:
        raise TxnDocumentError(
            f"the document has {len(document)} bytes, at most {DOCUMENT_BYTES_MAX} are possible"
        )
    try:
        found = msgspec.json.decode(document)
    except UNREADABLE as error:
        raise TxnDocumentError(f"the document is no JSON: {error}") from error
    fields = _object(found, "the document", ("compare", "success", "failure"))
    txn = Txn(
        tuple(_compare(item, f"compare[{n}]") for n, item in enumerate(_list(fields, "compare"))),
        tuple(_operation(item, f"success[{n}]") for n, item in enumerate(_list(fields, "success"))),
        tuple(_operation(item, f"failure[{n}]") for n, item in enumerate(_list(fields, "failure"))),
        max_bytes,
    )
    wrong = validate(txn)
    if wrong:
        raise TxnDocumentError(wrong)
    return txn


def _compare(found: object, path: str) -> Compare:
    fields = _object(found, path, ("key", "target", "op", "value"))
    key = _text(fields, "key", path)
    target = _choice(fields, "target", path, _TARGETS)
    op = _choice(fields, "op", path, _OPS) if "op" in fields else EQUAL
    if target == TARGET_VALUE:
        return Compare(key, target, op, 0, _text(fields, "value", path))
    if target == TARGET_EXISTS:
        value = fields.get("value", True)
        if not isinstance(value, bool):
            raise TxnDocumentError(f"{path}.value: {_said(value)}, it must be true or false")
        return Compare(key, target, op, int(value))
    return Compare(key, target, op, _number(fields, "value", path))


def _operation(found: object, path: str) -> Operation:
    fields = _object(found, path, _KINDS)
    if len(fields) != 1:
        raise TxnDocumentError(f"{path}: it must have exactly one of {', '.join(_KINDS)}")
    ((kind, body),) = fields.items()
    path = f"{path}.{kind}"
    if kind == "put":
        put = _object(body, path, ("key", "value", "lease"))
        lease = _number(put, "lease", path) if "lease" in put else 0
        return PutOp(_text(put, "key", path), _text(put, "value", path), lease)
    if kind == "delete":
        return _delete(_object(body, path, ("key", "prefix")), path)
    if kind == "get":
        return GetOp(_text(_object(body, path, ("key",)), "key", path))
    listed = _object(body, path, ("prefix", "max_rows"))
    return ListOp(_text(listed, "prefix", path), _max_rows(listed, path))


def _delete(fields: dict[str, object], path: str) -> DeleteOp:
    if ("key" in fields) == ("prefix" in fields):
        raise TxnDocumentError(f"{path}: it must have either key or prefix")
    name = "key" if "key" in fields else "prefix"
    return DeleteOp(_text(fields, name, path), name == "prefix")


def _max_rows(fields: dict[str, object], path: str) -> int:
    if "max_rows" not in fields:
        return 0
    number = _number(fields, "max_rows", path)
    if number == 0:
        raise TxnDocumentError(f"{path}.max_rows: 0, it must be at least 1")
    return number


def _object(found: object, path: str, known: tuple[str, ...]) -> dict[str, object]:
    if not isinstance(found, dict):
        raise TxnDocumentError(f"{path}: {_said(found)}, it must be an object with {', '.join(known)}")
    for name in found:
        if name not in known:
            raise TxnDocumentError(f"{path}: there is no field {name!r}, only {', '.join(known)}")
    return found


def _list(fields: dict[str, object], name: str) -> list[object]:
    found = fields.get(name, [])
    if not isinstance(found, list):
        raise TxnDocumentError(f"{name}: {_said(found)}, it must be an array")
    return found


def _present(fields: dict[str, object], name: str, path: str) -> object:
    if name not in fields:
        raise TxnDocumentError(f"{path}.{name}: it is missing")
    return fields[name]


def _text(fields: dict[str, object], name: str, path: str) -> bytes:
    found = _present(fields, name, path)
    if not isinstance(found, str):
        raise TxnDocumentError(f"{path}.{name}: {_said(found)}, it must be a string")
    return found.encode()


def _number(fields: dict[str, object], name: str, path: str) -> int:
    found = _present(fields, name, path)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= INT64_MAX:
        raise TxnDocumentError(f"{path}.{name}: {_said(found)}, it must be an integer from 0 to {INT64_MAX}")
    return found


def _choice(fields: dict[str, object], name: str, path: str, choices: dict[str, int]) -> int:
    found = _present(fields, name, path)
    if not isinstance(found, str) or found not in choices:
        raise TxnDocumentError(f"{path}.{name}: {_said(found)}, it must be one of {' '.join(choices)}")
    return choices[found]


def _said(found: object) -> str:
    """What stands in the document, short enough for an error."""
    text = msgspec.json.encode(found).decode()
    return text if len(text) <= 40 else text[:37] + "..."
