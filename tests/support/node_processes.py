"""Nodes of real worker and network processes, with segments as the supervisor makes them: no PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from pgraft.postgres.settings import Member
from pgraft.shm import place
from pgraft.shm import segment as segments
from pgraft.shm.blocks import Status, read_status
from pgraft.shm.doorbell import WORKER_BELL, Bell, open_bell
from pgraft.shm.layout import CommandKind, Outcome
from pgraft.shm.words import now_ns
from tests.support.disk_faults import DiskFaults
from tests.support.node_sim import Backend, make_config, make_segment

ROOT = Path(__file__).resolve().parents[2]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class ProcessNode:
    """One node: its segment, its two processes, and sessions that send commands."""

    def __init__(self, data_dir: Path, node_id: int, members: tuple[Member, ...], **other: object) -> None:
        port = members[node_id - 1].port
        self.id = node_id
        self.dir = data_dir
        self.config = make_config(data_dir, node_id, members, port=port, listen_port=port, **other)
        self.segment = make_segment(self.config)
        (data_dir / "run" / "node.json").write_bytes(msgspec.json.encode(self.config))
        self.backend = Backend(self.segment)
        self._bell = Bell(data_dir / "run" / WORKER_BELL, self.segment.worker_ref("sleeping"))
        self.log = (data_dir / "log").open("ab")
        self.worker: subprocess.Popen[bytes] | None = None
        self.network: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}

    def with_disk_faults(self) -> DiskFaults:
        """Its worker, from the next start on, uses a disk that can be made to fail."""
        faults = DiskFaults(self.dir.parent, self.dir)
        self.environment = faults.environment
        return faults

    def _spawn(self, module: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, "--data-dir", str(self.dir)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | self.environment
        return subprocess.Popen(command, cwd="/", env=environment, stderr=self.log)

    def start_worker(self) -> None:
        """A (new) raft worker."""
        self.worker = self._spawn("pgraft.raft_worker")

    def start_network(self) -> None:
        """A (new) network process."""
        self.network = self._spawn("pgraft.network_worker")

    def signal_worker(self, number: int) -> None:
        """Send the worker a signal; a kill is waited for."""
        if self.worker is not None:
            self.worker.send_signal(number)
            if number == signal.SIGKILL:
                self.worker.wait()

    def kill_network(self) -> None:
        """kill -9 of the network process."""
        if self.network is not None:
            self.network.kill()
            self.network.wait()

    def stop(self) -> list[int]:
        """SIGTERM to both; their exit codes."""
        codes = []
        for process in (self.worker, self.network):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in (self.worker, self.network):
            if process is not None:
                codes.append(process.wait(10))
        return codes

    def close(self) -> None:
        """The end of the test, whatever state they are in."""
        for process in (self.worker, self.network):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        self.log.close()
        place.unlink(self.config.segment_name)
        os.close(self._bell.fd)
        self.segment.close()

    @property
    def lease_valid(self) -> bool:
        """What pgraft_is_leader() would say now."""
        return bool(self.segment.worker["lease_end_ns"] > now_ns())

    @property
    def status(self) -> Status:
        """The status block."""
        return read_status(self.segment)

    def send(self, slot: int, kind: int, data: bytes = b"", **other: object) -> int:
        """Put a command into the ring and wake the worker; the request number."""
        number = self.backend.submit(slot, kind, data, **other)  # type: ignore[arg-type]
        self._bell.ring()
        return number

    def call(
        self, kind: int, data: bytes = b"", *, seconds: float = 15, slot: int = 0, **other: object
    ) -> Outcome:
        """Send a command and wait for its outcome; NONE when there was no answer in time."""
        number = self.send(slot, kind, data, **other)
        fd = open_bell(self.dir / "run" / segments.slot_bell(slot))
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                answer = self.backend.answer(slot, number)
                if answer is not None and answer[1] != Outcome.PROGRESS:
                    return Outcome(answer[1])
                if select.select([fd], [], [], 0.2)[0]:
                    os.read(fd, 100)
        finally:
            os.close(fd)
        return Outcome.NONE

    def entry(self, index: int) -> bytes | None:
        """pgraft_log_get_entry of a short text; None for an entry without one."""
        if self.call(CommandKind.GET_ENTRY, arg1=index) != Outcome.DATA:
            return None
        answer = self.backend.slots[0].read_answer()
        return answer[4] if answer is not None else None


class ProcessCluster:
    """Three nodes, say."""

    def __init__(self, root: Path, count: int, **other: object) -> None:
        ports = free_ports(count)
        members = tuple(Member(i, f"node{i}", "127.0.0.1", ports[i - 1]) for i in range(1, count + 1))
        self.nodes = [
            ProcessNode(root / f"n{member.node_id}", member.node_id, members, **other) for member in members
        ]
        for node in self.nodes:
            node.start_network()
            node.start_worker()

    def others(self, node: ProcessNode) -> list[ProcessNode]:
        """All but this one."""
        return [one for one in self.nodes if one is not node]

    def wait_leader(self, nodes: list[ProcessNode] | None = None, seconds: float = 15) -> ProcessNode:
        """Until one of the nodes holds the lease."""
        among = nodes if nodes is not None else self.nodes
        wait_until(lambda: any(node.lease_valid for node in among), seconds, "no leader")
        return next(node for node in among if node.lease_valid)

    def texts(self, node: ProcessNode) -> list[bytes]:
        """The committed texts, as the node's sessions read them."""
        status = node.status
        found = [node.entry(index) for index in range(status.first_index, status.commit_index + 1)]
        return [text for text in found if text is not None]


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Look every few milliseconds until it holds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"{what} within {seconds} s")
        time.sleep(0.005)


@contextlib.contextmanager
def process_cluster(root: Path, count: int = 3, **other: object) -> Iterator[ProcessCluster]:
    """A cluster of real processes, all of which are gone at the end."""
    cluster = ProcessCluster(root, count, **other)
    try:
        yield cluster
    finally:
        for node in cluster.nodes:
            node.close()
