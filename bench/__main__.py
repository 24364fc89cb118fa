"""`python -m bench`: everything in turn, a table on stdout, progress on stderr, JSON in a file."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from bench import bench_core, etcd, failover, latency, report, resources, startup, tls_cost
from bench.cluster import PgraftCluster
from bench.report import Results
from bench.samples import BenchError, LoadFigures, Request, in_window, summarise
from pgraft import __version__

PARTS = ("core", "latency", "throughput", "is_leader", "resources", "tls", "failover", "startup")
VALUE_BYTES = 100
CORE_S = 2.0
DEFAULT_TIMING_MS, SHORT_TIMING_MS = (1000, 100), (500, 50)
THROUGHPUT_CLIENTS = (16, 64, 256)
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure. Seconds, rounds and counts."""

    rounds: int
    load_s: float
    warm_up_s: float
    call_rounds: int
    idle_s: float
    kills: int
    start_entries: int


FULL = Effort(3, 10, 2, 15, 30, 10, 1_000_000)
QUICK = Effort(1, 4, 1, 5, 10, 3, 200_000)


def say(text: str) -> None:
    """A progress line."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Bench:
    """One run: the systems under test and what has been measured so far."""

    def __init__(self, arguments: argparse.Namespace, root: Path, effort: Effort) -> None:
        self.effort = effort
        self.parts: list[str] = arguments.only
        self.root = root
        self.cluster = PgraftCluster(root / "demo", arguments.nodes, arguments.pg_config)
        self.pg_config: str | None = arguments.pg_config
        self.etcd = etcd.EtcdCluster(root / "etcd") if etcd.is_installed() and not arguments.no_etcd else None
        self.pgraft_ready = False
        self.secured: PgraftCluster | None = None
        self.results = Results(_machine(root), {**vars(arguments), "effort": dataclasses.asdict(effort)})

    def run(self, only_etcd: bool) -> None:
        """Measure every part that was asked for."""
        clients = [1] if "latency" in self.parts else []
        clients += THROUGHPUT_CLIENTS if "throughput" in self.parts else []
        if "core" in self.parts and not only_etcd:
            say("core")
            self.results.core = bench_core.measure(CORE_S)
        if not only_etcd and self.parts != ["core"]:
            self._up()
        if clients:
            self._loads(clients, only_etcd)
        if only_etcd:
            return
        for part, measure in (
            ("is_leader", self._is_leader),
            ("resources", self._resources),
            ("tls", self._tls),
            ("failover", self._failover),
            ("startup", self._startup),
        ):
            if part in self.parts:
                say(part)
                measure()

    def close(self) -> None:
        """End what runs."""
        if self.etcd is not None:
            self.etcd.stop()
        if self.secured is not None:
            self.secured.down()
        if self.pgraft_ready:
            say("taking the cluster down")
            self.cluster.down()

    def _up(self) -> None:
        say(f"starting {self.cluster.count} nodes in {self.cluster.root}")
        self.pgraft_ready = True
        self.cluster.up()
        leader, _ = self.cluster.healthy()
        self.results.machine["PostgreSQL"] = str(leader.query("SHOW server_version")[0])

    def _loads(self, clients: list[int], only_etcd: bool) -> None:
        """Rounds of etcd and pgraft in turn; the one is stopped while the other is measured."""
        rounds: dict[str, dict[int, list[list[Request]]]] = {
            "etcd": {count: [] for count in clients},
            "pgraft": {count: [] for count in clients},
        }
        if self.etcd is None:
            say("etcd or h2load is not installed: no comparison")
        for number in range(1, self.effort.rounds + 1):
            title = f"round {number} of {self.effort.rounds}"
            if self.etcd is not None:
                if not only_etcd:
                    self.cluster.stop()
                self._etcd_round(self.etcd, title, rounds["etcd"])
                if not only_etcd:
                    self.cluster.start()
            if not only_etcd:
                self._pgraft_round(title, rounds["pgraft"])
        self.results.etcd = self._figures(rounds["etcd"])
        self.results.pgraft = self._figures(rounds["pgraft"])

    def _etcd_round(
        self, members: etcd.EtcdCluster, title: str, into: dict[int, list[list[Request]]]
    ) -> None:
        members.start()
        try:
            for clients, kept in into.items():
                requests = members.load(clients, self.effort.load_s, self.effort.warm_up_s, VALUE_BYTES)
                kept.append(self._keep(requests, f"{title}: etcd, {clients} clients"))
        finally:
            members.stop()

    def _pgraft_round(self, title: str, into: dict[int, list[list[Request]]]) -> None:
        leader, followers = self.cluster.healthy()
        effort = self.effort
        for clients, kept in into.items():
            meter = resources.LoadMeter(leader, followers)
            requests = latency.pgbench_load(
                leader, self.root, clients, effort.load_s, effort.warm_up_s, VALUE_BYTES
            )
            self.results.cpu_us_per_commit[clients] = meter.us_per_commit(len(requests))
            kept.append(self._keep(requests, f"{title}: pgraft, {clients} sessions"))

    def _keep(self, requests: list[Request], title: str) -> list[Request]:
        window = in_window(requests, self.effort.warm_up_s, self.effort.load_s)
        figures = summarise([window], 1, self.effort.load_s)
        say(f"{title}: {figures.per_second:.0f}/s, mean {figures.mean_ms:.2f} ms")
        return window

    def _figures(self, rounds: dict[int, list[list[Request]]]) -> list[LoadFigures]:
        return [
            summarise(windows, clients, self.effort.load_s) for clients, windows in rounds.items() if windows
        ]

    def _is_leader(self) -> None:
        leader, _ = self.cluster.healthy()
        self.results.is_leader = latency.is_leader_cost(leader, self.effort.call_rounds)

    def _resources(self) -> None:
        leader, _ = self.cluster.healthy()
        # A node that has worked, not one that has just been started.
        latency.pgbench_load(leader, self.root, 64, self.effort.load_s, 1, VALUE_BYTES)
        time.sleep(2)
        self.results.resources = resources.measure_idle(self.cluster, self.effort.idle_s)
        if self.cluster.count > 2:
            self.results.election_cpu_percent = resources.measure_election(self.cluster, 10)

    def _tls(self) -> None:
        effort = self.effort
        self.secured = PgraftCluster(self.root / "demo-tls", self.cluster.count, self.pg_config, tls=True)
        self.secured.up()
        self.secured.stop()
        self.results.tls = tls_cost.measure(
            self.cluster,
            self.secured,
            self.root,
            effort.rounds,
            (effort.load_s, effort.warm_up_s),
            VALUE_BYTES,
            say,
        )
        self.secured.down()
        self.secured = None

    def _failover(self) -> None:
        if self.cluster.count < 3:
            say("failover needs three nodes")
            return
        rng = random.Random(self.effort.kills)
        for timing in (SHORT_TIMING_MS, DEFAULT_TIMING_MS):
            self.results.failover.append(failover.measure(self.cluster, self.effort.kills, timing, rng, say))

    def _startup(self) -> None:
        pgdata = next(iter(self.cluster.pgdata.values()))
        owner = os.stat(pgdata).st_uid
        self.cluster.stop()
        self.results.start_s = startup.measure(self.root, self.effort.start_entries, self.pg_config, owner)


def _machine(root: Path) -> dict[str, str]:
    machine = {
        "pgraft": __version__,
        "Python": platform.python_version(),
        "kernel": platform.release(),
        "cores": str(os.cpu_count()),
        "load average at start": f"{os.getloadavg()[0]:.2f}",
        "file system": etcd.file_system(root),
        "measured at": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    if etcd.is_installed():
        machine["etcd"] = etcd.version()
    return machine


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(PARTS)}")
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short and rough: about two minutes")
    parser.add_argument(
        "--only", type=_parts, default=list(PARTS), metavar="PART,...", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="where to write JSON (default: bench/results/TIME.json)"
    )
    parser.add_argument("--kills", type=int, metavar="N", help="kills a timing (default 10; 100 for a p99)")
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--pg-config", metavar="PATH", help="pg_config of the PostgreSQL to use")
    parser.add_argument("--dir", default="/var/tmp", help="a directory on a real disk (default /var/tmp)")
    parser.add_argument("--no-etcd", action="store_true", help="measure pgraft only")
    parser.add_argument("--only-etcd", action="store_true", help="measure etcd only")
    return parser


def _work_directory(parent: str) -> Path:
    if etcd.file_system(Path(parent)).split()[0] in MEMORY_FILE_SYSTEMS:
        raise BenchError(f"{parent} is in memory, where a sync costs nothing: give --dir on a real disk")
    root = Path(tempfile.mkdtemp(prefix="pgraft-bench.", dir=parent))
    root.chmod(0o755)  # PostgreSQL runs as another user when this is run by root
    return root


def _default_json() -> Path:
    name = time.strftime("%Y%m%dT%H%M%S.json", time.gmtime())
    return Path(__file__).resolve().parent / "results" / name


def _guarded(action: Callable[[], Any]) -> str:
    """Run it; the error as one line, empty when all went well."""
    try:
        action()
    except (BenchError, psycopg.Error, OSError) as error:
        return " ".join(str(error).split())
    return ""


def main() -> int:
    """Returns the exit status: 1 when something could not be measured."""
    arguments = _parser().parse_args()
    effort = QUICK if arguments.quick else FULL
    if arguments.kills:
        effort = dataclasses.replace(effort, kills=arguments.kills)
    try:
        root = _work_directory(arguments.dir)
        bench = Bench(arguments, root, effort)
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    complaint = "interrupted"
    try:
        complaint = _guarded(lambda: bench.run(arguments.only_etcd))
    except KeyboardInterrupt:
        say("interrupted: what was measured so far follows")
    finally:
        left = _guarded(bench.close)
        if not left:
            shutil.rmtree(root, ignore_errors=True)
    print(report.text(bench.results), end="")
    target = Path(arguments.json or _default_json())
    unwritten = _guarded(lambda: report.write_json(bench.results, target))
    if not unwritten:
        say(f"everything as JSON in {target}")
    complaints = [text for text in (complaint, left, unwritten) if text]
    for text in complaints:
        say(text)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
