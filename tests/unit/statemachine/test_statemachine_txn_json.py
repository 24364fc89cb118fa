"""The JSON document of a transaction, its errors with their paths, and its result as JSON."""

from __future__ import annotations

import json

import pytest

from pgraft.statemachine import commands as c
from pgraft.statemachine import results as r
from pgraft.statemachine.codec import encode_command
from pgraft.statemachine.errors import TxnDocumentError
from pgraft.statemachine.key_value import KeyValueMachine
from pgraft.statemachine.render import render_keys, render_txn
from pgraft.statemachine.txn_parse import DOCUMENT_BYTES_MAX, parse_txn

ROOM = 10**6


def parse(document: object) -> c.Txn:
    return parse_txn(json.dumps(document).encode(), ROOM)


def test_everything_that_a_document_can_hold() -> None:
    txn = parse(
        {
            "compare": [
                {"key": "a", "target": "mod_revision", "op": "=", "value": 5},
                {"key": "b", "target": "version", "op": "!=", "value": 0},
                {"key": "c", "target": "create_revision", "op": "<", "value": 2**63 - 1},
                {"key": "d", "target": "value", "op": ">", "value": "ü"},
                {"key": "e", "target": "lease", "value": 9},
                {"key": "f", "target": "exists"},
                {"key": "g", "target": "exists", "op": "=", "value": False},
            ],
            "success": [
                {"put": {"key": "k", "value": "v"}},
                {"put": {"key": "l", "value": "w", "lease": 3}},
                {"delete": {"key": "x"}},
                {"delete": {"prefix": "y/"}},
                {"get": {"key": "k"}},
                {"list": {"prefix": ""}},
                {"list": {"prefix": "日", "max_rows": 2}},
            ],
            "failure": [{"get": {"key": "k"}}],
        }
    )
    assert txn == c.Txn(
        (
            c.Compare(b"a", c.TARGET_MOD_REVISION, c.EQUAL, 5),
            c.Compare(b"b", c.TARGET_VERSION, c.NOT_EQUAL, 0),
            c.Compare(b"c", c.TARGET_CREATE_REVISION, c.LESS, 2**63 - 1),
            c.Compare(b"d", c.TARGET_VALUE, c.GREATER, 0, "ü".encode()),
            c.Compare(b"e", c.TARGET_LEASE, c.EQUAL, 9),
            c.Compare(b"f", c.TARGET_EXISTS, c.EQUAL, 1),
            c.Compare(b"g", c.TARGET_EXISTS, c.EQUAL, 0),
        ),
        (
            c.PutOp(b"k", b"v"),
            c.PutOp(b"l", b"w", 3),
            c.DeleteOp(b"x"),
            c.DeleteOp(b"y/", True),
            c.GetOp(b"k"),
            c.ListOp(b""),
            c.ListOp("日".encode(), 2),
        ),
        (c.GetOp(b"k"),),
        ROOM,
    )
    assert parse({}) == c.Txn((), (), (), ROOM)


PUT = {"key": "k", "value": "v"}
INTEGER = f"it must be an integer from 0 to {2**63 - 1}"
TARGETS = "it must be one of version create_revision mod_revision lease value exists"


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([], "the document: [], it must be an object with compare, success, failure"),
        ({"sucess": []}, "the document: there is no field 'sucess', only compare, success, failure"),
        ({"success": {}}, "success: {}, it must be an array"),
        ({"success": [5]}, "success[0]: 5, it must be an object with put, delete, get, list"),
        ({"success": [{}]}, "success[0]: it must have exactly one of put, delete, get, list"),
        (
            {"success": [{"put": PUT, "get": {"key": "k"}}]},
            "success[0]: it must have exactly one of put, delete, get, list",
        ),
        ({"success": [{"txn": {}}]}, "success[0]: there is no field 'txn', only put, delete, get, list"),
        ({"success": [{"put": "k"}]}, 'success[0].put: "k", it must be an object with key, value, lease'),
        ({"failure": [{"put": {"key": "k"}}]}, "failure[0].put.value: it is missing"),
        (
            {"success": [{"put": PUT}, {"put": {"key": 5, "value": ""}}]},
            "success[1].put.key: 5, it must be a string",
        ),
        ({"success": [{"put": {**PUT, "key": ""}}]}, "success[0].put.key: a key must not be empty"),
        (
            {"success": [{"put": {**PUT, "lease": True}}]},
            f"success[0].put.lease: true, {INTEGER}",
        ),
        (
            {"success": [{"put": {**PUT, "lease": "x" * 50}}]},
            f'success[0].put.lease: "{"x" * 36}..., {INTEGER}',
        ),
        (
            {"success": [{"put": {**PUT, "ttl": 5}}]},
            "success[0].put: there is no field 'ttl', only key, value, lease",
        ),
        ({"success": [{"delete": {}}]}, "success[0].delete: it must have either key or prefix"),
        (
            {"success": [{"delete": {"key": "a", "prefix": "b"}}]},
            "success[0].delete: it must have either key or prefix",
        ),
        ({"success": [{"get": {"key": None}}]}, "success[0].get.key: null, it must be a string"),
        ({"success": [{"list": {}}]}, "success[0].list.prefix: it is missing"),
        (
            {"success": [{"list": {"prefix": "", "max_rows": 0}}]},
            "success[0].list.max_rows: 0, it must be at least 1",
        ),
        (
            {"success": [{"list": {"prefix": "", "max_rows": 1.5}}]},
            f"success[0].list.max_rows: 1.5, {INTEGER}",
        ),
        (
            {"success": [{"put": PUT}, {"delete": {"prefix": "k"}}]},
            "success[1].delete: success[0] puts a key that this deletes",
        ),
        ({"compare": [{}]}, "compare[0].key: it is missing"),
        (
            {"compare": [{"key": "k", "target": "age", "value": 1}]},
            f'compare[0].target: "age", {TARGETS}',
        ),
        (
            {"compare": [{"key": "k", "target": "lease", "op": "==", "value": 1}]},
            'compare[0].op: "==", it must be one of = != < >',
        ),
        ({"compare": [{"key": "k", "target": 5, "value": 1}]}, f"compare[0].target: 5, {TARGETS}"),
        (
            {"compare": [{"key": "k", "target": "value", "value": 1}]},
            "compare[0].value: 1, it must be a string",
        ),
        ({"compare": [{"key": "k", "target": "version"}]}, "compare[0].value: it is missing"),
        (
            {"compare": [{"key": "k", "target": "version", "value": -1}]},
            f"compare[0].value: -1, {INTEGER}",
        ),
        (
            {"compare": [{"key": "k", "target": "exists", "value": 1}]},
            "compare[0].value: 1, it must be true or false",
        ),
        (
            {"compare": [{"key": "k", "target": "exists", "op": ">", "value": True}]},
            "compare[0]: op: whether a key exists can be compared by = and != with true and false only",
        ),
    ],
)
def test_errors_name_the_path(document: object, text: str) -> None:
    with pytest.raises(TxnDocumentError) as caught:
        parse(document)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b"{", "the document is no JSON: "),
        (b"[" * 100_000, "the document is no JSON: "),
        (b'{"success": [{"get": {"key": "\\ud800"}}]}', "the document is no JSON: "),
        (b'{"success": [{"get": {"key": "\xff"}}]}', "the document is no JSON: "),
        (b" " * (DOCUMENT_BYTES_MAX + 1), f"the document has {DOCUMENT_BYTES_MAX + 1} bytes, at most"),
    ],
)
def test_what_is_no_document_is_an_error(document: bytes, text: str) -> None:
    with pytest.raises(TxnDocumentError) as caught:
        parse_txn(document, ROOM)
    assert str(caught.value).startswith(text)


def test_the_result_as_json() -> None:
    machine = KeyValueMachine()
    txn = parse(
        {
            "compare": [{"key": "k", "target": "exists", "value": False}],
            "success": [
                {"put": {"key": "k", "value": 'ü"\n'}},
                {"get": {"key": "k"}},
                {"get": {"key": "none"}},
                {"list": {"prefix": "", "max_rows": 1}},
                {"delete": {"prefix": "z"}},
            ],
        }
    )
    result = machine.apply(1, encode_command(txn))
    assert isinstance(result, r.TxnDone)
    row = {
        "key": "k", "value": 'ü"\n', "create_revision": 1, "mod_revision": 1, "version": 1, "lease_id": 0,
    }  # fmt: skip
    assert json.loads(render_txn(result)) == {
        "succeeded": True,
        "revision": 1,
        "responses": [
            {"put": {}},
            {"get": row},
            {"get": None},
            {"list": {"rows": [row], "more": False}},
            {"delete": {"deleted": 0}},
        ],
    }


@pytest.mark.parametrize("count", [0, 1, 2, 20_000])
def test_keys_as_json_come_in_pieces(count: int) -> None:
    keys = [f'{number}"ü'.encode() for number in range(count)]
    pieces = list(render_keys(keys))
    assert json.loads(b"".join(pieces)) == [key.decode() for key in keys]
    assert max(map(len, pieces)) <= 64 * 1024
    assert (len(pieces) > 1) == (count > 1000)
