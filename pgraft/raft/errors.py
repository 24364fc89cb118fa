"""Errors of the consensus core: whose fault it is shows in the type.

`RaftError` and its children are answers to a caller or a peer: the core is as it was before the call.
`InvariantViolation` is a bug of ours or damaged state; the node must stop taking part.
"""

from __future__ import annotations


class RaftError(Exception):
    """Base of everything that the core refuses; the text is fixed for each class."""

    text = "raft error"

    def __init__(self, detail: str = "") -> None:
        super().__init__(f"{self.text}: {detail}" if detail else self.text)


class ErrCompacted(RaftError):
    """The storage no longer has the entry: it lies at or before the snapshot."""

    text = "requested index is unavailable due to compaction"


class ErrUnavailable(RaftError):
    """The storage does not have the entry (yet)."""

    text = "requested entry at index is unavailable"


class ErrSnapOutOfDate(RaftError):
    """A snapshot is older than the one the storage already has."""

    text = "requested index is older than the existing snapshot"


class ErrSnapshotTemporarilyUnavailable(RaftError):
    """The storage is making a snapshot; the leader asks again later."""

    text = "snapshot is temporarily unavailable"


class ErrProposalDropped(RaftError):
    """The proposal was not taken: no leader, a transfer in progress, too much uncommitted, not forwarded."""

    text = "raft proposal dropped"


class ErrStepLocalMsg(RaftError):
    """A message type that only the node itself may produce came from elsewhere."""

    text = "raft: cannot step raft local message"


class ErrStepPeerNotFound(RaftError):
    """A response came from a node that is not in the configuration."""

    text = "raft: cannot step as peer not found"


class ErrMalformedMessage(RaftError):
    """A peer sent a message that contradicts itself; it was dropped."""

    text = "raft: malformed message"


class ErrConfChange(RaftError):
    """A membership change is not possible in the configuration it is applied to."""

    text = "raft: impossible configuration change"

    def __init__(self, detail: str) -> None:
        Exception.__init__(self, detail)


class ErrConfig(RaftError):
    """A field of Config is out of range."""

    text = "raft: invalid configuration"


class InvariantViolation(Exception):
    """A stated invariant does not hold; the message carries the numbers."""


def invariant(condition: bool, message: str) -> None:
    """Raise InvariantViolation unless `condition` holds. Always on, unlike assert.

    Hot paths test first and raise it themselves, so that the message costs nothing.
    """
    if not condition:
        raise InvariantViolation(message)
