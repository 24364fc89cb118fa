"""What waits in the three rings and in the result slots, read without taking anything.

`pgraft.shm.rings.RingReader` moves the tail as it reads; this walks from tail to head over copies.
A record that is not whole may be one that is being written at this moment, or damage.
"""

from __future__ import annotations

import struct
import zlib

import msgspec

from pgraft.inspector.text import clean, enum_name
from pgraft.shm import layout
from pgraft.shm.layout import COMMAND_RECORD_BYTES, COMMAND_RECORD_WORDS, RECORD_HEADER_BYTES, SlotState
from pgraft.shm.segment import Segment
from pgraft.transport.records import PREFIX_BYTES, RecordKind, unpack_prefix

RECORDS_WALKED_MAX = 1000
"""Waiting records that are read; those behind them only count as bytes."""
PREVIEW_BYTES = 48
_HEADER = struct.Struct("<QII")
_COMMAND = struct.Struct(f"<{len(COMMAND_RECORD_WORDS)}Q")


class RingUsage(msgspec.Struct):
    """A ring's positions and how full it is, in bytes; `sane` is false when they make no sense."""

    capacity: int
    head: int
    tail: int
    used: int
    sane: bool


class Waiting(msgspec.Struct):
    """A record that waits: its position, payload length, and whether stamp and checksum fit."""

    position: int
    payload_bytes: int
    whole: bool
    payload: bytes = b""


class WaitingCommand(msgspec.Struct):
    """A command, or a piece of one, that the worker has not taken yet."""

    position: int
    payload_bytes: int
    whole: bool
    kind: str = ""
    slot: int = 0
    request_no: int = 0
    backend_pid: int = 0
    total_bytes: int = 0
    piece_offset: int = 0
    timeout_ms: int = 0
    arg1: int = 0
    arg2: int = 0
    preview: str = ""


class WaitingMessage(msgspec.Struct):
    """A record between worker and network process: RecordKind's name and the peer's node id."""

    position: int
    payload_bytes: int
    whole: bool
    kind: str = ""
    node_id: int = 0


class SlotPicture(msgspec.Struct):
    """A result slot in use. `answer_whole` is false while the worker's half does not fit its checksum."""

    number: int
    pid: int
    state: str
    request_no: int
    submitted_pos: int
    wants_space: bool
    answered_no: int
    outcome: str
    payload_bytes: int
    answer_whole: bool


class RingsPicture(msgspec.Struct):
    """Everything that waits; the lists hold at most RECORDS_WALKED_MAX records each."""

    command: RingUsage
    commands: list[WaitingCommand]
    inbound: RingUsage
    inbound_messages: list[WaitingMessage]
    outbound: RingUsage
    outbound_messages: list[WaitingMessage]
    slot_count: int
    slots: list[SlotPicture]
    notes: list[str]


def _usage(capacity: int, head: int, tail: int) -> RingUsage:
    sane = capacity % layout.PAGE_BYTES == 0 and capacity > 0 and 0 <= head - tail <= capacity
    return RingUsage(capacity, head, tail, head - tail if sane else 0, sane)


def _command_head(segment: Segment) -> int:
    page = segment.bytes_at(segment.header["command_offset"], layout.COMMAND_RING_OFFSET)
    at = layout.COMMAND_WORDS["head"] * layout.WORD_BYTES
    return int.from_bytes(page[at : at + layout.WORD_BYTES], "little")


def _positions(segment: Segment, ring: str) -> RingUsage:
    """Tail first: it only grows towards the head, so that a live ring never looks inside out."""
    worker, network, header = segment.worker, segment.network, segment.header
    match ring:
        case "command":
            tail = worker["command_tail"]
            return _usage(header["command_ring_bytes"], _command_head(segment), tail)
        case "inbound":
            tail = worker["inbound_tail"]
            return _usage(header["inbound_bytes"], network["inbound_head"], tail)
        case "outbound":
            tail = network["outbound_tail"]
            return _usage(header["outbound_bytes"], worker["outbound_head"], tail)
        case _:
            raise ValueError(f"no ring is called {ring}")


def _slot_words(segment: Segment, number: int) -> memoryview:
    """The words of one slot, both halves. Raises SegmentError when it lies outside of the segment."""
    at = segment.header["slots_offset"] + number * layout.SLOT_BYTES
    return segment.bytes_at(at, layout.SLOT_BYTES)


def _is_used(slot: memoryview) -> bool:
    owner, state = layout.SLOT_BACKEND_WORDS["owner"], layout.SLOT_BACKEND_WORDS["state"]
    return any(slot[8 * owner : 8 * owner + 8]) or any(slot[8 * state : 8 * state + 8])


def ring_usages(segment: Segment, notes: list[str]) -> tuple[dict[str, RingUsage], int]:
    """How full each ring is, and how many slots are in use."""
    usages = {ring: _positions(segment, ring) for ring in ("command", "inbound", "outbound")}
    for ring, usage in usages.items():
        if not usage.sane:
            notes.append(f"the positions of the {ring} ring make no sense: {usage.tail} to {usage.head}")
    count = segment.header["slot_count"]
    return usages, sum(_is_used(_slot_words(segment, number)) for number in range(count))


def take_rings(segment: Segment) -> RingsPicture:
    """Read everything that waits. Raises SegmentError when the header makes no sense."""
    notes: list[str] = []
    usages, _ = ring_usages(segment, notes)
    start = segment.header["command_offset"] + layout.COMMAND_RING_OFFSET
    commands = [_command(record) for record in _walk(segment, start, usages["command"])]
    inbound = _walk(segment, segment.header["inbound_offset"], usages["inbound"])
    outbound = _walk(segment, segment.header["outbound_offset"], usages["outbound"])
    for ring, records in (("command", commands), ("inbound", inbound), ("outbound", outbound)):
        if records and not records[-1].whole:
            at = records[-1].position
            notes.append(f"the {ring} ring's record at {at} is not whole: just being written, or torn")
    return RingsPicture(
        command=usages["command"],
        commands=commands,
        inbound=usages["inbound"],
        inbound_messages=[_message(record) for record in inbound],
        outbound=usages["outbound"],
        outbound_messages=[_message(record) for record in outbound],
        slot_count=segment.header["slot_count"],
        slots=_slots(segment),
        notes=notes,
    )


def _walk(segment: Segment, start: int, usage: RingUsage) -> list[Waiting]:
    """The waiting records, up to the first one that is not whole."""
    records: list[Waiting] = []
    if not usage.sane:
        return records
    ring = segment.bytes_at(start, usage.capacity)
    at = usage.tail
    while at < usage.head and len(records) < RECORDS_WALKED_MAX:
        record = _record(ring, at, usage.head)
        records.append(record)
        if not record.whole:
            break
        at += layout.align(RECORD_HEADER_BYTES + record.payload_bytes, layout.RECORD_ALIGN)
    return records


def _record(ring: memoryview, at: int, head: int) -> Waiting:
    capacity = len(ring)
    place = at % capacity
    if place % layout.RECORD_ALIGN or head - at < RECORD_HEADER_BYTES:
        return Waiting(at, 0, False)
    stamp, length, crc = _HEADER.unpack_from(ring, place)
    if stamp != at or length > head - at - RECORD_HEADER_BYTES:
        return Waiting(at, length, False)
    first = (place + RECORD_HEADER_BYTES) % capacity
    payload = bytes(ring[first : first + length])
    payload += bytes(ring[: length - len(payload)])
    return Waiting(at, length, zlib.crc32(payload) == crc, payload)


def _command(record: Waiting) -> WaitingCommand:
    command = WaitingCommand(record.position, record.payload_bytes, record.whole)
    if not record.whole or len(record.payload) < COMMAND_RECORD_BYTES:
        command.whole = False
        return command
    words = dict(zip(COMMAND_RECORD_WORDS, _COMMAND.unpack_from(record.payload), strict=True))
    command.kind = enum_name(layout.CommandKind, words["kind"])
    for field in ("slot", "request_no", "backend_pid", "total_bytes", "piece_offset", "timeout_ms"):
        setattr(command, field, words[field])
    command.arg1, command.arg2 = words["arg1"], words["arg2"]
    piece = record.payload[COMMAND_RECORD_BYTES:][:PREVIEW_BYTES]
    command.preview = clean(piece.decode("utf-8", "replace"))
    return command


def _message(record: Waiting) -> WaitingMessage:
    message = WaitingMessage(record.position, record.payload_bytes, record.whole)
    if record.whole and len(record.payload) >= PREFIX_BYTES:
        kind, message.node_id = unpack_prefix(record.payload)
        message.kind = enum_name(RecordKind, kind)
    return message


def _slots(segment: Segment) -> list[SlotPicture]:
    pictures = []
    for number in range(segment.header["slot_count"]):
        if _is_used(_slot_words(segment, number)):
            pictures.append(_slot(segment, number))
    return pictures


def _slot(segment: Segment, number: int) -> SlotPicture:
    slot = segment.slot(number)
    answer = slot.read_answer()
    return SlotPicture(
        number=number,
        pid=slot.owner_pid,
        state=enum_name(SlotState, slot.backend_word("state")),
        request_no=slot.request_no,
        submitted_pos=slot.backend_word("submitted_pos"),
        wants_space=slot.backend_word("want_space") != 0,
        answered_no=slot.worker_word("answered_no"),
        outcome=enum_name(layout.Outcome, slot.worker_word("outcome")),
        payload_bytes=slot.worker_word("payload_bytes"),
        answer_whole=answer is not None,
    )
