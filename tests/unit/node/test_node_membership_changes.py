"""Adding, removing, handing over: whole nodes, with time by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pgraft.node.envelope import decode
from pgraft.node.membership import ChangeContext, encode_context
from pgraft.raft.types import ConfChange, ConfChangeType, Message, MessageType
from pgraft.shm.layout import CommandKind, Outcome
from pgraft.storage import load_peers
from tests.support.node_sim import ELECTION_MS, Sim, SimNode, Ticket, make_run_dir

UPDATE = ConfChangeType.ConfChangeUpdateNode


def add(leader: SimNode, node_id: int, *, timeout_ms: int = 5000, **other: object) -> Ticket:
    return leader.command(
        CommandKind.ADD_NODE, b"127.0.0.1", arg1=node_id, arg2=7000 + node_id, timeout_ms=timeout_ms, **other
    )


def remove(leader: SimNode, node_id: int, **other: object) -> Ticket:
    return leader.command(CommandKind.REMOVE_NODE, arg1=node_id, **other)


def carried(envelope: bytes, kind: MessageType) -> list[Message]:
    """The messages of this kind in an envelope on its way."""
    return [message for message in decode(envelope).messages if message.type == kind]


def voters(node: SimNode) -> tuple[int, ...]:
    return node.live.core.membership_log.current.conf_state.voters


def learners(node: SimNode) -> tuple[int, ...]:
    return node.live.core.membership_log.current.conf_state.learners


def test_a_single_node_grows_to_three(sim: Sim) -> None:
    (first,) = sim.form(1)
    sim.wait_leader()
    sim.wait(*(first.replicate(b"%d" % number) for number in range(10)))
    for node_id in (2, 3):
        sim.join(node_id)
        ticket = add(first, node_id)
        sim.wait(ticket)
        assert ticket.outcome == Outcome.OK, ticket.text
        assert f"node {node_id} is a learner now, and is catching up" in ticket.notices
    sim.run(300)
    for node in sim.nodes.values():
        assert voters(node) == (1, 2, 3)
        assert node.texts == [b"%d" % number for number in range(10)]
        assert [(row.node_id, row.port) for row in node.members.members] == [(1, 7001), (2, 7002), (3, 7003)]
    first.kill()
    successor = sim.wait_leader_of(sim.followers(first))
    sim.wait(successor.replicate(b"without the first"))


def test_a_newcomer_does_not_count_until_it_has_caught_up(sim: Sim) -> None:
    (first,) = sim.form(1)
    sim.wait_leader()
    ticket = add(first, 2)
    sim.run(2500)
    assert learners(first) == (2,)
    assert voters(first) == (1,)
    sim.wait(first.replicate(b"the quorum is as before"))
    assert first.lease_valid
    assert any("waiting for node 2" in notice for notice in ticket.notices)


def test_one_that_never_comes_is_taken_back(sim: Sim) -> None:
    (first,) = sim.form(1)
    sim.wait_leader()
    ticket = add(first, 2, timeout_ms=2000)
    sim.wait(ticket, ms=2500)
    assert ticket.outcome == Outcome.ERROR_STATE
    assert "did not catch up within 2000 ms" in ticket.text
    assert "The cluster is as it was." in ticket.text
    assert (voters(first), learners(first)) == ((1,), ())
    assert first.members.removed == ()
    late = sim.join(2)
    again = add(first, 2)
    sim.wait(again)
    assert again.outcome == Outcome.OK, again.text
    sim.run(200)
    assert voters(late) == (1, 2)
    assert not late.live.removed


def test_a_newcomer_may_come_with_another_disk_before_it_is_a_member(sim: Sim) -> None:
    (first,) = sim.form(1)
    sim.wait_leader()
    slow = sim.join(2, start=False)
    ticket = add(first, 2, timeout_ms=1000)
    slow.start()
    sim.drop = lambda sender, to, envelope: True
    sim.wait(ticket, ms=2000)
    slow.kill()
    shutil.rmtree(slow.config.data_dir)
    make_run_dir(slow.config)
    sim.drop = lambda sender, to, envelope: False
    slow.start()
    again = add(first, 2)
    sim.wait(again)
    assert again.outcome == Outcome.OK, again.text


def test_adding_a_member_again_is_true_and_another_address_an_error(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    other = sim.followers(leader)[0].id
    same = add(leader, other)
    sim.wait(same)
    assert same.outcome == Outcome.OK
    cases = [
        (leader.command(CommandKind.ADD_NODE, b"127.0.0.1", arg1=other, arg2=9), "is a member already"),
        (leader.command(CommandKind.ADD_NODE, b"127.0.0.1", arg1=9, arg2=7000 + other), "is the address of"),
        (leader.command(CommandKind.ADD_NODE, b"", arg1=9, arg2=9), "the address must have"),
        (leader.command(CommandKind.ADD_NODE, b"h" * 256, arg1=9, arg2=9), "the address must have"),
        (leader.command(CommandKind.ADD_NODE, b"h", arg1=9, arg2=65536), "port 65536"),
        (leader.command(CommandKind.ADD_NODE, b"h", arg1=2**31, arg2=9), "node_id 2147483648"),
    ]
    for ticket, says in cases:
        sim.wait(ticket)
        assert ticket.outcome == Outcome.ERROR_ARGUMENT
        assert says in ticket.text


def test_a_removed_node_takes_no_part_and_comes_back_when_added_again(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    gone = sim.followers(leader)[0]
    ticket = remove(leader, gone.id)
    sim.wait(ticket)
    assert ticket.outcome == Outcome.OK
    sim.run(200)
    assert gone.live.removed
    refused = gone.replicate(b"x", forward=True)
    sim.wait(refused, ms=100)
    assert "was removed from the cluster" in refused.text
    assert leader.members.removed == (gone.id,)
    again = add(leader, gone.id)
    sim.wait(again)
    assert again.outcome == Outcome.OK, again.text
    sim.run(300)
    assert not gone.live.removed
    assert leader.members.removed == ()
    sim.wait(leader.replicate(b"y"))
    sim.run(300)
    assert gone.texts == leader.texts == [b"y"]


def test_a_node_that_was_away_hears_of_its_removal(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    gone = sim.followers(leader)[0]
    sim.isolate(gone.id)
    sim.wait(remove(leader, gone.id))
    sim.run(10 * ELECTION_MS)
    sim.heal()
    sim.run(2 * ELECTION_MS)
    assert gone.live.removed
    term = leader.status.term
    gone.restart()
    sim.run(3 * ELECTION_MS)
    assert gone.live.removed
    assert leader.status.term == term, "it disturbed the others"


def test_a_removed_node_says_so_after_a_restart_with_nobody_there(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    gone = sim.followers(leader)[0]
    # Held back, the leader's word of it: the node sees the change in its own log.
    sim.wait(remove(leader, gone.id))
    sim.run(300)
    removed_in_log = gone.id in gone.live.core.membership_log.current.removed
    sim.isolate(gone.id)
    gone.runs.carry_out(gone.live.stop(sim.now_ns))
    gone.restart()
    sim.run(10)
    assert gone.live.removed == removed_in_log


def test_removing_the_leader_hands_over_first(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    ticket = remove(leader, leader.id)
    sim.wait(ticket)
    assert ticket.outcome == Outcome.OK, ticket.text
    assert ticket.notices == ["leadership was handed over; the new leader removes this node"]
    successor = sim.wait_leader_of(sim.followers(leader), ms=500)
    assert leader.id not in voters(successor)
    sim.wait(successor.replicate(b"x"))


def test_removing_the_leader_through_a_follower(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(50)
    ticket = remove(sim.followers(leader)[0], leader.id, forward=True)
    sim.wait(ticket)
    assert ticket.outcome == Outcome.OK, ticket.text
    successor = sim.wait_leader_of(sim.followers(leader), ms=500)
    assert voters(successor) == tuple(sorted(node.id for node in sim.followers(leader)))


def test_what_cannot_be_removed(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    unknown = remove(leader, 9)
    sim.wait(unknown)
    assert unknown.outcome == Outcome.ERROR_ARGUMENT
    one, other = sim.followers(leader)
    one.kill()
    sim.run(ELECTION_MS + 100)
    ticket = remove(leader, other.id)
    sim.wait(ticket)
    assert ticket.outcome == Outcome.ERROR_STATE
    assert "would leave no quorum" in ticket.text
    assert voters(leader) == (1, 2, 3)
    sim.wait(remove(leader, one.id))
    last = remove(leader, leader.id)
    sim.wait(last)
    assert last.outcome == Outcome.OK, last.text
    survivor = sim.wait_leader_of([other])
    only = remove(survivor, survivor.id)
    sim.wait(only)
    assert "is the only voter" in only.text


def test_a_removal_that_could_never_be_committed_is_refused(sim: Sim) -> None:
    sim.form(2)
    leader = sim.wait_leader()
    sim.run(300)
    other = sim.followers(leader)[0]
    last = leader.live.core.store.last_index()
    other.kill()
    # Its lease holds still, and the other one was heard just now: but nobody answers any more.
    ticket = remove(leader, other.id)
    sim.wait(ticket, ms=50)
    assert leader.lease_valid
    assert ticket.outcome == Outcome.ERROR_STATE
    assert f"there is no quorum that could remove node {other.id}" in ticket.text
    assert "Of the 2 voters, 1 can be reached and 2 are needed." in ticket.text
    assert leader.live.core.store.last_index() == last
    other.start()
    sim.wait(sim.wait_leader().replicate(b"both"))


def test_a_removal_that_waited_is_judged_again_when_its_turn_comes(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(300)
    one, other = sim.followers(leader)
    sim.drop = lambda sender, to, envelope: bool(carried(envelope, MessageType.MsgApp))
    context = encode_context(ChangeContext("127.0.0.1", 7000 + one.id))
    leader.live.core.raw.propose_conf_change(ConfChange(UPDATE, one.id, context))
    ticket = remove(leader, one.id)
    sim.run(100)
    # While its predecessor is on its way, the voter is lost that would be needed afterwards.
    other.kill()
    sim.run(20)
    sim.drop = lambda sender, to, envelope: False
    sim.wait(ticket, ms=5 * ELECTION_MS)
    assert ticket.outcome == Outcome.ERROR_STATE
    assert f"removing node {one.id} would leave no quorum" in ticket.text
    assert voters(leader) == (1, 2, 3)
    sim.wait(sim.wait_leader().replicate(b"two of three"))


def test_a_change_that_waits_for_another_is_not_made_after_its_time(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    long = add(leader, 4, timeout_ms=3000)
    sim.run(100)
    ticket = remove(leader, sim.followers(leader)[0].id, timeout_ms=500)
    sim.wait(ticket, ms=600)
    assert ticket.outcome == Outcome.ERROR_STATE
    assert "another membership change was still running" in ticket.text
    sim.wait(long)
    sim.run(1000)
    assert voters(leader) == (1, 2, 3)


def test_leadership_is_handed_over_without_a_gap_in_the_promise(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.on_step.append(lambda: None if len(sim.leaders()) <= 1 else (_ for _ in ()).throw(AssertionError()))
    target = sim.followers(leader)[1]
    ticket = leader.command(CommandKind.TRANSFER_LEADER, arg1=target.id)
    sim.wait(ticket, ms=500)
    assert ticket.outcome == Outcome.OK
    assert sim.wait_leader_of([target], ms=500) is target


@pytest.mark.parametrize("known_for_long", [False, True])
def test_leadership_is_not_handed_to_a_dead_voter(sim: Sim, known_for_long: bool) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(300)
    target = sim.followers(leader)[0]
    target.kill()
    sim.run(3 * ELECTION_MS if known_for_long else 1)
    ticket = leader.command(CommandKind.TRANSFER_LEADER, arg1=target.id)
    sim.wait(ticket, ms=50)
    assert ticket.outcome == Outcome.ERROR_STATE
    assert f"node {target.id} cannot take leadership over" in ticket.text
    seconds = "3.0" if known_for_long else "0.0"
    assert f"last heard {seconds} s ago and the connection to it is broken" in ticket.text
    assert "pgraft_transfer_leadership()" in ticket.text
    assert leader.lease_valid
    assert not leader.live.lease.ended
    sim.wait(leader.replicate(b"goes on"))


def test_leadership_is_not_handed_to_a_voter_that_was_never_heard(sim: Sim) -> None:
    sim.add(3, (1, 2, 3), start=False)
    sim.add(1, (1, 2, 3))
    sim.add(2, (1, 2, 3))
    leader = sim.wait_leader()
    ticket = leader.command(CommandKind.TRANSFER_LEADER, arg1=3)
    sim.wait(ticket, ms=50)
    assert ticket.outcome == Outcome.ERROR_STATE
    assert "It was not heard yet" in ticket.text
    assert leader.lease_valid


def test_a_hand_over_that_fails_costs_a_term_and_not_the_lease_for_ever(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(300)
    target = sim.followers(leader)[0]
    sim.drop = lambda sender, to, envelope: target.id in (sender, to)
    ticket = leader.command(CommandKind.TRANSFER_LEADER, arg1=target.id)
    sim.run(20)
    assert leader.live.lease.ended
    assert not leader.lease_valid
    sim.wait(ticket)
    assert ticket.outcome == Outcome.ERROR_STATE
    sim.drop = lambda sender, to, envelope: False
    again = sim.wait_leader(5 * ELECTION_MS)
    sim.wait(again.replicate(b"x"))


def test_forwarded_commands_are_carried_out_once(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(50)
    follower = sim.followers(leader)[0]
    tickets = [follower.replicate(b"%d" % number, forward=True) for number in range(8)]
    sim.wait(*tickets, ms=200)
    assert {ticket.outcome for ticket in tickets} == {Outcome.OK}
    sim.run(200)
    assert sorted(follower.texts) == [b"%d" % number for number in range(8)]


def test_forwarded_mebibytes_do_not_burst_an_envelope(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(50)
    follower = sim.followers(leader)[0]
    tickets = [follower.replicate(bytes([65 + number]) * 2**20, forward=True) for number in range(3)]
    sim.wait(*tickets, ms=15_000)
    assert {ticket.outcome for ticket in tickets} <= {Outcome.OK, Outcome.ERROR_UNKNOWN}
    assert Outcome.OK in {ticket.outcome for ticket in tickets}


def test_a_forwarded_command_whose_leader_is_lost_is_unknown(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(50)
    follower = sim.followers(leader)[0]
    sim.isolate(leader.id)
    ticket = follower.replicate(b"x", forward=True)
    sim.wait(ticket, ms=2 * ELECTION_MS + 100)
    assert ticket.outcome == Outcome.ERROR_UNKNOWN
    assert "leader was lost" in ticket.text


def test_member_ids_of_members_are_remembered_and_only_those(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.join(4)
    sim.run(100)
    assert set(load_peers(Path(leader.config.data_dir))) == {1, 2, 3} - {leader.id}
    sim.wait(add(leader, 4))
    sim.run(300)
    assert set(load_peers(Path(leader.config.data_dir))) == {1, 2, 3, 4} - {leader.id}


def test_a_follower_far_behind_gets_the_snapshot_and_every_kept_entry(sim: Sim) -> None:
    small = {"log_keep_entries": 20, "log_keep_bytes": 0, "snapshot_threshold": 10}
    sim.form(3, **small)
    leader = sim.wait_leader()
    slow = sim.followers(leader)[0]
    slow.kill()
    for number in range(0, 100, 10):
        sim.wait(*(leader.replicate(b"%d" % (number + more)) for more in range(10)))
    assert leader.status.first_index > 50
    slow.start()
    sim.run(2 * ELECTION_MS)
    assert slow.texts[-20:] == leader.texts[-20:]
    sim.join(4)
    ticket = add(leader, 4)
    sim.wait(ticket)
    assert ticket.outcome == Outcome.OK, ticket.text
    assert sim.nodes[4].texts == leader.texts
    sim.nodes[4].restart()
    sim.run(2 * ELECTION_MS)
    assert voters(sim.nodes[4]) == (1, 2, 3, 4)


def down_to_one(sim: Sim) -> tuple[SimNode, SimNode]:
    """A cluster of two whose leader has just removed the other: (leader, removed)."""
    sim.form(2)
    leader = sim.wait_leader()
    (gone,) = sim.followers(leader)
    ticket = remove(leader, gone.id)
    sim.run(1000, lambda: ticket.final is not None)
    assert ticket.outcome == Outcome.OK
    return leader, gone


def test_a_leader_that_is_killed_right_after_a_removal_can_do_without_who_is_gone(sim: Sim) -> None:
    leader, gone = down_to_one(sim)
    gone.kill()
    leader.restart()
    assert sim.run(5 * ELECTION_MS, lambda: leader.lease_valid)
    assert voters(leader) == (leader.id,)


def test_a_removed_node_still_votes_for_one_that_has_forgotten_the_removal(sim: Sim) -> None:
    sim.form(2)
    leader = sim.wait_leader()
    (gone,) = sim.followers(leader)
    sim.run(50)
    # What a leader says that is killed before its commit index is on disk.
    gone.live._on_removed("as the leader said")
    assert gone.live.removed
    leader.restart()
    assert sim.run(6 * ELECTION_MS, lambda: leader.lease_valid)
    assert not gone.live.removed
