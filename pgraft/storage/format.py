"""The bytes of an entry-log file: its header, and the records behind it.

All integers are little-endian. A file starts with SEGMENT_HEADER_BYTES of header, checksummed:

    8s magic, u32 format version, u32 mark, u32 salt, u32 reserved
    u64 sequence          position of this file among all that this log ever had, from 1
    u64 first_index       the entry index behind the last one before it; the first record may replace some
    u64 first_batch       number of the first batch in it; batches count on from file to file
    u64 term, vote, commit   hard state when the file was made (so that older files can go)
    u64 reset_index       not 0: the log starts anew here, behind the snapshot at this index
    u32 crc32 of all that precedes it

Then come records, one after another, until zeros (the file is preallocated). A batch - what one
append() writes - is one or more records with the same batch number; the last one has LAST_OF_BATCH:

    u32 mark              random, the same in the whole file: what a search for records looks for
    u32 crc               zlib.crc32 of the rest of the record, started at the file's salt
    u32 payload_bytes
    u32 count             entries in the payload, 0 in a record that only carries hard state
    u32 flags, u32 reserved
    u64 batch             number of the batch, rising by one
    u64 synced            the newest batch that was durable when this one was written
    u64 first_index, u64 entry_term   of the payload's entries: all are of one term
    u64 term, vote, commit   hard state after this batch
    payload: msgpack of the entries, [[term, index, type, data], ...]

Behind the last batch of a file, once the next file is durable, stands its seal: a record without payload
or entries, with the flag SEAL and a batch number that is not the next one, so that replay ends before it.

`mark` and `salt` are random per file, so nothing that a user replicates looks like a record, and no
record of another file does either. `synced` is what tells a torn tail from damage: see recovery.py.
"""

from __future__ import annotations

import struct
import zlib

import msgspec

from pgraft.raft.errors import InvariantViolation
from pgraft.raft.types import Entry, HardState
from pgraft.storage.errors import OtherVersion

FORMAT_VERSION = 1
SEGMENT_MAGIC = b"PGRAFTLG"
SEGMENT_HEADER_BYTES = 128
RECORD_HEADER_BYTES = 80
RECORD_PAYLOAD_BYTES = 64 * 1024
"""A batch is cut into records of about this size, so that reading one entry never reads much more."""
ENTRY_BYTES_MAX = 16 * 1024 * 1024
"""Largest data of one entry; pgraft.max_entry_size is far below."""
PAYLOAD_BYTES_MAX = ENTRY_BYTES_MAX + 64
"""Largest payload of a record: one entry of the largest size with its msgpack headers."""

NUMBER_MAX = 2**62
"""Of terms, indexes, batches and files: no log comes near, and what is beyond was not written by pgraft."""

LAST_OF_BATCH = 1
CONF_CHANGE = 2
SEAL = 4
SEAL_BYTES = RECORD_HEADER_BYTES

_SEGMENT = struct.Struct("<8sIIIIQQQQQQQ")
_CRC = struct.Struct("<I")
_PREFIX = struct.Struct("<II")
_BODY = struct.Struct("<IIIIQQQQQQQ")
RECORD_SCAN = struct.Struct("<IIIII4xQ8xQQ24x")
"""mark, crc, payload_bytes, count, flags, batch, first_index, entry_term: what replay reads of a record."""
_HARD_STATE = struct.Struct("<QQQ")
_HARD_STATE_AT = RECORD_HEADER_BYTES - _HARD_STATE.size
_SYNCED = struct.Struct("<Q")
_SYNCED_AT = 32
CRC_FROM = 8
"""The checksum covers a record from this byte on."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry]).decode


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the head of an entry-log file says; see the module's text."""

    mark: int
    salt: int
    sequence: int
    first_index: int
    first_batch: int
    hard_state: HardState
    reset_index: int = 0


class RecordMark(msgspec.Struct, gc=False):
    """Where one record of a batch lies (from the batch's start) and which entries it holds."""

    offset: int
    first_index: int
    count: int
    term: int
    flags: int


def pack_segment_header(header: SegmentHeader) -> bytes:
    """The header's bytes, padded to SEGMENT_HEADER_BYTES."""
    state = header.hard_state
    packed = _SEGMENT.pack(
        SEGMENT_MAGIC,
        FORMAT_VERSION,
        header.mark,
        header.salt,
        0,
        header.sequence,
        header.first_index,
        header.first_batch,
        state.term,
        state.vote,
        state.commit,
        header.reset_index,
    )
    return (packed + _CRC.pack(zlib.crc32(packed))).ljust(SEGMENT_HEADER_BYTES, b"\0")


def unpack_segment_header(data: bytes) -> SegmentHeader:
    """The header in `data`; ValueError says what is wrong with it."""
    if len(data) < SEGMENT_HEADER_BYTES:
        raise ValueError("the file is too short for its header")
    if data[: len(SEGMENT_MAGIC)] != SEGMENT_MAGIC:
        raise ValueError("this is no pgraft entry-log file")
    _, version, mark, salt, _, sequence, first, batch, term, vote, commit, reset = _SEGMENT.unpack_from(data)
    # Before the checksum, which another version may keep elsewhere.
    if version != FORMAT_VERSION:
        raise OtherVersion(version, FORMAT_VERSION)
    (crc,) = _CRC.unpack_from(data, _SEGMENT.size)
    if zlib.crc32(data[: _SEGMENT.size]) != crc:
        raise ValueError("the file header's checksum does not match")
    if not min(sequence, first, batch) or max(sequence, first, batch, term, commit, reset) > NUMBER_MAX:
        raise ValueError("the file header holds a number that no log has")
    return SegmentHeader(
        mark=mark,
        salt=salt,
        sequence=sequence,
        first_index=first,
        first_batch=batch,
        hard_state=HardState(term, vote, commit),
        reset_index=reset,
    )


class BatchWriter:
    """Encodes batches for one file: knows its mark and salt, keeps nothing else."""

    __slots__ = ("_mark", "_salt")

    def __init__(self, mark: int, salt: int) -> None:
        self._mark = mark
        self._salt = salt

    def encode(
        self, batch: int, synced: int, state: HardState, entries: list[Entry]
    ) -> tuple[bytes, list[RecordMark]]:
        """The batch's bytes, and a mark for each record in it. InvariantViolation: an entry is too large."""
        if not entries or entries[0].term == entries[-1].term:
            # Terms never fall along a log, so equal ends mean one term throughout: the usual batch.
            payload = _encode(entries) if entries else b""
            if len(payload) <= RECORD_PAYLOAD_BYTES or len(entries) == 1:
                mark = self._mark_of(0, entries, LAST_OF_BATCH)
                return self._record(batch, synced, state, mark, payload), [mark]
        return self._encode_split(batch, synced, state, entries)

    def encode_seal(self, next_batch: int, state: HardState) -> bytes:
        """The seal of a file whose batches, all before `next_batch`, are durable, and whose successor is."""
        return self._record(next_batch + 1, next_batch - 1, state, RecordMark(0, 0, 0, 0, SEAL), b"")

    def _encode_split(
        self, batch: int, synced: int, state: HardState, entries: list[Entry]
    ) -> tuple[bytes, list[RecordMark]]:
        pieces = split(entries)
        marks: list[RecordMark] = []
        records: list[bytes] = []
        offset = 0
        for number, piece in enumerate(pieces, start=1):
            mark = self._mark_of(offset, piece, LAST_OF_BATCH if number == len(pieces) else 0)
            record = self._record(batch, synced, state, mark, _encode(piece))
            marks.append(mark)
            records.append(record)
            offset += len(record)
        return b"".join(records), marks

    def _mark_of(self, offset: int, entries: list[Entry], flags: int) -> RecordMark:
        if not entries:
            return RecordMark(offset, 0, 0, 0, flags)
        for entry in entries:
            if entry.type:
                flags |= CONF_CHANGE
                break
        first = entries[0]
        return RecordMark(offset, first.index, len(entries), first.term, flags)

    def _record(self, batch: int, synced: int, state: HardState, mark: RecordMark, payload: bytes) -> bytes:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise InvariantViolation(
                f"entry {mark.first_index} of {len(payload)} bytes, more than {PAYLOAD_BYTES_MAX}"
            )
        body = _BODY.pack(
            len(payload),
            mark.count,
            mark.flags,
            0,
            batch,
            synced,
            mark.first_index,
            mark.term,
            state.term,
            state.vote,
            state.commit,
        )
        crc = zlib.crc32(payload, zlib.crc32(body, self._salt))
        return b"".join((_PREFIX.pack(self._mark, crc), body, payload))


def split(entries: list[Entry]) -> list[list[Entry]]:
    """Pieces of one term and of about RECORD_PAYLOAD_BYTES each (or one entry)."""
    pieces: list[list[Entry]] = []
    piece: list[Entry] = []
    size = 0
    for entry in entries:
        if piece and (entry.term != piece[0].term or size + len(entry.data) > RECORD_PAYLOAD_BYTES):
            pieces.append(piece)
            piece = []
            size = 0
        piece.append(entry)
        size += len(entry.data)
    pieces.append(piece)
    return pieces


def record_hard_state(data: memoryview | bytes, offset: int) -> HardState:
    """The hard state that the record at `offset` carries."""
    return HardState(*_HARD_STATE.unpack_from(data, offset + _HARD_STATE_AT))


def record_synced(data: memoryview | bytes, offset: int) -> int:
    """The `synced` number of the record at `offset`."""
    (synced,) = _SYNCED.unpack_from(data, offset + _SYNCED_AT)
    return int(synced)


def mark_bytes(mark: int) -> bytes:
    """A file's mark as it stands at the start of each record, to search for."""
    return _CRC.pack(mark)


def decode_entries(payload: memoryview | bytes) -> list[Entry]:
    """The entries of a record's payload; msgspec.DecodeError when it is none."""
    return _decode(payload)
