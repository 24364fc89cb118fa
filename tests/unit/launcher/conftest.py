"""Stand-ins under a real supervisor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.launcher.launcher_standins import Standins


@pytest.fixture
def standins(tmp_path: Path) -> Iterator[Standins]:
    """A node of stand-ins, not started."""
    node = Standins(tmp_path)
    yield node
    node.destroy()
