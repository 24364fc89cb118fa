"""What the core asks of a storage, and one in memory for tests and simulation."""

from __future__ import annotations

from typing import Protocol

from pgraft.raft.errors import ErrCompacted, ErrSnapOutOfDate, ErrUnavailable, invariant
from pgraft.raft.sizes import limit_size
from pgraft.raft.types import ConfState, Entry, HardState, Snapshot, SnapshotMetadata


class Storage(Protocol):
    """The stable part of the log. The application writes to it; the core only reads.

    Errors: ErrCompacted for what lies at or before the snapshot, ErrUnavailable for what is not there;
    any other exception passes through the core, and the node must stop taking part.
    """

    def initial_state(self) -> tuple[HardState, ConfState]:
        """The hard state and the configuration as of the last snapshot or applied change."""
        ...

    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        """Entries [lo, hi), at least one, as many as fit `max_size` bytes."""
        ...

    def term(self, index: int) -> int:
        """The term of an entry in [first_index - 1, last_index]."""
        ...

    def first_index(self) -> int:
        """Index of the first entry that is kept; one behind the snapshot when there is none."""
        ...

    def last_index(self) -> int:
        """Index of the last entry; that of the snapshot when there is none."""
        ...

    def snapshot(self) -> Snapshot:
        """The most recent snapshot. May raise ErrSnapshotTemporarilyUnavailable."""
        ...


class MemoryStorage:
    """A Storage in memory. Entry 0 of the list is a stand-in for the snapshot's last entry."""

    def __init__(self) -> None:
        self._hard_state = HardState()
        self._snapshot = Snapshot()
        self._entries: list[Entry] = [Entry()]

    def initial_state(self) -> tuple[HardState, ConfState]:
        """See Storage."""
        return self._hard_state, self._snapshot.metadata.conf_state

    def set_hard_state(self, hard_state: HardState) -> None:
        """Store term, vote and commit."""
        self._hard_state = hard_state

    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        """See Storage."""
        offset = self._entries[0].index
        if lo <= offset:
            raise ErrCompacted(f"entry {lo}, first is {offset + 1}")
        if hi > offset + len(self._entries) or len(self._entries) == 1:
            raise ErrUnavailable(f"entries [{lo}, {hi}), last is {self.last_index()}")
        return limit_size(self._entries[lo - offset : hi - offset], max_size)

    def term(self, index: int) -> int:
        """See Storage."""
        position = index - self._entries[0].index
        if position < 0:
            raise ErrCompacted(f"entry {index}, first is {self.first_index()}")
        if position >= len(self._entries):
            raise ErrUnavailable(f"entry {index}, last is {self.last_index()}")
        return self._entries[position].term

    def first_index(self) -> int:
        """See Storage."""
        return self._entries[0].index + 1

    def last_index(self) -> int:
        """See Storage."""
        return self._entries[0].index + len(self._entries) - 1

    def snapshot(self) -> Snapshot:
        """See Storage."""
        return self._snapshot

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        """Replace everything by `snapshot`. Raises ErrSnapOutOfDate when it is no newer."""
        if self._snapshot.metadata.index >= snapshot.metadata.index:
            raise ErrSnapOutOfDate(f"{snapshot.metadata.index}, have {self._snapshot.metadata.index}")
        self._snapshot = snapshot
        self._entries = [Entry(term=snapshot.metadata.term, index=snapshot.metadata.index)]

    def create_snapshot(self, index: int, conf_state: ConfState | None, data: bytes) -> Snapshot:
        """Make the snapshot at `index`, which must be in the log."""
        if index <= self._snapshot.metadata.index:
            raise ErrSnapOutOfDate(f"{index}, have {self._snapshot.metadata.index}")
        invariant(index <= self.last_index(), f"snapshot {index} beyond last {self.last_index()}")
        metadata = SnapshotMetadata(
            conf_state=conf_state if conf_state is not None else self._snapshot.metadata.conf_state,
            index=index,
            term=self.term(index),
        )
        self._snapshot = Snapshot(metadata=metadata, data=data)
        return self._snapshot

    def compact(self, index: int) -> None:
        """Drop the entries up to and including `index`."""
        offset = self._entries[0].index
        if index <= offset:
            raise ErrCompacted(f"entry {index}, first is {offset + 1}")
        invariant(index <= self.last_index(), f"compact {index} beyond last {self.last_index()}")
        stand_in = Entry(term=self.term(index), index=index)
        self._entries = [stand_in, *self._entries[index - offset + 1 :]]

    def append(self, entries: list[Entry]) -> None:
        """Append; entries at or behind the first new index are replaced, compacted ones skipped."""
        if not entries:
            return
        offset = self._entries[0].index
        first = entries[0].index
        if first + len(entries) <= offset + 1:
            return
        if first <= offset:
            entries = entries[offset + 1 - first :]
            first = offset + 1
        position = first - offset
        invariant(
            position <= len(self._entries),
            f"missing log entry [last: {self.last_index()}, append at: {first}]",
        )
        del self._entries[position:]
        self._entries += entries
