"""Raft paper 5.3 (log replication), 5.4.2 (committing entries of earlier terms), 5.5, 8."""

from __future__ import annotations

import pytest

from pgraft.raft import (
    Entry,
    ErrMalformedMessage,
    ErrProposalDropped,
    HardState,
    InvariantViolation,
    Message,
    MessageType,
)
from tests.paper.cluster import FOLLOWER, Cluster, acknowledge, carry_out, drain, lead, make_node

M = MessageType


def append(term: int, index: int, log_term: int, terms: list[int], commit: int = 0) -> Message:
    entries = [Entry(term=t, index=i) for i, t in enumerate(terms, index + 1)]
    return Message(
        type=M.MsgApp,
        from_=2,
        to=1,
        term=term,
        index=index,
        log_term=log_term,
        entries=entries,
        commit=commit,
    )


def test_5_3_a_leader_appends_and_sends_to_all_at_once() -> None:
    node, storage = make_node()
    lead(node, storage)
    acknowledge(node, 2, 1)
    acknowledge(node, 3, 1)
    drain(node, storage)
    node.propose_entries([b"a", b"b"])
    ready = node.ready()
    assert [(e.term, e.index, e.data) for e in ready.entries] == [(1, 2, b"a"), (1, 3, b"b")]
    appends = [m for m in ready.messages if m.type is M.MsgApp]
    assert [(m.to, m.index, m.log_term, m.commit) for m in appends] == [(2, 1, 1, 1), (3, 1, 1, 1)]
    assert all(m.entries == ready.entries for m in appends)


@pytest.mark.parametrize(
    ("size", "acknowledging", "commits"),
    [
        (1, [], True),
        (3, [], False),
        (3, [2], True),
        (3, [2, 3], True),
        (5, [2], False),
        (5, [2, 3], True),
        (4, [2], False),
        (4, [2, 3], True),
    ],
)
def test_5_3_an_entry_is_committed_once_a_majority_has_it(
    size: int, acknowledging: list[int], commits: bool
) -> None:
    node, storage = make_node(voters=range(1, size + 1))
    lead(node, storage)
    for id in range(2, size + 1):
        acknowledge(node, id, 1)
    drain(node, storage)
    node.propose(b"x")
    drain(node, storage)
    for id in acknowledging:
        acknowledge(node, id, 2)
    assert node.raft.raft_log.committed == (2 if commits else 1)


def test_5_3_committing_an_entry_commits_all_before_it_and_applies_in_order() -> None:
    cluster = Cluster(logs={1: [1, 2], 2: [1, 2], 3: [1]}, hards={i: HardState(term=2) for i in (1, 2, 3)})
    cluster.elect(1)
    cluster[1].propose(b"x")
    cluster.settle()
    for id in (1, 2, 3):
        assert [e.index for e in cluster.applied[id]] == [1, 2, 3, 4]
        assert cluster[id].raft.raft_log.committed == 4


def test_5_3_the_leader_need_not_be_in_the_majority() -> None:
    node, storage = make_node()
    lead(node, storage)
    acknowledge(node, 2, 1)
    acknowledge(node, 3, 1)
    drain(node, storage)
    node.propose(b"x")
    ready = node.ready()  # dissertation 10.2.1: its own write is still under way
    acknowledge(node, 2, 2)
    assert node.raft.raft_log.committed == 1
    acknowledge(node, 3, 2)
    assert node.raft.raft_log.committed == 2
    assert ready.entries[0].index == 2


def test_5_3_followers_learn_the_commit_index_and_apply() -> None:
    node, storage = make_node(terms=[1, 1], hard=HardState(term=1))
    node.step(append(1, 2, 1, [1], commit=2))
    ready = carry_out(node, storage)
    assert [e.index for e in ready.committed_entries] == [1, 2]
    node.step(Message(type=M.MsgHeartbeat, from_=2, to=1, term=1, commit=3))
    assert [e.index for e in carry_out(node, storage).committed_entries] == [3]


def test_5_3_a_follower_commits_no_further_than_it_is_known_to_match() -> None:
    node, _ = make_node(terms=[1, 1, 1], hard=HardState(term=1))
    node.step(append(1, 1, 1, [], commit=3))
    assert node.raft.raft_log.committed == 1


@pytest.mark.parametrize(
    ("index", "log_term", "accepted", "hint", "hint_term"),
    [
        (0, 0, True, 0, 0),
        (1, 1, True, 0, 0),
        (2, 2, True, 0, 0),
        (1, 2, False, 1, 1),
        (2, 1, False, 1, 1),  # ours there is of a later term: nothing of it can match
        (2, 3, False, 2, 2),
        (3, 3, False, 2, 2),  # missing
        (9, 1, False, 1, 1),
    ],
)
def test_5_3_a_follower_checks_what_comes_before(
    index: int, log_term: int, accepted: bool, hint: int, hint_term: int
) -> None:
    node, storage = make_node(terms=[1, 2], hard=HardState(term=2))
    node.step(append(3, index, log_term, []))
    (answer,) = drain(node, storage)
    assert (answer.type, answer.index, answer.reject) == (M.MsgAppResp, index, not accepted)
    assert (answer.reject_hint, answer.log_term) == (hint, hint_term)
    assert [storage.term(i) for i in (1, 2)] == [1, 2]


@pytest.mark.parametrize(
    ("index", "log_term", "terms", "result"),
    [
        (2, 2, [3], [1, 2, 3]),  # append
        (1, 1, [3, 4], [1, 3, 4]),  # a conflict, and all that follows goes
        (0, 0, [1], [1, 2]),  # old news deletes nothing
        (0, 0, [3], [3]),
        (1, 1, [2, 3], [1, 2, 3]),
    ],
)
def test_5_3_conflicting_entries_are_replaced_and_nothing_else(
    index: int, log_term: int, terms: list[int], result: list[int]
) -> None:
    node, storage = make_node(terms=[1, 2], hard=HardState(term=2))
    node.step(append(4, index, log_term, terms))
    (answer,) = drain(node, storage)
    assert not answer.reject
    assert answer.index == index + len(terms)
    assert [storage.term(i) for i in range(1, storage.last_index() + 1)] == result


FIGURE_7 = {
    2: [1, 1, 1, 4, 4, 5, 5, 6, 6],
    3: [1, 1, 1, 4],
    4: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    5: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    6: [1, 1, 1, 4, 4, 4, 4],
    7: [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


@pytest.mark.parametrize("follower", FIGURE_7)
def test_5_3_a_leader_brings_any_follower_of_figure_7_in_line(follower: int) -> None:
    own = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    logs = {1: own, follower: FIGURE_7[follower], 9: own}
    cluster = Cluster(
        (1, follower, 9), logs=logs, hards={1: HardState(7), follower: HardState(7), 9: HardState(7)}
    )
    cluster.elect(1)
    assert cluster.terms(follower) == [*own, 8]
    assert cluster.terms(1) == [*own, 8]  # a leader only ever appends to its own
    rejected = [m for m in cluster.sent if m.type is M.MsgAppResp and m.from_ == follower and m.reject]
    assert len(rejected) <= len(set(FIGURE_7[follower])), "at most one probe for each term"


def test_5_3_one_probe_for_each_term_however_long_the_terms_are() -> None:
    cluster = Cluster(
        logs={1: [1] + [2] * 200, 2: [1] + [2] * 200, 3: [1] + [1] * 300},
        hards={i: HardState(term=3) for i in (1, 2, 3)},
    )
    cluster.elect(1)
    rejected = [m for m in cluster.sent if m.type is M.MsgAppResp and m.reject]
    assert len(rejected) == 1
    assert cluster.terms(3) == cluster.terms(1)


def test_5_5_appends_may_come_twice_and_out_of_order() -> None:
    node, storage = make_node(hard=HardState(term=1))
    first, second = append(1, 0, 0, [1, 1]), append(1, 2, 1, [1])
    for m in (first, second, first, second):
        node.step(m)
    answers = drain(node, storage)
    assert [m.index for m in answers] == [2, 3, 2, 3]
    assert storage.last_index() == 3


def test_5_5_an_append_behind_the_commit_index_is_answered_with_it() -> None:
    node, storage = make_node(terms=[1, 1, 1], hard=HardState(term=1, commit=3))
    node.step(append(1, 1, 1, [1]))
    (answer,) = [m for m in drain(node, storage) if m.type is M.MsgAppResp]
    assert (answer.index, answer.reject) == (3, False)


def test_5_3_entries_that_do_not_follow_their_index_are_refused() -> None:
    node, _ = make_node(hard=HardState(term=1))
    gap = append(1, 0, 0, [1, 1])
    gap.index = 5
    with pytest.raises(ErrMalformedMessage):
        node.step(gap)


def test_5_3_a_conflict_with_a_committed_entry_stops_the_node() -> None:
    node, _ = make_node(terms=[1, 1], hard=HardState(term=1, commit=2))
    node.raft.raft_log.committed = 2
    with pytest.raises(InvariantViolation, match="conflicts with a committed"):
        node.raft.raft_log.maybe_append(0, 0, [Entry(term=2, index=1)], 0)


def test_5_3_a_commit_beyond_the_log_stops_the_node() -> None:
    node, _ = make_node(terms=[1], hard=HardState(term=1))
    with pytest.raises(InvariantViolation, match="commit 5 > last 1"):
        node.step(Message(type=M.MsgHeartbeat, from_=2, to=1, term=1, commit=5))


def test_5_4_2_figure_8_an_old_terms_entry_is_not_committed_by_counting_copies() -> None:
    # (c): S1 leads term 4 and has brought the entry of term 2 to a majority.
    logs = {1: [1, 2], 2: [1, 2], 3: [1, 2], 4: [1], 5: [1, 3]}
    cluster = Cluster((1, 2, 3, 4, 5), logs=logs, hards={i: HardState(term=3) for i in range(1, 6)})
    cluster.isolate(5)
    cluster.isolate(4)
    cluster[1].campaign()
    cluster.lose = lambda m: m.type is M.MsgApp  # the entry of term 4 stays with S1
    cluster.settle()
    leader = cluster[1]
    for id in (2, 3):
        acknowledge(leader, id, 2)
    assert leader.raft.raft_log.committed == 0
    # (d): S5's last term is later, so it may still win and overwrite it: it must not have been applied.
    cluster.heal()
    cluster.isolate(1)
    cluster[5].campaign()  # term 4: the others have voted in it
    cluster.settle()
    cluster.elect(5)
    cluster.heal()
    cluster.tick(1, 5)
    assert all(cluster.terms(id) == [1, 3, 5] for id in range(1, 6))
    assert all([e.term for e in cluster.applied[id]] == [1, 3, 5] for id in range(1, 6))


def test_5_4_2_with_the_new_terms_entry_the_old_one_is_committed_too() -> None:
    node, storage = make_node(terms=[1, 2], hard=HardState(term=2))
    lead(node, storage)
    acknowledge(node, 2, 2)
    assert node.raft.raft_log.committed == 0
    acknowledge(node, 2, 3)
    assert node.raft.raft_log.committed == 3


def test_8_a_follower_hands_proposals_to_the_leader() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster[2].propose_entries([b"a", b"b"])
    cluster.settle()
    assert cluster.data(1) == cluster.data(2) == cluster.data(3) == [b"a", b"b"]


def test_8_a_follower_may_be_told_not_to_forward() -> None:
    cluster = Cluster(disable_proposal_forwarding=True)
    cluster.elect(1)
    with pytest.raises(ErrProposalDropped):
        cluster[2].propose(b"x")


def test_8_without_a_leader_a_proposal_is_dropped() -> None:
    node, _ = make_node()
    with pytest.raises(ErrProposalDropped):
        node.propose(b"x")
    node.propose_entries([])
    assert node.raft.state is FOLLOWER


def test_8_a_proposal_without_entries_is_refused() -> None:
    node, storage = make_node()
    lead(node, storage)
    with pytest.raises(ErrMalformedMessage):
        node.step(Message(type=M.MsgProp, from_=2, to=1))


@pytest.mark.parametrize("size", [3, 5])
def test_5_3_what_was_committed_survives_every_change_of_leader(size: int) -> None:
    ids = tuple(range(1, size + 1))
    cluster = Cluster(ids)
    for turn in range(12):
        id = ids[turn % size]
        cluster.elect(id)
        away = ids[(turn + 1) % size]
        cluster.isolate(away)
        cluster[id].propose(b"%d" % turn)
        cluster.settle()
        cluster.heal()
        cluster.tick(1, id)
    assert all(cluster.data(id) == [b"%d" % turn for turn in range(12)] for id in ids)
