"""The segment's first pages, mapped without the rest and without multiprocessing's weight.

The supervisor is the writer of the header page; of the others it reads whether the part works.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from pgraft.postgres import process
from pgraft.postgres.process import ProcessRef
from pgraft.shm import doorbell, layout
from pgraft.shm.words import WordPage, now_ns
from pgraft_launcher.policy import Part

SHM_DIR = "/dev/shm"
_PAGES_BYTES = layout.STATUS_OFFSET


class Pages:
    """HEADER, WORKER and NETWORK of one node's segment."""

    def __init__(self, name: str, *, may_be_gone: bool = False) -> None:
        self.name = name
        self._map = _map(name, may_be_gone)
        words = memoryview(self._map).cast("Q")
        page_words = layout.PAGE_BYTES // layout.WORD_BYTES
        self.header = WordPage(words[:page_words], layout.HEADER_WORDS)
        self.worker = WordPage(words[page_words : 2 * page_words], layout.WORKER_WORDS)
        self.network = WordPage(words[2 * page_words :], layout.NETWORK_WORDS)

    def living(self) -> dict[Part, ProcessRef]:
        """The processes that the header names and that live."""
        refs = {part: self._living(part.value) for part in Part}
        return {part: ref for part, ref in refs.items() if ref is not None}

    def living_supervisor(self) -> ProcessRef | None:
        """The supervisor that the header names, if it lives."""
        return self._living("supervisor")

    def _living(self, name: str) -> ProcessRef | None:
        if self.header["magic"] != layout.MAGIC or self.header["layout_version"] != layout.LAYOUT_VERSION:
            return None
        ref = ProcessRef(self.header[f"{name}_pid"], self.header[f"{name}_start"])
        return ref if process.is_alive(ref) else None

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
        return os.path.exists(os.path.join(SHM_DIR, self.name))

    def unlink(self) -> None:
        """Remove the name; whoever has it mapped keeps the memory."""
        try:
            os.unlink(os.path.join(SHM_DIR, self.name))
        except FileNotFoundError:
            return


def _map(name: str, may_be_gone: bool) -> mmap.mmap:
    try:
        descriptor = os.open(os.path.join(SHM_DIR, name), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        if not may_be_gone:
            raise
        # To stop a node whose segment was taken away, words that nobody reads will do.
        return mmap.mmap(-1, _PAGES_BYTES)
    try:
        return mmap.mmap(descriptor, _PAGES_BYTES)
    finally:
        os.close(descriptor)
