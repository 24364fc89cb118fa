"""Other users of the machine, for tests that root runs: what they put somewhere, and what they may do."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMAND_TIMEOUT_S = 120
STRANGER = "nobody"
"""Who owns nothing of a node's, where `pgcluster.server_user` is somebody else."""


def run_as(user: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end as this user, with no group but its own."""
    account = pwd.getpwnam(user)
    return subprocess.run(
        words,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
        **options,
    )


def sh(user: str, script: str, *words: str) -> None:
    """A shell script of this user's, with its arguments as $1 and so on; it must succeed."""
    done = run_as(user, "sh", "-euc", script, "sh", *words)
    assert done.returncode == 0, done.stderr


@contextmanager
def roots_place() -> Iterator[Path]:
    """A folder in which root only can make something, and that everybody can pass."""
    folder = Path(tempfile.mkdtemp(prefix="pgraft-root-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Programs:
    """A folder with programs of PostgreSQL's that a user has written: each notes as whom it runs."""

    NAMES = ("postgres", "pg_ctl", "initdb", "pg_config", "psql")

    def __init__(self, folder: Path, user: str) -> None:
        self.bindir = folder / "bin"
        self.marks = folder / "marks"
        for name in self.NAMES:
            script = f"#!/bin/sh\nid -u >> '{self.marks}'\necho 'postgres (PostgreSQL) 18.0'\n"
            sh(
                user,
                'mkdir -p "$1"; printf %s "$2" > "$1/$3"; chmod 755 "$1/$3"; : >> "$4"; chmod 666 "$4"',
                *(str(self.bindir), script, name, str(self.marks)),
            )

    def ran_as(self) -> set[int]:
        """The user ids under which any of them ran."""
        return {int(line) for line in self.marks.read_text().split()}


def owner(path: Path) -> str:
    """To whom it belongs, itself and not what it links to."""
    return pwd.getpwuid(os.lstat(path).st_uid).pw_name
