"""The executor's side of a step: what it hands in, in which order."""

from __future__ import annotations

from pathlib import Path

from pgraft.executor import SegmentExecutor
from pgraft.node.disk_watch import DiskWatch
from pgraft.node.outputs import NETWORK_PROCESS
from pgraft.shm.layout import CommandKind
from pgraft.shm.rings import RingReader
from tests.support.node_sim import Sim, SimNode


def executor_of(node: SimNode, inbound: RingReader, clock: list[str]) -> SegmentExecutor:
    def read_clock() -> int:
        clock.append("clock")
        return len(clock)

    watch = DiskWatch(1000, node.config.data_dir)
    store = node.runs.store
    return SegmentExecutor(
        Path(node.config.data_dir), node.segment, inbound, node.source, store, watch, read_clock
    )


def test_the_time_of_a_step_is_read_after_the_records_and_before_the_commands(sim: Sim) -> None:
    """Stopped between the two, it would promise for a time that begins before the leader's round was sent."""
    order: list[str] = []

    class Reader(RingReader):
        def read(self, bytes_max: int) -> list[bytes]:
            order.append("records")
            return super().read(bytes_max)

    (node,) = sim.form(1)
    real = node.segment.inbound_reader()
    executor = executor_of(node, Reader(real._ring, real._head, real._tail), order)
    node.command(CommandKind.REPLICATE, b"x", timeout_ms=1)
    inputs, now = executor.read()
    assert order == ["records", "clock"]
    assert [command.deadline_ns for command in inputs.commands] == [now + 1_000_000]


def test_what_finds_no_room_is_told_to_the_next_step(sim: Sim) -> None:
    nodes = sim.form(3)
    leader = sim.wait_leader()
    sim.run(300)
    executor, replica = leader.runs, leader.live
    outbound = executor._outbound
    while outbound.put(bytes(1 << 20)):
        pass
    while outbound.put(bytes(16)):
        pass
    executor.tell_network([b"identity"])
    leader.replicate(b"x")
    outputs = replica.step(*executor.read())
    executor.carry_out(outputs)
    assert leader.segment.worker["messages_dropped"] == 2
    inputs, now = executor.notes()
    peers = sorted(node.id for node in nodes if node is not leader)
    assert sorted(inputs.unsent) == [NETWORK_PROCESS, *peers] or set(inputs.unsent) >= {*peers}
    replica.step(inputs, now)
    states = {peer: replica.raft.trk.progress[peer].state.name for peer in peers}
    assert set(states.values()) == {"StateProbe"}
