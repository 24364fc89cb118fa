"""What is wrong with a two-copy block, in words.

`pgraft.shm.blocks` falls back to the older copy by itself; a person who looks at a node after a
crash wants to be told that it did.
"""

from __future__ import annotations

import zlib

from pgraft.shm import layout
from pgraft.shm.segment import Segment

_TRIES = 50


def _is_whole(segment: Segment, offset: int, copy_bytes: int, number: int) -> bool:
    copy = bytes(segment.bytes_at(offset + number * copy_bytes, copy_bytes))
    crc, used = (int.from_bytes(copy[at : at + 8], "little") for at in (0, 8))
    return 16 <= used <= copy_bytes and zlib.crc32(copy[8:used]) == crc


def _torn(segment: Segment, block: str, offset: int, copy_bytes: int) -> list[str]:
    """A live worker may overtake a reader; only a copy that stays bad is called torn."""
    for _ in range(_TRIES):
        if _is_whole(segment, offset, copy_bytes, segment.worker[f"{block}_selector"] & 1):
            return []
    return [f"the newest copy of the {block} block is torn: what is shown is the one before it"]


def torn_status(segment: Segment) -> list[str]:
    """A note when the selected copy of the status block does not carry its checksum."""
    return _torn(segment, "status", layout.STATUS_OFFSET, layout.STATUS_COPY_BYTES)


def torn_members(segment: Segment) -> list[str]:
    """A note when the selected copy of the members block does not carry its checksum."""
    return _torn(segment, "members", segment.header["members_offset"], layout.MEMBERS_COPY_BYTES)


def unreadable(block: str, generation: int) -> str:
    """The note for a block without any whole copy."""
    if generation == 0:
        return f"the {block} block has never been written: the worker did not get that far"
    return f"the {block} block is torn: neither of its two copies carries its checksum"
