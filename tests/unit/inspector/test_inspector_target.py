"""Finding the segment, and one clear line when there is nothing to show."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pgraft.inspector.cli import main
from pgraft.shm import layout
from pgraft.shm.place import NAME_PREFIX, SHM_DIR


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("pgraft-inspect: ")
    return captured.err


def test_found_by_pgdata_header_also_with_a_data_dir_elsewhere(node, capsys):
    assert main(["show", "-D", str(node.pgdata)]) == 0
    assert "orders" in capsys.readouterr().out


def test_found_by_the_name_stored_in_the_data_dir(node, capsys):
    node.segment.header["pgdata_inode"] += 1  # made for another one
    (node.data_dir / "run").mkdir(parents=True)
    (node.data_dir / "run" / "segment").write_text(node.name + "\n")
    for arguments in (["-D", str(node.pgdata)], ["-D", str(node.data_dir)], [str(node.data_dir)]):
        assert main(["show", *arguments]) == 0
        assert "orders" in capsys.readouterr().out


def test_found_by_name_path_and_pgdata_variable(node, capsys, monkeypatch):
    monkeypatch.setenv("PGDATA", str(node.pgdata))
    for arguments in ([node.name], ["/" + node.name], [str(node.path)], []):
        assert main(["show", *arguments]) == 0
        assert "orders" in capsys.readouterr().out


def test_newest_segment_that_is_not_retired_wins(node, capsys):
    other = f"{NAME_PREFIX}test.{uuid.uuid4().hex[:16]}"
    node.segment.header["retired"] = 1
    (SHM_DIR / other).write_bytes(node.path.read_bytes())
    (SHM_DIR / other).chmod(0o600)
    node.segment.header["retired"] = 0
    try:
        assert main(["show", "-D", str(node.pgdata)]) == 0
        assert node.name in capsys.readouterr().out
    finally:
        (SHM_DIR / other).unlink()


def test_directory_of_something_else_is_called_that(tmp_path, capsys):
    assert main(["show", "-D", str(tmp_path)]) == 1
    assert "neither a PostgreSQL data directory nor a pgraft.data_dir" in one_line(capsys)


def test_stopped_node_says_what_to_do(tmp_path, capsys):
    (tmp_path / "PG_VERSION").write_text("18\n")
    assert main(["show", "-D", str(tmp_path)]) == 1
    assert f"pgraft-launch start -D {tmp_path}" in one_line(capsys)


def test_segment_that_is_gone_says_what_to_do(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "segment").write_text("pgraft.0.gone")
    assert main(["json", "-D", str(tmp_path)]) == 1
    assert "pgraft-launch start" in one_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "-D", "/nowhere/at/all"],
        ["show", "no/such/name"],
        ["show", "bad\x1bname"],
        ["show", "-D", "/tmp", "name"],
        ["rings", "pgraft.never.was"],
    ],
)
def test_wrong_targets_are_one_line(arguments, capsys):
    assert main(arguments) == 1
    one_line(capsys)


@pytest.mark.parametrize("arguments", [["dance"], [], ["watch", "--interval", "-1"], ["watch", "-n", "0"]])
def test_wrong_arguments_are_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "--help" in one_line(capsys)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "only 0 bytes"),
        (b"hello", "only 5 bytes"),
        (b"\0" * 2**20, "no pgraft header"),
        (b"\xff" * (2**20 + 3), "no pgraft header"),
    ],
)
def test_foreign_file_is_one_line(content, says, capsys):
    path = SHM_DIR / f"{NAME_PREFIX}test.{uuid.uuid4().hex[:16]}"
    path.write_bytes(content)
    path.chmod(0o600)
    try:
        assert main(["show", path.name]) == 1
        assert says in one_line(capsys)
    finally:
        path.unlink()


def test_older_layout_is_one_line(node, capsys):
    node.segment.header["layout_version"] = layout.LAYOUT_VERSION - 1
    assert main(["show", node.name]) == 1
    assert f"layout version {layout.LAYOUT_VERSION - 1}" in one_line(capsys)


def test_closed_pipe_is_quiet(node):
    done = subprocess.run(
        f"{sys.executable} -m pgraft.inspector json {node.name} | head -c 10; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.stderr == ""
    assert done.stdout.endswith("0\n")


def _read_until(master: int, wanted: bytes, seconds: float = 15.0) -> bytes:
    seen, deadline = b"", time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < deadline:
        try:
            seen += os.read(master, 65536)
        except OSError:
            break
    return seen


@pytest.mark.parametrize("whose", ["ours", "another's"])
@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_watch_on_a_terminal_ends_on_q_and_on_ctrl_c_and_leaves_it_as_it_was(node, key, whose):
    if whose == "another's":
        if os.geteuid() != 0:
            pytest.skip("only root changes its user")
        os.chown(node.path, 65534, 65534)
    master, slave = pty.openpty()
    before = subprocess.check_output(["stty", "-g"], stdin=slave)
    # As from a shell, which leads the session and has the terminal.
    shell = ["setsid", "-c", "sh", "-c", 'trap : INT; "$@"; exit $?', "sh"]
    process = subprocess.Popen(
        [*shell, sys.executable, "-m", "pgraft.inspector", "watch", node.name, "-i", "0.1"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=Path(__file__).parents[3],
        # A shell without job control starts what it puts into the background with this ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        seen = _read_until(master, b"q quits")
        assert b"orders" in seen
        os.write(master, key)
        assert process.wait(60) == 0
        assert subprocess.check_output(["stty", "-g"], stdin=slave) == before
        assert b"\x1b[?1049l" in _read_until(master, b"\x1b[?1049l")
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)
