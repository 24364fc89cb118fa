"""Segments as tests see them: root runs the tests, and PostgreSQL's user makes the segments."""

from __future__ import annotations

from pgraft.shm.place import SHM_DIR, SegmentError
from pgraft.shm.segment import Segment, attach


def attach_any(name: str) -> Segment:
    """Map a segment for reading, whoever made it. Raises SegmentError."""
    try:
        owner = (SHM_DIR / name).lstat().st_uid
    except OSError as error:
        raise SegmentError(f"no segment {name}") from error
    return attach(name, readonly=True, owner=owner)
