"""The other end of a node's Raft port, spoken by hand over a real socket, with TLS or without."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pgraft.transport.framing import PROTOCOL_VERSION, FrameDecoder, FrameType, encode_frame
from pgraft.transport.handshake import Hello, Refused, decode_refused, encode
from pgraft.transport.tls_files import TlsFiles

WAIT_S = 30.0
MEMBER_ID = 0xABCDEF
INSTANCE_ID = 0x123456


def client_context(files: TlsFiles | None = None, *, trust: Path | None = None) -> ssl.SSLContext:
    """TLS with these files, else without a certificate; `trust`: what to believe, else anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if trust is not None:
        context.load_verify_locations(trust)
        context.verify_mode = ssl.CERT_REQUIRED
    if files is not None:
        context.load_cert_chain(files.cert, files.key)
    return context


def client_hello() -> bytes:
    """The first flight of somebody who speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    there = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), there).do_handshake()
    return there.read()


class Dialogue:
    """One connection."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        plain = socket.create_connection(("127.0.0.1", port), WAIT_S)
        self.port: int = plain.getsockname()[1]
        try:
            self.sock = plain if context is None else context.wrap_socket(plain)
        except OSError:
            plain.close()
            raise
        self._decoder = FrameDecoder()

    def hello(self, receiver: int, **changes: Any) -> None:
        """Say hello; a good one of node 2 in cluster "pgraft", but for `changes`."""
        fields: dict[str, Any] = {
            "protocol_version": PROTOCOL_VERSION,
            "min_version": PROTOCOL_VERSION,
            "cluster_id": "pgraft",
            "node_id": 2,
            "member_id": MEMBER_ID,
            "instance_id": INSTANCE_ID,
            "expected_receiver": receiver,
            "initial_state": "existing",
            "initial_members": "",
            "formed": True,
            "address": "127.0.0.1",
            "port": 1,
        }
        self.sock.sendall(encode_frame(FrameType.HELLO, encode(msgspec.convert(fields | changes, Hello))))

    def frame(self) -> tuple[FrameType, bytes]:
        """The next frame. Raises EOFError at the end, ssl.SSLError on an alert."""
        frames = self._decoder.feed(memoryview(b""))
        while not frames:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError("closed by the node")
            frames = self._decoder.feed(memoryview(data))
        kind, payload = frames[0]
        return FrameType(kind), bytes(payload)

    def refusal(self) -> Refused:
        """The next frame, which refuses us; and then the node closes."""
        kind, payload = self.frame()
        assert kind is FrameType.REFUSED, kind
        self.end()
        return decode_refused(memoryview(payload))

    def end(self) -> None:
        """The node closes the connection, with nothing more to say."""
        try:
            rest = self.sock.recv(1)
        except (ConnectionError, ssl.SSLError):
            return
        assert rest == b"", rest


@contextlib.contextmanager
def dialogue(port: int, context: ssl.SSLContext | None = None) -> Iterator[Dialogue]:
    """A connection that is closed afterwards."""
    made = Dialogue(port, context)
    try:
        yield made
    finally:
        made.sock.close()
