"""Directives `simple`, `enter-joint`, `leave-joint`; and the tokens `v1 l2 r3 u4`, which others use too."""

from __future__ import annotations

from pgraft.raft.confchange import Changer
from pgraft.raft.describe import CHANGE_LETTERS
from pgraft.raft.errors import ErrConfChange
from pgraft.raft.tracker import Progress, ProgressTracker
from pgraft.raft.types import ConfChangeSingle
from tests.conformance.datafile import Case

COMMANDS = frozenset({"simple", "enter-joint", "leave-joint"})
INFLIGHT_MSGS = 10
LETTERS = {letter: kind for kind, letter in CHANGE_LETTERS.items()}


class BadTokenError(Exception):
    """A token that does not name a change."""


def parse_changes(text: str) -> list[ConfChangeSingle]:
    """`v1 l2 r3 u4` as changes. Raises BadTokenError."""
    changes = []
    for token in text.split():
        if len(token) < 2:
            raise BadTokenError(f"unknown token {token}")
        if token[0] not in LETTERS or not token[1:].isdigit():
            raise BadTokenError(f"unknown input: {token}")
        changes.append(ConfChangeSingle(LETTERS[token[0]], int(token[1:])))
    return changes


def describe_progress(progress: dict[int, Progress]) -> str:
    """A line for each node, in id order."""
    return "".join(f"{id}: {pr}\n" for id, pr in sorted(progress.items()))


class ChangesRunner:
    """A configuration that a file's directives change, one after the other."""

    def __init__(self) -> None:
        self._tracker = ProgressTracker(INFLIGHT_MSGS, 0)
        self._last_index = 0

    def run(self, case: Case) -> str:
        """The output of one directive; the last index grows with each."""
        try:
            return self._run(case)
        except (BadTokenError, ErrConfChange) as error:
            return str(error)
        finally:
            self._last_index += 1

    def _run(self, case: Case) -> str:
        changes = parse_changes(case.input)
        changer = Changer(self._tracker, self._last_index)
        if case.command == "simple":
            config, progress = changer.simple(changes)
        elif case.command == "enter-joint":
            argument = case.named().get("autoleave")
            config, progress = changer.enter_joint(argument is not None and argument.value == "true", changes)
        elif changes:
            return "this command takes no input"
        else:
            config, progress = changer.leave_joint()
        self._tracker.use(config, progress)
        return f"{config}\n{describe_progress(self._tracker.progress)}"
