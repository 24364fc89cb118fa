"""Whole nodes against each other, with time by hand: elections, leases, minorities, restarts."""

from __future__ import annotations

import shutil

import pytest

from pgraft.node.desk import BOOTSTRAP_INDEX
from pgraft.shm.layout import CommandKind, Outcome, Role
from tests.support.node_sim import ELECTION_MS, HEARTBEAT_MS, MS, Sim, SimNode, make_run_dir


def watch_leases(sim: Sim) -> list[int]:
    """From now on no two nodes may hold a valid lease at once; the ids of holders, as they change."""
    holders: list[int] = []

    def check() -> None:
        now = sim.leaders()
        assert len(now) <= 1, f"leases of {[node.id for node in now]} at {sim.now_ns}"
        if now and holders[-1:] != [now[0].id]:
            holders.append(now[0].id)

    sim.on_step.append(check)
    return holders


def assert_same_texts(sim: Sim, *texts: bytes) -> None:
    for node in sim.nodes.values():
        if node.node is not None:
            assert node.texts == list(texts), f"node {node.id}"


def test_three_nodes_elect_and_replicate(sim: Sim) -> None:
    sim.form(3)
    watch_leases(sim)
    leader = sim.wait_leader(3 * ELECTION_MS)
    tickets = [leader.replicate(text) for text in (b"one", b"", "żółw\n'".encode())]
    sim.wait(*tickets)
    assert [ticket.outcome for ticket in tickets] == [Outcome.OK] * 3
    indexes = [ticket.final[2] for ticket in tickets if ticket.final]
    assert indexes == list(range(indexes[0], indexes[0] + 3))
    sim.run(2 * HEARTBEAT_MS)
    assert_same_texts(sim, b"one", b"", "żółw\n'".encode())
    for node in sim.nodes.values():
        assert node.status.leader_id == leader.id
        assert node.status.commit_index == leader.status.commit_index


def test_an_answer_of_true_is_covered_by_the_commit_index_in_the_status_block(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    ticket = leader.replicate(b"x")
    sim.run(1000, lambda: ticket.final is not None)
    assert ticket.final is not None
    assert leader.status.commit_index >= ticket.final[2]


def test_every_node_shows_everybody_within_two_heartbeats(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.wait(leader.replicate(b"x"))
    sim.run(2 * HEARTBEAT_MS + 20)
    for node in sim.nodes.values():
        rows = node.status.rows
        assert [row.node_id for row in rows] == [1, 2, 3]
        assert [row.role == Role.LEADER for row in rows] == [row.node_id == leader.id for row in rows]
        assert {row.commit_index for row in rows} == {leader.status.commit_index}
        assert all(sim.now_ns - row.heard_boot_ns <= 2 * HEARTBEAT_MS * MS + 20 * MS for row in rows)


def test_a_follower_names_the_leader(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(50)
    follower = sim.followers(leader)[0]
    ticket = follower.replicate(b"x")
    sim.wait(ticket, ms=100)
    assert ticket.outcome == Outcome.ERROR_STATE
    assert f"node {leader.id} at 127.0.0.1:{7000 + leader.id}" in ticket.text


def test_a_killed_leader_is_followed_by_another_and_comes_back(sim: Sim) -> None:
    sim.form(3)
    holders = watch_leases(sim)
    leader = sim.wait_leader()
    tickets = [leader.replicate(b"a%d" % number) for number in range(5)]
    sim.wait(*tickets)
    leader.kill()
    successor = sim.wait_leader_of(sim.followers(leader))
    assert successor is not leader
    sim.wait(successor.replicate(b"after"))
    leader.start()
    sim.run(3 * ELECTION_MS)
    assert_same_texts(sim, *(b"a%d" % number for number in range(5)), b"after")
    assert holders[:2] == [leader.id, successor.id]


def test_all_killed_at_once_come_back_with_everything(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.wait(leader.replicate(b"kept"))
    for node in sim.nodes.values():
        node.kill()
    for node in sim.nodes.values():
        node.start()
    sim.wait_leader(5 * ELECTION_MS)
    sim.run(500)
    assert_same_texts(sim, b"kept")


def test_a_new_worker_shows_no_older_commit_index(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.wait(*(leader.replicate(b"%d" % number) for number in range(3)))
    sim.run(200)
    for node in sim.nodes.values():
        shown = node.status.commit_index
        assert shown == leader.status.commit_index
        # The last one's commit came behind its batch, and nothing came after it.
        assert node.live.core.store.hard_state.commit < shown
        sim.isolate(node.id)
        node.restart()
        sim.run(50)
        assert (node.status.commit_index, node.status.applied) == (shown, shown)
    sim.heal()
    sim.wait_leader(5 * ELECTION_MS)
    sim.wait(sim.wait_leader().replicate(b"on"))
    sim.run(200)
    assert_same_texts(sim, b"0", b"1", b"2", b"on")


def test_a_worker_with_another_log_believes_no_old_status(sim: Sim) -> None:
    node = sim.form(1)[0]
    sim.wait_leader()
    sim.wait(node.replicate(b"x"))
    term = node.status.term
    node.kill()
    shutil.rmtree(node.config.data_dir)
    make_run_dir(node.config)
    node.start()
    assert node.live.core.raft.raft_log.committed == BOOTSTRAP_INDEX
    assert node.live.core.store.hard_state.term < term


def test_a_new_worker_answers_unknown_to_what_an_earlier_one_took(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.isolate(leader.id)
    taken = leader.replicate(b"taken")
    sim.run(20)
    assert taken.final is None
    waiting = leader.replicate(b"waits in the ring")
    leader.restart()
    sim.run(20)
    assert taken.outcome == Outcome.ERROR_UNKNOWN
    assert "restarted" in taken.text
    assert waiting.final is None


@pytest.mark.parametrize("fault", ["cut off", "frozen", "killed"])
def test_the_old_lease_ends_before_another_begins(sim: Sim, fault: str) -> None:
    sim.form(3)
    holders = watch_leases(sim)
    leader = sim.wait_leader()
    sim.run(250)
    lost_at = sim.now_ns
    if fault == "cut off":
        sim.isolate(leader.id)
    elif fault == "frozen":
        leader.frozen = True
    else:
        leader.kill()
    assert sim.run(ELECTION_MS, lambda: not leader.lease_valid), "its lease outlived an election timeout"
    assert sim.now_ns - lost_at <= ELECTION_MS * MS
    successor = sim.wait_leader_of(sim.followers(leader))
    sim.wait(successor.replicate(b"x"))
    sim.heal()
    leader.frozen = False
    if leader.node is None:
        leader.start()
    sim.run(2 * ELECTION_MS)
    assert_same_texts(sim, b"x")
    assert holders == [leader.id, successor.id]


def test_a_minority_fails_commands_in_time_and_says_how_many_voters_it_reaches(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(30)
    sim.isolate(leader.id)
    began = sim.now_ns
    pending = leader.replicate(b"pending")
    sim.wait(pending, ms=2 * ELECTION_MS + HEARTBEAT_MS)
    assert pending.outcome == Outcome.ERROR_UNKNOWN
    assert "1 of 3 voters can be reached, 2 are needed" in pending.text
    assert sim.now_ns - began <= (2 * ELECTION_MS + HEARTBEAT_MS) * MS
    began = sim.now_ns
    new = leader.replicate(b"new")
    sim.wait(new, ms=2 * ELECTION_MS + HEARTBEAT_MS)
    assert new.outcome == Outcome.ERROR_STATE
    assert "no leader: 1 of 3 voters can be reached, 2 are needed" in new.text


def test_a_command_without_a_leader_waits_for_the_election(sim: Sim) -> None:
    first, *_ = sim.form(3)
    ticket = first.replicate(b"early", forward=True)
    sim.wait(ticket, ms=3 * ELECTION_MS)
    assert ticket.outcome == Outcome.OK


def test_the_proposal_timeout_ends_the_wait_as_unknown(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(30)
    sim.isolate(leader.id)
    ticket = leader.replicate(b"x", timeout_ms=300)
    sim.wait(ticket, ms=400)
    assert ticket.outcome == Outcome.ERROR_UNKNOWN
    assert "not committed within its time" in ticket.text


def test_a_single_node_commits_alone_and_keeps_its_lease(sim: Sim) -> None:
    (node,) = sim.form(1)
    sim.wait_leader()
    sim.wait(node.replicate(b"x"))
    for _ in range(30):
        sim.run(100)
        assert node.lease_valid


def test_one_mebibyte_comes_back_unchanged_in_pieces(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    text = bytes(range(256)) * 4096
    ticket = leader.replicate(text)
    sim.wait(ticket)
    assert ticket.final is not None
    sim.run(300)
    follower = sim.followers(leader)[0]
    got = b""
    while len(got) < len(text):
        piece = follower.command(CommandKind.GET_ENTRY, arg1=ticket.final[2], arg2=len(got))
        sim.wait(piece)
        assert piece.final is not None
        assert piece.final[2] == len(text)
        got += piece.final[4]
    assert got == text


def test_entries_that_carry_no_text_and_those_that_are_not_there(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    cases = {1: "", 2: "", 99: "not committed"}
    for index, says in cases.items():
        ticket = leader.command(CommandKind.GET_ENTRY, arg1=index)
        sim.wait(ticket)
        assert ticket.outcome == (Outcome.ERROR_ARGUMENT if says else Outcome.NULL_ENTRY)
        assert says in ticket.text


def test_a_read_barrier_is_confirmed_on_leader_and_follower(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.wait(leader.replicate(b"x"))
    for node in sim.nodes.values():
        ticket = node.command(CommandKind.READ_BARRIER)
        sim.wait(ticket, ms=500)
        assert ticket.final is not None
        assert ticket.outcome == Outcome.OK
        assert node.live.raft.raft_log.applied >= ticket.final[2] >= leader.status.commit_index


def test_a_lost_read_barrier_is_asked_again(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(50)
    follower = sim.followers(leader)[0]
    sim.drop = lambda sender, to, envelope: sender == follower.id
    ticket = follower.command(CommandKind.READ_BARRIER)
    sim.run(20)
    sim.drop = lambda sender, to, envelope: False
    sim.wait(ticket, ms=2 * ELECTION_MS)
    assert ticket.outcome == Outcome.OK


def test_a_stopped_node_leaves_nobody_waiting(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(30)
    # Its connections stand still: a removal is refused where they have broken.
    sim.drop = lambda sender, to, envelope: True
    appended = leader.replicate(b"x")
    change = leader.command(CommandKind.REMOVE_NODE, arg1=sim.followers(leader)[0].id)
    sim.run(10)
    leader.runs.carry_out(leader.live.stop(sim.now_ns))
    for ticket in (appended, change):
        ticket.look()
        assert ticket.outcome == Outcome.ERROR_UNKNOWN
    assert not leader.lease_valid


def chaos_step(sim: Sim, nodes: list[SimNode], quiet: bool) -> None:
    choice = sim.random.random()
    node = sim.random.choice(nodes)
    if quiet or choice < 0.2:
        sim.heal()
        for one in nodes:
            one.frozen = False
            if one.node is None:
                one.start()
    elif choice < 0.4 and node.node is not None:
        node.kill()
    elif choice < 0.55:
        node.frozen = not node.frozen
    elif choice < 0.7:
        sim.isolate(node.id)
    elif choice < 0.85:
        sim.cut(node.id, sim.random.choice([one.id for one in nodes if one is not node]))
    elif node.node is not None and node.lease_valid:
        node.command(CommandKind.TRANSFER_LEADER, timeout_ms=3000)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_acknowledged_is_lost_through_faults(sim: Sim, seed: int) -> None:
    """Kills, freezes, cuts and hand-overs by a seed: one lease at a time, no text lost or doubled."""
    sim.random.seed(seed)
    nodes = sim.form(3)
    watch_leases(sim)
    sent = 0
    for step in range(24):
        chaos_step(sim, nodes, quiet=step % 8 == 7)
        for _ in range(3):
            node = sim.random.choice(nodes)
            if node.node is not None and not node.frozen:
                node.replicate(b"%d" % sent, forward=sim.random.random() < 0.5, timeout_ms=2000)
                sent += 1
            sim.run(sim.random.randrange(50, 500))
    chaos_step(sim, nodes, quiet=True)
    leader = sim.wait_leader(8 * ELECTION_MS)
    sim.wait(leader.replicate(b"end"))
    sim.run(3 * ELECTION_MS)
    texts = nodes[0].texts
    assert all(node.texts == texts for node in nodes), f"seed {seed}"
    assert len(set(texts)) == len(texts), f"seed {seed}: something was applied twice"
    replicated = [ticket for ticket in sim.tickets if ticket.data]
    acknowledged = {ticket.data for ticket in replicated if ticket.outcome == Outcome.OK}
    assert len(acknowledged) > 5, f"seed {seed}: hardly anything went through"
    assert acknowledged <= set(texts), f"seed {seed}: lost {acknowledged - set(texts)}"
    refused = {t.data for t in replicated if t.outcome in (Outcome.ERROR_STATE, Outcome.ERROR_ARGUMENT)}
    assert not refused & set(texts), f"seed {seed}: refused, yet there: {refused & set(texts)}"
    assert all(ticket.final for ticket in replicated if ticket.node.node is not None)


@pytest.mark.parametrize("seed", range(3))
def test_members_come_and_go_through_faults(sim: Sim, seed: int) -> None:
    """Five nodes, of which some are members: added, removed, killed and cut by a seed."""
    sim.random.seed(1000 + seed)
    sim.form(3)
    for node_id in (4, 5):
        sim.join(node_id)
    nodes = list(sim.nodes.values())
    watch_leases(sim)
    sent = 0
    for step in range(20):
        if step % 3 == 2:
            chaos_step(sim, nodes, quiet=step % 2 == 0)
        for node in [one for one in sim.leaders() if one.node is not None and not one.frozen]:
            other = sim.random.randrange(1, 6)
            if sim.random.random() < 0.6:
                node.command(
                    CommandKind.ADD_NODE, b"127.0.0.1", arg1=other, arg2=7000 + other, timeout_ms=2000
                )
            else:
                node.command(CommandKind.REMOVE_NODE, arg1=other, timeout_ms=2000)
            for _ in range(3):
                node.replicate(b"%d" % sent, timeout_ms=2000)
                sent += 1
        sim.run(sim.random.randrange(100, 2000))
    chaos_step(sim, nodes, quiet=True)
    leader = sim.wait_leader(10 * ELECTION_MS)
    sim.wait(leader.replicate(b"end"))
    sim.run(5 * ELECTION_MS)
    # A leader that was to be removed as well may have handed over by now.
    leader = sim.wait_leader()
    current = leader.live.core.membership_log.current
    texts = leader.texts
    for node in nodes:
        own = node.live.core.membership_log.current
        if current.get(node.id) is not None:
            assert node.texts == texts, f"seed {seed}, node {node.id}"
            assert own == current, f"seed {seed}, node {node.id}"
        else:
            assert node.texts == texts[: len(node.texts)], f"seed {seed}, node {node.id}"
    assert len(set(texts)) == len(texts), f"seed {seed}: something was applied twice"
    acknowledged = {t.data for t in sim.tickets if t.data.isdigit() and t.outcome == Outcome.OK}
    assert acknowledged <= set(texts), f"seed {seed}: lost {acknowledged - set(texts)}"
