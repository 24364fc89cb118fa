"""The log and its unstable part: every way of appending, reading and applying."""

from __future__ import annotations

import pytest

from pgraft.raft import (
    NO_LIMIT,
    ConfState,
    Entry,
    ErrCompacted,
    ErrUnavailable,
    InvariantViolation,
    MemoryStorage,
    Snapshot,
    SnapshotMetadata,
)
from pgraft.raft.log import RaftLog
from pgraft.raft.unstable import Unstable


def entries(first: int, *terms: int, data: bytes = b"") -> list[Entry]:
    return [Entry(term=term, index=index, data=data) for index, term in enumerate(terms, first)]


def shot(index: int, term: int = 1) -> Snapshot:
    return Snapshot(SnapshotMetadata(ConfState((1,)), index, term))


def stored(*terms: int) -> MemoryStorage:
    storage = MemoryStorage()
    storage.append(entries(1, *terms))
    return storage


def test_reads_span_the_stable_and_the_unstable_part() -> None:
    log = RaftLog(stored(1, 1, 2))
    log.append(entries(4, 2, 3))
    assert [log.term(index) for index in range(6)] == [0, 1, 1, 2, 2, 3]
    assert [e.index for e in log.slice(2, 6, NO_LIMIT)] == [2, 3, 4, 5]
    assert [e.index for e in log.slice(4, 6, NO_LIMIT)] == [4, 5]
    assert log.slice(3, 3, NO_LIMIT) == []
    assert log.entries(6, NO_LIMIT) == []
    assert (log.first_index(), log.last_index(), log.last_term()) == (1, 5, 3)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, [2]), (12, [2, 3]), (18, [2, 3, 4]), (NO_LIMIT, [2, 3, 4, 5])]
)
def test_a_limit_cuts_across_both_parts(size: int, expected: list[int]) -> None:
    log = RaftLog(stored(1, 1, 2))
    log.append(entries(4, 2, 3))
    assert [e.index for e in log.slice(2, 6, size)] == expected


def test_what_is_compacted_or_missing_says_so() -> None:
    storage = stored(1, 1, 2, 2)
    storage.create_snapshot(2, ConfState((1,)), b"")
    storage.compact(2)
    log = RaftLog(storage)
    assert log.term(2) == 1
    with pytest.raises(ErrCompacted):
        log.term(1)
    with pytest.raises(ErrCompacted):
        log.slice(2, 4, NO_LIMIT)
    with pytest.raises(ErrUnavailable):
        log.term(5)
    assert not log.match_term(1, 1)
    assert not log.match_term(9, 1)
    assert log.find_conflict_by_term(1, 9) == (1, 0)
    assert log.find_conflict_by_term(4, 1) == (2, 1)


def test_the_commit_index_only_grows() -> None:
    log = RaftLog(stored(1, 1))
    log.commit_to(2)
    log.commit_to(1)
    assert log.committed == 2
    with pytest.raises(InvariantViolation, match="commit 3 > last 2"):
        log.commit_to(3)
    assert not log.maybe_commit(2, 1)
    assert not RaftLog(stored(1)).maybe_commit(1, 0)


def test_nothing_is_appended_at_or_below_the_commit_index() -> None:
    log = RaftLog(stored(1, 1))
    log.commit_to(2)
    with pytest.raises(InvariantViolation, match="append at 2, committed is 2"):
        log.append(entries(2, 2))


def test_applied_stays_between_what_was_applied_and_what_is_committed() -> None:
    log = RaftLog(stored(1, 1, 1))
    log.commit_to(2)
    log.applied_to(1, 0)
    for index in (0, 3):
        with pytest.raises(InvariantViolation, match=r"not in \[1, 2\]"):
            log.applied_to(index, 0)
    with pytest.raises(InvariantViolation, match="applying 3 > committed 2"):
        log.accept_applying(3, 0, True)


def test_entries_that_are_not_stable_are_applied_only_where_that_is_allowed() -> None:
    log = RaftLog(stored(1))
    log.append(entries(2, 1))
    log.commit_to(2)
    assert [e.index for e in log.next_committed(allow_unstable=False)] == [1]
    assert [e.index for e in log.next_committed(allow_unstable=True)] == [1, 2]


def test_pages_stop_where_there_is_no_room_and_go_on_when_there_is() -> None:
    log = RaftLog(stored(1, 1, 1, 1), max_applying_size=12)
    log.commit_to(4)
    page = log.next_committed(True)
    assert [e.index for e in page] == [1, 2]
    log.accept_applying(2, log.page_size(page), True)
    assert log.next_committed(True) == []
    log.applied_to(2, log.page_size(page))
    assert [e.index for e in log.next_committed(True)] == [3, 4]
    log.applying_size = 99
    log.applying_paused = False
    with pytest.raises(InvariantViolation, match="applying 99 bytes"):
        log.next_committed(True)


def test_a_scan_goes_in_pages_and_does_not_run_in_circles() -> None:
    log = RaftLog(stored(1, 1, 1, 1, 1))
    assert [[e.index for e in page] for page in log.scan(1, 6, 12)] == [[1, 2], [3, 4], [5]]
    assert list(log.scan(3, 3, 12)) == []
    log.storage = MemoryStorage()
    log.storage.entries = lambda lo, hi, max_size: []  # type: ignore[method-assign]
    with pytest.raises(InvariantViolation, match="no entries in"):
        list(log.scan(1, 6, 12))


def test_unstable_entries_are_handed_out_once() -> None:
    unstable = Unstable(1)
    unstable.truncate_and_append(entries(1, 1, 1))
    assert len(unstable.next_entries()) == 2
    unstable.accept_in_progress()
    assert unstable.next_entries() == []
    assert not unstable.has_next_entries()
    unstable.truncate_and_append(entries(3, 1))
    assert [e.index for e in unstable.next_entries()] == [3]


def test_a_truncation_hands_out_what_changed_again() -> None:
    unstable = Unstable(1)
    unstable.truncate_and_append(entries(1, 1, 1, 1))
    unstable.accept_in_progress()
    handed_out = unstable.entries
    unstable.truncate_and_append(entries(2, 2, 2))
    assert [(e.term, e.index) for e in unstable.next_entries()] == [(2, 2), (2, 3)]
    assert [e.term for e in handed_out] == [1, 1, 1], "what was handed out is not changed"
    unstable.truncate_and_append(entries(1, 3))
    assert [(e.term, e.index) for e in unstable.next_entries()] == [(3, 1)]
    assert unstable.last_index() == 1


def test_a_truncation_may_reach_into_the_stable_part() -> None:
    unstable = Unstable(5)
    unstable.truncate_and_append(entries(3, 2))
    assert (unstable.offset, unstable.offset_in_progress, unstable.last_index()) == (3, 3, 3)


def test_unstable_refuses_gaps_and_foreign_ranges() -> None:
    unstable = Unstable(5)
    with pytest.raises(InvariantViolation, match="append at 7 behind last 4"):
        unstable.truncate_and_append(entries(7, 1))
    with pytest.raises(InvariantViolation, match="slice"):
        unstable.slice(4, 5)


@pytest.mark.parametrize(
    ("index", "term", "left"),
    [(2, 1, [3]), (3, 1, []), (2, 9, [1, 2, 3]), (0, 1, [1, 2, 3]), (4, 1, [1, 2, 3])],
)
def test_stable_to_drops_what_is_stored_under_the_same_term(index: int, term: int, left: list[int]) -> None:
    unstable = Unstable(1)
    unstable.truncate_and_append(entries(1, 1, 1, 1))
    unstable.stable_to(index, term)
    assert [e.index for e in unstable.entries] == left
    assert unstable.offset_in_progress == unstable.offset


def test_a_snapshot_is_known_by_its_term_until_it_is_stored() -> None:
    unstable = Unstable(1)
    unstable.restore(shot(5, 3))
    assert (unstable.maybe_term(5), unstable.maybe_term(4), unstable.maybe_term(6)) == (3, None, None)
    assert unstable.next_snapshot() == shot(5, 3)
    unstable.accept_in_progress()
    assert unstable.next_snapshot() is None
    unstable.stable_snapshot_to(4)
    assert unstable.snapshot is not None
    unstable.stable_snapshot_to(5)
    assert unstable.snapshot is None
    assert unstable.last_index() == 5
