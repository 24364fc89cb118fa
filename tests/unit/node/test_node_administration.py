"""Membership as operators use it, with whoever takes part in it killed on the way; time by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pgraft.node.changes import AddNode
from pgraft.shm.layout import CommandKind, Outcome, Yields
from pgraft.storage import load_identity, load_peers
from tests.support.node_sim import ELECTION_MS, HEARTBEAT_MS, Sim, SimNode, Ticket, make_run_dir
from tests.unit.node.test_node_membership_changes import add, learners, remove, voters

STAGES = ("learner", "catch up", "promote")


def stage_of(node: SimNode) -> str:
    """Where the addition stands that this node runs."""
    queue = node.live.desk._changes._queue
    return str(queue[0]._step.value) if queue and isinstance(queue[0], AddNode) else ""


def reach_stage(sim: Sim, leader: SimNode, stage: str, newcomer: int) -> Ticket:
    """An addition that hangs in this stage, since what would take it further does not get through."""
    others = [node.id for node in sim.nodes.values() if node is not leader and node.id != newcomer]

    def hold(sender: int, to: int, envelope: bytes) -> bool:
        if stage == "catch up":
            return newcomer in (sender, to)
        # Proposed, and held up before it is committed.
        return stage_of(leader) == stage and sender in others

    sim.drop = hold
    ticket = add(leader, newcomer)
    assert sim.run(ELECTION_MS / 2, lambda: stage_of(leader) == stage)
    sim.run(20)
    return ticket


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("victim", ["caller", "leader", "leader for good", "newcomer"])
def test_an_addition_survives_whoever_dies_in_it(sim: Sim, stage: str, victim: str) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(300)
    newcomer = sim.join(4)
    ticket = reach_stage(sim, leader, stage, newcomer.id)
    match victim:
        case "caller":
            leader.backend.release(ticket.slot)
        case "leader":
            leader.restart()
        case "leader for good":
            leader.kill()
        case "newcomer":
            newcomer.restart()
    sim.drop = lambda sender, to, envelope: False
    living = [node for node in sim.nodes.values() if node.node is not None]
    old = [node for node in living if node is not newcomer]
    assert sim.run(6 * ELECTION_MS, lambda: any(node.lease_valid for node in old))
    # Asked again, by an operator who was told nothing or "unknown": it is finished.
    for _ in range(3):
        now = sim.wait_leader_of(living)
        again = add(now, newcomer.id)
        sim.wait(again)
        if again.outcome == Outcome.OK:
            break
    assert again.outcome == Outcome.OK, again.text
    sim.run(500)
    for node in living:
        assert (voters(node), learners(node)) == ((1, 2, 3, 4), ())
    sim.wait(sim.wait_leader_of(living).replicate(b"with the fourth"))


def test_a_new_leader_says_which_additions_are_not_finished(
    sim: Sim, capfd: pytest.CaptureFixture[str]
) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    ticket = reach_stage(sim, leader, "catch up", sim.join(4).id)
    leader.kill()
    capfd.readouterr()
    successor = sim.wait_leader_of([node for node in sim.followers(leader) if node.id != 4])
    sim.run(100)
    said = capfd.readouterr().err
    assert said.count("the addition of node 4 is not finished") == 1
    assert "SELECT pgraft_add_node(4, '127.0.0.1', 7004) finishes it" in said
    assert learners(successor) == (4,)
    assert ticket.outcome is None, "nobody answers for a leader that is gone"
    # Or it is ended.
    sim.wait(remove(successor, 4))
    assert learners(successor) == ()


def test_a_learner_that_asks_for_too_long_stays_one_and_the_way_out_is_said(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.join(4, start=False)
    first = reach_stage(sim, leader, "catch up", 4)
    leader.kill()
    sim.drop = lambda sender, to, envelope: False
    successor = sim.wait_leader_of(sim.followers(leader))
    again = add(successor, 4, timeout_ms=1000)
    sim.wait(again)
    assert again.outcome == Outcome.ERROR_STATE
    assert "It stays a learner, as it was." in again.text
    assert "pgraft_remove_node(4)" in again.text
    assert first.outcome is None


def test_one_that_is_gone_before_its_promotion_is_not_promoted(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(300)
    newcomer = sim.join(4)
    # The core takes no change: another one is said to be pending.
    sim.nodes[4].kill()
    ticket = add(leader, 4)
    sim.run(200)
    host = leader.live.desk
    taken, host.propose_change = host.propose_change, lambda change: 0  # type: ignore[method-assign]
    newcomer.start()
    assert sim.run(2 * ELECTION_MS, lambda: stage_of(leader) == "promote")
    newcomer.kill()
    sim.run(ELECTION_MS + 200)
    host.propose_change = taken  # type: ignore[method-assign]
    sim.run(500)
    assert voters(leader) == (1, 2, 3)
    newcomer.start()
    sim.wait(ticket)
    assert ticket.outcome == Outcome.OK, ticket.text


def replace_disk(node: SimNode) -> None:
    """The same node on an empty disk."""
    node.kill()
    shutil.rmtree(node.config.data_dir)
    make_run_dir(node.config)


def knows_disk_of(node: SimNode, other: SimNode) -> bool:
    """Whether this node remembers the other one with the disk that it has."""
    identity = load_identity(Path(other.config.data_dir))
    assert identity is not None
    return load_peers(Path(node.config.data_dir))[other.id] == identity.member_id


@pytest.mark.parametrize("compacts", [False, True])
def test_one_that_slept_while_a_learner_came_with_another_disk_believes_the_second(
    sim: Sim, compacts: bool
) -> None:
    small = {"log_keep_entries": 5, "log_keep_bytes": 0, "snapshot_threshold": 5} if compacts else {}
    sim.form(3, **small)
    leader = sim.wait_leader()
    sleeper, other = sim.followers(leader)
    newcomer = sim.join(4, **small)
    reach_stage(sim, leader, "catch up", 4)
    sim.run(200)
    assert learners(sleeper) == (4,)
    sim.isolate(sleeper.id)
    sim.drop = lambda sender, to, envelope: 4 in (sender, to)
    sim.wait(remove(leader, 4))
    replace_disk(newcomer)
    # As a newcomer of another address would: its id was never a voter's.
    sim.drop = lambda sender, to, envelope: False
    newcomer.start()
    again = add(leader, 4)
    sim.wait(again)
    assert again.outcome == Outcome.OK, again.text
    if compacts:
        for number in range(5):
            sim.wait(*(leader.replicate(b"%d %d" % (number, one)) for one in range(10)))
    # Only the newcomer can tell the sleeper.
    sim.wait(leader.command(CommandKind.TRANSFER_LEADER, arg1=4), ms=2000)
    assert sim.wait_leader_of([newcomer]) is newcomer
    leader.kill()
    sim.heal()
    sim.cut(sleeper.id, other.id)
    sim.wait(newcomer.replicate(b"by the newcomer"))
    assert sim.run(3 * ELECTION_MS, lambda: voters(sleeper) == (1, 2, 3, 4))
    assert knows_disk_of(sleeper, newcomer)


def test_the_membership_tells_with_which_disk_a_node_votes(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    away = sim.followers(leader)[0]
    away.kill()
    newcomer = sim.join(4)
    sim.wait(add(leader, 4))
    # It never met the newcomer, and must not believe the first who comes by that name.
    sim.cut(away.id, 4)
    away.start()
    sim.run(ELECTION_MS)
    assert knows_disk_of(away, newcomer)


def test_a_voter_that_was_removed_stays_barred_when_its_return_fails(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    gone = sim.followers(leader)[0]
    sim.wait(remove(leader, gone.id))
    gone.kill()
    again = add(leader, gone.id, timeout_ms=1000)
    sim.wait(again)
    assert again.outcome == Outcome.ERROR_STATE
    assert leader.members.removed == (gone.id,)
    assert gone.id in load_peers(Path(leader.config.data_dir))


def test_a_node_moves_and_keeps_its_vote(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    moved = sim.followers(leader)[0]

    def update(node_id: int, port: int) -> Ticket:
        ticket = leader.command(CommandKind.UPDATE_NODE, b"10.0.0.9", arg1=node_id, arg2=port)
        sim.wait(ticket)
        return ticket

    assert update(moved.id, 7777).outcome == Outcome.OK
    sim.run(300)
    for node in sim.nodes.values():
        row = next(row for row in node.members.members if row.node_id == moved.id)
        assert (row.address, row.port) == ("10.0.0.9", 7777)
        assert voters(node) == (1, 2, 3)
    assert update(moved.id, 7777).outcome == Outcome.OK
    assert "is not a member" in update(9, 7778).text
    assert "is the address of node" in update(leader.id, 7777).text
    assert "is not within" in update(moved.id, 0).text
    leader.kill()
    successor = sim.wait_leader_of(sim.followers(leader))
    sim.wait(successor.replicate(b"x"))


def test_a_leader_that_cannot_be_spared_is_not_removed_and_goes_on_leading(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.followers(leader)[0].kill()
    sim.run(ELECTION_MS + 100)
    ticket = remove(leader, leader.id)
    sim.wait(ticket)
    assert ticket.outcome == Outcome.ERROR_STATE
    assert "would leave no quorum" in ticket.text
    assert leader.lease_valid, "it must not have handed over for nothing"


def test_two_administrators_at_once(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(300)
    sim.join(4)
    sim.join(5)
    both = [add(leader, 4), add(leader, 5), add(leader, 4)]
    sim.wait(*both)
    assert [ticket.outcome for ticket in both] == [Outcome.OK] * 3
    elsewhere = leader.command(CommandKind.ADD_NODE, b"127.0.0.1", arg1=6, arg2=7006)
    other = leader.command(CommandKind.ADD_NODE, b"10.0.0.6", arg1=6, arg2=7006)
    sim.join(6)
    sim.wait(elsewhere, other)
    assert elsewhere.outcome == Outcome.OK
    assert "is a member already, at 127.0.0.1:7006" in other.text
    same = [remove(leader, 6), remove(leader, 6)]
    sim.wait(*same)
    assert [ticket.outcome for ticket in same] == [Outcome.OK] * 2
    # One removes the leader, the other a follower: both happen, under whoever leads.
    follower = next(node for node in sim.followers(leader) if node.id in (1, 2, 3))
    crossed = [remove(leader, leader.id), remove(leader, follower.id, forward=True)]
    sim.wait(*crossed)
    left = [node for node in sim.nodes.values() if node not in (leader, follower) and node.id != 6]
    for node, ticket in zip((leader, follower), crossed, strict=True):
        # Leadership went to and fro between the two: then one may be told "unknown", and asks again.
        assert ticket.outcome in (Outcome.OK, Outcome.ERROR_UNKNOWN), ticket.text
        if ticket.outcome != Outcome.OK:
            again = remove(sim.wait_leader(), node.id)
            sim.wait(again)
            assert again.outcome == Outcome.OK, again.text
    sim.run(300)
    assert voters(sim.wait_leader_of(left)) == tuple(sorted(node.id for node in left))


def test_three_to_five_to_seven_nodes_and_back_under_load(sim: Sim) -> None:
    sim.form(3)
    sim.wait_leader()
    sent: list[Ticket] = []

    def change(make: Callable[[SimNode], Ticket]) -> None:
        for _ in range(3):
            leader = sim.wait_leader_of(members())
            ticket = make(leader)
            while ticket.final is None:
                sent.append(leader.replicate(b"%d" % len(sent)))
                sim.run(20)
            if ticket.outcome == Outcome.OK:
                return
        raise AssertionError(ticket.text)

    def members() -> list[SimNode]:
        return [node for node in sim.nodes.values() if not node.live.removed]

    for node_id in (4, 5, 6, 7):
        sim.join(node_id)
        change(lambda leader, node_id=node_id: add(leader, node_id))  # type: ignore[misc]
    assert voters(sim.wait_leader()) == (1, 2, 3, 4, 5, 6, 7)
    # The leader among them, when its turn comes.
    for node_id in (1, 2, 3, 4):
        change(lambda leader, node_id=node_id: remove(leader, node_id))  # type: ignore[misc]
    sim.run(500)
    leader = sim.wait_leader_of(members())
    assert voters(leader) == (5, 6, 7)
    done = [ticket.data for ticket in sent if ticket.outcome == Outcome.OK]
    assert len(done) >= 20
    for node in members():
        assert [text for text in node.texts if text in set(done)] == done


def test_who_had_better_not_lead_hands_over_to_one_that_may(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(300)
    one, other = sim.followers(leader)
    one.yields = Yields.NOT_SERVING
    sim.wait(leader.replicate(b"x"))
    sim.run(300)
    leader.yields = Yields.NOT_SERVING
    assert not leader.has_yielded
    leader.due_ns = sim.now_ns
    assert sim.wait_leader_of([other], ms=200) is other
    assert leader.has_yielded
    # With nobody left that serves it goes on: an unserved cluster is better than none.
    other.yields = Yields.NOT_SERVING
    sim.run(3 * ELECTION_MS)
    assert other.lease_valid
    assert other.has_yielded
    # A stop hands over all the same.
    other.yields = Yields.STOPPING
    other.due_ns = sim.now_ns
    assert sim.wait_leader_of([leader, one], ms=200) in (leader, one)


@pytest.mark.parametrize("count", [3, 5])
def test_a_planned_stop_leaves_the_cluster_without_a_leader_for_less_than_a_heartbeat(
    sim: Sim, count: int
) -> None:
    sim.form(count)
    leader = sim.wait_leader()
    sim.run(300)
    for number in range(9):
        leader.replicate(b"%d" % number)
    times: dict[int, tuple[int, int]] = {}

    def look() -> None:
        for node in sim.nodes.values():
            if node.lease_valid:
                first, _ = times.get(node.id, (sim.now_ns, 0))
                times[node.id] = (first, sim.now_ns)

    look()
    sim.on_step.append(look)
    leader.yields = Yields.STOPPING
    leader.due_ns = sim.now_ns
    successor = sim.wait_leader_of(sim.followers(leader), ms=ELECTION_MS)
    gap_ms = (times[successor.id][0] - times[leader.id][1]) / 1e6
    assert 0 <= gap_ms < HEARTBEAT_MS / 10
    assert leader.has_yielded
