"""A segment as a node leaves it, made without a node."""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.postgres.process import start_ticks
from pgraft.shm import layout, place, segment
from pgraft.shm.blocks import MemberRow, MembersWriter, Status, StatusRow, StatusWriter
from pgraft.shm.layout import COMMAND_RECORD_WORDS, CommandKind, Role, WorkerState
from pgraft.shm.words import now_ns
from pgraft.transport import records

DEAD_PID = 2**22 - 7


class Node:
    """A segment that tests fill as supervisor, worker, network process and backends would."""

    def __init__(self, made: segment.Segment, pgdata: Path) -> None:
        self.segment = made
        self.name = made.name
        self.pgdata = pgdata
        self.data_dir = pgdata.with_name(pgdata.name + ".pgraft")
        self.path = place.SHM_DIR / made.name

    def put_command(self, data: bytes, *, slot: int = 0, request_no: int = 1) -> int:
        """A backend's command in the ring; returns the position of its record."""
        words = dict.fromkeys(COMMAND_RECORD_WORDS, 0)
        words |= {"kind": CommandKind.REPLICATE, "slot": slot, "request_no": request_no}
        words |= {"total_bytes": len(data), "timeout_ms": 10_000, "backend_pid": os.getpid()}
        payload = struct.pack(f"<{len(words)}Q", *words.values()) + data
        head = self.segment.command_head()
        position = head.load()
        self.write_ring(position, payload)
        head.store(position + layout.align(16 + len(payload), 16))
        return position

    def write_ring(self, position: int, payload: bytes) -> None:
        header = self.segment.header
        start = header["command_offset"] + layout.COMMAND_RING_OFFSET
        ring = self.segment.bytes_at(start, header["command_ring_bytes"])
        record = struct.pack("<QII", position, len(payload), zlib.crc32(payload)) + payload
        for i, byte in enumerate(record):
            ring[(position + i) % len(ring)] = byte


def _fill_header(made: segment.Segment, pgdata: Path) -> None:
    texts = {"version": "0.1.0", "node_name": "node1", "cluster_id": "orders"}
    for name, text in texts.items():
        made.set_text(name, text)
    segment.set_directories(made, data_dir=f"{pgdata}.pgraft", pgdata=pgdata)
    words = {"node_id": 1, "election_timeout_ms": 1000, "heartbeat_interval_ms": 100}
    words |= {"supervisor_pid": DEAD_PID, "postmaster_pid": DEAD_PID, "network_pid": DEAD_PID}
    words |= {"worker_pid": os.getpid(), "worker_start": start_ticks(os.getpid()) or 0}
    for name, value in words.items():
        made.header[name] = value


def _publish(made: segment.Segment) -> None:
    now = now_ns()
    made.worker["state"] = WorkerState.RUNNING
    made.worker["beat_ns"] = now
    made.worker["lease_end_ns"] = now + 60 * 10**9
    rows = [
        StatusRow(1, Role.LEADER, 4, 120, 121, now, 0, 0, 0, 0, 1),
        StatusRow(2, Role.FOLLOWER, 4, 119, 121, now, 121, 122, 1),
        StatusRow(3, Role.FOLLOWER, 3, 90, 91, now - 60 * 10**9, 91, 92, 0),
    ]
    status = Status(role=Role.LEADER, leader_id=1, term=4, vote=1, commit_index=120, last_index=121)
    status.applied, status.first_index, status.published_boot_ns = 120, 2, now
    status.voters_reachable, status.voters_needed, status.rows = 2, 2, rows
    StatusWriter(made).publish(status)
    members = tuple(MemberRow(i, "127.0.0.1", 7000 + i, member_id=0xABC0 + i) for i in (1, 2, 3))
    MembersWriter(made).publish(members, (9,))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    pgdata = tmp_path / "pg"
    pgdata.mkdir()
    (pgdata / "PG_VERSION").write_text("18\n")
    name = f"{place.NAME_PREFIX}test.{uuid.uuid4().hex[:16]}"
    made = segment.create(name, command_ring_bytes=16384, slot_count=4)
    try:
        _fill_header(made, pgdata)
        segment.open_for_use(made, epoch=7)
        _publish(made)
        outbound = made.outbound_writer()
        outbound.put(records.prefix(records.RecordKind.MESSAGE, 2), b"envelope")
        outbound.publish()
        yield Node(made, pgdata)
    finally:
        made.close()
        place.unlink(name)
