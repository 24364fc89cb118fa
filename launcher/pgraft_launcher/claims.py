"""What the record or the segment says of a node's processes, checked against the processes themselves.

Both hold pids and start times, and both are files: one may be old, damaged, or come with a copy. So a pid
is believed, and signalled, only when its process is this user's and runs what that part of the node runs.

Import-light: the supervisor lives with what this module loads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pgraft.postgres import postmaster, process
from pgraft.postgres.process import ProcessRef, Program
from pgraft.shm import place
from pgraft.shm.place import Place
from pgraft.shm.words import WordPage
from pgraft_launcher.policy import Part

SUPERVISOR_MODULE = "pgraft_launcher.supervisor"
MODULES = {Part.WORKER: "pgraft.raft_worker", Part.NETWORK: "pgraft.network_worker"}


class Claim:
    """Processes that are said to be a node's.

    `data_dir` is the Raft directory as it stands on their command lines, `pgdata` the path of PostgreSQL's
    data directory at the start, and `place` where that is, if it was told.
    """

    def __init__(
        self,
        data_dir: str,
        pgdata: str,
        place_of_pgdata: Place | None,
        supervisor: ProcessRef | None,
        processes: Mapping[Part, ProcessRef],
    ) -> None:
        self.data_dir = data_dir
        self.pgdata = pgdata
        self.place = place_of_pgdata or place.place_of(pgdata)
        self._supervisor = supervisor
        self._processes = processes

    def is_of(self, pgdata: str) -> bool:
        """Whether the node is that of this PostgreSQL data directory. One that is nowhere any more was moved
        or removed: then the Raft directory decides."""
        return self.place is None or self.place == place.place_of(pgdata)

    def living(self) -> dict[Part, ProcessRef]:
        """The processes that live, and are what they should be."""
        return {
            part: ref for part, ref in self._processes.items() if process.is_running(ref, self.program(part))
        }

    def living_supervisor(self) -> ProcessRef | None:
        """The supervisor, likewise."""
        ref = self._supervisor
        return ref if ref and process.is_running(ref, self._is_supervisor) else None

    def open(self, part: Part) -> int | None:
        """A pidfd of a process that lives and is what it should be, to signal it by."""
        ref = self._processes.get(part)
        return process.open_pidfd(ref, self.program(part)) if ref else None

    def open_supervisor(self) -> int | None:
        """The same of the supervisor."""
        return process.open_pidfd(self._supervisor, self._is_supervisor) if self._supervisor else None

    def program(self, part: Part) -> Program:
        """What the process of this part runs."""
        if part is Part.POSTMASTER:
            return process.runs_in(postmaster.EXECUTABLE, *(self.place or (0, 0)))
        return lambda pid: self._is_dir(process.module_words(pid, MODULES[part]), 1)

    def _is_supervisor(self, pid: int) -> bool:
        return self._is_dir(process.module_words(pid, SUPERVISOR_MODULE), 0)

    def _is_dir(self, words: list[str] | None, number: int) -> bool:
        """Whether that argument is the Raft directory."""
        if words is None or len(words) <= number:
            return False
        return words[number] == self.data_dir or os.path.realpath(words[number]) == os.path.realpath(
            self.data_dir
        )


def of_header(header: WordPage, data_dir: str, pgdata: str) -> Claim:
    """What a segment's header says; the two texts stand in it."""
    refs = {part: ref for part in Part if (ref := _ref(header, part.value))}
    return Claim(data_dir, pgdata, place.pgdata_of(header), _ref(header, "supervisor"), refs)


def _ref(header: WordPage, name: str) -> ProcessRef | None:
    pid = header[f"{name}_pid"]
    return ProcessRef(pid, header[f"{name}_start"]) if 0 < pid <= postmaster.PID_MAX else None
