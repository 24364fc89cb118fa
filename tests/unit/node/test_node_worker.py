"""The executor's side of a step: what it hands in, in which order."""

from __future__ import annotations

from pathlib import Path

from pgraft.executor import SegmentExecutor
from pgraft.node.disk_watch import DiskWatch
from pgraft.node.outputs import NETWORK_PROCESS, Inputs
from pgraft.node.turn import Part, turn
from pgraft.shm.layout import CommandKind
from tests.support.node_sim import Sim


def test_the_time_of_a_step_is_read_after_the_records_and_before_the_commands(sim: Sim) -> None:
    """Stopped between the two, it would promise for a time that begins before the leader's round was sent."""
    order: list[str] = []

    class Executor(SegmentExecutor):
        def read_records(self) -> list[bytes]:
            order.append("records")
            return super().read_records()

        def clock_ns(self) -> int:
            order.append("clock")
            return 7

    (node,) = sim.form(1)
    data_dir, inbound = Path(node.config.data_dir), node.segment.inbound_reader()
    watch = DiskWatch(1000, node.config.data_dir)
    executor = Executor(data_dir, node.segment, inbound, node.source, node.runs.store, watch)
    node.command(CommandKind.REPLICATE, b"x", timeout_ms=1)
    inputs = Inputs()
    parts = turn(node.live, executor, inputs)
    assert [next(parts), next(parts), order] == [Part.RECORDS, Part.CLOCK, ["records", "clock"]]
    assert next(parts) is Part.STEP
    assert [command.deadline_ns for command in inputs.commands] == [7 + 1_000_000]


def test_what_finds_no_room_is_told_to_the_next_step(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(300)
    executor, replica = leader.runs, leader.live
    outbound = executor._outbound
    for size in (1 << 20, 16):
        while outbound.put(bytes(size)):
            pass
    executor.tell_network([b"identity"])
    leader.replicate(b"x")
    executor.turn(replica)
    assert leader.segment.worker["messages_dropped"] == 2
    inputs = Inputs()
    executor.note(inputs)
    peers = sorted(node.id for node in sim.followers(leader))
    assert sorted(inputs.unsent) == [NETWORK_PROCESS, *peers], "it was told again, and found no room again"
    replica.step(inputs, sim.now_ns)
    states = {replica.raft.trk.progress[peer].state.name for peer in peers}
    assert states == {"StateProbe"}
