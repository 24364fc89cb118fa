"""Dissertation 3.10 (transfer), 6.2 (CheckQuorum), 9.6 (PreVote), 10.2 (disk and flow)."""

from __future__ import annotations

from typing import Any

import pytest

from pgraft.raft import (
    ConfChange,
    ConfChangeType,
    Entry,
    ErrProposalDropped,
    ErrStepLocalMsg,
    ErrStepPeerNotFound,
    HardState,
    InvariantViolation,
    Message,
    MessageType,
    ProgressState,
    RawNode,
    ReadOnlyOption,
    entry_size,
)
from tests.paper.cluster import (
    CANDIDATE,
    ELECTION_TICK,
    FOLLOWER,
    LEADER,
    PRE_CANDIDATE,
    Cluster,
    acknowledge,
    drain,
    lead,
    make_node,
)

M = MessageType
LEASE = ReadOnlyOption.ReadOnlyLeaseBased


# 3.10: leadership transfer


def test_3_10_leadership_goes_to_a_follower_that_is_up_to_date_at_once() -> None:
    cluster = Cluster(pre_vote=True, check_quorum=True)
    cluster.elect(1).transfer_leader(3)
    cluster.settle()
    assert cluster.leaders() == [3]
    assert not any(m.type is M.MsgPreVote and m.from_ == 3 for m in cluster.sent)


def test_3_10_a_follower_that_is_behind_is_brought_up_to_date_first() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    cluster.isolate(3)
    leader.propose(b"x")
    cluster.settle()
    cluster.heal()
    leader.transfer_leader(3)
    assert leader.raft.lead_transferee == 3
    cluster.settle()
    assert cluster.leaders() == [3]
    assert cluster.data(3) == [b"x"]


def test_3_10_a_follower_hands_the_wish_to_the_leader() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster[2].transfer_leader(3)
    cluster.settle()
    assert cluster.leaders() == [3]


def test_3_10_no_proposals_while_a_transfer_is_under_way_and_it_ends_after_an_election_timeout() -> None:
    cluster = Cluster(check_quorum=True)
    leader = cluster.elect(1)
    cluster.isolate(3)
    leader.transfer_leader(3)
    with pytest.raises(ErrProposalDropped):
        leader.propose(b"x")
    cluster.tick(ELECTION_TICK - 1, 1)
    assert leader.raft.lead_transferee == 3
    cluster.tick(1, 1)
    assert leader.raft.lead_transferee == 0
    leader.propose(b"x")


@pytest.mark.parametrize("target", [1, 4, 9])
def test_3_10_a_transfer_to_oneself_a_learner_or_a_stranger_is_ignored(target: int) -> None:
    cluster = Cluster(learners=(4,))
    leader = cluster.elect(1)
    leader.transfer_leader(target)
    assert leader.raft.lead_transferee == 0
    leader.propose(b"x")


def test_3_10_a_second_wish_replaces_the_first_and_the_same_changes_nothing() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    cluster.isolate(3)
    cluster.isolate(2)
    leader.transfer_leader(3)
    leader.raft.election_elapsed = 5
    leader.transfer_leader(3)
    assert leader.raft.election_elapsed == 5
    leader.transfer_leader(2)
    assert (leader.raft.lead_transferee, leader.raft.election_elapsed) == (2, 0)
    leader.transfer_leader(1)
    assert leader.raft.lead_transferee == 0


def test_3_10_a_deposed_leader_forgets_the_transfer() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    cluster.isolate(3)
    leader.transfer_leader(3)
    cluster.elect(2)
    assert leader.raft.lead_transferee == 0


def test_3_10_a_transfer_ends_when_its_target_is_removed() -> None:
    node, storage = make_node()
    lead(node, storage)
    node.transfer_leader(3)
    node.apply_conf_change(ConfChange(ConfChangeType.ConfChangeRemoveNode, 3))
    assert node.raft.lead_transferee == 0


def test_3_10_without_a_leader_the_wish_goes_nowhere() -> None:
    node, storage = make_node()
    node.transfer_leader(2)
    assert drain(node, storage) == []


# 6.2: a leader that does not hear from a quorum steps down; others give no votes meanwhile


def test_6_2_a_leader_without_a_quorum_steps_down_within_two_election_timeouts() -> None:
    cluster = Cluster(check_quorum=True)
    leader = cluster.elect(1)
    cluster.tick(ELECTION_TICK)
    cluster.isolate(1)
    ticks = 0
    while leader.raft.state is LEADER and ticks < 5 * ELECTION_TICK:
        leader.tick()
        ticks += 1
    # Who answered just before the cut still counts at the first check.
    assert ELECTION_TICK <= ticks <= 2 * ELECTION_TICK
    assert (leader.raft.term, leader.raft.lead) == (1, 0)
    with pytest.raises(ErrProposalDropped):
        leader.propose(b"x")


def test_6_2_answers_of_a_quorum_keep_the_leader() -> None:
    cluster = Cluster((1, 2, 3, 4, 5), check_quorum=True)
    leader = cluster.elect(1)
    cluster.isolate(4)
    cluster.isolate(5)
    cluster.tick(5 * ELECTION_TICK, 1)
    assert leader.raft.state is LEADER


def test_6_2_learners_do_not_count_for_the_quorum() -> None:
    cluster = Cluster((1, 2), learners=(3, 4), check_quorum=True)
    leader = cluster.elect(1)
    cluster.isolate(2)
    cluster.tick(2 * ELECTION_TICK, 1)
    assert leader.raft.state is FOLLOWER


@pytest.mark.parametrize("kind", [M.MsgVote, M.MsgPreVote])
def test_6_2_who_hears_from_a_leader_neither_votes_nor_moves_on(kind: MessageType) -> None:
    node, storage = make_node(check_quorum=True)
    node.step(Message(type=M.MsgHeartbeat, from_=2, to=1, term=1))
    drain(node, storage)
    ask = Message(type=kind, from_=3, to=1, term=2, index=9, log_term=1)
    for _ in range(ELECTION_TICK - 1):
        node.tick()
    node.step(ask)
    assert drain(node, storage) == []
    assert node.raft.term == 1
    node.raft.randomized_election_timeout = 2 * ELECTION_TICK - 1
    node.tick()
    node.step(ask)
    (answer,) = drain(node, storage)
    assert not answer.reject


def test_6_2_a_forced_vote_is_given_even_so() -> None:
    node, storage = make_node(check_quorum=True)
    node.step(Message(type=M.MsgHeartbeat, from_=2, to=1, term=1))
    drain(node, storage)
    node.step(Message(type=M.MsgVote, from_=3, to=1, term=2, context=b"CampaignTransfer"))
    (answer,) = drain(node, storage)
    assert (answer.type, answer.reject) == (M.MsgVoteResp, False)


@pytest.mark.parametrize("option", [{"check_quorum": True}, {"pre_vote": True}])
@pytest.mark.parametrize("kind", [M.MsgApp, M.MsgHeartbeat])
def test_6_2_a_leader_of_an_older_term_is_told_of_the_newer(
    option: dict[str, Any], kind: MessageType
) -> None:
    node, storage = make_node(hard=HardState(term=3), **option)
    node.step(Message(type=kind, from_=2, to=1, term=2))
    assert [(m.type, m.to, m.term) for m in drain(node, storage)] == [(M.MsgAppResp, 2, 3)]


def test_6_2_without_these_options_an_older_leader_is_ignored() -> None:
    node, storage = make_node(hard=HardState(term=3))
    node.step(Message(type=M.MsgHeartbeat, from_=2, to=1, term=2))
    assert drain(node, storage) == []


# 9.6: PreVote


def test_9_6_a_pre_vote_changes_neither_term_nor_vote_of_anyone() -> None:
    cluster = Cluster(pre_vote=True)
    cluster[1].campaign()
    cluster.work(1)
    assert (cluster[1].raft.state, cluster[1].raft.term) == (PRE_CANDIDATE, 0)
    cluster.deliver()
    for id in (2, 3):
        assert (cluster[id].raft.term, cluster[id].raft.vote) == (0, 0)
    cluster.settle()
    assert cluster.leaders() == [1]
    assert cluster[2].raft.term == 1


def test_9_6_a_node_that_was_cut_off_comes_back_without_a_new_term() -> None:
    cluster = Cluster(pre_vote=True, check_quorum=True)
    leader = cluster.elect(1)
    cluster.isolate(3)
    cluster.tick(10 * ELECTION_TICK)
    assert cluster[3].raft.state is PRE_CANDIDATE
    cluster.heal()
    cluster.tick(2)
    assert (leader.raft.state, leader.raft.term, cluster[3].raft.lead) == (LEADER, 1, 1)


def test_9_6_a_pre_candidate_that_is_behind_is_refused() -> None:
    cluster = Cluster(logs={1: [1, 1], 2: [1, 1], 3: [1]}, pre_vote=True)
    cluster[3].campaign()
    cluster.settle()
    assert cluster.leaders() == []
    assert cluster[3].raft.state is FOLLOWER
    assert cluster[3].raft.term == 0


def test_9_6_a_pre_candidate_learns_of_a_newer_term_and_steps_down() -> None:
    cluster = Cluster(hards={2: HardState(term=5), 3: HardState(term=5)}, pre_vote=True)
    cluster[1].campaign()
    cluster.settle()
    assert (cluster[1].raft.state, cluster[1].raft.term) == (FOLLOWER, 5)


def test_9_6_late_answers_to_a_pre_vote_do_not_count_as_votes() -> None:
    node, storage = make_node(voters=range(1, 6), pre_vote=True)
    node.campaign()
    drain(node, storage)
    for id in (2, 3):
        node.step(Message(type=M.MsgPreVoteResp, from_=id, to=1, term=1))
    assert node.raft.state is CANDIDATE
    drain(node, storage)
    for id in (4, 5):
        node.step(Message(type=M.MsgPreVoteResp, from_=id, to=1, term=1))
    assert node.raft.state is CANDIDATE


def test_9_6_answers_to_a_vote_do_not_count_as_pre_votes() -> None:
    node, storage = make_node(pre_vote=True, hard=HardState(term=1))
    node.campaign()
    drain(node, storage)
    node.step(Message(type=M.MsgVoteResp, from_=2, to=1, term=1))
    assert node.raft.state is PRE_CANDIDATE


# 10.2: disk, pipelining, flow control


def test_10_2_appends_are_pipelined_up_to_the_window() -> None:
    node, storage = make_node(max_inflight_msgs=3)
    lead(node, storage)
    acknowledge(node, 2, 1)
    drain(node, storage)
    for n in range(5):
        node.propose(b"%d" % n)
    sent = [m for m in drain(node, storage) if m.type is M.MsgApp and m.to == 2]
    assert [m.entries[0].index for m in sent] == [2, 3, 4]
    acknowledge(node, 2, 3)
    sent = [m for m in drain(node, storage) if m.type is M.MsgApp and m.to == 2]
    assert [e.index for m in sent for e in m.entries] == [5, 6]


def test_10_2_the_window_is_bounded_by_bytes_too() -> None:
    node, storage = make_node(max_size_per_msg=100, max_inflight_bytes=200)
    lead(node, storage)
    acknowledge(node, 2, 1)
    drain(node, storage)
    for _ in range(5):
        node.propose(b"x" * 90)
    sent = [m for m in drain(node, storage) if m.type is M.MsgApp and m.to == 2]
    assert len(sent) == 3  # the third one reaches the limit
    assert node.raft.trk.progress[2].inflights.bytes == 270


def test_10_2_a_heartbeat_answer_sends_a_probe_through_a_full_window() -> None:
    node, storage = make_node(max_inflight_msgs=1)
    lead(node, storage)
    acknowledge(node, 2, 1)
    drain(node, storage)
    node.propose(b"lost")
    node.propose(b"waits")
    drain(node, storage)
    node.step(Message(type=M.MsgHeartbeatResp, from_=2, to=1, term=1))
    (probe,) = [m for m in drain(node, storage) if m.to == 2]
    assert (probe.type, probe.entries, probe.index) == (M.MsgApp, [], 2)


def test_10_2_messages_hold_no_more_than_the_maximum_but_one_entry_at_least() -> None:
    node, storage = make_node(max_size_per_msg=64)
    lead(node, storage)
    node.propose_entries([b"x" * 20] * 5 + [b"y" * 500])
    drain(node, storage)
    acknowledge(node, 2, 1)
    sent = [m for m in drain(node, storage) if m.type is M.MsgApp and m.to == 2]
    assert [[len(e.data) for e in m.entries] for m in sent] == [[20, 20], [20, 20], [20], [500]]


def test_10_2_one_probe_at_a_time_until_the_first_answer() -> None:
    node, storage = make_node()
    lead(node, storage)
    node.propose(b"a")
    node.propose(b"b")
    assert [m for m in drain(node, storage) if m.type is M.MsgApp] == []  # the empty entry is the probe
    acknowledge(node, 3, 1)
    (one,) = [m for m in drain(node, storage) if m.type is M.MsgApp and m.entries]
    assert (one.to, [e.data for e in one.entries]) == (3, [b"a", b"b"])


def test_10_2_an_unreachable_follower_is_probed_again() -> None:
    node, storage = make_node()
    lead(node, storage)
    acknowledge(node, 2, 1)
    node.propose(b"a")
    drain(node, storage)
    node.report_unreachable(2)
    node.report_unreachable(3)  # is being probed already
    node.report_unreachable(9)
    progress = node.raft.trk.progress[2]
    assert (progress.state, progress.next) == (ProgressState.StateProbe, 2)


def test_10_2_stale_rejections_change_nothing() -> None:
    node, storage = make_node()
    lead(node, storage)
    acknowledge(node, 2, 1)
    node.propose(b"a")
    drain(node, storage)
    for index in (0, 1):
        node.step(Message(type=M.MsgAppResp, from_=2, to=1, term=1, index=index, reject=True))
    node.step(Message(type=M.MsgAppResp, from_=3, to=1, term=1, index=7, reject=True))
    assert node.raft.trk.progress[2].state is ProgressState.StateReplicate
    assert node.raft.trk.progress[3].next == 1
    assert drain(node, storage) == []


def test_10_2_what_is_uncommitted_is_bounded() -> None:
    node, storage = make_node(max_uncommitted_entries_size=100)
    lead(node, storage)
    acknowledge(node, 2, 1)
    drain(node, storage)
    node.propose(b"x" * 1000)  # one of any size passes
    with pytest.raises(ErrProposalDropped):
        node.propose(b"y")
    node.propose(b"")  # empty ones always pass
    drain(node, storage)
    acknowledge(node, 2, 3)
    drain(node, storage)
    assert node.raft.uncommitted_size == 0
    node.propose_entries([b"z" * 50, b"z" * 50])
    with pytest.raises(ErrProposalDropped):
        node.propose(b"z")


def test_10_2_committed_entries_come_in_pages() -> None:
    node, storage = make_node(max_committed_size_per_ready=64)
    lead(node, storage)
    node.propose_entries([b"x" * 20] * 5)
    drain(node, storage)
    acknowledge(node, 2, 6)
    pages = []
    while node.has_ready():
        ready = node.ready()
        storage.append(ready.entries)
        pages.append([e.index for e in ready.committed_entries])
        node.advance(ready)
    assert pages == [[1, 2, 3], [4, 5], [6]]


def test_10_2_in_asynchronous_mode_pages_wait_for_the_ones_before() -> None:
    node, storage = make_node(voters=[1], async_storage_writes=True, max_committed_size_per_ready=64)
    applies: list[Message] = []

    def work() -> None:
        while node.has_ready():
            for m in node.ready().messages:
                if m.type is M.MsgStorageApply:
                    applies.append(m)
                    continue
                storage.append(m.entries)
                for response in m.responses:
                    node.step(response)

    node.campaign()
    work()
    node.propose_entries([b"x" * 20] * 5)
    work()
    assert [[e.index for e in m.entries] for m in applies] == [[1], [2, 3]]
    for done in range(6):
        outstanding = sum(entry_size(e) for m in applies[done:] for e in m.entries)
        assert outstanding <= 64 + 28, "the limit, and one entry beyond it"
        if done < len(applies):
            node.step(applies[done].responses[0])
            work()
    assert [e.index for m in applies for e in m.entries] == [1, 2, 3, 4, 5, 6]
    assert node.raft.raft_log.applied == 6


# The edges of RawNode


def test_peers_may_not_send_what_only_the_node_itself_may() -> None:
    node, _ = make_node()
    for kind in (M.MsgHup, M.MsgBeat, M.MsgUnreachable, M.MsgCheckQuorum, M.MsgStorageApplyResp):
        with pytest.raises(ErrStepLocalMsg):
            node.step(Message(type=kind, from_=2, to=1))


def test_answers_of_strangers_are_refused() -> None:
    node, _ = make_node()
    with pytest.raises(ErrStepPeerNotFound):
        node.step(Message(type=M.MsgAppResp, from_=9, to=1, term=1))


def test_ready_and_advance_alternate() -> None:
    node, _ = make_node(voters=[1])
    node.campaign()
    node.ready()
    with pytest.raises(InvariantViolation, match="before advance"):
        node.ready()
    asynchronous, _ = make_node(async_storage_writes=True)
    with pytest.raises(InvariantViolation):
        asynchronous.advance()


def test_a_ready_is_not_changed_by_what_happens_after_it() -> None:
    node, storage = make_node()
    lead(node, storage)
    acknowledge(node, 2, 1)
    node.propose(b"a")
    ready = node.ready()
    before = (list(ready.messages), list(ready.entries), list(ready.committed_entries))
    node.propose_entries([b"b"] * 3)
    acknowledge(node, 2, 2)
    node.read_index(b"r")
    storage.append(ready.entries)
    node.advance(ready)
    assert (ready.messages, ready.entries, ready.committed_entries) == before


def test_an_empty_ready_shares_nothing_with_the_next() -> None:
    node, _ = make_node()
    ready = node.ready()
    node.step(Message(type=M.MsgHeartbeat, from_=2, to=1, term=1))
    node.advance(ready)
    assert (ready.messages, ready.read_states) == ([], [])


@pytest.mark.parametrize("role", ["follower", "leader"])
def test_the_deadline_is_when_a_node_does_something_by_itself(role: str) -> None:
    node, storage = make_node(heartbeat_tick=3)
    if role == "leader":
        lead(node, storage)
    for _ in range(30):
        ticks = node.ticks_to_deadline()
        assert ticks >= 1
        for _ in range(ticks - 1):
            node.tick()
            assert not node.has_ready()
        node.tick()
        drain(node, storage)


def test_a_follower_forgets_its_leader_and_votes_at_once() -> None:
    cluster = Cluster(check_quorum=True)
    cluster.elect(1)
    cluster[2].forget_leader()
    assert (cluster[2].raft.lead, cluster[2].raft.term) == (0, 1)
    cluster[2].step(Message(type=M.MsgVote, from_=3, to=2, term=2, index=1, log_term=1))
    assert cluster[2].raft.vote == 3


def test_status_is_a_copy() -> None:
    cluster = Cluster()
    leader: RawNode = cluster.elect(1)
    status = leader.status()
    assert sorted(status.progress) == [1, 2, 3]
    assert (status.progress[2].match, status.progress[2].recent_active) == (1, True)
    status.progress[2].match = 99
    assert leader.raft.trk.progress[2].match == 1
    assert cluster[2].status().progress == {}
    assert leader.basic_status().hard_state == HardState(1, 1, 1)


def test_entries_that_were_proposed_are_not_changed() -> None:
    node, storage = make_node()
    lead(node, storage)
    entry = Entry(data=b"x")
    node.step(Message(type=M.MsgProp, from_=2, to=1, entries=[entry]))
    assert entry == Entry(data=b"x")
