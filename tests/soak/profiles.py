"""The LAN and the WAN profile: no election that nobody needs, under light load, and what a commit takes.

    python -m tests.soak.profiles --minutes 10 --profile lan wan --nodes 3 5 7

A cluster of real nodes, every link through the proxy with the profile's delay. One session commits on the
leader a few times a second. An election counts as spurious unless a process of a node had stood in line
for a core for half an election timeout before it: then the machine was too busy to tell.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg

from bench.samples import percentile
from tests.soak.elections import Election, elections
from tests.soak.places import Doors
from tests.soak.proxy import Faults, proxy
from tests.soak.starvation import Starvation, load
from tests.soak.watch import Watch
from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Node, eventually
from tests.support.segments import attach_any

COMMITS_PER_S = 5
ENTRY_BYTES = 100
COMMITS_MIN = 10
"""A run goes on until it has as many, on a machine that is busy with something else."""
BEGIN_WAIT_S = 60
STARVED_SHARE = 0.5
"""Of an election timeout, in line for a core: as much explains an election."""


class Profile(NamedTuple):
    """Timing of a network. `delay_ms` is one way, between any two nodes."""

    name: str
    election_timeout_ms: int
    heartbeat_interval_ms: int
    delay_ms: float


LAN = Profile("lan", 500, 50, 0)
WAN = Profile("wan", 3000, 300, 60)
PROFILES = {profile.name: profile for profile in (LAN, WAN)}


class Outcome(NamedTuple):
    """Figures of one run; times in ms."""

    profile: Profile
    nodes: int
    seconds: float
    commits: int
    failed: int
    median_ms: float
    p99_ms: float
    worst_ms: float
    spurious: list[str]
    explained: list[str]
    seen: dict[str, int]
    """Looks at the cluster that saw a member in such a state, or no lease where there should be one."""
    starved_ms: float
    fsync_ms_max: float
    load: str

    def text(self) -> str:
        """For people."""
        p = self.profile
        lines = [
            f"{p.name} ({p.election_timeout_ms}/{p.heartbeat_interval_ms} ms, {p.delay_ms:g} ms one way),"
            f" {self.nodes} nodes, {self.seconds:.0f} s: {len(self.spurious)} spurious elections,"
            f" {len(self.explained)} explained by a busy machine",
            f"  commits {self.commits}, failed {self.failed}; median {self.median_ms:.1f} ms,"
            f" p99 {self.p99_ms:.1f} ms, worst {self.worst_ms:.1f} ms",
            f"  seen {self.seen or 'nothing unusual'}; longest in line for a core"
            f" {self.starved_ms:.0f} ms in 50 ms of sampling, longest fsync {self.fsync_ms_max:.0f} ms,"
            f" load {self.load}",
        ]
        return "\n".join(lines + [f"  {line}" for line in self.spurious + self.explained])


@contextlib.contextmanager
def profiled(template: Path, profile: Profile, count: int, seed: int = 1) -> Iterator[tuple[Cluster, int]]:
    """A running cluster with the profile's timing and network, and the pid of the proxy in between."""
    doors = Doors(count)
    with proxy(doors.plan(seed)) as relay:
        relay.links({pair: Faults(delay_ms=profile.delay_ms) for pair in doors.pairs})
        with pgcluster.cluster(
            template,
            count,
            place=doors.place,
            election_timeout=str(profile.election_timeout_ms),
            heartbeat_interval=str(profile.heartbeat_interval_ms),
        ) as made:
            yield made, relay.pid


class Observed:
    """One session's work on the leader: commits, and a look at the cluster after each."""

    def __init__(self, cluster: Cluster, watch: Watch) -> None:
        self._cluster = cluster
        self._watch = watch
        self._end = 0.0
        self.took_ms: list[float] = []
        self.failed = 0
        self.seen: dict[str, int] = {}

    def work(self, seconds: float) -> None:
        """Commit for as long, on whoever leads."""
        self._end = time.monotonic() + seconds
        give_up = self._end + BEGIN_WAIT_S
        while not self._is_over():
            if time.monotonic() > give_up:
                raise AssertionError(f"{len(self.took_ms)} commits in {seconds + BEGIN_WAIT_S:.0f} s")
            leader = eventually(lambda: self._watch.leader, "a leader")
            try:
                with self._cluster.nodes[leader - 1].connect() as session:
                    self._on(session)
            except psycopg.Error as error:
                self.failed += 1
                self._note(type(error).__name__)

    def _is_over(self) -> bool:
        return time.monotonic() >= self._end and len(self.took_ms) >= COMMITS_MIN

    def _on(self, session: psycopg.Connection[tuple[object, ...]]) -> None:
        while not self._is_over():
            started = time.monotonic()
            session.execute("SELECT pgraft_replicate_entry(%s)", ("x" * ENTRY_BYTES,))
            self.took_ms.append((time.monotonic() - started) * 1000)
            self._look(session)
            time.sleep(max(0.0, started + 1 / COMMITS_PER_S - time.monotonic()))  # the load is light

    def _look(self, session: psycopg.Connection[tuple[object, ...]]) -> None:
        looked = session.execute(
            "SELECT pgraft_is_leader(), array_agg(state) FROM pgraft_get_cluster_status()"
        )
        for is_leader, states in looked:
            if not is_leader:
                self._note("no lease")
            for state in states if isinstance(states, list) else []:
                if state not in ("Leader", "Follower"):
                    self._note(state)

    def _note(self, what: str) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1


def measure(cluster: Cluster, relay_pid: int, profile: Profile, seconds: float) -> Outcome:
    """Light load for as long, and what came of it."""
    watch = Watch(cluster.nodes)
    try:
        eventually(lambda: watch.leader, "a leader")
        known = set(elections(cluster.nodes))
        pids = [pid for node in cluster.nodes for pid in _pids(watch, node)]
        starvation = Starvation([*pids, relay_pid])
        observed = Observed(cluster, watch)
        try:
            observed.work(seconds)
        finally:
            starvation.close()
    finally:
        watch.close()
    spurious: list[str] = []
    explained: list[str] = []
    for election in elections(cluster.nodes):
        if election not in known:
            starved_ms = _starved_before(election, profile, starvation)
            text = (
                f"node {election.node_id} elected at term {election.term}, {starved_ms:.0f} ms in line before"
            )
            enough = starved_ms >= STARVED_SHARE * profile.election_timeout_ms
            (explained if enough else spurious).append(text)
    ordered = sorted(observed.took_ms)
    return Outcome(
        profile,
        len(cluster.nodes),
        seconds,
        len(ordered),
        observed.failed,
        percentile(ordered, 0.5),
        percentile(ordered, 0.99),
        ordered[-1],
        spurious,
        explained,
        observed.seen,
        starvation.worst_sample_ms(),
        max(_fsync_ms_max(node) for node in cluster.nodes),
        load(),
    )


def _starved_before(election: Election, profile: Profile, starvation: Starvation) -> float:
    """A wait is counted when it ends, which can be a little after what it led to."""
    timeout_s = profile.election_timeout_ms / 1000
    return starvation.worst_ms(election.at - 3 * timeout_s, election.at + timeout_s, timeout_s)


def _pids(watch: Watch, node: Node) -> list[int]:
    """Of the processes that an election depends on."""
    words = watch.words(node.node_id)
    return [words["worker_pid"], words["network_pid"]]


def _fsync_ms_max(node: Node) -> float:
    segment = attach_any(node.segment_name)
    try:
        return segment.worker["fsync_ns_max"] / 1e6
    finally:
        segment.close()


def main(words: list[str]) -> int:
    """Every profile with every number of nodes, one after the other; 1 when an election was spurious."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.profiles", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of each run (default: 10)")
    parser.add_argument("--profile", nargs="+", choices=sorted(PROFILES), default=sorted(PROFILES))
    parser.add_argument("--nodes", nargs="+", type=int, default=[3, 5, 7])
    options = parser.parse_args(words)
    root = Path(tempfile.mkdtemp(prefix="pgraft-profiles-", dir="/var/tmp"))
    root.chmod(0o755)
    spurious = 0
    try:
        template = pgcluster.make_template(18, root)
        for name in options.profile:
            for count in options.nodes:
                profile = PROFILES[name]
                with profiled(template, profile, count) as (cluster, relay_pid):
                    outcome = measure(cluster, relay_pid, profile, options.minutes * 60)
                print(outcome.text(), flush=True)
                spurious += len(outcome.spurious)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if spurious else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
