"""Network processes with real segments, the test playing the workers."""

from __future__ import annotations

import re
import resource
import select
import signal
import socket
import time
from pathlib import Path

import pytest

from pgraft.network_worker import EXIT_CONFIG
from pgraft.transport import records
from pgraft.transport.records import RecordKind, RefusalCode
from tests.support.transport_nodes import WAIT_S, Cluster, Node, connect_all


def exit_code(node: Node) -> int:
    node.launch()
    assert node.process is not None
    return node.process.wait(WAIT_S)


def fatal_lines(node: Node) -> list[str]:
    assert "Traceback" not in node.log()
    return re.findall(r"FATAL:  .*", node.log())


def test_three_nodes_all_ways(cluster: Cluster) -> None:
    nodes = cluster.up(3)
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.send(other.node_id, b"from %d" % node.node_id)
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.wait_for(RecordKind.MESSAGE, other.node_id, b"from %d" % other.node_id)
    for node in nodes:
        node.wait(lambda node=node: node.word("frames_in") >= 2, "counted frames")
        assert node.word("connections") == 4
        assert node.word("members_generation_seen") == 1
        assert node.word("dropped") == node.word("malformed") == 0


def test_nobody_is_let_in_before_the_worker_said_who_we_are(cluster: Cluster) -> None:
    one, two = cluster.nodes(2)
    for node in (one, two):
        node.start()
        node.members([one, two])
    one.identify()
    two.wait(lambda: two.word("refused") > 0, "refusal")
    assert two.seen == one.seen == []
    two.identify()
    connect_all([one, two])


def test_a_port_in_use_is_one_clear_line(cluster: Cluster) -> None:
    node = cluster.node(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", node.port))
        taken.listen()
        assert exit_code(node) == EXIT_CONFIG
    (line,) = fatal_lines(node)
    assert "pgraft.listen_address" in line
    assert str(node.port) in line
    assert "in use" in line


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"listen_host": "203.0.113.77"}, "pgraft.listen_address"),
        ({"listen_host": "no-such-host.invalid"}, "pgraft.listen_address"),
        ({"segment_name": "pgraft.nothing"}, "pgraft.nothing"),
        ({"ssl_enabled": True, "ssl_key_file": "/nowhere/key"}, "pgraft.ssl_key_file"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(
    cluster: Cluster, settings: dict[str, object], text: str
) -> None:
    node = cluster.node(1)
    node.settings = settings
    assert exit_code(node) == EXIT_CONFIG
    (line,) = fatal_lines(node)
    assert text in line


def test_a_killed_process_comes_back_alone(cluster: Cluster) -> None:
    one, two = cluster.up(2)
    assert one.kill() == -signal.SIGKILL
    two.wait_for(RecordKind.PEER_DISCONNECTED, 1)
    one.send(2, b"for the process before")
    dropped = one.word("dropped")
    one.seen.clear()
    two.seen.clear()
    one.start()
    assert one.word("epoch") == 2
    one.identify()
    connect_all([one, two])
    one.send(2, b"new")
    two.wait_for(RecordKind.MESSAGE, 1, b"new")
    assert not any(record.body == b"for the process before" for record in two.seen)
    assert one.word("dropped") == dropped  # not even looked at


def test_sigterm_lets_messages_go_out(cluster: Cluster) -> None:
    one, two = cluster.up(2)
    bodies = [bytes([number]) * 30_000 for number in range(20)]
    one.send(2, *bodies)
    assert one.kill(signal.SIGTERM) == 0
    two.wait_for(RecordKind.MESSAGE, 1, count=len(bodies))
    two.wait_for(RecordKind.PEER_DISCONNECTED, 1)
    assert "Traceback" not in one.log() + two.log()


def test_a_retired_segment_ends_the_process(cluster: Cluster) -> None:
    node = cluster.node(1)
    node.settings = {"election_timeout_ms": 200}
    node.start()
    assert node.process is not None
    node.segment.retire()
    assert node.process.wait(WAIT_S) == 0
    assert "given up" in node.log()


def test_it_beats_and_sleeps_and_hangups_leave_it_alone(cluster: Cluster) -> None:
    node = cluster.node(1)
    node.start()
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)
    node.process.send_signal(signal.SIGINT)
    beat = node.word("beat_ns")
    node.wait(lambda: node.word("beat_ns") > beat, "beat")
    node.wait(lambda: node.word("sleeping") == 1, "sleep")
    assert node.process.poll() is None


def test_a_worker_that_does_not_read_holds_the_senders_back(cluster: Cluster) -> None:
    one, two = cluster.up(2)
    bodies = [b"%05d" % number + bytes(4000) for number in range(1500)]
    for body in bodies:
        one.send(2, body)
    # The ring of 4 MiB is full, the rest waits in sockets and in the sender's bounded queue.
    deadline = time.monotonic() + WAIT_S
    while two.word("inbound_head") - two.segment.worker["inbound_tail"] < 4 * 1024 * 1024 - 8192:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)
    two.wait_for(RecordKind.MESSAGE, 1, count=len(bodies))
    assert [record.body for record in two.seen if record.kind is RecordKind.MESSAGE] == bodies
    assert one.word("dropped") == 0


def test_a_thousand_idle_connections_and_slow_senders_disturb_nobody(cluster: Cluster) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip(f"only {hard} descriptors are to be had")
    # An ordinary user's usual limit is 1024.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    one, two = cluster.up(2)
    strangers = [socket.create_connection(("127.0.0.1", two.port)) for _ in range(1000)]
    try:
        for sock in strangers[-50:]:
            sock.send(b"PG")
        for number in range(50):
            one.send(2, b"%d" % number)
            two.wait_for(RecordKind.MESSAGE, 1, b"%d" % number)
        two.wait(lambda: two.word("crowded_out") >= 800, "evictions")
        assert two.word("connections") == 2
        assert two.log().count("say nothing") == 1
        three = cluster.node(3)
        three.start()
        three.identify()
        three.members([two, three])
        three.wait_for(RecordKind.PEER_CONNECTED, 2)
    finally:
        for sock in strangers:
            sock.close()


def test_a_copy_of_a_node_is_refused_on_both_sides(cluster: Cluster) -> None:
    one, two = cluster.up(2)
    copy = cluster.node(2)
    copy.start()
    copy.identify()
    copy.members([one, copy])
    record = copy.wait_for(RecordKind.REFUSED_BY_PEER, 1)
    assert records.unpack_refusal(record.raw).code == RefusalCode.DUPLICATE
    copy.wait_log("One node has one pgraft.data_dir")
    one.wait_log("One node has one pgraft.data_dir")
    two.send(1, b"the true one")
    one.wait_for(RecordKind.MESSAGE, 2, b"the true one")


def test_a_name_is_resolved_beside_the_loop(cluster: Cluster) -> None:
    one, two = cluster.nodes(2)
    for node in (one, two):
        node.address = "localhost"
        node.start()
        node.identify()
    one.members([one, two])
    one.wait_for(RecordKind.PEER_CONNECTED, 2)


def test_debug_logs_messages_only_while_it_is_on(cluster: Cluster) -> None:
    one, two = cluster.up(2)
    one.send(2, b"quiet")
    two.wait_for(RecordKind.MESSAGE, 1, b"quiet")
    assert "DEBUG" not in one.log() + two.log()
    two.segment.worker["debug"] = 1
    one.send(2, b"first", b"second")
    two.wait_for(RecordKind.MESSAGE, 1, b"second")
    one.send(2, b"third")
    two.wait_log("DEBUG")


def test_nothing_is_left_listening_elsewhere(cluster: Cluster) -> None:
    node = cluster.node(1)
    node.start()
    assert node.process is not None
    inodes = {
        match[1]
        for fd in Path(f"/proc/{node.process.pid}/fd").iterdir()
        if (match := re.match(r"socket:\[(\d+)\]", str(fd.readlink())))
    }
    rows = [
        line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()
    ]
    listening = [row[1] for row in rows if len(row) > 9 and row[3] == "0A" and row[9] in inodes]
    assert listening == [f"0100007F:{node.port:04X}"]
