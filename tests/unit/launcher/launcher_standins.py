"""Small real processes in the places of a node's three, under a real supervisor.

Run as a script, this file is the supervisor (`supervise RUN`) or a stand-in (`part RUN NAME`). A
stand-in does what RUN/NAME.does says: exit codes to leave with, one a line; else it lives until it
is told to stop, and writes when it did to RUN/ends.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pgraft.postgres import process
from pgraft.postgres.process import ProcessRef
from pgraft.shm import place
from pgraft.shm import segment as segments
from pgraft.shm.words import now_ns
from pgraft_launcher import policy, rundir
from pgraft_launcher.pages import Pages
from pgraft_launcher.policy import Part
from pgraft_launcher.rundir import Plan, Record

HERE = Path(__file__).resolve()
ROOT = HERE.parents[3]
WAIT_S = 10.0


class Standins:
    """A node of stand-ins in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "run").mkdir()
        self.segment = place.new_name(folder)
        segment = segments.create(self.segment, command_ring_bytes=16384, slot_count=1)
        segments.set_directories(segment, data_dir=folder, pgdata=folder)
        segments.open_for_use(segment, 1)
        segment.close()
        plan = Plan(
            name="n",
            config_dir=str(folder),
            pgdata=str(folder),
            data_dir=str(folder),
            bindir="/nowhere",
            segment=self.segment,
            options=[],
            socket_dirs=[],
            log="",
            autostart=True,
        )
        rundir.save(Record(plan))
        self.supervisors: list[subprocess.Popen[bytes]] = []
        self.log = folder / "log"

    def does(self, part: Part, *codes: int) -> None:
        """The first processes of this part exit at once with these codes, one after another."""
        (self.folder / f"{part.value}.does").write_text("".join(f"{code}\n" for code in codes))

    def start(self, *options: str) -> dict[str, Any]:
        """Start a supervisor; what it reports about the start."""
        reader, writer = os.pipe()
        with open(self.log, "ab") as log:
            argv = [sys.executable, str(HERE), "supervise", str(self.folder), str(writer), *options]
            child = subprocess.Popen(argv, stdout=log, stderr=log, pass_fds=[writer], env=environment())
        self.supervisors.append(child)
        os.close(writer)
        try:
            if not select.select([reader], [], [], WAIT_S)[0]:
                raise TimeoutError(self.log.read_text())
            line = os.read(reader, 4096)
            report: dict[str, Any] = json.loads(line) if line else {}
            return report
        finally:
            os.close(reader)

    @property
    def supervisor(self) -> subprocess.Popen[bytes]:
        """The newest one."""
        return self.supervisors[-1]

    def ref(self, part: Part) -> ProcessRef | None:
        """The process that the header names."""
        header = Pages(self.segment).header
        pid = header[f"{part.value}_pid"]
        return ProcessRef(pid, header[f"{part.value}_start"]) if pid else None

    def await_new(self, part: Part, old: ProcessRef) -> ProcessRef:
        """The process that replaces this one."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            ref = self.ref(part)
            if ref is not None and ref != old:
                return ref
        raise TimeoutError(self.log.read_text())

    def await_text(self, text: str) -> None:
        """Until the log holds this."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if text in self.log.read_text():
                return
        raise TimeoutError(self.log.read_text())

    def kill(self, part: Part) -> ProcessRef:
        """kill -9; who it was."""
        ref = self.ref(part)
        if ref is None:
            raise ProcessLookupError(part.value)
        os.kill(ref.pid, signal.SIGKILL)
        return ref

    def ends(self) -> list[str]:
        """Which stand-ins were asked to end, in order."""
        path = self.folder / "ends"
        return path.read_text().split() if path.exists() else []

    def destroy(self) -> None:
        """End everything."""
        record = rundir.load(str(self.folder))
        for child in self.supervisors:
            child.kill()
            child.wait()
        for ref in record.processes.values() if record else []:
            if process.is_alive(ref):
                os.kill(ref.pid, signal.SIGKILL)
        place.unlink(self.segment)


def environment() -> dict[str, str]:
    """Where children find pgraft: here, or, where the server user cannot read, as make test installed it."""
    if os.geteuid() == 0 and not all(
        folder.stat().st_mode & stat.S_IXOTH for folder in (ROOT, *ROOT.parents)
    ):
        return dict(os.environ)
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'launcher'}"}


def _supervise(folder: str, reports: int, *options: str) -> int:
    from pgraft_launcher import supervisor

    policy.STOP_GRACE_S = 0.3
    _make_unlink_fail(Path(folder, "unlink.fails"))
    record = rundir.load(folder)
    if record is None:
        return 99
    record.supervisor = process.identify(os.getpid())
    commands = {part: [sys.executable, str(HERE), "part", folder, part.value] for part in Part}
    pages = Pages(record.plan.segment)
    keeper = supervisor.Supervisor(
        record, pages, commands, programs=lambda part: _program(commands[part]), reports=reports
    )
    return keeper.run(*(policy.StopMode(option) for option in options))


def _program(command: list[str]) -> process.Program:
    def runs(pid: int) -> bool:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[1:-1] == command[1:]

    return runs


def _make_unlink_fail(told: Path) -> None:
    """PostgreSQL's lock files cannot be removed while that file is there."""
    unlink = os.unlink

    def failing(path: str | Path) -> None:
        if os.fspath(path).endswith(".pid") and told.exists():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        unlink(path)

    os.unlink = failing  # type: ignore[assignment]


def _part(folder: Path, name: str) -> int:
    does = folder / f"{name}.does"
    codes = does.read_text().splitlines() if does.exists() else []
    if codes:
        does.write_text("\n".join(codes[1:]))
        return int(codes[0])
    reader, writer = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP]
    for number in numbers:
        signal.signal(number, lambda *_: None)
    _be_ready(folder, name)
    while True:
        select.select([reader], [], [])
        got = os.read(reader, 1)[0]
        with open(folder / "ends", "a") as file:
            file.write(f"{name}:{signal.Signals(got).name}\n")
        if got != signal.SIGHUP:
            return 0


def _be_ready(folder: Path, name: str) -> None:
    record = rundir.load(str(folder))
    pages = Pages(record.plan.segment) if record else None
    if name == Part.POSTMASTER.value:
        lines = [str(os.getpid()), str(folder), "0", "5432", "", "", "", "ready"]
        (folder / "postmaster.pid").write_text("\n".join(lines) + "\n")
    elif pages is not None and name == Part.WORKER.value:
        pages.worker["started_boot_ns"] = now_ns()
        pages.worker["ready"] = 1
    elif pages is not None:
        pages.network["started_boot_ns"] = now_ns()


if __name__ == "__main__":
    if sys.argv[1] == "supervise":
        sys.exit(_supervise(sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))
    sys.exit(_part(Path(sys.argv[2]), sys.argv[3]))
