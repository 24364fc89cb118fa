"""What a seed decides before its simulation begins: the cluster, its settings, its network, its faults."""

from __future__ import annotations

import random

import msgspec

from pgraft.node.core import Limits

MS = 1_000_000
"""Times are nanoseconds, as in production."""

FAULTS = {
    "power": 3.0,
    "kill": 3.0,
    "torn": 3.0,
    "stall": 2.0,
    "disk_error": 0.7,
    "pause": 2.0,
    "freeze": 6.0,
    "partition": 4.0,
    "one_way": 3.0,
    "flapping": 1.5,
    "reconnect": 2.0,
    "membership": 6.0,
    "compaction": 3.0,
    "transfer": 4.0,
    "yield": 1.0,
}
"""What can be done to a cluster, and how often relative to the others."""

NETWORK_FAULTS = ("loss", "duplication", "reordering", "delay")


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation. Times in nanoseconds of true time, probabilities per envelope."""

    nodes: int
    spares: int
    heartbeat_ms: int
    election_ms: tuple[int, ...]
    clock_rates: tuple[float, ...]
    limits: Limits
    segment_bytes: int
    keep_entries: int
    snapshot_threshold: int
    delay_ns: int
    spread_ns: int
    loss: float
    duplication: float
    spike: float
    sync_ns: int
    slow_node: int
    slow_factor: int
    faults: tuple[str, ...]
    fault_every_ns: int
    freeze_every: int
    """One part of a turn in so many is followed by a freeze; 0: only those that the fault makes."""
    clients: int


def draw(rng: random.Random) -> Profile:
    """The profile of a seed. At least three kinds of fault are always on."""
    nodes = rng.choice((1, 2, 3, 3, 3, 3, 4, 5, 5, 6, 7))
    spares = rng.randrange(3) if nodes < 6 else 7 - nodes
    total = nodes + spares
    base = rng.choice((100, 100, 140))
    differing = rng.random() < 0.5
    faults = tuple(name for name in FAULTS if rng.random() < 0.6)
    if len(faults) < 3:
        faults = tuple(FAULTS)
    rates = rng.choice((0.0, 0.03, 0.1, 0.1))
    message_bytes = rng.choice((60, 400, 1 << 20))
    return Profile(
        nodes=nodes,
        spares=spares,
        heartbeat_ms=rng.choice((10, 20, 30)),
        election_ms=tuple(base + (rng.randrange(base) if differing else 0) for _ in range(total)),
        clock_rates=tuple(1.0 + rates * rng.choice((0.0, 1.0, rng.random())) for _ in range(total)),
        limits=Limits(
            message_entry_bytes=message_bytes,
            inflight_messages=rng.choice((1, 3, 256)),
            inflight_bytes=max(message_bytes, 200),
            uncommitted_bytes=rng.choice((300, 5000, 1 << 20)),
            committed_bytes_per_step=rng.choice((100, 1000, 1 << 20)),
        ),
        segment_bytes=rng.choice((4096, 8192, 65536)),
        keep_entries=rng.choice((0, 3, 20)),
        snapshot_threshold=rng.choice((5, 30, 1000)),
        delay_ns=rng.choice((300_000, MS, 3 * MS)),
        spread_ns=rng.choice((300_000, 2 * MS, 10 * MS)),
        loss=rng.choice((0.0, 0.01, 0.02, 0.1)),
        duplication=rng.choice((0.0, 0.02, 0.1)),
        spike=rng.choice((0.0, 0.0, 0.01)),
        sync_ns=rng.choice((100_000, 500_000, 2 * MS)),
        slow_node=rng.randrange(total) + 1,
        slow_factor=rng.choice((1, 1, 4, 16)),
        faults=faults,
        fault_every_ns=rng.choice((40 * MS, 120 * MS, 400 * MS)),
        freeze_every=rng.choice((0, 0, 300, 2000)) if "freeze" in faults else 0,
        clients=rng.choice((2, 3, 4)),
    )
