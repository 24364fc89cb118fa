"""What a state machine is.

A machine is deterministic: its state follows from the entries that were applied, and from nothing else. It
reads no clock, no random number, no file and no setting of its own node, and never iterates over a set of
bytes or text, whose order differs from process to process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class StateMachine(Protocol):
    """One replicated state machine."""

    @property
    def applied_index(self) -> int:
        """Index of the last entry applied to this machine, 0 before the first. Part of its snapshot."""

    def apply(self, index: int, data: bytes) -> object:
        """Apply the committed entry at `index`; `data` is what stands behind its kind byte.

        The result is the same on every node. Data that makes no sense is a result as well, never an
        exception, since an exception would end every node. InvariantViolation when `index` is not above
        `applied_index`: the entry would be applied twice.
        """

    def snapshot(self) -> Iterator[bytes]:
        """The state as it is now, in pieces of at most PIECE_BYTES_MAX.

        The call takes well under 20 ms. The pieces are made when they are asked for, and show
        the state at the moment of the call whatever is applied meanwhile.
        """


class Restorer(Protocol):
    """Builds a machine from the pieces of its snapshot."""

    def feed(self, piece: bytes) -> None:
        """Take the next piece; pieces may be cut anywhere. Raises SnapshotDamaged, SnapshotTooNew."""

    def finish(self) -> StateMachine:
        """The machine, after the last piece. Raises SnapshotDamaged when something is missing."""


class Kind(Protocol):
    """What the registry must know of a sort of machine; a module or a class can be one."""

    @property
    def format_version(self) -> int:
        """Version of the snapshot format that this release writes. It reads this one and older ones."""

    def empty(self) -> StateMachine:
        """A machine to which nothing was applied."""

    def restorer(self, format_version: int) -> Restorer:
        """A builder for a snapshot of this format version, which is at most `format_version`."""
