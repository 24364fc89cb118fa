"""<data_dir>/run: what the supervisor leaves for other commands and for its successor.

    node.json         NodeConfig, for the worker and the network process
    segment           name of the shared memory segment
    supervisor.json   the record: how the node was started, and which processes it has
    supervisor.lock   held by the living supervisor (and by a start on its behalf), by flock
    *.bell            FIFOs

Import-light: the supervisor lives with what this module loads.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any

from pgraft.postgres import process
from pgraft.postgres.process import ProcessRef
from pgraft_launcher.policy import Part

RECORD_BYTES_MAX = 1024 * 1024


class Plan:
    """How the node was started: all that a supervisor needs, its successor too."""

    __slots__ = (
        "autostart",
        "bindir",
        "config_dir",
        "data_dir",
        "log",
        "name",
        "options",
        "pgdata",
        "segment",
        "socket_dirs",
    )

    def __init__(
        self,
        *,
        name: str,
        config_dir: str,
        pgdata: str,
        data_dir: str,
        bindir: str,
        segment: str,
        options: list[str],
        socket_dirs: list[str],
        log: str,
        autostart: bool,
    ) -> None:
        self.name = name
        self.config_dir = config_dir
        self.pgdata = pgdata
        self.data_dir = data_dir
        self.bindir = bindir
        self.segment = segment
        self.options = options
        self.socket_dirs = socket_dirs
        self.log = log
        self.autostart = autostart

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        return {name: getattr(self, name) for name in self.__slots__}


class Record:
    """supervisor.json: the plan, the processes, and what was given up (part -> why)."""

    __slots__ = ("given_up", "plan", "processes", "supervisor")

    def __init__(
        self,
        plan: Plan,
        supervisor: ProcessRef | None = None,
        processes: dict[Part, ProcessRef] | None = None,
        given_up: dict[Part, str] | None = None,
    ) -> None:
        self.plan = plan
        self.supervisor = supervisor
        self.processes = processes or {}
        self.given_up = given_up or {}

    def living(self) -> dict[Part, ProcessRef]:
        """The recorded processes that still live."""
        return {part: ref for part, ref in self.processes.items() if process.is_alive(ref)}

    def living_supervisor(self) -> ProcessRef | None:
        """The supervisor, if it lives."""
        return self.supervisor if self.supervisor and process.is_alive(self.supervisor) else None


def path(data_dir: str, name: str = "") -> str:
    """A file of the run directory, or the directory itself."""
    return os.path.join(data_dir, "run", name) if name else os.path.join(data_dir, "run")


def write_file(target: str, text: str) -> None:
    """Replace a file whole: a reader sees the old text or the new one.

    Not for what must survive power loss: nothing is synced. OSError names the file; the old text stays.
    """
    aside = f"{target}.{os.getpid()}.new"
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(text.encode("utf-8", "surrogateescape"))
        while left:
            # A disk that is nearly full takes a part of it.
            left = left[os.write(descriptor, left) :]
    except OSError as error:
        os.unlink(aside)
        raise OSError(error.errno, error.strerror, target) from error
    finally:
        os.close(descriptor)
    os.replace(aside, target)


def boot_id() -> str:
    """Tells this boot of the machine from every other."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def save(record: Record) -> None:
    """Write supervisor.json."""
    supervisor = record.supervisor
    content = {
        "boot": boot_id(),
        "plan": record.plan.as_dict(),
        "supervisor": list(supervisor) if supervisor else None,
        "processes": {part.value: list(ref) for part, ref in record.processes.items()},
        "given_up": {part.value: why for part, why in record.given_up.items()},
    }
    write_file(path(record.plan.data_dir, "supervisor.json"), json.dumps(content, indent=1))


def load(data_dir: str) -> Record | None:
    """Read supervisor.json; None when there is none, or one that says nothing to us.

    One that came with a copy of another node's directory speaks of that node's processes: not ours.
    """
    try:
        with open(path(data_dir, "supervisor.json"), encoding="utf-8", errors="surrogateescape") as file:
            content = json.loads(file.read(RECORD_BYTES_MAX))
        plan = Plan(**content["plan"])
        if os.path.realpath(plan.data_dir) != os.path.realpath(data_dir):
            return None
        given_up = {Part(name): str(why) for name, why in content["given_up"].items()}
        if content["boot"] != boot_id():
            # A pid and a start time mean one process between two boots only.
            return Record(plan, given_up=given_up)
        supervisor = content["supervisor"]
        return Record(
            plan,
            ProcessRef(*map(int, supervisor)) if supervisor else None,
            {Part(name): ProcessRef(*map(int, ref)) for name, ref in content["processes"].items()},
            given_up,
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_segment_name(data_dir: str) -> str:
    """The name in run/segment; empty when there is none."""
    try:
        with open(path(data_dir, "segment"), encoding="utf-8") as file:
            return file.read(256).strip()
    except OSError:
        return ""


def take_lock(data_dir: str) -> int | None:
    """The supervisor's lock as a descriptor, or None while another process has it.

    The kernel drops it with its last holder, so nothing stale can be left behind.
    """
    descriptor = os.open(path(data_dir, "supervisor.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def clean(data_dir: str) -> None:
    """Remove what only a running node needs. The configuration and the record stay, for `status`."""
    try:
        names = os.listdir(path(data_dir))
    except OSError:
        return
    for name in names:
        if name.endswith((".bell", ".new")) or name == "segment":
            try:
                os.unlink(path(data_dir, name))
            except OSError:
                continue  # the next start makes its own
