"""Frames on the wire, sans-IO: bytes in, frames out.

A frame is a 16-byte header and a payload:

    4s  magic "PGRF"
    B   protocol version of the sender (agreed version once the handshake is over)
    B   FrameType
    I   payload length
    H   lower half of the crc32 of the 10 bytes before it
    I   crc32 of the 12 bytes before it and of the payload

A length is checked against the bound of the connection's state before anything is kept for it, and the
header by itself before its payload is waited for: a damaged length would swallow what follows, on a
quiet connection for many minutes, and nothing would seem to be wrong with it.
As in h11, an error's type says whose fault it is.
"""

from __future__ import annotations

import enum
import struct
import zlib

from pgraft.transport.limits import FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX

PROTOCOL_VERSION = 1
PROTOCOL_VERSION_MIN = 1
"""The oldest version spoken: releases N and N-1 work together."""

MAGIC = b"PGRF"
HEADER_BYTES = 16
_HEADER = struct.Struct("<4sBBIHI")
_FIELDS = struct.Struct("<4sBBI")
_CHECK = struct.Struct("<H")
_CHECK_MASK = 0xFFFF
_CRC = struct.Struct("<I")
_FIELDS_BYTES = _FIELDS.size
_CHECKED_BYTES = _FIELDS.size + _CHECK.size
_TLS_HANDSHAKE_BYTE = 0x16


class FrameType(enum.IntEnum):
    """What a frame carries."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    MESSAGE = 4
    PING = 5
    PONG = 6


_TYPES = frozenset(int(member) for member in FrameType)
_HANDSHAKE_TYPES = frozenset({int(FrameType.HELLO), int(FrameType.WELCOME), int(FrameType.REFUSED)})


class ViolationKind(enum.Enum):
    """Which rule of the protocol was broken."""

    MAGIC = "not a pgraft frame"
    VERSION = "wrong protocol version"
    TYPE = "unknown frame type"
    LENGTH = "frame too long"
    CHECKSUM = "checksum does not match"
    HANDSHAKE = "malformed handshake"
    ORDER = "frame out of order"
    TLS = "TLS handshake failed"
    TLS_ALERT = "it ended the TLS handshake"
    CERTIFICATE = "its certificate is refused"


class ProtocolViolation(Exception):
    """The protocol was broken; catch one of the two below to know by whom."""

    def __init__(self, kind: ViolationKind, detail: str, hint: str = "") -> None:
        super().__init__(f"{kind.value}: {detail}")
        self.kind = kind
        self.hint = hint


class RemoteViolation(ProtocolViolation):
    """The peer sent what the protocol does not allow: close its connection and count it."""


class LocalViolation(ProtocolViolation):
    """This node tried to send what the protocol does not allow: nothing was sent."""


Frame = tuple[int, memoryview]
"""(FrameType number, payload). The payload is valid until the next bytes are fed."""


def frame_header(kind: int, payload: bytes | memoryview, version: int = PROTOCOL_VERSION) -> bytes:
    """The header that goes before `payload`. Raises LocalViolation when it is longer than a frame may be."""
    length = len(payload)
    if length > FRAME_BYTES_MAX:
        raise LocalViolation(ViolationKind.LENGTH, f"{length} bytes, at most {FRAME_BYTES_MAX} fit")
    fields = _FIELDS.pack(MAGIC, version, kind, length)
    crc = zlib.crc32(fields)
    check = _CHECK.pack(crc & _CHECK_MASK)
    return fields + check + _CRC.pack(zlib.crc32(payload, zlib.crc32(check, crc)))


def encode_frame(kind: FrameType, payload: bytes = b"", version: int = PROTOCOL_VERSION) -> bytes:
    """One whole frame. Raises LocalViolation."""
    return frame_header(kind, payload, version) + payload


class FrameDecoder:
    """Cuts a stream of bytes into frames. Starts in the handshake, with its smaller bound.

    During the handshake any protocol version passes, since a peer of another version is owed an
    answer that says so; `established` fixes the agreed one. Until then `feed` gives one frame at a
    time: feed nothing to get the next one, since a welcome and a message can come in one piece.
    """

    __slots__ = ("_held", "_limit", "_need", "_version")

    def __init__(self) -> None:
        self._held = bytearray()
        self._need = HEADER_BYTES
        self._limit = HANDSHAKE_BYTES_MAX
        self._version = 0

    def established(self, version: int) -> None:
        """The handshake is over: long frames may come, of this version only."""
        self._limit = FRAME_BYTES_MAX
        self._version = version

    @property
    def held_bytes(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._held)

    def feed(self, data: memoryview) -> list[Frame]:
        """Frames completed by `data`. Raises RemoteViolation; the decoder is of no use after that."""
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return []
            data = memoryview(self._held)
            # A new buffer for what follows: the frames returned still point into the old one.
            self._held = bytearray()
        return self._cut(data)

    def _cut(self, data: memoryview) -> list[Frame]:
        frames: list[Frame] = []
        at, end = 0, len(data)
        self._need = HEADER_BYTES
        while end - at >= HEADER_BYTES:
            magic, version, kind, length, check, crc = _HEADER.unpack_from(data, at)
            if magic != MAGIC or length > self._limit:
                raise self._header_violation(data[at:], length)
            stop = at + HEADER_BYTES + length
            if stop > end:
                # Of a whole frame the other checksum covers the header, too.
                if zlib.crc32(data[at : at + _FIELDS_BYTES]) & _CHECK_MASK != check:
                    raise RemoteViolation(
                        ViolationKind.CHECKSUM, f"in the header of a frame of {length} bytes"
                    )
                self._need = stop - at
                break
            payload = data[at + HEADER_BYTES : stop]
            if zlib.crc32(payload, zlib.crc32(data[at : at + _CHECKED_BYTES])) != crc:
                raise RemoteViolation(ViolationKind.CHECKSUM, f"in a frame of {length} bytes")
            if version != self._version:
                self._check_version(version, kind)
            if kind not in _TYPES:
                raise RemoteViolation(ViolationKind.TYPE, f"type {kind}")
            frames.append((kind, payload))
            at = stop
            if not self._version:
                break  # what the owner makes of this frame decides how the next ones are read
        if at < end:
            self._held += data[at:]
        return frames

    def _check_version(self, version: int, kind: int) -> None:
        if self._version or kind not in _HANDSHAKE_TYPES:
            expected = self._version or "a handshake first"
            raise RemoteViolation(ViolationKind.VERSION, f"version {version}, expected {expected}")

    def _header_violation(self, data: memoryview, length: int) -> RemoteViolation:
        start = bytes(data[:HEADER_BYTES])
        if start[:4] == MAGIC and length > self._limit:
            return RemoteViolation(ViolationKind.LENGTH, f"{length} bytes, at most {self._limit} are allowed")
        if start[0] == _TLS_HANDSHAKE_BYTE:
            return RemoteViolation(
                ViolationKind.MAGIC, "it speaks TLS and this node does not; pgraft.ssl_enabled must agree"
            )
        return RemoteViolation(ViolationKind.MAGIC, f"it starts with {start!r}")
