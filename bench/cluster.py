"""The pgraft cluster under test, driven as a user drives it: through pgraft-launch and SQL."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import LiteralString, TypeVar

import msgspec
import psycopg

from bench.samples import BenchError
from pgraft.postgres.process import children_with_cwd

REPO = Path(__file__).resolve().parents[1]
LAUNCH_WAIT_S = 180
HEALTHY_WAIT_S = 60
POLL_S = 0.05
NOT_RUNNING = 3
"""Exit status of pgraft-launch status, as pg_ctl's."""
PYTHON_PARTS = ("supervisor", "worker", "network")
CONNECTIONS = 300
"""max_connections of the nodes: 256 sessions, and room for ours."""

T = TypeVar("T")


class Node(msgspec.Struct):
    """One node, with the fields of `demo status --json` that the benchmarks use."""

    name: str
    node_id: int
    state: str
    is_leader: bool
    leader: int | None
    commit_index: int | None
    dsn: str
    pids: dict[str, int | None]

    def query(self, sql: LiteralString) -> tuple[object, ...]:
        """One row of SQL from this node."""
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=10) as connection:
            row = connection.execute(sql).fetchone()
        if row is None:
            raise BenchError(f"{self.name} gave no row for {sql}")
        return tuple(row)

    def number(self, sql: LiteralString) -> int:
        """One number of SQL from this node."""
        return int(str(self.query(sql)[0]))

    def python_pids(self) -> list[int]:
        """The pids of supervisor, worker and network process."""
        return [pid for part in PYTHON_PARTS if (pid := self.pids.get(part))]


INSTALLED = Path(sys.executable).with_name("pgraft-launch")


def launcher_command() -> list[str]:
    """pgraft-launch: the script beside this Python, or the module of this source tree."""
    return [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "pgraft_launcher"]


def environment() -> dict[str, str]:
    """What programs of pgraft need to run: this source tree, where pgraft is not installed."""
    variables = dict(os.environ)
    if not INSTALLED.exists():
        paths = [str(REPO), str(REPO / "launcher"), variables.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return variables


def launch(*arguments: str, accept: tuple[int, ...] = (0,)) -> str:
    """Run pgraft-launch and return what it prints. BenchError when its exit status is not one to `accept`."""
    try:
        done = subprocess.run(
            [*launcher_command(), *arguments],
            capture_output=True,
            text=True,
            timeout=LAUNCH_WAIT_S,
            env=environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"pgraft-launch {arguments[0]} does not end after {LAUNCH_WAIT_S} s") from error
    if done.returncode not in accept:
        complaint = (done.stderr or done.stdout).strip().splitlines()
        raise BenchError(f"pgraft-launch {' '.join(arguments)}: {'; '.join(complaint[-2:])}")
    return done.stdout


def wait_for(what: str, seconds: float, attempt: Callable[[], T | None]) -> T:
    """The first result of `attempt` that is not None; BenchError when there is none in time."""
    deadline = time.monotonic() + seconds
    last = ""
    while time.monotonic() < deadline:
        try:
            result = attempt()
        except (psycopg.Error, BenchError) as error:
            result, last = None, f" ({str(error).strip()})"
        if result is not None:
            return result
        time.sleep(POLL_S)
    raise BenchError(f"{what}: not within {seconds:.0f} s{last}")


def pgdata_of(node: Node) -> str:
    """The node's PostgreSQL data directory, as it says itself."""
    return str(node.query("SELECT current_setting('data_directory')")[0])


def program(node: Node, name: str) -> str:
    """A program of the PostgreSQL that the node runs, such as pgbench."""
    postmaster = node.pids.get("postmaster")
    path = Path(os.path.realpath(f"/proc/{postmaster}/exe")).with_name(name)
    if postmaster and path.exists():
        return str(path)
    found = shutil.which(name)
    if found is None:
        raise BenchError(f"there is no {name} beside the server of {node.name}, nor on PATH")
    return found


def start_node(pgdata: str) -> None:
    """`pgraft-launch start`; the log goes to a file, since a pipe would be held open by the node."""
    launch("start", "-D", pgdata, "-l", f"{pgdata}/bench.log")


class PgraftCluster:
    """`pgraft-launch demo` under one directory; stopped and started with its data kept."""

    def __init__(self, root: Path, nodes: int, pg_config: str | None, *, tls: bool = False) -> None:
        self.root = root
        self.tls = tls
        self.count = nodes
        self.pg_config = pg_config
        self.pgdata: dict[str, str] = {}

    def up(self) -> None:
        """Make the cluster and give it room for the sessions to come."""
        chosen = ["--pg-config", self.pg_config] if self.pg_config else []
        chosen += ["--tls" if self.tls else "--no-tls"]
        launch("demo", "up", "--dir", str(self.root), "--nodes", str(self.count), *chosen)
        self.pgdata = {node.name: pgdata_of(node) for node in self.status()}
        self.set({"max_connections": str(CONNECTIONS)})

    def down(self) -> None:
        """End the cluster."""
        launch("demo", "down", "--dir", str(self.root))

    def status(self, *, may_be_down: bool = False) -> list[Node]:
        """All nodes, as `demo status --json` gives them; `may_be_down`: one that does not run is no error."""
        command = ("demo", "status", "--dir", str(self.root), "--json")
        try:
            printed = launch(*command, accept=(0, NOT_RUNNING) if may_be_down else (0,))
            return msgspec.convert(json.loads(printed), list[Node])
        except (ValueError, msgspec.ValidationError) as error:
            raise BenchError(f"pgraft-launch demo status --json: {error}") from error

    def set(self, settings: dict[LiteralString, str]) -> None:
        """ALTER SYSTEM on every node, and a restart of all of them."""
        for node in self.status():
            with psycopg.connect(node.dsn, autocommit=True) as connection:
                for name, value in settings.items():
                    statement = psycopg.sql.SQL("ALTER SYSTEM SET {} = {}")
                    dotted = psycopg.sql.SQL(name)
                    connection.execute(statement.format(dotted, psycopg.sql.Literal(value)))
        self.stop()
        self.start()

    def stop(self) -> None:
        """Stop every node, data kept."""
        self._each(lambda pgdata: launch("stop", "-D", pgdata, "-m", "fast"))

    def start(self) -> None:
        """Start every node and wait until they agree."""
        self._each(self.start_node)
        self.healthy()

    def start_node(self, pgdata: str) -> None:
        """Start the node of one data directory."""
        start_node(pgdata)

    def _each(self, action: Callable[[str], object]) -> None:
        with concurrent.futures.ThreadPoolExecutor(len(self.pgdata)) as pool:
            for done in [pool.submit(action, pgdata) for pgdata in self.pgdata.values()]:
                done.result()

    def healthy(self) -> tuple[Node, list[Node]]:
        """(leader, followers), once all run, name the same leader and have applied the same commits."""

        def agreed() -> tuple[Node, list[Node]] | None:
            nodes = self.status()
            leaders = [node for node in nodes if node.is_leader]
            if len(nodes) != self.count or len(leaders) != 1:
                return None
            same = {(node.state, node.leader, node.commit_index) for node in nodes}
            if same != {("running", leaders[0].node_id, leaders[0].commit_index)}:
                return None
            return leaders[0], [node for node in nodes if not node.is_leader]

        return wait_for("a healthy cluster", HEALTHY_WAIT_S, agreed)

    def kill_node(self, node: Node) -> float:
        """kill -9 of every process of the node; returns the moment of the first kill (monotonic)."""
        pgdata = self.pgdata[node.name]
        backends = [ref.pid for ref in children_with_cwd(pgdata, "postgres")]
        # The supervisor first: it must not live long enough to restart what dies.
        pids = [*node.python_pids(), *backends]
        begun = time.monotonic()
        _kill(pids)
        # What the postmaster forked between the listing and its death.
        _kill([ref.pid for ref in children_with_cwd(pgdata, "postgres")])
        return begun


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
