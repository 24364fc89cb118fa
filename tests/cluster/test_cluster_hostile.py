"""The Raft port of real nodes under floods, slow senders and lies: elections and commits go on."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.node.envelope import Envelope, NodeStatus, encode
from pgraft.raft.types import Entry, Message, MessageType
from pgraft.transport import handshake
from pgraft.transport.framing import PROTOCOL_VERSION, FrameDecoder, FrameType, encode_frame
from pgraft.transport.handshake import Hello
from pgraft.transport.limits import FRAME_TIMEOUT_MS, PENDING_CONNECTIONS_MAX, PENDING_PER_ADDRESS_MAX
from pgraft.transport.records import HURRY
from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Node, eventually

pytestmark = pytest.mark.cluster
M = MessageType
IDLE = 1000
FLOOD_S = 3.0
STRANGER = 9
SO_ATTACH_FILTER = 26
"""socket(7): a classic BPF program says of each packet how many bytes of it to keep."""
BPF_RET = 6


@pytest.fixture(scope="module")
def running(template: Path) -> Iterator[Cluster]:
    with pgcluster.cluster(template, 3, 18) as made:
        yield made


@pytest.fixture(autouse=True, scope="module")
def descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * IDLE:
        pytest.skip(f"only {hard} descriptors are to be had")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * IDLE), hard))


def counters(node: Node) -> dict[str, int]:
    """pgraft_get_network_stats() by column."""
    with node.connect() as session:
        cursor = session.execute("SELECT * FROM pgraft_get_network_stats()")
        names = [column.name for column in cursor.description or ()]
        (row,) = cursor.fetchall()
    return dict(zip(names, row, strict=True))


def connected(node: Node) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.raft_port), timeout=10)


@contextlib.contextmanager
def undisturbed(running: Cluster) -> Iterator[None]:
    """The same leader in the same term afterwards, and commits all the while."""
    leader = running.wait_agreed()
    term = leader.value("SELECT pgraft_get_term()")
    ended, committed, failures = threading.Event(), [0], list[str]()

    def commit() -> None:
        with leader.connect() as session:
            while not ended.is_set():
                try:
                    session.execute("SELECT pgraft_replicate_entry('on and on')")
                except Exception as error:  # noqa: BLE001 - it is shown below
                    failures.append(str(error))
                    return
                committed[0] += 1

    writer = threading.Thread(target=commit)
    writer.start()
    try:
        yield
        before = committed[0]
        eventually(lambda: failures or committed[0] > before, "a commit")
    finally:
        ended.set()
        writer.join()
    assert failures == []
    assert running.wait_agreed() is leader
    assert leader.value("SELECT pgraft_get_term()") == term


def test_idle_connections_slow_senders_and_half_closed_ones(running: Cluster) -> None:
    leader = running.wait_agreed()
    with contextlib.ExitStack() as stack, undisturbed(running):
        strangers = [stack.enter_context(connected(leader)) for _ in range(IDLE)]
        for number, one in enumerate(strangers[-90:]):
            with contextlib.suppress(OSError):
                if number % 3 == 0:
                    one.sendall(b"PGRF\x01\x01")  # and no more of its frame
                elif number % 3 == 1:
                    one.shutdown(socket.SHUT_WR)
        seen = eventually(
            lambda: (
                (found := counters(leader))["connections_crowded_out"] >= IDLE - PENDING_CONNECTIONS_MAX
                and found
            ),
            "the oldest to make room",
        )
        assert seen["pending"] <= PENDING_PER_ADDRESS_MAX
        # What says nothing goes by itself.
        eventually(lambda: counters(leader)["pending"] == 0, "the last of them to be timed out")
    assert counters(leader)["connections_timed_out"] > 0
    assert counters(leader)["connections"] == 4


def test_a_flood_of_connections_from_one_address(running: Cluster) -> None:
    """While it lasts another voter takes over and greets the flooded node anew: elections go on as well."""
    leader = running.wait_agreed()
    victim = running.followers(leader)[0]
    ended = threading.Event()

    def flood() -> None:
        kept: list[socket.socket] = []
        while not ended.is_set():
            with contextlib.suppress(OSError):
                kept.append(connected(victim))
            if len(kept) > 200:
                for one in kept:
                    one.close()
                kept.clear()
        for one in kept:
            one.close()

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        with undisturbed(running):
            time.sleep(FLOOD_S)  # the flood itself is what is waited for
        other = running.followers(leader)[1]
        leader.value(f"SELECT pgraft_transfer_leadership({other.node_id})")
        assert running.wait_agreed() is other
        assert other.value("SELECT pgraft_replicate_entry('through the flood')") is True
    finally:
        ended.set()
        flooder.join()
    assert counters(victim)["connections_crowded_out"] > 0


def let_in(node: Node, sender: int) -> socket.socket:
    """A connection that has passed the handshake as node `sender`, which is no member."""
    sock = connected(node)
    hello = Hello(
        protocol_version=1, min_version=1, cluster_id="pgraft", node_id=sender, member_id=99, instance_id=99,
        expected_receiver=node.node_id, initial_state="existing", initial_members="", formed=True,
        address="127.0.0.1", port=1,
    )  # fmt: skip
    sock.sendall(encode_frame(FrameType.HELLO, handshake.encode(hello)))
    decoder, frames = FrameDecoder(), list[tuple[int, memoryview]]()
    while not frames:
        data = sock.recv(4096)
        assert data, "closed during the handshake"
        frames = decoder.feed(memoryview(data))
    assert frames[0][0] == FrameType.WELCOME, bytes(frames[0][1])
    return sock


def lies(node: Node, sender: int, term: int) -> list[Envelope]:
    """Each of them is well-formed."""
    messages = [
        Message(type=M.MsgHeartbeat, term=2**63),
        Message(type=M.MsgApp, term=2**64 - 1, log_term=1, index=1),
        Message(type=M.MsgHeartbeat, term=term, commit=2**40),
        Message(type=M.MsgSnap, term=term),
        Message(type=M.MsgApp, term=term + 1, log_term=1, index=1, entries=[Entry(1, 3), Entry(1, 2)]),
        Message(type=M.MsgProp, term=term, entries=[Entry(data=b"\x01mine")]),
        Message(type=M.MsgVoteResp, term=term + 5),
        Message(type=M.MsgHup),
    ]
    for message in messages:
        message.from_, message.to = sender, node.node_id
    status = NodeStatus(sender, 1, term)
    made = [Envelope(sender, term, status, [message]) for message in messages]
    return [
        *made,
        Envelope(sender, term, status, promise_ms=2**50),
        Envelope(sender, term, NodeStatus(sender, -4)),
    ]


def vanish(sock: socket.socket) -> None:
    """From here on the other end sees a machine that is gone, without a FIN or a reset: the kernel drops
    all that comes for this socket before TCP sees it, so nothing is acknowledged, no keepalive either."""
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RET, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(nothing)))


def test_peers_that_are_gone_without_a_word(running: Cluster) -> None:
    """Before the handshake, after it, and in the middle of a message."""
    leader = running.wait_agreed()
    before = counters(leader)
    began = encode_frame(FrameType.MESSAGE, bytes(1000), PROTOCOL_VERSION)[:500]
    with contextlib.ExitStack() as stack, undisturbed(running):
        for _ in range(20):
            vanish(stack.enter_context(connected(leader)))
        let = [stack.enter_context(let_in(leader, STRANGER + number)) for number in range(20)]
        for sock in let[10:]:
            sock.sendall(began)
        eventually(lambda: counters(leader)["connections"] == before["connections"] + len(let), "all let in")
        for sock in let:
            vanish(sock)
        eventually(
            lambda: (
                (found := counters(leader))["connections"] == before["connections"] and not found["pending"]
            ),
            "all of them to be given up",
        )


@pytest.mark.slow
def test_slow_senders_after_the_handshake(running: Cluster) -> None:
    """One byte of a message now and then: they stand as long as any message may take, and no longer."""
    leader = running.wait_agreed()
    before = counters(leader)
    message = encode_frame(FrameType.MESSAGE, bytes(100_000), PROTOCOL_VERSION)
    with contextlib.ExitStack() as stack, undisturbed(running):
        slow = [stack.enter_context(let_in(leader, STRANGER + number)) for number in range(20)]
        for sock in slow:
            sock.sendall(message[:50])

        def given_up() -> bool:
            for sock in slow:
                with contextlib.suppress(OSError):
                    sock.send(b"\0")
            return counters(leader)["connections"] == before["connections"]

        eventually(given_up, "all of them to be given up", timeout=FRAME_TIMEOUT_MS / 1000 + 30)
    assert counters(leader)["connections_timed_out"] == before["connections_timed_out"] + len(slow)


def test_absurd_messages_change_nothing_and_are_counted(running: Cluster) -> None:
    leader = running.wait_agreed()
    for node in running.nodes:
        before = counters(node)
        with undisturbed(running), let_in(node, STRANGER) as sock:
            said = lies(node, STRANGER, leader.value("SELECT pgraft_get_term()"))
            for one in said:
                sock.sendall(encode_frame(FrameType.MESSAGE, HURRY + encode(one), PROTOCOL_VERSION))
            sock.sendall(encode_frame(FrameType.MESSAGE, HURRY + b"\xc1 no envelope", PROTOCOL_VERSION))
            wanted = before["messages_absurd"] + len(said)
            eventually(
                lambda node=node, wanted=wanted: counters(node)["messages_absurd"] == wanted, "the count"
            )
            eventually(
                lambda node=node, before=before: (
                    counters(node)["messages_malformed"] > before["messages_malformed"]
                ),
                "the count of what cannot be read",
            )
            sock.sendall(b"\xff" * 64)
            eventually(
                lambda node=node, before=before: (
                    counters(node)["connections_malformed"] > before["connections_malformed"]
                ),
                "the count of broken connections",
            )
