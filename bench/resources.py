"""Memory and processor time of a node's Python processes, from /proc."""

from __future__ import annotations

import dataclasses
import os
import resource
import time
from pathlib import Path

from bench.cluster import Node, PgraftCluster
from bench.failover import one_kill
from bench.samples import US_PER_S, BenchError
from pgraft.postgres.process import children_with_cwd

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class NodeResources:
    """One node: PSS in MB of each Python process; processor shares in percent of one core."""

    name: str
    is_leader: bool
    pss_mb: dict[str, float]
    python_cpu_percent: float
    postgres_cpu_percent: float

    @property
    def pss_total_mb(self) -> float:
        """All three processes."""
        return sum(self.pss_mb.values())


def pss_mb(pid: int) -> float:
    """Proportional set size of one process, in MB of 1024 kB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError as error:
        raise BenchError(f"cannot read the memory of process {pid}: {error}") from error
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise BenchError(f"/proc/{pid}/smaps_rollup has no Pss line")


def cpu_ticks(pid: int) -> int:
    """User and system time that a process has used; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _child_ticks(pid: int) -> int:
    """User and system time of the children that a process has reaped, such as a postmaster's backends."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return int(fields[13]) + int(fields[14])


class LoadMeter:
    """Processor time of each part of the cluster while a load runs: where the time of a commit goes."""

    def __init__(self, leader: Node, followers: list[Node]) -> None:
        self._leader = leader
        self._followers = followers
        self._begun = self._read()
        self._children = _children_s()

    def _read(self) -> dict[str, int]:
        ticks = {f"leader {part}": cpu_ticks(self._leader.pids.get(part) or 0) for part in _MEASURED}
        for part in _MEASURED:
            ticks[f"followers' {part}"] = sum(cpu_ticks(node.pids.get(part) or 0) for node in self._followers)
        # The load's backends have ended when it is read again: they count as reaped children.
        postmaster = self._leader.pids.get("postmaster") or 0
        ticks["leader PostgreSQL"] = cpu_ticks(postmaster) + _child_ticks(postmaster)
        return ticks

    def us_per_commit(self, commits: int) -> dict[str, float]:
        """Microseconds of each part since the meter was made, a commit; the load generator's, too."""
        each = US_PER_S / max(1, commits)
        now = self._read()
        us = {part: (now[part] - self._begun[part]) / TICKS_PER_S * each for part in now}
        us["pgbench"] = (_children_s() - self._children) * each
        return us


_MEASURED = ("worker", "network")


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _ticks(pids: list[int]) -> int:
    return sum(cpu_ticks(pid) for pid in pids)


def _percent(ticks: int, seconds: float) -> float:
    return 100 * ticks / TICKS_PER_S / seconds


def _postgres_pids(cluster: PgraftCluster, node: Node) -> list[int]:
    return [ref.pid for ref in children_with_cwd(cluster.pgdata[node.name], "postgres")]


def measure_idle(cluster: PgraftCluster, seconds: float) -> list[NodeResources]:
    """Memory, and processor time over `seconds` in which nobody asks anything."""
    leader, followers = cluster.healthy()
    nodes = [leader, *followers]
    python = {node.name: node.python_pids() for node in nodes}
    postgres = {node.name: _postgres_pids(cluster, node) for node in nodes}
    before = {node.name: (_ticks(python[node.name]), _ticks(postgres[node.name])) for node in nodes}
    begun = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - begun
    figures = []
    for node in nodes:
        used = _ticks(python[node.name]) - before[node.name][0]
        used_postgres = _ticks(postgres[node.name]) - before[node.name][1]
        figures.append(
            NodeResources(
                name=node.name,
                is_leader=node is leader,
                pss_mb={part: pss_mb(pid) for part, pid in node.pids.items() if pid in python[node.name]},
                python_cpu_percent=_percent(used, passed),
                postgres_cpu_percent=_percent(used_postgres, passed),
            )
        )
    return figures


def measure_election(cluster: PgraftCluster, seconds: float) -> float:
    """The larger processor share of the two surviving nodes over `seconds` with one election in it."""
    _, followers = cluster.healthy()
    before = {node.name: _ticks(node.python_pids()) for node in followers}
    begun = time.monotonic()
    _, killed, survivors = one_kill(cluster)
    time.sleep(max(0.0, seconds - (time.monotonic() - begun)))
    passed = time.monotonic() - begun
    shares = [_percent(_ticks(node.python_pids()) - before[node.name], passed) for node in survivors]
    cluster.start_node(cluster.pgdata[killed.name])
    cluster.healthy()
    return max(shares)
