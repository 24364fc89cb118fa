"""The log as the core sees it: what the storage has, followed by what is still unstable.

Invariant: applied <= applying <= committed <= last_index.
"""

from __future__ import annotations

from collections.abc import Iterator

from pgraft.raft.errors import ErrCompacted, ErrUnavailable, InvariantViolation
from pgraft.raft.sizes import NO_LIMIT, entries_size, limit_size
from pgraft.raft.storage import Storage
from pgraft.raft.types import Entry, Snapshot
from pgraft.raft.unstable import Unstable


class RaftLog:
    """Entries with their positions: committed, applying (handed out to be applied) and applied.

    `pipelined`: several pages may be out to be applied at once, so that their sizes have to be summed up.
    """

    __slots__ = (
        "applied",
        "applying",
        "applying_paused",
        "applying_size",
        "committed",
        "max_applying_size",
        "pipelined",
        "storage",
        "unstable",
    )

    def __init__(
        self, storage: Storage, max_applying_size: int = NO_LIMIT, *, pipelined: bool = True
    ) -> None:
        first, last = storage.first_index(), storage.last_index()
        self.storage = storage
        self.unstable = Unstable(last + 1)
        self.committed = first - 1
        self.applying = first - 1
        self.applied = first - 1
        self.max_applying_size = max_applying_size
        self.pipelined = pipelined
        self.applying_size = 0
        self.applying_paused = False

    def first_index(self) -> int:
        """Index of the first entry that can be read."""
        snapshot = self.unstable.snapshot
        return snapshot.metadata.index + 1 if snapshot is not None else self.storage.first_index()

    def last_index(self) -> int:
        """Index of the last entry, or of the snapshot when there is none."""
        unstable = self.unstable
        return unstable.offset + len(unstable.entries) - 1

    def last_term(self) -> int:
        """Term of the last entry."""
        return self.term(self.last_index())

    def term(self, index: int) -> int:
        """The term of entry `index`. Raises ErrCompacted or ErrUnavailable; that of the last compacted
        entry is still known."""
        term = self.unstable.maybe_term(index)
        if term is not None:
            return term
        if index > self.last_index():
            raise ErrUnavailable(f"entry {index}, last is {self.last_index()}")
        if index + 1 < self.first_index():
            raise ErrCompacted(f"entry {index}, first is {self.first_index()}")
        return self.storage.term(index)

    def match_term(self, index: int, term: int) -> bool:
        """Whether the log has entry `index` with this term."""
        try:
            return self.term(index) == term
        except (ErrCompacted, ErrUnavailable):
            return False

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Whether a log that ends with this entry has all that ours may have committed (section 5.4.1)."""
        last_term = self.last_term()
        return term > last_term or (term == last_term and index >= self.last_index())

    # Appending

    def append(self, entries: list[Entry]) -> None:
        """Append `entries` (at least one) in place of any that have their indexes."""
        if entries[0].index <= self.committed:
            raise InvariantViolation(f"append at {entries[0].index}, committed is {self.committed}")
        self.unstable.truncate_and_append(entries)

    def maybe_append(self, index: int, term: int, entries: list[Entry], committed: int) -> int | None:
        """Append a leader's entries that follow (index, term); None when the log does not match there.

        Returns the last index that is now known to equal the leader's log.
        """
        if not self.match_term(index, term):
            return None
        last_new = index + len(entries)
        conflict = self.find_conflict(entries)
        if conflict:
            if conflict <= self.committed:
                raise InvariantViolation(
                    f"entry {conflict} conflicts with a committed one, committed is {self.committed}"
                )
            skip = conflict - index - 1
            self.append(entries[skip:] if skip else entries)
        self.commit_to(min(committed, last_new))
        return last_new

    def find_conflict(self, entries: list[Entry]) -> int:
        """Index of the first of `entries` that the log does not have as it is, 0 when it has all."""
        if entries and entries[0].index == self.last_index() + 1:
            return entries[0].index
        for entry in entries:
            if not self.match_term(entry.index, entry.term):
                return entry.index
        return 0

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """The largest (index, term) up to `index` whose term is at most `term`.

        Where two logs differ, no entry behind that one can be in both: whoever probes may skip them, so
        that there is at most one probe for each term. (index, 0) where the term is not known any more.
        """
        while index > 0:
            try:
                own = self.term(index)
            except (ErrCompacted, ErrUnavailable):
                return index, 0
            if own <= term:
                return index, own
            index -= 1
        return 0, 0

    def restore(self, snapshot: Snapshot) -> None:
        """Begin anew behind `snapshot`."""
        self.unstable.restore(snapshot)
        self.committed = snapshot.metadata.index

    # Committing

    def commit_to(self, index: int) -> None:
        """Raise the commit index; it never goes back."""
        if index <= self.committed:
            return
        if index > self.last_index():
            raise InvariantViolation(
                f"commit {index} > last {self.last_index()}: the log was damaged, cut or lost"
            )
        self.committed = index

    def maybe_commit(self, index: int, term: int) -> bool:
        """Commit up to `index` when it is new and its entry has the current `term` (section 5.4.2)."""
        if term == 0 or index <= self.committed or not self.match_term(index, term):
            return False
        self.commit_to(index)
        return True

    # Applying

    def max_appliable_index(self, allow_unstable: bool) -> int:
        """How far entries may be handed out to be applied."""
        return self.committed if allow_unstable else min(self.committed, self.unstable.offset - 1)

    def has_next_committed(self, allow_unstable: bool) -> bool:
        """Whether next_committed() has any, without building the list."""
        if self.applying_paused or self.unstable.snapshot is not None:
            return False
        return self.applying < self.max_appliable_index(allow_unstable)

    def next_committed(self, allow_unstable: bool) -> list[Entry]:
        """The next page of committed entries to apply."""
        if not self.has_next_committed(allow_unstable):
            return []
        room = self.max_applying_size - self.applying_size
        if room <= 0:
            raise InvariantViolation(f"applying {self.applying_size} bytes, limit {self.max_applying_size}")
        return self.slice(self.applying + 1, self.max_appliable_index(allow_unstable) + 1, room)

    def accept_applying(self, index: int, size: int, allow_unstable: bool) -> None:
        """Entries up to `index` have been handed out, `size` bytes of them."""
        if index > self.committed:
            raise InvariantViolation(f"applying {index} > committed {self.committed}")
        self.applying = index
        self.applying_size += size
        # A page that was cut by the limit leaves no room either: even the next entry did not fit.
        self.applying_paused = (
            self.applying_size >= self.max_applying_size or index < self.max_appliable_index(allow_unstable)
        )

    def applied_to(self, index: int, size: int) -> None:
        """Entries up to `index` have been applied, `size` bytes of them."""
        if not self.applied <= index <= self.committed:
            raise InvariantViolation(f"applied {index} not in [{self.applied}, {self.committed}]")
        self.applied = index
        self.applying = max(self.applying, index)
        self.applying_size = max(0, self.applying_size - size)
        self.applying_paused = self.applying_size >= self.max_applying_size

    def page_size(self, entries: list[Entry]) -> int:
        """Bytes that `entries` take of max_applying_size; worked out only where it makes a difference."""
        return entries_size(entries) if self.pipelined and self.max_applying_size != NO_LIMIT else 0

    # Reading

    def entries(self, lo: int, max_size: int) -> list[Entry]:
        """Entries from `lo` to the end, as many as fit `max_size` bytes, at least one. May raise
        ErrCompacted."""
        last = self.last_index()
        return self.slice(lo, last + 1, max_size) if lo <= last else []

    def slice(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        """Entries [lo, hi), as many as fit `max_size` bytes, at least one. May raise ErrCompacted."""
        if lo >= hi:
            return []
        unstable = self.unstable
        if lo >= unstable.offset:
            return limit_size(unstable.slice(lo, hi), max_size)
        if lo < self.first_index():
            raise ErrCompacted(f"entry {lo}, first is {self.first_index()}")
        cut = min(hi, unstable.offset)
        entries = self.storage.entries(lo, cut, max_size)
        if hi <= unstable.offset or len(entries) < cut - lo:
            return entries
        # The storage's part may already fill the limit: limit_size then drops the rest again.
        return limit_size(entries + unstable.slice(unstable.offset, hi), max_size)

    def scan(self, lo: int, hi: int, page_size: int) -> Iterator[list[Entry]]:
        """Pages of at most `page_size` bytes (at least one entry) over [lo, hi)."""
        while lo < hi:
            page = self.slice(lo, hi, page_size)
            if not page:
                raise InvariantViolation(f"no entries in [{lo}, {hi})")
            yield page
            lo += len(page)

    def snapshot(self) -> Snapshot:
        """The newest snapshot: one that is not written yet, or the storage's."""
        return self.unstable.snapshot or self.storage.snapshot()
