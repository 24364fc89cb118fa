"""`install-extension`: builds the SQL shim for one PostgreSQL and installs it there."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from pgraft import __version__
from pgraft.postgres import binaries
from pgraft.postgres.binaries import Installation, last_words
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.progress import Progress

BUILD_TIMEOUT_S = 300
_CONTROL = "pgraft.control"
_BUILT = shutil.ignore_patterns("*.o", "*.so", "*.bc", "results", "output_iso", "regression.*", "tmp_check*")
_VERSION = re.compile(r"^\s*default_version\s*=\s*'([^']*)'", re.MULTILINE)


def sources() -> Path:
    """The folder with the shim's sources: beside the package, or in the checkout that it runs from."""
    here = Path(__file__).resolve().parent
    for folder in (here / "_sql", here.parent.parent / "sql"):
        if (folder / _CONTROL).exists():
            return folder
    raise LaunchError("the sources of the extension are missing", hint="install pgraft again")


class Target:
    """Where one PostgreSQL keeps its extensions."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.control = Path(installation.config("--sharedir"), "extension", _CONTROL)
        self.library = Path(installation.config("--pkglibdir"), "pgraft.so")

    def installed_version(self) -> str | None:
        """The version that is installed; None when none is, or not all of it."""
        try:
            match = _VERSION.search(self.control.read_text(encoding="utf-8"))
        except OSError:
            return None
        return match[1] if match and self.library.exists() else None

    def is_current(self) -> bool:
        """Whether it is this version, and not older than the sources."""
        if self.installed_version() != __version__:
            return False
        built = self.library.stat().st_mtime
        return all(path.stat().st_mtime <= built for path in sources().glob("*.[chs]*"))

    def can_be_replaced(self) -> bool:
        """Whether this user, with the tools that are here, could install it."""
        try:
            _check_tools(self.installation)
            self.check_writable()
        except LaunchError:
            return False
        return True

    def check_writable(self) -> None:
        """Say before a long build that installing would fail."""
        for folder in (self.control.parent, self.library.parent):
            if not os.access(folder, os.W_OK):
                raise LaunchError(
                    f"cannot install the extension: {folder} is not writable",
                    hint=f"run this as root or as its owner: pgraft-launch install-extension --pg-config"
                    f" {self.installation.program('pg_config')}",
                )


def ensure(installation: Installation, progress: Progress) -> None:
    """Install the extension unless this very version is there.

    One of this version that is older than the sources is replaced where that can be done, and good
    enough where it cannot (another user's installation, no compiler).
    """
    target = Target(installation)
    if target.is_current():
        return
    if target.installed_version() == __version__ and not target.can_be_replaced():
        return
    install(target, progress)


def install(target: Target, progress: Progress) -> None:
    """Build in a folder of its own, so that the sources stay as they are and may be read-only."""
    installation = target.installation
    _check_tools(installation)
    target.check_writable()
    where = f"PostgreSQL {installation.version} in {installation.bindir.parent}"
    progress.begin(f"building the extension for {where}")
    with tempfile.TemporaryDirectory(prefix="pgraft-build-") as folder:
        build = Path(folder, "sql")
        shutil.copytree(sources(), build, ignore=_BUILT)
        for goal in ("all", "install"):
            _make(build, goal, installation)
    progress.end("installed")


def _check_tools(installation: Installation) -> None:
    for tool in ("make", "cc"):
        if shutil.which(tool) is None and not (tool == "cc" and shutil.which("gcc")):
            raise LaunchError(
                f"building the extension needs {tool}, which is not on PATH",
                hint="install a C compiler and make (Debian: apt-get install gcc make)",
            )
    headers = Path(installation.config("--includedir-server"), "postgres.h")
    pgxs = Path(installation.config("--pgxs"))
    for path in (headers, pgxs):
        if not path.exists():
            raise LaunchError(
                f"building the extension needs {path}, which is missing",
                hint=f"install the server's development files"
                f" (Debian: apt-get install postgresql-server-dev-{installation.major})",
            )


def _make(build: Path, goal: str, installation: Installation) -> None:
    argv = ["make", "-s", "-C", str(build), goal, f"PG_CONFIG={installation.program('pg_config')}"]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"make {goal} did not end within {BUILD_TIMEOUT_S} s") from error
    if done.returncode:
        raise LaunchError(
            f"make {goal} of the extension failed: {last_words(done.stderr or done.stdout)}",
            hint=f"to see all of it: make -C {sources()} {goal} {argv[-1]}",
        )


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`install-extension` on the command line."""
    text = "build and install the SQL shim for one PostgreSQL"
    parser = commands.add_parser(
        "install-extension",
        help=text,
        description=f"{text[0].upper()}{text[1:]} (default: PG_CONFIG, else pg_config on PATH, else the"
        " embedded PostgreSQL 18). Needs a C compiler, make and the server's headers. init does this itself.",
    )
    parser.add_argument("--pg-config", metavar="PATH", help="pg_config of the PostgreSQL to install it into")
    parser.add_argument("-s", "--silent", action="store_true", help="print only errors")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    # As root it stays root: `make install` writes where root owns the files, and starts no server.
    install(Target(binaries.find(args.pg_config)), Progress(silent=args.silent))
    return 0
