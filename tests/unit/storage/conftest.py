"""Shared by the storage tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """An empty data directory of our own."""
    path = tmp_path / "node"
    path.mkdir(mode=0o700)
    return path
