"""Histories whose verdict is known: from Herlihy and Wing, in the manner of porcupine's tests, our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kvcheck.check import Rules, check
from tests.support.kvcheck.history import (
    ABSENT,
    Answer,
    Compare,
    Get,
    History,
    Listing,
    Op,
    Put,
    Request,
    Result,
    Row,
    Seen,
    Target,
    compare_and_set,
    delete,
    get,
    put,
)

MS = 1_000_000


def write(
    who: str, call: int, ret: int, value: str, *, lost: bool = False, revision: int | None = None
) -> Op:
    result = Result.UNKNOWN if lost else Result.OK
    return Op(ord(who), 1, call * MS, ret * MS, put("x", value), result, Answer(revision=revision))


def read(
    who: str,
    call: int,
    ret: int,
    value: str | None,
    mod: int | None = None,
    *,
    local: bool = False,
    key: str = "x",
) -> Op:
    seen = ABSENT if value is None else Seen(True, value, mod)
    return Op(ord(who), 1, call * MS, ret * MS, get(key), answer=Answer(results=(seen,)), local=local)


def cas(who: str, call: int, ret: int, expected: int, value: str, done: bool | None) -> Op:
    result = Result.UNKNOWN if done is None else Result.OK
    request = compare_and_set("x", expected, value)
    return Op(ord(who), 1, call * MS, ret * MS, request, result, Answer(done))


def removal(who: str, call: int, ret: int, there: bool) -> Op:
    return Op(ord(who), 1, call * MS, ret * MS, delete("x"), answer=Answer(results=(there,)))


GOOD = {
    # Herlihy and Wing 1990, figures 1 and 2, for a register: H1 and H3 are linearizable, H2 and H4 not.
    "H1": [write("A", 0, 10, "0"), write("B", 2, 30, "1"), read("A", 12, 20, "1"), read("C", 22, 40, "1")],
    "H3": [write("A", 0, 10, "0"), write("B", 12, 40, "1"), read("C", 14, 20, "0"), read("C", 22, 38, "1")],
    # In the manner of porcupine: a read that overlaps two writes may see either, or nothing.
    "overlapping, old": [write("A", 0, 50, "1"), write("B", 0, 50, "2"), read("C", 1, 49, None)],
    "overlapping, both": [
        write("A", 0, 50, "1"),
        write("B", 0, 50, "2"),
        read("C", 1, 9, "2"),
        read("D", 20, 40, "1"),
    ],
    "unknown put seen late": [
        write("A", 0, 10, "1", lost=True),
        read("B", 20, 30, None),
        read("B", 40, 50, "1"),
    ],
    "unknown put never seen": [
        write("A", 0, 10, "1", lost=True),
        read("B", 20, 30, None),
        read("B", 40, 50, None),
    ],
    "unknown cas behind an answered one": [
        cas("A", 0, 10, 0, "1", None),
        read("B", 20, 30, None),
        cas("C", 25, 60, 0, "2", False),
        read("B", 40, 50, "1"),
    ],
    "touching times are not an order": [
        write("A", 0, 10, "1"),
        read("B", 0, 5, None),
        read("C", 10, 20, "1"),
    ],
    "equal values": [
        write("A", 0, 9, "1"),
        write("B", 10, 19, "2"),
        write("C", 20, 29, "1"),
        read("D", 30, 40, "1"),
    ],
    "cas": [
        write("A", 0, 9, "1"),
        read("A", 10, 19, "1", 5),
        cas("A", 20, 29, 5, "2", True),
        read("B", 30, 40, "2"),
    ],
    "delete": [
        write("A", 0, 9, "1"),
        removal("B", 10, 19, True),
        removal("B", 20, 29, False),
        read("C", 30, 40, None),
    ],
}

BAD = {
    "H2": [write("A", 0, 10, "0"), write("B", 12, 20, "1"), read("A", 22, 30, "0")],
    "H4": [write("A", 0, 10, "0"), write("B", 12, 50, "1"), read("C", 14, 20, "1"), read("D", 22, 40, "0")],
    "stale read": [
        write("A", 0, 9, "1", revision=2),
        write("B", 10, 19, "2", revision=3),
        read("C", 20, 30, "1", 2),
    ],
    "two readers disagree on the order": [
        write("A", 0, 50, "1"),
        write("B", 0, 50, "2"),
        *(read("C", 60, 69, "1"), read("D", 70, 79, "2")),
    ],
    "value from nowhere": [write("A", 0, 9, "1"), read("B", 10, 20, "2")],
    "read before it was asked": [read("B", 0, 5, "1"), write("A", 10, 20, "1")],
    "unknown put seen, then gone": [
        write("A", 0, 9, "1"),
        write("B", 10, 19, "2", lost=True),
        *(read("C", 20, 29, "2"), read("C", 30, 39, "1")),
    ],
    "two cas from the same revision": [
        write("A", 0, 9, "1"),
        read("A", 10, 19, "1", 5),
        *(cas("A", 20, 40, 5, "2", True), cas("B", 20, 40, 5, "3", True)),
    ],
    "two cas on an absent key": [cas("A", 0, 9, 0, "1", True), cas("B", 0, 9, 0, "2", True)],
    "cas refused for nothing": [cas("A", 0, 9, 0, "1", False), read("B", 10, 19, None)],
    "deleted twice": [write("A", 0, 9, "1"), removal("B", 10, 19, True), removal("C", 20, 29, True)],
    "put applied twice": [
        write("A", 0, 9, "1", revision=2),
        write("B", 10, 19, "2", revision=3),
        read("C", 20, 30, "1", 4),
    ],
    "same value, another revision": [
        write("A", 0, 9, "1"),
        read("B", 10, 19, "1", 4),
        read("B", 20, 29, "1", 5),
    ],
    "revision twice": [write("A", 0, 9, "1", revision=4), write("B", 0, 9, "2", revision=4)],
    "revisions against time": [write("A", 0, 9, "1", revision=5), write("B", 10, 19, "2", revision=4)],
}


def history_of(ops: list[Op]) -> History:
    history = History()
    history.ops = list(ops)
    return history


@pytest.mark.parametrize("name", GOOD)
def test_linearizable(name: str) -> None:
    result = check(history_of(GOOD[name]))
    assert result.ok, result


@pytest.mark.parametrize("name", BAD)
def test_not_linearizable(name: str) -> None:
    assert check(history_of(BAD[name])).violations


def test_revisions_tie_keys_together() -> None:
    """Each key alone is fine: x was written behind y, but y's writer began when x had been seen."""
    late = Op(1, 1, 30 * MS, 40 * MS, put("y", "1"), answer=Answer(revision=2))
    ops = [write("A", 0, 50, "1", revision=3), read("B", 10, 20, "1", 3), late]
    assert [one.rule for one in check(history_of(ops)).violations] == ["revisions against time"]


def told(who: str, call: int, ret: int, revision: int) -> Op:
    """A read of a key that nobody writes, with the store's revision."""
    answer = Answer(results=(ABSENT,), revision=revision)
    return Op(ord(who), 1, call * MS, ret * MS, get("z"), answer=answer)


def test_store_revisions_are_used() -> None:
    """They bound writes of other keys from both sides, and do not fall."""
    ahead = [told("A", 0, 9, 3), write("B", 20, 29, "1", revision=3)]
    assert [one.rule for one in check(history_of(ahead)).violations] == ["revisions against time"]
    behind = [write("B", 0, 9, "1", revision=3), told("A", 20, 29, 2)]
    assert "revisions against time" in [one.rule for one in check(history_of(behind)).violations]
    fell = [told("A", 0, 9, 5), told("A", 10, 19, 4)]
    assert "revision went back" in [one.rule for one in check(history_of(fell)).violations]
    apart = [told("A", 0, 9, 4), Op(1, 1, 10 * MS, 19 * MS, get("y"), answer=Answer(None, (ABSENT,), 3))]
    assert [one.rule for one in check(history_of(apart)).violations] == ["revision went back"]
    overlapping = [told("A", 0, 25, 3), write("B", 10, 29, "1", revision=3), told("C", 20, 40, 2)]
    assert check(history_of(overlapping)).ok


def test_transaction_joins_keys() -> None:
    """One request wrote both keys: who has seen one sees the other."""
    both = Op(1, 1, 0, 50 * MS, Request((Put("x", "1"), Put("y", "1"))))
    good = [both, read("B", 10, 19, "1"), read("B", 20, 29, "1", key="y")]
    assert check(history_of(good)).ok
    bad = [both, read("B", 10, 19, "1"), read("B", 20, 29, None, key="y")]
    assert "keys x, y" in str(check(history_of(bad)))


def test_transaction_answers_are_checked() -> None:
    request = Request((Put("x", "2"), Get("x")), (Compare("x", Target.VALUE, "=", "1"),), (Get("x"),))

    def run(answer: Answer) -> bool:
        return check(
            history_of([write("A", 0, 9, "1"), Op(2, 1, 10 * MS, 20 * MS, request, answer=answer)])
        ).ok

    assert run(Answer(True, (None, Seen(True, "2"))))
    assert not run(Answer(True, (None, Seen(True, "1"))))
    assert not run(Answer(False, (Seen(True, "1"),)))


def test_listing_is_one_moment() -> None:
    """x of before, y of after a write to x that came before y's."""
    y = Op(1, 1, 20 * MS, 29 * MS, put("y", "1"), answer=Answer(revision=4))
    history = history_of([write("A", 0, 9, "1", revision=2), write("A", 10, 19, "2", revision=3), y])
    rows = (Row("x", Seen(True, "1", 2)), Row("y", Seen(True, "1", 4)))
    history.add(Listing(2, 1, 0, 60 * MS, "", rows, local=True))
    assert [one.rule for one in check(history).violations] == ["not one moment"]


def test_local_reads_may_be_old_but_not_go_back() -> None:
    writes = [write("A", 0, 9, "1", revision=2), write("A", 10, 19, "2", revision=3)]
    old = [read("B", 30, 39, "2", local=True), read("B", 40, 49, "1", local=True)]
    assert check(history_of(writes + old)).ok
    result = check(history_of(writes + old), Rules(monotonic_local=True))
    assert [one.rule for one in result.violations] == ["local read went back"]
    never = [read("B", 30, 39, "3", local=True)]
    assert [one.rule for one in check(history_of(writes + never)).violations] == ["local read of no state"]
    early = [write("A", 50, 60, "4", revision=4), read("B", 30, 39, "4", local=True)]
    assert check(history_of(writes + early)).violations


def test_bound_is_told() -> None:
    """Many overlapping writes without revisions, and reads that fit no order: given up, not passed."""
    ops = [write("A", 0, 900, str(number)) for number in range(14)]
    ops += [read("B", 1000, 1009, "1"), read("B", 1010, 1019, "2")]
    result = check(history_of(ops), Rules(visited_max=100))
    assert not result.ok
    assert not result.violations
    assert "not decided: keys x" in str(result)


def test_violation_reads_well() -> None:
    text = str(check(history_of([*BAD["H2"], read("D", 40, 50, "1")])))
    assert "key x: no order of these operations explains the answers" in text
    assert "All is well until 30.000 ms" in text
    assert "x is '1' at revision" in text
    assert "!! |                                  [============]| client 65, node 1: get x -> '0'" in text
    assert "client 68" not in text


def test_history_comes_back_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history_of(GOOD["cas"]).save(path)
    assert History.load(path).ops == GOOD["cas"]
