"""The form of the data files: directives with arguments, input, and the expected output."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

SEPARATOR = "----"
ARGUMENT = re.compile(r"\s*([^\s=()]+)(=(?:\(([^)]*)\)|(\S*)))?")


class FormatError(Exception):
    """A data file that does not have the form."""


@dataclass(frozen=True)
class Argument:
    """`key`, `key=value` or `key=(value, …)`."""

    key: str
    values: tuple[str, ...] = ()

    @property
    def value(self) -> str:
        """The only value."""
        if len(self.values) != 1:
            raise FormatError(f"{self.key} needs one value, not {len(self.values)}")
        return self.values[0]


@dataclass(frozen=True)
class Case:
    """One directive of a file."""

    line: int
    command: str
    arguments: tuple[Argument, ...]
    input: str
    expected: str
    text: str = field(default="", compare=False)

    def plain(self) -> list[str]:
        """The arguments without a value."""
        return [argument.key for argument in self.arguments if not argument.values]

    def named(self) -> dict[str, Argument]:
        """The arguments with values, by key."""
        return {argument.key: argument for argument in self.arguments if argument.values}


def parse_directive(text: str) -> tuple[str, tuple[Argument, ...]]:
    """Split a directive line into its command and arguments."""
    command, _, rest = text.partition(" ")
    arguments = []
    position = 0
    rest = rest.rstrip()
    while position < len(rest):
        match = ARGUMENT.match(rest, position)
        if match is None:
            raise FormatError(f"cannot parse {rest[position:]!r} in {text!r}")
        key, assigned, many, one = match.groups()
        values: tuple[str, ...] = ()
        if assigned is not None:
            values = (one,) if many is None else tuple(v.strip() for v in many.split(",") if v.strip())
        arguments.append(Argument(key, values))
        position = match.end()
    return command, tuple(arguments)


def parse_file(path: Path) -> list[Case]:
    """All cases of a file, in order. Raises FormatError."""
    return parse_text(path.read_text(encoding="utf-8"), str(path))


def parse_text(text: str, name: str) -> list[Case]:
    """All cases of a file's text."""
    reader = _Reader(text.split("\n"), name)
    cases = []
    while (case := reader.next_case()) is not None:
        cases.append(case)
    return cases


class _Reader:
    def __init__(self, lines: list[str], name: str) -> None:
        self._lines = lines
        self._name = name
        self._at = 0

    def next_case(self) -> Case | None:
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.strip() and not line.startswith("#"):
                return self._case()
            self._at += 1
        return None

    def _case(self) -> Case:
        start = self._at + 1
        directive = self._take().strip()
        while directive.endswith("\\"):
            directive = directive[:-1].rstrip() + " " + self._take().strip()
        command, arguments = parse_directive(directive)
        body = self._until_separator(start)
        expected = self._expected()
        return Case(start, command, arguments, "\n".join(body), expected, directive)

    def _take(self) -> str:
        if self._at >= len(self._lines):
            raise FormatError(f"{self._name}: the file ends within a case")
        self._at += 1
        return self._lines[self._at - 1]

    def _until_separator(self, start: int) -> list[str]:
        body = []
        while (line := self._take()) != SEPARATOR:
            if self._at >= len(self._lines):
                raise FormatError(f"{self._name}:{start}: no {SEPARATOR} after the directive")
            body.append(line)
        return body

    def _expected(self) -> str:
        """Up to a blank line; or, after a second separator, up to two separators."""
        lines = self._lines
        if self._at < len(lines) and lines[self._at] == SEPARATOR:
            self._at += 1
            end = self._at
            while lines[end : end + 2] != [SEPARATOR, SEPARATOR]:
                end += 1
                if end >= len(lines):
                    raise FormatError(f"{self._name}: no end of the output that begins at {self._at + 1}")
            expected, self._at = lines[self._at : end], end + 2
            return "\n".join(expected)
        end = self._at
        while end < len(lines) and lines[end].strip():
            end += 1
        expected, self._at = lines[self._at : end], end
        return "\n".join(expected)
