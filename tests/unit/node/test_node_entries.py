"""What pgraft_log_get_entry says of an entry that cannot be read."""

from __future__ import annotations

from pgraft.shm.layout import CommandKind, Outcome
from tests.support.node_sim import Sim, SimNode, Ticket


def _get(sim: Sim, node: SimNode, index: int) -> Ticket:
    ticket = node.command(CommandKind.GET_ENTRY, arg1=index)
    sim.run(1000, lambda: ticket.outcome is not None)
    return ticket


def test_the_starting_point_and_a_leaders_first_entry_carry_no_data(sim: Sim) -> None:
    sim.form(1)
    leader = sim.wait_leader()
    assert _get(sim, leader, 1).outcome == Outcome.NULL_ENTRY
    assert _get(sim, leader, 2).outcome == Outcome.NULL_ENTRY


def test_a_compacted_entry_names_the_first_kept_one_and_a_future_one_the_commit_index(sim: Sim) -> None:
    sim.form(1, log_keep_entries=20, log_keep_bytes=0, snapshot_threshold=10)
    leader = sim.wait_leader()
    for number in range(60):
        sim.wait(leader.replicate(b"%d" % number))
    first, commit = leader.status.first_index, leader.status.commit_index
    assert first > 2
    for index in (1, 2, first - 1):
        gone = _get(sim, leader, index)
        assert gone.outcome == Outcome.ERROR_ARGUMENT
        assert f"first kept index is {first}" in gone.text
    assert _get(sim, leader, first).outcome == Outcome.DATA
    future = _get(sim, leader, commit + 1)
    assert future.outcome == Outcome.ERROR_ARGUMENT
    assert f"commit index of this node is {commit}" in future.text
