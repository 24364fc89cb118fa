"""`status`: what the segment and the record say about a node, running or not."""

from __future__ import annotations

import os
import pwd
from typing import Any

from pgraft.postgres import conffile, postmaster, process
from pgraft.postgres.config import parse_values
from pgraft.postgres.errors import PostgresError
from pgraft.postgres.members import join_address
from pgraft.postgres.process import ProcessRef
from pgraft.postgres.reader import Reader
from pgraft.postgres.settings import NodeConfig
from pgraft.shm import place
from pgraft.shm import segment as segments
from pgraft.shm.blocks import BlockUnreadable, Status, read_status
from pgraft.shm.layout import WorkerState
from pgraft.shm.place import SegmentError
from pgraft.shm.segment import Segment
from pgraft.shm.words import now_ns
from pgraft_launcher.node import Node
from pgraft_launcher.policy import TITLES, Part

_ALL_INTERFACES = ("*", "0.0.0.0", "::")


class NodeStatus:
    """One look at a node."""

    def __init__(self, node: Node, settings: Reader) -> None:
        self.node = node
        record = node.record()
        self.processes: dict[Part, ProcessRef] = node.living()
        self.supervisor = node.supervisor()
        self.given_up = record.given_up if record else {}
        self.config = node.config()
        self.state, self.error = "stopped", node.other()
        try:
            self.dsn = dsn(node, settings)
        except PostgresError as error:
            self.dsn, self.error = (
                "",
                self.error or error.message,
            )  # it does not run, and cannot be started as it is
        self.is_leader = False
        self.is_catching_up = False
        self.raft = Status()
        self.name, self.node_id, self._raft_address = _identity(self.config, settings)
        self._read_segment()

    @property
    def is_running(self) -> bool:
        """Whether PostgreSQL runs: what pg_ctl status tells by its exit code."""
        return Part.POSTMASTER in self.processes

    def _read_segment(self) -> None:
        try:
            name = self.node.segment_name()
            if not name:
                self.error = self.error or self._why_no_segment()
                return
            segment = segments.attach(name, readonly=True)
        except SegmentError as error:
            self.error = str(error)
            return
        try:
            self._read_worker(segment)
            self.raft = read_status(segment)
        except BlockUnreadable:
            return  # a worker that has only just begun has published nothing
        finally:
            segment.close()

    def _why_no_segment(self) -> str:
        """Empty after an orderly stop, when it is not missed. Raises SegmentError, which tells, too."""
        stored = place.stored_name(self.node.data_dir)
        if stored:
            segments.attach(stored, readonly=True).close()
            return f"segment {stored} was made for another node, whose pgraft.data_dir was copied"
        return f"the segment of this node is not in {place.SHM_DIR}" if Part.WORKER in self.processes else ""

    def _read_worker(self, segment: Segment) -> None:
        if Part.WORKER not in self.processes:
            return  # nobody vouches for what it left
        self.is_leader = segment.worker["lease_end_ns"] > now_ns()
        self.is_catching_up = bool(segment.worker["catching_up"])
        state = segment.worker_state(now_ns())
        self.state = state.name.lower()
        if state in (WorkerState.ERROR, WorkerState.STOPPED):
            self.error = segment.worker_text("error")
        if state == WorkerState.ERROR and not self.error:
            self.error = "the Raft worker has been silent for an election timeout"

    @property
    def leader_id(self) -> int:
        """The leader that the node knows now; 0 when it knows none, or takes no part: what it saw is old."""
        has_part = Part.WORKER in self.processes and self.state != WorkerState.ERROR.name.lower()
        return self.raft.leader_id if has_part else 0

    def as_dict(self) -> dict[str, Any]:
        """The object of `status --json`."""
        return {
            "name": self.name,
            "node_id": self.node_id,
            "state": self.state,
            "is_leader": self.is_leader,
            "leader": self.leader_id,
            "term": self.raft.term,
            "commit_index": self.raft.commit_index,
            "data_dir": self.node.pgdata,
            "raft_data_dir": self.node.data_dir,
            "dsn": self.dsn,
            "raft_address": self._raft_address,
            "pids": {
                "supervisor": self.supervisor.pid if self.supervisor else None,
                "worker": self._pid(Part.WORKER),
                "network": self._pid(Part.NETWORK),
                "postmaster": self._pid(Part.POSTMASTER),
            },
            "given_up": {part.value: why for part, why in self.given_up.items()},
            "error": self.error,
        }

    def _pid(self, part: Part) -> int | None:
        ref = self.processes.get(part)
        return ref.pid if ref else None

    def lines(self) -> list[str]:
        """The same for people."""
        supervisor = f"PID {self.supervisor.pid}" if self.supervisor else "not running"
        state = "is running" if self.is_running else "is not running"
        title = f"node {self.name} ({self.node_id})" if self.name else "node"
        out = [f"pgraft-launch: {title} {state} in {self.node.pgdata}", f"  supervisor       {supervisor}"]
        if self.supervisor is None and self.processes:
            out[-1] += " (pgraft-launch start takes the node over)"
        for part in (Part.POSTMASTER, Part.WORKER, Part.NETWORK):
            out.append(f"  {TITLES[part]:<16} {self._process_text(part)}")
        if Part.WORKER in self.processes:
            role = "this node is the leader" if self.is_leader else f"leader is node {self.leader_id}"
            role = role if self.is_leader or self.leader_id else "no leader is known"
            out.append(
                f"  Raft             {self.state}, {role}, term {self.raft.term},"
                f" commit index {self.raft.commit_index}, at {self._raft_address}"
            )
        if self.is_catching_up:
            out.append("  note             adopted: it gives no vote until it has caught up with a leader")
        if self.node.configured_data_dir != self.node.data_dir:
            out.append(f"  after a restart  pgraft.data_dir is {self.node.configured_data_dir}")
        if self.error:
            out.append(f"  error            {self.error}")
        if self.is_running:
            out.append(f'  connect with     {self.node.installation.program("psql")} "{self.dsn}"')
        return out

    def _process_text(self, part: Part) -> str:
        ref = self.processes.get(part)
        if ref is not None:
            return f"PID {ref.pid}"
        why = self.given_up.get(part)
        return f"not running: {why}" if why else "not running"


def _identity(config: NodeConfig | None, settings: Reader) -> tuple[str, int, str]:
    """Name, id and Raft address; of a node that has never been started, as far as its settings tell."""
    if config is not None:
        return config.name, config.node_id, join_address(config.address, config.port)
    try:
        values = parse_values(settings.read_pgraft())
    except PostgresError:
        return "", 0, ""
    address, port = str(values["pgraft.address"]), int(values["pgraft.port"])
    return (
        str(values["pgraft.name"]),
        int(values["pgraft.node_id"]),
        join_address(address, port) if address else "",
    )


def conninfo(words: dict[str, str]) -> str:
    """A libpq connection string: values with spaces or quotes in quotes."""
    parts = []
    for key, value in words.items():
        plain = value and not any(c in value for c in " '\\\t\n")
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        parts.append(f"{key}={value}" if plain else f"{key}='{escaped}'")
    return " ".join(parts)


def dsn(node: Node, settings: Reader) -> str:
    """How a local superuser connects: by the Unix socket where there is one."""
    pid_file = postmaster.read_pid_file(node.pgdata)
    if pid_file is not None and pid_file.port and process.start_ticks(pid_file.pid) is not None:
        port, host = str(pid_file.port), pid_file.socket_dir or pid_file.listen_address
    else:
        port = settings.read("port")
        sockets = settings.read("unix_socket_directories").split(",")[0].strip()
        host = os.path.abspath(sockets) if sockets else settings.read("listen_addresses").split(",")[0]
    host = "localhost" if host.strip() in ("", *_ALL_INTERFACES) else host.strip()
    return conninfo({"host": host, "port": port, "dbname": "postgres", "user": superuser(node)})


def superuser(node: Node) -> str:
    """The bootstrap superuser: as init noted it, else called like the owner of the data, initdb's default."""
    noted = conffile.read_notes(node.config_dir).get("superuser")
    if noted:
        return noted
    owner = os.stat(node.pgdata).st_uid
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return str(owner)
