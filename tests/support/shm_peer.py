"""The other process of the tests of pgraft.shm: `python -m tests.support.shm_peer ROLE ARGUMENT...`.

Each role attaches a segment by name, says "ready" on stdout, and does one thing.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pgraft.shm.blocks import Status, StatusRow, StatusWriter
from pgraft.shm.doorbell import Bell, BellListener
from pgraft.shm.place import unlink
from pgraft.shm.rings import RingReader, RingWriter
from pgraft.shm.segment import Segment, attach, create, open_for_use

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = (0x1111_1111_1111_1111, 0xEEEE_EEEE_EEEE_EEEE)
RECORD_BYTES_MAX = 30_000


def records(seed: int, count: int) -> Iterator[bytes]:
    """The records that both sides know by the seed: mostly short, some empty, some long."""
    chance = random.Random(seed)
    for number in range(count):
        longest = RECORD_BYTES_MAX if chance.random() < 0.02 else 200
        yield number.to_bytes(4, "little")[: chance.randrange(5)] + chance.randbytes(
            chance.randrange(longest)
        )


def status_of(number: int) -> Status:
    """A status all of whose fields say the same number."""
    row = StatusRow(1, 1, number, number, number, number)
    status = Status(role=1, leader_id=number, term=number, commit_index=number, last_index=number)
    status.rows = [row] * (1 + number % 5)
    return status


def _write_words(segment: Segment, seconds: str) -> None:
    words, number = segment.worker, 0
    for _ in range(int(float(seconds) * 1_000_000)):
        number = 1 - number
        words["lease_end_ns"] = PATTERNS[number]


def _write_ring(segment: Segment, seed: str, count: str) -> None:
    ring = segment.bytes_at(segment.header["inbound_offset"], 64 * 1024 + 16)
    writer = RingWriter(ring, segment.network_ref("inbound_head"), segment.worker_ref("inbound_tail"))
    for number, record in enumerate(records(int(seed), int(count))):
        middle = len(record) // 2
        while not writer.put(record[:middle], memoryview(record)[middle:]):
            writer.publish()
        if number % 7 == 0:
            writer.publish()
    writer.publish()


def small_reader(segment: Segment) -> RingReader:
    """The reading end of the ring that the role `ring` writes: small, so that it wraps often."""
    ring = segment.bytes_at(segment.header["inbound_offset"], 64 * 1024 + 16)
    return RingReader(ring, segment.network_ref("inbound_head"), segment.worker_ref("inbound_tail"))


def _write_status(segment: Segment, count: str) -> None:
    writer = StatusWriter(segment)
    for number in range(1, int(count) + 1):
        writer.publish(status_of(number))


def _answer_bells(segment: Segment, run_dir: str, rounds: str) -> None:
    """After each count of the other side's, store the same and ring back."""
    ends = BellEnds(
        Path(run_dir) / "network.bell", Path(run_dir) / "worker.bell", segment, "network", "worker"
    )
    theirs, ours = segment.worker_ref("outbound_head"), segment.network_ref("outbound_tail")
    for number in range(1, int(rounds) + 1):
        while theirs.load() != number:
            ends.sleep_until(lambda number=number: theirs.load() == number)  # type: ignore[misc]
        ours.store(number)
        ends.other.ring()


class BellEnds:
    """One side of the ping-pong: its own bell to sleep by, and the other's to ring."""

    def __init__(self, own: Path, other: Path, segment: Segment, me: str, it: str) -> None:
        pages = {"network": segment.network_ref, "worker": segment.worker_ref}
        self.listener = BellListener(own, pages[me]("sleeping"))
        self.other = Bell(other, pages[it]("sleeping"))
        self._poll = select.poll()
        self._poll.register(self.listener.fd, select.POLLIN)

    def sleep_until(self, ready: Callable[[], bool]) -> bool:
        """Sleep as the loops do, a second at most; False when `ready` came about without a bell."""
        self.listener.about_to_sleep()
        rung = False
        asleep = not ready()
        if asleep:
            rung = bool(self._poll.poll(1000))
        self.listener.awake(rung=rung)
        return rung or not asleep or not ready()


def _create_and_hang(name: str) -> None:
    segment = create(name, command_ring_bytes=64 * 1024, slot_count=4)
    segment.header["node_id"] = 77
    open_for_use(segment, 5)
    print("ready", flush=True)
    with contextlib.suppress(EOFError):
        input()


def _attach_and_leave(name: str) -> None:
    attach(name).close()
    print("ready", flush=True)


ROLES = {"words": _write_words, "ring": _write_ring, "status": _write_status, "bells": _answer_bells}


@contextlib.contextmanager
def peer(role: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a role in a process of its own, from when it is ready; ended at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.shm_peer", role, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the {role} process did not start")
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def made_segment(name: str, **sizes: int) -> Iterator[Segment]:
    """A segment of this process, gone at the end."""
    sizes = {"command_ring_bytes": 64 * 1024, "slot_count": 4} | sizes
    segment = create(name, **sizes)
    open_for_use(segment, 1)
    try:
        yield segment
    finally:
        segment.close()
        unlink(name)


def unique_name(what: str) -> str:
    """A segment name that no other test has."""
    return f"pgraft.test.{os.getpid()}.{zlib.crc32(what.encode()):08x}"


def main(role: str, name: str, *arguments: str) -> None:
    """Do what the role says."""
    if role == "create":
        _create_and_hang(name)
        return
    if role == "attach":
        _attach_and_leave(name)
        return
    segment = attach(name)
    print("ready", flush=True)
    ROLES[role](segment, *arguments)
    segment.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
