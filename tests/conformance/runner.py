"""Runs data files and compares."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pgraft.raft.errors import InvariantViolation
from tests.conformance import changes, quorum
from tests.conformance.datafile import Case, FormatError, parse_file
from tests.conformance.interaction import InteractionRunner

LOGGER_LINE = re.compile(r"\s*(DEBUG|INFO|WARN|ERROR|FATAL|PANIC) ")


class Runner(Protocol):
    """Carries out a file's directives, in order."""

    def run(self, case: Case) -> str:
        """The output of one directive."""
        ...


@dataclass(frozen=True)
class FileResult:
    """How a file fared; `difference` is that of the first case that failed."""

    path: Path
    cases: int
    failed: int
    difference: str = ""

    @property
    def ok(self) -> bool:
        """Whether all cases passed."""
        return self.failed == 0 and not self.difference


def runner_for(cases: list[Case]) -> Runner:
    """A fresh runner of the kind that the file's first directive needs."""
    command = cases[0].command if cases else ""
    if command in quorum.COMMANDS:
        return quorum.QuorumRunner()
    if command in changes.COMMANDS:
        return changes.ChangesRunner()
    return InteractionRunner()


def comparable(output: str) -> list[str]:
    """The lines that count: without the logger's; none at all equals `ok`."""
    lines = [line for line in output.rstrip("\n").split("\n") if not LOGGER_LINE.match(line)]
    while lines and not lines[-1]:
        lines.pop()
    return lines or ["ok"]


def run_case(runner: Runner, case: Case) -> str:
    """The difference between expected and actual output; empty when there is none."""
    try:
        actual = runner.run(case)
    except InvariantViolation as error:
        actual = f"invariant violated: {error}"
    expected_lines, actual_lines = comparable(case.expected), comparable(actual)
    if expected_lines == actual_lines:
        return ""
    return "\n".join(
        difflib.unified_diff(expected_lines, actual_lines, "expected", "actual", lineterm="", n=2)
    )


def run_file(path: Path) -> FileResult:
    """Run all cases of a file, also behind one that failed."""
    try:
        cases = parse_file(path)
    except (FormatError, UnicodeDecodeError) as error:
        return FileResult(path, 0, 1, str(error))
    runner = runner_for(cases)
    failed, first = 0, ""
    for case in cases:
        difference = run_case(runner, case)
        if difference:
            failed += 1
            first = first or f"{path}:{case.line}: {case.text}\n{difference}"
    return FileResult(path, len(cases), failed, first)


def data_files(paths: list[Path]) -> Iterator[Path]:
    """The .txt files among and below `paths`, in order; a file that is named counts whatever its suffix."""
    for path in paths:
        if path.is_file():
            yield path
        else:
            yield from sorted(p for p in path.rglob("*.txt") if p.is_file())
