"""Whom root becomes: --user, or the owner of the directory that a command is about.

Only looks: by `ownership.walk`, which opens nothing. What root then does is in `as_root`.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from pgraft import ownership, privileges
from pgraft.ownership import Walk
from pgraft_launcher.errors import EXIT_NO_DATA_DIR, LaunchError

DEMO_USERS = ("postgres", "nobody")


def user_named(name: str) -> pwd.struct_passwd:
    """The account that --user names."""
    try:
        user = pwd.getpwnam(name)
    except KeyError as error:
        raise LaunchError(f"there is no user called {name}", hint="name another with --user") from error
    if user.pw_uid == 0:
        raise LaunchError("PostgreSQL does not run as root", hint="name another user with --user")
    return user


def demo_user() -> pwd.struct_passwd:
    """The account for a demo that root asks for."""
    for name in DEMO_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise LaunchError("PostgreSQL does not run as root", hint="name a user with --user")


def owner(directory: Path) -> pwd.struct_passwd | None:
    """Who owns the directory, or the one that it is to be made in; None: root.

    LaunchError when that is nobody's account, or when a third user could put another directory there.
    """
    with look(directory) as way:
        return _owner(way, directory)


def _owner(way: Walk, directory: Path) -> pwd.struct_passwd | None:
    uid = way.last.uid
    other = ownership.led_by_other(way.steps[:-1], uid)
    if other is not None:
        account = privileges.account_of(other.uid)
        whose = f"belongs to {account.pw_name if account else other.uid}"
        why = "can be written by everybody" if other.uid in (0, uid) else whose
        raise LaunchError(
            f"root does not take the way to {directory}: {other.path} {why}, and could lead elsewhere",
            hint="mend that, or name the user with --user",
        )
    if uid == 0:
        return None
    account = privileges.account_of(uid)
    if account is None:
        raise LaunchError(
            f"{way.last.path} belongs to user id {uid}, which has no account here",
            hint="name a user with --user",
        )
    return account


def look(path: Path) -> Walk:
    """The way to a path, as a LaunchError where it cannot be gone."""
    try:
        return ownership.walk(path)
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}", code=EXIT_NO_DATA_DIR) from error


def choose(directory: Path, name: str | None) -> pwd.struct_passwd:
    """The account to become for a directory that may be still to be made: --user, else its owner."""
    user = user_named(name) if name else owner(directory)
    if user is None:
        raise LaunchError(
            "PostgreSQL does not run as root",
            hint=f"name a user with --user, or give {directory} to one: chown -R postgres {directory}",
        )
    return user


def owner_of_existing(directory: Path) -> pwd.struct_passwd:
    """The account that owns this data directory. LaunchError when there is none, or it is root's."""
    with look(directory) as way:
        if way.missing:
            raise LaunchError(
                f"data directory {directory}: No such file or directory",
                hint="pgraft-launch init makes one",
                code=EXIT_NO_DATA_DIR,
            )
        user = _owner(way, directory)
    if user is None:
        raise LaunchError(
            f"{directory} is not a data directory of PostgreSQL that can be used: it belongs to root",
            hint="name the user that runs PostgreSQL with --user",
            code=EXIT_NO_DATA_DIR,
        )
    return user


def refuse_user(name: str | None) -> None:
    """Who is not root acts for itself only."""
    if name is not None and pwd.getpwuid(os.geteuid()).pw_name != name:
        raise LaunchError(f"only root can act for user {name}", hint="leave --user out, or use sudo")


def check_reach(directory: Path) -> None:
    """Whether this user can get to the directory. Only once root is given up: nothing stops root."""
    for folder in reversed(directory.absolute().parents):
        if not os.access(folder, os.F_OK):
            return  # to be made, then by us
        if not os.access(folder, os.X_OK):
            user = pwd.getpwuid(os.geteuid()).pw_name
            raise LaunchError(
                f"user {user} cannot reach {directory}: {folder} keeps it out",
                hint=f"name a directory elsewhere, or chmod a+x {folder}",
            )
