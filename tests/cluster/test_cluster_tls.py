"""A whole cluster with mutual TLS: it forms, works, has its certificates renewed, and keeps others out."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pgraft.transport.framing import FrameType, encode_frame
from pgraft.transport.limits import PENDING_PER_ADDRESS_MAX
from pgraft.transport.records import RefusalCode
from pgraft.transport.tls_files import TlsFiles
from pgraft_launcher.certificates import Authority, ensure, files_of, node_uri
from tests.support import pgcluster
from tests.support.certificates import Maker, replace
from tests.support.pgcluster import Cluster, Node, eventually
from tests.support.wire_client import client_context, client_hello, dialogue

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(template: Path) -> Iterator[Cluster]:
    """Three nodes with TLS, whose certificates `init --make-certs` has made."""
    # Elections by mistake would look like leadership lost in a reload, and tests run side by side.
    with pgcluster.cluster(template, 3, tls=True, election_timeout="2s") as made:
        yield made


@pytest.fixture
def undisturbed(cluster: Cluster) -> Iterator[Node]:
    """A follower; afterwards the leader is the same, in the same term, and commits."""
    leader = cluster.wait_agreed()
    term = leader.value("SELECT pgraft_get_term()")
    yield cluster.followers(leader)[0]
    assert leader.value("SELECT pgraft_replicate_entry('undisturbed')") is True
    assert leader.sql("SELECT pgraft_is_leader(), pgraft_get_term()") == [(True, term)]


def _files(cluster: Cluster, node_id: int) -> TlsFiles:
    return TlsFiles(*map(str, files_of(cluster.certificates, node_id)))


def _counters(node: Node) -> dict[str, int]:
    shown = pgcluster.run(pgcluster.INSPECT, "json", "-D", str(node.pgdata))
    counters: dict[str, int] = json.loads(shown.stdout)["network"]
    return counters


def _served(node: Node, cluster: Cluster) -> bytes:
    """The certificate that the node shows to those who connect now."""
    context = client_context(_files(cluster, 1), trust=files_of(cluster.certificates, 1).ca)
    with (
        socket.create_connection(("127.0.0.1", node.raft_port), 30) as plain,
        context.wrap_socket(plain) as sock,
    ):
        assert sock.version() == "TLSv1.3"
        return sock.getpeercert(binary_form=True) or b""


def _on_disk(cluster: Cluster, node: Node) -> bytes:
    return ssl.PEM_cert_to_DER_cert(files_of(cluster.certificates, node.node_id).cert.read_text())


def _renew(cluster: Cluster, node: Node) -> None:
    """A new key and certificate of the same authority, in the same files."""
    signed = cluster.root / "signed"
    signed.mkdir(exist_ok=True)
    made = files_of(signed, node.node_id)
    Authority.of(cluster.certificates).issue(made, node_uri("pgraft", node.node_id))
    replace(cluster.certificates, node.node_id, TlsFiles(*map(str, made)), owner_of=node.pgdata)


# --- it works -------------------------------------------------------------------------------------------


def test_it_replicates_and_a_node_that_was_away_catches_up(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    away = cluster.followers(leader)[0]
    away.stop()
    texts = ["", "é" * 300_000, *(f"entry {number}" for number in range(50))]
    with leader.connect() as session:
        for text in texts:
            assert session.execute("SELECT pgraft_replicate_entry(%s)", (text,)).fetchone() == (True,)
    away.start()
    cluster.wait_agreed()
    last = leader.value("SELECT last_index FROM pgraft_log_get_stats()")
    with away.connect() as session:
        for offset, text in enumerate(reversed(texts)):
            row = session.execute("SELECT pgraft_log_get_entry(%s)", (last - offset,)).fetchone()
            assert row == (text,)


@pytest.mark.slow
def test_a_newcomer_with_a_certificate_joins(cluster: Cluster) -> None:
    leader = cluster.wait_agreed()
    node = cluster.newcomer(cluster.nodes[:3], start=False)
    try:
        node.start()
        node.execute("CREATE EXTENSION pgraft")
        added = "SELECT pgraft_add_node(%s, '127.0.0.1', %s)"
        assert leader.value(added, node.node_id, node.raft_port) is True
        cluster.wait_agreed()
        assert leader.value("SELECT pgraft_remove_node(%s)", node.node_id) is True
    finally:
        node.launch("stop", "-m", "immediate", ok=False)
        cluster.nodes.remove(node)
        shutil.rmtree(node.pgdata, ignore_errors=True)
    cluster.wait_agreed()


# --- certificates are renewed ----------------------------------------------------------------------------


def test_certificates_are_reloaded_without_losing_leadership(cluster: Cluster, undisturbed: Node) -> None:
    leader = cluster.wait_agreed()
    seen: list[bool] = []
    done = threading.Event()

    def watch() -> None:
        with leader.connect() as session:
            while not done.wait(0.005):
                row = session.execute("SELECT pgraft_is_leader()").fetchone()
                seen.append(row == (True,))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for node in cluster.nodes:
            before = _served(node, cluster)
            _renew(cluster, node)
            assert _served(node, cluster) == before, "nothing changes before a reload"
            node.launch("reload")
            eventually(
                lambda node=node: _served(node, cluster) == _on_disk(cluster, node), "a new certificate"
            )  # type: ignore[misc]
        # What is connected goes on; the new certificates are what new connections are made with.
        connected = f"connected to node {leader.node_id} "
        lines = undisturbed.log_text().count(connected)
        os.kill(undisturbed.pid("network"), signal.SIGKILL)
        eventually(
            lambda: undisturbed.log_text().count(connected) > lines, "a connection with new certificates"
        )
        eventually(lambda: undisturbed.value("SELECT pgraft_get_leader()") == leader.node_id, "its leader")
    finally:
        done.set()
        watcher.join()
    assert len(seen) > 100
    assert all(seen)


def test_bad_new_files_leave_the_old_ones_in_use(cluster: Cluster, undisturbed: Node) -> None:
    node = undisturbed
    served = _served(node, cluster)
    files = files_of(cluster.certificates, node.node_id)
    kept = {path: path.read_bytes() for path in (files.cert, files.key)}
    maker = Maker(cluster.root / "bad")
    own = node_uri("pgraft", node.node_id)
    expired = files_of(cluster.root / "bad", 99)
    Authority.of(cluster.certificates).issue(expired, own, starts_days=-9, ends_days=-1)
    cases = {
        "is not accepted by the authorities": maker.issue("foreign", own),
        "certificate has expired": TlsFiles(*map(str, expired)),
        "must name this node": _files(cluster, node.node_id % 3 + 1),
    }
    try:
        for complaint, bad in cases.items():
            replace(cluster.certificates, node.node_id, bad, owner_of=node.pgdata)
            said = node.launch("reload", ok=False)
            assert said.returncode == 1
            assert "the certificates loaded before stay in use" in said.stderr
            assert complaint in said.stderr
            eventually(lambda complaint=complaint: f"{complaint}" in node.log_text(), "the same in the log")  # type: ignore[misc]
            assert _served(node, cluster) == served
        files.key.chmod(0o644)
        assert "must not be open to others: mode 0644" in node.launch("reload", ok=False).stderr
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
        files.key.chmod(0o600)
    node.launch("reload")
    assert node.log_text().count("stay in use") == 4


# --- who is kept out --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authority", "days", "reason"),
    [
        pytest.param(
            "foreign", (0, 10), "certificate is refused: self-signed certificate", marks=pytest.mark.slow
        ),
        ("own", (-9, -1), "certificate is refused: certificate has expired"),
    ],
)
def test_a_node_with_a_certificate_that_does_not_count_is_kept_out(
    cluster: Cluster, undisturbed: Node, authority: str, days: tuple[int, int], reason: str
) -> None:
    """The whole node; and once its certificate is a good one, a reload lets it in."""
    node = undisturbed
    others = [one for one in cluster.nodes if one is not node]
    logged = {one.name: one.log_text().count(reason) for one in others}
    files = files_of(cluster.certificates, node.node_id)
    kept = {path: path.read_bytes() for path in files}
    uri = node_uri("pgraft", node.node_id)
    if authority == "foreign":
        bad = Maker(cluster.root / "foreign").issue("node", uri)
        trusted = Path(bad.ca)
    else:
        made = files_of(cluster.root / "foreign", 98)
        made.cert.parent.mkdir(exist_ok=True)
        Authority.of(cluster.certificates).issue(made, uri, starts_days=days[0], ends_days=days[1])
        bad, trusted = TlsFiles(*map(str, made)), files.ca
    node.stop()
    replace(cluster.certificates, node.node_id, bad, owner_of=node.pgdata)
    own_ca = cluster.root / f"ca-of-{node.name}.crt"
    shutil.copy(trusted, own_ca)
    own_ca.chmod(0o644)
    started = node.start("-W", "-o", f"-c pgraft.ssl_ca_file={own_ca}")
    assert ("peers will refuse this node" in started.stdout) is (authority == "own")
    for one in others:
        eventually(lambda one=one: one.log_text().count(reason) > logged[one.name], f"a line of {one.name}")  # type: ignore[misc]
    # It hears why, too.
    told = "it ended the TLS handshake:" if authority == "own" else "certificate is refused:"
    eventually(lambda: told in node.log_text(), "a line of the node that is kept out")
    assert node.status()["leader"] == 0
    for path, content in kept.items():
        path.write_bytes(content)
    shutil.copy(files.ca, own_ca)
    node.launch("reload")
    cluster.wait_agreed()


def test_a_member_cannot_speak_for_another_node(cluster: Cluster, undisturbed: Node) -> None:
    """Its certificate is good, and names somebody else than it claims to be: wrong cluster, wrong node."""
    node = undisturbed
    other = node.node_id % 3 + 1
    third = 6 - node.node_id - other
    foreign = files_of(cluster.root / "foreign-name", 1)
    foreign.cert.parent.mkdir(exist_ok=True)
    Authority.of(cluster.certificates).issue(foreign, node_uri("another", other))
    for files in (_files(cluster, third), _files(cluster, node.node_id), TlsFiles(*map(str, foreign))):
        with dialogue(node.raft_port, client_context(files)) as stranger:
            stranger.hello(node.node_id, node_id=other)
            refused = stranger.refusal()
        assert refused.code == RefusalCode.CERTIFICATE
        assert f"the certificate of node {other} does not name it: it has URI:pgraft://" in refused.text
    line = f"refused node {other} at 127.0.0.1:"
    eventually(lambda: line in node.log_text(), "the refusal in the log")


@pytest.mark.slow
def test_a_node_with_another_nodes_certificate_does_not_start(cluster: Cluster, undisturbed: Node) -> None:
    node = undisturbed
    other = node.node_id % 3 + 1
    maker = Maker(cluster.root / "misnamed")
    bad = maker.issue("node", node_uri("pgraft", other))
    key = Path(bad.key)
    about = node.pgdata.stat()
    os.chown(key, about.st_uid, about.st_gid)
    node.stop()
    options = " ".join(
        f"-c pgraft.ssl_{name}_file={path}"
        for name, path in (("cert", bad.cert), ("key", bad.key), ("ca", bad.ca))
    )
    refusal = node.start("-o", options, ok=False)
    assert refusal.returncode == 1
    assert f"must name this node, pgraft://pgraft/{node.node_id} at 127.0.0.1" in refusal.stderr
    assert refusal.stderr.count("\n") == 1
    key.chmod(0o640)
    assert "must not be open to others: mode 0640" in node.start("-o", options, ok=False).stderr
    node.start()
    cluster.wait_agreed()


def test_a_flood_of_handshakes(cluster: Cluster, undisturbed: Node) -> None:
    """Bursts of TLS handshakes at every node, none of which goes on; `undisturbed` looks at the leader."""
    hello = client_hello()
    leader = cluster.wait_agreed()
    with leader.connect() as session:
        for _ in range(5):
            with contextlib.ExitStack() as stack:
                strangers = [
                    stack.enter_context(socket.create_connection(("127.0.0.1", node.raft_port), 30))
                    for node in cluster.nodes
                    for _ in range(PENDING_PER_ADDRESS_MAX)
                ]
                for sock in strangers:
                    with contextlib.suppress(ConnectionError):
                        sock.sendall(hello)
                row = session.execute("SELECT pgraft_replicate_entry('through the flood')").fetchone()
                assert row == (True,)
                assert strangers[-1].recv(1), "it is answered at last"


def test_raw_sockets_get_nowhere(cluster: Cluster, undisturbed: Node) -> None:
    node = undisturbed
    before = _counters(node)
    hello_in_the_clear = encode_frame(FrameType.HELLO, b"\x80")
    for words in (
        b"GET / HTTP/1.0\r\n\r\n",
        os.urandom(4096),
        hello_in_the_clear,
        b"\x16\x03\x01\xff\xff" * 99,
    ):
        with dialogue(node.raft_port) as stranger:
            answer = b""
            try:
                stranger.sock.sendall(words)
                stranger.sock.shutdown(socket.SHUT_WR)
                while data := stranger.sock.recv(4096):
                    answer += data
            except OSError as error:  # it was thrown out before it was done talking
                if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                    raise
        # A TLS alert at most (RFC 8446, 5.1: content type 21), and never a frame.
        assert answer[:1] in (b"", b"\x15")
        assert len(answer) <= 7
    with pytest.raises(OSError, match=_refused("certificate required")):
        _talk_tls(node, client_context())
    old = client_context(_files(cluster, 1))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError, match=_refused("protocol version")):
        _talk_tls(node, old)
    with pytest.raises(OSError, match=_refused("unknown ca")):
        _talk_tls(node, client_context(Maker(cluster.root / "raw").issue("x", node_uri("pgraft", 1))))
    # A good certificate, and then nothing: it is nobody, and does not wait for ever.
    with dialogue(node.raft_port, client_context(_files(cluster, 1))) as silent:
        silent.end()
    # The node may still be at the last of them, and a reset that overtakes it counts as something else.
    eventually(
        lambda: (
            _counters(node)["refused"] - before["refused"] >= 2
            and _counters(node)["malformed"] - before["malformed"] >= 4
        ),
        "all of them counted",
    )
    assert _counters(node)["connections"] == before["connections"]


def _refused(alert: str) -> str:
    """The alert, or, when a reset has overtaken it, the end of the connection."""
    return f"alert {alert}|EOF occurred|reset by peer"


def _talk_tls(node: Node, context: ssl.SSLContext) -> None:
    """In TLS 1.3 the client is done before the server has seen its certificate: the answer tells."""
    with dialogue(node.raft_port, context) as stranger:
        stranger.hello(node.node_id)
        stranger.frame()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_openssl_s_client(cluster: Cluster, undisturbed: Node) -> None:
    node = undisturbed
    ca = files_of(cluster.certificates, 1).ca
    files = _files(cluster, 1)

    def s_client(*words: str) -> str:
        where = ["openssl", "s_client", "-connect", f"127.0.0.1:{node.raft_port}", "-CAfile", str(ca)]
        done = subprocess.run(
            [*where, "-ign_eof", *words],
            input="not a frame of ours\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    assert "alert certificate required" in s_client()
    assert "alert protocol version" in s_client("-tls1_2")
    told = s_client("-cert", files.cert, "-key", files.key)
    assert "Verify return code: 0 (ok)" in told
    assert "TLSv1.3" in told
    assert "alert" not in told  # it is let into TLS, and then what it says is no frame
    eventually(lambda: "not a pgraft frame" in node.log_text(), "what it said, in the log")


def test_memory_of_a_node_with_tls(cluster: Cluster) -> None:
    for node in cluster.nodes:
        pids = [pid for part, pid in node.status()["pids"].items() if part != "postmaster"]
        assert sum(psutil.Process(pid).memory_full_info().pss for pid in pids) < 50 * 1024 * 1024


@pytest.mark.slow
def test_tls_is_turned_on_in_a_running_cluster(template: Path) -> None:
    """Node after node, as README says: the majority moves over, and nothing is lost."""
    with pgcluster.cluster(template, 3, election_timeout="500", heartbeat_interval="50") as made:
        leader = made.wait_agreed()
        assert leader.value("SELECT pgraft_replicate_entry('in the clear')") is True
        index = leader.value("SELECT last_index FROM pgraft_log_get_stats()")
        ensure(made.certificates, "pgraft", [1, 2, 3])
        about = leader.pgdata.stat()
        for path in (made.certificates, *made.certificates.iterdir()):
            os.chown(path, about.st_uid, about.st_gid)
        for node in [*made.followers(leader), leader]:
            settings = files_of(made.certificates, node.node_id).settings()
            with (node.pgdata / "postgresql.conf").open("a") as conf:
                conf.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
            node.launch("restart", "-W")
        leader = made.wait_agreed()
        for node in made.nodes:
            assert node.value("SELECT pgraft_log_get_entry(%s)", index) == "in the clear"
            assert _served(node, made)
        assert leader.value("SELECT pgraft_replicate_entry('with TLS')") is True
