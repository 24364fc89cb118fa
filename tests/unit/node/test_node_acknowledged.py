"""By what it acknowledged a member's next start is judged; and when an adopted one has caught up."""

from __future__ import annotations

import pytest

from pgraft.node.acknowledged import MEMBERS_KEPT_MAX, STARTS_MAX, Acknowledged
from pgraft.node.catch_up import CatchUp
from pgraft.node.envelope import NodeStatus
from pgraft.transport.records import PeerHello, RefusalCode, WorkerStart

MEMBER, START = 77, 1000


def hello(start: int, term: int, last: int, *, member_id: int = MEMBER, incarnation: int = 1) -> PeerHello:
    return PeerHello(member_id, "h", 1, 1, incarnation, WorkerStart(start, term, last))


def refused(known: Acknowledged, what: PeerHello) -> str:
    """Why the start of node 2 is refused, empty when it is not."""
    refusal = known.judge(2, what)
    if refusal is None:
        return ""
    assert refusal.code == RefusalCode.SHORTER_LOG
    assert "pgraft_remove_node(2)" in refusal.hint
    return refusal.text


def led() -> Acknowledged:
    """This node led in term 5, where node 2 acknowledged 100, of which it knew 90 to be committed; and leads
    again in term 7, where node 2 has acknowledged nothing yet."""
    known = Acknowledged()
    known.begin(5)
    assert refused(known, hello(1, 4, 50)) == ""
    known.heard(2, 5, 80)
    known.committed(90)
    known.heard(2, 5, 100)
    known.heard(2, 5, 70)
    known.begin(7)
    return known


def leads() -> Acknowledged:
    """It leads in term 7, where node 2 has acknowledged 120, and nothing of the term is committed."""
    known = led()
    known.heard(2, 7, 120)
    return known


@pytest.mark.parametrize(
    ("known", "term", "last", "why"),
    [
        (led, 7, 90, ""),
        (led, 7, 89, "with last index 89, and had acknowledged everything up to 90"),
        (led, 6, 95, ""),
        (led, 5, 100, ""),
        (led, 5, 99, "with last index 99, and had acknowledged everything up to 100"),
        (led, 4, 500, "in term 4, and had acknowledged entries in term 5"),
        (leads, 7, 120, ""),
        (leads, 7, 119, "everything up to 120"),
        (leads, 6, 120, "in term 6, and had acknowledged entries in term 7"),
        # Another leads by now, and may have cut what nobody knew to be committed.
        (leads, 8, 90, ""),
        (leads, 8, 89, "everything up to 90"),
    ],
)
def test_a_start_with_less_is_refused(known: object, term: int, last: int, why: str) -> None:
    assert callable(known)
    found = refused(known(), hello(START, term, last))
    assert why in found
    assert bool(why) == bool(found)


def test_only_new_starts_are_judged() -> None:
    """What was acknowledged since is no reason to refuse the one that acknowledged it."""
    known = leads()
    assert refused(known, hello(1, 4, 50)) == ""
    assert refused(known, hello(0, 0, 0)) == "", "a release that tells no start"
    for number in range(3):
        assert refused(known, hello(START, 7, 5)) != "", number
    assert refused(known, hello(START + 1, 7, 120)) == ""
    assert refused(known, hello(1, 4, 50)) == "", "an older connection of it is told again"
    for start in range(2000, 2000 + STARTS_MAX):
        assert refused(known, hello(start, 7, 120)) == ""
    assert refused(known, hello(1, 4, 50)) != "", "starts are bounded"


@pytest.mark.parametrize("changes", [{"member_id": 78}, {"incarnation": 2}])
def test_another_disk_or_incarnation_acknowledged_nothing(changes: dict[str, int]) -> None:
    known = leads()
    other = hello(START, 1, 1, **changes)
    assert known.is_another(2, other)
    assert refused(known, other) == ""
    assert not known.is_another(2, other)
    known.heard(2, 7, 30)
    assert "everything up to 30" in refused(known, hello(START + 1, 7, 29, **changes))


def test_answers_of_another_term_or_of_nobody_count_for_nothing() -> None:
    known = led()
    known.heard(2, 6, 500)
    known.heard(9, 7, 500)
    assert refused(known, hello(START, 7, 90)) == ""
    assert known.judge(9, hello(START, 7, 1)) is None


def test_members_are_bounded() -> None:
    known = Acknowledged()
    known.begin(1)
    for node_id in range(1, MEMBERS_KEPT_MAX + 10):
        known.judge(node_id, hello(1, 1, 1))
        known.heard(node_id, 1, 5)
    assert known.judge(1, hello(2, 1, 1)) is None
    assert known.judge(MEMBERS_KEPT_MAX, hello(2, 1, 1)) is not None


def table(incarnation: int) -> list[NodeStatus]:
    return [NodeStatus(1), NodeStatus(2, incarnation=incarnation), NodeStatus(3, incarnation=9)]


def test_caught_up_with_what_the_leader_had_committed_when_it_knew() -> None:
    own = CatchUp(2, 4)
    own.hear(NodeStatus(1, term=7, commit_index=50), table(3))
    assert not own.is_done(7, 60, 7), "the leader may still count an answer of an older copy"
    own.hear(NodeStatus(1, term=7, commit_index=60), table(4))
    own.hear(NodeStatus(1, term=7, commit_index=90), table(4))
    assert not own.is_done(7, 59, 7)
    assert not own.is_done(7, 60, 6), "its own first entry is not committed"
    assert not own.is_done(8, 60, 8), "another leads"
    assert own.is_done(7, 60, 7)
    own.hear(NodeStatus(3, term=8, commit_index=61), table(4))
    assert not own.is_done(7, 60, 7)
    assert own.is_done(8, 61, 8)
