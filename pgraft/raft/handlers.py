"""Tables of message handlers: one entry for each message type, none forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pgraft.raft.errors import invariant
from pgraft.raft.types import Message, MessageType

if TYPE_CHECKING:
    from pgraft.raft.raft import Raft

Handler = Callable[["Raft", Message], None]


def table(handlers: Mapping[MessageType, Handler]) -> tuple[Handler, ...]:
    """The handlers in the order of the message types' numbers, so that a type indexes them.

    Every type must be there, if only to be ignored: this stands for assert_never.
    """
    missing = set(MessageType) - handlers.keys()
    invariant(not missing, f"no handler for {sorted(missing)}")
    return tuple(handlers[kind] for kind in sorted(MessageType))


def ignore(r: Raft, m: Message) -> None:
    """For messages that mean nothing to a role."""
