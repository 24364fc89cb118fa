"""The small parts of a node: membership, board, outbox, envelopes."""

from __future__ import annotations

import random

import msgspec
import pytest

from pgraft.node.answers import voters_text
from pgraft.node.board import HEARD_MAX, Board, Match
from pgraft.node.envelope import (
    ENVELOPE_ENTRY_BYTES_MAX,
    BadEnvelope,
    Call,
    Envelope,
    NodeStatus,
    Reply,
    decode,
    encode,
)
from pgraft.node.membership import (
    REMOVED_IDS_MAX,
    ChangeContext,
    Membership,
    MembershipError,
    MembershipLog,
    Node,
    admitting,
    conf_state_after,
    decode_context,
    encode_context,
    from_snapshot,
)
from pgraft.node.outbox import COMMIT_LAG_MS, Outbox
from pgraft.raft.types import (
    ConfChange,
    ConfChangeType,
    ConfState,
    Entry,
    Message,
    MessageType,
    Snapshot,
)
from pgraft.shm.layout import Role
from pgraft.transport.limits import FRAME_BYTES_MAX
from tests.support.node_sim import MS

ADD, REMOVE = ConfChangeType.ConfChangeAddNode, ConfChangeType.ConfChangeRemoveNode
LEARN, UPDATE = ConfChangeType.ConfChangeAddLearnerNode, ConfChangeType.ConfChangeUpdateNode


# --- membership ----------------------------------------------------------------------------------------


def applied(state: Membership, kind: int, node_id: int, **context: object) -> Membership:
    data = encode_context(ChangeContext(**context)) if context else b""  # type: ignore[arg-type]
    change = ConfChange(kind, node_id, data)
    return state.apply(change, conf_state_after(state.conf_state, change))


START = Membership((Node(1, "a", 1),), (), ConfState((1,)))


def test_a_member_comes_is_promoted_and_goes() -> None:
    state = applied(START, LEARN, 2, address="b", port=2)
    assert state.get(2) == Node(2, "b", 2)
    assert not state.is_voter(2)
    state = applied(state, ADD, 2, address="b", port=2)
    assert state.halves() == (frozenset((1, 2)), frozenset())
    state = applied(state, REMOVE, 2, address="")
    assert state.get(2) is None
    assert state.removed == (2,)
    state = applied(state, LEARN, 2, address="c", port=3)
    assert state.removed == ()
    assert state.get(2) == Node(2, "c", 3)


def test_one_that_is_taken_back_is_not_barred() -> None:
    state = applied(START, LEARN, 2, address="b", port=2)
    assert applied(state, REMOVE, 2, forget=True).removed == ()


def test_an_update_of_nobody_changes_nothing() -> None:
    state = applied(applied(START, LEARN, 2), REMOVE, 2)
    assert applied(state, UPDATE, 2, address="x", port=1) == state
    assert applied(START, UPDATE, 1, address="x", port=9).get(1) == Node(1, "x", 9)


def test_the_ids_of_the_removed_are_bounded_and_the_newest_stay() -> None:
    state = START
    for node_id in range(2, REMOVED_IDS_MAX + 10):
        state = applied(applied(state, LEARN, node_id), REMOVE, node_id)
    assert len(state.removed) == REMOVED_IDS_MAX
    assert state.removed[-1] == REMOVED_IDS_MAX + 9


def test_a_snapshot_carries_everything() -> None:
    grown = applied(applied(START, LEARN, 2, address="b", port=2), ADD, 3, address="c", port=3)
    state = applied(grown, REMOVE, 1)
    snapshot = state.to_snapshot(10, 3)
    assert from_snapshot(snapshot) == state
    with pytest.raises(MembershipError, match="index 10"):
        from_snapshot(Snapshot(snapshot.metadata, b"garbage"))


def test_a_snapshot_is_fit_for_a_receiver_that_came_later() -> None:
    snapshot = START.to_snapshot(10, 3)
    assert admitting(snapshot, 1) is snapshot
    wider = admitting(snapshot, 4)
    assert wider.metadata.conf_state == ConfState((1,), (4,))
    assert (wider.metadata.index, wider.metadata.term, wider.data) == (10, 3, snapshot.data)
    change = ConfChange(LEARN, 4)
    assert conf_state_after(wider.metadata.conf_state, change) == conf_state_after(ConfState((1,)), change)


@pytest.mark.parametrize("context", [b"", b"\xff", b"\x93\x01\x02\x03", b"\x91\xa1\xff"])
def test_a_context_that_cannot_be_read_counts_as_empty(context: bytes) -> None:
    assert decode_context(context) == ChangeContext()


def test_past_states_back_to_the_snapshot() -> None:
    log = MembershipLog(5, START)
    second = applied(START, LEARN, 2)
    third = applied(second, ADD, 2)
    log.record(8, second)
    log.record(12, third)
    assert [log.at(index) for index in (5, 7, 8, 11, 12, 99)] == [
        START,
        START,
        second,
        second,
        third,
        third,
    ]
    log.forget_before(9)
    assert log.at(9) == second
    assert log.current == third
    log.reset(20, START)
    assert log.current == log.at(20) == START


# --- board ---------------------------------------------------------------------------------------------


def three() -> Membership:
    return Membership(tuple(Node(n, "h", n) for n in (1, 2, 3)), (), ConfState((1, 2, 3)))


def board_of(node_id: int) -> Board:
    """The board of one of the three."""
    return Board(node_id, 1000, MembershipLog(1, three()))


def test_voters_that_can_be_reached() -> None:
    board = board_of(1)
    assert board.voters(three(), 0) == (1, 3, 2)
    board.hear(NodeStatus(2), 5 * MS)
    assert board.voters(three(), 1005 * MS) == (2, 3, 2)
    assert board.voters(three(), 1006 * MS) == (1, 3, 2)
    assert voters_text((1, 3, 2)) == "1 of 3 voters can be reached, 2 are needed"


def test_of_two_halves_the_one_that_lacks_more_is_named() -> None:
    board = board_of(1)
    board.hear(NodeStatus(2), 1)
    joint = Membership((), (), ConfState((1, 2), (), (1, 3, 4, 5)))
    assert board.voters(joint, 2) == (1, 4, 3)


def test_the_leaders_word_counts_where_it_is_newer() -> None:
    board = board_of(1)
    board.hear(NodeStatus(3, commit_index=5), 900 * MS)
    table = [NodeStatus(n, commit_index=9, age_ms=50) for n in (1, 2, 3, 4)]
    board.hear_table(table, leader=2, now_ns=940 * MS)
    assert board.heard_ns(1) == 0, "what it says of ourselves"
    assert board.heard_ns(2) == 0, "what it says of itself"
    assert board.heard_ns(3) == 900 * MS, "older than what we heard"
    assert board.heard_ns(4) == 0, "who is no member"
    board.hear_table(table, leader=2, now_ns=960 * MS)
    assert board.heard_ns(3) == 910 * MS


def test_rows_in_id_order_with_what_is_known() -> None:
    board = board_of(2)
    board.hear(NodeStatus(1, Role.LEADER, 7, 30, 31), 5)
    rows = board.rows(three(), NodeStatus(2, Role.FOLLOWER, 7, 29, 31), {3: Match(4, 5, True)}, 9)
    assert [row.node_id for row in rows] == [1, 2, 3]
    assert (rows[0].commit_index, rows[0].heard_boot_ns, rows[0].is_self) == (30, 5, 0)
    assert (rows[1].commit_index, rows[1].heard_boot_ns, rows[1].is_self) == (29, 9, 1)
    assert (rows[2].role, rows[2].heard_boot_ns) == (Role.UNKNOWN, 0)
    assert (rows[2].match_index, rows[2].next_index, rows[2].is_replicating) == (4, 5, 1)
    board.forget(1)
    assert board.heard_ns(1) == 0


def test_ages_in_the_table() -> None:
    board = board_of(1)
    board.hear(NodeStatus(2), 100 * MS)
    own, other = board.table(NodeStatus(1, age_ms=0), 350 * MS)
    assert (own.node_id, own.age_ms) == (1, 0)
    assert (other.node_id, other.age_ms) == (2, 250)


def test_strangers_push_no_member_off_the_board_and_stand_in_no_table() -> None:
    board = board_of(1)
    board.hear(NodeStatus(2), 1)
    for number in range(3 * HEARD_MAX):
        board.hear(NodeStatus(1000 + number), 2 + number)
    assert board.heard_ns(2) == 1
    assert board.heard_ns(1000) == 0
    assert board.heard_ns(1000 + 3 * HEARD_MAX - 1) > 0, "who speaks may be a leader not known yet"
    assert [row.node_id for row in board.table(NodeStatus(1), 999)] == [1, 2]


# --- outbox --------------------------------------------------------------------------------------------


class Desk:
    """An outbox, and what it gives."""

    def __init__(self) -> None:
        self.outbox = Outbox(1, promise_ms=990)

    def flush(self, round_ns: int = 0, *, promises: bool = True) -> list[tuple[int, Envelope]]:
        sendings = self.outbox.flush(
            NodeStatus(1, term=5), lambda: [NodeStatus(1)], round_ns=round_ns, promises=promises
        )
        assert all(len(encode(sending.envelope)) <= FRAME_BYTES_MAX for sending in sendings)
        return [(sending.to, decode(encode(sending.envelope))) for sending in sendings]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def app(to: int, *sizes: int, commit: int = 0) -> Message:
    entries = [Entry(5, index, 0, b"x" * size) for index, size in enumerate(sizes, 1)]
    return Message(type=MessageType.MsgApp, to=to, from_=1, term=5, entries=entries, commit=commit)


def beat(to: int) -> Message:
    return Message(type=MessageType.MsgHeartbeat, to=to, from_=1, term=5)


def test_one_envelope_a_peer_and_turn(desk: Desk) -> None:
    for message in (app(2, 10), beat(2), app(3, 10)):
        desk.outbox.add(message, may_wait=True, now_ns=0)
    desk.outbox.echo(3, 77, 5)
    sent = dict(desk.flush(round_ns=123))
    assert [len(envelope.messages) for envelope in sent.values()] == [2, 1]
    assert (sent[2].round, sent[2].echo, len(sent[2].table)) == (123, 0, 1)
    assert (sent[3].echo, sent[3].echo_term, sent[3].promise_ms, sent[3].table) == (77, 5, 990, [])
    assert desk.flush() == []


def test_only_messages_that_renew_a_term_ask_for_a_round(desk: Desk) -> None:
    desk.outbox.add(Message(type=MessageType.MsgVote, to=2, from_=1, term=5), may_wait=False, now_ns=0)
    ((_, envelope),) = desk.flush(round_ns=123)
    assert envelope.round == 0


def test_a_bare_commit_waits_for_company(desk: Desk) -> None:
    outbox = desk.outbox
    outbox.add(app(2, commit=7), may_wait=True, now_ns=0)
    assert desk.flush() == []
    assert outbox.held_due_ns() == COMMIT_LAG_MS * MS or outbox.held_due_ns() == 0
    outbox.add(app(2, 10, commit=8), may_wait=True, now_ns=1)
    ((_, envelope),) = desk.flush()
    assert [message.commit for message in envelope.messages] == [8]


def test_a_bare_commit_waits_no_longer_than_it_must(desk: Desk) -> None:
    outbox = desk.outbox
    outbox.add(app(2, commit=7), may_wait=True, now_ns=1000)
    outbox.release_held(COMMIT_LAG_MS * MS)
    assert desk.flush() == []
    outbox.release_held(1000 + COMMIT_LAG_MS * MS)
    ((_, envelope),) = desk.flush()
    assert [message.commit for message in envelope.messages] == [7]
    assert outbox.held_due_ns() == 0


def test_an_empty_probe_does_not_wait(desk: Desk) -> None:
    desk.outbox.add(app(2), may_wait=False, now_ns=0)
    assert len(desk.flush()) == 1


def test_a_new_role_and_a_removal_drop_what_was_held(desk: Desk) -> None:
    outbox = desk.outbox
    outbox.add(app(2, commit=7), may_wait=True, now_ns=1)
    outbox.drop_held()
    outbox.release_held(10**12)
    assert desk.flush() == []
    outbox.add(app(2, commit=7), may_wait=True, now_ns=1)
    outbox.tell_removed(2, 44)
    outbox.release_held(10**12)
    ((_, envelope),) = desk.flush()
    assert (envelope.messages, envelope.removed_index) == ([], 44)


def test_much_is_split_in_order_and_nothing_is_lost(desk: Desk) -> None:
    outbox = desk.outbox
    mebibyte = 1 << 20
    messages = [app(2, mebibyte), app(2, *[1000] * 400), app(2, 100), beat(2)]
    for message in messages:
        outbox.add(message, may_wait=False, now_ns=0)
    outbox.call(2, Call(1, 1, 1, 1000, data=b"c" * mebibyte))
    outbox.call(2, Call(1, 2, 1, 1000, data=b"d" * mebibyte))
    for number in range(3):
        outbox.reply(2, Reply(1, number, 1, payload=b"r" * 16_000))
    sent = [envelope for _, envelope in desk.flush()]
    assert len(sent) > 2
    assert [message for envelope in sent for message in envelope.messages] == messages
    assert [call.number for envelope in sent for call in envelope.calls] == [1, 2]
    assert [reply.number for envelope in sent for reply in envelope.replies] == [0, 1, 2]


def test_a_large_snapshot_counts(desk: Desk) -> None:
    snapshot = Snapshot(data=b"s" * (ENVELOPE_ENTRY_BYTES_MAX - 50_000))
    message = Message(type=MessageType.MsgSnap, to=2, from_=1, term=5, snapshot=snapshot)
    desk.outbox.add(message, may_wait=False, now_ns=0)
    desk.outbox.add(app(2, 1 << 20), may_wait=False, now_ns=0)
    assert len(desk.flush()) == 2


def test_a_round_is_answered_behind_the_write_only(desk: Desk) -> None:
    desk.outbox.echo(2, 77, 5)
    desk.outbox.call(2, Call(1, 1, 1, 1000, data=b"c"))
    ((_, early),) = desk.flush(promises=False)
    assert (early.echo, len(early.calls)) == (0, 1)
    desk.outbox.add(Message(type=MessageType.MsgHeartbeatResp, to=2, term=5), may_wait=False, now_ns=0)
    ((_, late),) = desk.flush()
    assert (late.echo, late.echo_term, late.promise_ms) == (77, 5, 990)


def test_a_hand_over_takes_a_held_commit_along(desk: Desk) -> None:
    outbox = desk.outbox
    outbox.add(app(2, commit=7), may_wait=True, now_ns=1)
    outbox.add(Message(type=MessageType.MsgTimeoutNow, to=2, from_=1, term=5), may_wait=False, now_ns=1)
    ((_, envelope),) = desk.flush()
    assert [message.type for message in envelope.messages] == [MessageType.MsgApp, MessageType.MsgTimeoutNow]


# --- envelopes -----------------------------------------------------------------------------------------


def whole_envelope() -> Envelope:
    return Envelope(
        sender=1,
        term=5,
        status=NodeStatus(1, 4, 5, 6, 7),
        messages=[app(2, 3, 4)],
        round=9,
        table=[NodeStatus(2)],
        calls=[Call(1, 2, 3, 4, data=b"x")],
        replies=[Reply(1, 2, 3, payload=b"y")],
    )


def test_an_envelope_comes_out_as_it_went_in() -> None:
    assert decode(encode(whole_envelope())) == whole_envelope()


def test_garbage_is_refused_and_nothing_else_happens() -> None:
    chance = random.Random(7)
    good = encode(whole_envelope())
    refused = 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            decode(bytes(data[: chance.randrange(1, len(data) + 1)]))
        except BadEnvelope:
            refused += 1
    assert refused > 2000
    # A message within a message within a message: 14 fields, the last of them a list.
    head = b"\x9e\x03" + b"\x00" * 5 + b"\x90\x00\x00\xc0\xc2\x00\xc4\x00"
    start = b"\x94\x01\x05" + msgspec.msgpack.encode(NodeStatus(1)) + b"\x91"
    assert len(decode(start + head + b"\x90").messages) == 1
    for data in (
        start + (head + b"\x91") * 50_000,
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"a": 1}),
        msgspec.msgpack.encode([1]),
    ):
        with pytest.raises(BadEnvelope):
            decode(data)
