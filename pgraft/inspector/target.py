"""From what the user names (a data directory, a segment, nothing) to a segment's name.

No process of the node is asked and PostgreSQL is not run: the segments that lie in /dev/shm carry
the PostgreSQL data directory they belong to, and <pgraft.data_dir>/run/segment carries the name.
"""

from __future__ import annotations

import os
from pathlib import Path

from pgraft.inspector.text import clean
from pgraft.postgres.reader import guess_data_directory
from pgraft.shm.segment import NAME_PREFIX, SHM_DIR, Segment, SegmentError, attach

NAME_BYTES_MAX = 255
NAMES_SHOWN_MAX = 5
CANDIDATES_MAX = 256
"""Segments that are looked at when the one of a data directory is searched."""
_OWN_FILES = ("postgresql.conf", "identity", "LOCK")


class InspectError(Exception):
    """Nothing can be shown; the text is the one line for the user, with what to do next."""


def open_target(directory: str | None, name: str | None) -> Segment:
    """Map, read-only, the segment of `directory` or of this `name`. Raises InspectError."""
    if directory is not None and name is not None:
        raise InspectError("give either -D DIR or a segment name, not both")
    if name is not None and not Path(name).is_dir():
        return _open(_clean_name(name))
    directory = name or directory or os.environ.get("PGDATA")
    if directory is None:
        return _open_only_one()
    return _open(name_of_directory(Path(directory)))


def name_of_directory(directory: Path) -> str:
    """The segment's name for a PostgreSQL data directory, or for a pgraft.data_dir."""
    try:
        if not directory.is_dir():
            raise InspectError(f'"{directory}" is not a directory: give -D the PostgreSQL data directory')
        pgdata = guess_data_directory(directory).resolve()
        stored = (
            _stored_name(directory)
            or _of_pgdata(pgdata)
            or _stored_name(pgdata.with_name(pgdata.name + ".pgraft"))
        )
    except PermissionError as error:
        raise InspectError(
            f'cannot read "{error.filename}": {error.strerror}: run as its owner or as root'
        ) from error
    if stored is None and not any((directory / file).exists() for file in ("PG_VERSION", *_OWN_FILES)):
        raise InspectError(f'"{directory}" is neither a PostgreSQL data directory nor a pgraft.data_dir')
    if stored is None:
        raise InspectError(
            f'no segment for "{directory}": the node was stopped or never started;'
            f' start it with "pgraft-launch start -D {directory}"'
        )
    return stored


def _stored_name(data_dir: Path) -> str | None:
    try:
        with (data_dir / "run" / "segment").open("rb") as file:
            text = file.read(NAME_BYTES_MAX + 1).decode("utf-8", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _clean_name(text) if text else None


def _of_pgdata(pgdata: Path) -> str | None:
    """The newest segment whose header names `pgdata`, made by the owner of that directory."""
    wanted, owner = str(pgdata), pgdata.stat().st_uid
    found: list[tuple[int, int, str]] = []
    for name in _candidates():
        try:
            if (SHM_DIR / name).stat().st_uid != owner:
                continue
            segment = attach(name, readonly=True)
        except (OSError, SegmentError):
            continue
        if os.path.realpath(clean(segment.text("pgdata"))) == wanted:
            found.append((-segment.header["retired"], segment.header["created_boot_ns"], name))
        segment.close()
    return max(found)[2] if found else None


def _candidates() -> list[str]:
    try:
        names = sorted(name for name in os.listdir(SHM_DIR) if name.startswith(NAME_PREFIX))
    except OSError:
        return []
    return names[:CANDIDATES_MAX]


def _clean_name(text: str) -> str:
    name = text.removeprefix(f"{SHM_DIR}/").removeprefix("/")
    if not name or "/" in name or not name.isprintable() or len(name.encode()) > NAME_BYTES_MAX:
        raise InspectError(f"{text!r} is neither a directory nor the name of a segment")
    return name


def _open_only_one() -> Segment:
    names = _candidates()
    match names:
        case [only]:
            return _open(only)
        case []:
            raise InspectError(f'no segment in {SHM_DIR}: start a node with "pgraft-launch start -D DIR"')
        case _:
            shown = ", ".join(names[:NAMES_SHOWN_MAX]) + (" ..." if len(names) > NAMES_SHOWN_MAX else "")
            raise InspectError(f"{len(names)} segments are here: give -D DIR or one of {shown}")


def _open(name: str) -> Segment:
    try:
        return attach(name, readonly=True)
    except SegmentError as error:
        raise InspectError(f"{error}{_hint(name)}") from error


def _hint(name: str) -> str:
    path = SHM_DIR / name
    if not path.exists():
        return '; the node is stopped: start it with "pgraft-launch start"'
    if not os.access(path, os.R_OK):
        return ": run as its owner or as root"
    return ""
