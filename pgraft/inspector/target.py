"""From what the user names (a data directory, a segment, nothing) to a segment's name.

No process of the node is asked and PostgreSQL is not run: the segments that lie in /dev/shm carry
the PostgreSQL data directory they belong to, and <pgraft.data_dir>/run/segment carries the name.
"""

from __future__ import annotations

import os
from pathlib import Path

from pgraft.postgres.reader import guess_data_directory
from pgraft.shm import place
from pgraft.shm.place import SHM_DIR, SegmentError
from pgraft.shm.segment import Segment, attach

NAMES_SHOWN_MAX = 5
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
    return _open(*name_of_directory(Path(directory)))


def name_of_directory(directory: Path) -> tuple[str, int]:
    """The segment's name for a PostgreSQL data directory, or for a pgraft.data_dir.

    With it comes the owner of the data: the segment must belong to the same user.
    """
    try:
        if not directory.is_dir():
            raise InspectError(f'"{directory}" is not a directory: give -D the PostgreSQL data directory')
        pgdata = guess_data_directory(directory).resolve()
        # On Debian -D may name a directory of the configuration, which root may own.
        owner = (pgdata if pgdata.is_dir() else directory).stat().st_uid
        stored = (
            place.stored_name(directory, owner)
            or _of_pgdata(pgdata, owner)
            or place.stored_name(pgdata.with_name(pgdata.name + ".pgraft"), owner)
        )
    except PermissionError as error:
        raise InspectError(
            f'cannot read "{error.filename}": {error.strerror}: run as its owner or as root'
        ) from error
    except SegmentError as error:
        raise InspectError(str(error)) from error
    if not stored and not any((directory / file).exists() for file in ("PG_VERSION", *_OWN_FILES)):
        raise InspectError(f'"{directory}" is neither a PostgreSQL data directory nor a pgraft.data_dir')
    if not stored:
        raise InspectError(
            f'no segment for "{directory}": the node was stopped or never started;'
            f' start it with "pgraft-launch start -D {directory}"'
        )
    return stored, owner


def _of_pgdata(pgdata: Path, owner: int) -> str:
    """The newest segment made for `pgdata`, by the owner of that directory."""
    newest = next(iter(place.find_of_pgdata(pgdata, owner)), None)
    return newest.name if newest else ""


def _clean_name(text: str) -> str:
    name = text.removeprefix(f"{SHM_DIR}/").removeprefix("/")
    if not place.is_name(name):
        raise InspectError(f"{text!r} is neither a directory nor the name of a segment")
    return name


def _open_only_one() -> Segment:
    names = place.own_names()
    match names:
        case [only]:
            return _open(only)
        case []:
            raise InspectError(
                f'no segment of yours in {SHM_DIR}: start a node with "pgraft-launch start -D DIR"'
            )
        case _:
            shown = ", ".join(names[:NAMES_SHOWN_MAX]) + (" ..." if len(names) > NAMES_SHOWN_MAX else "")
            raise InspectError(f"{len(names)} segments are here: give -D DIR or one of {shown}")


def _open(name: str, owner: int | None = None) -> Segment:
    try:
        return attach(name, readonly=True, owner=_named_owner(name) if owner is None else owner)
    except SegmentError as error:
        raise InspectError(f"{error}{_hint(name)}") from error


def _named_owner(name: str) -> int | None:
    """Whose segment root asks for by its name: the name says it. Anybody else sees only their own."""
    user = name.removeprefix(place.NAME_PREFIX).partition(".")[0]
    return int(user) if os.geteuid() == 0 and user.isascii() and user.isdigit() else None


def _hint(name: str) -> str:
    try:
        owner = (SHM_DIR / name).lstat().st_uid
    except OSError:
        return '; the node is stopped: start it with "pgraft-launch start"'
    return "" if owner == os.geteuid() else ": run as its owner or as root"
