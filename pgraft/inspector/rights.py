"""Run by root, the inspector becomes who owns the node: its files are read with its owner's rights only."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from pgraft import ownership, privileges
from pgraft.inspector.target import InspectError
from pgraft.ownership import Step
from pgraft.postgres.reader import guess_data_directory
from pgraft.privileges import PrivilegeError
from pgraft.shm.place import NAME_PREFIX, SHM_DIR


def settle(directory: str | None, name: str | None) -> None:
    """Become the owner of the directory or the segment that `open_target` is to open with these arguments.

    Nothing is done for who is not root, and where all belongs to root. InspectError when that fails.
    """
    if not privileges.is_root():
        return
    for path in _named(directory, name):
        found = _look(path)
        if found is not None and found.uid != 0:
            _become(found.uid)
            return


def _named(directory: str | None, name: str | None) -> Iterator[Path]:
    """What is opened, in this order. Only after one that root owns alone is asked for the next, which that
    one may name."""
    directory = name if name is not None and Path(name).is_dir() else directory
    if directory is None and name is None:
        directory = os.environ.get("PGDATA")
    if directory is None:
        names = [os.path.basename(name)] if name is not None else _segments()
        yield from (SHM_DIR / one for one in names if len(names) == 1)
        return
    folder = Path(os.path.abspath(directory))
    yield folder
    yield folder / "run" / "segment"
    yield folder / "postgresql.conf"
    data = guess_data_directory(folder)
    yield data
    yield data.with_name(data.name + ".pgraft")


def _segments() -> list[str]:
    return [name for name in os.listdir(SHM_DIR) if name.startswith(NAME_PREFIX)]


def _look(path: Path) -> Step | None:
    """Who owns it; None when it is not there."""
    try:
        with ownership.walk(path) as way:
            other = None if way.missing else ownership.led_by_other(way.steps[:-1], way.last.uid)
            if other is not None:
                raise InspectError(
                    f"root does not take the way to {path}: {other.path} could be led elsewhere by others;"
                    " run this as the node's owner"
                )
            return None if way.missing else way.last
    except OSError:
        return None


def _become(uid: int) -> None:
    account = privileges.account_of(uid)
    if account is None:
        account = pwd.struct_passwd((str(uid), "x", uid, uid, "", "/", "/bin/sh"))
    try:
        privileges.become(account)
    except PrivilegeError as error:
        raise InspectError(f"{error.message}: {error.hint}") from error
