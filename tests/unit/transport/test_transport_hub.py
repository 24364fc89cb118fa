"""Hubs on loopback: who is let in, who is not, what each side hears, and what stays bounded."""

from __future__ import annotations

import contextlib
import socket

import pytest

from pgraft.transport import connection, handshake, incoming, outgoing, records
from pgraft.transport.channel import prepare
from pgraft.transport.directory import PeerAddress
from pgraft.transport.framing import FrameType, encode_frame
from pgraft.transport.limits import (
    FRAME_BYTES_MAX,
    PENDING_PER_ADDRESS_MAX,
    STRANGERS_HELD_BYTES_MAX,
    UNDELIVERED_RECORDS_MAX,
    UNKNOWN_PEERS_MAX,
)
from pgraft.transport.outgoing import PeerState
from pgraft.transport.records import RecordKind, RefusalCode
from tests.support.transport_hubs import HubNode, Stranger, World, hello_of


def refused_code(stranger: Stranger) -> RefusalCode:
    payload = stranger.wait_frame(FrameType.REFUSED)
    return RefusalCode(handshake.decode_refused(memoryview(payload)).code)


def test_messages_follow_the_hello_and_keep_their_order(world: World) -> None:
    one, two = world.pair()
    sent = [b"%d" % number for number in range(3000)]
    one.hub.send(2, sent)
    world.run(lambda: len(two.got(RecordKind.MESSAGE, 1)) == len(sent))
    assert two.got(RecordKind.MESSAGE, 1) == sent
    kinds = [kind for kind, node_id, _ in two.ring.put_records if node_id == 1]
    assert kinds.index(RecordKind.PEER_HELLO) < kinds.index(RecordKind.MESSAGE)


def test_a_message_of_the_largest_size_passes(world: World) -> None:
    one, two = world.pair()
    body = bytes(2 * 1024 * 1024 - 64)
    one.hub.send(2, [body])
    world.run(lambda: two.got(RecordKind.MESSAGE, 1) == [body])


def test_not_ready_until_the_identity_came_then_at_once(world: World) -> None:
    one, two = world.node(1).identify(), world.node(2)
    one.members(one, two)
    world.run(lambda: two.counters.refused > 0 and one.hub.peers[2].state is PeerState.WAITING)
    assert one.refusals(2) == []  # a peer that starts up is nothing to report
    two.identify().members(one, two)
    world.run(lambda: one.counters.connections == 2)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cluster_id": "other"}, RefusalCode.OTHER_CLUSTER),
        ({"node_id": 3}, RefusalCode.WRONG_RECEIVER),
        ({"initial_members": "another list", "formed": False}, RefusalCode.INITIAL_CLUSTER_DIFFERS),
    ],
)
def test_both_sides_hear_of_a_refusal(
    world: World, capfd: pytest.CaptureFixture[str], changes: dict[str, object], code: RefusalCode
) -> None:
    one, two = world.node(1).identify(), world.node(2).identify(**changes)
    one.members(one, two)
    world.run(lambda: one.refusals(2) == [code])
    lines = capfd.readouterr().err
    assert "refused node 1 at 127.0.0.1" in lines
    assert f"node 2 at 127.0.0.1:{two.port} refuses this node" in lines
    assert lines.count("HINT") == 2


def test_a_welcome_that_does_not_fit_is_refused_by_the_connecting_side(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = world.node(1).identify(), world.node(2).identify(member_id=55)
    one.members(one, two.address(member_id=44))
    world.run(lambda: one.counters.refused > 0)
    world.run_for(0.1)
    lines = capfd.readouterr().err
    assert "refused node 2" in lines
    assert "node 1 at 127.0.0.1" in lines
    assert "refuses this node" in lines
    assert one.counters.connections == 0


def test_first_member_id_seen_is_the_one_until_the_worker_says_otherwise(world: World) -> None:
    one = world.node(1).identify()
    one.members(one, PeerAddress(2, "127.0.0.1", 1))
    first = world.stranger(one)
    first.hello(hello_of(2, 1))
    first.wait_frame(FrameType.WELCOME)
    first.sock.close()
    world.run(lambda: one.counters.connections == 0)
    emptied = world.stranger(one)
    emptied.hello(hello_of(2, 1, member_id=9))
    assert refused_code(emptied) is RefusalCode.MEMBER_ID_CHANGED
    one.members(one, PeerAddress(2, "127.0.0.1", 1, member_id=9))
    now_known = world.stranger(one)
    now_known.hello(hello_of(2, 1, member_id=9))
    now_known.wait_frame(FrameType.WELCOME)


def test_removed_and_added_again_with_another_member_id(world: World) -> None:
    one = world.node(1).identify()
    one.members(one, PeerAddress(2, "127.0.0.1", 1))
    first = world.stranger(one)
    first.hello(hello_of(2, 1))
    first.wait_frame(FrameType.WELCOME)
    # Input that nobody has read yet must not cost it the reason.
    first.say(FrameType.MESSAGE, b"under way")
    one.members(one, removed=(2,))
    assert refused_code(first) is RefusalCode.REMOVED
    first.wait_end()
    back = world.stranger(one)
    back.hello(hello_of(2, 1))
    assert refused_code(back) is RefusalCode.REMOVED
    one.members(one, PeerAddress(2, "127.0.0.1", 1))
    added = world.stranger(one)
    added.hello(hello_of(2, 1, member_id=9))
    added.wait_frame(FrameType.WELCOME)


def test_a_removed_node_hears_it_on_its_own_connection(world: World) -> None:
    one, two = world.pair()
    one.members(one, removed=(2,))
    world.run(lambda: RefusalCode.REMOVED in two.refusals(1))
    assert one.counters.connections == 0


def test_what_was_queued_for_a_vanished_member_still_goes_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "LINGER_MS", 60_000)  # a busy machine takes its time for 3 MB
    one, two = world.pair()
    world.freeze(two)
    for number in range(200):
        one.hub.send(2, [bytes([number]) * 100_000])
    assert one.hub.unsent_bytes > 3_000_000
    one.members(one)
    world.thaw(two)
    sent = 200 - one.counters.dropped
    world.run(lambda: len(two.got(RecordKind.MESSAGE, 1)) == sent)
    world.run(lambda: len(two.got(RecordKind.PEER_DISCONNECTED, 1)) == 0 and one.counters.connections == 1)


def test_an_unknown_node_is_heard_and_answered_on_its_own_connection(world: World) -> None:
    one, two = world.node(1).identify(), world.node(2).identify(initial_state="existing")
    two.members(one, two)
    one.members(one)
    world.run(lambda: two.counters.connections == 1)
    two.hub.send(1, [b"vote for me"])
    world.run(lambda: one.got(RecordKind.MESSAGE, 2) == [b"vote for me"])
    one.hub.send(2, [b"yes"])
    world.run(lambda: two.got(RecordKind.MESSAGE, 1) == [b"yes"])


def test_unknown_nodes_are_bounded(world: World) -> None:
    one = world.node(1).identify()
    one.members(one)
    for number in range(UNKNOWN_PEERS_MAX):
        stranger = world.stranger(one)
        stranger.hello(hello_of(100 + number, 1))
        stranger.wait_frame(FrameType.WELCOME)
    one_more = world.stranger(one)
    one_more.hello(hello_of(99, 1))
    assert refused_code(one_more) is RefusalCode.TOO_MANY


# --- duplicates -----------------------------------------------------------------------------------------


def test_a_second_live_instance_is_refused(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    one, _two = world.pair()
    copy = world.node(2).identify()
    copy.members(one, copy)
    world.run(lambda: RefusalCode.DUPLICATE in copy.refusals(1))
    assert one.counters.connections == 2
    lines = capfd.readouterr().err
    assert lines.count("One node has one pgraft.data_dir") >= 2


def test_a_silent_first_instance_gives_way_after_an_election_timeout(world: World) -> None:
    one, two = world.pair()
    world.freeze(two)
    second = world.stranger(one)
    second.hello(hello_of(2, 1))
    world.run_for(0.15)
    second.pump()
    assert second.frames == []
    second.wait_frame(FrameType.WELCOME)
    assert one.counters.connections == 1


def test_a_restarted_instance_waits_for_nothing(world: World) -> None:
    one, two = world.pair()
    port = two.port
    world.stop(two)
    again = world.node(2, port).identify().members(one)
    world.run(lambda: one.counters.connections == 2)
    assert again.refusals(1) == []


def test_only_an_answer_to_this_question_is_a_sign_of_life(world: World) -> None:
    one = world.node(1).identify()
    one.members(one, PeerAddress(2, "127.0.0.1", 1))
    first = world.stranger(one)
    first.hello(hello_of(2, 1, instance_id=1))
    first.wait_frame(FrameType.WELCOME)
    second = world.stranger(one)
    second.hello(hello_of(2, 1, instance_id=2))
    asked = first.wait_frame(FrameType.PING)
    first.say(FrameType.PONG, bytes(8))
    first.say(FrameType.MESSAGE, b"sent before it died")
    world.run(lambda: len(one.got(RecordKind.MESSAGE, 2)) == 1)
    second.pump()
    assert second.frames == []
    first.say(FrameType.PONG, asked)
    assert refused_code(second) is RefusalCode.DUPLICATE


def test_of_many_questions_at_once_the_newest_is_answered(world: World) -> None:
    one = world.node(1).identify()
    asker = world.stranger(one)
    asker.hello(hello_of(3, 1))
    asker.wait_frame(FrameType.WELCOME)
    before = one.counters.frames_out
    nonces = [b"%08d" % number for number in range(2000)]
    asker.sock.sendall(b"".join(encode_frame(FrameType.PING, nonce) for nonce in nonces))

    def answered() -> bool:
        asker.pump()
        return (int(FrameType.PONG), nonces[-1]) in asker.frames

    world.run(answered)
    assert one.counters.frames_out - before < 100


def test_a_new_connection_of_the_same_instance_replaces_the_old_one(world: World) -> None:
    one = world.node(1).identify()
    one.members(one, PeerAddress(2, "127.0.0.1", 1))
    strangers = [world.stranger(one) for _ in range(2)]
    for stranger in strangers:
        stranger.hello(hello_of(2, 1))
        stranger.wait_frame(FrameType.WELCOME)
    strangers[0].wait_end()
    assert one.counters.connections == 1


def test_a_dying_first_instance_ends_the_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = world.pair()
    monkeypatch.setattr(one.hub, "_probe_ms", 60_000.0)
    world.freeze(two)
    second = world.stranger(one)
    second.hello(hello_of(2, 1))
    world.run_for(0.05)
    world.stop(two)
    second.wait_frame(FrameType.WELCOME)


def test_the_instance_at_the_members_address_throws_a_copy_out(world: World) -> None:
    one = world.node(1).identify()
    two = world.node(2)
    one.members(one, PeerAddress(2, "127.0.0.1", 1))  # two cannot be reached
    copy = world.node(2).identify()
    copy.members(one, copy)
    world.run(lambda: one.counters.connections == 1)
    two.identify()
    one.members(one, two)
    world.run(lambda: RefusalCode.DUPLICATE in copy.refusals(1))


# --- older copies ---------------------------------------------------------------------------------------


def test_an_adopted_copy_takes_the_place_of_a_living_one(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    """On the connections that stand, in both directions; and the older one is not let in again."""
    one, two = world.pair()
    copy = world.node(2).identify(incarnation=2)
    copy.members(one, copy)
    world.run(lambda: copy.counters.connections == 1 and RefusalCode.SUPERSEDED in two.refusals(1))
    assert copy.refusals(1) == []
    hellos = [records.unpack_peer_hello(bytes(16) + body) for body in one.got(RecordKind.PEER_HELLO, 2)]
    assert [hello.incarnation for hello in hellos][-1] == 2
    kinds = [kind for kind, node_id, _ in one.ring.put_records if node_id == 2]
    assert kinds.index(RecordKind.PEER_DISCONNECTED) < len(kinds) - 1, "the older one is out first"
    two.hub.send(1, [b"of the older one"])
    copy.hub.send(1, [b"of the newer one"])
    world.run(lambda: one.got(RecordKind.MESSAGE, 2) == [b"of the newer one"])
    one.hub.send(2, [b"for the newer one"])
    world.run(lambda: copy.got(RecordKind.MESSAGE, 1) == [b"for the newer one"])
    world.run_for(0.3)
    assert two.got(RecordKind.MESSAGE, 1) == []
    assert one.counters.connections == 1
    lines = capfd.readouterr().err
    assert "this one is an older copy" in lines
    assert "Reason: superseded." in lines
    assert "refuses this node" in lines


def test_a_frozen_original_is_refused_on_every_connection_when_it_wakes(world: World) -> None:
    one, two = world.pair()
    world.freeze(two)
    copy = world.node(2).identify(incarnation=2)
    copy.members(one, copy)
    world.run(lambda: copy.counters.connections == 1)
    two.hub.send(1, [b"written before it woke"])
    world.thaw(two)
    world.run(lambda: RefusalCode.SUPERSEDED in two.refusals(1))
    assert one.got(RecordKind.MESSAGE, 2) == []


def test_the_newer_one_at_the_members_address_throws_the_older_out(world: World) -> None:
    one, two = world.node(1).identify(), world.node(2)
    one.members(one, PeerAddress(2, "127.0.0.1", 1))  # two cannot be reached
    original = world.node(2).identify()
    original.members(one, original)
    world.run(lambda: one.counters.connections == 1)
    two.identify(incarnation=2)
    one.members(one, two)
    world.run(lambda: RefusalCode.SUPERSEDED in original.refusals(1))


def test_what_the_worker_heard_of_ends_connections_too(world: World) -> None:
    one, two = world.pair()
    one.members(one, PeerAddress(2, "127.0.0.1", two.port, 0x1002, incarnation=3))
    world.run(lambda: RefusalCode.SUPERSEDED in two.refusals(1) and one.counters.connections == 0)
    again = world.stranger(one)
    again.hello(hello_of(2, 1, incarnation=2))
    assert refused_code(again) is RefusalCode.SUPERSEDED
    newest = world.stranger(one)
    newest.hello(hello_of(2, 1, incarnation=3))
    newest.wait_frame(FrameType.WELCOME)


def test_one_that_waited_meanwhile_is_judged_by_what_is_known_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = world.pair()
    monkeypatch.setattr(one.hub, "_probe_ms", 60_000.0)
    world.freeze(two)
    waiting = world.stranger(one)
    waiting.hello(hello_of(2, 1, instance_id=5))
    world.run_for(0.05)
    assert waiting.frames == []
    newest = world.stranger(one)
    newest.hello(hello_of(2, 1, instance_id=6, incarnation=2))
    newest.wait_frame(FrameType.WELCOME)
    assert refused_code(waiting) is RefusalCode.SUPERSEDED


def test_an_incarnation_far_beyond_is_not_believed(world: World) -> None:
    one, _two = world.pair()
    garbled = world.stranger(one)
    garbled.hello(hello_of(2, 1, incarnation=1 + 1024 + 1))
    assert refused_code(garbled) is RefusalCode.INCARNATION_JUMP
    assert one.counters.connections == 2
    far = world.stranger(one)
    far.hello(hello_of(2, 1, incarnation=1 + 1024))
    far.wait_frame(FrameType.WELCOME)


def test_a_new_worker_greets_everybody_anew(world: World) -> None:
    """What it found on its disk is in its hello."""
    one, two = world.pair()
    two.identify(start=records.WorkerStart(5, 6, 7))

    def heard() -> list[records.WorkerStart]:
        hellos = [records.unpack_peer_hello(bytes(16) + body) for body in one.got(RecordKind.PEER_HELLO, 2)]
        return [hello.start for hello in hellos]

    world.run(lambda: heard().count(records.WorkerStart(5, 6, 7)) == 2)
    before = len(heard())
    two.identify(start=records.WorkerStart(5, 6, 7))
    world.run_for(0.2)
    assert len(heard()) == before


def test_a_start_that_the_worker_refuses(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    one, two = world.pair()
    two.identify(start=records.WorkerStart(5, 6, 7))
    world.run(lambda: one.counters.connections == 2 and two.counters.connections == 2)
    refusal = records.Refusal(RefusalCode.SHORTER_LOG, "it comes back with less", "Remove it.")
    one.hub.refuse_start(2, records.RefusedStart(5, refusal))
    world.run(lambda: RefusalCode.SHORTER_LOG in two.refusals(1) and one.counters.connections == 0)
    again = world.stranger(one)
    again.hello(hello_of(2, 1, start=records.WorkerStart(5, 6, 7)))
    assert refused_code(again) is RefusalCode.SHORTER_LOG
    two.identify(start=records.WorkerStart(8, 6, 70))
    world.run(lambda: one.counters.connections == 2)
    lines = capfd.readouterr().err
    assert "refused node 2 at 127.0.0.1" in lines
    assert "Reason: shorter_log." in lines


# --- hostile and broken input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01" + bytes(40),
        b"PGRF" + b"\xff" * 12,
    ],
)
def test_malformed_input_closes_that_connection_and_is_counted(world: World, data: bytes) -> None:
    one, two = world.pair()
    stranger = world.stranger(one)
    stranger.sock.sendall(data)
    stranger.wait_end()
    assert one.counters.malformed == 1
    one.hub.send(2, [b"still here"])
    world.run(lambda: two.got(RecordKind.MESSAGE, 1) == [b"still here"])


def test_messages_before_the_handshake_and_hellos_after_it(world: World) -> None:
    one = world.node(1).identify()
    one.members(one, PeerAddress(2, "127.0.0.1", 1))
    early = world.stranger(one)
    early.say(FrameType.MESSAGE, b"let me in")
    early.wait_end()
    late = world.stranger(one)
    late.hello(hello_of(2, 1))
    late.wait_frame(FrameType.WELCOME)
    late.hello(hello_of(2, 1))
    late.wait_end()
    assert one.counters.malformed == 2
    assert one.got(RecordKind.MESSAGE, 2) == []


def test_messages_that_came_with_the_hello_count_if_it_passes(world: World) -> None:
    one = world.node(1).identify()
    one.members(one)
    for cluster_id in ("other", "test"):
        stranger = world.stranger(one)
        hello = encode_frame(FrameType.HELLO, handshake.encode(hello_of(2, 1, cluster_id=cluster_id)))
        stranger.sock.sendall(hello + encode_frame(FrameType.MESSAGE, b"early"))
        stranger.wait_frame(FrameType.REFUSED if cluster_id == "other" else FrameType.WELCOME)
    kinds = [kind for kind, _, _ in one.ring.put_records]
    assert kinds == [RecordKind.PEER_HELLO, RecordKind.MESSAGE]


def test_a_message_right_behind_the_welcome_is_read(world: World) -> None:
    one, two = world.node(1).identify(), world.node(2).identify()
    one.members(one)
    world.freeze(two)
    two.members(one, two)
    world.run(lambda: one.counters.frames_in == 0 and turn_only(two))
    world.run(lambda: 2 in one.hub.incoming)
    one.hub.send(2, [b"in the same piece"])
    world.thaw(two)
    world.run(lambda: two.got(RecordKind.MESSAGE, 1) == [b"in the same piece"])
    assert two.counters.malformed == 0


def turn_only(node: HubNode) -> bool:
    """Turn one hub until it has said hello."""
    while node.hub.peers[1].state is not PeerState.GREETING:
        node.loop.dispatch(node.loop.poll(0.01))
    return True


def test_who_says_nothing_is_closed_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "HANDSHAKE_TIMEOUT_MS", 100)
    one = world.node(1).identify()
    silent, slow = world.stranger(one), world.stranger(one)
    slow.sock.sendall(b"PGRF\x01\x01")
    silent.wait_end()
    slow.wait_end()
    assert one.counters.timed_out == 2
    assert one.counters.pending == 0


def unfinished(size: int) -> bytes:
    """A message of this size, but for its last byte."""
    return encode_frame(FrameType.MESSAGE, bytes(size))[:-1]


def test_who_never_ends_a_frame_is_closed_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Member or not, and however often a few bytes more of it come; but not who ends each in time."""
    monkeypatch.setattr(connection, "FRAME_TIMEOUT_MS", 300)
    one = world.node(1).identify().members(PeerAddress(2, "127.0.0.1", 1))
    member, stranger, good = (world.stranger(one) for _ in range(3))
    for node_id, who in ((2, member), (3, stranger), (4, good)):
        who.hello(hello_of(node_id, 1))
        who.wait_frame(FrameType.WELCOME)
    whole, long = unfinished(1000) + b"\0", unfinished(FRAME_BYTES_MAX)
    member.sock.sendall(whole + long[:100])
    stranger.sock.sendall(long[:100])
    at, said = 0, 0

    def both_closed() -> bool:
        nonlocal at, said
        for who in (member, stranger):
            with contextlib.suppress(OSError):
                who.sock.send(b"\0")
            who.pump()
        # Never at rest between two frames: each piece ends one and begins another.
        good.sock.sendall((whole * 2)[at : at + 1000])
        at, said = (at + 1000) % len(whole), said + 1000
        return member.ended and stranger.ended

    world.run(both_closed)
    assert one.counters.timed_out == 2
    assert set(one.hub.incoming) == {4}
    log = capfd.readouterr().err
    assert "closed the connection with node 2 at 127.0.0.1" in log
    assert "closed the connection with node 3 at 127.0.0.1" in log
    world.run(lambda: len(one.got(RecordKind.MESSAGE, 4)) == said // len(whole))


def test_a_frame_is_not_late_while_nobody_reads_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FRAME_TIMEOUT_MS", 100)
    one = world.node(1).identify()
    sender = world.stranger(one)
    sender.hello(hello_of(3, 1))
    sender.wait_frame(FrameType.WELCOME)
    sender.sock.sendall(unfinished(1000))
    world.run(lambda: one.hub.incoming[3][0].connection.held_bytes > 1000)
    one.hub.pause_reading()
    world.run_for(0.3)
    one.hub.resume_reading()
    sender.sock.sendall(b"\0")
    world.run(lambda: one.got(RecordKind.MESSAGE, 3) == [bytes(1000)])
    world.run_for(0.2)
    assert one.counters.timed_out == 0


def test_unfinished_frames_of_strangers_hold_a_bounded_amount(world: World) -> None:
    """And the one that sends in good faith is heard among them, with the largest frame."""
    one = world.node(1).identify().members(PeerAddress(2, "127.0.0.1", 1))
    member = world.stranger(one)
    member.hello(hello_of(2, 1))
    member.wait_frame(FrameType.WELCOME)
    member.sock.sendall(b"PGRF")
    strangers = [world.stranger(one) for _ in range(20)]
    frame = unfinished(FRAME_BYTES_MAX)
    left = dict.fromkeys(strangers, memoryview(frame))

    def held() -> int:
        return sum(session.connection.held_bytes for session in one.hub.sessions())

    def all_sent() -> bool:
        for who, rest in list(left.items()):
            who.pump()
            with contextlib.suppress(BlockingIOError):
                try:
                    left[who] = rest = rest[who.sock.send(rest) :]
                except ConnectionError:
                    who.ended = True
            if who.ended or not rest:
                del left[who]
        assert held() <= STRANGERS_HELD_BYTES_MAX
        return not left

    for number, who in enumerate(strangers, 10):
        who.hello(hello_of(number, 1))
        who.wait_frame(FrameType.WELCOME)
    world.run(all_sent)
    world.run(lambda: one.counters.crowded_out >= 16)
    good = world.stranger(one)
    good.hello(hello_of(3, 1))
    good.wait_frame(FrameType.WELCOME)
    left[good] = memoryview(frame + b"\0")
    world.run(all_sent)
    world.run(lambda: one.got(RecordKind.MESSAGE, 3) == [bytes(FRAME_BYTES_MAX)])
    assert 2 in one.hub.incoming


def test_a_peer_that_never_welcomes_is_given_up_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "HANDSHAKE_TIMEOUT_MS", 100)
    one, two = world.node(1).identify(), world.node(2)
    world.freeze(two)  # accepts in its backlog, says nothing
    one.members(one, two)
    peer = one.hub.peers[2]
    world.run(lambda: peer.state is PeerState.GREETING)
    world.run(lambda: peer.state is PeerState.WAITING)


@pytest.mark.parametrize(
    ("election_ms", "unanswered_ms", "connect_ms"),
    [(500, 2_000, 1_500), (1000, 2_000, 1_500), (3000, 6_000, 3_000), (60_000, 60_000, 5_000)],
)
def test_how_long_tcp_may_be_silent_follows_the_election_timeout(
    world: World, election_ms: int, unanswered_ms: int, connect_ms: int
) -> None:
    shared = world.node(1).identify(election_timeout_ms=election_ms).hub.shared
    assert (shared.user_timeout_ms, shared.connect_timeout_ms) == (unanswered_ms, connect_ms)
    with socket.socket() as sock:
        prepare(sock, shared.user_timeout_ms)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == unanswered_ms


def test_an_address_that_does_not_answer_is_given_up_in_time(world: World) -> None:
    full = socket.socket()
    world.sockets.append(full)
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    for _ in range(3):  # with its backlog full, the kernel drops further SYNs
        filler = socket.socket()
        world.sockets.append(filler)
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            filler.connect(full.getsockname())
    one, three = world.node(1).identify(), world.node(3).identify()
    one.hub.shared.connect_timeout_ms = 100
    one.hub.shared.user_timeout_ms = 60_000  # the kernel's own bound must not be what ends it
    one.members(PeerAddress(2, *full.getsockname()), three)
    peer = one.hub.peers[2]
    world.run(lambda: peer.state is PeerState.CONNECTING)
    three.members(one)
    world.run(lambda: one.counters.connections == 2)
    world.run(lambda: peer.state is PeerState.WAITING)
    world.run(lambda: peer.state is PeerState.CONNECTING)


def test_a_flood_from_one_address_does_not_keep_a_peer_out(world: World) -> None:
    one, two = world.node(1).identify(), world.node(2).identify()
    idle = [world.stranger(one) for _ in range(PENDING_PER_ADDRESS_MAX + 50)]
    world.run(lambda: one.counters.crowded_out >= 50)
    assert one.counters.pending == PENDING_PER_ADDRESS_MAX
    one.members(one, two)
    two.members(one, two)
    world.run(lambda: one.counters.connections == 2)
    ended = 0
    for stranger in idle:
        stranger.pump()
        ended += stranger.ended
    assert 50 <= ended < 60


# --- bounds -------------------------------------------------------------------------------------------------


def test_messages_to_a_peer_that_is_away_are_dropped_and_counted(world: World) -> None:
    one = world.node(1).identify()
    one.members(one, PeerAddress(2, "127.0.0.1", 1))
    one.hub.send(2, [b"a", b"b"])
    one.hub.send(9, [b"nobody"])
    assert one.counters.dropped == 3


def test_a_peer_that_does_not_read_costs_a_bounded_queue(world: World) -> None:
    one, two = world.pair()
    world.freeze(two)
    body = bytes(100_000)
    for _ in range(300):
        one.hub.send(2, [body])
    session = one.hub.peers[2].session
    assert session is not None
    assert 3_900_000 < session.connection.queued_bytes <= 4 * 1024 * 1024
    assert one.counters.dropped > 100
    world.thaw(two)
    world.run(lambda: one.hub.unsent_bytes == 0)
    one.hub.send(2, [b"the last"])
    world.run(lambda: two.got(RecordKind.MESSAGE, 1)[-1:] == [b"the last"])
    assert len(two.got(RecordKind.MESSAGE, 1)) == 301 - one.counters.dropped


def test_a_full_inbound_ring_stops_reading_and_loses_nothing(world: World) -> None:
    one, two = world.pair()
    two.ring.room = len(two.ring.put_records) + 10
    sent = [b"%d" % number for number in range(1000)]
    for at in range(0, 1000, 10):
        one.hub.send(2, sent[at : at + 10])
        world.turn()
    assert two.inbox.stalled
    assert len(two.got(RecordKind.MESSAGE, 1)) == 10
    two.ring.room = 10**9
    assert two.inbox.retry()
    two.hub.resume_reading()
    world.run(lambda: two.got(RecordKind.MESSAGE, 1) == sent)


def test_nobody_is_let_in_while_the_worker_takes_nothing(world: World) -> None:
    one, two = world.pair()
    two.ring.room = len(two.ring.put_records)
    one.hub.send(2, [b"x"])
    world.run(lambda: two.inbox.stalled)
    newcomer = world.stranger(two)
    newcomer.hello(hello_of(3, 2))
    assert refused_code(newcomer) is RefusalCode.NOT_READY


def test_records_keep_their_order_when_room_comes_between(world: World) -> None:
    node = world.node(1)
    node.ring.room = 0
    prefix = records.prefix(RecordKind.MESSAGE, 2)
    assert node.inbox.deliver(prefix, b"1")
    assert node.inbox.deliver(prefix, b"2")
    node.ring.room = 10
    assert node.inbox.deliver(prefix, b"3")
    assert node.inbox.retry()
    assert node.got(RecordKind.MESSAGE, 2) == [b"1", b"2", b"3"]


def test_the_waiting_room_is_bounded(world: World) -> None:
    node = world.node(1)
    node.ring.room = 0
    prefix = records.prefix(RecordKind.MESSAGE, 2)
    taken = [node.inbox.deliver(prefix, b"") for _ in range(UNDELIVERED_RECORDS_MAX + 5)]
    assert taken == [True] * UNDELIVERED_RECORDS_MAX + [False] * 5


def test_a_paused_connection_that_breaks_does_not_spin(world: World) -> None:
    one, two = world.pair()
    two.ring.room = len(two.ring.put_records)
    one.hub.send(2, [b"x"])
    world.run(lambda: two.inbox.stalled)
    world.stop(one)
    world.run_for(0.05)
    assert two.loop.poll(0.05) == []
    two.ring.room = 10**9
    assert two.inbox.retry()
    two.hub.resume_reading()
    world.run(lambda: two.counters.connections == 0)


def test_refusals_are_logged_at_a_bounded_rate(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    one = world.node(1).identify()
    for _ in range(50):
        stranger = world.stranger(one)
        stranger.hello(hello_of(2, 1, cluster_id="other"))
        stranger.wait_frame(FrameType.REFUSED)
    assert one.counters.refused == 50
    assert capfd.readouterr().err.count("WARNING") == 1


def test_a_node_that_moved_is_found_at_its_new_address(world: World) -> None:
    one, two = world.pair()
    world.stop(two)
    moved = world.node(2).identify().members(one)
    one.members(one, moved)
    world.run(lambda: one.counters.connections == 2)
    assert one.hub.peers[2].port == moved.port


def test_a_new_worker_hears_who_is_connected(world: World) -> None:
    one, _two = world.pair()
    one.ring.put_records.clear()
    one.identify()
    kinds = [kind for kind, node_id, _ in one.ring.put_records if node_id == 2]
    assert kinds.count(RecordKind.PEER_HELLO) == 2
    assert kinds.count(RecordKind.PEER_CONNECTED) == 1
