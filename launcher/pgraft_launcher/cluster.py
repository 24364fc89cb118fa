"""The demo's cluster: nodes in one folder, made, started, watched and stopped together.

DIR/demo.json       the nodes and their ports
DIR/nodeN           PostgreSQL's data, with DIR/nodeN.pgraft beside it
DIR/nodeN.log       the log of that node
DIR/tls             with TLS: the authority and the nodes' certificates
DIR/s               Unix sockets (elsewhere when the path would be too long for one)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pgraft.postgres import process
from pgraft.postgres.binaries import Installation
from pgraft.postgres.reader import Reader
from pgraft_launcher import access, init, node, prepare, psql, start, stop
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.policy import StopMode
from pgraft_launcher.ports import LOOPBACK, free_ports
from pgraft_launcher.progress import Progress
from pgraft_launcher.status import NodeStatus

NODES_MAX = 9
SOCKET_DIR_BYTES_MAX = 90
"""sun_path holds 107 bytes, and `/.s.PGSQL.12345.lock` comes behind."""
POLL_S = 0.05
DATABASE = "postgres"
_CATALOGUE = "demo.json"


class DemoMember(NamedTuple):
    """One node of the demo."""

    name: str
    pg_port: int
    raft_port: int


class Cluster:
    """All nodes of one demo."""

    def __init__(
        self,
        directory: Path,
        members: list[DemoMember],
        sockets: Path,
        installation: Installation,
        *,
        has_tls: bool,
        is_closed: bool = True,
    ) -> None:
        self.directory = directory
        self.members = members
        self.sockets = sockets
        self.installation = installation
        self.has_tls = has_tls
        self.is_closed = is_closed
        """Whether its servers let in nobody but its user and root, as `access` says."""

    @classmethod
    def load(cls, directory: Path) -> Cluster | None:
        """The demo that is there; None when there is none."""
        try:
            content = json.loads((directory / _CATALOGUE).read_text(encoding="utf-8"))
            members = [DemoMember(*member) for member in content["nodes"]]
            installation = Installation(Path(content["bindir"]))
            return cls(
                directory,
                members,
                Path(content["sockets"]),
                installation,
                has_tls=bool(content.get("tls")),
                is_closed=content.get("access") == access.MAP,
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise LaunchError(f"{directory / _CATALOGUE} cannot be read: {error}") from error

    @classmethod
    def make(
        cls, directory: Path, count: int, installation: Installation, *, has_tls: bool = False
    ) -> Cluster:
        """A new demo with free ports; the nodes are made by `up`."""
        if any(directory.iterdir()):
            raise LaunchError(f"{directory} is not empty, and holds no demo", hint="name another with --dir")
        ports = free_ports(2 * count, str(directory))
        members = [DemoMember(f"node{i + 1}", ports[i], ports[count + i]) for i in range(count)]
        sockets = directory / "s"
        if len(os.fsencode(sockets)) > SOCKET_DIR_BYTES_MAX:
            sockets = Path(tempfile.mkdtemp(prefix="pgraft-s-", dir="/tmp"))
        sockets.mkdir(mode=0o700, exist_ok=True)
        content = {
            "nodes": members,
            "sockets": str(sockets),
            "bindir": str(installation.bindir),
            "tls": has_tls,
            "access": access.MAP,
        }
        (directory / _CATALOGUE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return cls(directory, members, sockets, installation, has_tls=has_tls)

    # --- up -------------------------------------------------------------------------------------------

    def up(self, progress: Progress, timeout_s: float) -> None:
        """Make and start what is not running, until the cluster is healthy; then show it."""
        for member in self.members:
            if not (self.data_of(member) / "PG_VERSION").exists():
                self._init(member, progress)
        for member in self.members:
            self._start(member, progress, timeout_s)
        progress.begin("waiting for a leader")
        statuses = self._await("the nodes do not agree on a leader", self._agreed, timeout_s, progress)
        progress.end("done")
        for status in statuses:
            self.query(status, "CREATE EXTENSION IF NOT EXISTS pgraft")
        agreed = "SELECT pgraft_get_leader() > 0 AND pgraft_get_worker_state() = 'running'"
        for status in statuses:
            if self.query(status, agreed) != "t":
                raise LaunchError(f"node {status.node.config_dir} does not see the leader in SQL")
        progress.say(f"extension pgraft created in database {DATABASE} of every node")
        self._show_entry(progress, timeout_s)
        self._show_nodes(progress)

    def data_of(self, member: DemoMember) -> Path:
        """PostgreSQL's data directory of a node."""
        return self.directory / member.name

    def _init(self, member: DemoMember, progress: Progress) -> None:
        peers = ",".join(f"{m.name}={LOOPBACK}:{m.raft_port}" for m in self.members)
        settings = {
            "port": str(member.pg_port),
            "listen_addresses": LOOPBACK,
            "unix_socket_directories": str(self.sockets),
            "pgraft.name": member.name,
            "pgraft.initial_cluster": peers,
        }
        progress.begin(f"making {member.name} with initdb (PostgreSQL {self.installation.version})")
        init.init(
            init.InitOptions(
                directory=self.data_of(member),
                settings=settings,
                pg_config=str(self.installation.bindir),
                initdb_options=list(access.INITDB_OPTIONS),
                progress=Progress(silent=True),
                make_certs=self.certificates if self.has_tls else None,
            )
        )
        access.write(self.data_of(member))
        progress.end("done")

    @property
    def certificates(self) -> Path:
        """Where the files of mutual TLS are."""
        return self.directory / "tls"

    def _start(self, member: DemoMember, progress: Progress, timeout_s: float) -> None:
        found, settings = self._find(member, [])
        if found.supervisor() is not None:
            progress.say(f"{member.name} is running already")
            return
        progress.begin(f"starting {member.name}")
        log = str(self.directory / f"{member.name}.log")
        quiet = Progress(silent=True)
        start.start(
            found, settings, start.StartOptions(log=log, wait=True, timeout_s=timeout_s, progress=quiet)
        )
        progress.end("done")

    def _find(self, member: DemoMember, options: list[str] | None = None) -> tuple[node.Node, Reader]:
        bindir, may_be_broken = str(self.installation.bindir), options is None
        return node.find(self.data_of(member), bindir, options, may_be_broken=may_be_broken)

    def _await(
        self, failure: str, look: Callable[[], list[NodeStatus] | None], timeout_s: float, progress: Progress
    ) -> list[NodeStatus]:
        deadline = time.monotonic() + timeout_s
        while True:
            found = look()
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{failure} after {timeout_s:g} s", hint=f"see the logs in {self.directory}"
                )
            progress.dot()
            time.sleep(POLL_S)  # the segments of several nodes have no common bell to wait for

    def _agreed(self) -> list[NodeStatus] | None:
        """All statuses, when every worker runs and sees the same leader in the same term."""
        statuses = self.statuses()
        views = {(status.state, status.leader_id, status.raft.term) for status in statuses}
        leaders = [status for status in statuses if status.is_leader]
        return statuses if len(views) == 1 and len(leaders) == 1 else None

    def query(self, status: NodeStatus, statement: str) -> str:
        """One statement on one node."""
        return psql.query(self.installation, status.dsn, statement)

    def _show_entry(self, progress: Progress, timeout_s: float) -> None:
        """One entry in at the leader, and out again at another node."""
        statuses = self._await("no leader", self._agreed, timeout_s, progress)
        leader = next(status for status in statuses if status.is_leader)
        others = [status for status in statuses if status is not leader] or [leader]
        text = f"hello from {leader.name} at {time.strftime('%Y-%m-%d %H:%M:%S')}"
        self.query(leader, f"SELECT pgraft_replicate_entry({psql.literal(text)})")
        index = int(self.query(leader, "SELECT last_index FROM pgraft_log_get_stats()"))
        reader = others[0]
        self._await("the entry did not arrive", lambda: self._committed(reader, index), timeout_s, progress)
        back = self.query(reader, f"SELECT pgraft_log_get_entry({index})")
        if back != text:
            raise LaunchError(f"entry {index} reads {back!r} on {reader.name}, and {text!r} was written")
        progress.say(
            f"replicated on {leader.name}, the leader: pgraft_replicate_entry('{text}')\n"
            f"read back on {reader.name}: pgraft_log_get_entry({index}) = '{back}'"
        )

    def _committed(self, reader: NodeStatus, index: int) -> list[NodeStatus] | None:
        status = NodeStatus(*self._find(self._member(reader.name)))
        return [status] if status.raft.commit_index >= index else None

    def _member(self, name: str) -> DemoMember:
        return next(member for member in self.members if member.name == name)

    def _show_nodes(self, progress: Progress) -> None:
        statuses = self.statuses()
        if self.has_tls:
            progress.say(f"nodes talk to each other with mutual TLS, certificates in {self.certificates}")
        else:
            progress.say("warning: without TLS every user of this machine can speak to the nodes as a node")
        progress.say(f"\n{len(statuses)} node(s) up, connect with:")
        program = self.installation.program("psql")
        for status in statuses:
            role = "leader  " if status.is_leader else "follower"
            progress.say(f'  {status.name} {role}  {program} "{status.dsn}"')

    # --- status, down ---------------------------------------------------------------------------------

    def statuses(self) -> list[NodeStatus]:
        """One look at every node."""
        return [NodeStatus(*self._find(member)) for member in self.members if self._is_made(member)]

    def _is_made(self, member: DemoMember) -> bool:
        return (self.data_of(member) / "PG_VERSION").exists()

    def stop(self, progress: Progress, timeout_s: float) -> None:
        """Stop every node, and take away segments that a crash has left."""
        for member in self.members:
            if self._is_made(member):
                progress.begin(f"stopping {member.name}")
                found, _ = self._find(member)
                self._stop(found, timeout_s)
                prepare.remove_leftovers(found.data_dir)
                progress.end("done")

    def _stop(self, found: node.Node, timeout_s: float) -> None:
        quiet = Progress(silent=True)
        for mode in (StopMode.FAST, StopMode.IMMEDIATE):
            if not stop.is_running(found):
                return
            with contextlib.suppress(LaunchError):
                stop.stop(found, stop.StopOptions(mode=mode, wait=True, timeout_s=timeout_s, progress=quiet))
        self._kill(found, timeout_s)

    def _kill(self, found: node.Node, timeout_s: float) -> None:
        """What two stops did not end (a stopped process, say) has nothing left to lose: it is a demo."""
        supervisor = found.supervisor()
        refs = ([supervisor] if supervisor else []) + list(found.living().values())
        for ref in refs:
            descriptor = process.open_pidfd(ref)
            if descriptor is not None:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                os.close(descriptor)
        for ref in refs:
            if not process.wait_ended(ref, timeout_s):
                raise LaunchError(f"process {ref.pid} of {found.config_dir} cannot be ended")

    def remove(self) -> None:
        """Remove the data; only ever of a folder that holds a demo. The folder itself stays, empty, where
        its own is one that this user cannot write."""
        if not (self.directory / _CATALOGUE).exists():
            raise LaunchError(f"{self.directory} holds no demo")
        for folder in (self.sockets, self.directory):
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                if folder == self.directory and not os.listdir(folder):
                    return
                raise LaunchError(f"cannot remove {folder}: {error.strerror}") from error
