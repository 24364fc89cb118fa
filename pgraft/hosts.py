"""What a host may be called, the same in settings, handshakes and membership."""

from __future__ import annotations

HOST_BYTES_MAX = 256


def is_host(text: str) -> bool:
    """Whether this may be a host's name or numeric address: bounded, nothing that C or a log trips over."""
    return (
        0 < len(text.encode("utf-8", "replace")) <= HOST_BYTES_MAX and text.isprintable() and " " not in text
    )
