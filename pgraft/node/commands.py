"""Commands from sessions: read off the ring, put together from pieces, and answered in their slot.

A command is taken off the ring before anything is done with it, so that a worker that dies leaves
its outcome unknown, never done twice. A new worker answers "unknown" to what an earlier one took.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec

from pgraft.ownfile import ForeignFile
from pgraft.shm.doorbell import open_bell, ring_fd
from pgraft.shm.layout import COMMAND_RECORD_BYTES, COMMAND_RECORD_WORDS, CommandFlag, Outcome, SlotState
from pgraft.shm.segment import Segment, Slot, slot_bell

_RECORD = struct.Struct(f"<{len(COMMAND_RECORD_WORDS)}Q")
_NOT_FINAL = (Outcome.NONE, Outcome.PROGRESS)
_FORWARD = int(CommandFlag.FORWARD)
RING_READ_BYTES = 1024 * 1024
"""Bytes of commands taken in one turn, so that a burst becomes one batch, but a bounded one."""


class Command(msgspec.Struct, eq=False, gc=False):
    """One command. It came from `slot` of this node, or from `peer` (a forwarded one), which then
    knows it by `nonce` and `number`. `deadline_ns` is when its caller stops waiting."""

    kind: int
    slot: int
    number: int
    forward: bool
    deadline_ns: int
    timeout_ms: int
    arg1: int = 0
    arg2: int = 0
    data: bytes = b""
    peer: int = 0
    nonce: int = 0
    wait_until_ns: int = 0


class Answer(msgspec.Struct, frozen=True):
    """An outcome with its values; error texts are "message\\0detail\\0hint"."""

    outcome: Outcome
    value1: int = 0
    value2: int = 0
    payload: bytes = b""


def error(outcome: Outcome, message: str, detail: str = "", hint: str = "") -> Answer:
    """An answer that the shim raises as an error."""
    return Answer(outcome, payload="\0".join((message, detail, hint)).encode())


UNKNOWN_DETAIL = "The command may or may not have been carried out."
UNKNOWN_HINT = (
    "Look for the entry with pgraft_log_get_entry(), from the index that was last before the call,"
    " or for the member with pgraft_get_nodes(), before trying again."
)
RESTARTED = error(
    Outcome.ERROR_UNKNOWN,
    "the raft worker was restarted before the outcome of the command was known",
    UNKNOWN_DETAIL,
    UNKNOWN_HINT,
)


class _Partial(msgspec.Struct):
    request_no: int
    data: bytearray


class CommandSource:
    """The worker's end of the command ring and of the result slots."""

    def __init__(self, segment: Segment, run_dir: Path, max_entry_bytes: int) -> None:
        self._ring = segment.command_reader()
        self._slots = [segment.slot(number) for number in range(segment.header["slot_count"])]
        self._counters = segment.worker
        self._run_dir = run_dir
        self._bells: dict[int, int] = {}
        self._partial: dict[int, _Partial] = {}
        self._max_bytes = max_entry_bytes
        self.malformed = 0

    def pending(self) -> bool:
        """Whether the ring holds something."""
        return self._ring.pending()

    @property
    def damage(self) -> int:
        """How often the ring's bytes made no sense."""
        return self._ring.damage

    def take(self, now_ns: int) -> list[Command]:
        """Commands that are complete, in ring order; makes room, and tells who waits for it."""
        if self._partial:
            self._drop_abandoned()
        was_tight = self._ring.used_bytes() * 2 > self._ring.capacity
        records = self._ring.read(RING_READ_BYTES)
        commands = []
        for record in records:
            command = self._read(record, now_ns)
            if command is not None:
                commands.append(command)
        if was_tight:
            self._tell_room()
        return commands

    def _read(self, record: bytes, now_ns: int) -> Command | None:
        if len(record) < COMMAND_RECORD_BYTES:
            self.malformed += 1
            return None
        kind, slot, number, flags, total, offset, timeout_ms, arg1, arg2, _, _, _ = _RECORD.unpack_from(
            record
        )
        if slot >= len(self._slots) or total > self._max_bytes:
            self.malformed += 1
            return None
        data: bytes | None = record[COMMAND_RECORD_BYTES:]
        if total != len(record) - COMMAND_RECORD_BYTES:
            data = self._assemble(slot, number, total, offset, record)
        if data is None:
            return None
        deadline = now_ns + timeout_ms * 1_000_000
        forward = bool(flags & _FORWARD)
        return Command(kind, slot, number, forward, deadline, timeout_ms, arg1, arg2, data)

    def _assemble(self, slot: int, number: int, total: int, offset: int, record: bytes) -> bytes | None:
        end = offset + len(record) - COMMAND_RECORD_BYTES
        partial = self._partial.get(slot)
        if partial is None or partial.request_no != number:
            partial = self._partial[slot] = _Partial(number, bytearray())
        if offset != len(partial.data) or end > total:
            # Earlier pieces went to a worker that is gone, or the backend went away in between.
            self._partial[slot] = _Partial(number, bytearray())
            if end >= total and self._slots[slot].request_no == number:
                self._slots[slot].answer(number, Outcome.ERROR_UNKNOWN, payload=RESTARTED.payload)
                self._ring_slot(slot)
            return None
        partial.data += memoryview(record)[COMMAND_RECORD_BYTES:]
        if len(partial.data) < total:
            return None
        del self._partial[slot]
        return bytes(partial.data)

    def _drop_abandoned(self) -> None:
        """Forget pieces whose session went away before the last one."""
        for number, partial in list(self._partial.items()):
            slot = self._slots[number]
            if slot.request_no != partial.request_no or not slot.owner_pid:
                del self._partial[number]

    def _tell_room(self) -> None:
        for number, slot in enumerate(self._slots):
            if slot.backend_word("want_space"):
                self._ring_slot(number)

    def answer(self, command: Command, answer: Answer) -> bool:
        """Put the answer into the command's slot and wake its session; False when that went away."""
        slot = self._slots[command.slot]
        if not slot.waits_for(command.number):
            return False
        slot.answer(command.number, answer.outcome, answer.value1, answer.value2, answer.payload)
        self._counters.add("commands_answered")
        self._ring_slot(command.slot)
        return True

    def _ring_slot(self, number: int) -> None:
        fd = self._bells.get(number)
        if fd is None:
            try:
                fd = open_bell(self._run_dir / slot_bell(number))
            except (FileNotFoundError, ForeignFile):
                # The session looks at its slot again within a second; the supervisor makes the FIFOs.
                return
            self._bells[number] = fd
        ring_fd(fd)

    def answer_taken_earlier(self, answer: Answer) -> int:
        """Give `answer` to every command that an earlier worker took off the ring; how many."""
        tail = self._ring.position()
        count = 0
        for number, slot in enumerate(self._slots):
            taken = _taken_request(slot, tail)
            if taken:
                slot.answer(taken, answer.outcome, 0, 0, answer.payload)
                self._ring_slot(number)
                count += 1
        return count

    def drain(self, answer: Callable[[Command], Answer], now_ns: int) -> None:
        """Take everything that waits and answer it at once."""
        while self._ring.pending():
            for command in self.take(now_ns):
                self.answer(command, answer(command))

    def close(self) -> None:
        """Close the FIFOs."""
        for fd in self._bells.values():
            os.close(fd)
        self._bells.clear()


def _taken_request(slot: Slot, tail: int) -> int:
    """The request that was submitted and read (its last record ends at or before the tail), but not
    finally answered; 0 when there is none."""
    number = slot.request_no
    if slot.owner_pid == 0 or slot.backend_word("state") != SlotState.SUBMITTED:
        return 0
    if slot.backend_word("submitted_pos") > tail:
        return 0
    answered = slot.read_answer()
    if answered is not None and answered[0] == number and answered[1] not in _NOT_FINAL:
        return 0
    # A session may have moved on to its next request while the words were read.
    return number if slot.request_no == number else 0
