"""Who is let in: every reason to refuse, on both sides, and malformed words."""

from __future__ import annotations

import random

import msgspec
import pytest

from pgraft.transport import handshake
from pgraft.transport.framing import PROTOCOL_VERSION, RemoteViolation, ViolationKind
from pgraft.transport.handshake import Hello, Local, Refused, Remembered, Welcome
from pgraft.transport.records import NetIdentity, Refusal, RefusalCode, WorkerStart

LIST = "node1=a:1,node2=b:2"


def local(node_id: int = 1, **changes: object) -> Local:
    fields: dict[str, object] = {
        "cluster_id": "c",
        "node_id": node_id,
        "member_id": 100 + node_id,
        "initial_members": LIST,
        "initial_state": "new",
        "formed": False,
        "election_timeout_ms": 1000,
    }
    identity = NetIdentity(**(fields | changes))  # type: ignore[arg-type]
    return Local(identity=identity, instance_id=9000 + node_id, address="a", port=1)


def hello_from(two: Local, **changes: object) -> Hello:
    return msgspec.structs.replace(two.hello(1), **changes)


def judge(hello: Hello, one: Local | None = None, remembered: Remembered | None = None) -> RefusalCode | None:
    refusal = handshake.judge_hello(hello, one or local(), remembered or Remembered())
    return RefusalCode(refusal.code) if refusal else None


def test_a_peer_that_fits_is_let_in() -> None:
    assert judge(hello_from(local(2))) is None
    assert judge(hello_from(local(2)), remembered=Remembered(102)) is None


def test_an_unknown_node_of_this_cluster_is_let_in() -> None:
    assert judge(hello_from(local(77, initial_state="existing"))) is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cluster_id": "other"}, RefusalCode.OTHER_CLUSTER),
        (
            {"protocol_version": PROTOCOL_VERSION + 2, "min_version": PROTOCOL_VERSION + 1},
            RefusalCode.PROTOCOL_VERSION,
        ),
        ({"protocol_version": PROTOCOL_VERSION + 2}, RefusalCode.PROTOCOL_VERSION),
        ({"expected_receiver": 3}, RefusalCode.WRONG_RECEIVER),
        ({"node_id": 1}, RefusalCode.SELF),
        ({"initial_members": "node1=a:1"}, RefusalCode.INITIAL_CLUSTER_DIFFERS),
    ],
)
def test_refusals_of_a_hello(changes: dict[str, object], code: RefusalCode) -> None:
    assert judge(hello_from(local(2), **changes)) is code


def test_next_version_that_still_speaks_ours_is_let_in() -> None:
    hello = hello_from(local(2), protocol_version=PROTOCOL_VERSION + 1, min_version=PROTOCOL_VERSION)
    assert judge(hello) is None
    assert handshake.agreed_version(hello) == PROTOCOL_VERSION


def test_known_node_with_another_member_id() -> None:
    refusal = handshake.judge_hello(hello_from(local(2)), local(), Remembered(55))
    assert refusal is not None
    assert refusal.code == RefusalCode.MEMBER_ID_CHANGED
    assert "pgraft_remove_node(2)" in refusal.hint
    assert "new node id" in refusal.hint


SHORTER = Refusal(RefusalCode.SHORTER_LOG, "less than it had")


@pytest.mark.parametrize(
    ("incarnation", "remembered", "code"),
    [
        (1, Remembered(102), None),
        (2, Remembered(102, incarnation=2), None),
        (3, Remembered(102, incarnation=2), None),
        (1, Remembered(102, incarnation=2), RefusalCode.SUPERSEDED),
        (2 + 1024, Remembered(102, incarnation=2), None),
        (3 + 1024, Remembered(102, incarnation=2), RefusalCode.INCARNATION_JUMP),
        (1026, Remembered(), RefusalCode.INCARNATION_JUMP),
        (9, Remembered(55, incarnation=2), RefusalCode.MEMBER_ID_CHANGED),
        (1, Remembered(102, refused_start=7, refusal=SHORTER), None),
        (1, Remembered(102, refused_start=5, refusal=SHORTER), RefusalCode.SHORTER_LOG),
        (2, Remembered(102, incarnation=3, refused_start=5, refusal=SHORTER), RefusalCode.SUPERSEDED),
    ],
)
def test_older_states_of_a_member(incarnation: int, remembered: Remembered, code: RefusalCode | None) -> None:
    two = local(2, incarnation=incarnation, start=WorkerStart(5, 1, 1))
    assert judge(hello_from(two), remembered=remembered) is code
    refusal = handshake.judge_welcome(two.welcome(PROTOCOL_VERSION), local(), 2, remembered)
    assert (RefusalCode(refusal.code) if refusal else None) is code


def test_the_release_before_tells_no_incarnation() -> None:
    fields = msgspec.to_builtins(hello_from(local(2)))
    for name in ("incarnation", "start"):
        del fields[name]
    hello = handshake.decode_hello(memoryview(msgspec.msgpack.encode(fields)))
    assert (hello.incarnation, hello.start) == (1, WorkerStart())
    assert judge(hello, remembered=Remembered(102)) is None
    assert judge(hello, remembered=Remembered(102, incarnation=2)) is RefusalCode.SUPERSEDED


def test_removed_node() -> None:
    assert judge(hello_from(local(2)), remembered=Remembered(102, removed=True)) is RefusalCode.REMOVED


def test_address_that_leads_back() -> None:
    one = local()
    refusal = handshake.judge_hello(one.hello(2), one, Remembered())
    assert refusal is not None
    assert refusal.code == RefusalCode.SELF
    assert "leads back" in refusal.text


@pytest.mark.parametrize(
    ("ours", "theirs", "refused"),
    [
        ({"formed": False}, {"formed": False}, True),
        ({"formed": True}, {"formed": False}, True),
        ({"formed": False}, {"formed": True}, True),
        ({"formed": True}, {"formed": True}, False),
        ({"initial_state": "existing"}, {}, False),
        ({}, {"initial_state": "existing"}, False),
    ],
)
def test_initial_lists_count_until_both_have_formed(
    ours: dict[str, object], theirs: dict[str, object], refused: bool
) -> None:
    hello = hello_from(local(2, initial_members="node1=x:1", **theirs))
    expected = RefusalCode.INITIAL_CLUSTER_DIFFERS if refused else None
    assert judge(hello, local(**ours)) is expected


def test_the_text_shows_both_lists() -> None:
    refusal = handshake.judge_hello(hello_from(local(2, initial_members="node1=x:1")), local(), Remembered())
    assert refusal is not None
    assert LIST in refusal.text
    assert "node1=x:1" in refusal.text


def welcome_from(two: Local, **changes: object) -> Welcome:
    return msgspec.structs.replace(two.welcome(PROTOCOL_VERSION), **changes)


@pytest.mark.parametrize(
    ("changes", "remembered", "code"),
    [
        ({}, Remembered(), None),
        ({}, Remembered(102), None),
        ({"node_id": 3}, Remembered(), RefusalCode.WRONG_RECEIVER),
        ({"cluster_id": "other"}, Remembered(), RefusalCode.OTHER_CLUSTER),
        ({}, Remembered(55), RefusalCode.MEMBER_ID_CHANGED),
        ({"protocol_version": PROTOCOL_VERSION + 1}, Remembered(), RefusalCode.PROTOCOL_VERSION),
        ({}, Remembered(102, removed=True), RefusalCode.REMOVED),
    ],
)
def test_the_connecting_side_judges_the_welcome(
    changes: dict[str, object], remembered: Remembered, code: RefusalCode | None
) -> None:
    refusal = handshake.judge_welcome(welcome_from(local(2), **changes), local(), 2, remembered)
    assert (RefusalCode(refusal.code) if refusal else None) is code


# --- malformed -----------------------------------------------------------------------------------------


def test_words_come_back_as_they_were() -> None:
    hello = hello_from(local(2))
    assert handshake.decode_hello(memoryview(handshake.encode(hello))) == hello
    welcome = welcome_from(local(2))
    assert handshake.decode_welcome(memoryview(handshake.encode(welcome))) == welcome
    refused = Refused(code=250, text="a later version's reason", node_id=3)
    assert handshake.decode_refused(memoryview(handshake.encode(refused))) == refused


@pytest.mark.parametrize(
    "changes",
    [
        {"node_id": 0},
        {"address": ""},
        {"address": "a\0b"},
        {"address": "two words"},
        {"address": "h" * 257},
        {"node_id": 2**31},
        {"node_id": -1},
        {"member_id": 0},
        {"instance_id": 0},
        {"expected_receiver": 0},
        {"port": 0},
        {"port": 65536},
        {"min_version": 0},
        {"min_version": 9},
        {"cluster_id": 5},
        {"formed": "yes"},
        {"incarnation": 0},
        {"incarnation": 2**32 + 1},
        {"start": [1, 2**62 + 1, 1]},
        {"start": [1, 1, -1]},
    ],
)
def test_fields_out_of_range(changes: dict[str, object]) -> None:
    fields = msgspec.to_builtins(hello_from(local(2))) | changes
    with pytest.raises(RemoteViolation) as caught:
        handshake.decode_hello(memoryview(msgspec.msgpack.encode(fields)))
    assert caught.value.kind is ViolationKind.HANDSHAKE


def test_fields_of_a_later_version_are_ignored() -> None:
    fields = msgspec.to_builtins(hello_from(local(2))) | {"colour": "blue"}
    assert handshake.decode_hello(memoryview(msgspec.msgpack.encode(fields))) == hello_from(local(2))


def test_hostile_payloads_are_violations_and_nothing_else() -> None:
    chance = random.Random(3)
    good = handshake.encode(hello_from(local(2)))
    payloads = [b"", b"\x91" * 50_000, b"\xdf\xff\xff\xff\xff", b"\x81\xa4\xff\xff\xff\xff\x01"]
    for _ in range(3000):
        damaged = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        payloads.append(bytes(damaged[: chance.randrange(len(damaged) + 1)]))
    for payload in payloads:
        for decode in (handshake.decode_hello, handshake.decode_welcome, handshake.decode_refused):
            try:
                decode(memoryview(payload))
            except RemoteViolation:
                continue


def test_a_peers_text_cannot_write_into_our_log() -> None:
    assert handshake.printable("a\nFATAL:\x1b[31m b") == "a?FATAL:?[31m b"
    assert len(handshake.printable("x" * 10_000)) < 3_000
