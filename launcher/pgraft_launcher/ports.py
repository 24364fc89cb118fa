"""Free TCP ports on loopback for a demo."""

from __future__ import annotations

import contextlib
import socket
import zlib

from pgraft_launcher.errors import LaunchError

LOOPBACK = "127.0.0.1"
# Below the range that Linux takes for outgoing connections, so that a node finds its port free again.
PORT_FIRST = 15000
PORT_LAST = 31999


def free_ports(count: int, seed: str) -> list[int]:
    """`count` ports that nobody listens on; the same seed starts looking at the same place."""
    span = PORT_LAST - PORT_FIRST + 1
    start = zlib.crc32(seed.encode()) % span
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for step in range(span):
            port = PORT_FIRST + (start + step) % span
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind((LOOPBACK, port))
                found.append(port)
            if len(found) == count:
                return found
    raise LaunchError(f"no {count} free ports from {PORT_FIRST} to {PORT_LAST}")
