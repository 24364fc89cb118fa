"""Linearizable reads without a log entry (dissertation, section 6.4).

A request gets a position, one more than the request before it in this term. Heartbeats carry the
newest position; an answer acknowledges that position and all before it. Once a quorum has, the
leader was still leader after those requests came, and its commit index of then is safe to read at.
Positions, not the callers' contexts, tell requests apart: two callers may use the same context.
"""

from __future__ import annotations

from collections import deque

import msgspec

from pgraft.raft.config import ReadOnlyOption
from pgraft.raft.quorum import JointConfig
from pgraft.raft.types import Message

POSITION_BYTES = 8


class ReadState(msgspec.Struct, frozen=True):
    """The answer to a ReadIndex: once applied reaches `index`, the read may be served."""

    index: int
    request_ctx: bytes


class ReadIndexStatus(msgspec.Struct, frozen=True):
    """A request that waits for its round: where it stands, and the commit index when it came."""

    position: int
    index: int
    request: Message


class ReadOnly:
    """The waiting requests of one term, in order, and the positions that the voters acknowledged."""

    __slots__ = ("_acks", "_last", "_waiting", "option")

    def __init__(self, option: ReadOnlyOption) -> None:
        self.option = option
        self._last = 0
        self._waiting: deque[ReadIndexStatus] = deque()
        self._acks: dict[int, int] = {}

    def reset(self) -> None:
        """Forget all requests and answers; a new term begins."""
        self._last = 0
        self._waiting.clear()
        self._acks.clear()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: Message, index: int) -> None:
        """Take a request that came while the commit index was `index`."""
        self._last += 1
        self._waiting.append(ReadIndexStatus(self._last, index, request))

    def context(self) -> bytes:
        """What a heartbeat carries: the newest position, nothing when no request waits."""
        return self._last.to_bytes(POSITION_BYTES, "big") if self._waiting else b""

    def newest_position(self) -> int:
        """The position of the last request."""
        return self._last

    def acknowledge(self, id: int, position: int) -> None:
        """Node `id` still followed us after the request at `position`."""
        if position > self._last:  # not of this term's making: no promise can be read from it
            return
        if position > self._acks.get(id, 0):
            self._acks[id] = position

    def release(self, voters: JointConfig) -> list[ReadIndexStatus]:
        """Take out the requests that a quorum has acknowledged."""
        if not self._waiting:
            return []
        confirmed = voters.committed_index(self._acks.get)
        released = []
        while self._waiting and self._waiting[0].position <= confirmed:
            released.append(self._waiting.popleft())
        return released


def position_of(context: bytes) -> int:
    """The position in a heartbeat answer's context; 0 when it has none."""
    return int.from_bytes(context, "big") if len(context) == POSITION_BYTES else 0
