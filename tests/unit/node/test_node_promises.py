"""What leases stand on: the arithmetic, and that no vote is given that was promised away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pgraft.node.core import Core
from pgraft.node.disk_watch import DiskStalled, DiskWatch
from pgraft.node.envelope import Envelope, NodeStatus, decode, encode
from pgraft.node.lease import LEASE_PERCENT, Lease
from pgraft.node.membership import Membership
from pgraft.node.membership import Node as MemberNode
from pgraft.node.quiet import CAMPAIGN_TRANSFER, Quiet
from pgraft.raft.types import (
    ConfState,
    Entry,
    HardState,
    Message,
    MessageType,
    Snapshot,
    SnapshotMetadata,
    StateType,
)
from pgraft.storage import load_identity, open_store, update_identity
from pgraft.transport.records import HURRY, RecordKind, prefix
from tests.support.node_sim import ELECTION_MS, MS, Sim, SimNode, make_config, simulation

THREE = (frozenset((1, 2, 3)), frozenset[int]())


def led(*answers: tuple[int, int, int]) -> Lease:
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
    assert led(*answers).end_ns(halves) == end


def test_an_older_answer_does_not_take_a_newer_one_back() -> None:
    lease = led((1, 100, 1000), (2, 90, 1000), (2, 50, 10))
    assert lease.end_ns(THREE) == 940


def test_an_ended_lease_stays_ended_until_the_next_term() -> None:
    lease = led((1, 100, 1000), (2, 90, 1000))
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


class Recorder:
    """Effects of a turn, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.messages: list[Message] = []

    def send(self, message: Message) -> None:
        self.calls.append(message.type.name)
        self.messages.append(message)

    def flush(self) -> None:
        self.calls.append("flush")

    def on_role(self) -> None: ...

    def on_committed(self, entries: list[Entry]) -> None:
        self.calls.append(f"committed {[entry.index for entry in entries]}")

    def on_snapshot(self, snapshot: Snapshot) -> None:
        self.calls.append(f"snapshot {snapshot.metadata.index}")

    def on_read(self, index: int, context: bytes) -> None: ...


def bare_core(tmp_path: Path, *, node_id: int = 1, voters: tuple[int, ...] = (1, 2, 3)) -> Core:
    store = open_store(tmp_path, segment_bytes=1 << 20)
    members = tuple(MemberNode(voter, "h", voter) for voter in voters)
    store.bootstrap(Membership(members, (), ConfState(voters)).to_snapshot(1, 1))
    return Core(make_config(tmp_path, node_id, ()), store, seed=1)


def watch_sync(core: Core, effects: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    append = core.store.append

    def noted(hard_state: HardState | None, entries: list[Entry], **other: bool) -> None:
        append(hard_state, entries, **other)
        effects.calls.append("synced")

    monkeypatch.setattr(core.store, "append", noted)


def test_a_vote_is_on_disk_before_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core, effects = bare_core(tmp_path), Recorder()
    watch_sync(core, effects, monkeypatch)
    core.raw.step(Message(type=MessageType.MsgVote, to=1, from_=2, term=2, index=9, log_term=1))
    core.turn(effects)
    assert effects.calls == ["flush", "synced", "MsgVoteResp", "flush"]
    assert core.store.hard_state == HardState(2, 2, 1)


def test_entries_are_on_disk_before_they_are_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, effects = bare_core(tmp_path), Recorder()
    watch_sync(core, effects, monkeypatch)
    entries = [Entry(2, 2, 0, b"x")]
    core.raw.step(
        Message(type=MessageType.MsgApp, to=1, from_=2, term=2, index=1, log_term=1, entries=entries)
    )
    core.turn(effects)
    assert effects.calls == ["flush", "synced", "MsgAppResp", "flush"]


def test_a_leaders_appends_leave_before_its_own_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core, effects = bare_core(tmp_path), Recorder()
    core.raw.campaign()
    core.turn(effects)
    for kind in (MessageType.MsgPreVoteResp, MessageType.MsgVoteResp):
        core.raw.step(Message(type=kind, to=1, from_=2, term=2))
        core.turn(effects)
    for peer in (2, 3):
        core.raw.step(Message(type=MessageType.MsgAppResp, to=1, from_=peer, term=2, index=2))
    core.turn(effects)
    assert core.leads
    effects.calls.clear()
    watch_sync(core, effects, monkeypatch)
    core.raw.propose(b"x")
    core.turn(effects)
    assert effects.calls[:4] == ["MsgApp", "MsgApp", "flush", "synced"]


def test_a_snapshot_and_entries_behind_it_in_one_turn(tmp_path: Path) -> None:
    core, effects = bare_core(tmp_path), Recorder()
    state = Membership((), (), ConfState((1, 2, 3)))
    term = 3
    core.raw.step(
        Message(type=MessageType.MsgSnap, to=1, from_=2, term=term, snapshot=state.to_snapshot(50, 2))
    )
    entries = [Entry(term, 51, 0, b"x"), Entry(term, 52, 0, b"y")]
    core.raw.step(
        Message(
            type=MessageType.MsgApp,
            to=1,
            from_=2,
            term=term,
            index=50,
            log_term=2,
            entries=entries,
            commit=52,
        )
    )
    core.turn(effects)
    assert core.store.first_index() == 51
    assert core.store.last_index() == 52
    assert core.store.hard_state == HardState(term, 0, 52)
    assert "snapshot 50" in effects.calls
    assert "committed [51, 52]" in effects.calls
    core.store.close()
    again = open_store(tmp_path, segment_bytes=1 << 20)
    assert (again.first_index(), again.last_index(), again.hard_state.commit) == (51, 52, 52)
    assert again.snapshot().metadata == SnapshotMetadata(ConfState((1, 2, 3)), 50, 2)


def test_a_stalled_disk_ends_the_part_in_consensus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core, effects = bare_core(tmp_path), Recorder()
    append = core.store.append

    def hanging(*arguments: Any, **options: Any) -> None:
        looks = range(1000 * MS, 120_000 * MS, 1000 * MS)
        assert any(core.watch.look(now) for now in looks), "the watch sees it while it hangs"
        append(*arguments, **options)

    monkeypatch.setattr(core.store, "append", hanging)
    core.raw.step(Message(type=MessageType.MsgVote, to=1, from_=2, term=2, index=9, log_term=1))
    with pytest.raises(DiskStalled, match="disk_stall_timeout"):
        core.turn(effects)
    assert "MsgVoteResp" not in effects.calls


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


def test_the_simulation_gives_the_real_clock_back(tmp_path: Path) -> None:
    import pgraft.node.node

    before = pgraft.node.node.clock
    with simulation(tmp_path):
        assert pgraft.node.node.clock is not before
    assert pgraft.node.node.clock is before
