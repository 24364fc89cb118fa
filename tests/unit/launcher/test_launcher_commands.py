"""pgraft-launch on a real PostgreSQL: words, exit codes, and what is left behind."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.postgres import process
from tests.unit.launcher.launcher_node import OneNode, launch
from tests.unit.launcher.launcher_standins import environment

pytestmark = pytest.mark.cluster

JSON_FIELDS = {
    "name": str,
    "node_id": int,
    "state": str,
    "is_leader": bool,
    "leader": int,
    "term": int,
    "commit_index": int,
    "data_dir": str,
    "dsn": str,
    "raft_address": str,
    "pids": dict,
}


@pytest.fixture(scope="module")
def made() -> Iterator[OneNode]:
    """A node that has been made; each test leaves it stopped."""
    node = OneNode()
    done = node.init()
    assert done.returncode == 0, done.stderr
    yield node
    node.destroy()


@pytest.fixture
def node(made: OneNode) -> Iterator[OneNode]:
    """The same, stopped again afterwards whatever the test did to it."""
    yield made
    made.kill_all()


@pytest.fixture
def running(node: OneNode) -> OneNode:
    """A node that runs."""
    done = node.do("start")
    assert done.returncode == 0, done.stderr
    return node


def one_line(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The error of a command that had to fail: its last line, no traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("pgraft-launch: error: ")
    return line


def test_without_l_the_log_is_not_on_the_file_system_of_the_raft_state(node: OneNode) -> None:
    log = Path(f"{node.pgdata}.log")
    assert f"log in {log}" in node.do("start").stdout
    assert "ready to accept connections" in log.read_text()
    assert not list(node.raft_dir.glob("*.log"))
    node.do("stop")
    log.unlink()
    log.mkdir()  # as where the server's user may not write
    line = one_line(node.do("start"))
    assert f"cannot open the log file {log}" in line
    assert "-l FILE" in line
    log.rmdir()


def test_exit_codes_are_those_of_pg_ctl(node: OneNode) -> None:
    assert node.do("status").returncode == 3
    assert "is not running" in one_line(node.do("stop"))
    assert node.do("start", "-s").stdout == ""
    assert node.do("status").returncode == 0
    again = one_line(node.do("start"))
    assert "already running" in again
    assert str(node.status()["pids"]["supervisor"]) in again
    stopped = node.do("stop")
    assert stopped.returncode == 0
    assert "node stopped" in stopped.stdout
    assert node.do("status").returncode == 3
    assert launch("status", "-D", str(node.root / "nowhere")).returncode == 4
    assert launch("status", "-D", str(node.root)).returncode == 4
    for command in ("start", "stop", "restart", "reload"):
        assert "No such file" in one_line(launch(command, "-D", str(node.root / "nowhere")), 1)
    assert "invalid choice" in one_line(launch("bogus"), 1)
    assert "is not smart, fast or immediate" in one_line(launch("stop", "-m", "slow"), 1)
    assert "'soon' is not a number of seconds" in one_line(launch("stop", "-t", "soon"), 1)
    assert "'soon' is not a number of seconds" in one_line(launch("stop", PGCTLTIMEOUT="soon"), 1)
    assert launch("status", "-D", str(node.pgdata), PGCTLTIMEOUT="soon").returncode == 3


def test_a_directory_that_is_no_data_directory_is_called_so_to_root_too(node: OneNode) -> None:
    assert "is not a data directory" in one_line(launch("stop", "-D", "/var"), 1)


def test_the_environment_names_the_directory(node: OneNode) -> None:
    assert launch("status", PGDATA=str(node.pgdata)).returncode == 3
    assert "use -D DIR or set PGDATA" in one_line(launch("status", PGDATA=""), 1)


def test_status_for_programs(running: OneNode) -> None:
    seen = running.status()
    for name, kind in JSON_FIELDS.items():
        assert isinstance(seen[name], kind), name
    assert (seen["name"], seen["node_id"], seen["state"]) == ("only", 1, "running")
    assert seen["data_dir"] == str(running.pgdata)
    assert seen["raft_address"] == f"127.0.0.1:{running.raft_port}"
    assert set(seen["pids"]) == {"supervisor", "worker", "network", "postmaster"}
    assert all(isinstance(pid, int) for pid in seen["pids"].values())
    assert running.sql("SELECT 1") == "1"
    running.do("stop")
    down = running.status()
    assert (down["name"], down["state"], down["is_leader"]) == ("only", "stopped", False)
    assert set(down["pids"].values()) == {None}


def test_a_broken_configuration_keeps_nobody_from_looking_and_stopping(running: OneNode) -> None:
    pids = running.status()["pids"]
    conf = running.pgdata / "postgresql.conf"
    whole = conf.read_text()
    conf.write_text(whole + "max_connections = nonsense\n")
    try:
        assert running.status()["pids"] == pids
        assert "cannot read its configuration" in one_line(running.do("restart"))
        assert running.do("reload").returncode == 0
        assert running.do("stop").returncode == 0
        assert running.refs() == []
        assert "cannot read its configuration" in running.status()["error"]
        assert running.do("status").returncode == 3
    finally:
        conf.write_text(whole)


@pytest.mark.parametrize("loss", ["damaged record", "no run directory"])
def test_a_node_whose_record_is_lost_is_still_known_and_stopped(running: OneNode, loss: str) -> None:
    pids = running.status()["pids"]
    run = running.raft_dir / "run"
    if loss == "damaged record":
        (run / "supervisor.json").write_text("garbage")
    else:
        shutil.rmtree(run)
    assert running.status()["pids"] == pids
    assert f"already running (supervisor PID {pids['supervisor']})" in one_line(running.do("start"))
    assert running.do("stop").returncode == 0
    assert running.refs() == []
    assert [process.start_ticks(pid) for pid in pids.values()] == [None] * 4
    assert running.do("start").returncode == 0


def test_a_clean_stop_leaves_no_process_segment_or_fifo(running: OneNode) -> None:
    segment = running.segment()
    assert segment.exists()
    running.do("stop")
    assert running.refs() == []
    assert not segment.exists()
    assert not list((running.raft_dir / "run").glob("*.bell"))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("-c shared_preload_libraries=nonsense", "could not access file"),
        ("-c nonsense=1", "unrecognized configuration parameter"),
        ("-c max_connections=0", "outside the valid range"),
        ("-c pgraft.name=other", "pgraft.name = 'other': must be one of the names"),
        ("-c 'unclosed", "No closing quotation"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(node: OneNode, option: str, words: str) -> None:
    assert words in one_line(node.do("start", "-o", option))
    assert node.refs() == []
    assert node.do("status").returncode == 3


def test_a_full_dev_shm_is_one_clear_line(node: OneNode) -> None:
    def limit() -> None:
        # As good as a full /dev/shm: the pages of the segment cannot be reserved.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, 1024 * 1024))

    done = subprocess.run(
        [sys.executable, "-P", "-m", "pgraft_launcher", "start", "-D", str(node.pgdata)],
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert "/dev/shm" in one_line(done)
    assert not node.segment().exists()


def test_a_restart_keeps_the_options_of_the_start(node: OneNode) -> None:
    node.do("start", "-o", "-c work_mem=7MB", "-l", str(node.root / "my.log"))
    before = node.status()["pids"]["postmaster"]
    assert node.do("restart").returncode == 0
    assert node.status()["pids"]["postmaster"] != before
    assert node.sql("SHOW work_mem") == "7MB"
    assert (node.root / "my.log").read_text().count("ready to accept connections") == 2


def test_a_reload_reads_the_files_again(running: OneNode) -> None:
    with (running.pgdata / "postgresql.auto.conf").open("a") as file:
        file.write("work_mem = '9MB'\n")
    assert running.do("reload").returncode == 0
    deadline = time.monotonic() + 10
    while running.sql("SHOW work_mem") != "9MB" and time.monotonic() < deadline:
        pass
    assert running.sql("SHOW work_mem") == "9MB"


def test_kill_of_everything_and_a_new_start(running: OneNode) -> None:
    epoch_file = running.segment()
    before = running.status()
    running.kill_all()
    assert epoch_file.exists()
    down = running.status()
    assert (down["state"], down["term"]) == ("stopped", before["term"])
    assert "is not running" in one_line(running.do("stop"))
    done = running.do("start")
    assert done.returncode == 0, done.stderr
    assert running.sql("SELECT 1") == "1"


def test_a_dead_supervisor_is_replaced_or_its_node_stopped(running: OneNode) -> None:
    before = running.status()["pids"]
    os.kill(before["supervisor"], signal.SIGKILL)
    assert running.do("status").returncode == 0
    done = running.do("start")
    assert done.returncode == 0, done.stderr
    after = running.status()["pids"]
    assert {**after, "supervisor": 0} == {**before, "supervisor": 0}
    assert after["supervisor"] != before["supervisor"]
    os.kill(after["supervisor"], signal.SIGKILL)
    assert running.do("stop").returncode == 0
    assert running.refs() == []
    assert not running.segment().exists()


def test_a_postgres_that_pg_ctl_started_gets_its_runtime(node: OneNode) -> None:
    node.pg_ctl("start", "-l", str(node.pgdata / "own.log"))
    postmaster = node.status()["pids"]["postmaster"]
    assert node.do("start").returncode == 0
    assert node.status()["pids"]["postmaster"] == postmaster
    assert node.status()["state"] == "running"
    assert node.do("stop").returncode == 0
    assert node.refs() == []


def test_only_one_of_two_starts_at_once_wins(node: OneNode) -> None:
    argv = [sys.executable, "-P", "-m", "pgraft_launcher", "start", "-D", str(node.pgdata)]
    both = [
        subprocess.Popen(
            argv, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    complaints = [child.communicate()[1] for child in both]
    assert sorted(child.returncode for child in both) == [0, 1], complaints
    assert any("already running" in complaint for complaint in complaints)


def test_a_smart_stop_waits_for_sessions_and_a_fast_one_does_not(running: OneNode) -> None:
    import psycopg

    with psycopg.connect(running.status()["dsn"], autocommit=True) as session:
        assert "did not stop within 1 s" in one_line(running.do("stop", "-m", "smart", "-t", "1"))
        assert session.execute("SELECT 1").fetchone() == (1,)
        assert running.do("stop", "-m", "fast").returncode == 0
    assert running.refs() == []


def test_run_stays_in_the_foreground_until_sigterm(node: OneNode) -> None:
    argv = [sys.executable, "-P", "-m", "pgraft_launcher", "run", "-D", str(node.pgdata)]
    child = subprocess.Popen(argv, env=environment(), stderr=subprocess.PIPE, text=True, cwd="/")
    stream = child.stderr
    assert stream is not None
    lines = []
    for line in stream:
        lines.append(line)
        if "the node is ready" in line:
            break
    assert node.status()["pids"]["supervisor"] == child.pid
    child.terminate()
    rest = stream.read()
    assert child.wait(30) == 0
    assert "database system is ready" in "".join(lines)
    assert "database system is shut down" in rest
    stream.close()
    assert node.refs() == []


def test_a_configuration_outside_of_the_data_directory(node: OneNode) -> None:
    outside = node.root / "etc"
    outside.mkdir()
    config = node.pgdata / "postgresql.conf"
    text = config.read_text()
    try:
        (outside / "postgresql.conf").write_text(
            f"{text}\ndata_directory = '{node.pgdata}'\nhba_file = '{node.pgdata}/pg_hba.conf'\n"
            f"ident_file = '{node.pgdata}/pg_ident.conf'\n"
        )
        config.rename(node.pgdata / "aside.conf")
        owner = node.pgdata.stat()
        for path in (outside, outside / "postgresql.conf"):
            os.chown(path, owner.st_uid, owner.st_gid)
        done = launch("start", "-D", str(outside))
        assert done.returncode == 0, done.stderr
        assert launch("status", "-D", str(outside)).returncode == 0
        assert node.status()["data_dir"] == str(node.pgdata)
        assert launch("stop", "-D", str(outside)).returncode == 0
        option = f"-c config_file={outside}/postgresql.conf"
        assert node.do("start", "-o", option).returncode == 0
        assert node.do("stop").returncode == 0
    finally:
        (node.pgdata / "aside.conf").rename(config)


@pytest.mark.parametrize("words", [[], ["init"], ["start"], ["stop"], ["status"], ["run"], ["demo", "up"]])
def test_help_is_there(words: list[str]) -> None:
    done = launch(*words, "--help")
    assert done.returncode == 0
    assert "usage: pgraft-launch" in done.stdout


def test_a_bug_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pgraft_launcher import cli

    def broken(argv: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(cli, "_settle", broken)
    assert cli.main(["status"]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    path = Path(complaint.rpartition(" details in ")[2].rstrip(")\n"))
    assert "ZeroDivisionError" in path.read_text()
    path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes its user")
def test_root_is_told_when_the_user_cannot_read_pgraft(node: OneNode, tmp_path: Path) -> None:
    import shutil

    import pgraft
    import pgraft_launcher

    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    for package in (pgraft, pgraft_launcher):
        shutil.copytree(Path(str(package.__file__)).parent, hidden / package.__name__)
    done = node.do("status", PYTHONPATH=f"{hidden}:{os.environ.get('PYTHONPATH', '')}")
    line = one_line(done)
    assert "cannot read" in line
    assert "chmod a+rX" in line
