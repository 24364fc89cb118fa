"""The pages for people, made from what picture.py and rings.py read."""

from __future__ import annotations

from pgraft.inspector.picture import ROLE_NAMES, MemberPicture, Picture, StatusPicture
from pgraft.inspector.rings import RingsPicture, RingUsage, SlotPicture, WaitingCommand, WaitingMessage
from pgraft.inspector.text import ago, size, table
from pgraft.shm.layout import Role, WorkerState

ROWS_SHOWN_MAX = 40
"""Waiting records of one ring, and slots, that a page shows; json shows them all."""
LABEL_WIDTH = 13


def show_page(picture: Picture) -> str:
    """The page of `show` and `watch`."""
    lines = [_title(picture), "", *_facts(picture), "", *_members(picture), "", *_usages(picture)]
    lines += ["", *_counters(picture)]
    if picture.notes:
        lines += ["", *(f"NOTE: {note}" for note in picture.notes)]
    return "\n".join(lines) + "\n"


def _title(picture: Picture) -> str:
    name = f'"{picture.name}" (node {picture.node_id})' if picture.name else f"node {picture.node_id}"
    return f'{name} of cluster "{picture.cluster_id}", pgraft {picture.version}'


def _fact(label: str, text: str) -> str:
    return f"  {label:<{LABEL_WIDTH}} {text}"


def _facts(picture: Picture) -> list[str]:
    state = picture.state
    if state != picture.last_state:
        state += f" (last known: {picture.last_state})"
    lines = [_fact("state", state)]
    if picture.error:
        lines.append(_fact("error", picture.error))
    lines.append(_fact("is leader", _leadership(picture)))
    lines += _status_facts(picture.status)
    lines.append(_fact("processes", _processes(picture)))
    timing = f"election timeout {picture.election_timeout_ms} ms"
    timing += f", heartbeat {picture.heartbeat_interval_ms} ms"
    lines.append(_fact("timing", timing))
    beats = f"worker {ago(picture.worker_beat_ms_ago)}, network {ago(picture.network_beat_ms_ago)} ago"
    lines.append(_fact("last beats", beats))
    lines.append(_fact("Raft state", picture.data_dir))
    lines.append(_fact("PostgreSQL", picture.pgdata))
    segment = f"{picture.segment}, {size(picture.segment_bytes)}, epoch {picture.epoch}"
    lines.append(_fact("segment", f"{segment}, made {ago(picture.started_ms_ago)} ago"))
    return lines


def _leadership(picture: Picture) -> str:
    if picture.is_leader:
        return f"yes, its lease runs for another {picture.lease_ms_left:.0f} ms"
    if picture.state == WorkerState.ERROR.name.lower():
        return "no; it takes no part in consensus"
    leader = picture.status.leader_id if picture.status is not None else 0
    return f"no; the leader it knows is node {leader}" if leader else "no; it knows no leader"


def _status_facts(status: StatusPicture | None) -> list[str]:
    if status is None:
        return [_fact("status", "cannot be read")]
    voters = f"{status.voters_reachable} reachable, {status.voters_needed} needed"
    log = f"commit {status.commit_index}, applied {status.applied}, kept from {status.first_index}"
    log += f" to {status.last_index}, {size(status.log_bytes)} on disk"
    published = f"{ago(status.published_ms_ago)} ago, generation {status.generation}"
    return [
        _fact("role", f"{status.role}, term {status.term}, voted for node {status.vote or 'none'}"),
        _fact("entry log", log),
        _fact("voters", voters),
        _fact("published", published),
    ]


def _processes(picture: Picture) -> str:
    return ", ".join(
        f"{name} {process.pid or '-'}{'' if process.alive else ' (gone)'}"
        for name, process in picture.processes.items()
    )


def _members(picture: Picture) -> list[str]:
    if not picture.members:
        return ["no members known"]
    columns = ["node", "address", "state", "term", "commit", "last", "match", "next", "heard", ""]
    leads = picture.status is not None and picture.status.role == ROLE_NAMES[Role.LEADER]
    rows = [_member_row(member, leads) for member in picture.members]
    lines = table(columns, rows, left=frozenset({1, 2, 9}))
    if picture.removed:
        shown = ", ".join(map(str, picture.removed[:ROWS_SHOWN_MAX]))
        lines.append(f"removed: {shown}{' ...' if len(picture.removed) > ROWS_SHOWN_MAX else ''}")
    return lines


def _member_row(member: MemberPicture, leads: bool) -> list[str]:
    """How far a member's log is known to match counts on the leader, and for the others."""
    marks = [
        mark
        for mark, holds in (
            ("this node", member.is_self),
            ("leader", member.is_leader),
            ("learner", member.is_learner),
            ("leaving", member.is_leaving),
        )
        if holds
    ]
    numbers = [member.term, member.commit_index, member.last_index]
    numbers += [member.match_index, member.next_index] if leads and not member.is_self else [None, None]
    return [
        str(member.node_id),
        f"{member.address}:{member.port}" if member.address is not None else "?",
        member.state,
        *("" if number is None else str(number) for number in numbers),
        "" if member.is_self else ago(member.heard_ms_ago),
        ", ".join(marks),
    ]


def _share(usage: RingUsage) -> str:
    return f"{100 * usage.used / usage.capacity:.0f} %" if usage.sane else "damaged"


def _usages(picture: Picture) -> list[str]:
    rows = [
        [ring, size(usage.capacity), size(usage.used), _share(usage)] for ring, usage in picture.rings.items()
    ]
    lines = table(["ring", "size", "waiting", "used"], rows, left=frozenset({0}))
    return [*lines, f"result slots in use: {picture.slots_in_use}"]


def _counters(picture: Picture) -> list[str]:
    worker = ", ".join(f"{name} {value}" for name, value in picture.worker.items())
    network = ", ".join(f"{name} {value}" for name, value in picture.network.items())
    return [f"worker:  {worker}", f"network: {network}"]


# --- the page of `rings` ----------------------------------------------------------------------------


def rings_page(rings: RingsPicture) -> str:
    """The page of `rings`."""
    lines = [_ring_head("command ring (sessions -> worker)", rings.command), *_commands(rings.commands), ""]
    lines += [_ring_head("inbound ring (network -> worker)", rings.inbound)]
    lines += [*_messages(rings.inbound_messages), ""]
    lines += [_ring_head("outbound ring (worker -> network)", rings.outbound)]
    lines += [*_messages(rings.outbound_messages), ""]
    lines += [f"result slots: {len(rings.slots)} of {rings.slot_count} in use", *_slots(rings.slots)]
    if rings.notes:
        lines += ["", *(f"NOTE: {note}" for note in rings.notes)]
    return "\n".join(lines) + "\n"


def _ring_head(title: str, usage: RingUsage) -> str:
    if not usage.sane:
        return f"{title}: head {usage.head} and tail {usage.tail} make no sense in {usage.capacity} bytes"
    return (
        f"{title}: head {usage.head}, tail {usage.tail},"
        f" {usage.used} of {usage.capacity} bytes used ({_share(usage)})"
    )


def _more(total: int) -> list[str]:
    return [f"... and {total - ROWS_SHOWN_MAX} more"] if total > ROWS_SHOWN_MAX else []


def _commands(commands: list[WaitingCommand]) -> list[str]:
    if not commands:
        return []
    columns = ["position", "kind", "slot", "request", "pid", "piece", "of", "timeout", "data"]
    rows = [
        [
            str(command.position),
            command.kind if command.whole else "not whole",
            str(command.slot),
            str(command.request_no),
            str(command.backend_pid),
            str(command.piece_offset),
            str(command.total_bytes),
            f"{command.timeout_ms} ms",
            command.preview,
        ]
        for command in commands[:ROWS_SHOWN_MAX]
    ]
    return table(columns, rows, left=frozenset({1, 8})) + _more(len(commands))


def _messages(messages: list[WaitingMessage]) -> list[str]:
    if not messages:
        return []
    rows = [
        [
            str(message.position),
            message.kind if message.whole else "not whole",
            str(message.node_id),
            str(message.payload_bytes),
        ]
        for message in messages[:ROWS_SHOWN_MAX]
    ]
    lines = table(["position", "kind", "node", "bytes"], rows, left=frozenset({1}))
    return lines + _more(len(messages))


def _slots(slots: list[SlotPicture]) -> list[str]:
    if not slots:
        return []
    columns = ["slot", "pid", "state", "request", "submitted at", "wants space", "answered", "outcome"]
    rows = [
        [
            str(slot.number),
            str(slot.pid),
            slot.state,
            str(slot.request_no),
            str(slot.submitted_pos),
            "yes" if slot.wants_space else "no",
            str(slot.answered_no) + ("" if slot.answer_whole else " (not whole)"),
            slot.outcome,
        ]
        for slot in slots[:ROWS_SHOWN_MAX]
    ]
    return table(columns, rows, left=frozenset({2, 7})) + _more(len(slots))
