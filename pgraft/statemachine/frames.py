"""Frames of a snapshot stream: each is a chunk of at most CHUNK_BYTES_MAX, with its number and a checksum.

    u32 payload_bytes, u32 crc32, u32 number (from 0), u8 kind, then the payload

The checksum covers everything else, so a frame that is altered, lost, repeated or out of order is found
where it is.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from pgraft.statemachine.errors import SnapshotDamaged
from pgraft.statemachine.limits import FRAME_HEAD_BYTES, PIECE_BYTES_MAX

FRAME_HEAD: Final = 1
FRAME_SECTION: Final = 2
FRAME_PIECE: Final = 3
FRAME_END: Final = 4

_HEAD: Final = struct.Struct("<IIIB")
_COVERED: Final = struct.Struct("<IIB")


def frame(number: int, kind: int, payload: bytes) -> bytes:
    """One frame."""
    return _HEAD.pack(len(payload), _checksum(number, kind, payload), number, kind) + payload


class FrameReader:
    """Takes the bytes of a stream, however they are cut, apart into frames."""

    __slots__ = ("_buffer", "_ended", "_number", "_offset")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._number = 0
        self._offset = 0
        self._ended = False

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Kind and payload of each frame that these bytes complete. Raises SnapshotDamaged."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= FRAME_HEAD_BYTES:
            self._check(not self._ended, "something stands behind the end")
            length, crc, number, kind = _HEAD.unpack_from(buffer, at)
            self._check(length <= PIECE_BYTES_MAX, f"{length} bytes, at most {PIECE_BYTES_MAX} are possible")
            end = at + FRAME_HEAD_BYTES + length
            if len(buffer) < end:
                break
            payload = bytes(memoryview(buffer)[at + FRAME_HEAD_BYTES : end])
            self._check(_checksum(number, kind, payload) == crc, "its checksum does not match")
            self._check(number == self._number, f"frame {number} stands in its place")
            self._number += 1
            self._offset += end - at
            self._ended = kind == FRAME_END
            at = end
            yield kind, payload
        del buffer[:at]

    def finish(self) -> None:
        """Raises SnapshotDamaged unless the stream ended with its last frame."""
        self._check(not (self._ended and self._buffer), "something stands behind the end")
        self._check(self._ended, "the stream ends before its last frame")

    def _check(self, condition: bool, problem: str) -> None:
        if not condition:
            raise SnapshotDamaged(f"snapshot stream, frame {self._number} at byte {self._offset}: {problem}")


def _checksum(number: int, kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_COVERED.pack(len(payload), number, kind)))
