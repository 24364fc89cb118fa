"""Mutual TLS: who has no certificate of the authority, or one for another node, stays outside."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from pgraft.network_worker import EXIT_CONFIG
from pgraft.transport.framing import FrameType, encode_frame
from pgraft.transport.handshake import encode
from pgraft.transport.outgoing import PeerState
from pgraft.transport.records import RecordKind, RefusalCode
from pgraft.transport.tls import TlsContext, TlsFiles, TlsFilesWrong
from tests.support.transport_hubs import HubNode, World, hello_of
from tests.support.transport_nodes import WAIT_S, Cluster, Node, connect_all

CERTS = Path(__file__).parent / "certs"


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], TlsFiles]:
    def made(name: str, authority: str = "authority") -> TlsFiles:
        key = tmp_path / f"{name}.key"
        shutil.copy(CERTS / f"{name}.key", key)
        key.chmod(0o600)
        return TlsFiles(str(CERTS / f"{name}.pem"), str(key), str(CERTS / f"{authority}.pem"))

    return made


def secure(node: HubNode, files: TlsFiles) -> HubNode:
    node.hub.shared.tls = TlsContext(files)
    return node


def test_nodes_with_their_certificates_talk(world: World, files: Callable[[str], TlsFiles]) -> None:
    one, two = secure(world.node(1), files("node1")), secure(world.node(2), files("node2"))
    for node in (one, two):
        node.identify().members(one, two)
    world.run(lambda: one.counters.connections == 2 == two.counters.connections)
    bodies = [bytes([number % 256]) * (number * 700) for number in range(300)]
    for body in bodies:
        one.hub.send(2, [body])
        world.turn()
    world.run(lambda: len(two.got(RecordKind.MESSAGE, 1)) == 300)
    assert two.got(RecordKind.MESSAGE, 1) == bodies
    assert one.counters.malformed == two.counters.malformed == 0


def test_a_handshake_that_waits_does_not_spin(world: World, files: Callable[[str], TlsFiles]) -> None:
    one, two = secure(world.node(1), files("node1")), secure(world.node(2), files("node2"))
    world.freeze(two)
    one.identify().members(one, two)
    world.run(lambda: one.hub.peers[2].state is PeerState.GREETING)
    world.turn()
    assert one.loop.poll(0.05) == []
    world.thaw(two)
    two.identify().members(one, two)
    world.run(lambda: one.counters.connections == 2)


def test_a_peer_that_does_not_read_is_bounded_with_tls_too(
    world: World, files: Callable[[str], TlsFiles]
) -> None:
    one, two = secure(world.node(1), files("node1")), secure(world.node(2), files("node2"))
    for node in (one, two):
        node.identify().members(one, two)
    world.run(lambda: one.counters.connections == 2 == two.counters.connections)
    world.freeze(two)
    body = bytes(100_000)
    for _ in range(200):
        one.hub.send(2, [body])
    assert one.counters.dropped > 50
    assert one.hub.unsent_bytes <= 4 * 1024 * 1024
    world.thaw(two)
    world.run(lambda: one.hub.unsent_bytes == 0)
    one.hub.send(2, [b"the last"])
    world.run(lambda: two.got(RecordKind.MESSAGE, 1)[-1:] == [b"the last"])


def test_an_address_in_the_certificate_names_the_node_as_well(
    world: World, files: Callable[[str], TlsFiles]
) -> None:
    one, two = secure(world.node(1), files("node1")), secure(world.node(2), files("by-address"))
    for node in (one, two):
        node.identify().members(one, two)
    world.run(lambda: one.counters.connections == 2 == two.counters.connections)


@pytest.mark.parametrize("name", ["by-name", "other-cluster", "node1"])
def test_a_certificate_of_somebody_else(
    world: World, files: Callable[[str], TlsFiles], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = secure(world.node(1), files("node1")), secure(world.node(2), files(name))
    one.identify().members(one)
    two.identify().members(one, two)
    world.run(lambda: RefusalCode.CERTIFICATE in two.refusals(1))
    assert one.counters.connections == 0
    assert "does not name it" in capfd.readouterr().err


def test_the_connecting_side_wants_the_right_certificate_too(
    world: World, files: Callable[[str], TlsFiles]
) -> None:
    one, two = secure(world.node(1), files("node1")), secure(world.node(2), files("other-cluster"))
    one.identify().members(one, two)
    two.identify().members(two)
    world.run(lambda: one.counters.refused > 0)
    assert one.counters.connections == 0


def test_a_foreign_authority_gets_no_further_than_tls(
    world: World, files: Callable[..., TlsFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    one = secure(world.node(1), files("node1")).identify()
    two = secure(world.node(2), files("foreign")).identify()
    one.members(one)
    two.members(one, two)
    world.run(lambda: one.counters.malformed > 0)
    assert one.counters.frames_in == 0
    assert "TLS handshake failed" in capfd.readouterr().err


def test_without_a_certificate_and_without_tls(world: World, files: Callable[[str], TlsFiles]) -> None:
    one = secure(world.node(1), files("node1")).identify()
    clear = world.stranger(one)
    clear.sock.sendall(encode_frame(FrameType.HELLO, encode(hello_of(2, 1))))
    clear.wait_end()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(CERTS / "authority.pem")
    nobody = world.stranger(one)
    with context.wrap_socket(nobody.sock, do_handshake_on_connect=False) as wrapped:
        world.sockets.append(wrapped)

        def refused() -> bool:
            try:
                wrapped.do_handshake()
                return not wrapped.recv(1)
            except (ssl.SSLWantReadError, BlockingIOError):
                return False
            except (ssl.SSLError, OSError):
                return True

        world.run(refused)
    world.run(lambda: one.counters.malformed == 2)
    assert one.counters.frames_in == 0


def test_a_node_without_tls_says_so(world: World, files: Callable[[str], TlsFiles]) -> None:
    one, two = secure(world.node(1), files("node1")).identify(), world.node(2).identify()
    one.members(one, two)
    world.run(lambda: two.counters.malformed > 0)
    assert one.counters.connections == 0


def test_files_that_cannot_be_used(tmp_path: Path, files: Callable[..., TlsFiles]) -> None:
    good = files("node1")
    Path(good.key).chmod(0o644)
    with pytest.raises(TlsFilesWrong, match="others cannot read"):
        TlsContext(good)
    Path(good.key).chmod(0o600)
    other = files("node2")
    with pytest.raises(TlsFilesWrong, match="ssl_cert_file"):
        TlsContext(TlsFiles(good.cert, other.key, good.ca))
    with pytest.raises(TlsFilesWrong, match="ssl_ca_file"):
        TlsContext(TlsFiles(good.cert, good.key, str(tmp_path / "none")))


# --- real processes ---------------------------------------------------------------------------------------


def settings(files: TlsFiles) -> dict[str, object]:
    return {
        "ssl_enabled": True,
        "ssl_cert_file": files.cert,
        "ssl_key_file": files.key,
        "ssl_ca_file": files.ca,
    }


def served_certificate(node: Node) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(CERTS / "authority.pem")
    with (
        socket.create_connection(("127.0.0.1", node.port), WAIT_S) as sock,
        context.wrap_socket(sock) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True) or b""


def test_certificates_are_reloaded_and_connections_stay(
    cluster: Cluster, files: Callable[[str], TlsFiles], tmp_path: Path
) -> None:
    one, two = cluster.nodes(2)
    in_use = files("node2")
    cert = tmp_path / "in-use.pem"
    shutil.copy(in_use.cert, cert)
    one.settings = settings(files("node1"))
    two.settings = settings(TlsFiles(str(cert), in_use.key, in_use.ca))
    for node in (one, two):
        node.start()
        node.identify()
        node.members([one, two])
    connect_all([one, two])
    before = served_certificate(two)
    again = files("node2-again")
    shutil.copy(again.cert, cert)
    shutil.copy(again.key, in_use.key)
    assert two.process is not None
    two.process.send_signal(signal.SIGHUP)
    two.wait_log("reloaded its certificates")
    assert served_certificate(two) != before
    cert.write_text("nonsense")
    two.process.send_signal(signal.SIGHUP)
    two.wait_log("stay in use")
    one.send(2, b"still")
    two.wait_for(RecordKind.MESSAGE, 1, b"still")
    assert two.word("connects") == 1


def test_a_key_that_others_can_read_stops_the_start(
    cluster: Cluster, files: Callable[[str], TlsFiles]
) -> None:
    node = cluster.node(1)
    open_key = files("node1")
    Path(open_key.key).chmod(0o640)
    node.settings = settings(open_key)
    node.launch()
    assert node.process is not None
    assert node.process.wait(WAIT_S) == EXIT_CONFIG
    assert "pgraft.ssl_key_file" in node.log()
