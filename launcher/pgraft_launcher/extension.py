"""`install-extension`: builds the SQL shim for one PostgreSQL and installs it there."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from pgraft import __version__, ownership, privileges
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


def folders(installation: Installation) -> list[Path]:
    """What an install reads, runs or writes of a PostgreSQL, beside its programs."""
    beside = [installation.bindir.parent / name for name in ("lib", "lib64", "share")]
    told = [installation.config(option) for option in ("--pgxs", "--includedir-server", "--pkglibdir")]
    return [
        *(folder for folder in beside if folder.is_dir()),
        *map(Path, told),
        Path(installation.config("--sharedir"), "extension"),
    ]


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
        """Say before a long build that installing would fail, or that root had better not do it."""
        if privileges.is_root():
            _check_roots_own(self.installation)
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
    with tempfile.TemporaryDirectory(prefix="pgraft-build-", dir=_build_place()) as folder:
        build = Path(folder, "sql")
        shutil.copytree(sources(), build, ignore=_BUILT)
        for goal in ("all", "install"):
            _make(build, goal, installation)
    progress.end("installed")


def _check_roots_own(installation: Installation) -> None:
    for path in folders(installation):
        other = ownership.who_else(path)
        if other is not None:
            raise LaunchError(
                f"root does not install into {path}: others than root can change {other.path}",
                hint="run this as the owner of that PostgreSQL",
            )


def _build_place() -> str | None:
    """Where the build's folder is made; None: where temporary files are. Root builds where nobody else
    can move its folder away."""
    place = tempfile.gettempdir()
    return None if not privileges.is_root() or ownership.who_else(place) is None else "/tmp"


def _environment() -> dict[str, str]:
    """For make and what it runs: root looks for programs only where nobody else could have put one."""
    return os.environ | ({"PATH": ownership.safe_search_path()} if privileges.is_root() else {})


def _check_tools(installation: Installation) -> None:
    search = _environment().get("PATH")
    for tool in ("make", "cc"):
        if shutil.which(tool, path=search) is None and not (
            tool == "cc" and shutil.which("gcc", path=search)
        ):
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
            env=_environment(),
        )
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"make {goal} did not end within {BUILD_TIMEOUT_S} s") from error
    if done.returncode:
        raise LaunchError(
            f"make {goal} of the extension failed: {last_words(done.stderr or done.stdout)}",
            hint=f"to see all of it: make -C {sources()} {goal} {argv[-1]}",
        )


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], int],
) -> None:
    """`install-extension` on the command line; `run` decides as whom."""
    text = "build and install the SQL shim for one PostgreSQL"
    parser = commands.add_parser(
        "install-extension",
        help=text,
        description=f"{text[0].upper()}{text[1:]} (default: PG_CONFIG, else pg_config on PATH, else the"
        " embedded PostgreSQL 18). Needs a C compiler, make and the server's headers. init does this itself.",
    )
    parser.add_argument("--pg-config", metavar="PATH", help="pg_config of the PostgreSQL to install it into")
    parser.add_argument("-s", "--silent", action="store_true", help="print only errors")
    parser.set_defaults(run=run)
