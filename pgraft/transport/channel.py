"""Bytes in and out of a non-blocking socket. tls.py has the same shape with TLS around it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import Protocol

from pgraft.transport.limits import RETRANSMIT_MS_MAX, SEND_BUFFERS_MAX, SEND_JOIN_BYTES

_TCP_RTO_MAX_MS = 44
"""linux/tcp.h, since Linux 6.15."""

Buffer = bytes | memoryview
SocketAddress = tuple[str, int] | tuple[str, int, int, int]


class Channel(Protocol):
    """What a connection needs of its socket."""

    greedy: bool
    """Whether there is probably more to read at once; epoll tells of it otherwise."""
    shake_writes: bool
    """Whether `shake` goes on when the socket takes bytes, rather than when some come."""

    def fileno(self) -> int:
        """The descriptor to watch."""
        ...

    def shake(self) -> None:
        """Do, or go on with, what comes before the first frame of either side (a TLS handshake). Raises
        BlockingIOError, OSError, RemoteViolation."""
        ...

    def recv_into(self, room: memoryview) -> int:
        """Bytes received, 0 at the end. Raises BlockingIOError, OSError."""
        ...

    def send(self, parts: Sequence[Buffer], size: int) -> int:
        """Bytes taken of `parts`, whose lengths add up to `size`. Raises BlockingIOError, OSError."""
        ...

    def end_writing(self) -> None:
        """Tell the other side that nothing more comes."""
        ...

    def close(self) -> None:
        """Close the socket."""
        ...


class PlainChannel:
    """TCP as it is."""

    __slots__ = ("_sock", "greedy", "recv_into", "shake_writes")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.greedy = False
        self.shake_writes = False
        self.recv_into = sock.recv_into

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._sock.fileno()

    def shake(self) -> None:
        """Nothing comes before the first frame."""

    def send(self, parts: Sequence[Buffer], size: int) -> int:
        """Small batches go as one buffer, large ones as a vector without a copy."""
        if size <= SEND_JOIN_BYTES:
            return self._sock.send(b"".join(parts))
        return self._sock.sendmsg(parts[:SEND_BUFFERS_MAX])

    def end_writing(self) -> None:
        """Half-close; a socket that is broken already needs no farewell."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def prepare(sock: socket.socket, user_timeout_ms: int) -> None:
    """What every connection between nodes has: no blocking, no delay, a death that is noticed."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(1, user_timeout_ms // 1000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
    # After a cut the wait for the next repetition counts against the next election.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, RETRANSMIT_MS_MAX)


def where(address: SocketAddress) -> str:
    """host:port for people; IPv6 in brackets."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
