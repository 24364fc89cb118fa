"""MemoryStorage keeps the Storage protocol's promises."""

from __future__ import annotations

import pytest

from pgraft.raft import (
    NO_LIMIT,
    ConfState,
    Entry,
    ErrCompacted,
    ErrSnapOutOfDate,
    ErrUnavailable,
    InvariantViolation,
    MemoryStorage,
    Snapshot,
    SnapshotMetadata,
)


def filled(first: int = 3, last: int = 6) -> MemoryStorage:
    storage = MemoryStorage()
    storage.apply_snapshot(Snapshot(SnapshotMetadata(ConfState((1,)), first, first)))
    storage.append([Entry(term=index, index=index) for index in range(first + 1, last + 1)])
    return storage


def test_terms_and_bounds() -> None:
    storage = filled()
    assert (storage.first_index(), storage.last_index()) == (4, 6)
    assert [storage.term(index) for index in (3, 4, 6)] == [3, 4, 6]
    with pytest.raises(ErrCompacted):
        storage.term(2)
    with pytest.raises(ErrUnavailable):
        storage.term(7)


def test_entries_come_in_order_and_within_the_limit() -> None:
    storage = filled()
    assert [e.index for e in storage.entries(4, 7, NO_LIMIT)] == [4, 5, 6]
    assert [e.index for e in storage.entries(4, 7, 0)] == [4]
    assert [e.index for e in storage.entries(4, 7, 12)] == [4, 5]
    with pytest.raises(ErrCompacted):
        storage.entries(3, 5, NO_LIMIT)
    with pytest.raises(ErrUnavailable):
        storage.entries(4, 8, NO_LIMIT)
    with pytest.raises(ErrUnavailable):
        filled(3, 3).entries(4, 4, NO_LIMIT)


@pytest.mark.parametrize(
    ("new", "result"),
    [
        ([], [4, 5, 6]),
        ([(7, 7)], [4, 5, 6, 7]),
        ([(5, 9)], [4, 9]),
        ([(4, 4), (5, 9), (6, 9)], [4, 9, 9]),
        ([(2, 2), (3, 3)], [4, 5, 6]),
        ([(3, 3), (4, 9)], [9]),
    ],
)
def test_appending_replaces_what_follows(new: list[tuple[int, int]], result: list[int]) -> None:
    storage = filled()
    storage.append([Entry(term=term, index=index) for index, term in new])
    assert [storage.term(index) for index in range(4, storage.last_index() + 1)] == result


def test_appending_leaves_no_gap() -> None:
    with pytest.raises(InvariantViolation, match="missing log entry"):
        filled().append([Entry(term=9, index=8)])


def test_snapshots_and_compaction() -> None:
    storage = filled()
    made = storage.create_snapshot(5, ConfState((1, 2)), b"data")
    assert (made.metadata.index, made.metadata.term, made.metadata.conf_state.voters) == (5, 5, (1, 2))
    assert storage.create_snapshot(6, None, b"").metadata.conf_state == ConfState((1, 2))
    with pytest.raises(ErrSnapOutOfDate):
        storage.create_snapshot(6, None, b"")
    with pytest.raises(InvariantViolation):
        storage.create_snapshot(9, None, b"")
    storage.compact(5)
    assert (storage.first_index(), storage.last_index(), storage.term(5)) == (6, 6, 5)
    with pytest.raises(ErrCompacted):
        storage.compact(5)
    with pytest.raises(InvariantViolation):
        storage.compact(9)
    with pytest.raises(ErrSnapOutOfDate):
        storage.apply_snapshot(made)
