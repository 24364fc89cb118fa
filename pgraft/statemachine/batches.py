"""A machine's snapshot as a stream of batches: each a length (u32, little endian) and a msgpack record, in
pieces."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from pgraft.statemachine.errors import SnapshotDamaged
from pgraft.statemachine.limits import BATCH_BYTES_MAX, PIECE_BYTES_MAX

_LENGTH: Final = struct.Struct("<I")


def pieces_of(batch: bytes) -> Iterator[bytes]:
    """A batch, cut into pieces."""
    data = _LENGTH.pack(len(batch)) + batch
    for at in range(0, len(data), PIECE_BYTES_MAX):
        yield data[at : at + PIECE_BYTES_MAX]


class BatchReader:
    """Puts pieces together to batches again, however they are cut."""

    __slots__ = ("_buffer", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The batches that this piece completes. Raises SnapshotDamaged for a length that none has."""
        buffer = self._buffer
        buffer += piece
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > BATCH_BYTES_MAX:
                raise SnapshotDamaged(
                    f"{self._name}: a batch of {length} bytes, at most {BATCH_BYTES_MAX} are possible"
                )
            end = at + _LENGTH.size + length
            if len(buffer) < end:
                break
            yield bytes(memoryview(buffer)[at + _LENGTH.size : end])
            at = end
        del buffer[:at]

    def finish(self) -> None:
        """Raises SnapshotDamaged when a batch is not complete."""
        if self._buffer:
            raise SnapshotDamaged(f"{self._name}: it ends {len(self._buffer)} bytes into a batch")
