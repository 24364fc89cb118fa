"""The simulation as a fixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node_sim import Sim, simulation


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Sim]:
    """An empty cluster whose clock stands still until it is told to run."""
    with simulation(tmp_path) as one:
        yield one
