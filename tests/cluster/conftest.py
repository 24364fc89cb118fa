"""Fixtures for tests on real PostgreSQL: a data directory template per version, and clusters."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import pgcluster


@pytest.fixture(scope="session")
def templates() -> Iterator[dict[int, Path]]:
    """initdb once a session and version."""
    root = Path(tempfile.mkdtemp(prefix="pgraft-template-", dir="/var/tmp"))
    root.chmod(0o755)
    made: dict[int, Path] = {}

    class Templates(dict[int, Path]):
        def __missing__(self, major: int) -> Path:
            self[major] = pgcluster.make_template(major, root)
            return self[major]

    yield Templates(made)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def template(templates: dict[int, Path]) -> Path:
    """The template of the newest PostgreSQL."""
    return templates[18]
