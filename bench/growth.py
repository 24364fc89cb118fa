"""`python -m bench.growth`: whether disk use and memory stay flat over millions of small entries.

A cluster with a small log to keep takes entries from many sessions; every `--every` of them a line shows,
for each node, the bytes of its Raft directory on disk, the PSS of worker and network process, and their
open descriptors. One follower is killed in the middle and comes back behind the compacted log. Exit status 1
when a figure of the last quarter lies above that of the second by more than `FLAT`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from bench.cluster import Node, PgraftCluster
from bench.resources import pss_mb
from bench.samples import BenchError

FLAT = 1.15
FLAT_MB_MIN = 2.0
"""What a figure may rise by in any case: a Python process moves by as much."""
DISK_STEPS_MB = 8.0
"""Disk use moves in whole log files: one that is begun and one that is not dropped yet, of 4 MB each."""
FILES_MAX_RISE = 3
CALLS_A_STATEMENT = 500
OUTAGE = (0.30, 0.40)
"""From which to which share of the entries one follower is away."""
POLL_S = 0.2
RETRY_S = 0.1
SETTINGS = {
    "pgraft.log_keep_entries": "100000",
    "pgraft.log_keep_bytes": "8MB",
    "pgraft.log_segment_size": "4MB",
    "pgraft.snapshot_threshold": "10000",
}
_MB = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Sample:
    """One node at one moment. Sizes in MB."""

    name: str
    entries: int
    disk: float
    worker: float
    network: float
    descriptors: int
    server_log: float


class Load:
    """Sessions that replicate entries until told to stop, wherever the leader is."""

    def __init__(self, cluster: PgraftCluster, sessions: int, value_bytes: int) -> None:
        self._cluster = cluster
        self._dsns = [node.dsn for node in cluster.status()]
        self._query = (
            f"SELECT count(*) FROM generate_series(1, %s) WHERE pgraft_replicate_entry('{'x' * value_bytes}')"
        )
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.acknowledged = 0
        self.errors: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._run) for _ in range(sessions)]

    def start(self) -> None:
        """Let them go."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Each ends its statement."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            for dsn in self._dsns:
                try:
                    self._session(dsn)
                except psycopg.Error as error:
                    # A follower, a node that is down, an election: the next one, or the next round, will do.
                    with self._lock:
                        text = type(error).__name__
                        self.errors[text] = self.errors.get(text, 0) + 1
            self._over.wait(RETRY_S)

    def _session(self, dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10) as connection:
            while not self._over.is_set():
                leads = connection.execute("SELECT pgraft_is_leader()").fetchone()
                if leads != (True,):
                    return
                row = connection.execute(self._query, (CALLS_A_STATEMENT,)).fetchone()
                with self._lock:
                    self.acknowledged += row[0] if row else 0


def sample(cluster: PgraftCluster, node: Node) -> Sample:
    """The node's figures now. BenchError when a process is gone."""
    raft_dir = Path(cluster.pgdata[node.name] + ".pgraft")
    worker, network = node.pids.get("worker"), node.pids.get("network")
    if not worker or not network:
        raise BenchError(f"{node.name} has no worker or no network process")
    log = Path(cluster.pgdata[node.name], "bench.log")
    return Sample(
        node.name,
        node.commit_index or 0,
        _disk_bytes(raft_dir) / _MB,
        pss_mb(worker),
        pss_mb(network),
        sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (worker, network)),
        log.stat().st_size / _MB if log.exists() else 0.0,
    )


def _disk_bytes(directory: Path) -> int:
    """Bytes on disk, what is preallocated included; a file that goes away meanwhile counts nothing."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total


class Growth:
    """One run: load, samples, an outage of one follower."""

    def __init__(self, cluster: PgraftCluster, entries: int, every: int, sessions: int) -> None:
        self.cluster = cluster
        self.entries = entries
        self.every = every
        self.load = Load(cluster, sessions, 20)
        self.samples: list[Sample] = []
        self._away: Node | None = None
        self._outage_done = cluster.count < 3
        self._begun = time.monotonic()

    def run(self) -> None:
        """Until as many entries are committed."""
        print(_HEAD, flush=True)
        self.load.start()
        try:
            due = 0
            while due <= self.entries:
                nodes = self.cluster.status(may_be_down=True)
                committed = max(node.commit_index or 0 for node in nodes)
                self._outage(nodes, committed)
                if committed < due:
                    time.sleep(POLL_S)
                    continue
                self._line(nodes, committed)
                due = (committed // self.every + 1) * self.every
        finally:
            self.load.stop()
        self.cluster.healthy()
        self._line(self.cluster.status(), max(n.commit_index or 0 for n in self.cluster.status()))

    def _outage(self, nodes: list[Node], committed: int) -> None:
        if (
            self._outage_done
            and self._away is not None
            and any(node.name == self._away.name and node.state == "running" for node in nodes)
        ):
            self._away = None
        if self._outage_done or committed < OUTAGE[0] * self.entries:
            return
        if self._away is None:
            self._away = next(node for node in nodes if not node.is_leader)
            self.cluster.kill_node(self._away)
            print(f"# {self._away.name} was killed at {committed} entries", flush=True)
        elif committed >= OUTAGE[1] * self.entries:
            self._outage_done = True
            print(f"# {self._away.name} is started again at {committed} entries", flush=True)
            self.cluster.start_node(self.cluster.pgdata[self._away.name])

    def _line(self, nodes: list[Node], committed: int) -> None:
        seconds = time.monotonic() - self._begun
        for node in nodes:
            if self._away is not None and node.name == self._away.name:
                continue
            it = sample(self.cluster, node)
            self.samples.append(dataclasses.replace(it, entries=committed))
            print(
                f"{committed:>9} {seconds:>7.0f} {node.name:>6} {it.disk:>8.1f} {it.worker:>8.1f}"
                f" {it.network:>8.1f} {it.descriptors:>5} {it.server_log:>8.3f}",
                flush=True,
            )

    def complaints(self) -> Iterator[str]:
        """What was not flat: the largest of the last quarter against the largest of the second."""
        for name in sorted({it.name for it in self.samples}):
            second, last = self._quarter(name, 1), self._quarter(name, 3)
            for field in ("disk", "worker", "network", "server_log"):
                before = max(getattr(it, field) for it in second)
                after = max(getattr(it, field) for it in last)
                least = DISK_STEPS_MB if field == "disk" else FLAT_MB_MIN
                if after > max(before * FLAT, before + least):
                    yield f"{name}: {field} rose from {before:.1f} to {after:.1f} MB"
            opened, later = (max(it.descriptors for it in part) for part in (second, last))
            if later > opened + FILES_MAX_RISE:
                yield f"{name}: open descriptors rose from {opened} to {later}"

    def _quarter(self, name: str, number: int) -> list[Sample]:
        low, high = number * self.entries / 4, (number + 1) * self.entries / 4
        own = [it for it in self.samples if it.name == name]
        found = [it for it in own if low <= it.entries and (it.entries <= high or number == 3)]
        if not found:
            raise BenchError(f"no sample of {name} in quarter {number + 1}: lower --every")
        return found


_HEAD = "  entries seconds   node  disk MB  wrk PSS  net PSS  fds   log MB"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--entries", type=int, default=5_000_000, metavar="N", help="default 5,000,000")
    parser.add_argument("--every", type=int, metavar="N", help="entries between two lines (default 1/50)")
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--sessions", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--dir", default="/var/tmp", help="a directory on a real disk (default /var/tmp)")
    return parser.parse_args()


def main() -> int:
    """Returns the exit status: 1 when it grows, or could not be measured."""
    arguments = _arguments()
    root = Path(tempfile.mkdtemp(prefix="pgraft-growth.", dir=arguments.dir))
    root.chmod(0o755)
    cluster = PgraftCluster(root / "demo", arguments.nodes, None)
    complaints: list[str] = []
    try:
        cluster.up()
        cluster.set(SETTINGS)  # type: ignore[arg-type]
        every = arguments.every or max(1, arguments.entries // 50)
        growth = Growth(cluster, arguments.entries, every, arguments.sessions)
        growth.run()
        complaints += growth.complaints()
        print(f"# {growth.load.acknowledged} acknowledged, errors {growth.load.errors}")
    except (BenchError, OSError, psycopg.Error) as error:
        complaints.append(" ".join(str(error).split()))
    finally:
        cluster.down()
    for text in complaints:
        print(f"growth: {text}", file=sys.stderr)
    if not complaints:
        print("# flat")
        shutil.rmtree(root, ignore_errors=True)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
