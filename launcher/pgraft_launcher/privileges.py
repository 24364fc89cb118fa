"""PostgreSQL does not run as root: root becomes the data directory's owner, or --user, first of all."""

from __future__ import annotations

import os
import pwd
import stat
import sys
from pathlib import Path

import pgraft
from pgraft_launcher.errors import LaunchError

DEMO_USERS = ("postgres", "nobody")


def is_root() -> bool:
    """Whether this process could do anything, and so should not."""
    return os.geteuid() == 0


def user_named(name: str) -> pwd.struct_passwd:
    """The account that --user names."""
    try:
        user = pwd.getpwnam(name)
    except KeyError as error:
        raise LaunchError(f"there is no user called {name}", hint="name another with --user") from error
    if user.pw_uid == 0:
        raise LaunchError("PostgreSQL does not run as root", hint="name another user with --user")
    return user


def demo_user() -> str:
    """The account for a demo that root asks for."""
    for name in DEMO_USERS:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise LaunchError("PostgreSQL does not run as root", hint="name a user with --user")


def owner_of(directory: Path) -> pwd.struct_passwd | None:
    """Who owns the directory, or the one that it is to be made in, if that is an account other than root."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        owner = directory.stat().st_uid
        return pwd.getpwuid(owner) if owner else None
    except (OSError, KeyError):
        return None


def choose(data: Path, name: str | None) -> pwd.struct_passwd:
    """The account to become, when root runs a command for this directory."""
    user = user_named(name) if name else owner_of(data)
    if user is None:
        raise LaunchError(
            "PostgreSQL does not run as root",
            hint=f"name a user with --user, or give {data} to one: chown -R postgres {data}",
        )
    check_reach(user, data)
    return user


def check_reach(user: pwd.struct_passwd, directory: Path) -> None:
    """Whether the user can get to the directory, seen by root, whom nothing stops."""
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    for folder in reversed(directory.absolute().parents):
        try:
            found = folder.stat()
        except OSError:
            return  # to be made, then by us
        if found.st_uid == user.pw_uid:
            allowed = found.st_mode & stat.S_IXUSR
        elif found.st_gid in groups:
            allowed = found.st_mode & stat.S_IXGRP
        else:
            allowed = found.st_mode & stat.S_IXOTH
        if not allowed:
            raise LaunchError(
                f"user {user.pw_name} cannot reach {directory}: {folder} keeps it out",
                hint=f"name a directory elsewhere, or chmod a+x {folder}",
            )


def settle(data: Path, name: str | None) -> None:
    """Root becomes the owner of `data` or the named user; others stay who they are."""
    if is_root():
        become(choose(data, name))
    elif name is not None and pwd.getpwuid(os.geteuid()).pw_name != name:
        raise LaunchError(f"only root can act for user {name}", hint="leave --user out, or use sudo")


def become(user: pwd.struct_passwd) -> None:
    """Give up root for good."""
    try:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    except OSError as error:
        raise LaunchError(f"cannot become user {user.pw_name}: {error.strerror}") from error
    os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        os.environ.pop(name, None)
    try:
        os.getcwd()
        os.stat(".")
    except OSError:
        os.chdir("/")
    if not os.access(".", os.X_OK):
        os.chdir("/")
    _check_readable(user.pw_name)


def _check_readable(name: str) -> None:
    """The processes to come run as this user: it must be able to read Python and pgraft."""
    needed = [sys.executable, pgraft.__file__, __file__]
    for path in needed:
        if path and not os.access(path, os.R_OK):
            blocked = _first_blocked(Path(path))
            raise LaunchError(
                f"user {name} cannot read {path} ({blocked} keeps it out)",
                hint=f"chmod a+rX {blocked}, or install pgraft where {name} can read it, as in /opt",
            )


def _first_blocked(path: Path) -> Path:
    for folder in reversed(path.parents):
        if not os.access(folder, os.X_OK):
            return folder
    return path
