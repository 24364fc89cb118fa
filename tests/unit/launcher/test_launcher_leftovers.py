"""Start-up after anything that a crash, a full disk, a copy or a hand may leave.

Each starts right, or says in one line why not and what to do."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgraft.postgres import process
from pgraft.postgres.process import ProcessRef
from pgraft.shm import layout
from pgraft.shm.place import SegmentError
from pgraft.storage import load_identity
from tests.support import undead
from tests.support.pgcluster import eventually
from tests.support.segments import attach_any
from tests.unit.launcher.launcher_node import COMMAND_TIMEOUT_S, OneNode
from tests.unit.launcher.launcher_standins import environment
from tests.unit.launcher.test_launcher_commands import one_line

pytestmark = pytest.mark.cluster


class Leftovers:
    """A node that is dead (kill -9 of everything), and hands to spoil its files with."""

    def __init__(self, node: OneNode) -> None:
        self.node = node
        self.raft = node.raft_dir
        self.run = node.raft_dir / "run"

    def write(self, path: Path, data: bytes) -> None:
        """A file of the node's user."""
        path.write_bytes(data)
        self._give(path)

    def _give(self, path: Path) -> None:
        owner = self.node.root.stat()
        os.chown(path, owner.st_uid, owner.st_gid)

    def newest(self, pattern: str) -> Path:
        """The newest file of the Raft state of that name."""
        return sorted((self.raft / "raft").glob(pattern))[-1]

    def patch_segment(self, word: str, value: int) -> None:
        """Change a word in the header of the segment that is left."""
        with self.node.segment().open("r+b") as file:
            file.seek(layout.HEADER_WORDS[word] * layout.WORD_BYTES)
            file.write(value.to_bytes(8, "little"))

    def half_written_run_files(self) -> None:
        for name in ("node.json", "supervisor.json", "segment"):
            self.write(self.run / name, (self.run / name).read_bytes()[:5])

    def no_run_dir(self) -> None:
        shutil.rmtree(self.run)

    def strange_bells(self) -> None:
        one, other, *_ = sorted(self.run.glob("*.bell"))
        one.unlink()
        self.write(one, b"a regular file")
        other.unlink()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(other))

    def prepared_files(self) -> None:
        names = ("identity.tmp", "peers.tmp", "raft/log-0000000000000009-0000000000000002.pgl.tmp")
        for name in (*names, "raft/snap-1.pgs.tmp", "run/node.json.123.new", "LOCK"):
            self.write(self.raft / name, b"half")

    def name_in_locks(self, pid: int) -> None:
        """PostgreSQL's lock files hold another pid."""
        for path in (self.node.pgdata / "postmaster.pid", self.node.socket_lock()):
            lines = path.read_text().splitlines()
            self.write(path, "\n".join([str(pid), *lines[1:]]).encode())

    def another_process_has_the_pids(self) -> None:
        pid = self.node.stranger()
        self.write(self.raft / "LOCK", b"1\n")
        self.name_in_locks(pid)
        for part in ("supervisor", "worker", "network", "postmaster"):
            self.patch_segment(f"{part}_pid", pid)

    def half_a_postmaster_pid(self) -> None:
        self.write(self.node.pgdata / "postmaster.pid", b"12")

    def an_empty_postmaster_pid(self) -> None:
        self.write(self.node.pgdata / "postmaster.pid", b"")

    def older_layout(self) -> None:
        self.patch_segment("layout_version", layout.LAYOUT_VERSION - 1)

    def garbage_segment(self) -> None:
        self.write(self.node.segment(), os.urandom(8192))

    def empty_segment(self) -> None:
        self.write(self.node.segment(), b"")

    def no_segment(self) -> None:
        self.node.segment().unlink()


STARTS: list[Callable[[Leftovers], None]] = [
    Leftovers.half_written_run_files,
    Leftovers.no_run_dir,
    Leftovers.strange_bells,
    Leftovers.prepared_files,
    Leftovers.another_process_has_the_pids,
    Leftovers.half_a_postmaster_pid,
    Leftovers.an_empty_postmaster_pid,
    Leftovers.older_layout,
    Leftovers.garbage_segment,
    Leftovers.empty_segment,
    Leftovers.no_segment,
]


@pytest.fixture(scope="module")
def node() -> Iterator[OneNode]:
    """One node for all, with an entry that must never be lost."""
    made = OneNode()
    done = made.init()
    assert done.returncode == 0, done.stderr
    assert made.do("start").returncode == 0
    eventually(lambda: made.status()["is_leader"], "a leader")
    made.sql("CREATE EXTENSION pgraft")
    made.sql("SELECT pgraft_replicate_entry('kept')")
    yield made
    made.destroy()


def _dead(node: OneNode) -> Leftovers:
    node.kill_all()
    return Leftovers(node)


def _check(node: OneNode) -> None:
    eventually(lambda: node.status()["is_leader"], "a leader")
    kept = "SELECT count(*) FROM pgraft_log_get_stats() s, generate_series(2, s.commit_index) i, LATERAL"
    assert node.sql(f"{kept} pgraft_log_get_entry(i) t WHERE t = 'kept'") == "1"
    assert node.segments() == [node.segment().name], "a leftover stays"


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(spoil, marks=pytest.mark.slow if number % 5 else [], id=spoil.__name__)
        for number, spoil in enumerate(STARTS)
    ],
)
def test_it_starts_whatever_a_crash_left(node: OneNode, spoil: Callable[[Leftovers], None]) -> None:
    spoil(_dead(node))
    done = node.do("start")
    assert done.returncode == 0, done.stderr
    _check(node)


def test_it_starts_after_all_of_that_at_once(node: OneNode) -> None:
    left = _dead(node)
    identity = load_identity(node.raft_dir)
    for spoil in (
        Leftovers.another_process_has_the_pids,
        Leftovers.older_layout,
        Leftovers.strange_bells,
        Leftovers.half_written_run_files,
        Leftovers.prepared_files,
    ):
        spoil(left)
    done = node.do("start")
    assert done.returncode == 0, done.stderr
    _check(node)
    assert load_identity(node.raft_dir) == identity


def _has_worker(node: OneNode) -> bool:
    """Whether a start has brought the worker up, which takes longer than PostgreSQL's look at its locks."""
    with contextlib.suppress(SegmentError):
        segment = attach_any(node.segment().name)
        worker = segment.header["worker_pid"], segment.header["worker_start"], segment.worker["ready"]
        segment.close()
        return process.is_alive(ProcessRef(*worker[:2])) and bool(worker[2])
    return False


@pytest.mark.parametrize("pid_file", ["intact", "half written", "removed"])
def test_it_starts_where_nobody_reaps_the_dead(node: OneNode, pid_file: str) -> None:
    """As in a container whose PID 1 does not: the old postmaster stays a zombie, and keeps its pid."""
    node.kill_all()
    path = node.pgdata / "postmaster.pid"
    with undead.never_reaping(node.argv("start"), environment()):
        old = int(path.read_text().split()[0])
        left = _dead(node)
        assert process.is_zombie(old)
        if pid_file == "half written":
            left.write(path, b"12")
        elif pid_file == "removed":
            path.unlink()
        done = node.do("start")
        assert done.returncode == 0, done.stderr
        assert process.is_zombie(old)
        _check(node)


def test_it_waits_for_a_postmaster_that_is_still_dying(node: OneNode) -> None:
    left = _dead(node)
    with undead.held_dying(node.root.stat().st_uid, node.pgdata) as dying:
        left.name_in_locks(dying.pid)
        start = subprocess.Popen(node.argv("start"), env=environment(), cwd="/", stderr=subprocess.PIPE)
        eventually(lambda: start.poll() is not None or _has_worker(node), "the start to come to PostgreSQL")
        dying.let_go()
        _, error = start.communicate(timeout=COMMAND_TIMEOUT_S)
        assert start.returncode == 0, error
    _check(node)


def test_a_lock_file_whose_process_cannot_be_looked_at_is_for_a_person_to_judge(node: OneNode) -> None:
    left = _dead(node)
    hidden = node.stranger("import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)")  # PR_SET_DUMPABLE
    left.name_in_locks(hidden)
    line = node.do("start").stderr.splitlines()[-1]
    assert f"{node.pgdata}/postmaster.pid names process {hidden}" in line
    assert "remove that file and start again" in line
    assert (node.pgdata / "postmaster.pid").exists()
    (node.pgdata / "postmaster.pid").unlink()
    node.socket_lock().unlink()
    assert node.do("start").returncode == 0
    _check(node)


class Refused:
    """Something that must stop a start, and words of the line that says so."""

    def __init__(self, name: str, spoil: Callable[[Leftovers], object], *words: str) -> None:
        self.name = name
        self.spoil = spoil
        self.words = words


DO_NOT_EDIT = "do not edit or delete single files"
REFUSED = [
    Refused("empty identity", lambda it: it.write(it.raft / "identity", b""), "/identity", DO_NOT_EDIT),
    Refused(
        "no identity", lambda it: (it.raft / "identity").unlink(), "identity file is missing", DO_NOT_EDIT
    ),
    Refused("no Raft state", lambda it: shutil.rmtree(it.raft / "raft"), "no Raft state", "under a new id"),
    Refused("torn peers", lambda it: it.write(it.raft / "peers", b"pgraft pe"), "/peers", DO_NOT_EDIT),
    Refused(
        "a log file of another version",
        lambda it: it.write(it.newest("log-*"), b"PGRAFTLG\x09" + bytes(4096)),
        "format version 9",
        "start that version",
    ),
    Refused(
        "a torn snapshot",
        lambda it: it.write(it.newest("snap-*"), it.newest("snap-*").read_bytes()[:-3]),
        "/snap-",
        "offset 0",
        DO_NOT_EDIT,
    ),
    Refused("a lost log file", lambda it: it.newest("log-*").unlink(), "is missing", DO_NOT_EDIT),
    Refused("open to others", lambda it: it.raft.chmod(0o755), "0755", "chmod 0700"),
]


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(one, marks=pytest.mark.slow if number % 4 else [], id=one.name)
        for number, one in enumerate(REFUSED)
    ],
)
def test_it_says_in_one_line_why_it_does_not_start(node: OneNode, refused: Refused) -> None:
    left = _dead(node)
    backup = node.root / "backup"
    shutil.rmtree(backup, ignore_errors=True)
    shutil.copytree(left.raft, backup, ignore=shutil.ignore_patterns("*.bell"))
    refused.spoil(left)
    line = one_line(node.do("start"))
    for word in refused.words:
        assert word in line
    assert node.refs() == [], "nothing is left running"
    shutil.rmtree(left.raft)
    shutil.copytree(backup, left.raft)
    for path in (left.raft, *left.raft.rglob("*")):
        left._give(path)
    assert "pgraft-launch adopt" in one_line(node.do("start"))
    assert node.do("adopt", "--complete").returncode == 0
    assert node.do("start").returncode == 0
    _check(node)


def test_a_directory_of_another_cluster_or_node_is_refused(node: OneNode) -> None:
    _dead(node)
    line = one_line(node.do("start", "-o", "-c pgraft.cluster_id=other"))
    assert 'belongs to cluster "pgraft"' in line or "'pgraft'" in line
    assert "pgraft.cluster_id" in line
    line = one_line(node.do("start", "-o", "-c pgraft.node_id=2"))
    assert "pgraft.node_id" in line
    done = node.do("start", "-o", "-c pgraft.election_timout=500")
    assert done.returncode == 0, done.stderr
    assert (
        "no setting pgraft.election_timout, it is ignored; did you mean pgraft.election_timeout?"
        in done.stdout
    )
    _check(node)
