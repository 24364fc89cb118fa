"""The table on stdout, the JSON file, and the comparison with the figures to reach."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bench import bench_core
from bench.failover import FailoverFigures
from bench.latency import CallCost
from bench.resources import NodeResources
from bench.samples import LoadFigures
from bench.tls_cost import TlsCost

LATENCY_SHARE_OF_ETCD = 0.4
THROUGHPUT_TIMES_ETCD = 3.0
IS_LEADER_US = 0.2
FAILOVER_MEDIAN_S, FAILOVER_WORST_S = 2.0, 3.0  # at the default election timeout of 1000 ms
PSS_MB = 50.0
IDLE_CPU_PERCENT, ELECTION_CPU_PERCENT = 1.0, 5.0
START_S = 3.0


@dataclasses.dataclass
class Results:
    """Everything that was measured; None or empty for what was not."""

    machine: dict[str, str]
    options: dict[str, Any]
    pgraft: list[LoadFigures] = dataclasses.field(default_factory=list)
    etcd: list[LoadFigures] = dataclasses.field(default_factory=list)
    cpu_us_per_commit: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)
    core: dict[str, int] = dataclasses.field(default_factory=dict)
    is_leader: CallCost | None = None
    failover: list[FailoverFigures] = dataclasses.field(default_factory=list)
    resources: list[NodeResources] = dataclasses.field(default_factory=list)
    tls: TlsCost | None = None
    election_cpu_percent: float | None = None
    start_s: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One figure of SPEC section 6: what, the bound, what was measured, whether it is reached."""

    what: str
    bound: str
    measured: str
    reached: bool


def _at(figures: list[LoadFigures], clients: int) -> LoadFigures | None:
    return next((one for one in figures if one.clients == clients), None)


def verdicts(results: Results) -> list[Verdict]:
    """Every figure to reach that this run says something about."""
    found = [_core_verdict(name, value) for name, value in results.core.items()]
    found += _against_etcd(results)
    if results.is_leader is not None:
        cost = results.is_leader.on_top_us
        found.append(_below("pgraft_is_leader() on top of an empty C function, us", cost, IS_LEADER_US, 3))
    for one in results.failover:
        share = one.election_timeout_ms / 1000
        name = f"failover {one.election_timeout_ms}/{one.heartbeat_interval_ms} ms, {one.kills} kills"
        found.append(_below(f"{name}: median, s", one.median_s, FAILOVER_MEDIAN_S * share, 2))
        found.append(_below(f"{name}: worst, s", one.worst_s, FAILOVER_WORST_S * share, 2))
    if results.resources:
        pss = max(node.pss_total_mb for node in results.resources)
        cpu = max(node.python_cpu_percent for node in results.resources)
        found.append(_below("memory of a node's Python processes (PSS), MB", pss, PSS_MB, 1))
        found.append(_below("processor time, idle, % of a core", cpu, IDLE_CPU_PERCENT, 2))
    if results.tls is not None:
        found.append(_below("the same with TLS, PSS, MB", results.tls.tls.pss_mb, PSS_MB, 1))
    if results.election_cpu_percent is not None:
        share = results.election_cpu_percent
        found.append(_below("the same over 10 s with an election, %", share, ELECTION_CPU_PERCENT, 2))
    if "entries" in results.start_s:
        name = f"start with {results.start_s['entries']:,.0f} entries, s"
        found.append(_below(name, results.start_s["full"], START_S, 2))
    return found


def _core_verdict(name: str, value: int) -> Verdict:
    bound = bench_core.TO_REACH[name]
    return Verdict(f"core alone: {name.replace('_', ' ')}", f">= {bound:,}", f"{value:,}", value >= bound)


def _below(what: str, value: float, bound: float, digits: int) -> Verdict:
    return Verdict(what, f"<= {bound:g}", f"{value:.{digits}f}", value <= bound)


def _against_etcd(results: Results) -> list[Verdict]:
    found = []
    ours, theirs = _at(results.pgraft, 1), _at(results.etcd, 1)
    if ours is not None and theirs is not None:
        ratio = ours.mean_ms / theirs.mean_ms
        found.append(_below("mean latency of one session / etcd's", ratio, LATENCY_SHARE_OF_ETCD, 2))
    ours, theirs = _at(results.pgraft, 64), _at(results.etcd, 64)
    if ours is not None and theirs is not None:
        ratio = ours.per_second / theirs.per_second
        bound = f">= {THROUGHPUT_TIMES_ETCD:g}"
        reached = ratio >= THROUGHPUT_TIMES_ETCD
        found.append(Verdict("throughput of 64 sessions / etcd's", bound, f"{ratio:.2f}", reached))
    return found


def text(results: Results) -> str:
    """The table for people."""
    lines = [f"{name}: {value}" for name, value in results.machine.items()]
    lines += _load_lines(results)
    lines += _tls_lines(results.tls)
    lines += _other_lines(results)
    told = verdicts(results)
    lines += ["", f"{'figure to reach':<58} {'bound':>9} {'measured':>9}"] if told else []
    for verdict in told:
        word = "reached" if verdict.reached else "NOT REACHED"
        lines.append(f"{verdict.what:<58} {verdict.bound:>9} {verdict.measured:>9}  {word}")
    return "\n".join(lines) + "\n"


def _load_lines(results: Results) -> list[str]:
    if not results.pgraft and not results.etcd:
        return []
    title = f"{'durable commits of 100 bytes':<30} {'per second':>10} {'min ms':>8} {'p50 ms':>8}"
    lines = ["", f"{title} {'mean ms':>8} {'p99 ms':>8}"]
    for clients in sorted({one.clients for one in (*results.pgraft, *results.etcd)}):
        ours, theirs = _at(results.pgraft, clients), _at(results.etcd, clients)
        for name, one in (("pgraft", ours), ("etcd", theirs)):
            if one is not None:
                label = f"{name}, {clients} client{'s' if clients > 1 else ''}"
                lines.append(
                    f"{label:<30} {one.per_second:>10.0f} {one.min_ms:>8.2f} {one.p50_ms:>8.2f}"
                    f" {one.mean_ms:>8.2f} {one.p99_ms:>8.2f}"
                )
        if ours is not None and theirs is not None:
            more, mean = ours.per_second / theirs.per_second, ours.mean_ms / theirs.mean_ms
            lines.append(f"{'  pgraft / etcd':<30} {more:>9.2f}x {'':>8} {'':>8} {mean:>7.2f}x")
    return lines


def _tls_lines(cost: TlsCost | None) -> list[str]:
    if cost is None:
        return []
    lines = [
        "",
        f"{'mutual TLS between nodes':<30} {'per second':>10} {'p50 ms':>8} {'mean ms':>8} {'p99 ms':>8}",
    ]
    for plain, tls in zip(cost.plain.loads, cost.tls.loads, strict=True):
        for name, one in (("without", plain), ("with", tls)):
            label = f"{name}, {one.clients} session{'s' if one.clients > 1 else ''}"
            times = f"{one.p50_ms:>8.2f} {one.mean_ms:>8.2f} {one.p99_ms:>8.2f}"
            lines.append(f"{label:<30} {one.per_second:>10.0f} {times}")
        rate, mean = tls.per_second / plain.per_second, tls.mean_ms / plain.mean_ms
        lines.append(f"{'  with / without':<30} {rate:>9.2f}x {'':>8} {mean:>7.2f}x")
        before, after = (kind.network_us_per_commit[plain.clients] for kind in (cost.plain, cost.tls))
        lines.append(
            f"  processor time a commit of the leader's network process: {before:.0f} us, {after:.0f} with"
        )
    lines.append(
        f"memory of the largest node (PSS): {cost.plain.pss_mb:.1f} MB, {cost.tls.pss_mb:.1f} MB with"
    )
    return lines


def _other_lines(results: Results) -> list[str]:
    lines = [""] if results.cpu_us_per_commit else []
    for clients, us in results.cpu_us_per_commit.items():
        each = ", ".join(f"{part} {spent:.0f}" for part, spent in us.items())
        lines.append(f"processor time a commit, {clients} sessions: {sum(us.values()):.0f} us ({each})")
    if (cost := results.is_leader) is not None:
        lines += [
            "",
            f"pgraft_is_leader(): {cost.is_leader_us:.3f} us, empty function {cost.empty_us:.3f} us",
        ]
    for one in results.failover:
        lines.append(
            f"failover {one.election_timeout_ms}/{one.heartbeat_interval_ms} ms: median {one.median_s:.2f} s,"
            f" p99 {one.p99_s:.2f} s, worst {one.worst_s:.2f} s over {one.kills} kills"
        )
    for node in results.resources:
        parts = ", ".join(f"{part} {mb:.1f}" for part, mb in node.pss_mb.items())
        lines.append(
            f"{node.name}{' (leader)' if node.is_leader else ''}: PSS {node.pss_total_mb:.1f} MB ({parts});"
            f" idle {node.python_cpu_percent:.2f} %, its PostgreSQL {node.postgres_cpu_percent:.2f} %"
        )
    if results.start_s:
        starts = results.start_s
        lines.append(
            f"start of a node: {starts['full']:.2f} s with {starts['entries']:,.0f} entries,"
            f" {starts['empty']:.2f} s without"
        )
    return lines


def write_json(results: Results, path: Path) -> None:
    """Everything, and the verdicts, for programs."""
    document = dataclasses.asdict(results)
    document["figures_to_reach"] = [dataclasses.asdict(one) for one in verdicts(results)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
