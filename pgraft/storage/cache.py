"""The newest entries, in memory: what followers and the state machine ask for next."""

from __future__ import annotations

from pgraft.raft.types import Entry

CACHE_BYTES_MAX = 4 * 1024 * 1024
"""Memory that the cached entries may take, their objects included."""
ENTRY_OBJECT_BYTES = 128
"""What one Entry takes beside its data: the struct, the bytes object's head, its integers."""
EVICT_PART = 16
"""When full, a sixteenth goes at once, so that the list is seldom shifted and no append waits long."""


class EntryCache:
    """A gapless run of entries, first..first+len-1; the newest CACHE_BYTES_MAX of them."""

    __slots__ = ("_bytes", "_bytes_max", "entries", "first")

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self.entries: list[Entry] = []
        self.first = 0

    def clear(self) -> None:
        """Forget everything."""
        self.entries = []
        self.first = 0
        self._bytes = 0

    def extend(self, entries: list[Entry]) -> None:
        """Take entries that follow the last one, or that replace it and all behind it."""
        start = entries[0].index
        if not self.entries:
            self.first = start
        elif start != self.first + len(self.entries):
            self._truncate(start)
        self.entries.extend(entries)
        self._bytes += sum([len(entry.data) for entry in entries]) + len(entries) * ENTRY_OBJECT_BYTES
        if self._bytes > self._bytes_max:
            self._evict()

    def drop_before(self, first: int) -> None:
        """Forget the entries before `first`."""
        count = first - self.first
        if count > 0:
            self._remove(0, min(count, len(self.entries)))
            self.first = first

    def _truncate(self, start: int) -> None:
        if start <= self.first:
            self.clear()
            self.first = start
        else:
            self._remove(start - self.first, len(self.entries))

    def _evict(self) -> None:
        excess = self._bytes - self._bytes_max + self._bytes_max // EVICT_PART
        count = 0
        for entry in self.entries:
            if excess <= 0:
                break
            excess -= len(entry.data) + ENTRY_OBJECT_BYTES
            count += 1
        self._remove(0, count)
        self.first += count

    def _remove(self, start: int, stop: int) -> None:
        gone = self.entries[start:stop]
        self._bytes -= sum([len(entry.data) for entry in gone]) + len(gone) * ENTRY_OBJECT_BYTES
        del self.entries[start:stop]
