"""Dissertation 6.4: reads by ReadIndex, safe and with a lease."""

from __future__ import annotations

import pytest

from pgraft.raft import (
    ConfChange,
    ConfChangeType,
    ErrMalformedMessage,
    Message,
    MessageType,
    ReadOnlyOption,
    ReadState,
)
from pgraft.raft import leader as leader_module
from tests.paper.cluster import (
    Cluster,
    acknowledge,
    drain,
    lead,
    make_node,
)

M = MessageType
LEASE = ReadOnlyOption.ReadOnlyLeaseBased


# 6.4: reads


def test_6_4_a_read_is_answered_after_a_round_with_the_commit_index_of_its_coming() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    leader.propose(b"x")
    cluster.settle()
    leader.read_index(b"r")
    assert cluster.reads[1] == []
    cluster.settle()
    assert cluster.reads[1] == [ReadState(2, b"r")]


def test_6_4_followers_and_learners_ask_the_leader() -> None:
    cluster = Cluster(learners=(4,))
    cluster.elect(1)
    cluster[2].read_index(b"two")
    cluster[4].read_index(b"four")
    cluster.settle()
    assert cluster.reads[2] == [ReadState(1, b"two")]
    assert cluster.reads[4] == [ReadState(1, b"four")]


def test_6_4_a_leader_that_is_cut_off_answers_nothing() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    cluster.isolate(1)
    leader.read_index(b"r")
    cluster.elect(2).propose(b"newer")
    cluster.tick(3)
    cluster.heal()
    cluster.tick(3)
    assert cluster.reads[1] == []


def test_6_4_requests_are_told_apart_by_position_not_by_their_context() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    cluster.isolate(1)
    leader.read_index(b"same")
    cluster.settle()
    cluster.heal()
    leader.propose(b"x")
    cluster.settle()
    leader.read_index(b"same")  # the answers to this one's round confirm the earlier one too
    cluster.settle()
    assert cluster.reads[1] == [ReadState(1, b"same"), ReadState(2, b"same")]


def test_6_4_an_answer_confirms_all_requests_before_it_and_none_behind() -> None:
    node, storage = make_node()
    lead(node, storage)
    acknowledge(node, 2, 1)
    drain(node, storage)
    rounds = []
    for name in (b"a", b"b", b"c"):
        node.read_index(name)
        rounds.append(next(m.context for m in drain(node, storage) if m.type is M.MsgHeartbeat))
    node.step(Message(type=M.MsgHeartbeatResp, from_=3, to=1, term=1, context=rounds[1]))
    assert [s.request_ctx for s in node.ready().read_states] == [b"a", b"b"]


def test_6_4_five_voters_need_two_answers_and_one_node_cannot_give_both() -> None:
    node, storage = make_node(voters=range(1, 6))
    lead(node, storage)
    acknowledge(node, 2, 1)
    acknowledge(node, 3, 1)
    drain(node, storage)
    node.read_index(b"r")
    context = next(m.context for m in drain(node, storage) if m.type is M.MsgHeartbeat)
    for _ in range(3):
        node.step(Message(type=M.MsgHeartbeatResp, from_=2, to=1, term=1, context=context))
    assert node.raft.read_states == []
    node.step(Message(type=M.MsgHeartbeatResp, from_=3, to=1, term=1, context=context))
    assert node.raft.read_states == [ReadState(1, b"r")]


def test_6_4_answers_with_a_context_that_was_never_sent_confirm_nothing() -> None:
    node, storage = make_node()
    lead(node, storage)
    acknowledge(node, 2, 1)
    drain(node, storage)
    node.read_index(b"r")
    for context in (b"r", (2**64 - 1).to_bytes(8, "big"), b""):
        node.step(Message(type=M.MsgHeartbeatResp, from_=2, to=1, term=1, context=context))
    node.read_index(b"s")
    assert node.raft.read_states == []


def test_6_4_heartbeats_repeat_the_question_until_it_is_answered() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    cluster.lose = lambda m: m.type is M.MsgHeartbeat
    leader.read_index(b"r")
    cluster.settle()
    cluster.heal()
    cluster.tick(1, 1)
    assert cluster.reads[1] == [ReadState(1, b"r")]


def test_6_4_a_single_voter_answers_at_once() -> None:
    cluster = Cluster((1,), learners=(2,))
    leader = cluster.elect(1)
    leader.read_index(b"r")
    assert leader.raft.read_states == [ReadState(1, b"r")]
    cluster[2].read_index(b"learner")
    cluster.settle()
    assert cluster.reads[2] == [ReadState(1, b"learner")]


def test_6_4_a_removed_leader_is_no_quorum_of_its_own() -> None:
    cluster = Cluster((1, 2))
    leader = cluster.elect(1)
    leader.propose_conf_change(ConfChange(ConfChangeType.ConfChangeRemoveNode, 1))
    cluster.settle()
    cluster.isolate(1)
    leader.read_index(b"r")
    cluster.settle()
    assert cluster.reads[1] == []


def test_6_4_without_a_leader_a_read_is_not_answered() -> None:
    node, storage = make_node()
    node.read_index(b"r")
    assert drain(node, storage) == []


def test_6_4_reads_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_module, "PENDING_READS_MAX", 2)
    cluster = Cluster()
    leader = cluster.elect(1)
    for name in (b"a", b"b", b"c"):
        leader.read_index(name)
    cluster.settle()
    assert [s.request_ctx for s in cluster.reads[1]] == [b"a", b"b"]


def test_6_4_1_with_a_lease_the_leader_answers_at_once() -> None:
    cluster = Cluster(check_quorum=True, read_only_option=LEASE)
    leader = cluster.elect(1)
    cluster.isolate(1)
    leader.read_index(b"r")
    assert leader.raft.read_states == [ReadState(1, b"r")]


def test_6_4_1_with_a_lease_a_leader_before_its_first_commit_still_waits() -> None:
    node, storage = make_node(check_quorum=True, read_only_option=LEASE)
    lead(node, storage)
    node.read_index(b"r")
    assert node.raft.read_states == []
    acknowledge(node, 2, 1)
    assert node.raft.read_states == [ReadState(1, b"r")]


@pytest.mark.parametrize("kind", [M.MsgReadIndex, M.MsgReadIndexResp])
def test_6_4_requests_and_answers_without_a_context_are_refused(kind: MessageType) -> None:
    node, storage = make_node()
    if kind is M.MsgReadIndex:
        lead(node, storage)
    with pytest.raises(ErrMalformedMessage):
        node.step(Message(type=kind, from_=2, to=1))
