"""Certificates for trials: `init --make-certs DIR`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.transport.limits import EXPIRY_NEAR_DAYS
from pgraft.transport.tls import TlsContext
from pgraft.transport.tls_files import TlsFiles, TlsFilesWrong, Whom
from pgraft_launcher import certificates
from pgraft_launcher.certificates import Authority, ensure, files_of
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.logfile import default_path
from tests.support.pgcluster import eventually
from tests.unit.launcher.launcher_node import OneNode
from tests.unit.launcher.test_launcher_init import setting


def days_left(directory: Path, node_id: int, cluster_id: str = "c") -> int:
    """As the network process sees them; raises what it would raise."""
    files = TlsFiles(*map(str, files_of(directory, node_id)))
    return int(TlsContext(files).check_own(Whom(cluster_id, node_id, "nowhere")) // 86400)


def test_an_authority_and_a_certificate_for_each_node(tmp_path: Path) -> None:
    directory = tmp_path / "made"
    assert ensure(directory, "c", [1, 2]) == [1, 2]
    assert directory.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
    keys = {"ca.key": 0o600, "node1.key": 0o600, "node2.key": 0o600}
    assert modes == keys | {"ca.crt": 0o644, "node1.crt": 0o644, "node2.crt": 0o644}
    for node_id in (1, 2):
        assert days_left(directory, node_id) == certificates.NODE_DAYS - 1
    with pytest.raises(TlsFilesWrong, match="must name this node"):
        days_left(directory, 1, "other")


def test_what_is_there_stays_and_a_newcomer_is_signed_by_the_same_authority(tmp_path: Path) -> None:
    ensure(tmp_path, "c", [1, 2])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert ensure(tmp_path, "c", [1, 2]) == []
    assert ensure(tmp_path, "c", [4]) == [4]
    assert {path: path.read_bytes() for path in before} == before
    assert days_left(tmp_path, 4) > 300


def test_one_that_ends_soon_is_renewed(tmp_path: Path) -> None:
    ensure(tmp_path, "c", [1])
    Authority.of(tmp_path).issue(files_of(tmp_path, 1), "pgraft://c/1", ends_days=EXPIRY_NEAR_DAYS - 1)
    assert days_left(tmp_path, 1) < EXPIRY_NEAR_DAYS
    assert ensure(tmp_path, "c", [1]) == [1]
    assert days_left(tmp_path, 1) > 300


def test_what_cannot_be_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure(tmp_path, "c", [1])
    with pytest.raises(LaunchError, match="names pgraft://c/1, and not pgraft://d/1"):
        ensure(tmp_path, "d", [1])
    (tmp_path / "ca.key").unlink()
    assert ensure(tmp_path, "c", [1]) == []
    with pytest.raises(LaunchError, match=r"ca\.key is missing, and a node's certificate has to be signed"):
        ensure(tmp_path, "c", [1, 2])
    (tmp_path / "node1.crt").write_text("nonsense")
    with pytest.raises(LaunchError, match=r"node1\.crt is no node's certificate"):
        ensure(tmp_path, "c", [1])
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(LaunchError, match="needs the Python package cryptography") as caught:
        ensure(tmp_path, "c", [1])
    assert "pip install 'pgraft[tls]'" in caught.value.hint


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_openssl_finds_nothing_wrong_with_them(tmp_path: Path) -> None:
    ensure(tmp_path, "a b", [1])
    for purpose in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.crt", "node1.crt"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.stdout == "node1.crt: OK\n", done.stderr
    shown = subprocess.run(
        ["openssl", "x509", "-in", "node1.crt", "-noout", "-ext", "subjectAltName"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "URI:pgraft://a%20b/1" in shown.stdout


@pytest.fixture
def node() -> Iterator[OneNode]:
    """A folder for a node."""
    made = OneNode()
    yield made
    made.destroy()


@pytest.mark.cluster
def test_init_turns_tls_on_with_certificates_that_it_makes(node: OneNode) -> None:
    directory = node.root / "tls"
    refused = node.init("--make-certs", str(directory), "--set", "pgraft.ssl_ca_file=/mine")
    assert refused.returncode == 1
    assert "--make-certs sets pgraft.ssl_ca_file itself" in refused.stderr
    assert not node.pgdata.exists()
    done = node.init("--make-certs", str(directory))
    assert done.returncode == 0, done.stderr
    assert f"certificates for trials made in {directory}: node1.crt" in done.stdout
    assert setting(node, "pgraft.ssl_enabled") == "on"
    assert setting(node, "pgraft.ssl_key_file") == str(directory / "node1.key")
    owner = node.pgdata.stat().st_uid
    for path in (directory, *directory.iterdir()):
        assert path.stat().st_uid == owner
        assert path.suffix == ".crt" or not path.stat().st_mode & 0o077


@pytest.mark.cluster
def test_a_reload_that_nobody_heard_is_an_error(node: OneNode) -> None:
    directory = node.root / "tls"
    node.init("--make-certs", str(directory))
    assert node.do("start").returncode == 0
    assert node.do("reload").returncode == 0
    key = directory / "node1.key"
    good = key.read_bytes()
    key.write_bytes(b"nonsense")
    os.kill(node.status()["pids"]["network"], signal.SIGKILL)
    log = Path(default_path(str(node.pgdata)))
    eventually(lambda: "giving it up" in log.read_text(), "a network process that cannot start")
    # The files are good again; but who would read them is not there.
    key.write_bytes(good)
    refused = node.do("reload")
    assert refused.returncode == 1
    assert "node signaled" not in refused.stdout
    assert "no certificates were loaded: the node's network process does not run" in refused.stderr
    assert "pgraft-launch restart" in refused.stderr
    assert node.do("restart").returncode == 0
    reloaded = node.do("reload")
    assert (reloaded.returncode, "node signaled" in reloaded.stdout) == (0, True)
