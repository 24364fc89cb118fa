"""What another user, another program, or a copy puts in the way of a node: it is not believed, not signalled,
and keeps nobody from working."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.postgres import process
from pgraft.postgres.process import ProcessRef
from pgraft.shm import layout, place
from pgraft.shm.layout import COMMAND_RECORD_WORDS, CommandKind
from pgraft.shm.words import now_ns
from tests.support.pgcluster import as_server_user, bindir, eventually
from tests.support.segments import attach_any
from tests.unit.launcher.launcher_node import OneNode, launch
from tests.unit.launcher.launcher_standins import environment
from tests.unit.launcher.test_launcher_commands import one_line

pytestmark = pytest.mark.cluster
PLANTED = "planted by nobody"
ENTRIES = (
    "SELECT string_agg(t, ',') FROM pgraft_log_get_stats() s, generate_series(2, s.commit_index) i,"
    " LATERAL pgraft_log_get_entry(i) t"
)


@pytest.fixture(scope="module")
def made() -> Iterator[OneNode]:
    """A node with its Raft directory named in the settings, as where it lies on a disk of its own."""
    node = OneNode()
    done = node.init()
    assert done.returncode == 0, done.stderr
    _set(node.pgdata, f"pgraft.data_dir = '{node.raft_dir}'")
    assert node.do("start").returncode == 0
    eventually(lambda: node.status()["is_leader"], "a leader")
    node.sql("CREATE EXTENSION pgraft")
    yield node
    node.destroy()


@pytest.fixture
def node(made: OneNode) -> Iterator[OneNode]:
    """It runs and leads."""
    if made.do("status").returncode != 0:
        made.kill_all()
        done = made.do("start")
        assert done.returncode == 0, done.stderr
    eventually(lambda: made.status()["is_leader"], "a leader")
    yield made
    made.kill_all()


def _set(pgdata: Path, line: str) -> None:
    with (pgdata / "postgresql.conf").open("a") as conf:
        conf.write(f"{line}\n")


def _as_nobody(code: str, *arguments: str, data: bytes = b"") -> None:
    """Run Python as a user that nobody trusts."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    account = pwd.getpwnam("nobody")
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *arguments],
        input=data,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _known_name(node: OneNode) -> str:
    """What can be known of a segment's name: all of it, before it had a random part."""
    of_path = place.name_stem(node.raft_dir).rpartition(".")[2]
    return f"{place.NAME_PREFIX}{node.root.stat().st_uid}.{of_path}"


def _patched(segment: bytes, words: dict[str, int]) -> bytearray:
    page = bytearray(segment)
    for name, value in words.items():
        struct.pack_into("<Q", page, layout.HEADER_WORDS[name] * 8, value)
    return page


def _with_command(segment: bytearray) -> bytearray:
    """A command in its ring that writes an entry."""
    word = {
        name: struct.unpack_from("<Q", segment, 8 * number)[0] for name, number in layout.HEADER_WORDS.items()
    }
    words = dict.fromkeys(COMMAND_RECORD_WORDS, 0)
    words |= {"kind": CommandKind.REPLICATE, "request_no": 1}
    words |= {"total_bytes": len(PLANTED), "timeout_ms": 10_000, "backend_pid": 4242}
    payload = struct.pack(f"<{len(words)}Q", *words.values()) + PLANTED.encode()
    struct.pack_into("<Q", segment, layout.WORKER_PAGE + 8 * layout.WORKER_WORDS["command_tail"], 0)
    at = word["command_offset"]
    record = struct.pack("<QII", 0, len(payload), zlib.crc32(payload)) + payload
    start = at + layout.COMMAND_RING_OFFSET
    segment[start : start + len(record)] = record
    struct.pack_into("<Q", segment, at + 8 * layout.COMMAND_WORDS["head"], layout.align(len(record), 16))
    return segment


def _ref(pid: int) -> ProcessRef:
    found = process.identify(pid)
    assert found is not None
    return found


@contextlib.contextmanager
def _squatted(node: OneNode, content: bytes) -> Iterator[Path]:
    """A file of nobody's, open to all, under the name that the node's segment would have."""
    path = place.SHM_DIR / _known_name(node)
    write = (
        "import os, sys; fd = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600);"
        "os.fchmod(fd, 0o666); os.write(fd, sys.stdin.buffer.read())"
    )
    _as_nobody(write, str(path), data=bytes(content))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def test_a_segment_that_another_user_left_is_neither_believed_nor_in_the_way(node: OneNode) -> None:
    """It says that the node leads, names a process to signal, and has a command in its ring."""
    whole = node.segment().read_bytes()
    assert node.do("stop").returncode == 0
    stranger = _ref(node.stranger())
    names = {f"{part}_pid": stranger.pid for part in ("supervisor", "network")}
    names |= {f"{part}_start": stranger.start for part in ("supervisor", "network")}
    foreign = _with_command(_patched(whole, names | {"retired": 0, "worker_pid": 0, "postmaster_pid": 0}))
    struct.pack_into("<Q", foreign, layout.WORKER_PAGE, now_ns() + 10**11)  # its lease
    with _squatted(node, foreign) as path:
        seen = node.status()
        assert (seen["is_leader"], seen["state"], set(seen["pids"].values())) == (False, "stopped", {None})
        assert "is not running" in one_line(node.do("stop"))
        done = node.do("start")
        assert done.returncode == 0, done.stderr
        eventually(lambda: node.status()["is_leader"], "a leader")
        assert node.segment() != path
        assert PLANTED not in node.sql(ENTRIES)
        assert node.do("stop").returncode == 0
        assert process.is_alive(stranger)
        assert path.stat().st_uid == pwd.getpwnam("nobody").pw_uid


@pytest.mark.parametrize("what", ["garbage", "a link", "a FIFO", "a directory"])
def test_whatever_has_the_name_does_not_keep_a_node_from_starting(node: OneNode, what: str) -> None:
    node.kill_all()
    path = place.SHM_DIR / _known_name(node)
    make = {
        "garbage": "open(path, 'wb').write(b'x' * 100000)",
        "a link": "os.symlink(sys.argv[2], path)",
        "a FIFO": "os.mkfifo(path, 0o666)",
        "a directory": "os.mkdir(path)",
    }[what]
    _as_nobody(f"import os, sys; path = sys.argv[1]; {make}", str(path), str(node.segment()))
    try:
        assert node.do("status").returncode == 3
        done = node.do("start")
        assert done.returncode == 0, done.stderr
        assert node.do("stop").returncode == 0
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.parametrize("where", ["record", "segment"])
def test_a_pid_of_another_program_is_not_signalled(node: OneNode, where: str) -> None:
    """Of the same user, with the start time that is told of it."""
    node.kill_all()
    stranger = _ref(node.stranger())
    parts = ("worker", "network", "postmaster")
    record = node.raft_dir / "run" / "supervisor.json"
    if where == "record":
        content = json.loads(record.read_text())
        content |= {"supervisor": list(stranger), "processes": {part: list(stranger) for part in parts}}
        record.write_text(json.dumps(content))
    else:
        record.unlink()
        words = {f"{part}_pid": stranger.pid for part in (*parts, "supervisor")}
        words |= {f"{part}_start": stranger.start for part in (*parts, "supervisor")}
        with node.segment().open("r+b") as file:
            page = _patched(file.read(layout.PAGE_BYTES), words)
            file.seek(0)
            file.write(page)
    assert set(node.status()["pids"].values()) == {None}
    assert "is not running" in one_line(node.do("stop"))
    assert "is not running" in one_line(node.do("reload"))
    done = node.do("start")
    assert done.returncode == 0, done.stderr
    assert "taking it over" not in done.stdout
    assert node.do("stop").returncode == 0
    assert process.is_alive(stranger)


@pytest.mark.parametrize("name", ["segment", "supervisor.json", "node.json"])
def test_a_fifo_among_the_run_files_hangs_nobody(node: OneNode, name: str) -> None:
    pids = node.status()["pids"]
    path = node.raft_dir / "run" / name
    path.unlink()
    os.mkfifo(path, 0o600)
    shutil.chown(path, node.root.stat().st_uid)
    assert node.status()["pids"] == pids
    if name == "segment":
        assert "is a FIFO" in _inspect(node).stderr + _inspect(node).stdout or _inspect(node).returncode == 0
    assert node.do("stop").returncode == 0
    assert node.refs() == []
    done = node.do("start")
    assert done.returncode == 0, done.stderr


def _inspect(node: OneNode) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "pgraft.inspector", "show", "-D", str(node.pgdata)],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


class Copied:
    """A copy of the node's PostgreSQL data directory, with the settings of the original but for the port."""

    def __init__(self, node: OneNode) -> None:
        self.node = node
        self.pgdata = node.root / "copy"
        self._pg_ctl = as_server_user(str(bindir(node.major) / "pg_ctl"), "-D", str(self.pgdata), "-s", "-w")

    def make(self) -> None:
        """Of the stopped node."""
        subprocess.run(["cp", "-a", str(self.node.pgdata), str(self.pgdata)], check=True)

    def do(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A command with -D COPY."""
        return launch(command, "-D", str(self.pgdata), *words)

    @contextlib.contextmanager
    def with_pg_ctl(self, port: int) -> Iterator[None]:
        """Its PostgreSQL alone."""
        log = str(self.node.root / "copy.log")
        with (self.node.root / "copy.out").open("w") as out:
            start = [*self._pg_ctl, "-l", log, "-o", f"-p {port}", "start"]
            subprocess.run(start, check=True, cwd="/", stdout=out, stderr=out)
        try:
            yield
        finally:
            subprocess.run([*self._pg_ctl, "-m", "immediate", "stop"], check=True, cwd="/")

    def sql(self, port: int, statement: str) -> subprocess.CompletedProcess[str]:
        """One statement in it."""
        program = str(bindir(self.node.major) / "psql")
        dsn = f"host={self.node.root} port={port} dbname=postgres"
        argv = as_server_user(program, "-X", "-A", "-t", "-q", "-d", dsn, "-c", statement)
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/")


@pytest.fixture
def copied(node: OneNode) -> Iterator[Copied]:
    """A copy beside the running original."""
    assert node.do("stop").returncode == 0
    copy = Copied(node)
    copy.make()
    assert node.do("start").returncode == 0
    eventually(lambda: node.status()["is_leader"], "a leader")
    yield copy
    shutil.rmtree(copy.pgdata, ignore_errors=True)


def test_a_copy_of_a_data_directory_leaves_the_original_alone(node: OneNode, copied: Copied) -> None:
    """Its settings name the Raft directory of the original, whose segment and processes are there."""
    pids = node.status()["pids"]
    port = node.pg_port + 1 if node.pg_port + 1 != node.raft_port else node.pg_port + 2
    with copied.with_pg_ctl(port):
        assert copied.sql(port, "SELECT pgraft_is_leader(), pgraft_get_leader()").stdout == "f|0\n"
        refused = copied.sql(port, "SELECT pgraft_replicate_entry('of the copy')").stderr
        assert "another PostgreSQL data directory" in refused
        assert str(node.pgdata) in refused
        for command in ("stop", "reload", "restart", "start"):
            line = one_line(copied.do(command))
            assert f"in use by the node of another PostgreSQL data directory, {node.pgdata}" in line, command
        seen = json.loads(copied.do("status", "--json").stdout)
        assert (seen["state"], seen["is_leader"], seen["leader"]) == ("stopped", False, 0)
        assert str(node.pgdata) in seen["error"]
        assert [seen["pids"][part] for part in ("supervisor", "worker", "network")] == [None] * 3
    assert node.status()["pids"] == pids
    assert "of the copy" not in node.sql(ENTRIES)


def test_a_data_directory_that_was_moved_takes_its_raft_directory_along(
    node: OneNode, copied: Copied
) -> None:
    """Nothing of the original lives any more, crashed as it may have."""
    node.sql("SELECT pgraft_replicate_entry('before the move')")
    node.kill_all()
    node.socket_lock().unlink()  # PostgreSQL's own: it names the old directory
    done = copied.do("start")
    assert done.returncode == 0, done.stderr
    try:
        eventually(lambda: json.loads(copied.do("status", "--json").stdout)["is_leader"], "a leader")
        assert "before the move" in copied.sql(node.pg_port, ENTRIES).stdout
        assert len(node.segments()) == 1
    finally:
        assert copied.do("stop").returncode == 0


def test_a_setting_that_counts_after_a_restart_hides_nothing(node: OneNode) -> None:
    pids = node.status()["pids"]
    other = node.root / "other"
    node.sql(f"ALTER SYSTEM SET pgraft.data_dir = '{other}'")
    try:
        seen = node.status()
        assert (seen["state"], seen["pids"], seen["raft_data_dir"]) == ("running", pids, str(node.raft_dir))
        assert f"pgraft.data_dir is {other}" in node.do("status").stdout
        line = one_line(node.do("start"))
        assert "already running" in line
        assert f"by now pgraft.data_dir is {other}, which counts after a restart" in line
        assert node.do("reload").returncode == 0
        assert not other.exists()
        assert node.do("restart").returncode == 0
        assert node.status()["raft_data_dir"] == str(other)
        assert node.segments() == []
        node.sql("ALTER SYSTEM RESET pgraft.data_dir")
        assert node.do("stop").returncode == 0
        assert node.refs() == []
    finally:
        (node.pgdata / "postgresql.auto.conf").write_text("")
        if other.exists():
            launch("stop", "-D", str(node.pgdata))
            for name in place.own_names(node.root.stat().st_uid):
                with contextlib.suppress(place.SegmentError):
                    if attach_any(name).text("data_dir") == str(other):
                        place.unlink(name)


def test_a_crash_leaves_one_segment_that_is_shown_and_then_removed(node: OneNode) -> None:
    node.kill_all()
    left = node.segments()
    assert len(left) == 1
    assert left[0] in _inspect(node).stdout
    (node.raft_dir / "run" / "segment").unlink()
    assert left[0] in _inspect(node).stdout
    assert node.do("start").returncode == 0
    assert node.segments() == [node.segment().name]
    assert node.segments() != left


def test_a_segment_of_the_release_before_is_removed(node: OneNode) -> None:
    node.kill_all()
    old = place.SHM_DIR / _known_name(node)
    node.segment().rename(old)
    with old.open("r+b") as file:
        page = _patched(file.read(layout.PAGE_BYTES), {"layout_version": 2})
        file.seek(0)
        file.write(page)
    (node.raft_dir / "run" / "segment").write_text(old.name)
    assert node.do("start").returncode == 0
    assert node.segments() == [node.segment().name]


def test_directories_that_were_moved_after_a_crash_leave_no_segment(node: OneNode) -> None:
    node.kill_all()
    left = node.segments()
    moved = node.root / "moved.pgraft"
    node.raft_dir.rename(moved)
    try:
        done = node.do("start", "-o", f"-c pgraft.data_dir={moved}")
        assert done.returncode == 0, done.stderr
        assert not (place.SHM_DIR / left[0]).exists()
        assert node.do("stop").returncode == 0
    finally:
        moved.rename(node.raft_dir)
