"""How fast the consensus core alone is: three RawNodes, messages handed over in memory, no disk.

    python -m bench.bench_core [--seconds 3] [--json FILE] [--profile batch|single]

A round proposes a batch on the leader and lets the three nodes work until all of them have applied it.
Rates are per second of this process's CPU time, so that neighbours on the machine do not count.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import sys
import time
from pathlib import Path

from pgraft.raft import Config, ConfState, MemoryStorage, RawNode, Snapshot, SnapshotMetadata, StateType

NODES = (1, 2, 3)
BATCH = 64
PAYLOAD_BYTES = 100
COMPACT_EVERY = 8192
TO_REACH = {"entries_per_second_in_batches": 250_000, "single_commits_per_second": 8_000}


class Cluster:
    """Three nodes and the loop of a worker around each, without disk and network."""

    def __init__(self) -> None:
        rng = random.Random(1)
        start = Snapshot(SnapshotMetadata(ConfState(voters=NODES), index=1, term=1))
        self.storages = {id: MemoryStorage() for id in NODES}
        self.nodes: dict[int, RawNode] = {}
        self.applied = dict.fromkeys(NODES, 0)
        for id, storage in self.storages.items():
            storage.apply_snapshot(start)
            config = Config(
                id=id,
                election_tick=100,
                heartbeat_tick=10,
                storage=storage,
                rng=rng,
                max_uncommitted_entries_size=64 << 20,
                check_quorum=True,
                pre_vote=True,
            )
            self.nodes[id] = RawNode(config)
        self.nodes[1].campaign()
        self.settle()
        self.leader = self.nodes[1]
        if self.leader.raft.state is not StateType.StateLeader:
            raise RuntimeError("node 1 was not elected")

    def settle(self) -> None:
        """Let all nodes work until there is nothing to do."""
        nodes, storages, applied = self.nodes, self.storages, self.applied
        busy = True
        while busy:
            busy = False
            for id, node in nodes.items():
                if not node.has_ready():
                    continue
                busy = True
                ready = node.ready()
                storage = storages[id]
                if ready.hard_state is not None:
                    storage.set_hard_state(ready.hard_state)
                storage.append(ready.entries)
                applied[id] += len(ready.committed_entries)
                node.advance(ready)
                for message in ready.messages:
                    nodes[message.to].step(message)

    def compact(self) -> None:
        """Keep the logs short, as the worker does."""
        for id, storage in self.storages.items():
            storage.compact(self.nodes[id].raft.raft_log.applied)


def run(cluster: Cluster, batch: list[bytes], seconds: float) -> float:
    """Commit batches for so long; entries per second of CPU time."""
    leader = cluster.leader
    before = cluster.applied[1]
    compact_at = before + COMPACT_EVERY
    start = time.process_time()
    deadline = start + seconds
    while time.process_time() < deadline:
        leader.propose_entries(batch)
        cluster.settle()
        if cluster.applied[1] >= compact_at:
            cluster.compact()
            compact_at += COMPACT_EVERY
    elapsed = time.process_time() - start
    if len(set(cluster.applied.values())) != 1:
        raise RuntimeError(f"the nodes have applied different numbers of entries: {cluster.applied}")
    return (cluster.applied[1] - before) / elapsed


def measure(seconds: float) -> dict[str, int]:
    """Committed entries in batches of 64, and single commits, per second of one core."""
    payload = b"x" * PAYLOAD_BYTES
    return {
        "entries_per_second_in_batches": round(run(Cluster(), [payload] * BATCH, seconds)),
        "single_commits_per_second": round(run(Cluster(), [payload], seconds)),
    }


def profile(batch: list[bytes], seconds: float) -> None:
    """Print where the time goes."""
    cluster = Cluster()
    profiler = cProfile.Profile()
    profiler.enable()
    run(cluster, batch, seconds)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def main(arguments: list[str]) -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU seconds for each measurement")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--profile", choices=("batch", "single"), help="print a profile instead")
    options = parser.parse_args(arguments)
    payload = b"x" * PAYLOAD_BYTES
    if options.profile:
        profile([payload] * (BATCH if options.profile == "batch" else 1), options.seconds)
        return 0
    figures = measure(options.seconds)
    print(f"{'core, three nodes in memory':<34}{'measured':>12}{'to reach':>12}")
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):<34}{value:>12,}{TO_REACH[name]:>12,}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
