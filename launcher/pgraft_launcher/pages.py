"""The segment's first pages, mapped without the rest and without multiprocessing's weight.

The supervisor is the writer of the header page; of the others it reads whether the part works.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from pgraft.shm import doorbell, layout, place
from pgraft.shm.place import SegmentError
from pgraft.shm.words import WordPage, now_ns

_PAGES_BYTES = layout.STATUS_OFFSET


class Pages:
    """HEADER, WORKER and NETWORK of one node's segment. Raises SegmentError when it is not to be believed."""

    def __init__(self, name: str, *, may_be_gone: bool = False) -> None:
        self.name = name
        self._map, self._is_real = _map(name, may_be_gone)
        words = memoryview(self._map).cast("Q")
        page_words = layout.PAGE_BYTES // layout.WORD_BYTES
        self.header = WordPage(words[:page_words], layout.HEADER_WORDS)
        self.worker = WordPage(words[page_words : 2 * page_words], layout.WORKER_WORDS)
        self.network = WordPage(words[2 * page_words :], layout.NETWORK_WORDS)

    def worker_error(self) -> str:
        """What the worker says is wrong."""
        offset, room = layout.WORKER_TEXTS["error"]
        at = layout.WORKER_PAGE + offset
        length = min(int.from_bytes(self._map[at : at + 8], "little"), room)
        return self._map[at + 8 : at + 8 + length].decode("utf-8", "replace")

    def has_lease(self) -> bool:
        """Whether this node leads: what pgraft_is_leader() says."""
        return bool(self.worker["lease_end_ns"] > now_ns())

    def ask_to_yield(self, yields: layout.Yields, run_dir: str) -> None:
        """Tell the worker, and wake it, whether this node had better not lead."""
        self.header["yields"] = yields
        try:
            bell = doorbell.open_bell(Path(run_dir, doorbell.WORKER_BELL))
        except OSError:
            return  # a worker that is there looks within a quarter of an election timeout
        doorbell.ring_fd(bell)
        os.close(bell)

    def is_linked(self) -> bool:
        """Whether the segment still has its name: another program may have cleaned /dev/shm."""
        return os.path.exists(place.SHM_DIR / self.name)

    def unlink(self) -> None:
        """Remove the name; whoever has it mapped keeps the memory."""
        if self._is_real:
            place.unlink(self.name)


def _map(name: str, may_be_gone: bool) -> tuple[mmap.mmap, bool]:
    """The pages, and whether they are those of a segment."""
    try:
        return place.map_segment(name, _PAGES_BYTES, writable=True), True
    except SegmentError:
        if not may_be_gone:
            raise
    # To stop a node whose segment was taken away, words that nobody reads will do.
    return mmap.mmap(-1, _PAGES_BYTES), False
