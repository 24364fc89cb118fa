"""The loop around the node: what it hands to a turn, in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgraft import raft_worker
from pgraft.node.commands import Command
from pgraft.node.disk_watch import DiskWatch
from pgraft.raft_worker import RaftWorker, Stop
from tests.support.node_sim import Sim


class Ticking:
    """A clock that goes on at every look."""

    def __init__(self) -> None:
        self.at = 0

    def __call__(self) -> int:
        self.at += 200_000_000
        return self.at


@pytest.mark.parametrize("stopping", [False, True], ids=["in the loop", "while it hands over"])
def test_the_time_of_a_turn_is_read_after_the_records(
    sim: Sim, monkeypatch: pytest.MonkeyPatch, stopping: bool
) -> None:
    """Stopped between the two, it would promise for a time that begins before the leader's round was sent."""
    sim.form(3)
    node = sim.wait_leader() if stopping else sim.followers(sim.wait_leader())[0]
    Path(node.config.data_dir, "run").mkdir(exist_ok=True)
    worker = RaftWorker(node.config, node.segment, DiskWatch(1000, node.config.data_dir))
    clock = Ticking()
    turns: list[int] = []

    class Reader:
        """Nothing comes; when it was looked for is noted."""

        damage = 0

        def read(self, _limit: int) -> list[bytes]:
            turns.append(clock())
            return []

        def pending(self) -> bool:
            return True

    def turn(_records: list[bytes], _commands: list[Command], now: int) -> bool:
        turns.append(now)
        worker._stopping = True
        return len(turns) < 6

    monkeypatch.setattr(raft_worker, "now_ns", clock)
    monkeypatch.setattr(worker, "_inbound", Reader())
    monkeypatch.setattr(node.live, "turn", turn)
    worker._stopping = stopping
    with pytest.raises(Stop):
        worker.run(node.live)
    node.live.core.watch.stop()
    assert len(turns) >= (4 if stopping else 2)
    assert all(read_at < now for read_at, now in zip(turns[::2], turns[1::2], strict=True)), turns
