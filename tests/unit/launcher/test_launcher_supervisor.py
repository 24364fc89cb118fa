"""The supervisor with real processes: small stand-ins in the places of the three."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pgraft.postgres import process
from pgraft.shm import place
from pgraft_launcher import rundir
from pgraft_launcher.pages import Pages
from pgraft_launcher.policy import Part
from tests.unit.launcher.launcher_standins import WAIT_S, Standins, environment

ELECTION_TIMEOUT_S = 1.0
RESTART_S_MAX = 0.5
"""Well under an election timeout; on a quiet machine it takes 5 ms."""


def test_a_start_names_every_process_in_header_and_record(standins: Standins) -> None:
    assert standins.start() == {"event": "started"}
    record = rundir.load(str(standins.folder))
    assert record is not None
    assert record.supervisor == process.identify(standins.supervisor.pid)
    for part in Part:
        ref = standins.ref(part)
        assert ref is not None
        assert process.is_alive(ref)
        assert record.processes[part] == ref
        # Ctrl-C in a terminal must reach the supervisor only, which stops them in order.
        assert os.getpgid(ref.pid) == ref.pid


@pytest.mark.parametrize("part", [Part.WORKER, Part.NETWORK])
def test_a_killed_process_is_replaced_well_under_an_election_timeout(standins: Standins, part: Part) -> None:
    standins.start()
    others = {other: standins.ref(other) for other in Part if other is not part}
    began = time.monotonic()
    old = standins.kill(part)
    new = standins.await_new(part, old)
    assert time.monotonic() - began < RESTART_S_MAX < ELECTION_TIMEOUT_S
    assert process.is_alive(new)
    assert {other: standins.ref(other) for other in others} == others


def test_a_killed_postmaster_is_started_again_beside_the_same_worker(standins: Standins) -> None:
    standins.start()
    worker = standins.ref(Part.WORKER)
    standins.await_new(Part.POSTMASTER, standins.kill(Part.POSTMASTER))
    assert standins.ref(Part.WORKER) == worker


def test_exit_code_three_fails_the_start_and_stops_the_rest(standins: Standins) -> None:
    standins.does(Part.WORKER, 3)
    report = standins.start()
    assert report["event"] == "failed"
    assert report["part"] == "worker"
    assert report["is_stopping"]
    assert standins.supervisor.wait(WAIT_S) == 1
    assert not (place.SHM_DIR / standins.segment).exists()


def test_exit_code_three_later_is_recorded_and_not_tried_again(standins: Standins) -> None:
    standins.start()
    standins.does(Part.NETWORK, 3)
    standins.kill(Part.NETWORK)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        record = rundir.load(str(standins.folder))
        if record is not None and Part.NETWORK in record.given_up:
            break
    else:
        pytest.fail(standins.log.read_text())
    assert "exit code 3" in record.given_up[Part.NETWORK]
    assert standins.ref(Part.NETWORK) is None
    assert standins.ref(Part.WORKER) is not None


def test_a_postmaster_that_cannot_start_fails_the_start(standins: Standins) -> None:
    standins.does(Part.POSTMASTER, 1)
    assert standins.start()["part"] == "postmaster"
    assert standins.supervisor.wait(WAIT_S) == 1
    assert not (place.SHM_DIR / standins.segment).exists()


def test_a_stop_ends_all_three_in_order_and_removes_the_segment(standins: Standins) -> None:
    standins.start()
    standins.supervisor.terminate()
    assert standins.supervisor.wait(WAIT_S) == 0
    assert standins.ends() == ["postmaster:SIGINT", "worker:SIGTERM", "network:SIGTERM"]
    assert not (place.SHM_DIR / standins.segment).exists()
    record = rundir.load(str(standins.folder))
    assert record is not None
    assert not record.processes


@pytest.mark.parametrize(
    ("number", "sent"),
    [(signal.SIGINT, "SIGINT"), (signal.SIGQUIT, "SIGQUIT"), (signal.SIGUSR1, "SIGTERM")],
)
def test_each_stop_signal_has_its_mode(standins: Standins, number: signal.Signals, sent: str) -> None:
    standins.start()
    standins.supervisor.send_signal(number)
    assert standins.supervisor.wait(WAIT_S) == 0
    assert standins.ends()[0] == f"postmaster:{sent}"


def test_an_orderly_end_of_the_postmaster_stops_the_node(standins: Standins) -> None:
    standins.start()
    postmaster = standins.ref(Part.POSTMASTER)
    assert postmaster is not None
    os.kill(postmaster.pid, signal.SIGTERM)
    assert standins.supervisor.wait(WAIT_S) == 0
    assert standins.ends() == ["postmaster:SIGTERM", "worker:SIGTERM", "network:SIGTERM"]


def test_a_frozen_worker_does_not_hold_up_a_stop(standins: Standins) -> None:
    standins.start()
    worker = standins.ref(Part.WORKER)
    assert worker is not None
    os.kill(worker.pid, signal.SIGSTOP)
    standins.supervisor.terminate()
    assert standins.supervisor.wait(WAIT_S) == 0
    assert not process.is_alive(worker)


def test_sighup_reaches_postgres_and_the_network_process(standins: Standins) -> None:
    standins.start()
    standins.supervisor.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + WAIT_S
    while len(standins.ends()) < 2 and time.monotonic() < deadline:
        pass
    assert sorted(standins.ends()) == ["network:SIGHUP", "postmaster:SIGHUP"]


def test_a_new_supervisor_takes_over_what_a_killed_one_left(standins: Standins) -> None:
    standins.start()
    before = {part: standins.ref(part) for part in Part}
    standins.supervisor.kill()
    standins.supervisor.wait(WAIT_S)
    assert all(ref is not None and process.is_alive(ref) for ref in before.values())
    assert standins.start() == {"event": "started"}
    assert {part: standins.ref(part) for part in Part} == before
    worker = standins.kill(Part.WORKER)
    assert process.is_alive(standins.await_new(Part.WORKER, worker))
    assert standins.ref(Part.POSTMASTER) == before[Part.POSTMASTER]


def test_an_adopted_postmaster_that_crashes_is_told_from_one_that_was_stopped(standins: Standins) -> None:
    standins.start()
    standins.supervisor.kill()
    standins.supervisor.wait(WAIT_S)
    standins.start()
    # Nobody tells its exit code; but it left postmaster.pid behind, which a stop removes.
    new = standins.await_new(Part.POSTMASTER, standins.kill(Part.POSTMASTER))
    record = None
    while record is None or record.processes.get(Part.POSTMASTER) != new:
        record = rundir.load(str(standins.folder))
    standins.supervisor.kill()
    standins.supervisor.wait(WAIT_S)
    standins.start()
    (standins.folder / "postmaster.pid").unlink()
    os.kill(new.pid, signal.SIGTERM)
    assert standins.supervisor.wait(WAIT_S) == 0


def test_what_a_dead_supervisor_left_can_be_stopped(standins: Standins) -> None:
    standins.start()
    left = [standins.ref(part) for part in Part]
    standins.supervisor.kill()
    standins.supervisor.wait(WAIT_S)
    assert standins.start("immediate") == {}
    assert standins.supervisor.wait(WAIT_S) == 0
    assert standins.ends()[0] == "postmaster:SIGQUIT"
    assert not any(ref is not None and process.is_alive(ref) for ref in left)
    assert not (place.SHM_DIR / standins.segment).exists()


def test_a_segment_that_was_removed_is_said_and_not_looked_for_again(standins: Standins) -> None:
    standins.start()
    pages = Pages(standins.segment)
    place.unlink(standins.segment)
    worker = pages.header["worker_pid"]
    os.kill(worker, signal.SIGKILL)
    standins.await_text("another program removed it")
    standins.await_text("giving it up")


def test_a_lock_file_that_cannot_be_removed_does_not_end_the_supervisor(standins: Standins) -> None:
    standins.start()
    (standins.folder / "unlink.fails").touch()
    (standins.folder / "postmaster.pid").write_text("")
    standins.does(Part.POSTMASTER, 1)
    old = standins.kill(Part.POSTMASTER)
    (standins.folder / "postmaster.pid").write_text("")
    standins.await_new(Part.POSTMASTER, old)
    standins.await_text("postmaster.pid: Read-only file system")
    assert standins.supervisor.poll() is None


def test_a_run_directory_that_cannot_be_written_does_not_end_the_supervisor(standins: Standins) -> None:
    standins.start()
    run = standins.folder / "run"
    run.rename(standins.folder / "away")
    standins.await_new(Part.NETWORK, standins.kill(Part.NETWORK))
    standins.await_text(f"cannot write {run}: No such file or directory")
    (standins.folder / "away").rename(run)
    assert standins.supervisor.poll() is None


def test_the_supervisor_is_lean() -> None:
    """What it loads stays in memory for as long as the node runs."""
    heavy = {"msgspec", "argparse", "subprocess", "psutil", "asyncio", "multiprocessing"}
    code = "import sys, pgraft_launcher.supervisor; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "pgraft_launcher.policy" in loaded
    assert not loaded & heavy
