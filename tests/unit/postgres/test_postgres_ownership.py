"""Who could have put a file where it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgraft
from pgraft import ownership
from pgraft.postgres import binaries
from pgraft.postgres.binaries import Installation
from pgraft.postgres.errors import PostgresError
from pgraft.postgres.reader import Reader
from tests.support.other_user import STRANGER, Programs, roots_place, sh
from tests.support.pgcluster import bindir

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs files of several users")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of root's that everybody can pass, in /var/tmp, which everybody can write."""
    with roots_place() as folder:
        yield folder


def changed_by(path: Path) -> str | None:
    """The component by which another could change it."""
    found = ownership.who_else(path)
    return found.path if found else None


def test_what_only_root_could_have_put_there(place: Path) -> None:
    (place / "program").write_text("")
    (place / "link").symlink_to("../" + place.name + "/program")
    assert changed_by(place / "program") is None
    assert changed_by(place / "link") is None
    assert changed_by(Path("/bin/sh")) is None


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_folder_or_file_that_others_can_write(place: Path, mode: int) -> None:
    folder = place / "folder"
    folder.mkdir()
    (folder / "program").write_text("")
    (folder / "program").chmod(mode)
    assert changed_by(folder / "program") == str(folder / "program")
    (folder / "program").chmod(0o755)
    folder.chmod(mode)
    assert changed_by(folder / "program") == str(folder)
    folder.chmod(0o1777)
    assert changed_by(folder / "program") is None


def test_a_link_of_another_user_to_a_program_of_roots(place: Path) -> None:
    place.chmod(0o1777)
    sh(STRANGER, 'ln -s /bin/sh "$1"', str(place / "link"))
    assert changed_by(place / "link") == str(place / "link")


def test_a_folder_behind_two_dots_counts(place: Path) -> None:
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    (place / "program").write_text("")
    (place / "link").symlink_to("open/../program")
    assert changed_by(place / "link") == str(place / "open")


def test_what_is_not_there(place: Path) -> None:
    with ownership.walk(place / "a" / "b") as way:
        assert (way.last.path, way.missing) == (str(place), ["a", "b"])
    (place / "link").symlink_to("a/b")
    with ownership.walk(place / "link" / "c") as way:
        assert way.missing == ["a", "b", "c"]
    with pytest.raises(FileNotFoundError):
        ownership.who_else(place / "a")
    (place / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        ownership.walk(place / "loop")


def test_no_descriptor_is_left(place: Path) -> None:
    (place / "loop").symlink_to("loop")
    before = os.listdir("/proc/self/fd")
    for path in (place / "a" / "b", place, place / "loop", Path("/bin/sh/x")):
        try:
            ownership.walk(path).__exit__()
        except OSError:
            continue
    assert os.listdir("/proc/self/fd") == before


def test_who_could_have_changed_pgraft_itself_is_believed(place: Path) -> None:
    """A checkout of an ordinary user's that root runs: the PostgreSQL in it is no worse."""
    checkout = place / "checkout"
    shutil.copytree(Path(str(pgraft.__file__)).parent, checkout / "pgraft")
    (checkout / "bin").mkdir()
    for name in ("inside", "writable"):
        (checkout / "bin" / name).write_text("")
    shutil.chown(checkout, STRANGER)
    checkout.chmod(0o775)
    (checkout / "bin" / "writable").chmod(0o775)
    (place / "others").write_text("")
    shutil.chown(place / "others", "daemon")
    code = "import sys; from pgraft import ownership as o; print([not o.who_else(p) for p in sys.argv[1:]])"
    paths = [checkout / "bin" / "inside", checkout / "bin" / "writable", place / "others"]
    env = {"PYTHONPATH": str(checkout), "PATH": os.environ["PATH"]}
    words = [sys.executable, "-P", "-c", code, *map(str, paths)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[True, False, False]\n"


def test_root_runs_nothing_that_another_could_have_put_there(place: Path) -> None:
    place.chmod(0o777)
    programs = Programs(place, STRANGER)
    with pytest.raises(PostgresError, match=f"root does not run {programs.bindir}/pg_config"):
        binaries.from_pg_config(str(programs.bindir / "pg_config"))
    with pytest.raises(PostgresError, match="root does not run"):
        Installation(programs.bindir)
    foreign = Installation(bindir(18))
    foreign.bindir = programs.bindir
    with pytest.raises(PostgresError, match="root does not run"):
        Reader(foreign, place).read("port")
    assert programs.ran_as() == set()
