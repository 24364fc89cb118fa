"""Who is refused at the Raft port of a real node, without TLS: over real sockets, to a living cluster."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from pgraft.transport.framing import PROTOCOL_VERSION, FrameType, encode_frame
from pgraft.transport.handshake import Refused, decode_refused
from pgraft.transport.records import RefusalCode
from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Node, eventually
from tests.support.wire_client import dialogue

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(template: Path) -> Iterator[Cluster]:
    """Three nodes without TLS, and a fourth id that was removed."""
    with pgcluster.cluster(template, 3, election_timeout="2s") as made:
        leader = made.wait_agreed()
        with leader.connect() as session:
            # Never there: a learner for a moment, and then removed.
            session.execute("SET statement_timeout = '500ms'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                session.execute("SELECT pgraft_add_node(4, '127.0.0.1', 1)")
            session.execute("RESET statement_timeout")
            session.execute("SELECT pgraft_remove_node(4)")
        yield made


@pytest.fixture
def undisturbed(cluster: Cluster) -> Iterator[Node]:
    """A follower to try it on; afterwards the leader is the same, in the same term, and commits."""
    leader = cluster.wait_agreed()
    term = leader.value("SELECT pgraft_get_term()")
    members = leader.sql("SELECT node_id, address, port FROM pgraft_get_nodes()")
    yield cluster.followers(leader)[0]
    assert leader.value("SELECT pgraft_replicate_entry('undisturbed')") is True
    assert leader.value("SELECT pgraft_get_term()") == term
    assert leader.sql("SELECT node_id, address, port FROM pgraft_get_nodes()") == members


def _another(cluster: Cluster, node: Node) -> Node:
    return next(one for one in cluster.nodes if one is not node)


Changes = Callable[[Node, Node], dict[str, Any]]


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        (lambda _n, _o: {"cluster_id": "other"}, RefusalCode.OTHER_CLUSTER, 'belongs to cluster "other"'),
        (
            lambda _n, _o: {"protocol_version": PROTOCOL_VERSION + 2},
            RefusalCode.PROTOCOL_VERSION,
            "speaks protocol versions",
        ),
        (lambda node, _o: {"node_id": node.node_id}, RefusalCode.SELF, "the sender claims to be node"),
        (
            lambda _n, other: {"expected_receiver": other.node_id},
            RefusalCode.WRONG_RECEIVER,
            "but this is node",
        ),
        (lambda _n, _o: {}, RefusalCode.MEMBER_ID_CHANGED, "comes with member id 0000000000abcdef"),
    ],
    ids=["cluster", "version", "self", "receiver", "member-id"],
)
def test_who_is_refused(
    cluster: Cluster, undisturbed: Node, changes: Changes, code: RefusalCode, text: str
) -> None:
    node, other = undisturbed, _another(cluster, undisturbed)
    words = {"node_id": other.node_id} | changes(node, other)
    receiver = words.pop("expected_receiver", node.node_id)
    with dialogue(node.raft_port) as stranger:
        stranger.hello(receiver, **words)
        refused = stranger.refusal()
    _expect(node, refused, code, text, f"refused node {words['node_id']} at 127.0.0.1:{stranger.port}: ")


def test_a_removed_node_is_refused(undisturbed: Node) -> None:
    """At the latest when the follower has heard of the removal, and its network process from it."""

    def answered() -> tuple[Refused, int] | None:
        with dialogue(undisturbed.raft_port) as stranger:
            stranger.hello(undisturbed.node_id, node_id=4)
            kind, payload = stranger.frame()
            return (decode_refused(memoryview(payload)), stranger.port) if kind is FrameType.REFUSED else None

    refused, port = eventually(answered, "a refusal")
    line = f"refused node 4 at 127.0.0.1:{port}: "
    _expect(undisturbed, refused, RefusalCode.REMOVED, "node 4 was removed from the cluster", line)


def _expect(node: Node, refused: Refused, code: RefusalCode, text: str, line: str) -> None:
    """This refusal, by this node, with a hint, and its line in the log."""
    assert (refused.code, refused.node_id) == (code, node.node_id)
    assert text in refused.text
    assert refused.hint
    eventually(lambda: line in node.log_text(), "the refusal in the log, with the address")


def test_what_a_refused_sender_says_next_is_not_read(cluster: Cluster, undisturbed: Node) -> None:
    node, other = undisturbed, _another(cluster, undisturbed)
    with dialogue(node.raft_port) as stranger:
        stranger.hello(node.node_id, node_id=other.node_id)
        stranger.sock.sendall(encode_frame(FrameType.MESSAGE, b"\x01 anything") * 100)
        assert stranger.refusal().code == RefusalCode.MEMBER_ID_CHANGED
    with dialogue(node.raft_port) as stranger:
        stranger.sock.sendall(encode_frame(FrameType.MESSAGE, b"\x01 anything"))
        stranger.end()
    eventually(lambda: "expected a handshake first" in node.log_text(), "the violation in the log")


def test_the_next_version_is_let_in_while_it_speaks_ours(undisturbed: Node) -> None:
    """And an id that is not known yet: the members that this node knows may be behind."""
    newest = PROTOCOL_VERSION + 1
    with dialogue(undisturbed.raft_port) as newer:
        newer.hello(undisturbed.node_id, node_id=77, protocol_version=newest, min_version=newest)
        assert newer.refusal().code == RefusalCode.PROTOCOL_VERSION
    with dialogue(undisturbed.raft_port) as newer:
        newer.hello(undisturbed.node_id, node_id=77, protocol_version=newest)
        assert newer.frame()[0] is FrameType.WELCOME


def test_only_the_configured_address_is_bound(cluster: Cluster) -> None:
    for node in cluster.nodes:
        pids = {part: pid for part, pid in node.status()["pids"].items() if part != "postmaster"}
        bound = [
            (part, connection.laddr.ip, connection.laddr.port)
            for part, pid in pids.items()
            for connection in psutil.Process(pid).net_connections("all")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert bound == [("network", "127.0.0.1", node.raft_port)]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", node.raft_port), 5)
