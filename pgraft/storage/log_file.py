"""One file of the entry log: its name, its header, and walking along its records."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pgraft.storage import files
from pgraft.storage.errors import DamagedLog, failed_call, hint_of
from pgraft.storage.format import (
    CRC_FROM,
    RECORD_HEADER_BYTES,
    RECORD_SCAN,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    unpack_segment_header,
)

WALK_BYTES = 64 * 1024
"""What a walk reads at a time; more only for a record that is larger."""
_NAME = re.compile(r"log-([0-9a-f]{16})-([0-9a-f]{16})\.pgl")


class LogFile:
    """A file of the log. Its records end at `end`; `start` log bytes stand in the files before it."""

    __slots__ = ("end", "header", "path", "start")

    def __init__(self, path: Path, header: SegmentHeader, start: int) -> None:
        self.path = path
        self.header = header
        self.start = start
        self.end = SEGMENT_HEADER_BYTES

    @property
    def total(self) -> int:
        """Log bytes up to the end of this file."""
        return self.start + self.end


class Record(NamedTuple):
    """A record met on a walk: where it is, which entries it holds, and their encoding."""

    offset: int
    end: int
    batch: int
    first: int
    entries: int
    term: int
    payload: memoryview


def file_name(header: SegmentHeader) -> str:
    """`log-<sequence>-<first index>.pgl`, in hexadecimal, so that names sort as the files follow."""
    return f"log-{header.sequence:016x}-{header.first_index:016x}.pgl"


def list_files(directory: Path) -> dict[int, Path]:
    """The log files of a directory, by sequence, in order. DamagedLog when two have the same."""
    found: dict[int, Path] = {}
    for name in files.list_names(directory):
        match = _NAME.fullmatch(name)
        if not match:
            continue
        sequence = int(match[1], 16)
        if sequence in found:
            raise DamagedLog(directory / name, None, f"there are two log files number {sequence}")
        found[sequence] = directory / name
    return dict(sorted(found.items()))


def read_header(fd: int, path: Path, sequence: int) -> SegmentHeader:
    """The header of log file number `sequence`; DamagedLog when it is not what it should be."""
    try:
        header = unpack_segment_header(files.read_at(fd, SEGMENT_HEADER_BYTES, 0))
    except OSError as error:
        raise failed_call("read the entry log", path, error, 0) from error
    except ValueError as error:
        raise DamagedLog(path, 0, str(error), hint_of(error)) from error
    if header.sequence != sequence:
        raise DamagedLog(path, 0, f"the file header says this is number {header.sequence} of its log")
    return header


def walk_records(fd: int, file: LogFile, offset: int) -> Iterator[Record]:
    """The records from `offset` to the file's end, each checked. DamagedLog at one that is not good,
    StorageError when the file cannot be read."""
    mark, salt = file.header.mark, file.header.salt
    wanted = WALK_BYTES
    while offset < file.end:
        view = memoryview(read_part(fd, file.path, offset, min(wanted, file.end - offset)))
        wanted = WALK_BYTES
        pos = 0
        while pos + RECORD_HEADER_BYTES <= len(view):
            found, crc, size, count, _, batch, first, term = RECORD_SCAN.unpack_from(view, pos)
            stop = pos + RECORD_HEADER_BYTES + size
            if found != mark or offset + stop > file.end:
                raise DamagedLog(file.path, offset + pos, "a record of the entry log no longer reads back")
            if stop > len(view):
                wanted = max(WALK_BYTES, stop - pos)
                break
            if zlib.crc32(view[pos + CRC_FROM : stop], salt) != crc:
                raise DamagedLog(file.path, offset + pos, "a record of the entry log no longer reads back")
            payload = view[pos + RECORD_HEADER_BYTES : stop]
            yield Record(offset + pos, offset + stop, batch, first, count, term, payload)
            pos = stop
        offset += pos
        if pos == 0 and wanted == WALK_BYTES:
            raise DamagedLog(file.path, offset, "a record of the entry log ends too early")


def read_part(fd: int, path: Path, offset: int, length: int) -> bytes:
    """`length` bytes at `offset`, which must be there."""
    data = b""
    while len(data) < length:
        # A read stops short before a bad sector, too; only the next one says so.
        at = offset + len(data)
        try:
            more = files.read_at(fd, length - len(data), at)
        except OSError as error:
            raise failed_call("read the entry log", path, error, at) from error
        if not more:
            raise DamagedLog(path, offset, f"the file ends {length - len(data)} bytes too early")
        data += more
    return data
