"""All machines of a node from the chunks of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from pgraft.statemachine.codec import UNREADABLE
from pgraft.statemachine.errors import SnapshotDamaged, SnapshotTooNew
from pgraft.statemachine.frames import FRAME_END, FRAME_HEAD, FRAME_PIECE, FRAME_SECTION, FrameReader
from pgraft.statemachine.protocol import Kind, Restorer, StateMachine
from pgraft.statemachine.registry import MACHINE_KINDS, STREAM_FORMAT_VERSION, StateMachines
from pgraft.statemachine.snapshot_records import SectionHead, StreamHead

_decode_head: Final = msgspec.msgpack.Decoder(StreamHead).decode
_decode_section: Final = msgspec.msgpack.Decoder(SectionHead).decode


class StateMachinesRestorer:
    """Fed with the bytes of a snapshot stream, however they are cut, gives the machines.

    Every error is SnapshotDamaged or SnapshotTooNew; a restorer that raised one is of no use any more.
    """

    __slots__ = ("_expected", "_frames", "_head", "_kinds", "_machines", "_name", "_section")

    def __init__(self, kinds: Mapping[str, Kind] = MACHINE_KINDS) -> None:
        self._kinds = kinds
        self._frames = FrameReader()
        self._head: StreamHead | None = None
        self._expected: list[str] = []
        self._machines: dict[str, StateMachine] = {}
        self._name = ""
        self._section: Restorer | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        for kind, payload in self._frames.feed(chunk):
            if self._head is None and kind != FRAME_HEAD:
                raise SnapshotDamaged("snapshot stream: it does not begin with its head")
            if kind == FRAME_PIECE:
                if self._section is None:
                    raise SnapshotDamaged("snapshot stream: a piece outside of any section")
                self._section.feed(payload)
            elif kind == FRAME_SECTION:
                self._begin_section(payload)
            elif kind == FRAME_END:
                self._end_section()
            elif kind == FRAME_HEAD and self._head is None:
                self._begin(payload)
            else:
                raise SnapshotDamaged(f"snapshot stream: a frame of kind {kind} where none can be")

    def finish(self) -> StateMachines:
        """The machines, after the last bytes."""
        self._frames.finish()
        if self._head is None or self._expected:
            raise SnapshotDamaged(f"snapshot stream: it ends before the sections {', '.join(self._expected)}")
        applied = self._head.applied_index
        for name, machine in self._machines.items():
            if machine.applied_index > applied:
                where = f"section {name} is at index {machine.applied_index}, the stream at {applied}"
                raise SnapshotDamaged(f"snapshot stream: {where}")
        return StateMachines(self._kinds, self._machines, applied)

    def _begin(self, payload: bytes) -> None:
        try:
            head = _decode_head(payload)
        except UNREADABLE as error:
            raise SnapshotDamaged(f"snapshot stream: its head cannot be read: {error}") from error
        if head.format_version > STREAM_FORMAT_VERSION:
            newest = STREAM_FORMAT_VERSION
            text = f"the snapshot has format {head.format_version}, this release reads up to {newest}"
            raise SnapshotTooNew(text)
        unknown = [name for name in head.sections if name not in self._kinds]
        if unknown:
            raise SnapshotTooNew(f"the snapshot holds {', '.join(unknown)}, which this release does not have")
        if len(set(head.sections)) != len(head.sections) or head.applied_index < 0:
            raise SnapshotDamaged(f"snapshot stream: an impossible head: {head}")
        self._head = head
        self._expected = list(head.sections)

    def _begin_section(self, payload: bytes) -> None:
        self._end_section()
        try:
            section = _decode_section(payload)
        except UNREADABLE as error:
            raise SnapshotDamaged(f"snapshot stream: a section's head cannot be read: {error}") from error
        if not self._expected or section.name != self._expected[0]:
            raise SnapshotDamaged(
                f"snapshot stream: section {section.name} where {self._expected[:1]} is due"
            )
        newest = self._kinds[section.name].format_version
        if section.format_version > newest:
            raise SnapshotTooNew(
                f"the snapshot's section {section.name} has format {section.format_version}, "
                f"this release reads up to {newest}"
            )
        self._name = self._expected.pop(0)
        self._section = self._kinds[section.name].restorer(section.format_version)

    def _end_section(self) -> None:
        if self._section is not None:
            self._machines[self._name] = self._section.finish()
            self._section = None
