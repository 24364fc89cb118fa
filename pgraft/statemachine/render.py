"""Results as JSON, in UTF-8: what pgraft_kv_txn and pgraft_kv_list_keys return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, assert_never

import msgspec

from pgraft.statemachine.results import (
    DeleteResponse,
    GetResponse,
    ListResponse,
    PutResponse,
    Response,
    Row,
    TxnDone,
)

_KEYS_PIECE_BYTES: Final = 32 * 1024
_encode: Final = msgspec.json.Encoder().encode


def render_txn(done: TxnDone) -> bytes:
    """{"succeeded": bool, "revision": n, "responses": [...]}, a response for each operation that was run."""
    responses = [_response(response) for response in done.responses]
    return _encode({"succeeded": done.succeeded, "revision": done.revision, "responses": responses})


def render_keys(keys: Iterable[bytes]) -> Iterator[bytes]:
    """A JSON array of all keys, in pieces."""
    piece = bytearray(b"[")
    is_first = True
    for key in keys:
        piece += (b"" if is_first else b",") + _encode(key.decode())
        is_first = False
        if len(piece) >= _KEYS_PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece) + b"]"


def _response(response: Response) -> dict[str, object]:
    match response:
        case PutResponse():
            return {"put": {}}
        case DeleteResponse(deleted):
            return {"delete": {"deleted": deleted}}
        case GetResponse(row):
            return {"get": None if row is None else _row(row)}
        case ListResponse(rows, more):
            return {"list": {"rows": [_row(row) for row in rows], "more": more}}
        case _:
            assert_never(response)


def _row(row: Row) -> dict[str, object]:
    return {
        "key": row.key.decode(),
        "value": row.value.decode(),
        "create_revision": row.create_revision,
        "mod_revision": row.mod_revision,
        "version": row.version,
        "lease_id": row.lease_id,
    }
