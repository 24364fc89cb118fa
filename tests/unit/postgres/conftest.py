"""The embedded PostgreSQL, and data directories made with it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.postgres import binaries
from pgraft.postgres.binaries import Installation
from tests.support.pgcluster import as_server_user

MAJORS = (16, 18)


@pytest.fixture(scope="session", params=MAJORS)
def installation(request: pytest.FixtureRequest) -> Installation:
    """One PostgreSQL after the other."""
    bindir = binaries.embedded_bindir(request.param)
    if bindir is None:
        pytest.skip(f"no embedded PostgreSQL {request.param}")
    return Installation(bindir)


@pytest.fixture(scope="session")
def data_dir(installation: Installation) -> Iterator[Path]:
    """An empty data directory, made by initdb."""
    root = Path(tempfile.mkdtemp(prefix="pgraft-unit-"))
    root.chmod(0o777)
    path = root / "data"
    initdb = [installation.program("initdb"), "-D", str(path), "--no-sync", "-A", "trust"]
    subprocess.run(as_server_user(*initdb), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield path
    shutil.rmtree(root)
