"""Run by root, the inspector reads a node's files as the node's owner only."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.shm import segment as segments
from pgraft.shm.place import SHM_DIR
from tests.support.other_user import STRANGER, roots_place, sh

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
ROOT = Path(__file__).parents[3]
WATCHED = """
import json, os, sys
from pgraft.inspector.cli import main

opened = []

def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and not args[2] & os.O_PATH:
        opened.append((os.fsdecode(args[0]), os.getresuid()))

sys.addaudithook(watch)
code = main(sys.argv[1:])
print(json.dumps([code, os.getresuid(), opened]), file=sys.stderr)
"""


def inspect(*words: str) -> tuple[int, list[int], dict[str, list[int]]]:
    """Exit status, the user ids at the end, and those by which each file was opened."""
    argv = [sys.executable, "-c", WATCHED, "show", *words]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    code, uids, opened = json.loads(done.stderr.splitlines()[-1])
    return code, uids, dict(opened)


@pytest.fixture
def owned(node) -> Iterator[tuple[Path, str]]:
    """A data directory and a segment of another user's."""
    account = pwd.getpwnam(STRANGER)
    with roots_place() as place:
        pgdata = place / "data"
        pgdata.mkdir()
        (pgdata / "PG_VERSION").write_text("18\n")
        segments.set_directories(node.segment, data_dir=f"{pgdata}.pgraft", pgdata=pgdata)
        for path in (pgdata, pgdata / "PG_VERSION", node.path):
            os.chown(path, account.pw_uid, account.pw_gid)
        yield pgdata, node.name


@pytest.mark.parametrize("by", ["-D", "directory", "segment", "PGDATA", "configuration"])
def test_it_becomes_the_owner_first(
    owned: tuple[Path, str], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pgdata, name = owned
    words = {"-D": ["-D", str(pgdata)], "directory": [str(pgdata)], "segment": [name], "PGDATA": []}
    if by == "PGDATA":
        monkeypatch.setenv("PGDATA", str(pgdata))
    elif by == "configuration":
        outside = pgdata.parent / "etc"
        outside.mkdir()
        (outside / "postgresql.conf").write_text(f"data_directory = '{pgdata}'\n")
        words[by] = ["-D", str(outside)]
    code, uids, opened = inspect(*words[by])
    uid = pwd.getpwnam(STRANGER).pw_uid
    assert (code, uids) == (0, [uid] * 3)
    assert opened[str(SHM_DIR / name)] == [uid] * 3
    assert [path for path, who in opened.items() if path.startswith(str(pgdata)) and 0 in who] == []


def test_a_segment_of_anothers_directory_is_not_read_as_root(node) -> None:
    """The directory names a segment that only root could read."""
    with roots_place() as place:
        node.path.chmod(0o600)
        pgdata = place / "data"
        pgdata.mkdir()
        account = pwd.getpwnam(STRANGER)
        os.chown(pgdata, account.pw_uid, account.pw_gid)
        sh(STRANGER, 'mkdir "$1/run"; echo "$2" > "$1/run/segment"', str(pgdata), node.name)
        argv = [sys.executable, "-m", "pgraft.inspector", "show", "-D", str(pgdata)]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "orders" not in done.stdout


def test_a_link_of_a_third_users_is_not_followed(owned: tuple[Path, str]) -> None:
    pgdata, _ = owned
    shared = pgdata.parent / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    sh("daemon", 'ln -s "$1" "$2"', str(pgdata), str(shared / "link"))
    argv = [sys.executable, "-m", "pgraft.inspector", "show", "-D", str(shared / "link")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"root does not take the way to {shared / 'link'}" in done.stderr
