"""Raft paper 6 and dissertation 4: membership changes, learners, disruptive nodes."""

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
    ErrConfChange,
    ErrMalformedMessage,
    ErrProposalDropped,
    Message,
    MessageType,
)
from pgraft.raft.confchange import Changer
from tests.paper.cluster import (
    ELECTION_TICK,
    FOLLOWER,
    LEADER,
    Cluster,
    SeededStorage,
    acknowledge,
    drain,
    lead,
    make_node,
)

M = MessageType
ADD = ConfChangeType.ConfChangeAddNode
REMOVE = ConfChangeType.ConfChangeRemoveNode
LEARN = ConfChangeType.ConfChangeAddLearnerNode
EXPLICIT = ConfChangeTransition.ConfChangeTransitionJointExplicit
IMPLICIT = ConfChangeTransition.ConfChangeTransitionJointImplicit


def v2(*changes: tuple[ConfChangeType, int], transition: ConfChangeTransition | int = 0) -> ConfChangeV2:
    return ConfChangeV2(int(transition), tuple(ConfChangeSingle(kind, id) for kind, id in changes))


def test_6_a_newcomer_is_brought_up_to_date_and_counts_once_it_is_applied() -> None:
    cluster = Cluster((1, 2, 3))
    leader = cluster.elect(1)
    cluster.add(4, SeededStorage(ConfState((1, 2, 3))))
    leader.propose(b"before")
    leader.propose_conf_change(ConfChange(ADD, 4))
    cluster.settle()
    assert leader.raft.trk.config.conf_state() == ConfState((1, 2, 3, 4))
    assert cluster[4].raft.trk.config.conf_state() == ConfState((1, 2, 3, 4))
    assert cluster.data(4) == [b"before"]


def test_6_a_learner_is_brought_up_to_date_and_does_not_count() -> None:
    cluster = Cluster((1,), learners=(2, 3))
    leader = cluster.elect(1)
    leader.propose(b"x")
    cluster.settle()
    assert cluster.data(2) == cluster.data(3) == [b"x"]
    cluster.isolate(2)
    cluster.isolate(3)
    leader.propose(b"y")
    cluster.settle()
    assert cluster.data(1) == [b"x", b"y"]


def test_6_a_learner_does_not_campaign() -> None:
    node, _ = make_node(id=4, voters=(1, 2, 3), learners=(4,))
    node.campaign()
    for _ in range(3 * ELECTION_TICK):
        node.tick()
    node.step(Message(type=M.MsgTimeoutNow, from_=1, to=4, term=0))
    assert (node.raft.state, node.raft.term, node.raft.is_learner) == (FOLLOWER, 0, True)


def test_6_a_promoted_learner_may_campaign() -> None:
    cluster = Cluster((1,), learners=(2,))
    leader = cluster.elect(1)
    leader.propose_conf_change(v2((ADD, 2)))
    cluster.settle()
    assert not cluster[2].raft.is_learner
    cluster.elect(2)


@pytest.mark.parametrize(
    ("acknowledging", "commits"),
    [([2], False), ([4, 5], False), ([2, 4], False), ([2, 4, 5], True), ([4, 5, 3], True), ([2, 3], False)],
)
def test_6_a_joint_configuration_needs_both_majorities_to_commit(
    acknowledging: list[int], commits: bool
) -> None:
    conf_state = ConfState(voters=(4, 5, 6), voters_outgoing=(1, 2, 3))
    node, storage = make_node(storage=SeededStorage(conf_state))
    lead(node, storage)
    for id in acknowledging:
        acknowledge(node, id, 1)
    # Of the outgoing half the leader has it already.
    assert node.raft.raft_log.committed == (1 if commits else 0)


@pytest.mark.parametrize(
    ("granting", "wins"), [([2], False), ([4, 5], False), ([2, 4], False), ([2, 4, 5], True)]
)
def test_6_a_joint_configuration_needs_both_majorities_to_elect(granting: list[int], wins: bool) -> None:
    conf_state = ConfState(voters=(4, 5, 6), voters_outgoing=(1, 2, 3))
    node, storage = make_node(storage=SeededStorage(conf_state))
    node.campaign()
    drain(node, storage)
    for id in granting:
        node.step(Message(type=M.MsgVoteResp, from_=id, to=1, term=1))
    assert (node.raft.state is LEADER) is wins


def test_6_several_changes_go_through_a_joint_configuration_that_is_left_by_itself() -> None:
    cluster = Cluster((1, 2, 3))
    leader = cluster.elect(1)
    seen = []

    def watch(m: Message) -> bool:
        seen.append(leader.raft.trk.config.voters.is_joint())
        return False

    cluster.lose = watch
    leader.propose_conf_change(v2((REMOVE, 2), (REMOVE, 3)))
    cluster.settle()
    assert True in seen
    assert leader.raft.trk.config.conf_state() == ConfState((1,))


def test_6_an_explicit_joint_configuration_stays_until_told() -> None:
    cluster = Cluster((1, 2, 3))
    leader = cluster.elect(1)
    leader.propose_conf_change(v2((LEARN, 3), transition=EXPLICIT))
    cluster.settle()
    joint_state = ConfState((1, 2), voters_outgoing=(1, 2, 3), learners_next=(3,))
    assert leader.raft.trk.config.conf_state() == joint_state
    leader.propose_conf_change(ConfChangeV2())
    cluster.settle()
    for id in (1, 2, 3):
        assert cluster[id].raft.trk.config.conf_state() == ConfState((1, 2), learners=(3,))
    assert cluster[3].raft.is_learner


def test_6_one_change_at_a_time() -> None:
    cluster = Cluster((1, 2, 3))
    leader = cluster.elect(1)
    leader.propose_conf_change(ConfChange(ADD, 4))
    leader.propose_conf_change(ConfChange(ADD, 5))
    cluster.settle()
    assert leader.raft.trk.config.conf_state() == ConfState((1, 2, 3, 4))
    types = [e.type for e in cluster.applied[1]]
    assert types == [EntryType.EntryNormal, EntryType.EntryConfChange, EntryType.EntryNormal]


@pytest.mark.parametrize(
    "change",
    [
        ConfChangeV2(),  # leave a joint configuration that is none
        v2(transition=EXPLICIT),
        v2((REMOVE, 1), (REMOVE, 2), (REMOVE, 3)),
        v2((ADD, 4), transition=9),
        ConfChangeV2(changes=(ConfChangeSingle(7, 1),)),
    ],
)
def test_6_an_impossible_change_becomes_an_empty_entry(change: ConfChangeV2) -> None:
    cluster = Cluster((1, 2, 3))
    leader = cluster.elect(1)
    leader.propose_conf_change(change)
    cluster.settle()
    if change.transition == 9:  # an unknown transition is a joint one that is left by itself
        assert leader.raft.trk.config.conf_state() == ConfState((1, 2, 3, 4))
        return
    last = cluster.applied[2][-1]
    assert (last.type, last.data, last.index) == (EntryType.EntryNormal, b"", 2)


def test_6_no_other_change_while_joint() -> None:
    cluster = Cluster((1, 2, 3))
    leader = cluster.elect(1)
    leader.propose_conf_change(v2((ADD, 4), transition=EXPLICIT))
    cluster.settle()
    leader.propose_conf_change(ConfChange(ADD, 5))
    cluster.settle()
    assert leader.raft.trk.config.voters.is_joint()
    assert 5 not in leader.raft.trk.progress


def test_6_without_validation_anything_enters_the_log() -> None:
    cluster = Cluster((1, 2, 3), disable_conf_change_validation=True)
    leader = cluster.elect(1)
    leader.propose_conf_change(ConfChange(ADD, 4))
    leader.propose_conf_change(ConfChange(ADD, 5))
    cluster.settle()
    assert leader.raft.trk.config.conf_state() == ConfState((1, 2, 3, 4, 5))


def test_6_a_dropped_change_does_not_stand_in_the_way_of_the_next() -> None:
    cluster = Cluster((1, 2, 3), max_uncommitted_entries_size=16)
    leader = cluster.elect(1)
    cluster.cut |= {(1, 2), (1, 3)}
    leader.propose(b"x" * 16)
    with pytest.raises(ErrProposalDropped):
        leader.propose_conf_change(ConfChange(ADD, 4, b"y" * 16))
    cluster.heal()
    cluster.tick(2, 1)
    assert cluster.data(2) == [b"x" * 16]
    leader.propose_conf_change(ConfChange(ADD, 4))
    cluster.settle()
    assert 4 in leader.raft.trk.progress


def test_6_a_change_that_the_application_withdraws_changes_nothing() -> None:
    node, storage = make_node()
    lead(node, storage)
    assert node.apply_conf_change(ConfChange(ADD, 0)) == ConfState((1, 2, 3))


def test_6_applying_an_impossible_change_is_refused_and_changes_nothing() -> None:
    node, _ = make_node()
    with pytest.raises(ErrConfChange, match="more than one voter"):
        Changer(node.raft.trk, 1).simple([ConfChangeSingle(ADD, 4), ConfChangeSingle(ADD, 5)])
    with pytest.raises(ErrConfChange, match="removed all voters"):
        node.apply_conf_change(v2((REMOVE, 1), (REMOVE, 2), (REMOVE, 3)))
    assert node.raft.trk.config.conf_state() == ConfState((1, 2, 3))


def test_6_a_proposal_that_holds_no_change_is_refused() -> None:
    node, storage = make_node()
    lead(node, storage)
    bad = Entry(type=EntryType.EntryConfChange.value, data=b"\xc1")
    with pytest.raises(ErrMalformedMessage):
        node.step(Message(type=M.MsgProp, from_=2, to=1, entries=[bad]))
    assert node.raft.raft_log.last_index() == 1


def test_6_a_smaller_quorum_commits_at_once_what_it_has() -> None:
    cluster = Cluster((1, 2))
    leader = cluster.elect(1)
    leader.propose_conf_change(ConfChange(REMOVE, 2))
    cluster.work(1)
    cluster.deliver()
    cluster.work(2)  # 2 acknowledges its own removal and goes away
    cluster.deliver()
    cluster.isolate(2)
    leader.propose(b"alone")
    cluster.settle()
    assert cluster.data(1) == [b"alone"]


def test_6_a_removed_leader_leads_on_without_counting_itself() -> None:
    cluster = Cluster((1, 2, 3))
    leader = cluster.elect(1)
    leader.propose_conf_change(ConfChange(REMOVE, 1))
    cluster.settle()
    assert leader.raft.state is LEADER
    with pytest.raises(ErrProposalDropped):
        leader.propose(b"x")


def test_6_a_removed_node_forgets_that_it_was_a_learner_and_may_not_campaign() -> None:
    cluster = Cluster((1,), learners=(2,))
    leader = cluster.elect(1)
    leader.propose_conf_change(ConfChange(REMOVE, 2))
    cluster.settle()
    assert 2 not in leader.raft.trk.progress
    cluster[2].raft.trk.use(leader.raft.trk.config, leader.raft.trk.progress)
    cluster[2].campaign()
    assert cluster[2].raft.state is FOLLOWER


def test_6_a_node_that_was_removed_cannot_disturb_those_who_hear_from_a_leader() -> None:
    cluster = Cluster((1, 2, 3, 4), check_quorum=True)
    leader = cluster.elect(1)
    cluster.isolate(4)
    leader.propose_conf_change(ConfChange(REMOVE, 4))
    cluster.settle()
    cluster.heal()
    for _ in range(5 * ELECTION_TICK):  # it was never told, and campaigns again and again
        cluster.tick()
    assert cluster[4].raft.term > 1
    assert (leader.raft.state, leader.raft.term) == (LEADER, 1)


def test_6_newcomers_are_not_held_to_have_been_silent() -> None:
    cluster = Cluster((1,), check_quorum=True)
    leader = cluster.elect(1)
    cluster.tick(ELECTION_TICK - 1)
    for id in (2, 3):
        leader.propose_conf_change(ConfChange(ADD, id))
        cluster.add(id, SeededStorage(leader.raft.trk.config.conf_state()))
        cluster.settle()
    cluster.tick(1)
    assert leader.raft.state is LEADER


def test_6_what_a_smaller_quorum_has_is_committed_when_the_change_is_applied() -> None:
    node, storage = make_node(voters=(1, 2), learners=(3,))
    lead(node, storage)
    acknowledge(node, 2, 1)
    acknowledge(node, 3, 1)
    drain(node, storage)
    node.propose_conf_change(ConfChange(REMOVE, 2))
    node.propose(b"alone")
    drain(node, storage)
    acknowledge(node, 2, 2)
    sent = drain(node, storage)
    assert node.raft.raft_log.committed == 3
    assert [m.commit for m in sent if m.to == 3] == [2, 3]


def test_6_a_removed_leaders_own_acknowledgements_count_for_nothing() -> None:
    cluster = Cluster((1, 2, 3))
    leader = cluster.elect(1)
    leader.propose_conf_change(ConfChange(REMOVE, 1))
    cluster.settle()
    for kind in (M.MsgAppResp, M.MsgHeartbeatResp):
        leader.raft.step(Message(type=kind, from_=1, to=1, term=1, index=2))
    assert leader.raft.state is LEADER


def test_6_a_storage_answer_without_entries_changes_nothing() -> None:
    node, _ = make_node(voters=[1])
    node.raft.step(Message(type=M.MsgStorageApplyResp, to=1))
    assert node.raft.raft_log.applied == 0
