"""The regression tests of sql/, run the way pg_regress runs them.

`make -C sql installcheck` does the same with pg_regress itself; the one that the wheel of PostgreSQL 18
carries does not start, so psql is called here directly.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.support.shim_harness import SQL, Server

SCRIPTS = sorted(path.stem for path in (SQL / "sql").glob("*.sql"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_regression(pg: Server, script: str) -> None:
    with pg.connect() as session:
        session.connection.execute("CREATE DATABASE contrib_regression TEMPLATE template0")
    try:
        with (SQL / "sql" / f"{script}.sql").open() as source:
            done = subprocess.run(
                [pg.bin / "psql", "-X", "-a", "-q", "-h", pg.root, "-U", "postgres", "contrib_regression"],
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=60,
            )
    finally:
        with pg.connect() as session:
            session.connection.execute("DROP DATABASE contrib_regression")
    assert done.stdout == (SQL / "expected" / f"{script}.out").read_text()


def test_every_script_is_in_the_makefile() -> None:
    assert f"REGRESS = {' '.join(SCRIPTS)}" in (SQL / "Makefile").read_text()
