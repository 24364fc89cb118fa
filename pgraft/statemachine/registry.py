"""Which machine an entry is for, and all machines of a node as one.

An entry of user data begins with a kind byte. 0x01 is text of pgraft_replicate_entry, which changes no
state; 0x02 is a command of the key-value store. An entry without any data is a new leader's first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from pgraft.raft.errors import InvariantViolation
from pgraft.statemachine.errors import UnknownEntryKind
from pgraft.statemachine.frames import FRAME_END, FRAME_HEAD, FRAME_PIECE, FRAME_SECTION, frame
from pgraft.statemachine.key_value import KeyValueMachine
from pgraft.statemachine.key_value_restore import FORMAT_VERSION as KEY_VALUE_FORMAT_VERSION
from pgraft.statemachine.key_value_restore import KeyValueRestorer
from pgraft.statemachine.protocol import Kind, StateMachine
from pgraft.statemachine.snapshot_records import SectionHead, StreamHead

KIND_USER_TEXT: Final = 0x01
KIND_KEY_VALUE: Final = 0x02
KEY_VALUE: Final = "key_value"
"""Names of machines stand in snapshots."""
STREAM_FORMAT_VERSION: Final = 1

_encode: Final = msgspec.msgpack.Encoder().encode


class KeyValueKind:
    """The key-value store, for the registry."""

    format_version = KEY_VALUE_FORMAT_VERSION

    def empty(self) -> KeyValueMachine:
        """An empty store."""
        return KeyValueMachine()

    def restorer(self, format_version: int) -> KeyValueRestorer:
        """A builder from a snapshot. There is one format so far."""
        return KeyValueRestorer()


MACHINE_KINDS: Final[dict[str, Kind]] = {KEY_VALUE: KeyValueKind()}
"""All machines, in the order of their sections in a snapshot."""
MACHINE_OF_KIND: Final[dict[int, str]] = {KIND_KEY_VALUE: KEY_VALUE}


def is_known_kind(data: bytes) -> bool:
    """Whether this release can apply an entry with this data: a proposer asks before it proposes."""
    return not data or data[0] == KIND_USER_TEXT or data[0] in MACHINE_OF_KIND


class StateMachines:
    """All machines of a node. Every committed entry passes through here once, in order."""

    __slots__ = ("_applied_index", "_kinds", "_machines")

    def __init__(
        self,
        kinds: Mapping[str, Kind] = MACHINE_KINDS,
        machines: Mapping[str, StateMachine] | None = None,
        applied_index: int = 0,
    ) -> None:
        """The given machines, and an empty one for each kind that has none: a snapshot of an older release
        lacks the newer ones."""
        given = machines or {}
        self._kinds = kinds
        self._machines = {name: given.get(name) or kind.empty() for name, kind in kinds.items()}
        self._applied_index = applied_index

    @property
    def applied_index(self) -> int:
        """Index of the last committed entry that was applied, whatever it was."""
        return self._applied_index

    @property
    def key_value(self) -> KeyValueMachine:
        """The key-value store."""
        machine = self._machines[KEY_VALUE]
        if not isinstance(machine, KeyValueMachine):
            raise InvariantViolation(f"the machine {KEY_VALUE} is a {type(machine).__name__}")
        return machine

    def machine(self, name: str) -> StateMachine:
        """The machine of this name."""
        return self._machines[name]

    def apply(self, index: int, data: bytes) -> object:
        """Apply the committed entry at `index`, of type EntryNormal, with all of its data. The machine's
        result; None for entries without state.

        InvariantViolation when it has been applied already, UnknownEntryKind for a newer release's entry;
        either ends this node's part in consensus, and the applied index stays before the entry.
        """
        self._check_index(index)
        if not data or data[0] == KIND_USER_TEXT:
            self._applied_index = index
            return None
        name = MACHINE_OF_KIND.get(data[0])
        if name is None:
            raise UnknownEntryKind(index, data[0])
        self._applied_index = index
        return self._machines[name].apply(index, data[1:])

    def apply_to(self, name: str, index: int, data: bytes) -> object:
        """Apply the committed entry at `index` to the machine `name`: an entry whose type, not its kind byte,
        says whose it is, such as a membership change."""
        self._check_index(index)
        self._applied_index = index
        return self._machines[name].apply(index, data)

    def snapshot(self) -> Iterator[bytes]:
        """All machines as they are now, in chunks of at most CHUNK_BYTES_MAX, made as they are asked for."""
        head = StreamHead(STREAM_FORMAT_VERSION, self._applied_index, tuple(self._machines))
        sections = [
            (SectionHead(name, self._kinds[name].format_version), machine.snapshot())
            for name, machine in self._machines.items()
        ]
        return _frames(head, sections)

    def _check_index(self, index: int) -> None:
        if index <= self._applied_index:
            raise InvariantViolation(f"entry {index} applied behind entry {self._applied_index}")


def _frames(head: StreamHead, sections: list[tuple[SectionHead, Iterator[bytes]]]) -> Iterator[bytes]:
    yield frame(0, FRAME_HEAD, _encode(head))
    number = 1
    for section, pieces in sections:
        yield frame(number, FRAME_SECTION, _encode(section))
        number += 1
        for piece in pieces:
            yield frame(number, FRAME_PIECE, piece)
            number += 1
    yield frame(number, FRAME_END, b"")
