"""A segment of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgraft.shm.segment import Segment
from tests.support.shm_peer import made_segment, unique_name


@pytest.fixture
def segment(request: pytest.FixtureRequest) -> Iterator[Segment]:
    """A whole segment, ready for use."""
    with made_segment(unique_name(request.node.nodeid)) as made:
        yield made
