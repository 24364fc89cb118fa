"""The part of the log that is not yet known to be in stable storage.

entries[i] has index offset + i. Those below `offset_in_progress` have been handed out to be written,
and so has the snapshot when `snapshot_in_progress`. A list that was handed out is never changed.
"""

from __future__ import annotations

from pgraft.raft.errors import InvariantViolation
from pgraft.raft.types import Entry, Snapshot


class Unstable:
    """Entries, and perhaps a snapshot before them, that the storage does not have yet."""

    __slots__ = ("entries", "offset", "offset_in_progress", "snapshot", "snapshot_in_progress")

    def __init__(self, offset: int) -> None:
        self.snapshot: Snapshot | None = None
        self.snapshot_in_progress = False
        self.entries: list[Entry] = []
        self.offset = offset
        self.offset_in_progress = offset

    def last_index(self) -> int:
        """Index of the last entry of the whole log: `offset` always lies one behind the stable part."""
        return self.offset + len(self.entries) - 1

    def maybe_term(self, index: int) -> int | None:
        """The term at `index`, None when it is not in here."""
        position = index - self.offset
        if position < 0:
            snapshot = self.snapshot
            if snapshot is not None and snapshot.metadata.index == index:
                return snapshot.metadata.term
            return None
        return self.entries[position].term if position < len(self.entries) else None

    def next_entries(self) -> list[Entry]:
        """Entries to be written next: not handed out before."""
        return self.entries[self.offset_in_progress - self.offset :]

    def has_next_entries(self) -> bool:
        """Whether next_entries() is not empty."""
        return self.offset_in_progress - self.offset < len(self.entries)

    def next_snapshot(self) -> Snapshot | None:
        """The snapshot to be written next, if it was not handed out before."""
        return None if self.snapshot_in_progress else self.snapshot

    def accept_in_progress(self) -> None:
        """What next_entries() and next_snapshot() returned is being written."""
        self.offset_in_progress = self.offset + len(self.entries)
        self.snapshot_in_progress = self.snapshot is not None

    def stable_to(self, index: int, term: int) -> None:
        """The storage has everything up to index, where it has `term`.

        Ignored when the log has another term there by now: the acknowledgement is of an append that was
        overwritten meanwhile.
        """
        position = index - self.offset
        if not 0 <= position < len(self.entries) or self.entries[position].term != term:
            return
        self.entries = self.entries[position + 1 :]
        self.offset = index + 1
        self.offset_in_progress = max(self.offset_in_progress, self.offset)

    def stable_snapshot_to(self, index: int) -> None:
        """The storage has the snapshot at `index`."""
        if self.snapshot is not None and self.snapshot.metadata.index == index:
            self.snapshot = None
            self.snapshot_in_progress = False

    def restore(self, snapshot: Snapshot) -> None:
        """Begin anew behind `snapshot`."""
        self.offset = snapshot.metadata.index + 1
        self.offset_in_progress = self.offset
        self.entries = []
        self.snapshot = snapshot
        self.snapshot_in_progress = False

    def truncate_and_append(self, entries: list[Entry]) -> None:
        """Append `entries`, in place of any that have their indexes."""
        first = entries[0].index
        position = first - self.offset
        if position == len(self.entries):
            self.entries = self.entries + entries if self.entries else entries[:]
        elif position <= 0:
            # Everything is replaced, and perhaps part of what is stable.
            self.entries = entries[:]
            self.offset = first
            self.offset_in_progress = first
        elif position < len(self.entries):
            self.entries = self.entries[:position] + entries
            self.offset_in_progress = min(self.offset_in_progress, first)
        else:
            raise InvariantViolation(f"append at {first} behind last {self.last_index()}")

    def slice(self, lo: int, hi: int) -> list[Entry]:
        """Entries [lo, hi), which must all be in here."""
        if not self.offset <= lo <= hi <= self.offset + len(self.entries):
            raise InvariantViolation(
                f"slice [{lo}, {hi}) outside of [{self.offset}, {self.offset + len(self.entries)})"
            )
        return self.entries[lo - self.offset : hi - self.offset]
