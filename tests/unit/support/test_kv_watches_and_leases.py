"""What watchers get and when leases end, rule by rule."""

from __future__ import annotations

import pytest

from tests.support.kvcheck.check import Rules, check, counts
from tests.support.kvcheck.history import (
    ABSENT,
    Answer,
    Delete,
    Event,
    History,
    LeaseCall,
    Op,
    Poll,
    Put,
    Request,
    Result,
    Seen,
    delete,
    get,
    put,
)
from tests.support.kvcheck.leases import LeaseRules

MS = 1_000_000
TTL = 100 * MS
PUTS = [Event(2, "a", "1", "put"), Event(3, "b", "2", "put"), Event(4, "a", "3", "put")]


def written() -> History:
    """Revisions 2 to 4, and a delete of b at 5."""
    history = History()
    for event in PUTS:
        call = event.revision * 10 * MS
        request = put(event.key, event.value or "")
        history.add(Op(1, 1, call, call + 5 * MS, request, answer=Answer(revision=event.revision)))
    history.add(Op(1, 1, 50 * MS, 55 * MS, delete("b"), answer=Answer(results=(True,), revision=5)))
    return history


REMOVED = Event(5, "b", None, "delete")
LATE = (60 * MS, 70 * MS)


def rules_broken(*polls: Poll, rules: Rules | None = None) -> dict[str, int]:
    history = written()
    history.polls = list(polls)
    return counts(check(history, rules or Rules()))


def poll(
    after: int, *events: Event, prefix: str = "", compacted: int | None = None, watcher: int = 1
) -> Poll:
    return Poll(watcher, 1, *LATE, prefix, after, events, compacted)


def test_whole_watches_pass() -> None:
    reconnected = [poll(0, *PUTS[:2]), poll(3, PUTS[2], REMOVED), poll(5)]
    assert not rules_broken(*reconnected, rules=Rules(watch_complete_to=5))
    assert not rules_broken(poll(2, PUTS[2], prefix="a"))
    assert not rules_broken(poll(0, compacted=3), rules=Rules(watch_kept=3))


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        (poll(0, PUTS[0], PUTS[2]), "watch event missing"),
        (poll(0, *PUTS[1:]), "watch event missing"),
        (poll(0, PUTS[0], PUTS[0], *PUTS[1:]), "watch event twice"),
        (poll(0, PUTS[1], PUTS[0], PUTS[2]), "watch out of order"),
        (poll(2, *PUTS), "watch out of order"),
        (poll(0, *PUTS, prefix="a"), "watch of another prefix"),
        (poll(0, PUTS[0], Event(3, "b", "9", "put")), "watch event differs"),
        (poll(4, Event(5, "b", "2", "put")), "watch event differs"),
        (poll(4, Event(5, "b", None, "put")), "watch kind"),
        (poll(5, Event(6, "a", "4", "put")), "watch event from nowhere"),
        (poll(5, Event(6, "a", None, "delete")), "watch event from nowhere"),
        (poll(5, Event(6, "a", "1", "put")), "watch event from nowhere"),
        (poll(2, compacted=3), "watch refused"),
        (Poll(1, 1, 0, 45 * MS, "", 4, (REMOVED,)), "watch event too early"),
    ],
)
def test_broken_watches_are_seen(wrong: Poll, rule: str) -> None:
    assert rule in rules_broken(wrong)


def test_end_of_a_watch_and_kept_history() -> None:
    assert rules_broken(poll(0, *PUTS), rules=Rules(watch_complete_to=5)) == {"watch event missing": 1}
    assert rules_broken(poll(0, compacted=4), rules=Rules(watch_kept=3)) == {"history too short": 1}
    assert not rules_broken(poll(0, compacted=4), rules=Rules(watch_kept=3, compacted_at=0))


def test_delete_of_nothing_is_no_event() -> None:
    """Also in a transaction that changes another key."""
    history = written()
    request = Request((Put("a", "5"), Delete("nothing")))
    answer = Answer(results=(None, False), revision=6)
    history.add(Op(1, 1, 56 * MS, 58 * MS, request, answer=answer))
    history.polls = [poll(5, Event(6, "a", "5", "put"))]
    assert check(history).ok


def test_watchers_agree() -> None:
    """Two deletes that nobody knows to have been done; each watcher got another one at this revision."""
    history = written()
    for key in "ab":
        history.add(Op(1, 1, 56 * MS, 57 * MS, delete(key), Result.UNKNOWN))
        history.add(Op(1, 1, 56 * MS, 57 * MS, put(key, "x"), Result.UNKNOWN))
        history.add(Op(1, 1, 56 * MS, 57 * MS, put(key, "x"), Result.UNKNOWN))
    history.polls = [
        poll(5, Event(6, "a", None, "delete"), watcher=1),
        poll(5, Event(6, "a", "x", "put"), watcher=2),
    ]
    assert "watchers disagree" in counts(check(history))


def leased(*seen: tuple[int, Seen], alive: tuple[int, ...] = (), others: tuple[Op, ...] = ()) -> History:
    """Granted and put at 0, kept alive at the given ms, looked at for 2 ms at others."""
    history = History()
    history.add(LeaseCall("grant", 1, 1, 7, 0, 2 * MS, ttl=TTL))
    history.add(Op(1, 1, 3 * MS, 5 * MS, put("k", "v", 7), answer=Answer(revision=2)))
    for when in alive:
        history.add(LeaseCall("keep_alive", 1, 1, 7, when * MS, (when + 2) * MS))
    for when, what in seen:
        history.add(Op(2, 1, when * MS, (when + 2) * MS, get("k"), answer=Answer(results=(what,))))
    history.ops += others
    return history


THERE = Seen(True, "v", 2)
LEASES = Rules(leases=LeaseRules(late=50 * MS))


@pytest.mark.parametrize(
    "history",
    [
        leased((50, THERE), (120, ABSENT)),
        leased((50, THERE), (170, THERE), (195, ABSENT), alive=(90,)),
        leased((50, THERE), (154, THERE)),
        leased((60, ABSENT), others=(Op(3, 1, 40 * MS, 50 * MS, delete("k"), Result.UNKNOWN),)),
    ],
)
def test_good_leases_pass(history: History) -> None:
    result = check(history, LEASES)
    assert result.ok, result


@pytest.mark.parametrize(
    ("history", "rule"),
    [
        (leased((50, THERE), (98, ABSENT)), "lease ended early"),
        (leased((150, ABSENT), alive=(90,)), "lease ended early"),
        (leased((160, THERE)), "lease ended late"),
        (leased((250, THERE), alive=(90,)), "lease ended late"),
    ],
)
def test_broken_leases_are_seen(history: History, rule: str) -> None:
    assert rule in counts(check(history, LEASES))


def test_lease_rules_can_be_widened() -> None:
    """Clocks that drift, and a new leader that starts the TTL again."""
    assert check(leased((98, ABSENT)), Rules(leases=LeaseRules(drift=0.1))).ok
    changed = Rules(leases=LeaseRules(late=50 * MS, leader_changes=(100 * MS,)))
    assert check(leased((160, THERE)), changed).ok


def test_watched_expiry_is_judged() -> None:
    """A delete event that no client asked for is the lease's end."""
    history = leased((50, THERE))
    events = (Event(2, "k", "v", "put"), Event(3, "k", None, "delete"))
    history.polls = [Poll(1, 1, 60 * MS, 80 * MS, "", 0, events)]
    assert "lease ended early" in counts(check(history))
    history.polls = [Poll(1, 1, 60 * MS, 130 * MS, "", 0, events)]
    assert check(history).ok
