"""The events of the last revisions, for watches.

Events stand in two lists, keys and records; the records are the very objects of the store, so an event
costs memory of its own only when its value is not current any more ("stale"). Revisions are kept or dropped
whole, oldest first, when there are too many of them, too many events, or too many stale bytes. Every kept
revision has an event.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from pgraft.statemachine.limits import (
    EVENTS_SCANNED_MAX,
    HISTORY_EVENTS_MAX,
    HISTORY_REVISIONS_MAX,
    HISTORY_STALE_BYTES_MAX,
)
from pgraft.statemachine.record import event_of, mod_revision_of
from pgraft.statemachine.results import Compacted, Event, EventPage

EVENT_OBJECT_BYTES: Final = 80
"""What two bytes objects take beside their content, about."""
_SLACK: Final = 4096
"""So many dropped entries may stand at the head of the lists before they are cut off."""


class History:
    """Events of the revisions from `first_kept` to the newest, without gaps."""

    __slots__ = (
        "_counts",
        "_event_head",
        "_keys",
        "_records",
        "_revision_head",
        "_stale",
        "first_kept",
        "stale_bytes",
    )

    def __init__(self, first_kept: int = 1) -> None:
        self.first_kept = first_kept
        self.stale_bytes = 0
        self._keys: list[bytes] = []
        self._records: list[bytes] = []
        self._event_head = 0
        self._counts: list[int] = []
        """Events of each revision; the stale bytes of each revision."""
        self._stale: list[int] = []
        self._revision_head = 0

    def __len__(self) -> int:
        return len(self._keys) - self._event_head

    @property
    def newest(self) -> int:
        """The newest revision, `first_kept` - 1 when there is none."""
        return self.first_kept + len(self._counts) - self._revision_head - 1

    def add_revision(self) -> None:
        """A new revision begins; at least one event follows."""
        self._counts.append(0)
        self._stale.append(0)

    def add_event(self, key: bytes, record: bytes, is_stale: bool) -> None:
        """An event of the newest revision. Deletions are stale from the start."""
        self._keys.append(key)
        self._records.append(record)
        self._counts[-1] += 1
        if is_stale:
            self._stale[-1] += len(key) + len(record) + EVENT_OBJECT_BYTES
            self.stale_bytes += len(key) + len(record) + EVENT_OBJECT_BYTES

    def replaced(self, key: bytes, record: bytes) -> None:
        """This record of a key is not the current one any more."""
        number = mod_revision_of(record) - self.first_kept
        if number >= 0:
            size = len(key) + len(record) + EVENT_OBJECT_BYTES
            self._stale[self._revision_head + number] += size
            self.stale_bytes += size

    def trim(self) -> None:
        """Drop the oldest revisions until everything is within its limit."""
        while (
            len(self._counts) - self._revision_head > HISTORY_REVISIONS_MAX
            or len(self._keys) - self._event_head > HISTORY_EVENTS_MAX
            or self.stale_bytes > HISTORY_STALE_BYTES_MAX
        ):
            self._drop_oldest()

    def copy(self) -> History:
        """One with the same content, which does not change with this one."""
        other = History(self.first_kept)
        other.stale_bytes = self.stale_bytes
        other._keys = self._keys[self._event_head :]
        other._records = self._records[self._event_head :]
        other._counts = self._counts[self._revision_head :]
        other._stale = self._stale[self._revision_head :]
        return other

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and records of all events, in order."""
        return zip(self._keys[self._event_head :], self._records[self._event_head :], strict=True)

    def read(
        self, prefix: bytes, after_revision: int, max_rows: int, max_bytes: int
    ) -> EventPage | Compacted:
        """Events behind `after_revision` of keys with this prefix.

        The page ends with the revision that reaches `max_rows`, `max_bytes` of keys and values, or
        EVENTS_SCANNED_MAX; a revision is never cut, so one that is larger comes alone and whole.
        """
        if after_revision + 1 < self.first_kept:
            return Compacted(self.first_kept)
        if after_revision >= self.newest:
            return EventPage((), after_revision)
        found: list[Event] = []
        at = start = self._position_of(after_revision + 1)
        size = 0
        for revision in range(after_revision + 1, self.newest + 1):
            end = at + self._counts[self._revision_head + revision - self.first_kept]
            matches = [n for n in range(at, end) if self._keys[n].startswith(prefix)]
            size += sum(len(self._keys[n]) + len(self._records[n]) for n in matches)
            if found and (len(found) + len(matches) > max_rows or size > max_bytes):
                return EventPage(tuple(found), revision - 1)
            found += [event_of(self._keys[n], self._records[n]) for n in matches]
            at = end
            if at - start >= EVENTS_SCANNED_MAX:
                return EventPage(tuple(found), revision)
        return EventPage(tuple(found), self.newest)

    def _position_of(self, revision: int) -> int:
        """Where the events of a kept revision begin."""
        return bisect_left(self._records, revision, self._event_head, key=mod_revision_of)

    def _drop_oldest(self) -> None:
        self.first_kept += 1
        self._event_head += self._counts[self._revision_head]
        self.stale_bytes -= self._stale[self._revision_head]
        self._revision_head += 1
        if self._event_head > _SLACK and self._event_head * 2 > len(self._keys):
            del self._keys[: self._event_head], self._records[: self._event_head]
            self._event_head = 0
        if self._revision_head > _SLACK and self._revision_head * 2 > len(self._counts):
            del self._counts[: self._revision_head], self._stale[: self._revision_head]
            self._revision_head = 0
