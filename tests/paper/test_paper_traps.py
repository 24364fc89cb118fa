"""One test for each known trap of DESIGN.md section 3, in its order."""

from __future__ import annotations

import pytest

from pgraft.raft import (
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryType,
    ErrProposalDropped,
    HardState,
    InvariantViolation,
    MemoryStorage,
    Message,
    MessageType,
    ReadState,
    Snapshot,
    SnapshotMetadata,
)
from tests.paper.cluster import (
    ELECTION_TICK,
    FOLLOWER,
    LEADER,
    PRE_CANDIDATE,
    Cluster,
    SeededStorage,
    acknowledge,
    carry_out,
    drain,
    lead,
    make_node,
)

M = MessageType
ADD = ConfChangeType.ConfChangeAddNode
REMOVE = ConfChangeType.ConfChangeRemoveNode
LEARN = ConfChangeType.ConfChangeAddLearnerNode


def test_trap_committing_a_previous_terms_entry_by_counting_copies() -> None:
    node, storage = make_node(terms=[1, 2], hard=HardState(term=2))
    lead(node, storage)  # term 3
    for id in (2, 3):
        acknowledge(node, id, 2)
    assert node.raft.raft_log.committed == 0
    acknowledge(node, 2, 3)
    assert node.raft.raft_log.committed == 3


def test_trap_term_and_vote_not_durable_before_the_answer() -> None:
    cluster = Cluster()
    cluster.isolate(3)
    cluster.elect(1)
    # 2 voted in term 1 and crashes: it must not vote again in it.
    cluster.restart(2)
    assert (cluster[2].raft.term, cluster[2].raft.vote) == (1, 1)
    cluster[2].step(Message(type=M.MsgVote, from_=3, to=2, term=1, index=9, log_term=9))
    ready = cluster.work(2)
    assert [m.reject for m in ready.messages] == [True]
    # And the answer never leaves before, or without, the hard state that holds it.
    fresh, _ = make_node()
    fresh.step(Message(type=M.MsgVote, from_=3, to=1, term=4))
    ready = fresh.ready()
    assert (ready.hard_state, ready.must_sync) == (HardState(term=4, vote=3), True)
    # Also where the vote alone is new, in a term that was known already.
    known, _ = make_node(hard=HardState(term=4))
    known.step(Message(type=M.MsgVote, from_=3, to=1, term=4))
    ready = known.ready()
    assert (ready.hard_state, ready.must_sync) == (HardState(term=4, vote=3), True)


def test_trap_a_candidate_counts_its_own_vote_only_once_it_is_durable() -> None:
    node, _ = make_node(voters=[1])
    node.campaign()
    ready = node.ready()
    assert node.raft.state is not LEADER
    assert ready.hard_state == HardState(term=1, vote=1)
    node.advance(ready)
    assert node.raft.state is LEADER


def test_trap_a_step_down_in_the_same_term_that_forgets_the_vote() -> None:
    cluster = Cluster(check_quorum=True)
    leader = cluster.elect(1)
    cluster.isolate(1)
    for _ in range(2 * ELECTION_TICK):
        leader.tick()
    assert (leader.raft.state, leader.raft.term, leader.raft.vote) == (FOLLOWER, 1, 1)
    leader.step(Message(type=M.MsgVote, from_=3, to=1, term=1, index=9, log_term=9))
    assert leader.raft.vote == 1
    candidate, storage = make_node()
    candidate.campaign()
    drain(candidate, storage)
    for id in (2, 3):
        candidate.step(Message(type=M.MsgVoteResp, from_=id, to=1, term=1, reject=True))
    assert (candidate.raft.state, candidate.raft.vote) == (FOLLOWER, 1)


def test_trap_a_membership_change_before_the_leaders_own_first_commit() -> None:
    # A change of an earlier leader may be in the log, uncommitted: a second one could lead to two
    # configurations whose majorities do not overlap.
    node, storage = make_node(terms=[1], hard=HardState(term=1))
    lead(node, storage)
    node.propose_conf_change(ConfChange(ADD, 4))
    assert node.raft.raft_log.entries(3, 2**64 - 1)[0].type == EntryType.EntryNormal
    drain(node, storage)
    acknowledge(node, 2, 3)
    drain(node, storage)
    node.propose_conf_change(ConfChange(ADD, 4))
    assert node.raft.raft_log.entries(4, 2**64 - 1)[0].type == EntryType.EntryConfChange


def test_trap_campaigning_with_a_committed_but_unapplied_membership_change() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    leader.propose_conf_change(ConfChange(ADD, 4))
    cluster.work(1)
    cluster.deliver()
    cluster.work(2)
    cluster.deliver()
    cluster.work(1)
    cluster.deliver()  # 2 hears that it is committed, and has not applied it yet
    follower = cluster[2]
    assert follower.raft.raft_log.committed > follower.raft.raft_log.applied
    follower.campaign()
    follower.step(Message(type=M.MsgTimeoutNow, from_=1, to=2, term=1))
    assert (follower.raft.state, follower.raft.term) == (FOLLOWER, 1)
    cluster.settle()
    follower.campaign()
    assert follower.raft.term == 2


def test_trap_staying_in_a_joint_configuration_when_the_leader_goes() -> None:
    cluster = Cluster((1, 2, 3))
    leader = cluster.elect(1)
    change = ConfChangeV2(changes=(ConfChangeSingle(LEARN, 3), ConfChangeSingle(ADD, 4)))
    cluster.add(4, SeededStorage(ConfState((1, 2, 3))))
    leader.propose_conf_change(change)
    # The leader enters the joint configuration, and is gone before it can leave it.
    for _ in range(20):
        if leader.raft.trk.config.voters.is_joint():
            break
        for id in (1, 2, 3):
            if cluster[id].has_ready():
                cluster.work(id)
        cluster.deliver()
    assert leader.raft.trk.config.auto_leave
    cluster.lose = lambda m: any(e.index > 2 for e in m.entries)
    cluster.settle()
    assert cluster[2].raft.trk.config.voters.is_joint()
    cluster.heal()
    cluster.isolate(1)
    cluster[2].campaign()
    cluster.settle()
    cluster.tick(2, 2)
    assert cluster[2].raft.state is LEADER
    assert cluster[2].raft.trk.config.conf_state() == ConfState((1, 2, 4), learners=(3,))


def test_trap_a_joint_configuration_is_left_once_a_transfer_that_stood_in_the_way_is_over() -> None:
    node, storage = make_node(voters=[1, 2, 3])
    lead(node, storage)
    acknowledge(node, 2, 1)
    drain(node, storage)
    node.propose_conf_change(ConfChangeV2(ConfChangeTransition.ConfChangeTransitionJointImplicit))
    node.propose_conf_change(
        ConfChangeV2(ConfChangeTransition.ConfChangeTransitionJointImplicit, (ConfChangeSingle(ADD, 4),))
    )
    drain(node, storage)
    node.transfer_leader(3)
    acknowledge(node, 2, 3)
    drain(node, storage)
    assert node.raft.trk.config.auto_leave
    assert node.raft.raft_log.last_index() == 3, "not while the transfer runs"
    for _ in range(ELECTION_TICK):
        node.tick()
    node.propose(b"next")
    drain(node, storage)
    acknowledge(node, 2, 4)
    acknowledge(node, 4, 4)
    drain(node, storage)
    assert node.raft.raft_log.last_index() == 5
    assert storage.entries(5, 6, 2**64 - 1) == [Entry(1, 5, EntryType.EntryConfChangeV2.value, b"")]


@pytest.mark.parametrize("demoted", [False, True])
def test_trap_a_removed_leader_that_keeps_sending(demoted: bool) -> None:
    cluster = Cluster(step_down_on_removal=True)
    leader = cluster.elect(1)
    leader.propose_conf_change(ConfChangeV2(changes=(ConfChangeSingle(LEARN if demoted else REMOVE, 1),)))
    cluster.settle()
    assert (leader.raft.state, leader.raft.lead) == (FOLLOWER, 0)
    cluster.sent.clear()
    cluster.tick(5 * ELECTION_TICK, 1)
    assert [m for m in cluster.sent if m.from_ == 1] == []
    with pytest.raises(ErrProposalDropped):
        leader.propose(b"x")


def test_trap_a_learner_that_refuses_a_vote() -> None:
    # 4 was promoted, and has not heard of it; without its vote there is no majority of {1, 2, 4}.
    node, storage = make_node(id=4, voters=(1, 2, 3), learners=(4,), terms=[1], hard=HardState(term=1))
    node.step(Message(type=M.MsgVote, from_=2, to=4, term=2, index=2, log_term=1))
    (answer,) = drain(node, storage)
    assert (answer.type, answer.reject, node.raft.vote) == (M.MsgVoteResp, False, 2)


def test_trap_pre_vote_with_check_quorum_deadlocks() -> None:
    # 3 reached term 2 and lost its way; 1 and 2 are in term 1. With pre-votes they cannot catch up with it
    # by themselves, and without being told 3 would refuse their leader for ever.
    cluster = Cluster(pre_vote=True, check_quorum=True, hards={3: HardState(term=2)})
    cluster.isolate(3)
    cluster.elect(1)
    assert cluster[1].raft.term == 1
    cluster.heal()
    for _ in range(20 * ELECTION_TICK):
        cluster.tick()
    (id,) = cluster.leaders()
    assert {cluster[other].raft.lead for other in (1, 2, 3)} == {id}
    cluster[id].propose(b"x")
    cluster.settle()
    assert all(cluster.data(other) == [b"x"] for other in (1, 2, 3))


def test_trap_a_pre_candidate_that_still_shows_a_leader() -> None:
    cluster = Cluster(pre_vote=True, check_quorum=True)
    cluster.elect(1)
    cluster.isolate(1)
    cluster[2].campaign()
    assert (cluster[2].raft.state, cluster[2].raft.lead) == (PRE_CANDIDATE, 0)
    # While it did, two nodes that both wanted an election refused each other.
    cluster[3].campaign()
    cluster.settle()
    for _ in range(10 * ELECTION_TICK):
        cluster.tick(1, 2, 3)
    assert set(cluster.leaders()) & {2, 3}


def test_trap_stale_acknowledgements_of_an_append_after_a_term_change() -> None:
    # Asynchronous writes: entry 1/1 is being written while a new leader overwrites it by 2/1 and a third
    # one by 3/1. The storage's answers to the earlier appends must not make the newest stable.
    node, storage = make_node(async_storage_writes=True)

    def take() -> list[Message]:
        (append,) = [m for m in node.ready().messages if m.type is M.MsgStorageAppend]
        return append.responses

    def receive(term: int, terms: list[int]) -> None:
        entries = [Entry(term=t, index=i) for i, t in enumerate(terms, 1)]
        node.step(Message(type=M.MsgApp, from_=2, to=1, term=term, entries=entries))

    receive(1, [1, 1])
    first = take()
    receive(2, [2])
    second = take()
    receive(3, [1, 1])  # the very same index and term as in the first append, which was overwritten
    third = take()
    unstable = node.raft.raft_log.unstable
    for answers in (first, second):
        for m in answers:
            if m.type is M.MsgStorageAppendResp:
                node.step(m)
        assert [e.term for e in unstable.entries] == [1, 1]
    for m in third:
        if m.type is M.MsgStorageAppendResp:
            node.step(m)
    assert unstable.entries == []
    assert storage.last_index() == 0


def test_trap_an_acknowledgement_of_another_terms_entry_at_the_same_index() -> None:
    node, _ = make_node(async_storage_writes=True)
    node.step(Message(type=M.MsgApp, from_=2, to=1, term=2, entries=[Entry(term=2, index=1)]))
    unstable = node.raft.raft_log.unstable
    unstable.stable_to(1, 1)
    assert len(unstable.entries) == 1
    unstable.stable_to(1, 2)
    assert unstable.entries == []


def test_trap_read_index_answered_by_a_new_leader_before_its_first_commit() -> None:
    # 1 leads anew; "x" is committed (its predecessor knew), and 1 cannot know that yet.
    cluster = Cluster(
        logs={id: [1, 1] for id in (1, 2, 3)}, hards={id: HardState(term=1) for id in (1, 2, 3)}
    )
    cluster.lose = lambda m: m.type is M.MsgApp
    leader = cluster.elect(1)
    leader.read_index(b"r")
    cluster.tick(3, 1)
    assert cluster.reads[1] == []
    cluster.heal()
    cluster.tick(2, 1)
    assert cluster.reads[1] == [ReadState(3, b"r")]
    # A leader that is alone: its stored commit index may lag behind what it acknowledged.
    alone, storage = make_node(voters=[1], terms=[1, 1], hard=HardState(term=1))
    alone.campaign()
    alone.advance(alone.ready())
    alone.read_index(b"r")
    assert alone.raft.read_states == []
    drain(alone, storage)
    assert alone.raft.raft_log.committed == 3


def test_trap_reads_that_waited_are_forgotten_by_a_deposed_leader() -> None:
    node, storage = make_node()
    lead(node, storage)
    node.read_index(b"r")
    node.step(Message(type=M.MsgHeartbeat, from_=2, to=1, term=2))
    lead(node, storage)
    acknowledge(node, 2, node.raft.raft_log.last_index())
    assert not any(m.type is M.MsgHeartbeat for m in drain(node, storage))


def test_trap_transfer_stuck_after_its_target_is_demoted() -> None:
    node, storage = make_node()
    lead(node, storage)
    acknowledge(node, 2, 1)
    drain(node, storage)
    node.transfer_leader(3)
    with pytest.raises(ErrProposalDropped):
        node.propose(b"x")
    node.apply_conf_change(ConfChange(LEARN, 3))
    assert node.raft.lead_transferee == 0
    node.propose(b"x")


def test_trap_a_log_truncation_that_comes_back_after_restart() -> None:
    node, storage = make_node(terms=[1, 1, 1, 1], hard=HardState(term=1))
    conflict = [Entry(term=2, index=2)]
    node.step(Message(type=M.MsgApp, from_=2, to=1, term=2, index=1, log_term=1, entries=conflict))
    ready = carry_out(node, storage)
    assert ready.entries == conflict, "the storage is told where the new entries begin"
    again, _ = make_node(storage=storage)
    log = again.raft.raft_log
    assert (log.last_index(), log.last_term()) == (2, 2)


def test_trap_a_snapshot_without_the_node_itself_in_its_configuration() -> None:
    node, storage = make_node(terms=[1])
    foreign = Snapshot(SnapshotMetadata(ConfState((2, 3)), 9, 2))
    node.step(Message(type=M.MsgSnap, from_=2, to=1, term=2, snapshot=foreign))
    ready = carry_out(node, storage)
    assert ready.snapshot is None
    assert [(m.type, m.index) for m in ready.messages] == [(M.MsgAppResp, 0)]
    assert node.raft.trk.config.conf_state() == ConfState((1, 2, 3))
    for conf_state in (
        ConfState((2, 3), learners=(1,)),
        ConfState((2, 3), voters_outgoing=(1, 2, 3)),
        ConfState((2, 3), voters_outgoing=(1, 2, 3), learners_next=(1,)),
    ):
        other, _ = make_node(terms=[1])
        shot = Snapshot(SnapshotMetadata(conf_state, 9, 2))
        other.step(Message(type=M.MsgSnap, from_=2, to=1, term=2, snapshot=shot))
        assert other.ready().snapshot == shot


def test_trap_a_commit_index_on_disk_beyond_the_log_on_disk() -> None:
    with pytest.raises(InvariantViolation, match=r"stored commit 3 not in \[0, 2\]"):
        make_node(terms=[1, 1], hard=HardState(term=1, commit=3))
    storage = MemoryStorage()
    storage.apply_snapshot(Snapshot(SnapshotMetadata(ConfState((1,)), 5, 1)))
    storage.set_hard_state(HardState(term=1, commit=4))
    with pytest.raises(InvariantViolation, match=r"stored commit 4 not in \[5, 5\]"):
        make_node(storage=storage)
