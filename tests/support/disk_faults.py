"""Disks that are slow, hang, are full or fail, and wall clocks that jump, for real processes.

    faults = DiskFaults(tmp_path, below=data_dir)       # builds a small library with the C compiler
    subprocess.Popen(command, env=os.environ | faults.environment)
    faults.set(fail("fdatasync", errno.EIO, times=1))   # holds from the next call on
    faults.clear()                                      # whoever hangs goes on

The library (disk_faults.c) is preloaded; it looks at the control file at each fdatasync, fsync, pwrite and
posix_fallocate, and touches files below one folder only. So PostgreSQL's own may run under it, too.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("disk_faults.c")
CALLS = ("fdatasync", "fsync", "pwrite", "fallocate")


class Rule(NamedTuple):
    """One line of the control file: what happens to a call on a file whose path contains `part`.

    `value`: errno of "fail", milliseconds of "delay", bytes that "tear" still writes before it kills the
    process. `times`: for how many calls of a process; 0: as long as the rule stands.
    """

    call: str
    action: str
    value: int
    times: int = 0
    part: str = "*"


class Call(NamedTuple):
    """A call that met a rule, or came after a failure ("passed") or the end of a hang ("released")."""

    pid: int
    call: str
    action: str
    path: str


def fail(call: str, error: int, *, times: int = 0, part: str = "*") -> Rule:
    """The call fails with this errno; with `times=1` the next one would work, for who is so foolish."""
    return Rule(call, "fail", error, times, part)


def delay(call: str, ms: int, *, times: int = 0, part: str = "*") -> Rule:
    """The call takes so much longer."""
    return Rule(call, "delay", ms, times, part)


def hang(call: str, *, part: str = "*") -> Rule:
    """The call does not return until the rules are changed."""
    return Rule(call, "hang", 0, 0, part)


def tear(written: int, *, part: str = "*") -> Rule:
    """The next pwrite writes so many bytes, and the process is gone."""
    return Rule("pwrite", "tear", written, 1, part)


class DiskFaults:
    """The rules of one group of processes. `home` is a folder that those processes can read."""

    def __init__(self, home: Path, below: Path) -> None:
        self.below = below
        self._control = home / f"{below.name}.faults"
        self._record = home / f"{below.name}.faults.log"
        self._library = build()
        self._serial = 0
        self._clock_s = 0
        self._rules: tuple[Rule, ...] = ()
        self._record.touch()
        self._record.chmod(0o666)  # the processes may belong to another user
        self.clear()

    @property
    def environment(self) -> dict[str, str]:
        """What the processes need in their environment."""
        return {
            "LD_PRELOAD": str(self._library),
            "PGRAFT_FAULTS": str(self._control),
            "PGRAFT_FAULTS_LOG": str(self._record),
        }

    def set(self, *rules: Rule) -> None:
        """These rules take the place of those before; the first that fits a call counts."""
        assert all(rule.call in CALLS for rule in rules), rules
        self._rules = rules
        self._write()

    def clear(self) -> None:
        """The disk is well again."""
        self.set()

    def set_clock(self, shift_s: int) -> None:
        """The wall clock of these processes goes wrong by so much."""
        self._clock_s = shift_s
        self._write()

    def calls(self, *actions: str) -> list[Call]:
        """The calls so far that met a rule (with one of these actions)."""
        lines = [line.split(" ", 3) for line in self._record.read_text().splitlines()]
        calls = [Call(int(pid), call, action, path) for pid, call, action, path in lines]
        return [call for call in calls if not actions or call.action in actions]

    def _write(self) -> None:
        self._serial += 1
        lines = [f"serial {self._serial}", f"clock {self._clock_s}", f"below {self.below.resolve()}"]
        lines += [" ".join(str(word) for word in rule) for rule in self._rules]
        aside = self._control.with_suffix(".new")
        aside.write_text("\n".join(lines) + "\n")
        aside.chmod(0o644)
        aside.rename(self._control)


def build() -> Path:
    """The library, built once per version of its source, where every user can read it."""
    source = SOURCE.read_bytes()
    name = f"pgraft-faults-{os.getuid()}-{hashlib.sha256(source).hexdigest()[:12]}.so"
    library = Path("/var/tmp", name)
    if library.exists() and library.stat().st_uid == os.getuid():
        return library
    fd, made = tempfile.mkstemp(dir="/var/tmp", prefix=name)
    os.close(fd)
    words = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", made, str(SOURCE), "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"cannot build {SOURCE.name}:\n{done.stderr}")
    Path(made).chmod(0o755)
    Path(made).rename(library)
    return library
