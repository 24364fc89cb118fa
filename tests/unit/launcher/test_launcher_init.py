"""`init`, `install-extension` and `demo` on a real PostgreSQL."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.postgres.binaries import Installation
from pgraft.transport.tls_files import TlsFiles
from pgraft_launcher import extension
from pgraft_launcher.certificates import files_of, node_uri
from pgraft_launcher.cluster import Cluster
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.ports import free_ports
from pgraft_launcher.progress import Progress
from tests.support.pgcluster import bindir, pg_config
from tests.support.wire_client import client_context, dialogue
from tests.unit.launcher.launcher_node import OneNode, launch

pytestmark = pytest.mark.cluster


@pytest.fixture
def node() -> Iterator[OneNode]:
    """A folder for a node."""
    made = OneNode()
    yield made
    made.destroy()


def setting(node: OneNode, name: str) -> str:
    """What PostgreSQL reads."""
    argv = [str(bindir(node.major) / "postgres"), "-C", name, "-D", str(node.pgdata)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.rstrip("\n")


def test_init_makes_a_node_and_again_changes_nothing_else(node: OneNode) -> None:
    done = node.init("--cluster-id", "it's", "--set", "pgraft.election_timeout=2s")
    assert done.returncode == 0, done.stderr
    assert "initdb" in done.stdout
    assert "trust" in done.stdout
    assert setting(node, "pgraft.cluster_id") == "it's"
    assert setting(node, "shared_preload_libraries") == "pgraft"
    config = node.pgdata / "postgresql.conf"
    text = config.read_text()
    config.write_text(
        text.replace("#shared_preload_libraries = ''", "shared_preload_libraries = 'auto_explain'")
    )
    users = config.read_text().partition("# --- pgraft: begin")[0]
    again = node.init("--set", "pgraft.election_timeout=3s")
    assert again.returncode == 0, again.stderr
    assert "already" in again.stdout
    assert config.read_text().startswith(users)
    assert setting(node, "shared_preload_libraries") == "auto_explain,pgraft"
    assert setting(node, "pgraft.election_timeout") == "3s"
    assert config.stat().st_uid == node.pgdata.stat().st_uid


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--set", "pgraft.election_timeout=500"], "pgraft.election_timeout = '500ms': must be at least 10"),
        (["--set", "pgraft.name=other"], "must be one of the names in pgraft.initial_cluster (only)"),
        (["--set", "nonsense"], "--set nonsense: must be NAME=VALUE"),
        (["--set", "a b=1"], "'a b' is not the name of a setting"),
        (["--pg-config", "/nowhere/pg_config"], "/nowhere/pg_config: no such program"),
    ],
)
def test_what_start_would_refuse_is_refused_before_anything_is_made(
    node: OneNode, words: list[str], complaint: str
) -> None:
    done = node.init(*words)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not node.pgdata.exists()


def test_a_folder_with_something_else_in_it_is_left_alone(node: OneNode) -> None:
    node.pgdata.mkdir()
    (node.pgdata / "mine").write_text("x")
    os.chown(node.pgdata, node.root.stat().st_uid, node.root.stat().st_gid)
    done = node.init()
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert [path.name for path in node.pgdata.iterdir()] == ["mine"]


def test_a_failing_initdb_is_one_line(node: OneNode) -> None:
    done = node.init("-o", "--no-such-option")
    assert done.returncode == 1
    assert "no-such-option" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_installed_extension_is_current_and_older_ones_are_replaced(tmp_path: Path) -> None:
    target = extension.Target(Installation(bindir(18)))
    extension.ensure(target.installation, Progress(silent=True))
    assert target.is_current()
    built = target.library.stat().st_mtime_ns
    extension.ensure(target.installation, Progress(silent=True))
    assert target.library.stat().st_mtime_ns == built
    target.control = tmp_path / "pgraft.control"
    target.control.write_text("default_version = '0.0.1'\n")
    assert target.installed_version() == "0.0.1"
    assert not target.is_current()


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = extension.Target(Installation(bindir(18)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="needs make, which is not on PATH"):
        extension.install(target, Progress(silent=True))


def test_an_older_build_of_this_version_will_do_where_there_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extension.Target, "is_current", lambda self: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    extension.ensure(Installation(bindir(18)), Progress(silent=True))
    monkeypatch.setattr(extension.Target, "installed_version", lambda self: "0.0.1")
    with pytest.raises(LaunchError, match="needs make"):
        extension.ensure(Installation(bindir(18)), Progress(silent=True))


def test_a_failing_build_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pgraft.control").write_text("default_version = '0'\n")
    (tmp_path / "Makefile").write_text("all:\n\t@echo 'x.c:1: error: no good' >&2; exit 1\n")
    monkeypatch.setattr(extension, "sources", lambda: tmp_path)
    with pytest.raises(LaunchError, match=r"x\.c:1: error: no good") as caught:
        extension.install(extension.Target(Installation(bindir(18))), Progress(silent=True))
    assert "\n" not in caught.value.message


def test_free_ports_are_free_and_different() -> None:
    assert len(set(free_ports(6, "seed"))) == 6


@pytest.fixture
def demo_dir(node: OneNode) -> Iterator[Path]:
    """A folder for a demo, taken down afterwards."""
    path = node.root / "demo"
    yield path
    launch("demo", "down", "--dir", str(path))


def test_a_demo_goes_up_is_shown_and_goes_down(demo_dir: Path) -> None:
    where = ["--dir", str(demo_dir)]
    none = launch("demo", "status", *where)
    assert none.returncode == 4
    done = launch("demo", "up", "--nodes", "2", "--pg-config", pg_config(18), *where)
    assert done.returncode == 0, done.stderr
    assert "read back on" in done.stdout
    shown = launch("demo", "status", "--json", *where)
    assert shown.returncode == 0
    nodes = json.loads(shown.stdout)
    assert [seen["name"] for seen in nodes] == ["node1", "node2"]
    assert sum(seen["is_leader"] for seen in nodes) == 1
    assert len({(seen["leader"], seen["term"]) for seen in nodes}) == 1
    for seen in nodes:
        assert f'psql "{seen["dsn"]}"' in done.stdout
    assert "has 2 nodes" in launch("demo", "up", "--nodes", "3", *where).stderr
    kept = launch("demo", "down", "--keep", *where)
    assert kept.returncode == 0, kept.stderr
    assert launch("demo", "status", *where).returncode == 3
    assert launch("demo", "up", *where).returncode == 0
    pids = [
        pid
        for seen in json.loads(launch("demo", "status", "--json", *where).stdout)
        for pid in seen["pids"].values()
    ]
    gone = launch("demo", "down", *where)
    assert gone.returncode == 0, gone.stderr
    assert not demo_dir.exists()
    assert not any(_lives(pid) for pid in pids)


def test_a_demo_with_tls(demo_dir: Path) -> None:
    """Its nodes agree, speak nothing but TLS with the certificates in its folder, and keep to it."""
    where = ["--dir", str(demo_dir)]
    done = launch("demo", "up", "--tls", "--nodes", "2", "--pg-config", pg_config(18), *where)
    assert done.returncode == 0, done.stderr
    assert f"mutual TLS, certificates in {demo_dir / 'tls'}" in done.stdout
    assert "read back on" in done.stdout
    _sees_tls(demo_dir)
    assert launch("demo", "down", "--keep", *where).returncode == 0
    again = launch("demo", "up", *where)
    assert again.returncode == 0, again.stderr
    _sees_tls(demo_dir)


def _sees_tls(demo_dir: Path) -> None:
    demo = Cluster.load(demo_dir)
    assert demo is not None
    nodes = json.loads(launch("demo", "status", "--json", "--dir", str(demo_dir)).stdout)
    assert [seen["is_leader"] for seen in nodes].count(True) == 1
    for node_id, member in enumerate(demo.members, 1):
        files = files_of(demo.certificates, node_id)
        about = files.key.stat()
        assert (about.st_mode & 0o777, about.st_uid) == (0o600, demo_dir.stat().st_uid)
        context = client_context(TlsFiles(*map(str, files)), trust=files.ca)
        with dialogue(member.raft_port, context) as tls:
            served = tls.sock.getpeercert()  # type: ignore[attr-defined]
            assert ("URI", node_uri("pgraft", node_id)) in served["subjectAltName"]
        with dialogue(member.raft_port) as clear:
            clear.hello(node_id)
            clear.end()


def _lives(pid: int) -> bool:
    from pgraft.postgres import process

    return process.start_ticks(pid) is not None


def test_down_does_not_touch_a_folder_that_holds_no_demo(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    done = launch("demo", "down", "--dir", str(tmp_path))
    assert done.returncode != 0
    assert (tmp_path / "mine").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
def test_root_is_told_when_the_user_cannot_reach_the_directory(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    for words in (
        ["demo", "up", "--dir", str(hidden / "d")],
        ["init", "-D", str(hidden / "d"), "--name", "a"],
    ):
        done = launch(
            *words, "--user", "nobody", *([] if words[0] == "demo" else ["--initial-cluster", "a=h:1"])
        )
        assert done.returncode == 1
        assert "cannot reach" in done.stderr
        assert "keeps it out" in done.stderr
        assert not (hidden / "d").exists()
