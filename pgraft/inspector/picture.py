"""Everything that the segment says about a node, read once, as plain values.

Nothing here trusts what it reads: after a crash, or in a damaged segment, any word may hold
anything. What cannot be made sense of becomes null and a line in `notes`.
"""

from __future__ import annotations

import msgspec

from pgraft.inspector import blockcheck
from pgraft.inspector.rings import RingUsage, ring_usages
from pgraft.inspector.text import clean, enum_name
from pgraft.postgres.process import start_ticks
from pgraft.postgres.settings import BY_NAME
from pgraft.shm.blocks import BlockUnreadable, Members, Status, StatusRow, read_members, read_status
from pgraft.shm.layout import Role, WorkerState
from pgraft.shm.segment import Segment
from pgraft.shm.words import WordPage, now_ns

NS_PER_MS = 1_000_000
PID_MAX = 2**22
LEASE_MS_MAX = BY_NAME["pgraft.election_timeout"].maximum
ROLE_NAMES = {
    Role.UNKNOWN: "Unknown",
    Role.FOLLOWER: "Follower",
    Role.PRE_CANDIDATE: "PreCandidate",
    Role.CANDIDATE: "Candidate",
    Role.LEADER: "Leader",
    Role.LEARNER: "Learner",
}
PROCESSES = ("supervisor", "worker", "network", "postmaster")


class Process(msgspec.Struct):
    """A process of the node: its pid as the supervisor wrote it, and whether that one still runs."""

    pid: int
    alive: bool


class MemberPicture(msgspec.Struct):
    """One member, from the members block and its row in the status block. Times in ms."""

    node_id: int
    address: str | None = None
    port: int | None = None
    member_id: str | None = None
    is_self: bool = False
    is_leader: bool = False
    is_learner: bool = False
    is_leaving: bool = False
    state: str = "Unknown"
    term: int | None = None
    commit_index: int | None = None
    last_index: int | None = None
    match_index: int | None = None
    next_index: int | None = None
    is_replicating: bool | None = None
    heard_ms_ago: float | None = None


class StatusPicture(msgspec.Struct):
    """The status block. Times in ms, log_bytes in bytes."""

    generation: int
    role: str
    leader_id: int
    term: int
    vote: int
    commit_index: int
    last_index: int
    applied: int
    first_index: int
    log_bytes: int
    voters_reachable: int
    voters_needed: int
    published_ms_ago: float | None


class Picture(msgspec.Struct):
    """A node as its segment shows it; README.md says what each field means."""

    segment: str
    segment_bytes: int
    layout_version: int
    epoch: int
    retired: bool
    started_ms_ago: float | None
    version: str
    name: str
    node_id: int
    cluster_id: str
    data_dir: str
    pgdata: str
    election_timeout_ms: int
    heartbeat_interval_ms: int
    max_entry_bytes: int
    state: str
    last_state: str
    error: str
    is_leader: bool
    lease_ms_left: float
    fence: int
    processes: dict[str, Process]
    status: StatusPicture | None
    members: list[MemberPicture]
    removed: list[int]
    rings: dict[str, RingUsage]
    slots_in_use: int
    worker: dict[str, int]
    network: dict[str, int]
    worker_beat_ms_ago: float | None
    network_beat_ms_ago: float | None
    notes: list[str]


def role_name(value: int) -> str:
    """The name that SQL shows for a role, or "Unknown (N)"."""
    try:
        return ROLE_NAMES[Role(value)]
    except ValueError:
        return f"Unknown ({value})"


def ms_since(then_ns: int, now: int) -> float | None:
    """Milliseconds from `then_ns` to `now`; null for a moment that never was or lies ahead."""
    if then_ns == 0 or then_ns > now + NS_PER_MS:
        return None
    return max(0.0, round((now - then_ns) / NS_PER_MS, 1))


def is_running(pid: int, start: int) -> bool:
    """Whether the process runs that had this pid and start time (clock ticks; 0: not known)."""
    found = start_ticks(pid) if 0 < pid <= PID_MAX else None
    return found is not None and start in (0, found)


def take_picture(segment: Segment) -> Picture:
    """Read the whole segment once. Raises SegmentError when its header makes no sense."""
    now = now_ns()
    header, worker, notes = segment.header, segment.worker, list[str]()
    processes = {
        name: Process(header[f"{name}_pid"], is_running(header[f"{name}_pid"], header[f"{name}_start"]))
        for name in PROCESSES
    }
    status, members = _read_blocks(segment, notes)
    retired = header["retired"] != 0
    lease_left = 0.0 if retired else _lease_ms_left(worker["lease_end_ns"], now, notes)
    rings, slots_in_use = ring_usages(segment, notes)
    picture = Picture(
        segment=segment.name,
        segment_bytes=segment.size,
        layout_version=header["layout_version"],
        epoch=header["epoch"],
        retired=retired,
        started_ms_ago=ms_since(header["created_boot_ns"], now),
        **_texts(segment),
        node_id=header["node_id"],
        election_timeout_ms=header["election_timeout_ms"],
        heartbeat_interval_ms=header["heartbeat_interval_ms"],
        max_entry_bytes=header["max_entry_bytes"],
        state=_state(segment, processes, now),
        last_state=enum_name(WorkerState, worker["state"]),
        error=clean(segment.worker_text("error")),
        is_leader=lease_left > 0,
        lease_ms_left=lease_left,
        fence=header["fence"],
        processes=processes,
        status=_status_picture(status, now) if status is not None else None,
        members=_member_pictures(status, members, segment, now),
        removed=list(members.removed) if members is not None else [],
        rings=rings,
        slots_in_use=slots_in_use,
        worker=_counters(worker),
        network=_counters(segment.network),
        worker_beat_ms_ago=ms_since(worker["beat_ns"], now),
        network_beat_ms_ago=ms_since(segment.network["beat_ns"], now),
        notes=notes,
    )
    _note_processes(picture)
    if picture.state == WorkerState.ERROR.name.lower():
        _mark_left(picture)
    return picture


def _lease_ms_left(end_ns: int, now: int, notes: list[str]) -> float:
    left = max(0.0, (end_ns - now) / NS_PER_MS)
    if left > LEASE_MS_MAX:
        notes.append("the lease ends later than any lease can: damage, and taken as none")
        return 0.0
    return round(left, 1)


def _texts(segment: Segment) -> dict[str, str]:
    names = {"version": "version", "name": "node_name", "cluster_id": "cluster_id"}
    names |= {"data_dir": "data_dir", "pgdata": "pgdata"}
    return {field: clean(segment.text(text)) for field, text in names.items()}


def _state(segment: Segment, processes: dict[str, Process], now: int) -> str:
    """The state as pgraft_get_worker_state() gives it, at the latest an election timeout from now."""
    state = enum_name(WorkerState, segment.worker["state"])
    if segment.header["retired"]:
        return "stopped"
    if not processes["worker"].alive:
        # A worker that gave up on an error is gone, and its supervisor stays and vouches for it.
        return state if state == "error" and processes["supervisor"].alive else "stopped"
    return segment.worker_state(now).name.lower()


def _counters(page: WordPage) -> dict[str, int]:
    hidden = ("_ns", "_selector", "_tail", "_head", "state")
    return {name: value for name, value in page.as_dict().items() if not name.endswith(hidden)}


def _read_blocks(segment: Segment, notes: list[str]) -> tuple[Status | None, Members | None]:
    status: Status | None = None
    members: Members | None = None
    try:
        status = read_status(segment)
        notes.extend(blockcheck.torn_status(segment))
    except BlockUnreadable:
        notes.append(blockcheck.unreadable("status", segment.worker["status_generation"]))
    try:
        members = read_members(segment)
        notes.extend(blockcheck.torn_members(segment))
    except BlockUnreadable:
        notes.append(blockcheck.unreadable("members", segment.worker["members_generation"]))
    return status, members


def _status_picture(status: Status, now: int) -> StatusPicture:
    return StatusPicture(
        generation=status.generation,
        role=role_name(status.role),
        leader_id=status.leader_id,
        term=status.term,
        vote=status.vote,
        commit_index=status.commit_index,
        last_index=status.last_index,
        applied=status.applied,
        first_index=status.first_index,
        log_bytes=status.log_bytes,
        voters_reachable=status.voters_reachable,
        voters_needed=status.voters_needed,
        published_ms_ago=ms_since(status.published_boot_ns, now),
    )


def _member_pictures(
    status: Status | None, members: Members | None, segment: Segment, now: int
) -> list[MemberPicture]:
    pictures: dict[int, MemberPicture] = {}
    for member in members.members if members is not None else ():
        pictures[member.node_id] = MemberPicture(
            node_id=member.node_id,
            address=clean(member.address),
            port=member.port,
            member_id=f"{member.member_id:016x}" if member.member_id else None,
            is_self=member.node_id == segment.header["node_id"],
            is_learner=member.is_learner,
            is_leaving=member.is_leaving,
        )
    for row in status.rows if status is not None else ():
        picture = pictures.setdefault(row.node_id, MemberPicture(row.node_id))
        _add_row(picture, row, status.leader_id if status is not None else 0, now)
        _mark_silent(picture, segment.header["election_timeout_ms"])
    return [pictures[node_id] for node_id in sorted(pictures)]


def _add_row(picture: MemberPicture, row: StatusRow, leader_id: int, now: int) -> None:
    picture.is_self = picture.is_self or bool(row.is_self)
    picture.is_learner = picture.is_learner or bool(row.is_learner)
    picture.is_leader = row.node_id == leader_id != 0
    picture.state = role_name(row.role)
    picture.term = row.term
    picture.commit_index = row.commit_index
    picture.last_index = row.last_index
    picture.match_index = row.match_index
    picture.next_index = row.next_index
    picture.is_replicating = bool(row.is_replicating)
    picture.heard_ms_ago = None if row.is_self else ms_since(row.heard_boot_ns, now)


def _mark_silent(picture: MemberPicture, election_timeout_ms: int) -> None:
    heard = picture.heard_ms_ago
    if not picture.is_self and (heard is None or heard > election_timeout_ms):
        picture.state = "Unreachable"


def _mark_left(picture: Picture) -> None:
    """A worker that left consensus, or hangs, published its last status before that: nobody leads by it."""
    if picture.status is not None:
        picture.status.leader_id = 0
    for member in picture.members:
        member.is_leader = False
        if member.is_self:
            member.state = "Unreachable"
    picture.notes.append("this node takes no part in consensus: its values are those of when it left")


def _note_processes(picture: Picture) -> None:
    gone = [name for name, process in picture.processes.items() if not process.alive]
    if picture.retired:
        picture.notes.append("retired: a newer start of this node uses another segment, or it was stopped")
    elif len(gone) == len(PROCESSES):
        picture.notes.append("no process of this node runs: this is its last state before they ended")
    elif gone:
        picture.notes.append(f"not running: {', '.join(gone)}")
