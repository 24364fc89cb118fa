"""What the processes of a cluster hold, and what is left where nothing should be: memory, descriptors,
sockets, orphans, segments, FIFOs."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import psutil

from pgraft.shm.place import NAME_PREFIX, SHM_DIR, SegmentError
from tests.soak.field import PARTS, Field
from tests.support.pgcluster import Cluster, Failed, eventually
from tests.support.segments import attach_any

SETTLE_WAIT_S = 30
LOG_FILES_OPEN_MAX = 2
SLOT_BELL = re.compile(r"/slot\.\d+\.bell$")
GROWTH_KB_MAX = {"supervisor": 2_000, "worker": 20_000, "network": 16_000, "postmaster": 8_000}
"""What a healthy process may come to hold: pages that it touches for the first time, a heap in pieces; the
worker's cache of the newest entries and buffers for messages, which large entries fill (9 MB more after one
minute, 1, 4 and 13 after ten); the network process's queue for a frozen peer and frame in the making
(SEND_QUEUE_BYTES_MAX, FRAME_BYTES_MAX; 0, 4 and 6 MB after ten minutes)."""
WORKER_BYTES_PER_ENTRY_MAX = 64
"""The worker keeps where each entry lies; nothing is compacted here."""


class Held(NamedTuple):
    """What one process holds. `memory_kb` is its own (private) memory."""

    memory_kb: int
    descriptors: int
    sockets: int

    def __str__(self) -> str:
        return f"{self.memory_kb / 1000:.1f} MB, {self.descriptors} descriptors, {self.sockets} sockets"


def held_by(pid: int) -> Held:
    """Raises OSError when the process has gone."""
    memory_kb = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Private_Dirty", "Private_Clean", "Swap"):
            memory_kb += int(rest.split()[0])
    targets = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            targets.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    # The worker keeps the bell of each slot that was ever used: as many as there are slots, at most.
    targets = [target for target in targets if not SLOT_BELL.search(target)]
    # It has one file of the log open to write, and another one where somebody reads older entries.
    logs = sum(target.endswith(".pgl") for target in targets)
    descriptors = len(targets) - min(logs, LOG_FILES_OPEN_MAX)
    return Held(memory_kb, descriptors, sum(target.startswith("socket:") for target in targets))


def survey(field: Field) -> dict[str, Held]:
    """For each kind of process the most that any node's holds. Raises Failed when a process is missing."""
    found: dict[str, Held] = {}
    for part in PARTS:
        held = []
        for node in field.nodes:
            ref = field.part(node, part)
            if ref is None:
                raise Failed(f"{node.name} has no {part}")
            with contextlib.suppress(OSError):
                held.append(held_by(ref.pid))
        found[part] = Held(*(max(values) for values in zip(*held, strict=True)))
    return found


def compare(field: Field, start: dict[str, Held], entries: int) -> tuple[dict[str, Held], list[str]]:
    """What is held now, and what is wrong with it. Descriptors may take a moment to settle."""
    with contextlib.suppress(Failed):
        eventually(lambda: not _leaks(start, survey(field)), "as many descriptors as before", SETTLE_WAIT_S)
    end = survey(field)
    return end, _leaks(start, end) + _growth(start, end, entries)


def _leaks(start: dict[str, Held], end: dict[str, Held]) -> list[str]:
    return [
        f"{part} leaks descriptors: {start[part]} at the start, {held} at the end"
        for part, held in end.items()
        if held.descriptors > start[part].descriptors or held.sockets > start[part].sockets
    ]


def _growth(start: dict[str, Held], end: dict[str, Held], entries: int) -> list[str]:
    grown = []
    for part, held in end.items():
        allowed = GROWTH_KB_MAX[part]
        if part == "worker":
            allowed += entries * WORKER_BYTES_PER_ENTRY_MAX // 1000
        if held.memory_kb > start[part].memory_kb + allowed:
            grown.append(f"{part} grew: {start[part]} at the start, {held} at the end")
    return grown


# --- what is left ---------------------------------------------------------------------------------------


def processes_below(root: Path) -> dict[int, str]:
    """Every process that stands below this folder or names it on its command line: pid to command."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            words = process.cmdline()
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if any(str(root) in word for word in (process.cwd(), *words)):
                found[process.pid] = " ".join(words)[:120]
    return found


def orphans(field: Field) -> dict[int, str]:
    """Processes of the cluster that no part of a node looks after."""
    known: set[int] = set()
    for node in field.nodes:
        for part in PARTS:
            ref = field.part(node, part)
            with contextlib.suppress(psutil.Error):
                if ref is not None:
                    process = psutil.Process(ref.pid)
                    known |= {ref.pid, *(child.pid for child in process.children(recursive=True))}
    return {pid: text for pid, text in processes_below(field.cluster.root).items() if pid not in known}


def segments_of(cluster: Cluster) -> list[str]:
    """Names of the segments that belong to nodes of this cluster."""
    found = []
    for path in SHM_DIR.glob(f"{NAME_PREFIX}*"):
        with contextlib.suppress(SegmentError):
            segment = attach_any(path.name)
            if segment.text("data_dir").startswith(str(cluster.root)):
                found.append(path.name)
            segment.close()
    return found


def check_running(field: Field) -> list[str]:
    """Orphans and segments of a cluster that runs."""
    wrong = []
    try:
        eventually(lambda: not orphans(field), "no orphan", SETTLE_WAIT_S)
    except Failed:
        wrong.append(f"orphans: {orphans(field)}")
    if len(names := segments_of(field.cluster)) != len(field.nodes):
        wrong.append(f"{len(field.nodes)} nodes have the segments {names}")
    return wrong


def check_stopped(cluster: Cluster) -> list[str]:
    """What an orderly stop of all nodes has left."""
    wrong = []
    for node in cluster.nodes:
        done = node.launch("stop", "-m", "fast", ok=False)
        if done.returncode != 0:
            wrong.append(f"stop of {node.name}: exit {done.returncode}: {done.stderr.strip()}")
        wrong += [f"left by {node.name}: {path}" for path in node.raft_dir.glob("run/*.bell")]
    if left := processes_below(cluster.root):
        wrong.append(f"processes after the stop of all nodes: {left}")
    if names := segments_of(cluster):
        wrong.append(f"segments after the stop of all nodes: {names}")
    return wrong
