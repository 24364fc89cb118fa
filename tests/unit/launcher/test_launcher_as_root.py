"""Root runs pgraft-launch on what another user has written: none of it gets root's rights."""

from __future__ import annotations

import ast
import inspect
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgraft_launcher
from pgraft.postgres import conffile
from pgraft_launcher import as_root
from tests.support import other_user
from tests.support.other_user import STRANGER, Programs, owner, roots_place, sh
from tests.support.pgcluster import bindir, pg_config, server_user
from tests.unit.launcher.launcher_node import OneNode, launch
from tests.unit.launcher.launcher_standins import environment

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user"),
]
USER = server_user() or ""


@pytest.fixture
def node() -> Iterator[OneNode]:
    """A folder of the server's user, for a node."""
    made = OneNode()
    yield made
    made.destroy()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in which only root can make something."""
    with roots_place() as folder:
        yield folder


@pytest.fixture
def victim(place: Path) -> Path:
    """An empty directory of root's that has nothing to do with any node."""
    folder = place / "victim"
    folder.mkdir()
    return folder


def init_words(directory: Path, *words: str) -> list[str]:
    name = ["--name", "a", "--initial-cluster", "a=127.0.0.1:7001", "-o", "--no-sync"]
    return ["init", "-D", str(directory), *name, "--pg-config", pg_config(18), *words]


# --- programs that root is told of ----------------------------------------------------------------------


def demo_of(node: OneNode, **content: object) -> Path:
    """A demo whose catalogue its user has written."""
    folder = node.root / "demo"
    catalogue = {"nodes": [], "sockets": str(folder / "s"), "bindir": str(bindir(18))} | content
    sh(USER, 'mkdir -m 700 "$1"; printf %s "$2" > "$1/demo.json"', str(folder), json.dumps(catalogue))
    return folder


@pytest.mark.parametrize("verb", ["status", "down", "up"])
def test_no_program_that_a_demo_names_runs_as_root(node: OneNode, verb: str) -> None:
    programs = Programs(node.root, USER)
    folder = demo_of(node, bindir=str(programs.bindir), access="pgraft_demo")
    launch("demo", verb, "--dir", str(folder))
    assert programs.ran_as() == {pwd.getpwnam(USER).pw_uid}


def test_nothing_that_a_demo_names_is_removed_as_root(node: OneNode, victim: Path) -> None:
    folder = demo_of(node, sockets=str(victim))
    done = launch("demo", "down", "--dir", str(folder))
    assert done.returncode == 1
    assert str(victim) in done.stderr
    assert victim.exists()


@pytest.mark.parametrize("command", ["init", "status", "start", "force-new-cluster", "adopt"])
def test_no_program_that_a_data_directory_names_runs_as_root(node: OneNode, command: str) -> None:
    programs = Programs(node.root, USER)
    note = conffile.with_block("", {}, {"bindir": str(programs.bindir)})
    script = 'mkdir -m 700 "$1"; echo 18 > "$1/PG_VERSION"; printf %s "$2" > "$1/postgresql.conf"'
    sh(USER, script, str(node.pgdata), note)
    words = ["--name", "a", "--initial-cluster", "a=127.0.0.1:7001"] if command == "init" else []
    launch(command, "-D", str(node.pgdata), *words)
    assert programs.ran_as() == {pwd.getpwnam(USER).pw_uid}


def test_install_extension_becomes_the_owner_of_that_postgres(node: OneNode) -> None:
    programs = Programs(node.root, USER)
    done = launch("install-extension", "--pg-config", str(programs.bindir / "pg_config"))
    assert done.returncode == 1
    assert programs.ran_as() == {pwd.getpwnam(USER).pw_uid}


def test_root_does_not_run_a_program_that_anybody_could_have_changed(place: Path) -> None:
    programs = Programs(place, "root")
    programs.bindir.chmod(0o777)
    done = launch("install-extension", "--pg-config", str(programs.bindir / "pg_config"))
    assert f"others can change {programs.bindir}" in done.stderr
    assert programs.ran_as() == set()


def test_nobody_runs_what_a_third_user_could_have_put_there(node: OneNode) -> None:
    """As the owner of the folder, whom root would become."""
    node.root.chmod(0o777)
    programs = Programs(node.root, STRANGER)
    done = launch("install-extension", "--pg-config", str(programs.bindir / "pg_config"))
    assert f"others can change {node.root}" in done.stderr
    assert programs.ran_as() == set()


# --- directories that root gives away -------------------------------------------------------------------


@pytest.mark.parametrize("where", ["data", "data.pgraft", "tls"])
def test_what_a_link_leads_to_is_not_given_away(node: OneNode, victim: Path, where: str) -> None:
    sh(USER, 'ln -s "$1" "$2"', str(victim), str(node.root / where))
    launch(*init_words(node.pgdata, "--user", USER, "--make-certs", str(node.root / "tls")))
    assert owner(victim) == "root"


@pytest.mark.parametrize("where", ["data", "data.pgraft", "tls"])
def test_not_even_where_root_made_the_link(place: Path, victim: Path, where: str) -> None:
    (place / where).symlink_to(victim)
    launch(*init_words(place / "data", "--user", USER, "--make-certs", str(place / "tls")))
    assert owner(victim) == "root"


SWAPPED = """
import os, sys
from pgraft_launcher.cli import main

directory, victim, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
told, tell = os.pipe()
heard, answer = os.pipe()
if os.fork() == 0:
    os.close(tell)
    os.setuid(uid)
    if os.read(told, 1):
        os.symlink(victim, directory)
        os.write(answer, b"x")
    os._exit(0)

def swap(event, args):
    # Another user is quick enough to come between the look at the name and its use.
    if event == "os.mkdir" and args[0] == directory and not os.path.lexists(directory):
        os.write(tell, b"x")
        os.read(heard, 1)

sys.addaudithook(swap)
sys.exit(main(sys.argv[4:]))
"""


def test_a_link_that_comes_between_look_and_use_is_not_followed(victim: Path, place: Path) -> None:
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    directory = shared / "demo"
    words = ["demo", "up", "--nodes", "1", "--user", USER, "--dir", str(directory)]
    uid = str(pwd.getpwnam(STRANGER).pw_uid)
    done = subprocess.run(
        [sys.executable, "-P", "-c", SWAPPED, str(directory), str(victim), uid, *words],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert directory.is_symlink()
    assert f"does not belong to {USER}" in done.stderr
    assert owner(victim) == "root"


# --- what root does at all ------------------------------------------------------------------------------

WATCHED = """
import os, stat, sys
from pgraft_launcher.cli import main
from pgraft import ownership

place, report = sys.argv[1], int(sys.argv[2])
CHANGES = ("os.chown", "os.chmod", "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink",
           "os.truncate", "os.utime", "os.listdir", "os.scandir", "os.chdir", "os.setxattr")
PROGRAMS = ("subprocess.Popen", "os.posix_spawn", "os.exec")
busy = False

def is_ours(path):
    # A name that is relative counts from a descriptor, or from where root stands: neither is right here.
    path = os.fsdecode(path)
    return not path.startswith("/") or os.path.realpath(path).startswith(place)

def is_wrong(event, args):
    if event == "open":
        looks = isinstance(args[2], int) and args[2] & os.O_PATH
        return isinstance(args[0], (str, bytes)) and not looks and is_ours(args[0])
    if event in CHANGES or event.startswith("shutil."):
        return any(isinstance(arg, int) and event != "os.chmod" for arg in args[:1]) or any(
            is_ours(arg) for arg in args if isinstance(arg, (str, bytes)))
    if event in PROGRAMS:
        program = args[0] or args[1][0]
        return ownership.who_else(program) is not None
    return False

def watch(event, args):
    global busy
    if busy or 0 not in os.getresuid():
        return
    busy = True
    try:
        if is_wrong(event, args):
            os.write(report, f"{event} {args!r}\\n".encode())
    finally:
        busy = False

sys.addaudithook(watch)
sys.exit(main(sys.argv[3:]))
"""


def watched(place: Path, *words: str) -> tuple[int, str]:
    """A command of root's: its exit code, and what it did as root to what lies in `place`."""
    with tempfile.TemporaryFile() as report:
        done = subprocess.run(
            [sys.executable, "-P", "-c", WATCHED, str(place), str(report.fileno()), *words],
            env=environment(),
            pass_fds=[report.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        report.seek(0)
        return done.returncode, report.read().decode() + (done.stderr if done.returncode == 1 else "")


def test_as_root_no_command_touches_what_the_user_could_have_written(node: OneNode) -> None:
    here = ["-D", str(node.pgdata)]
    listed = f"a=127.0.0.1:{node.raft_port}"
    sets = [f"unix_socket_directories={node.root}", "listen_addresses=", "fsync=off"]
    init = ["init", *here, "--name", "a", "--initial-cluster", listed, "-o", "--no-sync"]
    init += [word for one in sets for word in ("--set", one)]
    init += ["--pg-port", str(node.pg_port), "--make-certs", str(node.root / "tls")]
    demo = ["--dir", str(node.root / "demo")]
    for code, words in [
        (0, [*init, "--pg-config", pg_config(18)]),
        (0, init),
        (0, ["start", *here]),
        (0, ["status", *here]),
        (0, ["reload", *here]),
        (0, ["restart", *here]),
        (0, ["stop", *here]),
        (0, ["force-new-cluster", *here]),
        (0, ["adopt", *here]),
        (0, ["demo", "up", "--nodes", "1", "--pg-config", pg_config(18), *demo]),
        (0, ["demo", "status", *demo]),
        (0, ["demo", "down", *demo]),
    ]:
        assert watched(node.root, *words) == (code, ""), words


def test_the_watch_sees_what_root_must_not_do(node: OneNode) -> None:
    code = f"import os; os.listdir({str(node.root)!r})"
    script = WATCHED.replace("sys.exit(main(sys.argv[3:]))", code)
    with tempfile.TemporaryFile() as report:
        words = [sys.executable, "-P", "-c", script, str(node.root), str(report.fileno())]
        subprocess.run(words, env=environment(), pass_fds=[report.fileno()], check=True)
        report.seek(0)
        assert report.read().startswith(b"os.listdir")


def test_one_module_says_all_that_root_does() -> None:
    public = {
        name
        for name, found in inspect.getmembers(as_root, inspect.isfunction)
        if found.__module__ == as_root.__name__ and not name.startswith("_")
    }
    assert public == set(re.findall(r"^`(\w+)`", as_root.__doc__ or "", re.MULTILINE))


def test_no_other_module_gives_anything_away_or_changes_its_user() -> None:
    words = {
        "chown",
        "fchown",
        "lchown",
        "setuid",
        "setresuid",
        "seteuid",
        "setgid",
        "initgroups",
        "setgroups",
    }
    found = {
        path.name
        for path in Path(pgraft_launcher.__path__[0]).glob("*.py")
        for called in ast.walk(ast.parse(path.read_text()))
        if isinstance(called, ast.Attribute) and called.attr in words
    }
    assert found == {"as_root.py"}


# --- what root may do -----------------------------------------------------------------------------------


def test_root_makes_a_node_in_a_place_of_its_own(place: Path) -> None:
    pgdata = place / "deep" / "data"
    done = launch(*init_words(pgdata, "--user", USER, "--make-certs", str(place / "tls")))
    assert done.returncode == 0, done.stderr
    for made in (pgdata, place / "deep" / "data.pgraft", place / "tls"):
        assert owner(made) == USER
        assert made.stat().st_mode & 0o777 == 0o700
    assert owner(place / "deep") == "root"
    assert launch("status", "-D", str(pgdata)).returncode == 3


def test_an_empty_directory_of_roots_becomes_the_users(place: Path) -> None:
    """As a container's volume is."""
    pgdata = place / "volume"
    pgdata.mkdir(mode=0o700)
    done = launch(*init_words(pgdata, "--user", USER))
    assert done.returncode == 0, done.stderr
    assert owner(pgdata) == USER


def test_a_directory_of_roots_that_is_not_empty_stays_its(place: Path) -> None:
    pgdata = place / "data"
    pgdata.mkdir(mode=0o700)
    (pgdata / "mine").write_text("x")
    done = launch(*init_words(pgdata, "--user", USER))
    assert done.returncode == 1
    assert f"does not belong to {USER}" in done.stderr
    assert owner(pgdata) == "root"


def test_a_directory_in_a_shared_folder_is_made_by_the_user(place: Path) -> None:
    place.chmod(0o1777)
    done = launch(*init_words(place / "data", "--user", USER))
    assert done.returncode == 0, done.stderr
    assert owner(place / "data") == USER


@pytest.mark.parametrize("linker", ["root", USER, STRANGER])
def test_a_link_to_a_data_directory_counts_when_it_is_roots_or_the_owners(
    node: OneNode, place: Path, linker: str
) -> None:
    script = 'mkdir -m 700 "$1"; echo 18 > "$1/PG_VERSION"; : > "$1/postgresql.conf"'
    sh(USER, script, str(node.pgdata))
    place.chmod(0o1777)
    link = place / "link"
    sh(linker, 'ln -s "$1" "$2"', str(node.pgdata), str(link))
    done = launch("status", "-D", str(link))
    if linker == STRANGER != USER:
        assert done.returncode == 1
        assert f"{link} belongs to {STRANGER}, and could lead elsewhere" in done.stderr
        assert launch("status", "-D", str(link), "--user", USER).returncode == 3
    else:
        assert done.returncode == 3, done.stderr


def test_root_stops_when_there_is_no_owner_to_become(place: Path) -> None:
    pgdata = place / "data"
    pgdata.mkdir()
    assert "belongs to root" in launch("status", "-D", str(pgdata)).stderr
    assert "does not run as root" in launch(*init_words(place / "new")).stderr
    os.chown(pgdata, 12345, 12345)
    assert "user id 12345, which has no account" in launch("start", "-D", str(pgdata)).stderr
    assert launch("status", "-D", str(pgdata / "no" / "where")).returncode == 4
    assert launch("status", "-D", str(place / "nowhere"), "--user", "root").returncode == 1


def test_a_program_of_the_users_has_not_roots_terminal(node: OneNode) -> None:
    """It could type into the shell that root goes on using."""
    seen = node.root / "seen"
    programs = Programs(node.root, USER)
    script = f'#!/bin/sh\nif (: > /dev/tty) 2>/dev/null; then echo has; else echo none; fi >> "{seen}"\n'
    sh(USER, 'printf %s "$2" > "$1"', str(programs.bindir / "postgres"), script)
    sh(USER, 'mkdir -m 700 "$1"; echo 18 > "$1/PG_VERSION"', str(node.pgdata))
    sh(USER, ': > "$1/postgresql.conf"', str(node.pgdata))
    code = "import pty, sys; sys.exit(pty.spawn(['sh', '-c', '\"$@\"; exit 0', 'sh', *sys.argv[1:]]))"
    words = [*node.argv("status"), "--pg-config", str(programs.bindir)]
    subprocess.run([sys.executable, "-c", code, *words], env=environment(), capture_output=True, check=True)
    assert set(seen.read_text().split()) == {"none"}


BECAME = """
import json, os, pwd, sys
from pgraft import privileges
os.setgroups([0, 4])
privileges.become(pwd.getpwnam(sys.argv[1]))
caps = [line for line in open("/proc/self/status") if line.startswith(("CapPrm", "CapEff"))]
print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups(), [int(c.split()[1], 16) for c in caps],
                  dict(os.environ)]))
os.setuid(0)
"""


def test_nothing_of_root_is_left() -> None:
    account = pwd.getpwnam(USER)
    env = environment() | {"PGPASSWORD": "secret", "XDG_DATA_HOME": "/root/x", "TMPDIR": "/root", "KEPT": "1"}
    words = [sys.executable, "-P", "-c", BECAME, USER]
    done = subprocess.run(words, env=env, cwd="/root", capture_output=True, text=True, check=False)
    uids, gids, groups, capabilities, left = json.loads(done.stdout)
    assert uids == [account.pw_uid] * 3
    assert gids == [account.pw_gid] * 3
    assert set(groups) <= {account.pw_gid, *os.getgrouplist(USER, account.pw_gid)}
    assert capabilities == [0, 0]
    assert {left["HOME"], left["USER"], left["KEPT"]} == {account.pw_dir, USER, "1"}
    assert not {"PGPASSWORD", "XDG_DATA_HOME", "TMPDIR"} & set(left)
    assert "PermissionError" in done.stderr


BUILT = """
import sys
from pgraft_launcher.cli import main

sys.addaudithook(lambda event, args: event == "tempfile.mkdtemp" and print("built in", args[0]))
sys.exit(main(sys.argv[1:]))
"""


def test_root_builds_where_nobody_moves_its_folder_and_with_programs_of_its_own(place: Path) -> None:
    """TMPDIR and PATH name folders that anybody can write."""
    place.chmod(0o777)
    programs = Programs(place, "root")
    shutil.copy(programs.bindir / "psql", programs.bindir / "make")
    programs.bindir.chmod(0o777)
    env = environment() | {"TMPDIR": str(place), "PATH": f"{programs.bindir}:{os.environ['PATH']}"}
    words = [sys.executable, "-P", "-c", BUILT, "install-extension", "--pg-config", pg_config(18)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert programs.ran_as() == set()
    assert "built in /tmp/" in done.stdout


def test_who_is_not_root_acts_for_itself_only(node: OneNode) -> None:
    words = [*node.argv("status"), "--user", "root"]
    done = other_user.run_as(USER, *words, env=environment())
    assert "only root can act for user root" in done.stderr
