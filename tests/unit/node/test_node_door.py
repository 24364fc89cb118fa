"""What is well-formed and cannot be true changes nothing, and is counted; what can be true passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from pgraft.node.door import INDEX_MAX, TERM_JUMP_MAX, TERM_MAX
from pgraft.node.envelope import Call, Envelope, NodeStatus, Reply, encode
from pgraft.node.membership import ChangeContext, Membership, decode_context, encode_context
from pgraft.node.membership import Node as Member
from pgraft.raft.codec import encode_conf_change
from pgraft.raft.types import ConfChange, ConfState, Entry, Message, MessageType, Snapshot, StateType
from pgraft.shm.layout import CommandKind, Outcome
from pgraft.transport.records import HURRY, PeerHello, RecordKind, pack, prefix
from tests.support.node_sim import Sim, SimNode, simulation

M = MessageType
MEMBERS = tuple(Member(i, "127.0.0.1", 7000 + i) for i in (1, 2, 3))


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Sim]:
    with simulation(tmp_path) as made:
        made.form(3)
        made.wait_leader()
        made.wait(made.leaders()[0].replicate(b"first"))
        made.hostile = True
        yield made


def leader_of(sim: Sim) -> SimNode:
    return sim.leaders()[0]


def say(to: SimNode, sender: int, *messages: Message, **around: object) -> None:
    """Somebody who claims to be `sender` says this to a node."""
    for message in messages:
        message.from_, message.to = message.from_ or sender, message.to or to.id
    term = to.live.raft.term
    status = NodeStatus(sender, 1, term)
    fields: dict[str, object] = {"sender": sender, "term": term, "status": status, "messages": list(messages)}
    envelope = Envelope(**(fields | around))  # type: ignore[arg-type]
    to.inbox.append(prefix(RecordKind.MESSAGE, sender) + HURRY + encode(envelope))
    to.turn()


def picture(node: SimNode) -> tuple[object, ...]:
    """What must stay as it is."""
    live, raft = node.live, node.live.raft
    log = raft.raft_log
    peers = {one: (p.match, p.next, p.state) for one, p in raft.trk.items()}
    return (
        (raft.term, raft.vote, raft.lead, raft.state, log.committed, log.last_index(), raft.lead_transferee),
        (peers, live.core.membership_log.current, live.removed, live.core.store.hard_state),
        node.segment.worker["lease_end_ns"],
    )


def entries(first: int, term: int, count: int) -> list[Entry]:
    return [Entry(term, index, 0, b"\x01x") for index in range(first, first + count)]


def changed(node_id: int, kind: int = 0) -> Entry:
    return encode_conf_change(ConfChange(kind, node_id, encode_context(ChangeContext("h", 1))))


def placed(entry: Entry, index: int, term: int) -> Entry:
    entry.index, entry.term = index, term
    return entry


def snap(state: ConfState, index: int, term: int, nodes: tuple[Member, ...] = MEMBERS) -> Snapshot:
    return Membership(nodes, (), state).to_snapshot(index, term)


NESTED = b"\x91" * 3000 + b"\x01"
"""Lists in lists, deeper than a reader can follow."""


def nested_change() -> Entry:
    """A change whose context has one element more than this version knows."""
    return encode_conf_change(ConfChange(0, 4, b"\x95\xa0\x00\xc2\x00" + NESTED))


Case = Callable[[int, int, int], Message]
"""Makes the message from the follower's term, last index and last term."""

FROM_LEADER: dict[str, Case] = {
    "commit beyond the log": lambda t, i, lt: Message(type=M.MsgHeartbeat, term=t, commit=i + 1),
    "commit of 2^63": lambda t, i, lt: Message(type=M.MsgHeartbeat, term=t, commit=2**63),
    "term of 2^63": lambda t, i, lt: Message(type=M.MsgApp, term=2**63, log_term=lt, index=i),
    "term of 2^64-1": lambda t, i, lt: Message(type=M.MsgHeartbeat, term=2**64 - 1),
    "term too far ahead": lambda t, i, lt: Message(type=M.MsgHeartbeat, term=t + TERM_JUMP_MAX + 1),
    "no term": lambda t, i, lt: Message(type=M.MsgApp, index=i, entries=entries(i + 1, lt, 1)),
    "negative commit": lambda t, i, lt: Message(type=M.MsgApp, term=t, log_term=lt, index=i, commit=-1),
    "entries out of order": lambda t, i, lt: Message(
        type=M.MsgApp, term=t, log_term=lt, index=i, entries=entries(i + 1, t, 2)[::-1]
    ),
    "entries with a gap": lambda t, i, lt: Message(
        type=M.MsgApp, term=t, log_term=lt, index=i, entries=[*entries(i + 1, t, 1), *entries(i + 3, t, 1)]
    ),
    "entries of a falling term": lambda t, i, lt: Message(
        type=M.MsgApp, term=t + 1, log_term=lt, index=i,
        entries=[*entries(i + 1, t + 1, 1), *entries(i + 2, t, 1)],
    ),
    "entries of a later term": lambda t, i, lt: Message(
        type=M.MsgApp, term=t, log_term=lt, index=i, entries=entries(i + 1, t + 1, 1)
    ),
    "index of 2^63": lambda t, i, lt: Message(type=M.MsgApp, term=t, log_term=lt, index=2**63),
    "an entry of no type": lambda t, i, lt: Message(
        type=M.MsgApp, term=t, log_term=lt, index=i, entries=[Entry(t, i + 1, 7, b"x")]
    ),
    "a change that is none": lambda t, i, lt: Message(
        type=M.MsgApp, term=t, log_term=lt, index=i, entries=[Entry(t, i + 1, 1, b"\xff\xff")]
    ),
    "a change of node 2^40": lambda t, i, lt: Message(
        type=M.MsgApp, term=t, log_term=lt, index=i, entries=[placed(changed(2**40), i + 1, t)]
    ),
    "a change of no kind": lambda t, i, lt: Message(
        type=M.MsgApp, term=t, log_term=lt, index=i, entries=[placed(changed(4, 9), i + 1, t)]
    ),
    "a change with lists in lists": lambda t, i, lt: Message(
        type=M.MsgApp, term=t, log_term=lt, index=i, entries=[placed(nested_change(), i + 1, t)]
    ),
    "no snapshot": lambda t, i, lt: Message(type=M.MsgSnap, term=t),
    "a snapshot without voters": lambda t, i, lt: Message(
        type=M.MsgSnap, term=t, snapshot=snap(ConfState((), (1, 2, 3)), i + 5, t)
    ),
    "a snapshot without members": lambda t, i, lt: Message(
        type=M.MsgSnap, term=t, snapshot=snap(ConfState(), i + 5, t, ())
    ),
    "a snapshot with a joint configuration": lambda t, i, lt: Message(
        type=M.MsgSnap, term=t, snapshot=snap(ConfState((1, 2, 3), (), (1, 2)), i + 5, t)
    ),
    "a snapshot whose data is garbage": lambda t, i, lt: Message(
        type=M.MsgSnap, term=t,
        snapshot=msgspec.structs.replace(snap(ConfState((1, 2, 3)), i + 5, t), data=b"\xc1"),
    ),
    "a snapshot with lists in lists": lambda t, i, lt: Message(
        type=M.MsgSnap, term=t,
        snapshot=msgspec.structs.replace(snap(ConfState((1, 2, 3)), i + 5, t), data=b"\x93\x90\x90" + NESTED),
    ),
    "a snapshot of a later term": lambda t, i, lt: Message(
        type=M.MsgSnap, term=t, snapshot=snap(ConfState((1, 2, 3)), i + 5, t + 1)
    ),
    "a snapshot at 2^62": lambda t, i, lt: Message(
        type=M.MsgSnap, term=t, snapshot=snap(ConfState((1, 2, 3)), INDEX_MAX, t)
    ),
    "a snapshot without this node": lambda t, i, lt: Message(
        type=M.MsgSnap, term=t, snapshot=snap(ConfState((8,)), i + 5, t, (Member(8, "a", 1),))
    ),
    "messages within messages": lambda t, i, lt: Message(
        type=M.MsgHeartbeat, term=t, responses=[Message(type=M.MsgHup)]
    ),
}  # fmt: skip

FROM_FOLLOWER: dict[str, Case] = {
    "an answer beyond the log": lambda t, i, lt: Message(type=M.MsgAppResp, term=t, index=i + 1),
    "a rejection whose hint lies behind it": lambda t, i, lt: Message(
        type=M.MsgAppResp, term=t, index=i, reject=True, reject_hint=i + 1
    ),
    "an answer to a read that nobody asked": lambda t, i, lt: Message(
        type=M.MsgHeartbeatResp, term=t, context=(99).to_bytes(8, "big")
    ),
    "a vote nobody asked for": lambda t, i, lt: Message(type=M.MsgVoteResp, term=t + 1),
    "a pre-vote nobody asked for": lambda t, i, lt: Message(type=M.MsgPreVoteResp, term=t + 2),
    "a vote for a log of the term itself": lambda t, i, lt: Message(
        type=M.MsgVote, term=t + 1, log_term=t + 1, index=i
    ),
    "a vote for an unknown reason": lambda t, i, lt: Message(
        type=M.MsgVote, term=t + 1, log_term=lt, index=i, context=b"because"
    ),
    "a proposal": lambda t, i, lt: Message(type=M.MsgProp, term=t, entries=[Entry(data=b"\x01mine")]),
    "a removal as a proposal": lambda t, i, lt: Message(type=M.MsgProp, entries=[changed(2, 1)]),
    "a hand-over": lambda t, i, lt: Message(type=M.MsgTransferLeader, term=t),
    "a step down": lambda t, i, lt: Message(type=M.MsgCheckQuorum),
    "a local thread": lambda t, i, lt: Message(type=M.MsgStorageAppendResp, term=t, index=i),
    "another leader of this term": lambda t, i, lt: Message(type=M.MsgHeartbeat, term=t),
}


@pytest.mark.parametrize("case", FROM_LEADER)
def test_from_who_claims_to_lead(sim: Sim, case: str) -> None:
    leader = leader_of(sim)
    follower = sim.followers(leader)[0]
    judge(sim, follower, leader.id, FROM_LEADER[case])


@pytest.mark.parametrize("case", FROM_FOLLOWER)
def test_from_who_claims_to_follow(sim: Sim, case: str) -> None:
    leader = leader_of(sim)
    judge(sim, leader, sim.followers(leader)[0].id, FROM_FOLLOWER[case])


def judge(sim: Sim, node: SimNode, sender: int, make: Case) -> None:
    raft = node.live.raft
    before, counted = picture(node), node.live.door.absurd
    say(node, sender, make(raft.term, raft.raft_log.last_index(), raft.raft_log.last_term()))
    assert node.live.door.absurd == counted + 1
    assert picture(node) == before
    goes_on(sim)


def goes_on(sim: Sim) -> None:
    """The cluster commits, and all have the same."""
    ticket = leader_of(sim).replicate(b"after")
    sim.wait(ticket)
    assert ticket.outcome == Outcome.OK
    assert sim.run(2000, lambda: all(node.texts == [b"first", b"after"] for node in sim.nodes.values()))


AROUND: dict[str, dict[str, object]] = {
    "a promise longer than any election timeout": {"promise_ms": 2**40},
    "a negative round": {"round": -1},
    "a status of a role that is none": {"status": NodeStatus(0, 77)},
    "a status with a negative term": {"status": NodeStatus(0, 1, -1)},
    "a status with an index of 2^63": {"status": NodeStatus(0, 1, 1, 2**63)},
    "a table of too many": {"table": [NodeStatus(1)] * 200},
    "a table with a negative age": {"table": [NodeStatus(1, age_ms=-1)]},
    "a command for ever": {"calls": [Call(1, 1, 1, 2**62)]},
    "an answer with a negative value": {"replies": [Reply(1, 1, 1, -1)]},
    "an answer that is none": {"replies": [Reply(1, 1, 99)]},
    "a term of 2^64-1 around nothing": {"term": 2**64 - 1},
    "a removal by a change at 2^61": {"removed_index": 2**61},
}


@pytest.mark.parametrize("case", AROUND)
def test_around_the_messages(sim: Sim, case: str) -> None:
    leader = leader_of(sim)
    sender = sim.followers(leader)[0].id
    around = dict(AROUND[case])
    if isinstance(around.get("status"), NodeStatus):
        around["status"] = msgspec.structs.replace(around["status"], node_id=sender)  # type: ignore[type-var]
    before = picture(leader)
    say(leader, sender, **around)
    assert leader.live.door.absurd == 1
    assert picture(leader) == before
    goes_on(sim)


def greet(to: SimNode, stranger: int, address: str = "10.9.9.9") -> None:
    """A node that is no member, and could be a new one of which this node has not heard yet, is let in."""
    to.inbox.append(pack(RecordKind.PEER_HELLO, stranger, PeerHello(10_000 + stranger, address, 7001, 1)))


@pytest.mark.parametrize("sender", ["a stranger", "a follower"])
def test_nobody_else_ends_the_part_of_who_hears_a_leader(sim: Sim, sender: str) -> None:
    leader = leader_of(sim)
    one, other = sim.followers(leader)
    for to, member in ((one, other), (other, one), (leader, one)):
        if sender == "a stranger":
            greet(to, 999)
        before = picture(to)
        index = to.live.raft.raft_log.last_index() + 1
        say(to, 999 if sender == "a stranger" else member.id, removed_index=index)
        assert not to.live.removed
        assert to.live.rejected == 1
        assert picture(to) == before
    goes_on(sim)


def test_who_hears_no_leader_believes_no_stranger(sim: Sim) -> None:
    leader = leader_of(sim)
    one = sim.followers(leader)[0]
    sim.isolate(one.id)
    assert sim.run(5000, lambda: one.live.raft.lead == 0)
    greet(one, 999)
    say(one, 999, removed_index=one.live.raft.raft_log.last_index() + 1)
    assert not one.live.removed
    sim.heal()
    assert sim.run(5000, lambda: one.live.raft.lead != 0)
    goes_on(sim)


def test_an_address_that_no_host_has_counts_as_none() -> None:
    for address in ("a\0b", "two words", "h" * 257):
        assert decode_context(encode_context(ChangeContext(address, 1))) == ChangeContext()
    assert decode_context(encode_context(ChangeContext("fe80::1", 1))) == ChangeContext("fe80::1", 1)


def test_commands_of_strangers_wait_nowhere(sim: Sim) -> None:
    for node in sim.nodes.values():
        greet(node, 999)
        say(
            node,
            999,
            calls=[Call(1, number, CommandKind.REPLICATE, 60_000, data=b"x") for number in range(9)],
        )
        assert node.live.rejected == 1, "not absurd: a node that was removed may not know it yet"
        assert not node.live.desk._waiting
    goes_on(sim)


def test_any_number_of_strangers_leaves_elections_commits_and_newcomers_undisturbed(sim: Sim) -> None:
    leader = leader_of(sim)
    term = leader.live.raft.term
    for stranger in range(1000, 1300):
        for node in sim.nodes.values():
            greet(node, stranger)
            say(node, stranger)
    sim.run(3000)
    assert [node.live.door.absurd for node in sim.nodes.values()] == [0, 0, 0]
    assert leader_of(sim).live.raft.term == term
    goes_on(sim)
    sim.join(4)
    ticket = leader.command(CommandKind.ADD_NODE, b"127.0.0.1", arg1=4, arg2=7004, timeout_ms=10_000)
    assert sim.run(9000, lambda: ticket.final is not None)
    assert ticket.outcome == Outcome.OK, ticket.text


def test_a_lease_is_not_counted_from_a_round_that_was_never_sent(sim: Sim) -> None:
    leader = leader_of(sim)
    end = leader.segment.worker["lease_end_ns"]
    for follower in sim.followers(leader):
        later = sim.now_ns + 3_600_000_000_000
        say(leader, follower.id, echo=later, echo_term=leader.live.raft.term, promise_ms=1000)
    assert leader.live.door.absurd == 2
    assert leader.segment.worker["lease_end_ns"] <= max(end, sim.now_ns + 1_000_000_000)


def test_a_vote_of_a_learner_does_not_count(sim: Sim) -> None:
    leader = leader_of(sim)
    candidate = sim.followers(leader)[0]
    ticket = leader.command(CommandKind.ADD_NODE, b"127.0.0.1", arg1=6, arg2=7006, timeout_ms=60_000)
    assert sim.run(5000, lambda: 6 in candidate.live.core.membership_log.current.conf_state.learners)
    sim.isolate(candidate.id)
    assert sim.run(5000, lambda: candidate.live.raft.state is StateType.StatePreCandidate)
    candidate.inbox.append(pack(RecordKind.PEER_HELLO, 6, PeerHello(66, "127.0.0.1", 7006, 1)))
    term = candidate.live.raft.term
    say(candidate, 6, Message(type=M.MsgPreVoteResp, term=term + 1))
    assert (candidate.live.rejected, candidate.live.door.absurd) == (1, 0)
    assert (candidate.live.raft.state, candidate.live.raft.term) == (StateType.StatePreCandidate, term)
    assert ticket.final is None


def test_timeout_now_comes_from_the_leader_only(sim: Sim) -> None:
    leader = leader_of(sim)
    one, other = sim.followers(leader)
    say(one, other.id, Message(type=M.MsgTimeoutNow, term=one.live.raft.term))
    assert one.live.door.absurd == 1
    assert one.live.raft.state is StateType.StateFollower
    goes_on(sim)


def test_a_far_term_is_let_in_within_the_bound_and_the_cluster_recovers(sim: Sim) -> None:
    """The bound is no bar for what a long absence can explain."""
    leader = leader_of(sim)
    far = leader.live.raft.term + TERM_JUMP_MAX
    say(leader, sim.followers(leader)[0].id, Message(type=M.MsgAppResp, term=far))
    assert leader.live.door.absurd == 0
    assert leader.live.raft.term == far
    assert sim.run(20_000, lambda: bool(sim.leaders()) and sim.leaders()[0].live.raft.term > far)
    goes_on(sim)


def test_who_knows_nothing_yet_takes_any_term_that_there_can_be(tmp_path: Path) -> None:
    with simulation(tmp_path) as made:
        made.hostile = True
        one = made.add(1, (2, 3), initial_cluster_state="existing")
        one.inbox.append(pack(RecordKind.PEER_HELLO, 2, PeerHello(22, "127.0.0.1", 7002, 1)))
        say(one, 2, Message(type=M.MsgHeartbeat, term=TERM_MAX + 1))
        assert one.live.raft.term == 0
        assert one.live.door.absurd == 1
        say(one, 2, Message(type=M.MsgHeartbeat, term=TERM_MAX))
        assert one.live.raft.term == TERM_MAX


def test_an_answer_from_another_than_the_leader_is_none(sim: Sim) -> None:
    leader = leader_of(sim)
    one, other = sim.followers(leader)
    ticket = one.replicate(b"forwarded", forward=True)
    sim.isolate(leader.id)
    one.turn()
    say(one, other.id, replies=[Reply(one.live.desk._forwarded.nonce, 1, int(Outcome.OK), 7)])
    ticket.look()
    assert ticket.final is None


def test_the_log_says_it_once_a_minute(sim: Sim, capfd: pytest.CaptureFixture[str]) -> None:
    leader = leader_of(sim)
    for _ in range(50):
        say(leader, sim.followers(leader)[0].id, Message(type=M.MsgHup))
    assert leader.live.door.absurd == 50
    assert capfd.readouterr().err.count("turned away what node") == 1
