"""What a seed decides before its simulation begins: the cluster, its settings, its network, its faults."""

from __future__ import annotations

import random

import msgspec

TICK_US = 10_000
"""A tick by a node's own clock, in microseconds."""

FAULTS = {
    "power": 3.0,
    "kill": 3.0,
    "torn": 3.0,
    "stall": 2.0,
    "disk_error": 0.7,
    "pause": 3.0,
    "partition": 4.0,
    "one_way": 3.0,
    "flapping": 1.5,
    "membership": 8.0,
    "compaction": 6.0,
    "transfer": 4.0,
    "unreachable": 2.0,
    "snapshot_lost": 1.0,
    "forget_leader": 1.0,
}
"""What can be done to a cluster, and how often relative to the others."""

NETWORK_FAULTS = ("loss", "duplication", "reordering", "delay")


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation. Times in microseconds of true time, probabilities per message."""

    nodes: int
    spares: int
    election_ticks: tuple[int, ...]
    heartbeat_tick: int
    clock_rates: tuple[float, ...]
    asynchronous: bool
    pre_vote: bool
    check_quorum: bool
    lease_reads: bool
    forwarding: bool
    step_down_on_removal: bool
    resume_at_commit: bool
    message_bytes: int
    inflight_messages: int
    inflight_bytes: int
    uncommitted_bytes: int
    page_bytes: int
    segment_bytes: int
    keep_entries: int
    whole_turns: bool
    delay_us: int
    spread_us: int
    loss: float
    duplication: float
    spike: float
    sync_us: int
    slow_node: int
    slow_factor: int
    faults: tuple[str, ...]
    fault_every_us: int
    clients: int


def draw(rng: random.Random) -> Profile:
    """The profile of a seed. At least three kinds of fault are always on."""
    nodes = rng.choice((3, 3, 3, 4, 5, 5, 6, 7))
    spares = rng.randrange(3) if nodes < 6 else 7 - nodes
    total = nodes + spares
    like_product = rng.random() < 0.5
    base = rng.choice((10, 10, 14))
    differing = rng.random() < 0.5
    faults = tuple(name for name in FAULTS if rng.random() < 0.6)
    if len(faults) < 3:
        faults = tuple(FAULTS)
    rates = rng.choice((0.0, 0.03, 0.1, 0.1))
    message_bytes = rng.choice((0, 60, 400, 1 << 20))
    check_quorum = like_product or rng.random() < 0.7
    return Profile(
        nodes=nodes,
        spares=spares,
        election_ticks=tuple(base + (rng.randrange(base) if differing else 0) for _ in range(total)),
        heartbeat_tick=rng.choice((1, 2, 3)),
        clock_rates=tuple(1.0 + rates * rng.choice((0.0, 1.0, rng.random())) for _ in range(total)),
        asynchronous=not like_product and rng.random() < 0.6,
        pre_vote=like_product or rng.random() < 0.7,
        check_quorum=check_quorum,
        lease_reads=check_quorum and rng.random() < 0.3,
        forwarding=not like_product and rng.random() < 0.6,
        step_down_on_removal=like_product or rng.random() < 0.5,
        resume_at_commit=like_product or rng.random() < 0.3,
        message_bytes=message_bytes,
        inflight_messages=rng.choice((1, 3, 256)),
        inflight_bytes=rng.choice((0, max(message_bytes, 200))),
        uncommitted_bytes=rng.choice((0, 300, 5000)),
        page_bytes=rng.choice((0, 100, 1 << 20)),
        segment_bytes=rng.choice((4096, 8192, 65536)),
        keep_entries=rng.choice((0, 3, 20)),
        whole_turns=like_product or rng.random() < 0.5,
        delay_us=rng.choice((300, 1000, 3000)),
        spread_us=rng.choice((300, 2000, 10_000)),
        loss=rng.choice((0.0, 0.01, 0.02, 0.1)),
        duplication=rng.choice((0.0, 0.02, 0.1)),
        spike=rng.choice((0.0, 0.0, 0.01)),
        sync_us=rng.choice((100, 500, 2000)),
        slow_node=rng.randrange(total) + 1,
        slow_factor=rng.choice((1, 1, 4, 16)),
        faults=faults,
        fault_every_us=rng.choice((40_000, 120_000, 400_000)),
        clients=rng.choice((2, 3, 4)),
    )
