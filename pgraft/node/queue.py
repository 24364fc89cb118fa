"""Membership changes and hand-overs in the order they came: one runs, the others wait for it."""

from __future__ import annotations

from collections.abc import Callable

from pgraft.node import answers
from pgraft.node.changes import AddNode, Change, Host, RemoveSelf, TransferLeadership, start_change
from pgraft.node.commands import Answer, Command
from pgraft.shm.layout import CommandKind

Reply = Callable[[Command, Answer], None]


class ChangeQueue:
    """The running change first. `reply` answers a command, for good or with a notice."""

    def __init__(self, host: Host, reply: Reply) -> None:
        self._host = host
        self._reply = reply
        self._queue: list[Change | Command] = []

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, command: Command) -> None:
        """Behind those that wait. But who wants a newcomer removed does not wait for its catching up."""
        running = self._queue[0] if self._queue else None
        if command.kind == CommandKind.REMOVE_NODE and isinstance(running, AddNode):
            running.give_up(command.arg1)
        self._queue.append(command)

    def poll(self, now_ns: int) -> Command | None:
        """Take the running change one step on. Returns the next command where this node does not lead."""
        if not self._queue:
            return None
        first = self._queue[0]
        if isinstance(first, Command):
            if not self._host.leads:
                del self._queue[0]
                return first
            first = self._queue[0] = start_change(self._host, first)
        answer = first.poll(now_ns)
        if answer is not None:
            del self._queue[0]
            self._reply(first.command, answer)
        return None

    def sweep(self, now_ns: int) -> None:
        """Changes whose turn did not come in time: nobody must find them done later."""
        late = [
            change for change in self._queue if isinstance(change, Command) and change.deadline_ns <= now_ns
        ]
        if late:
            self._queue = [change for change in self._queue if change not in late]
            for command in late:
                self._reply(command, answers.change_running())

    def deposed(self, answer: Answer) -> list[Command]:
        """This node leads no more: what runs ends with `answer`, unless that is what it wanted.

        Returns those that had not begun, which may wait for the next leader.
        """
        kept: list[Change | Command] = []
        waiting: list[Command] = []
        for change in self._queue:
            if isinstance(change, Command):
                waiting.append(change)
            elif isinstance(change, RemoveSelf | TransferLeadership):
                kept.append(change)
            else:
                self._reply(change.command, answer)
        self._queue = kept
        return waiting

    def fail(self, answer: Answer) -> None:
        """Nothing here goes on."""
        for change in self._queue:
            self._reply(change if isinstance(change, Command) else change.command, answer)
        self._queue = []
