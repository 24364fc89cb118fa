"""Running many seeds over several processes, and telling what they did."""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from tempfile import TemporaryDirectory

import coverage
import msgspec

from tests.simulation.checks import Violation
from tests.simulation.cluster import Cluster
from tests.simulation.profile import FAULTS, NETWORK_FAULTS

KINDS_MIN = 3
PROGRESS_S = 10
REPORT_EVERY = 20
COVERED_IN = 10
"""With --coverage, one seed in so many is measured: it runs at a third of the speed."""
VIOLATIONS_MAX = 20
COUNTED = (*FAULTS, *NETWORK_FAULTS, "cut", "killed_in_write", "killed_in_start", "left_by_disk_error")


class Part(msgspec.Struct):
    """What some seeds did."""

    seeds: int = 0
    steps: int = 0
    full: int = 0
    """Seeds with at least KINDS_MIN kinds of fault."""
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    violations: list[str] = msgspec.field(default_factory=list)
    done: bool = False

    def add(self, other: Part) -> None:
        """Sum up."""
        self.seeds += other.seeds
        self.steps += other.steps
        self.full += other.full
        self.counts = dict(Counter(self.counts) + Counter(other.counts))
        self.violations += other.violations


def replay_command(seed: int, steps: int, fault: str | None = None) -> str:
    """What runs this seed again."""
    return f"python -m tests.simulation --seed {seed} --steps {steps}" + (
        f" --break {fault}" if fault else ""
    )


def run_seed(seed: int, steps: int, fault: str | None = None) -> Part:
    """One seed, with what it found."""
    cluster = Cluster(seed)
    part = Part(seeds=1)
    try:
        cluster.run(steps)
    except Exception as error:  # noqa: BLE001 - whatever the core raises is a finding
        kind = "" if isinstance(error, Violation) else f"{type(error).__name__}: "
        where = f"seed {seed}, step {cluster.steps}"
        part.violations = [f"{where}: {kind}{error}\n    {replay_command(seed, steps, fault)}"]
    part.steps = cluster.steps
    part.full = int(len(cluster.kinds()) >= KINDS_MIN)
    part.counts = dict(cluster.counts) | {"simulated_ms": cluster.now // 1_000_000}
    return part


def replay(seed: int, steps: int, *, shows_log: bool = False) -> int:
    """Run one seed and show all of it."""
    cluster = Cluster(seed, shows_log=shows_log)
    print(cluster.profile)
    try:
        cluster.run(steps)
    except Violation as violation:
        print(f"step {cluster.steps}, {cluster.now // 1000} us: {violation}")
        _show_nodes(cluster)
        return 1
    done = dict(sorted(cluster.counts.items()))
    print(f"{cluster.steps} steps, {cluster.now // 1000} us, no violation: {done}")
    return 0


def _show_nodes(cluster: Cluster) -> None:
    for host in cluster.hosts.values():
        raft = host.replica.raft
        log = raft.raft_log
        print(
            f"  node {host.id}: {'up' if host.up else 'down'} {raft.state.name} term {raft.term}"
            f" vote {raft.vote} lead {raft.lead} commit {log.committed} applied {host.applied}"
            f" log [{log.first_index()}, {log.last_index()}] {raft.trk.config}"
        )


def _work(
    seeds: Iterator[int], options: argparse.Namespace, until: float, queue: Queue[Part], data: str
) -> None:
    measure = coverage.Coverage(branch=True, source=["pgraft.raft"], data_file=data) if data else None
    part, violations, most = Part(), 0, 1 if options.stop else VIOLATIONS_MAX
    for number, seed in enumerate(seeds):
        if time.monotonic() >= until or violations >= most:
            break
        covered = measure is not None and number % COVERED_IN == 0
        if covered and measure is not None:
            measure.start()
        part.add(run_seed(seed, options.steps, options.fault))
        violations = violations + 1 if part.violations else violations
        if covered and measure is not None:
            measure.stop()
        if part.seeds >= REPORT_EVERY or part.violations:
            queue.put(part)
            part = Part()
    if measure is not None:
        measure.save()
    part.done = True
    queue.put(part)


def run(options: argparse.Namespace, importing: coverage.Coverage) -> int:
    """Run the seeds that `options` ask for; print how it goes, and what was done in the end."""
    first = options.first if options.first is not None else random.SystemRandom().randrange(1, 1 << 48)
    until = time.monotonic() + (options.seconds if options.seconds is not None else 1e9)
    count = options.seeds if options.seeds is not None else 1 << 60
    jobs = min(options.jobs, count)
    print(f"simulating on {jobs} processes, {options.steps} steps a seed, seeds from {first}", flush=True)
    started = time.monotonic()
    with TemporaryDirectory() as scratch:
        queue: Queue[Part] = multiprocessing.Queue()
        workers = []
        for job in range(jobs):
            seeds = iter(range(first + job, first + count, jobs))
            data = f"{scratch}/coverage.{job}" if options.coverage else ""
            worker = multiprocessing.Process(target=_work, args=(seeds, options, until, queue, data))
            worker.start()
            workers.append(worker)
        total = _collect(queue, jobs, started)
        for worker in workers:
            worker.join()
        _summarize(total, started)
        if options.coverage:
            _show_coverage(scratch, importing)
    return 1 if total.violations else 0


def _collect(queue: Queue[Part], jobs: int, started: float) -> Part:
    total, running = Part(), jobs
    shown = started
    while running:
        part = queue.get()
        total.add(part)
        running -= part.done
        for text in part.violations:
            print(f"VIOLATION {text}", flush=True)
        if time.monotonic() - shown > PROGRESS_S:
            shown = time.monotonic()
            print(
                f"  {shown - started:6.0f} s: {total.seeds} seeds, {total.steps} steps,"
                f" {len(total.violations)} violations",
                flush=True,
            )
    return total


def _summarize(total: Part, started: float) -> None:
    counts = total.counts
    took = time.monotonic() - started
    simulated = counts.get("simulated_ms", 0) / 1000
    print(
        f"{total.seeds} seeds, {total.steps} steps, {simulated:.0f} s simulated in {took:.0f} s,"
        f" {len(total.violations)} violations; {KINDS_MIN} kinds of fault or more in {total.full} seeds"
    )
    print("faults: " + ", ".join(f"{name} {counts.get(name, 0)}" for name in COUNTED))
    rest = sorted(set(counts) - set(COUNTED) - {"simulated_ms"})
    print("beside: " + ", ".join(f"{name} {counts[name]}" for name in rest))


def _show_coverage(scratch: str, importing: coverage.Coverage) -> None:
    """Of the seeds that were measured, and of the import. The rest of the 100 % is `make coverage`."""
    measure = coverage.Coverage(branch=True, source=["pgraft.raft"], data_file=f"{scratch}/coverage.all")
    measure.combine([str(path) for path in Path(scratch).glob("coverage.[0-9]*")])
    measure.get_data().update(importing.get_data())
    measure.report(show_missing=True, skip_covered=True, file=sys.stdout)


__all__ = ["Part", "replay", "replay_command", "run", "run_seed"]
