"""Names below `pgraft.` in the configuration files that are no setting of pgraft's.

PostgreSQL takes any name with a dot as a placeholder, so a misspelt setting would silently keep its default.
The server warns in its log once the library is loaded; this finds the same before the start, for the
one who types it, and says which setting may have been meant.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pgraft.postgres.settings import BY_NAME

INCLUDE_DEPTH_MAX = 10
"""As src/include/utils/conffiles.h."""
FILE_BYTES_MAX = 4 * 1024 * 1024
_LINE = re.compile(r"^\s*(pgraft\.[A-Za-z0-9_$.]*)\s*(?:=|\s|$)", re.IGNORECASE)
_INCLUDE = re.compile(
    r"^\s*(include_if_exists|include_dir|include)(?:\s*=\s*|\s+|(?='))(?:'((?:[^']|'')*)'|(\S+))",
    re.IGNORECASE,
)
_OPTION = re.compile(r"^(?:--)?(pgraft\.[^=]*)=", re.IGNORECASE)


class Unknown(NamedTuple):
    """A name that means nothing, where it stands ("file:line"), and a setting that it resembles, or ""."""

    name: str
    where: str
    meant: str

    def __str__(self) -> str:
        guess = f"; did you mean {self.meant}?" if self.meant else ""
        return f"{self.where}: there is no setting {self.name}, it is ignored{guess}"


def find_unknown(files: Sequence[str], options: Sequence[str] = ()) -> list[Unknown]:
    """All of them in these files, in what they include, and in `options` of postgres. Reads what it can."""
    found = [unknown for path in files for unknown in _in_file(path, 0)]
    for option in options:
        match = _OPTION.match(option.removeprefix("-c").lstrip())
        if match:
            found += _judge(match[1], "options")
    return found


def _judge(name: str, where: str) -> list[Unknown]:
    if name.lower() in BY_NAME:
        return []
    known = [setting.partition(".")[2] for setting in BY_NAME]
    close = difflib.get_close_matches(name.lower().partition(".")[2], known, 1)
    return [Unknown(name, where, f"pgraft.{close[0]}" if close else "")]


def _in_file(path: str, depth: int) -> Iterator[Unknown]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(FILE_BYTES_MAX)
    except OSError:
        return  # PostgreSQL says so, where it matters
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.match(line)
        if match:
            yield from _judge(match[1], f"{path}:{number}")
            continue
        include = _INCLUDE.match(line)
        if include and depth < INCLUDE_DEPTH_MAX:
            target = include[2].replace("''", "'") if include[2] is not None else include[3]
            target = os.path.join(os.path.dirname(path), target)
            for included in _included(include[1].lower(), target):
                yield from _in_file(included, depth + 1)


def _included(directive: str, target: str) -> list[str]:
    if directive != "include_dir":
        return [target]
    try:
        names = sorted(os.listdir(target))
    except OSError:
        return []
    return [os.path.join(target, name) for name in names if name.endswith(".conf") and name[0] != "."]
