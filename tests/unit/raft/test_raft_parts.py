"""Configuration, sizes, progress, windows, descriptions, and the invariants of the core."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pgraft.raft import (
    LOCAL_APPEND_THREAD,
    NO_LIMIT,
    NO_NODE,
    ConfChange,
    ConfChangeSingle,
    ConfChangeTransition,
    ConfChangeType,
    ConfChangeV2,
    Config,
    ConfState,
    Entry,
    EntryType,
    ErrConfChange,
    ErrConfig,
    ErrMalformedMessage,
    ErrProposalDropped,
    HardState,
    Inflights,
    InvariantViolation,
    JointConfig,
    MemoryStorage,
    Message,
    MessageType,
    Progress,
    ProgressState,
    ProgressTracker,
    RawNode,
    ReadOnlyLeaseBased,
    ReadState,
    Ready,
    Snapshot,
    SnapshotMetadata,
    TrackerConfig,
    as_v2,
    decode_conf_change,
    encode_conf_change,
    entry_size,
    invariant,
)
from pgraft.raft.confchange import equivalent
from pgraft.raft.describe import describe_entry, describe_message, describe_ready, quote
from pgraft.raft.handlers import ignore, table
from pgraft.raft.sizes import limit_size
from pgraft.raft.tracker import check_config

M = MessageType


def make_config(**changes: Any) -> Config:
    fields: dict[str, Any] = {
        "id": 1,
        "election_tick": 10,
        "heartbeat_tick": 1,
        "storage": MemoryStorage(),
        "rng": random.Random(1),
    }
    return Config(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"id": 0}, "id 0"),
        ({"id": LOCAL_APPEND_THREAD}, "id"),
        ({"heartbeat_tick": 0}, "heartbeat_tick 0"),
        ({"election_tick": 1}, "election_tick 1"),
        ({"max_inflight_msgs": 0}, "max_inflight_msgs 0"),
        ({"max_size_per_msg": 10, "max_inflight_bytes": 9}, "max_inflight_bytes 9"),
        ({"read_only_option": ReadOnlyLeaseBased}, "needs check_quorum"),
    ],
)
def test_a_wrong_configuration_names_the_field(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(ErrConfig, match=names):
        RawNode(make_config(**changes))


def test_the_page_limit_falls_back_to_the_message_limit() -> None:
    assert make_config(max_size_per_msg=7).committed_limit == 7
    assert make_config(max_size_per_msg=0).committed_limit == 1
    assert make_config(max_committed_size_per_ready=5).committed_limit == 5


def test_an_invariant_that_does_not_hold_says_what() -> None:
    invariant(True, "fine")
    with pytest.raises(InvariantViolation, match="commit 5 > last 3"):
        invariant(False, "commit 5 > last 3")


def test_errors_carry_their_detail() -> None:
    assert str(ErrProposalDropped()) == "raft proposal dropped"
    assert str(ErrProposalDropped("why")) == "raft proposal dropped: why"


def test_a_table_that_forgets_a_message_type_is_refused() -> None:
    with pytest.raises(InvariantViolation, match="no handler for"):
        table(dict.fromkeys([M.MsgApp, M.MsgHup], ignore))


# Sizes


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        (Entry(), 6),
        (Entry(term=1, index=1), 6),
        (Entry(term=128, index=2**14), 9),
        (Entry(term=1, index=1, data=b"x"), 9),
        (Entry(term=1, index=1, data=b"x" * 200), 209),
        (Entry(term=2**64 - 1, index=2**64 - 1), 24),
    ],
)
def test_an_entry_counts_what_its_protobuf_form_would_take(entry: Entry, size: int) -> None:
    assert entry_size(entry) == size


def test_a_limit_keeps_the_longest_prefix_and_one_entry_at_least() -> None:
    entries = [Entry(term=1, index=i, data=b"x" * 10) for i in range(1, 5)]
    each = entry_size(entries[0])
    assert limit_size(entries, NO_LIMIT) is entries
    assert limit_size([], 0) == []
    assert [len(limit_size(entries, limit)) for limit in (0, each, 2 * each, 2 * each + 1, 4 * each)] == [
        1,
        1,
        2,
        2,
        4,
    ]


# Progress


def test_a_window_is_bounded_by_count_and_bytes() -> None:
    window = Inflights(2, 100)
    window.add(1, 10)
    window.add(2, 10)
    assert window.full()
    with pytest.raises(InvariantViolation, match="full window"):
        window.add(3, 1)
    window.free_le(1)
    assert (window.count(), window.bytes, window.full()) == (1, 10, False)
    window.add(3, 90)
    window.free_le(2)
    assert (window.count(), window.full()) == (1, False)
    window.reset()
    assert (window.count(), window.bytes) == (0, 0)
    window.add(4, 500)
    assert window.full()


def progress(**changes: Any) -> Progress:
    pr = Progress(match=0, next=1, inflights=Inflights(4, 0), recent_active=True)
    for name, value in changes.items():
        setattr(pr, name, value)
    return pr


def test_nothing_is_sent_to_a_follower_in_snapshot_state() -> None:
    pr = progress()
    pr.become_snapshot(9)
    assert pr.is_paused()
    with pytest.raises(InvariantViolation, match="StateSnapshot"):
        pr.sent_entries(1, 1)


def test_progress_in_words() -> None:
    pr = progress(is_learner=True, recent_active=False)
    pr.become_snapshot(9)
    assert str(pr) == "StateSnapshot match=0 next=10 learner paused pendingSnap=9 inactive"
    pr = progress()
    pr.become_replicate()
    pr.sent_entries(2, 0)
    assert str(pr) == "StateReplicate match=0 next=3 inflight=1"
    assert pr.clone().state is ProgressState.StateReplicate


def test_a_snapshot_carries_the_commit_index() -> None:
    pr = progress()
    pr.become_snapshot(9)
    assert not pr.can_bump_commit(9)
    pr.maybe_update(9)
    pr.become_probe()
    pr.become_replicate()
    assert not pr.can_bump_commit(10), "the follower has nothing beyond 9"
    pr.sent_entries(1, 0)
    assert pr.can_bump_commit(10)


@pytest.mark.parametrize(
    ("config", "tracked"),
    [
        (TrackerConfig(JointConfig(frozenset({1}))), {}),
        (TrackerConfig(JointConfig(frozenset({1})), learners=frozenset({1})), {1: True}),
        (TrackerConfig(JointConfig(frozenset({1})), learners=frozenset({2})), {1: False, 2: False}),
        (TrackerConfig(JointConfig(frozenset({1})), learners_next=frozenset({2})), {1: False, 2: False}),
        (
            TrackerConfig(JointConfig(frozenset({1}), frozenset({2})), learners_next=frozenset({2})),
            {1: False, 2: True},
        ),
        (TrackerConfig(JointConfig(frozenset({1})), auto_leave=True), {1: False}),
    ],
)
def test_configuration_and_progress_fit_together(config: TrackerConfig, tracked: dict[int, bool]) -> None:
    with pytest.raises(InvariantViolation):
        check_config(config, {id: progress(is_learner=learner) for id, learner in tracked.items()})


def test_a_configuration_is_restored_as_it_was() -> None:
    states = [
        ConfState(),
        ConfState((1, 2, 3), (4,)),
        ConfState((1, 2), (5,), (1, 3), (3,), True),
        ConfState((2,), (), (1,)),
    ]
    for state in states:
        storage = MemoryStorage()
        storage.initial_state = lambda state=state: (HardState(), state)  # type: ignore[method-assign,misc]
        node = RawNode(make_config(storage=storage))
        assert equivalent(node.raft.trk.config.conf_state(), state)
    assert equivalent(ConfState((2, 1)), ConfState((1, 2)))
    assert not equivalent(ConfState((1,)), ConfState((1, 2)))


def test_a_configuration_that_cannot_be_restored_is_refused() -> None:
    storage = MemoryStorage()
    bad = ConfState((1,), learners=(1,))
    storage.initial_state = lambda: (HardState(), bad)  # type: ignore[method-assign]
    with pytest.raises((ErrConfChange, InvariantViolation)):
        RawNode(make_config(storage=storage))


def test_the_first_answer_of_a_voter_counts() -> None:
    tracker = ProgressTracker(1, 0)
    tracker.record_vote(1, True)
    tracker.record_vote(1, False)
    assert tracker.votes == {1: True}


# Membership changes as data


@pytest.mark.parametrize(
    "change",
    [
        ConfChange(ConfChangeType.ConfChangeAddNode, 4, b"context"),
        ConfChangeV2(),
        ConfChangeV2(
            ConfChangeTransition.ConfChangeTransitionJointExplicit, (ConfChangeSingle(1, 2),), b"context"
        ),
    ],
)
def test_a_change_survives_its_entry(change: ConfChange | ConfChangeV2) -> None:
    assert decode_conf_change(encode_conf_change(change)) == change


def test_a_v1_change_is_a_v2_change_with_one_operation() -> None:
    v1 = ConfChange(ConfChangeType.ConfChangeRemoveNode, 4, b"context")
    assert as_v2(v1) == ConfChangeV2(0, (ConfChangeSingle(1, 4),), b"context")


@pytest.mark.parametrize("kind", [EntryType.EntryConfChange, EntryType.EntryConfChangeV2])
@pytest.mark.parametrize("data", [b"\xc1", b"\x90\x00", b"text"])
def test_garbage_is_not_a_change(kind: EntryType, data: bytes) -> None:
    with pytest.raises(ErrMalformedMessage):
        decode_conf_change(Entry(1, 2, kind.value, data))


# In words


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", '"plain"'),
        (b'a"b\\c\n\t', '"a\\"b\\\\c\\n\\t"'),
        ("é☃".encode(), '"é☃"'),
        (b"\x00\x7f\xff", '"\\x00\\x7f\\xff"'),
        ("\u0085\u2028".encode(), '"\\u0085\\u2028"'),
        ("\U000e0001".encode(), '"\\U000e0001"'),
    ],
)
def test_data_is_quoted(data: bytes, text: str) -> None:
    assert quote(data) == text


def test_messages_and_entries_in_words() -> None:
    bad = Entry(1, 2, EntryType.EntryConfChange.value, b"\xc1")
    assert describe_entry(bad).startswith("1/2 EntryConfChange raft: malformed message")
    m = Message(type=M.MsgHeartbeat, from_=NO_NODE, to=26, term=1)
    assert describe_message(m) == "None->1a MsgHeartbeat Term:1 Log:0/0"


def test_a_ready_in_words() -> None:
    empty: dict[str, Any] = {
        "soft_state": None,
        "hard_state": None,
        "read_states": [],
        "entries": [],
        "snapshot": None,
        "committed_entries": [],
        "messages": [],
        "must_sync": False,
    }
    assert describe_ready(Ready(**empty)) == "<empty Ready>"
    reads = [ReadState(5, b"ab"), ReadState(6, b"")]
    text = "Ready MustSync=false:\nReadStates [{5 [97 98]} {6 []}]\n"
    assert describe_ready(Ready(**empty | {"read_states": reads})) == text


# Invariants of the roles and of sending


def test_impossible_changes_of_role_stop_the_node() -> None:
    r = RawNode(make_config()).raft
    with pytest.raises(InvariantViolation, match="follower of term 0"):
        r.become_leader()
    storage = MemoryStorage()
    storage.apply_snapshot(Snapshot(SnapshotMetadata(ConfState((1,)), 1, 1)))
    r = RawNode(make_config(storage=storage)).raft
    r.become_candidate()
    r.become_leader()
    with pytest.raises(InvariantViolation, match="leader of term 1 cannot become a candidate"):
        r.become_candidate()
    with pytest.raises(InvariantViolation, match="pre-candidate"):
        r.become_pre_candidate()


def test_messages_leave_with_the_right_term_and_not_to_ourselves() -> None:
    r = RawNode(make_config()).raft
    with pytest.raises(InvariantViolation, match="term must be set"):
        r.send(Message(type=M.MsgVote, to=2))
    with pytest.raises(InvariantViolation, match="term must not be set"):
        r.send(Message(type=M.MsgApp, to=2, term=1))
    with pytest.raises(InvariantViolation, match="to ourselves"):
        r.send(Message(type=M.MsgHeartbeat, to=1))


def test_a_follower_that_comes_back_with_another_log_is_begun_anew() -> None:
    storage = MemoryStorage()
    storage.initial_state = lambda: (HardState(), ConfState((1, 2)))  # type: ignore[method-assign]
    node = RawNode(make_config(storage=storage))
    r = node.raft
    node.report_another_log(2)
    assert r.trk.progress[2].match == 0, "nothing to forget for a follower"
    r.become_candidate()
    r.become_leader()
    progress = r.trk.progress[2]
    last = r.raft_log.last_index()
    progress.maybe_update(last)
    progress.become_replicate()
    node.report_another_log(1)
    node.report_another_log(9)
    assert progress.match == last
    node.report_another_log(2)
    assert (progress.match, progress.next, progress.state) == (0, last + 1, ProgressState.StateProbe)
    assert progress.maybe_decr_to(last, 0), "what it had acknowledged may be rejected now"
