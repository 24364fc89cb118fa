"""The two-copy blocks of the segment: status and members.

The worker writes the copy that is not selected, with a checksum, then flips the selector. A reader
copies the selected one and checks it; a writer that dies in the middle leaves the other copy whole.
"""

from __future__ import annotations

import struct
import zlib

import msgspec

from pgraft.shm import layout
from pgraft.shm.layout import (
    ADDRESS_BYTES_MAX,
    MEMBER_ADDRESS_OFFSET,
    MEMBER_ROW_BYTES,
    MEMBER_ROW_WORDS,
    MEMBERS_MAX,
    MEMBERS_REMOVED_OFFSET,
    MEMBERS_ROWS_OFFSET,
    MEMBERS_WORDS,
    REMOVED_MAX,
    STATUS_ROW_BYTES,
    STATUS_ROW_WORDS,
    STATUS_ROWS_OFFSET,
    STATUS_WORDS,
)
from pgraft.shm.segment import Segment

_READ_TRIES = 200
_STATUS_HEAD = struct.Struct(f"<{STATUS_ROWS_OFFSET // 8}Q")
_STATUS_ROW = struct.Struct(f"<{STATUS_ROW_BYTES // 8}Q")
_STATUS_ROW_PAD = (0,) * (STATUS_ROW_BYTES // 8 - len(STATUS_ROW_WORDS))
_STATUS_HEAD_PAD = (0,) * (STATUS_ROWS_OFFSET // 8 - len(STATUS_WORDS))
_MEMBERS_HEAD = struct.Struct(f"<{MEMBERS_ROWS_OFFSET // 8}Q")
_MEMBER_ROW = struct.Struct(f"<{MEMBER_ADDRESS_OFFSET // 8}Q{ADDRESS_BYTES_MAX}s")
_CRC = struct.Struct("<Q")


class BlockUnreadable(Exception):
    """Neither copy of a block carries a checksum that fits: nothing was ever written, or damage."""


class StatusRow(msgspec.Struct):
    """One member in the status block; fields as in layout.STATUS_ROW_WORDS, times in BOOTTIME ns."""

    node_id: int
    role: int = 0
    term: int = 0
    commit_index: int = 0
    last_index: int = 0
    heard_boot_ns: int = 0
    match_index: int = 0
    next_index: int = 0
    is_replicating: int = 0
    is_learner: int = 0
    is_self: int = 0


class Status(msgspec.Struct):
    """The status block; fields as in layout.STATUS_WORDS."""

    generation: int = 0
    role: int = 0
    leader_id: int = 0
    term: int = 0
    vote: int = 0
    commit_index: int = 0
    last_index: int = 0
    applied: int = 0
    first_index: int = 0
    log_bytes: int = 0
    published_boot_ns: int = 0
    voters_reachable: int = 0
    voters_needed: int = 0
    leader_port: int = 0
    rows: list[StatusRow] = []


class MemberRow(msgspec.Struct, frozen=True):
    """One member: whom the network process talks to. member_id 0: not known yet; incarnation: the newest
    one that is known."""

    node_id: int
    address: str
    port: int
    is_learner: bool = False
    is_leaving: bool = False
    member_id: int = 0
    incarnation: int = 1


class Members(msgspec.Struct, frozen=True):
    """The members block, in id order, with the ids that were removed and not added again."""

    generation: int = 0
    members: tuple[MemberRow, ...] = ()
    removed: tuple[int, ...] = ()


class _TwoCopies:
    """Writes a block's copies in turn."""

    def __init__(self, segment: Segment, offset: int, copy_bytes: int, selector: str, count: str) -> None:
        self._view = segment.bytes_at(offset, 2 * copy_bytes)
        self._copy_bytes = copy_bytes
        self._words = segment.worker.raw
        self._selector = segment.worker.names[selector]
        self._count = segment.worker.names[count]
        self.generation = self._words[self._count]

    def write(self, body: bytes) -> None:
        """`body` is everything behind the crc word, its generation being self.generation + 1."""
        other = 1 - (self._words[self._selector] & 1)
        start = other * self._copy_bytes
        self._view[start : start + 8 + len(body)] = _CRC.pack(zlib.crc32(body)) + body
        self._words[self._selector] = other
        self.generation += 1
        self._words[self._count] = self.generation


class StatusWriter:
    """The worker's end of the status block."""

    def __init__(self, segment: Segment) -> None:
        self._copies = _TwoCopies(
            segment,
            layout.STATUS_OFFSET,
            layout.STATUS_COPY_BYTES,
            "status_selector",
            "status_generation",
        )
        self._rows = b""

    def publish(self, status: Status) -> None:
        """Make `status` what every reader sees."""
        rows = status.rows[:MEMBERS_MAX]
        packed = [_STATUS_ROW.pack(*msgspec.structs.astuple(row), *_STATUS_ROW_PAD) for row in rows]
        self._rows = b"".join(packed)
        self.publish_head(status)

    def publish_head(self, status: Status) -> None:
        """The same, with the rows as they were published last."""
        used = STATUS_ROWS_OFFSET + len(self._rows)
        count = len(self._rows) // STATUS_ROW_BYTES
        status.generation = self._copies.generation + 1
        # The fields stand in the layout's order, which a test checks.
        head = _STATUS_HEAD.pack(0, used, *msgspec.structs.astuple(status)[:-1], count, *_STATUS_HEAD_PAD)
        self._copies.write(head[8:] + self._rows)


class MembersWriter:
    """The worker's end of the members block."""

    def __init__(self, segment: Segment) -> None:
        self._copies = _TwoCopies(
            segment,
            segment.header["members_offset"],
            layout.MEMBERS_COPY_BYTES,
            "members_selector",
            "members_generation",
        )

    def publish(self, members: tuple[MemberRow, ...], removed: tuple[int, ...]) -> None:
        """Make these what the network process and every backend see."""
        rows = sorted(members, key=lambda row: row.node_id)[:MEMBERS_MAX]
        gone = sorted(removed)[:REMOVED_MAX]
        body = bytearray(MEMBERS_REMOVED_OFFSET + 8 * len(gone))
        head = (0, len(body), self._copies.generation + 1, len(rows), len(gone), 0, 0, 0)
        body[:MEMBERS_ROWS_OFFSET] = _MEMBERS_HEAD.pack(*head)
        for number, row in enumerate(rows):
            address = row.address.encode()[:ADDRESS_BYTES_MAX]
            words = (row.node_id, row.port, row.is_learner, row.is_leaving, row.member_id, len(address))
            _MEMBER_ROW.pack_into(
                body, MEMBERS_ROWS_OFFSET + number * MEMBER_ROW_BYTES, *words, row.incarnation, 0, address
            )
        struct.pack_into(f"<{len(gone)}Q", body, MEMBERS_REMOVED_OFFSET, *gone)
        self._copies.write(bytes(body[8:]))


def _checked_copy(view: memoryview, start: int, copy_bytes: int) -> bytes | None:
    copy = bytes(view[start : start + copy_bytes])
    crc, used = struct.unpack_from("<QQ", copy)
    if not 16 <= used <= copy_bytes or zlib.crc32(copy[8:used]) != crc:
        return None
    return copy


def _read_block(segment: Segment, offset: int, copy_bytes: int, selector: str) -> bytes:
    view = segment.bytes_at(offset, 2 * copy_bytes)
    for _ in range(_READ_TRIES):
        chosen = segment.worker[selector] & 1
        copy = _checked_copy(view, chosen * copy_bytes, copy_bytes)
        # A copy that was replaced meanwhile may be newer than the one that is selected now: a reader who
        # took it would go back with its next read.
        if copy is not None and segment.worker[selector] & 1 == chosen:
            return copy
    copy = _checked_copy(view, (1 - (segment.worker[selector] & 1)) * copy_bytes, copy_bytes)
    if copy is None:
        raise BlockUnreadable(f"no whole copy at offset {offset} of segment {segment.name}")
    return copy


def read_status(segment: Segment) -> Status:
    """The newest whole status. Raises BlockUnreadable."""
    copy = _read_block(segment, layout.STATUS_OFFSET, layout.STATUS_COPY_BYTES, "status_selector")
    words = _STATUS_HEAD.unpack_from(copy)
    count = min(words[STATUS_WORDS["row_count"]], MEMBERS_MAX)
    rows = []
    for number in range(count):
        row = _STATUS_ROW.unpack_from(copy, STATUS_ROWS_OFFSET + number * STATUS_ROW_BYTES)
        rows.append(StatusRow(*row[: len(STATUS_ROW_WORDS)]))
    status = Status(*words[2 : STATUS_WORDS["row_count"]])
    status.rows = rows
    return status


def read_members(segment: Segment) -> Members:
    """The newest whole list of members. Raises BlockUnreadable."""
    offset = segment.header["members_offset"]
    copy = _read_block(segment, offset, layout.MEMBERS_COPY_BYTES, "members_selector")
    words = _MEMBERS_HEAD.unpack_from(copy)
    rows = []
    for number in range(min(words[MEMBERS_WORDS["member_count"]], MEMBERS_MAX)):
        *row, address = _MEMBER_ROW.unpack_from(copy, MEMBERS_ROWS_OFFSET + number * MEMBER_ROW_BYTES)
        node_id, port, is_learner, is_leaving, member_id, length, incarnation = row[: len(MEMBER_ROW_WORDS)]
        text = address[: min(length, ADDRESS_BYTES_MAX)].decode("utf-8", "replace")
        rows.append(
            MemberRow(node_id, text, port, bool(is_learner), bool(is_leaving), member_id, incarnation)
        )
    count = min(words[MEMBERS_WORDS["removed_count"]], REMOVED_MAX)
    removed = struct.unpack_from(f"<{count}Q", copy, MEMBERS_REMOVED_OFFSET)
    return Members(words[MEMBERS_WORDS["generation"]], tuple(rows), tuple(removed))
