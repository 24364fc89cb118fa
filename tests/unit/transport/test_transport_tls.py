"""Mutual TLS: who has no certificate of the authority, or one for another node, stays outside."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pgraft.network_worker import EXIT_CONFIG
from pgraft.transport.directory import PeerAddress
from pgraft.transport.framing import FrameType, encode_frame
from pgraft.transport.handshake import Refused, encode
from pgraft.transport.limits import PENDING_PER_ADDRESS_MAX
from pgraft.transport.outgoing import PeerState
from pgraft.transport.records import RecordKind, RefusalCode
from pgraft.transport.tls import TlsContext
from pgraft.transport.tls_files import CertificateOutOfDate, TlsFiles, TlsFilesWrong, Whom
from tests.support.certificates import Maker
from tests.support.transport_hubs import HubNode, World, hello_of
from tests.support.transport_nodes import WAIT_S, Cluster, Node, connect_all
from tests.support.wire_client import client_hello

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


def test_what_a_stranger_says_of_its_address_names_nobody(
    world: World, files: Callable[[str], TlsFiles]
) -> None:
    """Else any certificate with any address in it would be any node that is no member (yet)."""
    one, two = secure(world.node(1), files("node1")), secure(world.node(2), files("by-address"))
    one.identify().members(one)
    two.identify().members(one, two)
    world.run(lambda: RefusalCode.CERTIFICATE in two.refusals(1))
    assert one.counters.connections == 0
    # Once it is a member here, its address is one that we know.
    one.members(one, two)
    world.run(lambda: one.counters.connections == 2 == two.counters.connections)


def test_a_newcomer_knows_addresses_by_its_own_initial_cluster(
    world: World, files: Callable[[str], TlsFiles]
) -> None:
    """Until it is a member, and for the node whose place in the list it is."""
    one, two = secure(world.node(1), files("node1")), secure(world.node(2), files("by-address"))
    one.hub.shared.directory.initial = {1: "127.0.0.1", 3: "127.0.0.1"}
    one.identify()
    two.identify().members(one, two)
    world.run(lambda: RefusalCode.CERTIFICATE in two.refusals(1))
    one.hub.shared.directory.initial = {2: "127.0.0.1"}
    world.run(lambda: one.counters.connections == 1 == two.counters.connections)
    one.members(one)
    one.hub.incoming[2][0].on_lost("let it come again")
    seen = two.refusals(1).count(RefusalCode.CERTIFICATE)
    world.run(lambda: two.refusals(1).count(RefusalCode.CERTIFICATE) > seen)
    assert one.counters.connections == 0


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


def test_a_server_with_another_certificate_hears_nothing_and_is_not_believed(
    world: World, files: Callable[[str], TlsFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    """Such as a node that was removed, and says so of everybody at an address that is its own now."""
    one, rogue = secure(world.node(1), files("node1")).identify(), files("by-name")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(rogue.cert, rogue.key)
    word = encode(Refused(code=RefusalCode.REMOVED, text="go away", node_id=2))
    heard = list[bytes]()

    def serve() -> None:
        """Take its connection, refuse it before it has said a word, and listen."""
        plain, _ = listener.accept()
        with plain, context.wrap_socket(plain, server_side=True) as sock:
            sock.settimeout(WAIT_S)
            with contextlib.suppress(OSError):
                sock.sendall(encode_frame(FrameType.REFUSED, word))
            try:
                heard.append(sock.recv(65536))
            except OSError:
                heard.append(b"")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)
        serving = threading.Thread(target=serve)
        serving.start()
        one.members(one, PeerAddress(2, "127.0.0.1", listener.getsockname()[1]))
        world.run(lambda: bool(heard))
        serving.join()
    assert heard == [b""]
    assert one.refusals(2) == []
    assert one.counters.refused == 1
    assert "does not name it" in capfd.readouterr().err


def test_a_foreign_authority_gets_no_further_than_tls(
    world: World, files: Callable[..., TlsFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    one = secure(world.node(1), files("node1")).identify()
    two = secure(world.node(2), files("foreign")).identify()
    one.members(one)
    two.members(one, two)
    world.run(lambda: one.counters.refused > 0)
    assert one.counters.frames_in == 0
    log = ""

    def told() -> bool:
        nonlocal log
        log += capfd.readouterr().err
        return "it ended the TLS handshake: unknown ca" in log

    # The other side hears why, too: its alert is not lost to a reset.
    world.run(told)
    assert "WARNING:  pgraft: closed the connection with 127.0.0.1:" in log
    assert "its certificate is refused: self-signed certificate" in log or "unable to get local issuer" in log
    assert one.counters.malformed == two.counters.malformed == 0


@pytest.mark.parametrize(
    ("days", "message"), [((-20, -1), "certificate has expired"), ((10, 20), "certificate is not yet valid")]
)
def test_a_certificate_that_is_out_of_date(
    world: World, tmp_path: Path, days: tuple[int, int], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    maker = Maker(tmp_path / "made")
    one = secure(world.node(1), maker.issue("one", "pgraft://test/1")).identify()
    late = maker.issue("two", "pgraft://test/2", starts_days=days[0], ends_days=days[1])
    two = secure(world.node(2), late).identify()
    one.members(one)
    two.members(one, two)
    world.run(lambda: one.counters.refused > 0)
    assert one.counters.frames_in == 0
    assert message in capfd.readouterr().err
    # The other way round: the expired one is the one that accepts.
    one.members(one, two)
    two.members(two)
    before = one.counters.refused
    world.run(lambda: one.counters.refused > before)
    assert one.counters.connections == two.counters.connections == 0


def test_what_a_hello_claims_is_judged_by_the_certificate_first(
    world: World, files: Callable[[str], TlsFiles]
) -> None:
    """Whoever has another node's certificate learns nothing of what this node knows about that id."""
    one = secure(world.node(1), files("node1")).identify()
    two = secure(world.node(2), files("node1")).identify()
    one.members(one, removed=(2,))
    two.members(one, two)
    world.run(lambda: bool(two.refusals(1)))
    assert two.refusals(1) == [RefusalCode.CERTIFICATE]


def test_a_connection_that_is_gone_before_it_is_accepted(
    world: World, files: Callable[[str], TlsFiles]
) -> None:
    one = secure(world.node(1), files("node1")).identify()
    for words in (b"", b"something"):
        with socket.create_connection(("127.0.0.1", one.port)) as sock:
            sock.sendall(words)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        world.turn()
    two = secure(world.node(2), files("node2")).identify()
    one.members(one, two)
    two.members(one, two)
    world.run(lambda: one.counters.connections == 2)


def test_the_log_of_refused_certificates_is_bounded(
    world: World, files: Callable[..., TlsFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    one = secure(world.node(1), files("node1")).identify()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for number in range(1, 31):
        stranger = world.stranger(one)
        sock = context.wrap_socket(stranger.sock, do_handshake_on_connect=False)
        world.sockets.append(sock)

        def shaken(sock: ssl.SSLSocket = sock) -> bool:
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                return False
            return True

        world.run(shaken)
        world.run(lambda number=number: one.counters.refused == number)  # type: ignore[misc]
    assert capfd.readouterr().err.count("its certificate is refused") == 1


def test_messages_do_not_wait_for_a_flood_of_handshakes(
    world: World, files: Callable[[str], TlsFiles]
) -> None:
    """Each turn serves those who are let in, and then some of the strangers."""
    one, two = secure(world.node(1), files("node1")), secure(world.node(2), files("node2"))
    for node in (one, two):
        node.identify().members(one, two)
    world.run(lambda: one.counters.connections == 2 == two.counters.connections)
    strangers = [world.stranger(one).sock for _ in range(PENDING_PER_ADDRESS_MAX)]
    world.run(lambda: one.counters.pending == len(strangers))
    for sock in strangers:
        sock.sendall(client_hello())
    unanswered, turns = set(strangers), 0
    while unanswered:
        body = b"message %d" % turns
        two.hub.send(1, [body])
        one.loop.dispatch(one.loop.poll(WAIT_S))
        assert one.got(RecordKind.MESSAGE, 2)[-1:] == [body]
        answered = select.select(list(unanswered), [], [], 0)[0]
        assert len(answered) < len(strangers) / 2
        unanswered.difference_update(answered)
        turns += 1
    assert one.counters.pending == len(strangers)


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
    world.run(lambda: (one.counters.malformed, one.counters.refused) == (1, 1))
    assert one.counters.frames_in == 0


def test_a_node_without_tls_says_so(world: World, files: Callable[[str], TlsFiles]) -> None:
    one, two = secure(world.node(1), files("node1")).identify(), world.node(2).identify()
    one.members(one, two)
    world.run(lambda: two.counters.malformed > 0)
    assert one.counters.connections == 0


# --- this node's own files ---------------------------------------------------------------------------------


def test_files_that_cannot_be_used(tmp_path: Path, files: Callable[..., TlsFiles]) -> None:
    good = files("node1")
    for mode in (0o640, 0o604, 0o620, 0o610, 0o601):
        Path(good.key).chmod(mode)
        with pytest.raises(TlsFilesWrong, match="must not be open to others: mode 06") as caught:
            TlsContext(good)
        assert caught.value.hint == f"chmod 0600 {good.key}"
    for mode in (0o600, 0o400, 0o700):
        Path(good.key).chmod(mode)
        TlsContext(good)
    other = files("node2")
    with pytest.raises(TlsFilesWrong, match="ssl_cert_file"):
        TlsContext(TlsFiles(good.cert, other.key, good.ca))
    with pytest.raises(TlsFilesWrong, match="ssl_ca_file"):
        TlsContext(TlsFiles(good.cert, good.key, str(tmp_path / "none")))
    with pytest.raises(TlsFilesWrong, match=r"ssl_key_file = '.*/none': must be a file that can be read"):
        TlsContext(TlsFiles(good.cert, str(tmp_path / "none"), good.ca))
    with pytest.raises(TlsFilesWrong, match=r"ssl_key_file = .*must be a regular file"):
        TlsContext(TlsFiles(good.cert, str(tmp_path), good.ca))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(
    tmp_path: Path, files: Callable[..., TlsFiles]
) -> None:
    good = files("node1")
    locked = tmp_path / "locked.key"
    openssl = ["openssl", "pkey", "-in", good.key, "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(openssl, check=True, capture_output=True)
    locked.chmod(0o600)
    with pytest.raises(TlsFilesWrong, match=r"ssl_key_file = '.*locked.key': must not need a passphrase"):
        TlsContext(TlsFiles(good.cert, str(locked), good.ca))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of root for another user")
@pytest.mark.parametrize(
    ("owner", "mode", "allowed"),
    [
        ("root", 0o640, True),
        ("root", 0o600, False),  # allowed by the rule, but that user cannot read it
        ("root", 0o644, False),
        ("root", 0o660, False),
        ("user", 0o600, True),
        ("user", 0o640, False),
        ("other", 0o644, False),
        ("other", 0o600, False),
    ],
)
def test_whose_key_it_is_counts_as_in_postgresql(
    tmp_path: Path, files: Callable[..., TlsFiles], owner: str, mode: int, allowed: bool
) -> None:
    account = pwd.getpwnam("nobody")
    good = files("node1")
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        copies = [shutil.copy(path, folder / Path(path).name) for path in good]
        for path in copies:
            os.chmod(path, 0o644)
        key = copies[1]
        os.chown(key, {"root": 0, "user": account.pw_uid, "other": 54321}[owner], account.pw_gid)
        os.chmod(key, mode)
        assert _loads_as(account, TlsFiles(*map(str, copies))) is allowed
    finally:
        shutil.rmtree(folder)


def _loads_as(account: pwd.struct_passwd, files: TlsFiles) -> bool:
    child = os.fork()
    if child == 0:
        code = 2
        try:
            os.setgroups([account.pw_gid])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            TlsContext(files)
            code = 0
        except TlsFilesWrong:
            code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return code == 0


def test_a_node_looks_at_its_own_certificate_as_peers_will(tmp_path: Path) -> None:
    maker, foreign = Maker(tmp_path), Maker(tmp_path, "foreign")
    whom = Whom("test", 1, "10.0.0.1")
    good = maker.issue("good", whom.uri, ends_days=50)
    assert 49 * 86400 < TlsContext(good).check_own(whom) < 51 * 86400
    with pytest.raises(
        TlsFilesWrong, match=r"must name this node, pgraft://test/2 at 10\.0\.0\.1, and names"
    ):
        TlsContext(good).check_own(Whom("test", 2, "10.0.0.1"))
    with pytest.raises(TlsFilesWrong, match=r"not accepted by the authorities in pgraft\.ssl_ca_file"):
        TlsContext(good._replace(ca=str(foreign.ca))).check_own(whom)
    for starts, ends in ((-9, -1), (5, 9)):
        late = maker.issue("late", whom.uri, starts_days=starts, ends_days=ends)
        with pytest.raises(CertificateOutOfDate, match=r"expired|not yet valid"):
            TlsContext(late).check_own(whom)


@pytest.mark.parametrize("cluster_id", ["a b/c", "ü", "100%"])
def test_cluster_names_are_quoted_in_a_uri(tmp_path: Path, cluster_id: str) -> None:
    whom = Whom(cluster_id, 1, "h")
    TlsContext(Maker(tmp_path).issue("one", whom.uri)).check_own(whom)


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
    # Neither a file that is none, nor a certificate that peers would refuse, takes the place of a good one.
    another = files("node1")
    for bad_cert, bad_key in ((tmp_path / "no-certificate", again.key), (Path(another.cert), another.key)):
        (tmp_path / "no-certificate").write_text("nonsense")
        lines = two.log().count("stay in use")
        shutil.copy(bad_cert, cert)
        shutil.copy(bad_key, in_use.key)
        two.process.send_signal(signal.SIGHUP)
        two.wait(lambda lines=lines: two.log().count("stay in use") > lines, "the refusal of bad files")  # type: ignore[misc]
        assert served_certificate(two) == ssl.PEM_cert_to_DER_cert(Path(again.cert).read_text())
    one.send(2, b"still")
    two.wait_for(RecordKind.MESSAGE, 1, b"still")
    assert two.word("connects") == 1


def test_a_waiting_newcomer_takes_addresses_from_its_settings(
    cluster: Cluster, files: Callable[[str], TlsFiles]
) -> None:
    one, two = cluster.nodes(2)
    one.settings = settings(files("node1")) | {"initial_cluster": tuple(node.member for node in (one, two))}
    two.settings = settings(files("by-address"))
    for node in (one, two):
        node.start()
        node.identify()
    two.members([one, two])
    one.wait_for(RecordKind.PEER_HELLO, 2)


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
