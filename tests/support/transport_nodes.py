"""Real network processes with real segments; the test plays the raft worker of each node."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from pgraft.postgres.settings import Member, NodeConfig
from pgraft.shm import place
from pgraft.shm import segment as segments
from pgraft.shm.blocks import MemberRow, MembersWriter
from pgraft.shm.doorbell import NETWORK_BELL, WORKER_BELL, Bell, BellListener
from pgraft.transport import records
from pgraft.transport.records import NetIdentity, RecordKind

REPO = Path(__file__).resolve().parents[2]
WAIT_S = 10.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Record:
    """One record of the inbound ring."""

    def __init__(self, raw: bytes) -> None:
        kind, self.node_id = records.unpack_prefix(raw)
        self.kind = RecordKind(kind)
        self.body = raw[records.PREFIX_BYTES :]
        self.raw = raw

    def __repr__(self) -> str:
        return f"{self.kind.name} {self.node_id} {self.body[:60]!r}"


class Node:
    """The supervisor's and the worker's part of one node."""

    def __init__(self, root: Path, node_id: int, port: int) -> None:
        self.node_id = node_id
        self.port = port
        self.address = "127.0.0.1"
        self.member_id = 0x1000 + node_id
        self.data_dir = root / f"n{node_id}-{port}"
        self.run_dir = self.data_dir / "run"
        self.run_dir.mkdir(parents=True)
        self.log_path = self.data_dir / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: list[Record] = []
        self.settings: dict[str, object] = {}
        self.identity: dict[str, object] = {}
        name = place.new_name(self.data_dir)
        self.segment = segments.create(name, command_ring_bytes=16384, slot_count=1)
        segments.open_for_use(self.segment, 7)
        segments.make_fifos(self.run_dir, 1)
        self._writer = self.segment.outbound_writer()
        self._reader = self.segment.inbound_reader()
        self._bell = Bell(self.run_dir / NETWORK_BELL, self.segment.network_ref("sleeping"))
        self.ears = BellListener(self.run_dir / WORKER_BELL, self.segment.worker_ref("sleeping"))
        self._ears_poll = select.poll()  # tests open more descriptors than select() takes
        self._ears_poll.register(self.ears.fd, select.POLLIN)
        self._members = MembersWriter(self.segment)

    @property
    def member(self) -> Member:
        """Its item in pgraft.initial_cluster."""
        return Member(self.node_id, f"node{self.node_id}", "127.0.0.1", self.port)

    def config(self) -> NodeConfig:
        fields: dict[str, object] = {
            "name": f"node{self.node_id}",
            "node_id": self.node_id,
            "cluster_id": "test",
            "initial_cluster": (self.member,),
            "initial_cluster_state": "new",
            "address": "127.0.0.1",
            "port": self.port,
            "listen_host": "127.0.0.1",
            "listen_port": self.port,
            "data_dir": str(self.data_dir),
            "pgdata": "/nowhere",
            "segment_name": self.segment.name,
            "election_timeout_ms": 1000,
            "heartbeat_interval_ms": 100,
            "ssl_enabled": False,
            "ssl_cert_file": "",
            "ssl_key_file": "",
            "ssl_ca_file": "",
            "autostart": True,
            "max_entry_bytes": 1024 * 1024,
            "command_ring_bytes": 16384,
            "slot_count": 1,
            "log_keep_entries": 1000,
            "log_keep_bytes": 1024,
            "snapshot_threshold": 100,
            "log_segment_bytes": 1024 * 1024,
            "disk_stall_timeout_ms": 1000,
        }
        return msgspec.convert(fields | self.settings, NodeConfig)

    # --- the supervisor ---------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the process, without waiting for it."""
        (self.run_dir / "node.json").write_bytes(msgspec.json.encode(self.config()))
        with self.log_path.open("ab") as log:
            command = [sys.executable, "-m", "pgraft.network_worker", "--data-dir", str(self.data_dir)]
            environment = os.environ | {"PYTHONPATH": str(REPO)}
            self.process = subprocess.Popen(command, stderr=log, env=environment, cwd="/")

    def start(self) -> None:
        """Start the process and wait until it listens."""
        epoch = self.segment.network["epoch"]
        self.launch()
        self.wait(lambda: self.segment.network["epoch"] > epoch, "its start")

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Signal the process and wait for its end; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    def log(self) -> str:
        return self.log_path.read_text()

    # --- the worker -------------------------------------------------------------------------------

    def say(self, *raw: bytes) -> None:
        """Put records into the outbound ring."""
        for record in raw:
            while not self._writer.put(record):
                self._writer.publish()
                self._bell.ring()
                select.select([], [], [], 0.001)
        self._writer.publish()
        self._bell.ring()

    def send(self, node_id: int, *bodies: bytes) -> None:
        self.say(*(records.pack(RecordKind.MESSAGE, node_id, body) for body in bodies))

    def identify(self, **changes: object) -> None:
        """Write IDENTITY, as the worker does at its start."""
        fields: dict[str, object] = {
            "cluster_id": "test",
            "node_id": self.node_id,
            "member_id": self.member_id,
            "initial_members": "the list",
            "initial_state": "new",
            "formed": True,
            "election_timeout_ms": 1000,
        }
        self.identity = fields | self.identity | changes
        identity = NetIdentity(**self.identity)  # type: ignore[arg-type]
        self.say(records.pack(RecordKind.IDENTITY, self.node_id, identity))

    def members(
        self, nodes: list[Node], removed: tuple[int, ...] = (), known: dict[int, int] | None = None
    ) -> None:
        """Publish the members block."""
        ids = known or {}
        rows = tuple(
            MemberRow(node.node_id, node.address, node.port, member_id=ids.get(node.node_id, 0))
            for node in nodes
        )
        self.publish_rows(rows, removed)

    def publish_rows(self, rows: tuple[MemberRow, ...], removed: tuple[int, ...] = ()) -> None:
        self._members.publish(rows, removed)
        self._bell.ring()

    def take(self) -> list[Record]:
        """What came, without waiting."""
        new = [Record(raw) for raw in self._reader.read(4 * 1024 * 1024)]
        self.seen += new
        if new:
            self._bell.ring()
        return new

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Sleep on the worker's bell until the condition holds."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"node {self.node_id}: no {what}; {self.seen[-5:]}\n{self.log()}")
            self.ears.about_to_sleep()
            if not self._reader.pending():
                self._ears_poll.poll(20)
            self.ears.awake(rung=True)
            self.take()

    def wait_for(self, kind: RecordKind, node_id: int, body: bytes | None = None, count: int = 1) -> Record:
        """Wait until `count` such records have been seen; the last one."""

        def found() -> list[Record]:
            return [
                record
                for record in self.seen
                if record.kind is kind and record.node_id == node_id and body in (None, record.body)
            ]

        self.wait(lambda: len(found()) >= count, f"{kind.name} from {node_id}")
        return found()[count - 1]

    def wait_log(self, text: str) -> None:
        self.wait(lambda: text in self.log(), f"log line {text!r}")

    def word(self, name: str) -> int:
        return self.segment.network[name]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT_S)
        os.close(self.ears.fd)
        os.close(self._bell.fd)
        name = self.segment.name
        self.segment.close()
        place.unlink(name)


class Cluster:
    """Makes nodes and ends them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[Node] = []

    def node(self, node_id: int, port: int = 0) -> Node:
        node = Node(self.root, node_id, port or free_port())
        self.made.append(node)
        return node

    def nodes(self, count: int) -> list[Node]:
        return [self.node(number) for number in range(1, count + 1)]

    def up(self, count: int) -> list[Node]:
        """Nodes that know each other and are connected, both ways."""
        nodes = self.nodes(count)
        for node in nodes:
            node.start()
            node.identify()
            node.members(nodes)
        connect_all(nodes)
        return nodes


def connect_all(nodes: list[Node]) -> None:
    for node in nodes:
        for other in nodes:
            if other is not node:
                node.wait_for(RecordKind.PEER_CONNECTED, other.node_id)
                # Ours and theirs each tell the worker who it is.
                node.wait_for(RecordKind.PEER_HELLO, other.node_id, count=2)
