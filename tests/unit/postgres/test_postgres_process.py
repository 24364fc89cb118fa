"""Who a process is, and what PostgreSQL's own files say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pgraft.postgres import postmaster, process
from pgraft.postgres.binaries import Installation
from pgraft.postgres.process import ProcessRef
from tests.support import undead
from tests.support.pgcluster import as_server_user


@pytest.fixture
def child() -> subprocess.Popen[bytes]:
    """A process that waits for its input to end."""
    return subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()


def test_the_start_time_agrees_with_psutil(child: subprocess.Popen[bytes]) -> None:
    ref = process.identify(child.pid)
    assert ref is not None
    ticks = os.sysconf("SC_CLK_TCK")
    assert psutil.Process(child.pid).create_time() == pytest.approx(
        psutil.boot_time() + ref.start / ticks, abs=1.5
    )
    end(child)


def test_a_zombie_does_not_live(child: subprocess.Popen[bytes]) -> None:
    ref = process.identify(child.pid)
    assert ref is not None
    assert process.is_alive(ref)
    child.kill()
    assert process.wait_ended(ref, 10)
    assert process.is_zombie(child.pid)
    assert not process.is_alive(ref)
    assert process.open_pidfd(ref) is None
    assert process.child_ref(child.pid) == ref
    child.communicate()
    assert not process.is_zombie(child.pid)


def test_a_pid_that_came_round_again_is_someone_else(child: subprocess.Popen[bytes]) -> None:
    ref = process.identify(child.pid)
    assert ref is not None
    before = ProcessRef(ref.pid, ref.start - 1)
    assert not process.is_alive(before)
    assert process.open_pidfd(before) is None
    assert process.wait_ended(before, 0)
    assert not process.wait_ended(ref, 0.01)
    end(child)


def test_a_command_with_parentheses_and_spaces_is_read_right(tmp_path: Path) -> None:
    script = tmp_path / "a ) (R 1 2"
    script.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(script), "60"])
    ref = process.identify(child.pid)
    assert ref is not None
    ticks = os.sysconf("SC_CLK_TCK")
    created = psutil.Process(child.pid).create_time()
    assert created == pytest.approx(psutil.boot_time() + ref.start / ticks, abs=1.5)
    end(child)


def test_processes_are_found_by_directory_and_program(tmp_path: Path) -> None:
    child = subprocess.Popen(["/bin/sleep", "60"], cwd=tmp_path)
    program = os.path.basename(os.readlink(f"/proc/{child.pid}/exe"))
    found = process.children_with_cwd(str(tmp_path), program)
    end(child)
    assert [ref.pid for ref in found] == [child.pid]
    assert process.children_with_cwd(str(tmp_path), program) == []
    assert process.children_with_cwd(str(tmp_path / "none"), program) == []


def test_postmaster_pid_is_read(tmp_path: Path) -> None:
    lines = ["123", "/srv/pg", "1700000000", "5433", "/tmp", "localhost", "  5432001   42", "ready   "]
    (tmp_path / "postmaster.pid").write_text("\n".join(lines) + "\n")
    found = postmaster.read_pid_file(str(tmp_path))
    assert found is not None
    assert (found.pid, found.port, found.socket_dir, found.listen_address) == (123, 5433, "/tmp", "localhost")
    assert found.is_ready


@pytest.mark.parametrize("text", ["", "x\n", "1\n/d\n0\nport\n", "\0\0\0"])
def test_a_damaged_pid_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "postmaster.pid").write_text(text)
    assert postmaster.read_pid_file(str(tmp_path)) is None


def test_a_pid_file_being_written_has_no_status_yet(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text("-77\n/srv/pg\n")
    found = postmaster.read_pid_file(str(tmp_path))
    assert found is not None
    assert found.pid == 77
    assert not found.is_ready


def test_a_pid_file_that_names_another_program_is_no_postmaster(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n0\n5432\n\n\n\nready\n")
    assert postmaster.find_postmaster(str(tmp_path)) is None


def test_pg_control_tells_whether_it_was_shut_down(installation: Installation, data_dir: Path) -> None:
    assert postmaster.is_shut_down(str(data_dir))
    pg_ctl = [installation.program("pg_ctl"), "-D", str(data_dir), "-w", "-s"]
    options = f"-c listen_addresses='' -c unix_socket_directories={data_dir}"
    start = [*pg_ctl, "-o", options, "-l", str(data_dir / "log"), "start"]
    subprocess.run(as_server_user(*start), check=True, cwd="/")
    try:
        assert not postmaster.is_shut_down(str(data_dir))
        found = postmaster.find_postmaster(str(data_dir))
        assert found is not None
        pid_file = postmaster.read_pid_file(str(data_dir))
        assert pid_file is not None
        assert found.pid == pid_file.pid
        assert len(postmaster.find_backends(str(data_dir))) > 3
    finally:
        subprocess.run(as_server_user(*pg_ctl, "stop"), check=True, cwd="/")
    assert postmaster.is_shut_down(str(data_dir))
    assert postmaster.find_postmaster(str(data_dir)) is None


def lock_text(pid: int, data_dir: Path) -> str:
    return "\n".join([str(pid), str(data_dir), "0", "5432", str(data_dir), "", "", "ready"]) + "\n"


def stale(data_dir: Path, *socket_dirs: Path) -> list[str]:
    found = postmaster.find_stale_locks(str(data_dir), [str(path) for path in (data_dir, *socket_dirs)])
    return [str(Path(lock.path).relative_to(data_dir)) for lock in found]


@pytest.mark.parametrize("pid_file", ["intact", "half written", "empty", "removed"])
def test_locks_of_a_zombie_postmaster_are_stale_and_others_are_not(
    tmp_path: Path, child: subprocess.Popen[bytes], pid_file: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / ".s.PGSQL.5432.lock").write_text(lock_text(child.pid, tmp_path))
    (other / ".s.PGSQL.5432.lock").write_text(lock_text(os.getpid(), other))
    (other / ".s.PGSQL.5433.lock").write_text("")
    if pid_file != "removed":
        text = {"intact": lock_text(child.pid, tmp_path), "half written": f"{child.pid}", "empty": ""}
        (tmp_path / "postmaster.pid").write_text(text[pid_file])
    ref = process.identify(child.pid)
    assert ref is not None
    child.kill()
    process.wait_ended(ref, 10)
    main = [] if pid_file == "removed" else ["postmaster.pid"]
    assert stale(tmp_path, other) == [*main, ".s.PGSQL.5432.lock"]
    child.communicate()
    # Of no process at all: PostgreSQL removes it itself.
    assert stale(tmp_path, other) == (["postmaster.pid"] if pid_file == "empty" else [])


def test_locks_that_name_another_program_are_stale(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    (tmp_path / "postmaster.pid").write_text(lock_text(child.pid, tmp_path))
    (tmp_path / ".s.PGSQL.5432.lock").write_text(lock_text(child.pid, tmp_path))
    assert stale(tmp_path) == ["postmaster.pid", ".s.PGSQL.5432.lock"]
    end(child)


def test_locks_of_a_postgres_are_stale_only_in_another_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    program = tmp_path / postmaster.EXECUTABLE
    shutil.copy("/bin/sleep", program)
    for folder, expected in ((tmp_path, []), (tmp_path / "elsewhere", ["postmaster.pid"])):
        child = subprocess.Popen([str(program), "60"], cwd=folder)
        (tmp_path / "postmaster.pid").write_text(lock_text(child.pid, tmp_path))
        # The other one has a socket in the same folder.
        (tmp_path / ".s.PGSQL.5434.lock").write_text(lock_text(child.pid, tmp_path / "elsewhere"))
        assert stale(tmp_path) == expected
        end(child)


def test_a_dying_process_that_a_lock_names_is_waited_for(tmp_path: Path) -> None:
    with undead.held_dying(os.getuid(), tmp_path) as dying:
        (tmp_path / "postmaster.pid").write_text(lock_text(dying.pid, tmp_path))
        assert process.identify_dying(os.getpid()) is None
        [ref] = postmaster.find_dying(str(tmp_path), [])
        assert ref.pid == dying.pid
        assert stale(tmp_path) == []
        assert not process.wait_ended(ref, 0.01)
        dying.let_go()
        assert process.wait_ended(ref, 0)
        assert postmaster.find_dying(str(tmp_path), []) == []


def test_a_backend_that_frees_its_memory_is_still_found(tmp_path: Path) -> None:
    """Its program is gone from /proc by then, and PostgreSQL still sees its shared memory in use."""
    program = tmp_path / postmaster.EXECUTABLE
    program.symlink_to(sys.executable)
    code = "m = bytearray(b'x') * (300 << 20); print(flush=True); input()"
    child = subprocess.Popen(
        [str(program), "-I", "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.kill()
    missed = 0
    while not process.is_zombie(child.pid):
        before = process.identify_dying(child.pid)
        found = postmaster.find_backends(str(tmp_path))
        gone = not os.path.exists(f"/proc/{child.pid}/cwd")  # the memory goes first
        missed += before is not None and before not in found and not gone
    child.communicate()
    assert missed == 0
