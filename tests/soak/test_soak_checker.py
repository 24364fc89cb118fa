"""The checker finds what is wrong with a history, and nothing wrong with a good one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.soak.checker import RULES, check
from tests.soak.history import (
    Command,
    Entry,
    History,
    Life,
    Reading,
    Result,
    digest_of,
    key_of,
    make_text,
    result_of,
)
from tests.soak.proxy import REPO

NODES = (1, 2, 3)
TEXTS = {key: make_text(key, 50) for key in ("a", "b", "c", "d")}
DIGESTS = {key: digest_of(text) for key, text in TEXTS.items()}


def command(key: str, sent: int, told: int, result: Result = Result.OK) -> Command:
    return Command(0, key, DIGESTS[key], 1, sent, told, result)


def entry(node_id: int, index: int, key: str = "", *, final: bool = True) -> Entry:
    return Entry(node_id, index, key, DIGESTS.get(key, ""), final)


def reading(
    node_id: int, at: int, term: int, commit: int, *, leads: bool = False, leader: int = 1, took: int = 5
) -> Reading:
    return Reading(node_id, at, at + took, term, leads, leader, term, commit)


def good() -> History:
    """Node 1 leads at term 1, then node 2 at term 2; `c` is unknown and there, `d` was refused."""
    history = History()
    history.commands = [
        command("a", 10, 20),
        command("b", 25, 40),
        command("c", 30, 60, Result.UNKNOWN),
        command("d", 70, 80, Result.ERROR),
    ]
    for node_id in NODES:
        history.entries += [
            entry(node_id, index, key) for index, key in ((2, ""), (3, "a"), (4, "c"), (5, "b"))
        ]
    history.entries.append(entry(2, 3, "a", final=False))
    history.readings = [
        reading(1, 10, 1, 2, leads=True),
        reading(2, 12, 1, 2),
        reading(1, 30, 1, 3, leads=True),
        reading(2, 50, 2, 4, leads=True, leader=2),
        reading(1, 55, 2, 4, leader=2),
        reading(1, 65, 0, 0, leader=0),
        reading(1, 75, 2, 5, leader=2),
    ]
    return history


def lost(history: History) -> None:
    history.entries = [one for one in history.entries if one.key != "a"]


def twice(history: History) -> None:
    history.entries += [entry(node_id, 6, "b") for node_id in NODES]


def unknown_twice(history: History) -> None:
    history.entries += [entry(node_id, 6, "c") for node_id in NODES]


def refused_but_there(history: History) -> None:
    history.entries += [entry(node_id, 6, "d") for node_id in NODES]


def changed(history: History) -> None:
    for one in history.entries:
        if one.key == "b":
            one.digest = digest_of(TEXTS["b"][:-1])


def never_sent(history: History) -> None:
    history.commands = [one for one in history.commands if one.key != "c"]


def a_node_differs(history: History) -> None:
    history.entries[history.entries.index(entry(3, 4, "c"))] = entry(3, 4)


def changed_after_it_was_read(history: History) -> None:
    history.entries[-1] = entry(2, 3, final=False)


def a_node_is_short(history: History) -> None:
    history.entries.remove(entry(3, 5, "b"))


def gone_after_it_was_read(history: History) -> None:
    history.entries.append(entry(1, 6, "", final=False))


def out_of_order(history: History) -> None:
    history.commands[1] = command("b", 5, 7)  # acknowledged before `a` was sent


def an_unknown_one_out_of_order(history: History) -> None:
    history.commands[2] = command("c", 45, 60, Result.UNKNOWN)  # sent after `b` was acknowledged


def term_goes_back(history: History) -> None:
    history.readings.append(reading(1, 100, 1, 5))


def term_goes_back_within_a_reading(history: History) -> None:
    history.readings.append(Reading(3, 100, 105, 2, False, 0, 1, 5))


def commit_goes_back(history: History) -> None:
    history.readings.append(reading(1, 100, 2, 4, leader=2))


def two_leaders_in_a_term_by_lease(history: History) -> None:
    history.readings.append(reading(3, 100, 2, 5, leads=True, leader=0))


def two_leaders_in_a_term_by_name(history: History) -> None:
    history.readings.append(reading(3, 100, 2, 5, leader=3))


def an_old_leader_after_a_new_one(history: History) -> None:
    # Node 1's term has not moved on: only the two leases at one time tell.
    history.readings[4:] = [reading(1, 56, 1, 4, leads=True)]


WRONG: list[tuple[Callable[[History], None], set[str]]] = [
    (lost, {"lost"}),
    (twice, {"twice"}),
    (unknown_twice, {"twice"}),
    (refused_but_there, {"refused but there"}),
    (changed, {"changed"}),
    (never_sent, {"never sent"}),
    (a_node_differs, {"logs differ"}),
    (changed_after_it_was_read, {"logs differ"}),
    (a_node_is_short, {"log not whole"}),
    (gone_after_it_was_read, {"log not whole"}),
    (out_of_order, {"order"}),
    (an_unknown_one_out_of_order, {"order"}),
    (term_goes_back, {"term went back"}),
    (term_goes_back_within_a_reading, {"term went back"}),
    (commit_goes_back, {"commit index went back"}),
    (two_leaders_in_a_term_by_lease, {"two leaders in a term"}),
    (two_leaders_in_a_term_by_name, {"two leaders in a term"}),
    (an_old_leader_after_a_new_one, {"two leaders at a time"}),
]


def test_a_good_history_is_good() -> None:
    assert check(good()) == []


@pytest.mark.parametrize(("damage", "rules"), WRONG, ids=[damage.__name__ for damage, _ in WRONG])
def test_a_wrong_history_is_found(damage: Callable[[History], None], rules: set[str]) -> None:
    history = good()
    damage(history)
    assert {violation.rule for violation in check(history)} == rules


@pytest.mark.parametrize("rule", RULES, ids=[rule.__name__ for rule in RULES])
def test_no_rule_is_idle(rule: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this rule one of the wrong histories passes."""
    monkeypatch.setattr("tests.soak.checker.RULES", tuple(one for one in RULES if one is not rule))
    passed = []
    for damage, _ in WRONG:
        history = good()
        damage(history)
        passed.append(check(history) == [])
    assert any(passed)


def test_calls_that_overlap_prove_nothing() -> None:
    history = good()
    # Both of these may have been answered in either order.
    history.readings[4:] = [reading(1, 54, 1, 4, leads=True)]
    history.readings.append(reading(2, 40, 1, 4, took=60))
    history.readings.append(reading(2, 90, 2, 5, took=1, leader=2))
    assert check(history) == []
    history.commands[0] = command("a", 10, 30)  # not told before `b` was sent at 25
    for one in history.entries:
        if one.index in (3, 5):
            one.key = {"a": "b", "b": "a"}[one.key]
            one.digest = DIGESTS[one.key]
    assert check(history) == []


def test_a_commit_index_counts_for_one_life_of_a_node() -> None:
    history = good()
    commit_goes_back(history)
    history.lives = [Life(1, 85, 95)]
    assert check(history) == []
    history.lives = [Life(2, 85, 95)]  # another node's
    assert [violation.rule for violation in check(history)] == ["commit index went back"]
    history.lives = [Life(1, 110, 120)]  # later
    assert [violation.rule for violation in check(history)] == ["commit index went back"]
    term_goes_back(history)
    history.lives = [Life(1, 85, 95)]
    assert [violation.rule for violation in check(history)] == ["term went back"]


def test_unknown_and_absent_is_good() -> None:
    history = good()
    history.entries = [one for one in history.entries if one.key != "c"]
    for one in history.entries:
        one.index -= one.index == 5
    assert check(history) == []


def test_a_saved_history_is_checked_again(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.soak.checker", str(tmp_path / "history.jsonl")]
    good().save(tmp_path / "history.jsonl")
    assert subprocess.run(words, cwd=REPO, check=False, capture_output=True).returncode == 0
    wrong = good()
    lost(wrong)
    wrong.save(tmp_path / "history.jsonl")
    done = subprocess.run(words, cwd=REPO, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "1 violations")
    assert done.stdout.startswith("lost: a ")


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_a_text_is_known_by_its_key_and_digest(size: int) -> None:
    text = make_text("7.1.2", size)
    assert key_of(text) == "7.1.2"
    assert size <= len(text.split("|")[1]) <= size
    assert digest_of(text) not in (digest_of(text[:-1]), digest_of(None), digest_of(""))
    assert (key_of(None), digest_of(None)) == ("", "")


def test_which_errors_are_definite() -> None:
    definite = (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.InvalidParameterValue)
    assert {result_of(kind()) for kind in definite} == {Result.ERROR}
    errors = psycopg.errors
    unknown = (errors.StatementCompletionUnknown, errors.QueryCanceled, errors.AdminShutdown)
    assert {result_of(kind()) for kind in (*unknown, psycopg.OperationalError)} == {Result.UNKNOWN}
