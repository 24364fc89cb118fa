"""Where the entries of the log lie and which terms they have, without an object per entry.

Three small tables of machine integers, all ordered by entry index:

* points: (index, file, offset) of one record per POINT_BYTES of log. From a point on, records follow
  one another without a gap up to the next point's index; behind that, older records that a truncation
  made void may follow, and do not count. A truncation therefore always makes a point of its own.
* term runs: (first index, term), one for each time the term changed.
* conf changes: the first index of each record that holds a membership change.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

POINT_BYTES = 32 * 1024
"""Log between two points: the most that is read in vain to find one entry (records are of 64 KiB at most,
or of one entry)."""


class LogIndex:
    """The live entries are first..last; none when last == first - 1."""

    __slots__ = (
        "_next_point",
        "conf",
        "first",
        "last",
        "point_file",
        "point_index",
        "point_offset",
        "run_first",
        "run_term",
    )

    def __init__(self, first: int) -> None:
        self.reset(first)

    def reset(self, first: int) -> None:
        """Forget everything; the next entry is `first`."""
        self.first = first
        self.last = first - 1
        self.point_index = array("Q")
        self.point_file = array("Q")
        self.point_offset = array("Q")
        self.run_first = array("Q")
        self.run_term = array("Q")
        self.conf = array("Q")
        self._next_point = 0

    def add(self, file: int, offset: int, first: int, count: int, term: int, is_conf: bool) -> None:
        """Take in the record of `count` entries at `offset`. One that begins at or before `last` makes the
        entries from there on void; one that begins before `first` makes all of them void."""
        if first <= self.last:
            self.truncate(first)
        if not self.point_file or self.point_file[-1] != file or offset >= self._next_point:
            self.point_index.append(first)
            self.point_file.append(file)
            self.point_offset.append(offset)
            self._next_point = offset + POINT_BYTES
        if not self.run_term or self.run_term[-1] != term:
            self.run_first.append(first)
            self.run_term.append(term)
        if is_conf:
            self.conf.append(first)
        self.last = first + count - 1

    @property
    def next_point(self) -> int:
        """The offset in the newest point's file from which on a record gets a point."""
        return self._next_point

    def truncate(self, first_void: int) -> None:
        """Make the entries from `first_void` on void. The next record gets a point of its own."""
        if first_void <= self.first:
            self.reset(first_void)
            return
        keep = bisect_left(self.point_index, first_void)
        del self.point_index[keep:], self.point_file[keep:], self.point_offset[keep:]
        keep = bisect_left(self.run_first, first_void)
        del self.run_first[keep:], self.run_term[keep:]
        del self.conf[bisect_left(self.conf, first_void) :]
        self.last = first_void - 1
        self._next_point = 0

    def drop_before(self, first: int) -> None:
        """Forget the entries before `first` (compaction); `first` may be last + 1."""
        if first > self.last:
            self.reset(first)
            return
        point = self.point_of(first)
        del self.point_index[:point], self.point_file[:point], self.point_offset[:point]
        run = bisect_right(self.run_first, first) - 1
        del self.run_first[:run], self.run_term[:run]
        # The record that holds `first` may begin before it.
        del self.conf[: max(0, bisect_right(self.conf, first) - 1)]
        self.first = first

    def point_of(self, index: int) -> int:
        """Number of the point from which on `index` (a live one) is found."""
        return bisect_right(self.point_index, index) - 1

    def end_of_point(self, point: int) -> int:
        """The first index that is not found from this point on."""
        following = point + 1
        return self.point_index[following] if following < len(self.point_index) else self.last + 1

    def term(self, index: int) -> int:
        """The term of a live entry."""
        if index >= self.run_first[-1]:
            return self.run_term[-1]
        return self.run_term[bisect_right(self.run_first, index) - 1]

    def conf_records(self, low: int, high: int) -> list[int]:
        """First indexes of the records in which entries of [low, high) may be membership changes."""
        start = max(0, bisect_right(self.conf, low) - 1)
        return list(self.conf[start : bisect_left(self.conf, high)])
