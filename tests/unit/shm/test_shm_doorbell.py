"""Doorbells: no wake-up is lost, and no system call is made while the reader is awake."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from pgraft.shm.doorbell import NETWORK_BELL, WORKER_BELL, Bell, BellListener, open_bell, ring_fd
from pgraft.shm.segment import Segment, make_fifos
from pgraft.shm.words import now_ns
from tests.support.shm_peer import BellEnds, peer

ROUNDS = 20_000


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    make_fifos(tmp_path, 2)
    return tmp_path


def is_rung(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_fifos_are_private_and_made_once(run_dir: Path) -> None:
    make_fifos(run_dir, 2)
    for path in run_dir.iterdir():
        assert path.is_fifo()
        assert path.stat().st_mode & 0o777 == 0o600
    assert len(list(run_dir.iterdir())) == 4


def test_only_a_sleeper_is_rung(segment: Segment, run_dir: Path) -> None:
    sleeping = segment.worker_ref("sleeping")
    listener, bell = BellListener(run_dir / WORKER_BELL, sleeping), Bell(run_dir / WORKER_BELL, sleeping)
    bell.ring()
    assert not is_rung(listener.fd)
    listener.about_to_sleep()
    bell.ring()
    assert is_rung(listener.fd)
    listener.awake(rung=True)
    assert not is_rung(listener.fd)
    assert sleeping.load() == 0


def test_a_full_fifo_blocks_nobody(segment: Segment, run_dir: Path) -> None:
    listener = BellListener(run_dir / WORKER_BELL, segment.worker_ref("sleeping"))
    fd = open_bell(run_dir / WORKER_BELL)
    for _ in range(70_000):
        ring_fd(fd)
    listener.about_to_sleep()
    while is_rung(listener.fd):
        listener.awake(rung=True)
    os.close(fd)


def test_no_wake_up_is_lost_between_two_processes(segment: Segment, run_dir: Path) -> None:
    """Ping-pong: each side sleeps until the other's count has moved. A lost bell costs it a second."""
    ends = BellEnds(run_dir / WORKER_BELL, run_dir / NETWORK_BELL, segment, "worker", "network")
    ours, theirs = segment.worker_ref("outbound_head"), segment.network_ref("outbound_tail")
    with peer("bells", segment.name, run_dir, ROUNDS) as process:
        for number in range(1, ROUNDS + 1):
            began_ns = now_ns()
            ours.store(number)
            ends.other.ring()
            while theirs.load() != number:
                assert ends.sleep_until(lambda number=number: theirs.load() == number), f"round {number}"
            assert now_ns() - began_ns < 900_000_000, f"round {number}: the other side missed its bell"
        assert process.wait(10) == 0
