"""Snapshot files: `snap-<index>-<term>.pgs`, in hexadecimal, each written once and never changed.

    8s magic, u32 format version, u32 payload_bytes
    u64 first_file    number of the first log file that counts beside this snapshot
    u64 index, u64 term
    u32 crc32 of what precedes it and of the payload
    payload: msgpack of the Snapshot

The newest file rules. Older snapshots, and log files before `first_file`, are leftovers of a crash
between the rename of the newest and their removal.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from pgraft.raft.types import Snapshot
from pgraft.storage import files
from pgraft.storage.errors import DamagedLog, OtherVersion, failed_call, hint_of

FORMAT_VERSION = 1
MAGIC = b"PGRAFTSN"
SNAPSHOT_BYTES_MAX = 64 * 1024 * 1024
"""Largest snapshot file: membership and removed ids take far less."""
_HEAD = struct.Struct("<8sIIQQQ")
_CRC = struct.Struct("<I")
_NAME = re.compile(r"snap-([0-9a-f]{16})-([0-9a-f]{16})\.pgs")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Snapshot).decode


class StoredSnapshot(NamedTuple):
    """A snapshot, its file, and the number of the first log file that counts beside it."""

    snapshot: Snapshot
    path: Path
    first_file: int


def write_snapshot(directory: Path, snapshot: Snapshot, first_file: int) -> StoredSnapshot:
    """Make `snapshot` the newest, atomically and durably. Older files stay until `remove_others`."""
    place = snapshot.metadata
    payload = _encode(snapshot)
    if len(payload) > SNAPSHOT_BYTES_MAX:
        raise ValueError(f"snapshot of {len(payload)} bytes, at most {SNAPSHOT_BYTES_MAX} are possible")
    head = _HEAD.pack(MAGIC, FORMAT_VERSION, len(payload), first_file, place.index, place.term)
    crc = zlib.crc32(payload, zlib.crc32(head))
    path = directory / f"snap-{place.index:016x}-{place.term:016x}.pgs"
    files.replace(path, head + _CRC.pack(crc) + payload)
    return StoredSnapshot(snapshot, path, first_file)


def load_newest(directory: Path) -> StoredSnapshot | None:
    """The newest snapshot, or None. DamagedLog when it does not read back: it was durable once."""
    names = sorted(name for name in files.list_names(directory) if _NAME.fullmatch(name))
    if not names:
        return None
    path = directory / names[-1]
    try:
        data = read_whole(path, SNAPSHOT_BYTES_MAX + 4096)
    except OSError as error:
        raise failed_call("read the snapshot", path, error) from error
    try:
        return _parse(path, data)
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        raise DamagedLog(path, 0, f"the snapshot cannot be used: {error}", hint_of(error)) from error


def remove_others(directory: Path, keep: Path) -> None:
    """Remove every snapshot file but `keep`."""
    for name in files.list_names(directory):
        if _NAME.fullmatch(name) and name != keep.name:
            files.unlink(directory / name)


def read_whole(path: Path, bytes_max: int) -> bytes:
    """A file's content; ValueError when it is larger than it can be."""
    fd = files.open_to_read(path)
    try:
        size = files.size_of(fd)
        if size > bytes_max:
            raise ValueError(f"{size} bytes, at most {bytes_max} are possible")
        return files.read_at(fd, size, 0)
    finally:
        files.close(fd)


def _parse(path: Path, data: bytes) -> StoredSnapshot:
    body_at = _HEAD.size + _CRC.size
    if len(data) < body_at or data[: len(MAGIC)] != MAGIC:
        raise ValueError("this is no pgraft snapshot file")
    _, version, size, first_file, index, term = _HEAD.unpack_from(data)
    if version != FORMAT_VERSION:
        raise OtherVersion(version, FORMAT_VERSION)
    (crc,) = _CRC.unpack_from(data, _HEAD.size)
    if len(data) != body_at + size or zlib.crc32(data[body_at:], zlib.crc32(data[: _HEAD.size])) != crc:
        raise ValueError("its checksum does not match")
    snapshot = _decode(data[body_at:])
    if (snapshot.metadata.index, snapshot.metadata.term) != (index, term):
        raise ValueError("its header and its content disagree")
    return StoredSnapshot(snapshot, path, first_file)
