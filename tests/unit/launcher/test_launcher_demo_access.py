"""A demo's servers and nodes let in nobody but its user and root."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgraft.transport.tls_files import TlsFiles
from pgraft_launcher.certificates import files_of
from pgraft_launcher.cluster import Cluster
from tests.support.other_user import STRANGER, owner, roots_place, run_as, sh
from tests.support.pgcluster import bindir, pg_config, server_user
from tests.support.wire_client import client_context, dialogue
from tests.unit.launcher.launcher_node import LAUNCH, OneNode, launch
from tests.unit.launcher.launcher_standins import environment

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users to try it with"),
]
USER = server_user() or ""
PSQL = str(bindir(18) / "psql")
ONE = ("-X", "-A", "-t", "-c", "SELECT current_user", "-d")


class Demo:
    """A demo that root has made, in a folder of root's, for the server's user."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        words = ["demo", "up", "--nodes", "2", "--user", USER, "--dir", str(directory)]
        done = launch(*words, "--pg-config", pg_config(18))
        assert done.returncode == 0, done.stderr
        self.printed = done.stdout

    def nodes(self) -> list[dict[str, Any]]:
        """`demo status --json`."""
        shown = launch("demo", "status", "--json", "--dir", str(self.directory))
        assert shown.returncode == 0, shown.stderr
        found: list[dict[str, Any]] = json.loads(shown.stdout)
        return found

    def ports(self) -> list[tuple[int, int]]:
        """Of PostgreSQL and of Raft, of each node."""
        content = json.loads((self.directory / "demo.json").read_text())
        return [(pg_port, raft_port) for _, pg_port, raft_port in content["nodes"]]


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """One for all tests here, which change nothing in it."""
    with roots_place() as place:
        directory = place / "demo"
        try:
            made = Demo(directory)
            yield made
        finally:
            down = launch("demo", "down", "--dir", str(directory))
        assert down.returncode == 0, down.stderr
        # It lies in a folder of root's: its user empties it, and root removes it.
        assert not directory.exists()


def test_the_printed_commands_work_as_they_stand(demo: Demo) -> None:
    commands = re.findall(r"^  node\d \w+ +(.*)$", demo.printed, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        words = [*shlex.split(command), "-XAtc", "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"]
        for done in (
            subprocess.run(words, capture_output=True, text=True, check=False, cwd="/"),
            run_as(USER, *words),
        ):
            assert (done.returncode, done.stdout) == (0, "t\n"), done.stderr


def test_a_stranger_is_kept_out_of_the_socket(demo: Demo) -> None:
    for node in demo.nodes():
        for dsn in (node["dsn"], re.sub(r"user=\w+", f"user={STRANGER}", node["dsn"])):
            done = run_as(STRANGER, PSQL, *ONE, dsn)
            assert done.returncode == 2
            assert "Permission denied" in done.stderr
    sockets = demo.directory / "s"
    assert (sockets.stat().st_mode & 0o777, owner(sockets)) == (0o700, USER)


def test_a_stranger_who_reaches_the_socket_is_refused_by_the_server(demo: Demo) -> None:
    """As where another place for sockets was set."""
    for folder in (demo.directory, demo.directory / "s"):
        folder.chmod(0o711)
    try:
        done = run_as(STRANGER, PSQL, *ONE, demo.nodes()[0]["dsn"])
        assert done.returncode == 2
        assert f'Peer authentication failed for user "{USER}"' in done.stderr
    finally:
        for folder in (demo.directory, demo.directory / "s"):
            folder.chmod(0o700)


def test_nobody_gets_in_by_tcp_without_a_password(demo: Demo) -> None:
    for port, _ in demo.ports():
        for database in ("postgres", "replication"):
            dsn = f"host=127.0.0.1 port={port} user={USER} dbname={database}"
            done = run_as(STRANGER, PSQL, "-w", *ONE, dsn)
            assert done.returncode == 2
            assert "no password supplied" in done.stderr


def test_a_raft_port_wants_a_certificate(demo: Demo) -> None:
    found = Cluster.load(demo.directory)
    assert found is not None
    for node_id, (_, raft_port) in enumerate(demo.ports(), 1):
        with dialogue(raft_port) as clear:
            clear.hello(node_id)
            clear.end()
        files = files_of(found.certificates, node_id)
        assert (files.key.stat().st_mode & 0o777, owner(files.key)) == (0o600, USER)
        with dialogue(raft_port, client_context(TlsFiles(*map(str, files)), trust=files.ca)) as tls:
            assert tls.sock.getpeercert()  # type: ignore[attr-defined]


def test_another_user_has_a_demo_of_its_own(tmp_path: Path) -> None:
    with roots_place() as place:
        home = place / "home"
        home.mkdir()
        account = pwd.getpwnam(STRANGER)
        os.chown(home, account.pw_uid, account.pw_gid)
        env = environment() | {"XDG_STATE_HOME": str(home), "HOME": str(home)}
        up = [*LAUNCH, "demo", "up", "--nodes", "1", "--no-tls", "--pg-config", pg_config(18)]
        done = run_as(STRANGER, *up, env=env)
        try:
            assert done.returncode == 0, done.stderr
            assert "warning: without TLS every user of this machine" in done.stdout
            command = re.findall(r"^  node1 leader +(.*)$", done.stdout, re.MULTILINE)[0]
            asked = run_as(STRANGER, *shlex.split(command), "-XAtc", "SELECT pgraft_is_leader()")
            assert asked.stdout == "t\n", asked.stderr
            other = run_as(USER, *shlex.split(command), "-XAtc", "SELECT 1")
            assert other.returncode == 2
            up[-3:-2] = ["--tls"]
            assert "was made without TLS" in run_as(STRANGER, *up, env=env).stderr
        finally:
            down = run_as(STRANGER, *LAUNCH, "demo", "down", env=env)
        assert down.returncode == 0, down.stderr
        assert list(home.iterdir()) == []


@pytest.fixture
def node() -> Iterator[OneNode]:
    """A folder of the server's user."""
    made = OneNode()
    yield made
    made.destroy()


def test_a_demo_that_lets_everybody_in_is_refused(node: OneNode) -> None:
    """One that an older pgraft has made."""
    folder = node.root / "demo"
    content = {"nodes": [], "sockets": str(folder / "s"), "bindir": str(bindir(18)), "tls": False}
    sh(USER, 'mkdir -m 700 "$1"; printf %s "$2" > "$1/demo.json"', str(folder), json.dumps(content))
    done = launch("demo", "up", "--dir", str(folder))
    assert done.returncode == 1
    assert "lets every user of this machine in" in done.stderr
    assert f"demo down --dir {folder}" in done.stderr
    assert launch("demo", "down", "--dir", str(folder)).returncode == 0
    assert not folder.exists()


def test_a_demo_directory_that_others_can_write_is_refused(node: OneNode) -> None:
    folder = node.root / "demo"
    sh(USER, 'mkdir -m 777 "$1"; chmod 777 "$1"', str(folder))
    done = launch("demo", "up", "--dir", str(folder))
    assert done.returncode == 1
    assert f"others than {USER} can write into {folder}" in done.stderr
