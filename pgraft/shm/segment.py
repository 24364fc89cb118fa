"""Creating and attaching the segment: the only module that makes `SharedMemory` objects (place.py opens).

On no version of Python does anything stay registered with the resource tracker, which would unlink
the segment when any registered process dies, and which is a process of its own.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pgraft.shm import layout
from pgraft.shm.doorbell import NETWORK_BELL, WORKER_BELL
from pgraft.shm.layout import PAGE_BYTES, SLOT_BACKEND_WORDS, SLOT_WORKER_WORDS, WorkerState, align
from pgraft.shm.place import (
    SHM_DIR,
    SegmentError,
    SegmentExists,
    is_current,
    map_segment,
    open_segment,
    place_of,
    unlink,
)
from pgraft.shm.rings import RingReader, RingWriter, WordRef
from pgraft.shm.words import WordPage, now_ns

if TYPE_CHECKING:
    from multiprocessing.shared_memory import SharedMemory

_U64_MAX = 2**64 - 1
_FUTURE_BEAT_NS = 1_000_000_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Segment:
    """A mapped segment. `header`, `worker` and `network` are pages of named words."""

    def __init__(self, name: str, buffer: memoryview, owner: SharedMemory | mmap.mmap) -> None:
        self.name = name
        self._owner = owner
        self._views: list[memoryview] = [buffer]
        self._buffer = buffer
        self.size = len(buffer)
        words = buffer[: self.size // 8 * 8].cast("B").cast("Q")
        self._views.append(words)
        self._words = words
        self.header = WordPage(self.words_at(0, PAGE_BYTES), layout.HEADER_WORDS)
        self.worker = WordPage(self.words_at(layout.WORKER_PAGE, PAGE_BYTES), layout.WORKER_WORDS)
        self.network = WordPage(self.words_at(layout.NETWORK_PAGE, PAGE_BYTES), layout.NETWORK_WORDS)

    def words_at(self, offset: int, size: int) -> memoryview:
        """Words [offset, offset + size) as a memoryview of unsigned 8-byte integers."""
        view = self._words[offset // 8 : (offset + size) // 8]
        self._views.append(view)
        return view

    def bytes_at(self, offset: int, size: int) -> memoryview:
        """Bytes [offset, offset + size). Raises SegmentError when they are not inside the segment."""
        if not 0 <= offset <= offset + size <= self.size:
            raise SegmentError(f"segment {self.name}: {size} bytes at {offset} lie outside of {self.size}")
        view = self._buffer[offset : offset + size]
        self._views.append(view)
        return view

    def text(self, name: str) -> str:
        """A text of the header page (layout.HEADER_TEXTS)."""
        return self._read_text(0, *layout.HEADER_TEXTS[name])

    def set_text(self, name: str, value: str) -> None:
        """Store a text of the header page, cut to its room."""
        self._write_text(0, *layout.HEADER_TEXTS[name], value)

    def worker_text(self, name: str) -> str:
        """A text of the worker page (layout.WORKER_TEXTS)."""
        return self._read_text(layout.WORKER_PAGE, *layout.WORKER_TEXTS[name])

    def set_worker_text(self, name: str, value: str) -> None:
        """Store a text of the worker page, cut to its room."""
        self._write_text(layout.WORKER_PAGE, *layout.WORKER_TEXTS[name], value)

    def _read_text(self, page: int, offset: int, room: int) -> str:
        at = page + offset
        length = min(self._words[at // 8], room)
        return bytes(self._buffer[at + 8 : at + 8 + length]).decode("utf-8", "replace")

    def _write_text(self, page: int, offset: int, room: int, value: str) -> None:
        data = value.encode()[:room].decode("utf-8", "ignore").encode()
        at = page + offset
        self._words[at // 8] = 0
        self._buffer[at + 8 : at + 8 + len(data)] = data
        self._words[at // 8] = len(data)

    def worker_state(self, now_ns: int) -> WorkerState:
        """The state of the worker whose process the header names and whose process lives.

        As sql/segment.c judges it (pgraft_liveness): a worker that is there, and silent, is an error.
        """
        worker, started_ns = self.worker, self.header["worker_start"] * (1_000_000_000 // _TICKS_PER_S)
        has_begun = worker["started_boot_ns"] >= max(started_ns, 1)
        if has_begun and worker["state"] == WorkerState.STOPPED and worker["beat_ns"] == 0:
            return WorkerState.STOPPED
        beat_ns = worker["beat_ns"] if has_begun else max(worker["beat_ns"], started_ns)
        # A beat that lies well ahead is none of ours.
        oldest_ns = now_ns - self.header["election_timeout_ms"] * 1_000_000
        if not oldest_ns <= beat_ns <= now_ns + _FUTURE_BEAT_NS:
            return WorkerState.ERROR
        if worker["state"] == WorkerState.STOPPED and not has_begun:
            return WorkerState.INITIALIZING
        try:
            return WorkerState(worker["state"])
        except ValueError:
            return WorkerState.ERROR

    # --- rings ----------------------------------------------------------------------------------

    def _ring(self, offset: str, size: str, skip: int = 0) -> memoryview:
        return self.bytes_at(self.header[offset] + skip, self.header[size])

    def command_head(self) -> WordRef:
        """The head of the command ring, which backends write."""
        page = self.words_at(self.header["command_offset"], PAGE_BYTES)
        return WordRef(page, layout.COMMAND_WORDS["head"])

    def command_reader(self) -> RingReader:
        """The worker's end of the command ring."""
        ring = self._ring("command_offset", "command_ring_bytes", layout.COMMAND_RING_OFFSET)
        return RingReader(ring, self.command_head(), self.worker_ref("command_tail"))

    def inbound_reader(self) -> RingReader:
        """The worker's end of the ring from the network process."""
        ring = self._ring("inbound_offset", "inbound_bytes")
        return RingReader(ring, self.network_ref("inbound_head"), self.worker_ref("inbound_tail"))

    def inbound_writer(self) -> RingWriter:
        """The network process's end of the ring to the worker."""
        ring = self._ring("inbound_offset", "inbound_bytes")
        return RingWriter(ring, self.network_ref("inbound_head"), self.worker_ref("inbound_tail"))

    def outbound_reader(self) -> RingReader:
        """The network process's end of the ring from the worker."""
        ring = self._ring("outbound_offset", "outbound_bytes")
        return RingReader(ring, self.worker_ref("outbound_head"), self.network_ref("outbound_tail"))

    def outbound_writer(self) -> RingWriter:
        """The worker's end of the ring to the network process."""
        ring = self._ring("outbound_offset", "outbound_bytes")
        return RingWriter(ring, self.worker_ref("outbound_head"), self.network_ref("outbound_tail"))

    def worker_ref(self, name: str) -> WordRef:
        """One word of the worker page."""
        return WordRef(self.worker.raw, layout.WORKER_WORDS[name])

    def network_ref(self, name: str) -> WordRef:
        """One word of the network page."""
        return WordRef(self.network.raw, layout.NETWORK_WORDS[name])

    def slot(self, number: int) -> Slot:
        """The result slot with this number. Raises SegmentError when there is none."""
        if not 0 <= number < self.header["slot_count"]:
            raise SegmentError(f"segment {self.name}: no result slot {number}")
        return Slot(self, self.header["slots_offset"] + number * layout.SLOT_BYTES)

    # --- life -----------------------------------------------------------------------------------

    def retire(self) -> None:
        """Tell everyone who has it mapped that this segment counts no more."""
        self.header["retired"] = 1
        self.worker["lease_end_ns"] = 0

    def close(self) -> None:
        """Unmap. Every view that was handed out ends with it."""
        for view in reversed(self._views):
            view.release()
        self._views.clear()
        self._owner.close()


_ANSWER = struct.Struct("<6Q")
"""The words answer_no, answered_no, outcome, value1, value2 and payload_bytes of a slot."""
_CRC = struct.Struct("<Q")
_ANSWER_NO = SLOT_WORKER_WORDS["answer_no"]
_ANSWER_OFFSET = SLOT_WORKER_WORDS["crc"] * layout.WORD_BYTES
_REQUEST_NO = SLOT_BACKEND_WORDS["request_no"]
_OWNER = SLOT_BACKEND_WORDS["owner"]


class Slot:
    """One result slot: the backend's half and the worker's half."""

    __slots__ = ("_answer", "_payload", "words")

    def __init__(self, segment: Segment, offset: int) -> None:
        self.words = segment.words_at(offset, layout.SLOT_PAYLOAD_OFFSET)
        self._answer = segment.bytes_at(offset + _ANSWER_OFFSET, _CRC.size + _ANSWER.size)
        self._payload = segment.bytes_at(offset + layout.SLOT_PAYLOAD_OFFSET, layout.SLOT_PAYLOAD_BYTES)

    @property
    def request_no(self) -> int:
        """The request that the backend waits for."""
        value: int = self.words[_REQUEST_NO]
        return value

    @property
    def owner_pid(self) -> int:
        """The backend that owns the slot, 0 when it is free."""
        return int(self.words[_OWNER] >> 32)

    def waits_for(self, request_no: int) -> bool:
        """Whether the slot's owner is there and waits for this request."""
        words = self.words
        return bool(words[_REQUEST_NO] == request_no and words[_OWNER] >> 32)

    def backend_word(self, name: str) -> int:
        """A word of the backend's half."""
        value: int = self.words[SLOT_BACKEND_WORDS[name]]
        return value

    def worker_word(self, name: str) -> int:
        """A word of the worker's half."""
        value: int = self.words[SLOT_WORKER_WORDS[name]]
        return value

    def answer(
        self, request_no: int, outcome: int, value1: int = 0, value2: int = 0, payload: bytes = b""
    ) -> None:
        """Write one answer. A payload longer than the slot is cut.

        Words and checksum go out in one copy, which a reader may see half done: it checks the checksum.
        """
        answer_no = (self.words[_ANSWER_NO] + 1) & _U64_MAX
        if payload:
            payload = payload[: layout.SLOT_PAYLOAD_BYTES]
            self._payload[: len(payload)] = payload
        packed = _ANSWER.pack(answer_no, request_no, outcome, value1, value2, len(payload))
        self._answer[:] = _CRC.pack(zlib.crc32(payload, zlib.crc32(packed))) + packed

    def read_answer(self) -> tuple[int, int, int, int, bytes] | None:
        """(answered_no, outcome, value1, value2, payload), or None while it is not whole."""
        whole = bytes(self._answer)
        (crc,) = _CRC.unpack_from(whole)
        _, answered_no, outcome, value1, value2, payload_bytes = _ANSWER.unpack_from(whole, _CRC.size)
        if payload_bytes > layout.SLOT_PAYLOAD_BYTES:
            return None
        payload = bytes(self._payload[:payload_bytes])
        if zlib.crc32(payload, zlib.crc32(whole[_CRC.size :])) != crc:
            return None
        return answered_no, outcome, value1, value2, payload


# --- creating and attaching -------------------------------------------------------------------------


@contextlib.contextmanager
def _untracked() -> Iterator[None]:
    from multiprocessing import resource_tracker

    register, unregister = resource_tracker.register, resource_tracker.unregister
    resource_tracker.register = lambda name, rtype: None
    resource_tracker.unregister = lambda name, rtype: None
    try:
        yield
    finally:
        resource_tracker.register, resource_tracker.unregister = register, unregister


def _regions(command_ring_bytes: int, slot_count: int) -> dict[str, int]:
    at = layout.STATUS_OFFSET + 2 * layout.STATUS_COPY_BYTES
    words = {"status_offset": layout.STATUS_OFFSET, "status_copy_bytes": layout.STATUS_COPY_BYTES}
    words |= {"members_offset": at, "members_copy_bytes": layout.MEMBERS_COPY_BYTES}
    at += 2 * layout.MEMBERS_COPY_BYTES
    words |= {"command_offset": at, "command_ring_bytes": command_ring_bytes}
    at = align(at + layout.COMMAND_RING_OFFSET + command_ring_bytes, PAGE_BYTES)
    words |= {"slots_offset": at, "slot_count": slot_count, "slot_bytes": layout.SLOT_BYTES}
    at = align(at + slot_count * layout.SLOT_BYTES, PAGE_BYTES)
    words |= {"inbound_offset": at, "inbound_bytes": layout.PEER_RING_BYTES}
    at += layout.PEER_RING_BYTES
    words |= {"outbound_offset": at, "outbound_bytes": layout.PEER_RING_BYTES}
    words["segment_bytes"] = at + layout.PEER_RING_BYTES
    return words


def create(name: str, *, command_ring_bytes: int, slot_count: int) -> Segment:
    """Make the segment, mode 0600, with all its pages reserved, so that no access can meet SIGBUS.

    The magic is stored last by the caller through `open_for_use`, when the header is complete.
    Raises SegmentExists (the name is taken), and SegmentError (/dev/shm is full).
    """
    words = _regions(command_ring_bytes, slot_count)
    memory = _make_memory(name, words["segment_bytes"])
    try:
        _reserve(name, words["segment_bytes"])
        _init_lock(memory, words["command_offset"] + layout.COMMAND_LOCK_OFFSET)
    except SegmentError:
        unlink(name)
        memory.close()
        raise
    segment = Segment(name, _buffer(memory), memory)
    for word, value in words.items():
        segment.header[word] = value
    return segment


def _make_memory(name: str, size: int) -> SharedMemory:
    from multiprocessing.shared_memory import SharedMemory  # heavy, and only whoever creates one needs it

    try:
        with _untracked():
            return SharedMemory(name, create=True, size=size)
    except FileExistsError as error:
        raise SegmentExists(f"segment {name} exists already") from error
    except OSError as error:
        raise SegmentError(f"cannot create segment {name}: {error.strerror}") from error


def _reserve(name: str, size: int) -> None:
    descriptor = open_segment(name, writable=True)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise SegmentError(
            f"cannot reserve {size} bytes in {SHM_DIR} for segment {name}: {error.strerror}"
        ) from error
    finally:
        os.close(descriptor)


def set_directories(segment: Segment, *, data_dir: str | Path, pgdata: str | Path) -> None:
    """Say in the header which directories the segment is made for: by path, and by device and inode.

    The path is for people, and is on the command lines of the node's processes. Device and inode are what
    is compared: a copy of a directory has the same settings, and other ones.
    """
    for name, directory in (("data_dir", data_dir), ("pgdata", pgdata)):
        segment.set_text(name, str(directory))
        place = place_of(directory)
        if place is not None:
            segment.header[f"{name}_device"], segment.header[f"{name}_inode"] = place


def open_for_use(segment: Segment, epoch: int) -> None:
    """The header is complete: let others in."""
    segment.header["created_boot_ns"] = now_ns()
    segment.header["layout_version"] = layout.LAYOUT_VERSION
    segment.header["epoch"] = epoch
    segment.header["magic"] = layout.MAGIC


def attach(name: str, *, readonly: bool = False, owner: int | None = None) -> Segment:
    """Map an existing segment after checking that it is one of ours (or of `owner`), of this layout.

    Raises SegmentError naming what is wrong. `readonly` maps it so that it cannot be written.
    """
    mapped = map_segment(name, 0, writable=not readonly, owner=owner)
    segment = Segment(name, memoryview(mapped), mapped)
    try:
        _check(segment)
    except SegmentError:
        segment.close()
        raise
    return segment


def _buffer(memory: SharedMemory) -> memoryview:
    buffer = memory.buf
    if buffer is None:
        raise SegmentError(f"segment {memory.name} is closed")
    return buffer


def _check(segment: Segment) -> None:
    header = segment.header
    if header["magic"] != layout.MAGIC:
        raise SegmentError(f"segment {segment.name} has no pgraft header, or was never completed")
    if not is_current(header):
        raise SegmentError(
            f"segment {segment.name} has layout version {header['layout_version']},"
            f" this pgraft reads version {layout.LAYOUT_VERSION}"
        )
    if header["segment_bytes"] > segment.size:
        raise SegmentError(f"segment {segment.name} is shorter than its header says")
    extents = (
        (header["members_offset"], 2 * layout.MEMBERS_COPY_BYTES),
        (header["command_offset"], layout.COMMAND_RING_OFFSET + header["command_ring_bytes"]),
        (header["slots_offset"], header["slot_count"] * layout.SLOT_BYTES),
        (header["inbound_offset"], header["inbound_bytes"]),
        (header["outbound_offset"], header["outbound_bytes"]),
    )
    rings = (header["command_ring_bytes"], header["inbound_bytes"], header["outbound_bytes"])
    if any(size % layout.RECORD_ALIGN for size in rings):
        raise SegmentError(f"segment {segment.name}: a ring of {rings} bytes is out of step with its records")
    for offset, size in extents:
        if offset % 8 or offset + size > segment.size or not size:
            raise SegmentError(f"segment {segment.name}: its header does not fit its size")


def _init_lock(memory: SharedMemory, offset: int) -> None:
    """Make the command ring's lock: a pthread mutex that is shared and survives a dead owner."""
    import ctypes  # only the supervisor needs it, once; it costs a megabyte

    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(layout.LOCK_BYTES)
    lock = (ctypes.c_char * layout.LOCK_BYTES).from_buffer(_buffer(memory), offset)
    results = (
        libc.pthread_mutexattr_init(attributes),
        libc.pthread_mutexattr_setpshared(attributes, 1),  # PTHREAD_PROCESS_SHARED
        libc.pthread_mutexattr_setrobust(attributes, 1),  # PTHREAD_MUTEX_ROBUST
        libc.pthread_mutex_init(lock, attributes),
        libc.pthread_mutexattr_destroy(attributes),
    )
    del lock
    if any(results):
        raise SegmentError(f"cannot make the lock of the command ring: {results}")


# --- FIFOs ----------------------------------------------------------------------------------------------


def slot_bell(number: int) -> str:
    """File name of a result slot's FIFO."""
    return f"slot.{number}.bell"


def make_fifos(run_dir: Path, slot_count: int) -> None:
    """Make every doorbell in `run_dir`, mode 0600; those that are there stay."""
    for name in (WORKER_BELL, NETWORK_BELL, *map(slot_bell, range(slot_count))):
        with contextlib.suppress(FileExistsError):
            os.mkfifo(run_dir / name, 0o600)
