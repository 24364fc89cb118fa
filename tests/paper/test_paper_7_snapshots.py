"""Raft paper 7: log compaction and installing snapshots; progress in snapshot state."""

from __future__ import annotations

import pytest

from pgraft.raft import (
    ConfState,
    ErrSnapshotTemporarilyUnavailable,
    HardState,
    InvariantViolation,
    MemoryStorage,
    Message,
    MessageType,
    ProgressState,
    RawNode,
    Snapshot,
    SnapshotMetadata,
)
from tests.paper.cluster import Cluster, acknowledge, carry_out, drain, lead, make_node

M = MessageType


def snapshot(index: int, term: int, voters: tuple[int, ...] = (1, 2, 3)) -> Snapshot:
    return Snapshot(SnapshotMetadata(ConfState(voters), index, term), b"state")


def receive(node: RawNode, shot: Snapshot | None, term: int = 2) -> None:
    node.step(Message(type=M.MsgSnap, from_=2, to=1, term=term, snapshot=shot))


def test_7_a_follower_behind_the_log_gets_a_snapshot_and_then_entries() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    cluster.isolate(3)
    leader.propose_entries([b"a", b"b", b"c"])
    cluster.settle()
    cluster.storages[1].create_snapshot(3, ConfState((1, 2, 3)), b"abc")
    cluster.storages[1].compact(3)
    leader.propose(b"d")
    cluster.settle()
    cluster.heal()
    cluster.tick(2, 1)
    assert any(m.type is M.MsgSnap for m in cluster.sent)
    assert cluster.storages[3].first_index() == 4
    assert cluster.data(3) == [b"c", b"d"]
    assert leader.raft.trk.progress[3].state is ProgressState.StateReplicate


def test_7_a_snapshot_replaces_the_whole_log_of_a_follower_that_conflicts() -> None:
    node, storage = make_node(terms=[1, 1, 1], hard=HardState(term=1))
    receive(node, snapshot(3, 2))
    ready = carry_out(node, storage)
    assert ready.snapshot == snapshot(3, 2)
    assert [(m.type, m.index, m.reject) for m in ready.messages] == [(M.MsgAppResp, 3, False)]
    log = node.raft.raft_log
    assert (log.committed, log.applied, log.first_index(), log.last_index()) == (3, 3, 4, 3)
    assert node.raft.trk.config.conf_state() == ConfState((1, 2, 3))


def test_7_a_follower_keeps_what_follows_a_snapshot_that_its_log_contains() -> None:
    node, storage = make_node(terms=[1, 1, 1], hard=HardState(term=1))
    receive(node, snapshot(2, 1))
    ready = carry_out(node, storage)
    assert ready.snapshot is None
    assert [m.index for m in ready.messages] == [2]
    assert (node.raft.raft_log.committed, node.raft.raft_log.last_index()) == (2, 3)


@pytest.mark.parametrize("shot", [snapshot(1, 1), None])
def test_7_an_old_or_empty_snapshot_is_answered_with_the_commit_index(shot: Snapshot | None) -> None:
    node, storage = make_node(terms=[1, 1], hard=HardState(term=1, commit=2))
    receive(node, shot)
    ready = carry_out(node, storage)
    assert ready.snapshot is None
    assert [(m.type, m.index) for m in ready.messages] == [(M.MsgAppResp, 2)]


def test_7_nothing_is_applied_and_no_election_begins_while_a_snapshot_is_being_written() -> None:
    node, storage = make_node(async_storage_writes=True)
    receive(node, snapshot(5, 2))
    ready = node.ready()
    assert ready.snapshot is not None
    node.step(Message(type=M.MsgHeartbeat, from_=2, to=1, term=2, commit=5))
    assert not node.raft.promotable()
    assert node.raft.raft_log.next_committed(True) == []
    (append,) = ready.messages
    storage.apply_snapshot(ready.snapshot)
    for m in append.responses:
        if m.to == 1:
            node.step(m)
    assert node.raft.promotable()
    assert node.raft.raft_log.applied == 5


def test_7_a_snapshot_written_in_an_older_term_still_counts() -> None:
    node, storage = make_node(async_storage_writes=True)
    receive(node, snapshot(5, 2))
    ready = node.ready()
    node.step(Message(type=M.MsgHeartbeat, from_=3, to=1, term=9))
    storage.apply_snapshot(snapshot(5, 2))
    own = [m for m in ready.messages[0].responses if m.to == 1]
    for m in own:
        node.step(m)
    assert node.raft.raft_log.unstable.snapshot is None
    assert node.raft.raft_log.applied == 5


def leader_with_compacted_log() -> tuple[RawNode, MemoryStorage]:
    node, storage = make_node()
    lead(node, storage)
    node.propose_entries([b"x"] * 9)
    drain(node, storage)
    acknowledge(node, 2, 10)
    drain(node, storage)
    storage.create_snapshot(8, ConfState((1, 2, 3)), b"")
    storage.compact(8)
    return node, storage


def heartbeat_answer(node: RawNode, id: int) -> None:
    node.step(Message(type=M.MsgHeartbeatResp, from_=id, to=1, term=node.raft.term))


def test_7_no_snapshot_for_a_follower_that_was_silent() -> None:
    node, storage = leader_with_compacted_log()
    progress = node.raft.trk.progress[3]
    progress.become_probe()
    progress.next = 1
    progress.recent_active = False
    node.propose(b"y")
    assert not any(m.type is M.MsgSnap for m in drain(node, storage))
    heartbeat_answer(node, 3)
    assert [m.to for m in drain(node, storage) if m.type is M.MsgSnap] == [3]
    assert (progress.state, progress.pending_snapshot) == (ProgressState.StateSnapshot, 8)


def test_7_a_follower_that_waits_for_a_snapshot_gets_nothing_else() -> None:
    node, storage = leader_with_compacted_log()
    heartbeat_answer(node, 3)
    node.step(Message(type=M.MsgAppResp, from_=3, to=1, term=1, index=0, reject=True, reject_hint=0))
    drain(node, storage)
    assert node.raft.trk.progress[3].state is ProgressState.StateSnapshot
    node.propose(b"y")
    heartbeat_answer(node, 3)
    assert [m.to for m in drain(node, storage) if m.type is M.MsgApp] == [2]


@pytest.mark.parametrize(("ok", "next_index"), [(True, 9), (False, 1)])
def test_7_a_report_ends_the_wait_and_the_next_heartbeat_probes(ok: bool, next_index: int) -> None:
    node, storage = leader_with_compacted_log()
    progress = node.raft.trk.progress[3]
    progress.recent_active = True
    progress.become_snapshot(8)
    node.report_snapshot(3, ok)
    assert (progress.state, progress.next, progress.is_paused()) == (
        ProgressState.StateProbe,
        next_index,
        True,
    )
    node.report_snapshot(3, ok)  # once is enough
    node.report_snapshot(99, ok)  # whoever that is
    heartbeat_answer(node, 3)
    sent = [m.type for m in drain(node, storage) if m.to == 3]
    assert sent == ([M.MsgApp] if ok else [M.MsgSnap])


def test_7_any_snapshot_that_reaches_the_log_will_do() -> None:
    node, storage = leader_with_compacted_log()
    progress = node.raft.trk.progress[3]
    progress.become_snapshot(10)
    states = []
    for index in (7, 8):  # the first is older than the beginning of our log
        acknowledge(node, 3, index)
        states.append(progress.state)
    assert states == [ProgressState.StateSnapshot, ProgressState.StateReplicate]
    assert [(m.type, m.index) for m in drain(node, storage) if m.to == 3] == [(M.MsgApp, 8)]


def test_7_a_storage_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    node, storage = leader_with_compacted_log()
    progress = node.raft.trk.progress[3]
    progress.next = 1

    def busy() -> Snapshot:
        raise ErrSnapshotTemporarilyUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(storage, "snapshot", busy)
        heartbeat_answer(node, 3)
        assert not any(m.type is M.MsgSnap for m in drain(node, storage))
    heartbeat_answer(node, 3)
    assert any(m.type is M.MsgSnap for m in drain(node, storage))


def test_7_a_storage_without_a_snapshot_behind_a_compacted_log_stops_the_node() -> None:
    node, storage = leader_with_compacted_log()
    storage._snapshot = Snapshot()
    node.raft.trk.progress[3].next = 1
    with pytest.raises(InvariantViolation, match="no snapshot"):
        heartbeat_answer(node, 3)


def test_7_a_node_restarted_from_a_snapshot_goes_on_behind_it() -> None:
    storage = MemoryStorage()
    storage.apply_snapshot(snapshot(7, 3))
    storage.set_hard_state(HardState(term=3, vote=2, commit=7))
    node, _ = make_node(storage=storage, applied=7)
    log = node.raft.raft_log
    assert (log.committed, log.applied, log.last_index(), log.last_term()) == (7, 7, 7, 3)
    assert node.raft.trk.config.conf_state() == ConfState((1, 2, 3))


def test_7_a_leader_may_be_asked_for_the_snapshot_it_is_still_writing() -> None:
    node, _ = make_node()
    receive(node, snapshot(5, 2))
    assert node.raft.raft_log.snapshot() == snapshot(5, 2)
