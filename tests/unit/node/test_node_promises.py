"""What leases stand on: the arithmetic, and that no vote is given that was promised away."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pgraft.node.boot import build_node
from pgraft.node.commands import Answer, Command
from pgraft.node.disk_watch import DiskStalled, DiskWatch
from pgraft.node.envelope import Envelope, NodeStatus, decode, encode
from pgraft.node.lease import LEASE_PERCENT, Lease
from pgraft.node.membership import ChangeContext, Membership, encode_context
from pgraft.node.membership import Node as MemberNode
from pgraft.node.outputs import Inputs, LogLine, Outputs, Sending
from pgraft.node.quiet import CAMPAIGN_TRANSFER, Quiet
from pgraft.node.turn import carry_out
from pgraft.raft.codec import encode_conf_change
from pgraft.raft.types import (
    ConfChange,
    ConfChangeType,
    ConfState,
    Entry,
    HardState,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
    StateType,
)
from pgraft.shm.layout import CommandKind, Outcome
from pgraft.storage import Identity, create_identity, load_identity, open_store, update_identity
from pgraft.transport.records import HURRY, PeerHello, RecordKind, pack, prefix
from tests.support.node_sim import ELECTION_MS, MS, Sim, SimNode, make_config

THREE = (frozenset((1, 2, 3)), frozenset[int]())


def answered(*answers: tuple[int, int, int]) -> Lease:
    lease = Lease()
    lease.begin(7)
    for voter, round_ns, promise_ns in answers:
        lease.answer(voter, round_ns, promise_ns)
    return lease


@pytest.mark.parametrize(
    ("answers", "halves", "end"),
    [
        pytest.param([], THREE, 0, id="nobody has answered"),
        pytest.param([(1, 100, 1000)], THREE, 0, id="one of three"),
        pytest.param([(1, 100, 1000), (2, 90, 1000)], THREE, 90 + 850, id="the second newest of three"),
        pytest.param([(1, 100, 1000), (2, 90, 1000), (3, 10, 1000)], THREE, 940, id="a slow third"),
        pytest.param([(1, 100, 1000), (9, 99, 1000)], THREE, 0, id="who is no voter does not count"),
        pytest.param([(1, 100, 1000), (2, 90, 200)], THREE, 90 + 170, id="the shortest promise"),
        pytest.param(
            [(1, 100, 1000), (2, 90, 1000), (3, 10, 200)], THREE, 940, id="of those in the quorum only"
        ),
        pytest.param([(1, 100, 1000)], (frozenset((1,)), frozenset()), 950, id="a single voter"),
        pytest.param(
            [(1, 100, 1000), (2, 90, 1000)],
            (frozenset((1, 2)), frozenset((1, 3, 4))),
            0,
            id="joint: one half has no quorum",
        ),
        pytest.param(
            [(1, 100, 1000), (2, 90, 1000), (3, 80, 500)],
            (frozenset((1, 2)), frozenset((1, 3, 4))),
            80 + 425,
            id="joint: the older half, the shortest promise",
        ),
        pytest.param(
            [(n, 100 - n, 1000) for n in range(1, 4)],
            (frozenset((1, 2, 3, 4)), frozenset()),
            97 + 850,
            id="three of four",
        ),
        pytest.param(
            [(1, 99, 1000), (2, 98, 1000)], (frozenset((1, 2, 3, 4)), frozenset()), 0, id="two of four"
        ),
    ],
)
def test_lease_end(
    answers: list[tuple[int, int, int]], halves: tuple[frozenset[int], frozenset[int]], end: int
) -> None:
    assert LEASE_PERCENT == 85
    assert answered(*answers).end_ns(halves) == end


def test_an_older_answer_does_not_take_a_newer_one_back() -> None:
    lease = answered((1, 100, 1000), (2, 90, 1000), (2, 50, 10))
    assert lease.end_ns(THREE) == 940


def test_an_ended_lease_stays_ended_until_the_next_term() -> None:
    lease = answered((1, 100, 1000), (2, 90, 1000))
    lease.end()
    lease.answer(3, 200, 1000)
    assert lease.end_ns(THREE) == 0
    lease.begin(8)
    assert not lease.ended
    assert lease.end_ns(THREE) == 0, "answers of an earlier term count"


def vote(kind: MessageType, context: bytes = b"") -> Message:
    return Message(type=kind, to=1, from_=2, term=9, context=context)


@pytest.mark.parametrize("kind", [MessageType.MsgVote, MessageType.MsgPreVote])
def test_quiet_drops_votes_until_the_promise_has_run_out(kind: MessageType) -> None:
    quiet = Quiet(100)
    assert quiet.drops(vote(kind), 99)
    assert not quiet.drops(vote(kind), 100)
    quiet.promise(150)
    quiet.promise(120)
    assert quiet.drops(vote(kind), 149)
    assert not quiet.drops(vote(kind, CAMPAIGN_TRANSFER), 149)
    assert not quiet.drops(vote(MessageType.MsgHeartbeat), 149)


# --- whole nodes ---------------------------------------------------------------------------------------


def led_cluster(sim: Sim, **other: object) -> tuple[SimNode, SimNode, SimNode]:
    sim.form(3, **other)
    leader = sim.wait_leader(15 * ELECTION_MS)
    sim.wait(leader.replicate(b"x"))
    sim.run(350)
    follower, third = sim.followers(leader)
    return leader, follower, third


def feed(node: SimNode, sender: SimNode, *messages: Message, round_ns: int = 0) -> None:
    """Let `node` handle one envelope."""
    term = max(message.term for message in messages)
    envelope = Envelope(sender.id, term, NodeStatus(sender.id), list(messages), round_ns)
    node.inbox.append(prefix(RecordKind.MESSAGE, sender.id) + HURRY + encode(envelope))
    node.turn()


def heartbeat(leader: SimNode, to: SimNode) -> Message:
    return Message(
        type=MessageType.MsgHeartbeat, to=to.id, from_=leader.id, term=leader.live.raft.term, commit=1
    )


def ask_vote(node: SimNode, candidate: SimNode, term: int) -> bool:
    """Whether `node` gives its vote to `candidate`, whose log is as good as can be."""
    request = Message(
        type=MessageType.MsgVote, to=node.id, from_=candidate.id, term=term, index=9999, log_term=term - 1
    )
    feed(node, candidate, request)
    return node.live.raft.vote == candidate.id and node.live.raft.term == term


def test_silence_before_a_heartbeat_does_not_count_behind_it(sim: Sim) -> None:
    leader, follower, third = led_cluster(sim)
    sim.isolate(follower.id)
    sim.now_ns += 700 * MS
    feed(follower, leader, heartbeat(leader, follower), round_ns=sim.now_ns)
    assert follower.live.raft.election_elapsed <= 1
    sim.now_ns += 600 * MS
    assert not ask_vote(follower, third, leader.live.raft.term + 1)


def test_a_message_of_a_higher_term_does_not_end_the_promise(sim: Sim) -> None:
    leader, follower, third = led_cluster(sim)
    sim.isolate(follower.id)
    feed(follower, leader, heartbeat(leader, follower), round_ns=sim.now_ns)
    promised_until = sim.now_ns + follower.live.core.promise_ns
    higher = leader.live.raft.term + 2
    stray = Message(type=MessageType.MsgAppResp, to=follower.id, from_=third.id, term=higher, index=1)
    feed(follower, third, stray)
    assert follower.live.raft.term == higher
    assert not ask_vote(follower, third, higher + 1)
    sim.now_ns = promised_until
    assert ask_vote(follower, third, higher + 1)


def test_a_round_is_only_answered_behind_a_message_that_renews_the_term(sim: Sim) -> None:
    leader, follower, _ = led_cluster(sim)
    sim.isolate(follower.id)
    before = follower.live._quiet.until_ns
    sim.now_ns += 10 * MS
    old = heartbeat(leader, follower)
    old.term -= 1
    envelope = Envelope(leader.id, leader.live.raft.term, NodeStatus(leader.id), [old], sim.now_ns)
    follower.inbox.append(prefix(RecordKind.MESSAGE, leader.id) + HURRY + encode(envelope))
    follower.turn()
    assert follower.live._quiet.until_ns == before


def test_a_restarted_node_gives_no_vote_for_an_election_timeout(sim: Sim) -> None:
    leader, follower, third = led_cluster(sim)
    sim.isolate(follower.id)
    follower.restart()
    term = leader.live.raft.term + 1
    sim.now_ns += (ELECTION_MS - 1) * MS
    assert not ask_vote(follower, third, term)
    sim.now_ns += MS
    assert ask_vote(follower, third, term)


def test_a_node_killed_before_it_knew_of_a_commit_keeps_quiet_too(sim: Sim) -> None:
    _, follower, _ = led_cluster(sim)
    sim.isolate(follower.id)
    follower.kill()
    data_dir = Path(follower.config.data_dir)
    identity = load_identity(data_dir)
    assert identity is not None
    assert identity.formed
    update_identity(data_dir, msgspec.structs.replace(identity, formed=False))
    follower.start()
    assert follower.live._quiet.holds(sim.now_ns)


def test_a_node_that_never_heard_of_a_leader_votes_at_once(sim: Sim) -> None:
    first, second, _ = sim.form(3)
    sim.run(5)
    assert ask_vote(first, second, 2)


def shortened(node: SimNode, election_ms: int) -> None:
    """Restart with another election timeout."""
    node.kill()
    node.config = msgspec.structs.replace(
        node.config, election_timeout_ms=election_ms, heartbeat_interval_ms=election_ms // 10
    )
    node.start()


def test_a_shortened_timeout_does_not_shorten_what_was_promised(sim: Sim) -> None:
    leader, follower, third = led_cluster(sim, election_timeout_ms=5000)
    sim.isolate(follower.id)
    shortened(follower, 500)
    began, term = sim.now_ns, leader.live.raft.term
    sim.run(4990)
    assert follower.live.raft.state == StateType.StateFollower, "it campaigned with a promised vote"
    assert not ask_vote(follower, third, term + 1)
    sim.run(1100, lambda: follower.live.raft.state == StateType.StatePreCandidate)
    assert sim.now_ns - began >= 5000 * MS


def test_the_long_promise_is_forgotten_once_it_has_run_out(sim: Sim) -> None:
    _, follower, _ = led_cluster(sim, election_timeout_ms=5000)
    shortened(follower, 500)
    data_dir = Path(follower.config.data_dir)
    stored = load_identity(data_dir)
    assert stored is not None
    assert stored.election_timeout_ms == 5000
    sim.run(5100)
    stored = load_identity(data_dir)
    assert stored is not None
    assert stored.election_timeout_ms == 500


def test_no_lease_before_the_first_own_commit(sim: Sim) -> None:
    """A quorum answers the rounds, and no append: the new leader cannot know the commit index yet."""
    sim.form(3)
    sim.drop = lambda sender, to, envelope: any(
        message.type == MessageType.MsgAppResp for message in decode(envelope).messages
    )
    assert sim.run(3000, lambda: any(node.live.core.leads for node in sim.nodes.values()))
    leader = next(node for node in sim.nodes.values() if node.live.core.leads)
    sim.run(500)
    assert leader.live.lease.end_ns(leader.live.core.membership_log.current.halves()) > sim.now_ns
    assert not leader.lease_valid
    sim.drop = lambda sender, to, envelope: False
    assert sim.run(300, lambda: leader.lease_valid)


# --- what is written before what is sent -------------------------------------------------------------


class Bare:
    """A replica whose outputs are carried out as far as its disk goes, and looked at."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = open_store(tmp_path, segment_bytes=1 << 20)
        voters = (1, 2, 3)
        members = tuple(MemberNode(voter, "h", voter) for voter in voters)
        self.store.bootstrap(Membership(members, (), ConfState(voters)).to_snapshot(1, 1))
        config = make_config(tmp_path, 1, ())
        identity = Identity(
            cluster_id="sim", node_id=1, member_id=1, initial_members="", formed=False, election_timeout_ms=0
        )
        create_identity(tmp_path, identity)
        self.now = 10**12
        self.replica = build_node(config, identity, self.store, now_ns=self.now, chance=random.Random(1))

    def step(self, *messages: Message, sender: int = 2) -> list[Outputs]:
        """All steps that these messages make due, their outputs carried out."""
        records = []
        if messages:
            term = max(message.term for message in messages)
            envelope = Envelope(sender, term, NodeStatus(sender), list(messages))
            records = [prefix(RecordKind.MESSAGE, sender) + HURRY + encode(envelope)]
        found: list[Outputs] = []
        inputs = Inputs(records=records)
        while not found or found[-1].more:
            outputs = msgspec.structs.replace(self.replica.step(inputs, self.now))
            inputs = Inputs()
            if outputs.hard_state is not None:
                self.store.persist(outputs.hard_state, outputs.entries, outputs.snapshot)
            found.append(outputs)
        return found


def types(sendings: list[Sending]) -> list[MessageType]:
    return [message.type for sending in sendings for message in sending.envelope.messages]


def order_of(outputs: Outputs) -> list[str]:
    """The parts of an output as `carry_out` has them done."""
    calls: list[str] = []

    class Recorder:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_: calls.append(name)

    for _ in carry_out(outputs, Recorder()):
        pass
    return calls


def test_the_order_of_a_step() -> None:
    sending = Sending(2, True, Envelope(1, 1, NodeStatus(1)))
    place = Snapshot(SnapshotMetadata(ConfState((1,)), 1, 1))
    everything = Outputs(
        identity=Identity(
            cluster_id="", node_id=1, member_id=1, initial_members="", formed=True, election_timeout_ms=1
        ),
        peers={},
        lease_end_ns=0,
        network=[b""],
        early=[sending],
        hard_state=HardState(),
        late=[sending],
        compact=place,
        answers=[(Command(1, 0, 1, False, 0, 0), Answer(Outcome.OK))],
        log=[LogLine("LOG", "x")],
    )
    assert order_of(everything) == [
        "save_identity",
        "save_peers",
        "show_lease",
        "tell_network",
        "send",
        "persist",
        "publish",
        "send",
        "compact",
        "answer",
        "log",
    ]
    assert order_of(Outputs()) == ["publish"]


def test_a_vote_is_on_disk_before_it_is_sent(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    (outputs,) = bare.step(Message(type=MessageType.MsgVote, to=1, from_=2, term=2, index=9, log_term=1))
    assert (outputs.early, types(outputs.late)) == ([], [MessageType.MsgVoteResp])
    assert outputs.hard_state == bare.store.hard_state == HardState(2, 2, 1)


def test_entries_are_on_disk_before_they_are_acknowledged(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    entries = [Entry(2, 2, 0, b"\x01x")]
    (outputs,) = bare.step(
        Message(type=MessageType.MsgApp, to=1, from_=2, term=2, index=1, log_term=1, entries=entries)
    )
    assert outputs.entries == entries
    assert (outputs.early, types(outputs.late)) == ([], [MessageType.MsgAppResp])


def led(tmp_path: Path) -> Bare:
    """A leader whose first entry is committed."""
    bare = Bare(tmp_path)
    while bare.replica.raft.state is StateType.StateFollower:
        bare.now += 100 * MS
        bare.step()
    for kind in (MessageType.MsgPreVoteResp, MessageType.MsgVoteResp):
        bare.step(Message(type=kind, to=1, from_=2, term=2))
    for peer in (2, 3):
        bare.step(Message(type=MessageType.MsgAppResp, to=1, from_=peer, term=2, index=2), sender=peer)
    assert bare.replica.core.leads
    return bare


def test_a_leaders_appends_leave_before_its_own_sync(tmp_path: Path) -> None:
    bare = led(tmp_path)
    bare.replica.desk.take(Command(CommandKind.REPLICATE, 0, 1, False, 10**15, 1000, data=b"x"))
    (outputs,) = bare.step()
    assert types(outputs.early) == [MessageType.MsgApp, MessageType.MsgApp]
    assert [entry.data for entry in outputs.entries] == [b"\x01x"]
    assert (outputs.late, outputs.answers) == ([], [])


def test_a_lease_ends_before_the_message_that_lets_another_lead(tmp_path: Path) -> None:
    bare = led(tmp_path)
    for peer in (2, 3):
        replica = bare.replica
        replica.lease.answer(peer, bare.now, 1000 * MS)
    (outputs,) = bare.step(sender=2)
    assert outputs.lease_begin_ns, "the first one of the term, behind the status block"
    bare.replica.board.hear(NodeStatus(2), bare.now)
    bare.replica.desk.begin_transfer(2)
    outputs = bare.step()[0]
    assert outputs.lease_end_ns == 0
    assert MessageType.MsgTimeoutNow in types(outputs.late)
    assert order_of(outputs)[0] == "show_lease"


def test_a_snapshot_and_entries_behind_it_in_one_step(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    members = tuple(MemberNode(voter, "h", voter) for voter in (1, 2, 3))
    state = Membership(members, (), ConfState((1, 2, 3)))
    entries = [Entry(3, 51, 0, b"\x01x"), Entry(3, 52, 0, b"\x01y")]
    done = bare.step(
        Message(type=MessageType.MsgSnap, to=1, from_=2, term=3, snapshot=state.to_snapshot(50, 2)),
        Message(
            type=MessageType.MsgApp, to=1, from_=2, term=3, index=50, log_term=2, entries=entries, commit=52
        ),
    )
    assert done[0].snapshot is not None
    assert done[0].entries == entries
    assert bare.replica.core.applied == 52
    store = bare.store
    assert (store.first_index(), store.last_index(), store.hard_state) == (51, 52, HardState(3, 0, 52))
    store.close()
    again = open_store(tmp_path, segment_bytes=1 << 20)
    assert (again.first_index(), again.last_index(), again.hard_state.commit) == (51, 52, 52)
    assert again.snapshot().metadata == SnapshotMetadata(ConfState((1, 2, 3)), 50, 2)


def test_a_removal_is_on_disk_before_anyone_hears_of_it(tmp_path: Path) -> None:
    """Who was removed may be gone for good; a node that forgot the commit would ask it for its vote."""
    bare = Bare(tmp_path)
    context = encode_context(ChangeContext())
    change = encode_conf_change(ConfChange(ConfChangeType.ConfChangeRemoveNode, 3, context))
    change.term, change.index = 2, 2
    bare.step(Message(type=MessageType.MsgApp, to=1, from_=2, term=2, index=1, log_term=1, entries=[change]))
    assert bare.store.hard_state.commit < 2
    outputs = bare.step(Message(type=MessageType.MsgHeartbeat, to=1, from_=2, term=2, commit=2))[0]
    assert outputs.members is not None
    assert outputs.members.removed == (3,)
    assert bare.store.hard_state.commit == 2
    calls = order_of(outputs)
    assert calls.index("persist") < calls.index("publish") < calls.index("send")


def test_a_newcomers_identity_is_formed_behind_its_first_write(tmp_path: Path) -> None:
    """An identity that says so with nothing behind it would keep the node from starting."""
    identity = Identity(
        cluster_id="sim", node_id=1, member_id=1, initial_members="", formed=False, election_timeout_ms=1000
    )
    create_identity(tmp_path, identity)
    store = open_store(tmp_path, segment_bytes=1 << 20)
    config = make_config(tmp_path, 1, (), initial_cluster_state="existing")
    replica = build_node(config, identity, store, now_ns=1, chance=random.Random(1))
    members = tuple(MemberNode(voter, "h", voter) for voter in (1, 2))
    snapshot = Membership(members, (), ConfState((1, 2))).to_snapshot(50, 2)
    message = Message(type=MessageType.MsgSnap, to=1, from_=2, term=3, snapshot=snapshot)
    hello = pack(RecordKind.PEER_HELLO, 2, PeerHello(102, "127.0.0.1", 7002, 1))
    envelope = prefix(RecordKind.MESSAGE, 2) + HURRY + encode(Envelope(2, 3, NodeStatus(2), [message]))
    outputs = replica.step(Inputs(records=[hello, envelope]), 1)
    assert outputs.snapshot is not None
    assert outputs.hard_state is not None
    assert outputs.identity is None or not outputs.identity.formed
    store.install_snapshot(outputs.snapshot, outputs.hard_state)
    outputs = replica.step(Inputs(), 1)
    assert outputs.identity is not None
    assert outputs.identity.formed
    store.close()


def test_a_stalled_disk_ends_the_part_in_consensus(sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    _, follower, third = led_cluster(sim)
    append, watch = follower.runs.store.append, follower.runs.watch

    def hanging(*arguments: Any, **options: Any) -> None:
        looks = range(1000 * MS, 120_000 * MS, 1000 * MS)
        assert any(watch.look(now) for now in looks), "the watch sees it while it hangs"
        append(*arguments, **options)

    monkeypatch.setattr(follower.runs.store, "append", hanging)
    sim.isolate(follower.id)
    sim.now_ns += 2 * ELECTION_MS * MS
    sent = len(follower.reader.read(1 << 30))
    request = Message(type=MessageType.MsgVote, to=follower.id, from_=third.id, term=9, index=99, log_term=8)
    with pytest.raises(DiskStalled, match="disk_stall_timeout"):
        feed(follower, third, request)
    assert follower.live.raft.vote == third.id
    assert follower.reader.read(1 << 30) == [], f"{sent} before, and nothing may leave behind the write"


def test_only_time_lived_through_counts_as_a_stall() -> None:
    watch = DiskWatch(10_000, "/data")
    watch.next_step()
    now = 0
    # A process that is stopped for an hour, again and again, in the middle of its syncs.
    for _ in range(3):
        now += 3600 * 1000 * MS
        assert not watch.look(now)
    watch.next_step()
    assert not watch.look(now)
    for _ in range(9):
        now += 1000 * MS
        assert not watch.look(now)
    watch.idle = True
    assert not watch.look(now + 1000 * MS)
    watch.idle = False
    for number in range(1, 11):
        assert watch.look(now + (1 + number) * 1000 * MS) == (number == 10)
    with pytest.raises(DiskStalled, match='below "/data" has not returned for 10000 ms'):
        watch.next_step()
