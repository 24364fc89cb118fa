"""What goes wrong in state machines: whose fault it is shows in the type.

A request that breaks a limit is none of these: it is a result (`results.Refused`), the same on every node.
"""

from __future__ import annotations


class StateMachineError(Exception):
    """Base of everything in here."""


class UnknownEntryKind(StateMachineError):
    """A committed entry has a kind byte that this release does not know: a newer release wrote it.

    The node must stop taking part until it runs that release. To go on would let its state diverge.
    """

    def __init__(self, index: int, kind: int) -> None:
        super().__init__(
            f"the entry at index {index} has kind 0x{kind:02x}, which this release does not know: "
            "a newer release wrote it; install that release on this node"
        )
        self.index = index
        self.kind = kind


class SnapshotDamaged(StateMachineError):
    """A snapshot stream is truncated, altered, out of order or contradicts itself; the text says what."""


class SnapshotTooNew(StateMachineError):
    """A newer release wrote the snapshot, or a section of it."""


class TxnDocumentError(StateMachineError):
    """The JSON document of a transaction is wrong; the text starts with the path of what is wrong."""
