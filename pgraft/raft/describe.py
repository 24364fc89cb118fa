"""Messages, entries and Ready in words, in the form that etcd's scenarios use. For tests and debug logs.

Ids in messages are hexadecimal; fields that are empty are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from pgraft.raft.codec import as_v2, decode_conf_change
from pgraft.raft.errors import ErrMalformedMessage
from pgraft.raft.rawnode import Ready
from pgraft.raft.status import SoftState
from pgraft.raft.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NO_NODE,
    ConfChangeSingle,
    ConfChangeType,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    Snapshot,
)

CHANGE_LETTERS = {
    ConfChangeType.ConfChangeAddNode: "v",
    ConfChangeType.ConfChangeAddLearnerNode: "l",
    ConfChangeType.ConfChangeRemoveNode: "r",
    ConfChangeType.ConfChangeUpdateNode: "u",
}
_TARGETS = {NO_NODE: "None", LOCAL_APPEND_THREAD: "AppendThread", LOCAL_APPLY_THREAD: "ApplyThread"}
_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


def quote(data: bytes) -> str:
    """Bytes as a quoted string: UTF-8 as it is, the rest escaped."""
    text = data.decode("utf-8", errors="surrogateescape")
    return '"' + "".join(map(_quote_character, text)) + '"'


def _quote_character(character: str) -> str:
    code = ord(character)
    if code in _ESCAPES:
        return _ESCAPES[code]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable():
        return character
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def describe_changes(changes: Iterable[ConfChangeSingle]) -> str:
    """`v1 l2 r3 u4`."""
    return " ".join(f"{CHANGE_LETTERS[ConfChangeType(c.type)]}{c.node_id}" for c in changes)


def describe_entry(entry: Entry) -> str:
    """`1/12 EntryNormal "data"`: term, index, type, content."""
    if entry.type == EntryType.EntryNormal:
        content = quote(entry.data)
    else:
        try:
            content = describe_changes(as_v2(decode_conf_change(entry)).changes)
        except ErrMalformedMessage as error:
            content = str(error)
    text = f"{entry.term}/{entry.index} {EntryType(entry.type).name}"
    return f"{text} {content}" if content else text


def describe_entries(entries: Iterable[Entry]) -> str:
    """A line for each entry."""
    return "".join(f"{describe_entry(entry)}\n" for entry in entries)


def describe_soft_state(state: SoftState) -> str:
    """`Lead:1 State:StateFollower`."""
    return f"Lead:{state.lead} State:{state.raft_state.name}"


def describe_hard_state(state: HardState) -> str:
    """`Term:1 Vote:1 Commit:2`."""
    vote = f" Vote:{state.vote}" if state.vote else ""
    return f"Term:{state.term}{vote} Commit:{state.commit}"


def describe_conf_state(state: ConfState) -> str:
    """`Voters:[1 2] VotersOutgoing:[] …`."""
    return (
        f"Voters:{_ids(state.voters)} VotersOutgoing:{_ids(state.voters_outgoing)}"
        f" Learners:{_ids(state.learners)} LearnersNext:{_ids(state.learners_next)}"
        f" AutoLeave:{str(state.auto_leave).lower()}"
    )


def _ids(ids: Iterable[int]) -> str:
    return "[" + " ".join(map(str, ids)) + "]"


def describe_snapshot(snapshot: Snapshot) -> str:
    """`Index:4 Term:1 ConfState:…`."""
    metadata = snapshot.metadata
    return f"Index:{metadata.index} Term:{metadata.term} ConfState:{describe_conf_state(metadata.conf_state)}"


def describe_target(id: int) -> str:
    """A node id in hexadecimal, or the name of a local thread."""
    return _TARGETS.get(id) or f"{id:x}"


def describe_message(m: Message, indent: str = "") -> str:
    """A message on one line, but for several entries, a snapshot and responses."""
    text = f"{indent}{describe_target(m.from_)}->{describe_target(m.to)} {m.type.name}"
    text += f" Term:{m.term} Log:{m.log_term}/{m.index}"
    if m.reject:
        text += f" Rejected (Hint: {m.reject_hint})"
    if m.commit:
        text += f" Commit:{m.commit}"
    if m.vote:
        text += f" Vote:{m.vote}"
    if len(m.entries) == 1:
        text += f" Entries:[{describe_entry(m.entries[0])}]"
    elif m.entries:
        lines = [f"{indent}  {describe_entry(entry)}" for entry in m.entries]
        text += " Entries:[\n" + "\n".join(lines) + f"\n{indent}]"
    if m.snapshot is not None and m.snapshot.metadata.index:
        text += f"\n{indent}  Snapshot: {describe_snapshot(m.snapshot)}"
    if m.responses:
        lines = [describe_message(response, indent + "  ") for response in m.responses]
        text += " Responses:[\n" + "\n".join(lines) + f"\n{indent}]"
    return text


def describe_ready(ready: Ready) -> str:
    """Everything in a Ready, a paragraph for each kind; `<empty Ready>` when there is nothing."""
    parts: list[str] = []
    if ready.soft_state is not None:
        parts.append(describe_soft_state(ready.soft_state) + "\n")
    if ready.hard_state is not None:
        parts.append(f"HardState {describe_hard_state(ready.hard_state)}\n")
    if ready.read_states:
        states = " ".join(f"{{{s.index} [{' '.join(map(str, s.request_ctx))}]}}" for s in ready.read_states)
        parts.append(f"ReadStates [{states}]\n")
    if ready.entries:
        parts.append("Entries:\n" + describe_entries(ready.entries))
    if ready.snapshot is not None:
        parts.append(f"Snapshot {describe_snapshot(ready.snapshot)}\n")
    if ready.committed_entries:
        parts.append("CommittedEntries:\n" + describe_entries(ready.committed_entries))
    if ready.messages:
        parts.append("Messages:\n" + "".join(f"{describe_message(m)}\n" for m in ready.messages))
    if not parts:
        return "<empty Ready>"
    return f"Ready MustSync={str(ready.must_sync).lower()}:\n" + "".join(parts)
