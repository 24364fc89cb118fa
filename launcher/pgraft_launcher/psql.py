"""Single statements through the psql of one PostgreSQL."""

from __future__ import annotations

from pgraft.postgres import binaries
from pgraft.postgres.binaries import Installation

STATEMENT_TIMEOUT_S = 60


def query(installation: Installation, dsn: str, statement: str) -> str:
    """What the statement returns, unaligned; PostgresError with the server's message."""
    argv = [installation.program("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", dsn]
    return binaries.run([*argv, "-c", statement], timeout_s=STATEMENT_TIMEOUT_S).rstrip("\n")


def literal(text: str) -> str:
    """A string literal (standard_conforming_strings is on)."""
    return "'" + text.replace("'", "''") + "'"
