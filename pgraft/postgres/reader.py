"""Reading settings as PostgreSQL itself reads them: `postgres -C NAME -D DIR`.

So includes, postgresql.auto.conf, `-c` options and quoting all count without a parser of ours. The
library is not loaded there, and pgraft's settings are placeholders: their text comes back as it
stands in the file, and an unset one is FATAL, "unrecognized".
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from pgraft.postgres.binaries import COMMAND_TIMEOUT_S, Installation, check_runnable, last_words
from pgraft.postgres.errors import PostgresError
from pgraft.postgres.settings import SETTINGS

PARALLEL_MAX = 8
"""Programs that read settings at once; each takes about 10 ms."""
SERVER_SETTINGS = (
    "port",
    "unix_socket_directories",
    "listen_addresses",
    "max_connections",
    "autovacuum_max_workers",
    "max_worker_processes",
    "max_wal_senders",
    "shared_preload_libraries",
)
AUTOVACUUM_SLOTS = "autovacuum_worker_slots"  # PostgreSQL 18 and later
_DATA_DIRECTORY = re.compile(
    r"^\s*data_directory\s*(?:=|\s)\s*'((?:[^'\\]|\\.|'')*)'", re.MULTILINE | re.IGNORECASE
)


def guess_data_directory(config_dir: Path) -> Path:
    """Where the data is, before it is known which PostgreSQL to ask: only to find its version.

    -D may name a folder that holds only postgresql.conf, as Debian lays it out.
    """
    if (config_dir / "PG_VERSION").exists():
        return config_dir
    try:
        text = (config_dir / "postgresql.conf").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return config_dir
    match = _DATA_DIRECTORY.search(text)
    return Path(match[1].replace("''", "'")) if match else config_dir


def split_options(options: Sequence[str]) -> list[str]:
    """The values of -o flags as arguments of postgres."""
    try:
        return [word for option in options for word in shlex.split(option)]
    except ValueError as error:
        raise PostgresError(f"-o {' '.join(options)!r}: {error}") from error


class Reader:
    """Reads settings of one data (or configuration) directory, with the options postgres will get."""

    def __init__(self, installation: Installation, config_dir: Path, options: Sequence[str] = ()) -> None:
        self.installation = installation
        self.config_dir = config_dir
        self.options = list(options)

    def read(self, name: str) -> str:
        """One setting that PostgreSQL knows; PostgresError with its complaint otherwise."""
        done = self._spawn(name)
        printed, complaint = _finish(done)
        if done.returncode:
            raise PostgresError(f"PostgreSQL cannot read its configuration: {last_words(complaint)}")
        return printed

    def read_pgraft(self) -> dict[str, str]:
        """All of pgraft's settings that are set."""
        # Read first one that always exists: from then on a failure means "not set", whatever
        # language lc_messages makes PostgreSQL say it in.
        self.read("data_directory")
        return self._read_set([setting.name for setting in SETTINGS])

    def read_server(self) -> dict[str, str]:
        """The settings of PostgreSQL's own that a node needs to know."""
        return self._read_set([*SERVER_SETTINGS, AUTOVACUUM_SLOTS])

    def _read_set(self, names: Sequence[str]) -> dict[str, str]:
        values = {}
        for batch in _batches(names):
            running = [(name, self._spawn(name)) for name in batch]
            for name, process in running:
                printed, _ = _finish(process)
                if process.returncode == 0:
                    values[name] = printed
        return values

    def _spawn(self, name: str) -> subprocess.Popen[str]:
        argv = [self.installation.program("postgres"), "-C", name, "-D", str(self.config_dir), *self.options]
        check_runnable(argv[0])
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="surrogateescape",
            )
        except OSError as error:
            raise PostgresError(f"cannot run {argv[0]}: {error}") from error


def _batches(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[i : i + PARALLEL_MAX] for i in range(0, len(names), PARALLEL_MAX))


def _finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        printed, complaint = process.communicate(timeout=COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise PostgresError("postgres -C does not end") from error
    return printed.removesuffix("\n"), complaint
