"""Commands on their way: which wait for a leader, which for a commit, which for another node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from pgraft.node.commands import Command

DATA_PREFIX = b"\x01"
"""Before the text of every user entry, so that an empty text is not an empty entry."""


class Pending(msgspec.Struct, gc=False):
    """A command whose entry stands at `index`, appended by this node as leader."""

    index: int
    command: Command


class Proposals:
    """Entries of this node's own term that wait for their commit, in index order."""

    def __init__(self) -> None:
        self.term = 0
        self._waiting: deque[Pending] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, term: int, first_index: int, commands: list[Command]) -> None:
        """`commands` were appended at first_index and on, at `term`."""
        self.term = term
        self._waiting.extend(Pending(index, command) for index, command in enumerate(commands, first_index))

    def committed(self, upto: int) -> list[Pending]:
        """Take those that a commit index of `upto` covers."""
        waiting = self._waiting
        done: list[Pending] = []
        while waiting and waiting[0].index <= upto:
            done.append(waiting.popleft())
        return done

    def take_all(self) -> list[Command]:
        """Take everything: leadership is gone."""
        commands = [pending.command for pending in self._waiting]
        self._waiting.clear()
        return commands

    def take_expired(self, now_ns: int) -> list[Command]:
        """Take those whose callers stop waiting now. Their entries stay in the log."""
        expired = [pending.command for pending in self._waiting if pending.command.deadline_ns <= now_ns]
        if expired:
            self._waiting = deque(
                pending for pending in self._waiting if pending.command.deadline_ns > now_ns
            )
        return expired


class Forwarded:
    """Commands that another node carries out for a session of this one."""

    def __init__(self, nonce: int) -> None:
        self.nonce = nonce
        self._next = 1
        self._waiting: dict[int, tuple[Command, int]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, command: Command, leader: int) -> int:
        """The number by which `leader` will answer the command."""
        number = self._next
        self._next += 1
        self._waiting[number] = (command, leader)
        return number

    def sent_to(self, number: int) -> int:
        """The node that was asked to carry the command out, 0 when none is waited for."""
        found = self._waiting.get(number)
        return found[1] if found is not None else 0

    def get(self, number: int) -> Command | None:
        """The command with this number."""
        found = self._waiting.get(number)
        return found[0] if found is not None else None

    def take(self, number: int) -> Command | None:
        """The command with this number, which has its final answer."""
        found = self._waiting.pop(number, None)
        return found[0] if found is not None else None

    def numbers(self, leader: int) -> list[int]:
        """Numbers of the commands that this node was asked to carry out."""
        return [number for number, (_, asked) in self._waiting.items() if asked == leader]

    def take_where(self, gone: Callable[[Command, int], bool]) -> list[Command]:
        """Take those for which `gone(command, leader)` holds."""
        numbers = [number for number, found in self._waiting.items() if gone(*found)]
        return [self._waiting.pop(number)[0] for number in numbers]


class Waiting:
    """Commands that wait for a leader: each until its own time, or one election, has passed."""

    def __init__(self, election_timeout_ns: int) -> None:
        self._patience_ns = 2 * election_timeout_ns
        self._waiting: list[Command] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, command: Command, now_ns: int) -> None:
        """Wait, from the first time that the command is put here."""
        if not command.wait_until_ns:
            command.wait_until_ns = min(now_ns + self._patience_ns, command.deadline_ns)
        self._waiting.append(command)

    def take_all(self) -> list[Command]:
        """Take everything, to try again."""
        commands, self._waiting = self._waiting, []
        return commands

    def take_expired(self, now_ns: int) -> list[Command]:
        """Take those that have waited long enough."""
        expired = [command for command in self._waiting if command.wait_until_ns <= now_ns]
        if expired:
            self._waiting = [command for command in self._waiting if command.wait_until_ns > now_ns]
        return expired
