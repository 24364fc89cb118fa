"""Where root's virtual environment belongs: nobody else puts it there, or anything into it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.other_user import STRANGER, owner, sh

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root takes a folder below /var/tmp")
CI = Path(__file__).parents[3] / ".ci"


class Checkout:
    """A checkout that PostgreSQL's user cannot read, and the folder that belongs to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        (self.folder / ".ci").mkdir(parents=True)
        self.folder.chmod(0o700)
        for name in ("find-venv", "make-venv"):
            shutil.copy(CI / name, self.folder / ".ci" / name)
        found = subprocess.run(["cksum"], input=str(self.folder).encode(), capture_output=True, check=True)
        self.first = Path(f"/var/tmp/pgraft-venv-{found.stdout.split()[0].decode()}")
        self.second = self.first.with_name(self.first.name + "x")

    def find(self) -> Path:
        """What `find-venv` says."""
        done = subprocess.run([self.folder / ".ci/find-venv"], capture_output=True, text=True, check=True)
        return Path(done.stdout.strip())


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path / f"{zlib.crc32(str(tmp_path).encode()):x}")
    yield made
    for left in (made.first, made.second):
        if left.is_symlink() or left.is_file():
            left.unlink()
        elif left.exists():
            shutil.rmtree(left)


def test_the_folder_is_there_before_anybody_looks_into_it(checkout: Checkout) -> None:
    assert checkout.find() == checkout.first
    about = checkout.first.lstat()
    assert (about.st_uid, about.st_mode & 0o777) == (0, 0o755)
    assert checkout.find() == checkout.first


@pytest.mark.parametrize(
    "script", ['mkdir "$1"', 'mkdir -m 777 "$1"', ': > "$1"', 'ln -s /usr "$1"', 'ln -s /nowhere "$1"']
)
def test_what_another_user_has_put_there_is_passed_by(checkout: Checkout, script: str) -> None:
    sh(STRANGER, script, str(checkout.first))
    assert checkout.find() == checkout.second
    assert owner(checkout.second) == "root"


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_folder_that_others_can_write_is_passed_by(checkout: Checkout, mode: int) -> None:
    checkout.first.mkdir()
    checkout.first.chmod(mode)
    assert checkout.find() == checkout.second


def make_venv(folder: Path) -> subprocess.CompletedProcess[str]:
    words = [str(CI / "make-venv"), sys.executable, str(folder)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_no_environment_is_made_where_others_could_change_it(checkout: Checkout) -> None:
    sh(STRANGER, 'mkdir "$1"', str(checkout.first))
    assert "belongs to another user" in make_venv(checkout.first).stderr
    assert list(checkout.first.iterdir()) == []
    checkout.second.mkdir()
    checkout.second.chmod(0o777)
    done = make_venv(checkout.second)
    assert done.returncode == 1
    assert "others can write into" in done.stderr
    assert list(checkout.second.iterdir()) == []
