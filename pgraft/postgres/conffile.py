"""The block of settings that `pgraft-launch init` keeps in postgresql.conf.

It stands at the end, so that it wins over what is above, between two marker lines; a later init
replaces what is between them and leaves everything else as the user wrote it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pgraft.postgres.errors import PostgresError

BEGIN = "# --- pgraft: begin (pgraft-launch init replaces what stands up to the end line) ---"
END = "# --- pgraft: end ---"
LIBRARY = "pgraft"
_NOTE = re.compile(r"^# pgraft-launch ([a-z_]+): (.*)$", re.MULTILINE)
_BLOCK = re.compile(
    r"^# --- pgraft: begin\b[^\n]*\n(.*?)^# --- pgraft: end ---[^\n]*\n?", re.MULTILINE | re.DOTALL
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*\Z")


def quote(value: str) -> str:
    """A string literal of postgresql.conf: guc-file.l un-escapes backslashes and doubled quotes."""
    if "\0" in value:
        raise PostgresError("a setting cannot hold a zero byte")
    escaped = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def check_name(name: str) -> str:
    """A setting's name as postgresql.conf takes it."""
    if not _NAME.match(name):
        raise PostgresError(f"'{name}' is not the name of a setting")
    return name


def without_block(text: str) -> str:
    """The file as the user wrote it."""
    return _BLOCK.sub("", text)


def with_block(text: str, settings: Mapping[str, str], notes: Mapping[str, str]) -> str:
    """The file with our block at its end, in place of an earlier one."""
    lines = [BEGIN]
    lines += [f"# pgraft-launch {key}: {value}" for key, value in notes.items()]
    lines += [f"{check_name(name)} = {quote(value)}" for name, value in settings.items()]
    lines.append(END)
    kept = without_block(text).rstrip("\n")
    return (kept + "\n\n" if kept else "") + "\n".join(lines) + "\n"


def with_setting(text: str, name: str, value: str) -> str:
    """The file with one setting changed where it counts: within our block, else in a line at the end."""
    line = f"{check_name(name)} = {quote(value)}\n"
    own = re.compile(rf"^[ \t]*{re.escape(name)}[ \t=][^\n]*\n", re.MULTILINE | re.IGNORECASE)
    match = _BLOCK.search(text)
    if match is None:
        return text.rstrip("\n") + "\n" + line
    inside = own.sub("", match[1]) + line
    return text[: match.start(1)] + inside + text[match.end(1) :]


def notes(text: str) -> dict[str, str]:
    """What init wrote down in the block's comments: `bindir`, `superuser`."""
    match = _BLOCK.search(text)
    return dict(_NOTE.findall(match[1])) if match else {}


def read_notes(config_dir: Path) -> dict[str, str]:
    """The notes in <config_dir>/postgresql.conf; none when there is no such file or block."""
    try:
        return notes((config_dir / "postgresql.conf").read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return {}


def library_list(current: str) -> str:
    """shared_preload_libraries with pgraft in it, behind what is there."""
    loaded = [part.strip().strip('"') for part in current.split(",")]
    if any(part in (LIBRARY, f"$libdir/{LIBRARY}") for part in loaded):
        return current
    return f"{current},{LIBRARY}" if current.strip() else LIBRARY


def replace_file(path: Path, text: str) -> None:
    """Put the new text in the file's place, whole or not at all, with the old one's mode."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    aside = path.with_name(path.name + ".pgraft-new")
    with open(aside, "w", encoding="utf-8", errors="surrogateescape") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
