"""Raft paper 5.1 (terms), 5.2 (leader election), 5.4.1 (election restriction)."""

from __future__ import annotations

import random

import pytest

from pgraft.raft import ErrProposalDropped, HardState, Message, MessageType, RawNode
from tests.paper.cluster import (
    CANDIDATE,
    ELECTION_TICK,
    FOLLOWER,
    LEADER,
    Cluster,
    drain,
    lead,
    make_node,
)

M = MessageType


def in_role(role: str) -> RawNode:
    node, storage = make_node(hard=HardState(term=1))
    if role == "candidate":
        node.campaign()
        drain(node, storage)
    elif role == "leader":
        lead(node, storage)
    drain(node, storage)
    return node


@pytest.mark.parametrize("role", ["follower", "candidate", "leader"])
def test_5_1_whoever_sees_a_newer_term_adopts_it_and_follows(role: str) -> None:
    node = in_role(role)
    node.step(Message(type=M.MsgApp, from_=2, to=1, term=7))
    assert (node.raft.term, node.raft.state, node.raft.lead) == (7, FOLLOWER, 2)
    assert node.raft.vote == 0


@pytest.mark.parametrize("role", ["follower", "candidate", "leader"])
def test_5_1_requests_of_an_older_term_change_nothing(role: str) -> None:
    node = in_role(role)
    before = (node.raft.term, node.raft.state, node.raft.raft_log.last_index())
    for kind in (M.MsgApp, M.MsgHeartbeat, M.MsgVoteResp, M.MsgAppResp):
        node.raft.step(Message(type=kind, from_=2, to=1, term=node.raft.term - 1 or 1, index=1, log_term=1))
    if before[0] > 1:
        assert (node.raft.term, node.raft.state, node.raft.raft_log.last_index()) == before


def test_5_2_a_node_starts_as_a_follower_and_keeps_term_and_vote_of_the_disk() -> None:
    node, _ = make_node(terms=[1, 2], hard=HardState(term=3, vote=2, commit=1))
    assert (node.raft.state, node.raft.term, node.raft.vote) == (FOLLOWER, 3, 2)
    assert not node.has_ready() or node.ready().messages == []


def test_5_2_a_leader_sends_heartbeats_to_all_at_every_interval() -> None:
    node, storage = make_node(heartbeat_tick=3)
    lead(node, storage)
    sent = []
    for _ in range(6):
        node.tick()
        sent.append([(m.type, m.to) for m in drain(node, storage) if m.type is M.MsgHeartbeat])
    both = [(M.MsgHeartbeat, 2), (M.MsgHeartbeat, 3)]
    assert sent == [[], [], both, [], [], both]


def test_5_2_silence_for_the_election_timeout_starts_an_election() -> None:
    node, storage = make_node(hard=HardState(term=1))
    for _ in range(2 * ELECTION_TICK - 1):
        node.tick()
    assert (node.raft.state, node.raft.term, node.raft.vote) == (CANDIDATE, 2, 1)
    sent = drain(node, storage)
    assert [(m.type, m.to, m.term) for m in sent] == [(M.MsgVote, 2, 2), (M.MsgVote, 3, 2)]


def test_5_2_a_candidate_without_an_outcome_tries_again_in_the_next_term() -> None:
    node, storage = make_node()
    node.campaign()
    drain(node, storage)
    for _ in range(2 * ELECTION_TICK - 1):
        node.tick()
    assert (node.raft.state, node.raft.term) == (CANDIDATE, 2)
    assert [m.term for m in drain(node, storage)] == [2, 2]


def test_5_2_election_timeouts_are_random_between_one_and_two_and_drawn_anew() -> None:
    node, _ = make_node(rng=random.Random(7))
    drawn = set()
    for term in range(1, 300):
        node.step(Message(type=M.MsgHeartbeat, from_=2, to=1, term=term))
        drawn.add(node.raft.randomized_election_timeout)
    assert drawn == set(range(ELECTION_TICK, 2 * ELECTION_TICK))


def test_5_2_random_timeouts_make_simultaneous_elections_rare() -> None:
    cluster = Cluster((1, 2, 3, 4, 5))
    for _ in range(20 * ELECTION_TICK):
        cluster.tick()
        if cluster.leaders():
            break
    assert len(cluster.leaders()) == 1


@pytest.mark.parametrize("heard", [M.MsgHeartbeat, M.MsgApp])
def test_5_2_hearing_from_the_leader_puts_off_the_election(heard: MessageType) -> None:
    node, storage = make_node(hard=HardState(term=1))
    for _ in range(5 * ELECTION_TICK):
        node.tick()
        node.step(Message(type=heard, from_=2, to=1, term=1))
        drain(node, storage)
    assert (node.raft.state, node.raft.term) == (FOLLOWER, 1)


@pytest.mark.parametrize(
    ("size", "yes", "no", "role"),
    [
        (1, 0, 0, LEADER),
        (3, 2, 0, LEADER),
        (3, 1, 0, LEADER),
        (3, 1, 1, LEADER),
        (3, 0, 0, CANDIDATE),
        (3, 0, 1, CANDIDATE),
        (3, 0, 2, FOLLOWER),
        (5, 4, 0, LEADER),
        (5, 2, 2, LEADER),
        (5, 1, 0, CANDIDATE),
        (5, 1, 2, CANDIDATE),
        (5, 1, 3, FOLLOWER),
        (4, 1, 0, CANDIDATE),
        (4, 1, 2, FOLLOWER),
        (4, 2, 0, LEADER),
    ],
)
def test_5_2_a_majority_of_all_voters_decides(size: int, yes: int, no: int, role: object) -> None:
    node, storage = make_node(voters=range(1, size + 1))
    node.campaign()
    drain(node, storage)
    for position, id in enumerate(range(2, 2 + yes + no)):
        node.step(Message(type=M.MsgVoteResp, from_=id, to=1, term=1, reject=position >= yes))
    assert node.raft.state is role
    assert node.raft.term == 1


def test_5_2_the_same_voter_counts_once() -> None:
    node, storage = make_node(voters=range(1, 6))
    node.campaign()
    drain(node, storage)
    for _ in range(4):
        node.step(Message(type=M.MsgVoteResp, from_=2, to=1, term=1))
    assert node.raft.state is CANDIDATE


@pytest.mark.parametrize(
    ("vote", "asks", "granted"), [(0, 2, True), (0, 3, True), (2, 2, True), (2, 3, False), (3, 2, False)]
)
def test_5_2_one_vote_a_term_first_come_first_served(vote: int, asks: int, granted: bool) -> None:
    node, storage = make_node(hard=HardState(term=1, vote=vote))
    node.step(Message(type=M.MsgVote, from_=asks, to=1, term=1))
    (answer,) = drain(node, storage)
    assert (answer.type, answer.to, answer.term, answer.reject) == (M.MsgVoteResp, asks, 1, not granted)
    assert node.raft.vote == (vote or asks)


@pytest.mark.parametrize("term", [1, 2])
@pytest.mark.parametrize("kind", [M.MsgApp, M.MsgHeartbeat, M.MsgSnap])
def test_5_2_a_candidate_follows_a_leader_of_its_term_or_a_newer_one(term: int, kind: MessageType) -> None:
    node, storage = make_node()
    node.campaign()
    drain(node, storage)
    node.step(Message(type=kind, from_=2, to=1, term=term))
    assert (node.raft.state, node.raft.term, node.raft.lead) == (FOLLOWER, term, 2)


def test_5_2_a_candidate_that_is_refused_by_a_newer_term_steps_down() -> None:
    node, storage = make_node()
    node.campaign()
    drain(node, storage)
    node.step(Message(type=M.MsgVoteResp, from_=2, to=1, term=5, reject=True))
    assert (node.raft.state, node.raft.term, node.raft.lead) == (FOLLOWER, 5, 0)


def test_5_2_a_candidate_takes_no_proposals() -> None:
    node, storage = make_node()
    node.campaign()
    drain(node, storage)
    with pytest.raises(ErrProposalDropped):
        node.propose(b"x")


def test_5_2_a_leader_begins_its_term_with_an_empty_entry() -> None:
    node, storage = make_node(terms=[1, 1])
    lead(node, storage)
    assert storage.last_index() == 3
    assert storage.term(3) == 1
    assert node.raft.raft_log.committed == 0


def test_5_2_a_vote_of_its_own_counts_once_it_is_durable() -> None:
    node, _ = make_node()
    node.campaign()
    ready = node.ready()
    assert ready.hard_state is not None
    assert ready.hard_state.vote == 1
    node.step(Message(type=M.MsgVoteResp, from_=2, to=1, term=node.raft.term))
    assert node.raft.state == CANDIDATE, "its own is not on the disk yet"
    node.advance(ready)
    assert node.raft.state == LEADER


def test_5_2_one_node_alone_elects_itself_and_commits() -> None:
    node, storage = make_node(voters=[1])
    node.campaign()
    drain(node, storage)
    node.propose(b"x")
    drain(node, storage)
    assert (node.raft.state, node.raft.raft_log.committed, node.raft.raft_log.applied) == (LEADER, 2, 2)


def test_5_2_a_node_without_a_configuration_does_not_campaign() -> None:
    node, _ = make_node(voters=[])
    for _ in range(5 * ELECTION_TICK):
        node.tick()
    node.campaign()
    assert (node.raft.state, node.raft.term) == (FOLLOWER, 0)
    assert node.ticks_to_deadline() == ELECTION_TICK


def test_5_2_campaigning_as_leader_does_nothing() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    leader.campaign()
    cluster.settle()
    assert (leader.raft.state, leader.raft.term) == (LEADER, 1)


@pytest.mark.parametrize(
    ("own", "index", "log_term", "granted"),
    [
        ([1], 1, 1, True),  # equal
        ([1], 2, 1, True),  # longer
        ([1, 1], 1, 1, False),  # shorter
        ([1, 1], 1, 2, True),  # a later term beats length
        ([2], 1, 1, False),
        ([2], 9, 1, False),  # however long
        ([1, 1], 0, 0, False),
        ([], 0, 0, True),
    ],
)
def test_5_4_1_a_voter_refuses_a_candidate_whose_log_is_behind_its_own(
    own: list[int], index: int, log_term: int, granted: bool
) -> None:
    node, storage = make_node(terms=own, hard=HardState(term=2))
    node.step(Message(type=M.MsgVote, from_=2, to=1, term=3, index=index, log_term=log_term))
    (answer,) = drain(node, storage)
    assert answer.reject is not granted
    assert node.raft.vote == (2 if granted else 0)
    assert node.raft.term == 3


def test_5_4_1_a_vote_request_carries_the_end_of_the_log() -> None:
    node, storage = make_node(terms=[1, 1, 2], hard=HardState(term=2))
    node.campaign()
    assert {(m.index, m.log_term) for m in drain(node, storage)} == {(3, 2)}


def test_5_4_1_only_a_node_with_all_committed_entries_can_win() -> None:
    cluster = Cluster(logs={1: [1, 2], 2: [1, 2], 3: [1]}, hards={i: HardState(term=2) for i in (1, 2, 3)})
    cluster[3].campaign()
    cluster.settle()
    assert cluster.leaders() == []
    cluster.elect(2)
    assert cluster.terms(3) == [1, 2, 4]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_5_2_a_vote_is_answered_only_with_or_behind_the_hard_state_that_holds_it(asynchronous: bool) -> None:
    node, _ = make_node(async_storage_writes=asynchronous)
    node.step(Message(type=M.MsgVote, from_=2, to=1, term=3))
    ready = node.ready()
    assert ready.hard_state == HardState(term=3, vote=2)
    assert ready.must_sync
    if asynchronous:
        (append,) = ready.messages
        assert append.type is M.MsgStorageAppend
        assert (append.term, append.vote) == (3, 2)
        assert [m.type for m in append.responses] == [M.MsgVoteResp]
    else:
        assert [m.type for m in ready.messages] == [M.MsgVoteResp]


def test_5_2_who_gives_a_vote_waits_a_whole_timeout_before_campaigning() -> None:
    node, storage = make_node(hard=HardState(term=1))
    node.set_randomized_election_timeout(ELECTION_TICK)
    for _ in range(ELECTION_TICK - 1):
        node.tick()
    node.step(Message(type=M.MsgVote, from_=2, to=1, term=1))
    drain(node, storage)
    node.tick()
    assert node.raft.state is FOLLOWER
    # A refusal puts nothing off: a node that cannot win must not hold up one that can.
    for _ in range(ELECTION_TICK - 2):
        node.tick()
    node.step(Message(type=M.MsgVote, from_=3, to=1, term=1))
    node.tick()
    assert node.raft.state is CANDIDATE
