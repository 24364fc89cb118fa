"""<data_dir>/run: what the supervisor leaves for other commands and for its successor.

    node.json         NodeConfig, for the worker and the network process
    segment           name of the shared memory segment
    supervisor.json   the record: how the node was started, and which processes it has
    supervisor.lock   held by the living supervisor (and by a start on its behalf), by flock
    *.bell            FIFOs
    *.spare           room for the next text of a file, for when the disk is full

The directory is ours alone; what is read from it is believed only when it is ours, too (pgraft.ownfile).
Import-light: the supervisor lives with what this module loads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from typing import Any

from pgraft import ownfile
from pgraft.postgres.process import ProcessRef
from pgraft.shm.place import Place, place_of
from pgraft_launcher.claims import Claim
from pgraft_launcher.policy import Part

RECORD_BYTES_MAX = 1024 * 1024
SPARE_STEP_BYTES = 4096
FULL = (errno.ENOSPC, errno.EDQUOT)


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
    """supervisor.json: the plan, the processes, and what was given up (part -> why).

    `place` tells PostgreSQL's data directory from a copy of it, also when it was moved.
    """

    __slots__ = ("given_up", "place", "plan", "processes", "supervisor")

    def __init__(
        self,
        plan: Plan,
        supervisor: ProcessRef | None = None,
        processes: dict[Part, ProcessRef] | None = None,
        given_up: dict[Part, str] | None = None,
        place: Place | None = None,
    ) -> None:
        self.plan = plan
        self.place = place or place_of(plan.pgdata)
        self.supervisor = supervisor
        self.processes = processes or {}
        self.given_up = given_up or {}

    def claim(self) -> Claim:
        """What it says of processes, to be checked."""
        plan = self.plan
        return Claim(plan.data_dir, plan.pgdata, self.place, self.supervisor, self.processes)


def path(data_dir: str, name: str = "") -> str:
    """A file of the run directory, or the directory itself."""
    return os.path.join(data_dir, "run", name) if name else os.path.join(data_dir, "run")


def write_file(target: str, text: str) -> None:
    """Replace a file whole: a reader sees the old text or the new one.

    Not for what must survive power loss: nothing is synced. OSError names the file; the old text stays.
    On a full disk the text goes into `target.spare`, whose room was taken when there was some.
    """
    data = text.encode("utf-8", "surrogateescape")
    aside, spare = f"{target}.{os.getpid()}.new", f"{target}.spare"
    try:
        _write(aside, data, os.O_CREAT | os.O_TRUNC)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        if error.errno not in FULL or not _fill(spare, data):
            raise OSError(error.errno, error.strerror, target) from error
        aside = spare
    os.replace(aside, target)
    _keep_spare(spare, len(data))


def _write(path: str, data: bytes, flags: int = 0) -> None:
    descriptor = ownfile.open_own(path, os.O_WRONLY | flags)
    try:
        left = memoryview(data)
        while left:
            # A disk that is nearly full takes a part of it.
            left = left[os.write(descriptor, left) :]
        os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)


def _fill(spare: str, data: bytes) -> bool:
    """Write over what the spare file holds, which needs no room; whether that worked."""
    try:
        _write(spare, data)
    except OSError:
        return False
    return True


def _keep_spare(spare: str, size: int) -> None:
    """See to it that the next text has room. Without any there is no spare file, and the next write tries."""
    wanted = (size // SPARE_STEP_BYTES + 2) * SPARE_STEP_BYTES
    try:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(spare).st_size >= size + SPARE_STEP_BYTES:
                return
        _write(spare, b" " * wanted, os.O_CREAT)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(spare)


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
        "pgdata_place": list(record.place) if record.place else None,
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
        text = ownfile.read_own(path(data_dir, "supervisor.json"), RECORD_BYTES_MAX)
        content = json.loads(text.decode("utf-8", "surrogateescape"))
        plan = Plan(**content["plan"])
        if os.path.realpath(plan.data_dir) != os.path.realpath(data_dir):
            return None
        given_up = {Part(name): str(why) for name, why in content["given_up"].items()}
        told = content.get("pgdata_place")  # earlier releases do not tell
        place = Place(*map(int, told)) if told else None
        if content["boot"] != boot_id():
            # A pid and a start time mean one process between two boots only.
            return Record(plan, given_up=given_up, place=place)
        supervisor = content["supervisor"]
        return Record(
            plan,
            ProcessRef(*map(int, supervisor)) if supervisor else None,
            {Part(name): ProcessRef(*map(int, ref)) for name, ref in content["processes"].items()},
            given_up,
            place,
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def take_lock(data_dir: str) -> int | None:
    """The supervisor's lock as a descriptor, or None while another process has it.

    The kernel drops it with its last holder, so nothing stale can be left behind.
    """
    descriptor = ownfile.open_own(path(data_dir, "supervisor.lock"), os.O_RDWR | os.O_CREAT)
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
