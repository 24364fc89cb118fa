"""A command that was sent on to the leader, and connections that break meanwhile."""

from __future__ import annotations

import random

import pytest

from pgraft.node.envelope import Call, Envelope, Inquiry, NodeStatus, decode, encode
from pgraft.shm.layout import CommandKind, Outcome
from pgraft.transport.records import HURRY, RecordKind, prefix
from tests.support.node_sim import ELECTION_MS, HEARTBEAT_MS, SLOTS, Sim, SimNode

LONG_MS = 60_000
SOON_MS = 2 * HEARTBEAT_MS
"""A connection is there again at once in the simulation; an answer takes a round trip."""


def ready(sim: Sim) -> tuple[SimNode, SimNode]:
    """(leader, a follower), with everything settled."""
    sim.form(3)
    leader = sim.wait_leader()
    sim.wait(leader.replicate(b"first"))
    sim.run(300)
    return leader, sim.followers(leader)[0]


@pytest.mark.parametrize("lost", ["the call", "the answer"])
def test_what_was_lost_with_a_connection_is_unknown_at_once(sim: Sim, lost: str) -> None:
    leader, follower = ready(sim)
    dropped: list[int] = []

    def drop(sender: int, to: int, body: bytes) -> bool:
        envelope = decode(body)
        found = envelope.calls if lost == "the call" else envelope.replies
        if found and not dropped:
            dropped.append(sender)
            return True
        return False

    sim.drop = drop
    ticket = follower.replicate(b"x", forward=True, timeout_ms=LONG_MS)
    assert sim.run(1000, lambda: bool(dropped))
    sim.unlink_pair(leader.id, follower.id)
    assert sim.run(SOON_MS, lambda: ticket.final is not None), "it waits for its timeout"
    assert ticket.outcome == Outcome.ERROR_UNKNOWN
    assert "the connection to the leader broke" in ticket.text
    sim.run(500)
    assert leader.texts.count(b"x") == (0 if lost == "the call" else 1)


def test_an_answer_that_can_still_come_is_waited_for(sim: Sim) -> None:
    """The leader has the command, and answers on the new connection: nothing is unknown."""
    leader, follower = ready(sim)
    third = next(node for node in sim.followers(leader) if node is not follower)
    third.frozen = True
    sim.drop = lambda sender, to, body: sender == follower.id and bool(decode(body).messages)
    ticket = follower.replicate(b"x", forward=True, timeout_ms=LONG_MS)
    assert sim.run(200, lambda: leader.status.last_index > leader.status.commit_index)
    sim.unlink_pair(leader.id, follower.id)
    sim.run(SOON_MS)
    assert ticket.final is None
    third.frozen = False
    sim.drop = lambda *_: False
    assert sim.run(ELECTION_MS, lambda: ticket.final is not None)
    assert ticket.outcome == Outcome.OK
    assert leader.texts.count(b"x") == 1


def test_a_forwarded_change_goes_on_through_broken_connections(sim: Sim) -> None:
    leader, follower = ready(sim)
    sim.join(4, start=False)
    ticket = follower.command(
        CommandKind.ADD_NODE, b"127.0.0.1", arg1=4, arg2=7004, forward=True, timeout_ms=LONG_MS
    )
    assert sim.run(2000, lambda: bool(ticket.notices))
    for _ in range(3):
        sim.unlink_pair(leader.id, follower.id)
        sim.run(SOON_MS)
    assert ticket.final is None
    sim.nodes[4].start()
    sim.wait(ticket)
    assert ticket.outcome == Outcome.OK


def test_a_call_that_had_no_room_is_routed_again(sim: Sim) -> None:
    """It never left this node, so it is not unknown, and is carried out once."""
    leader, follower = ready(sim)
    real, full = follower.live.outbox._ring, [True]

    class Ring:
        def put(self, *parts: bytes) -> bool:
            return not full[0] and real.put(*parts)

        def publish(self) -> bool:
            return real.publish()

    follower.live.outbox._ring = Ring()  # type: ignore[assignment]
    ticket = follower.replicate(b"x", forward=True, timeout_ms=LONG_MS)
    sim.run(20)
    assert ticket.final is None
    full[0] = False
    assert sim.run(500, lambda: ticket.final is not None)
    assert ticket.outcome == Outcome.OK
    sim.run(300)
    assert leader.texts.count(b"x") == 1


def test_only_members_ask_about_commands(sim: Sim) -> None:
    sim.hostile = True
    leader, _ = ready(sim)
    absurd = leader.live.door.absurd
    status = NodeStatus(9, 1, leader.status.term)
    question = Envelope(9, leader.status.term, status, inquiry=Inquiry(7, [1, 2]))
    leader.inbox.append(prefix(RecordKind.MESSAGE, 9) + HURRY + encode(question))
    sim.run(100)
    assert leader.live.door.absurd + leader.live.rejected > absurd
    assert leader.live.outbox._peers.get(9) is None


def test_what_is_held_is_forgotten_with_the_answer(sim: Sim) -> None:
    leader, follower = ready(sim)
    sim.wait(*(follower.replicate(b"%d" % number, forward=True) for number in range(10)))
    assert not leader.live.desk._held
    leader.live.desk.call(follower.id, Call(1, 1, 99, 1000))
    assert not leader.live.desk._held


@pytest.mark.parametrize("seed", range(12))
def test_through_any_number_of_breaks_each_command_has_one_answer_that_is_true(sim: Sim, seed: int) -> None:
    chance = random.Random(seed)
    sim.form(3)
    sim.wait_leader()
    tickets = []
    for number in range(3 * SLOTS):
        node = sim.nodes[number % 3 + 1]
        tickets.append(node.replicate(b"c%d" % number, forward=True, timeout_ms=LONG_MS))
        one, other = chance.sample(sorted(sim.nodes), 2)
        sim.run(chance.choice((0.1, 0.2, 0.3, 5, 40)))
        if chance.random() < 0.5:
            sim.unlink_pair(one, other)
        if chance.random() < 0.03:
            node.restart()
    assert sim.run(6 * ELECTION_MS, lambda: all(ticket.final is not None for ticket in tickets))
    sim.run(3 * ELECTION_MS)
    texts = sim.wait_leader().texts
    for ticket in tickets:
        count = texts.count(ticket.data)
        match ticket.outcome:
            case Outcome.OK:
                assert count == 1
            case Outcome.ERROR_UNKNOWN:
                assert count <= 1
            case _:
                assert count == 0, ticket.text
    assert any(ticket.outcome == Outcome.OK for ticket in tickets)
