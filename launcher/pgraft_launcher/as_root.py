"""All that a command does while it still is root. Nothing else in this package acts as root.

PostgreSQL does not run as root, so root becomes the owner of the data directory, or --user; and it does
so before it opens, lists, runs, follows, makes or removes anything that this user could have written.
Until then it may call these, and look who owns what (`accounts`):

`settle`              becomes the owner of a directory, which was only looked at
`settle_for_program`  becomes the user who could change a program, which was only looked at
`ask`                 forks; the child becomes the user, and what it answers is data
`provide`             makes a directory, or takes an empty one of root's, and gives it away. Who could have
                      put it there: root, since nobody else can write the folder or move it
`install_extension`   runs pg_config, postgres --version and make, and writes into that PostgreSQL. Who
                      could have put them there: root, or who could have changed this very program
`take_away`           removes an empty directory of the user's from a folder that only root can write
`become`              gives up root
"""

from __future__ import annotations

import json
import os
import pwd
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pgraft
from pgraft import ownership, privileges
from pgraft.ownership import Walk
from pgraft.postgres.binaries import Installation
from pgraft.postgres.errors import PostgresError
from pgraft.privileges import PrivilegeError
from pgraft_launcher import accounts, extension
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.progress import Progress

ANSWER_BYTES_MAX = 64 * 1024
_FOLDER_MODE = 0o755
_OWN_MODE = 0o700
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def settle(directory: Path, name: str | None) -> None:
    """Root becomes --user, or the owner of this directory, which must be there; others stay who they are."""
    if not privileges.is_root():
        accounts.refuse_user(name)
        return
    become(accounts.user_named(name) if name else accounts.owner_of_existing(directory))
    accounts.check_reach(directory)


def become(user: pwd.struct_passwd) -> None:
    """Give up root for good. LaunchError where the user cannot read what it will run."""
    try:
        privileges.become(user)
    except PrivilegeError as error:
        raise LaunchError(error.message, hint=error.hint) from error
    _check_readable(user.pw_name)


def ask(user: pwd.struct_passwd, question: Callable[[], Any]) -> Any:
    """What `question` answers in a child that has become this user: anything that JSON can hold.

    Its errors are ours. What the user's files made of the answer is for the caller to judge.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _answer(user, question, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read(ANSWER_BYTES_MAX)
    _, status = os.waitpid(child, 0)
    try:
        answer = json.loads(text)
        if "error" in answer:
            raise LaunchError(str(answer["error"]), hint=str(answer["hint"]), code=int(answer["code"]))
        return answer["answer"]
    except (ValueError, TypeError, KeyError) as error:
        code = os.waitstatus_to_exitcode(status)
        raise LaunchError(f"a process of user {user.pw_name} ended without an answer ({code})") from error


def _answer(user: pwd.struct_passwd, question: Callable[[], Any], writer: int) -> NoReturn:
    """In the child nothing may return or raise: it shares the command's buffers and handlers."""
    try:
        try:
            become(user)
            answer = {"answer": question()}
        except LaunchError as error:
            answer = {"error": error.message, "hint": error.hint, "code": error.code}
        except PostgresError as error:
            answer = {"error": error.message, "hint": error.hint, "code": 1}
        except OSError as error:
            answer = {"error": f"{error.filename}: {error.strerror}", "hint": "", "code": 1}
        sys.stdout.flush()
        with os.fdopen(writer, "wb") as file:
            file.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


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


# --- what lies in places of root's --------------------------------------------------------------------------


def provide(directory: Path, user: pwd.struct_passwd) -> None:
    """A directory for the user where it could not make one itself: in a folder that only root can write.

    Elsewhere nothing is done, and the user makes it, or fails to, by its own rights. A directory of
    root's that is there and empty is given away; what a link leads to never is.
    """
    with accounts.look(directory.parent) as above:
        if not _is_roots(above):
            return
        try:
            _provide(above, [*above.missing, directory.name], user)
        except OSError as error:
            raise LaunchError(f"cannot create {directory}: {error.strerror}") from error


def _is_roots(way: Walk) -> bool:
    """Whether only root can put something there. /tmp is no such place: the user can, too."""
    last = way.last
    return (
        ownership.first_not_of(way.steps, 0) is None
        and last.is_directory
        and not last.mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def _provide(above: Walk, names: list[str], user: pwd.struct_passwd) -> None:
    """Directories below each other, the last one the user's. Nobody else can change a name meanwhile."""
    at = os.dup(above.descriptor)
    try:
        for depth, name in enumerate(names, 1):
            is_made = _make(at, name)
            found = os.open(name, _LOOK, dir_fd=at)
            os.close(at)
            at = found
            if depth < len(names) and is_made:
                _change(at, lambda folder: os.fchmod(folder, _FOLDER_MODE))  # whatever the umask
        about = os.fstat(at)
        if stat.S_ISDIR(about.st_mode) and about.st_uid == 0:
            _change(at, lambda folder: _give(folder, user))
    finally:
        os.close(at)


def _make(parent: int, name: str) -> bool:
    try:
        os.mkdir(name, _OWN_MODE, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def _change(looked_at: int, action: Callable[[int], None]) -> None:
    """`action` on a descriptor of the very directory that an O_PATH descriptor names."""
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=looked_at)
    try:
        action(folder)
    finally:
        os.close(folder)


def _give(folder: int, user: pwd.struct_passwd) -> None:
    if not os.listdir(folder):
        os.fchmod(folder, _OWN_MODE)
        os.fchown(folder, user.pw_uid, user.pw_gid)


def take_away(directory: Path, user: pwd.struct_passwd) -> bool:
    """Remove a directory that the user has emptied, where only root can; whether it is gone."""
    with accounts.look(directory.parent) as above:
        if above.missing or not _is_roots(above):
            return not os.path.lexists(directory)
        try:
            about = os.stat(directory.name, dir_fd=above.descriptor, follow_symlinks=False)
            if stat.S_ISDIR(about.st_mode) and about.st_uid == user.pw_uid:
                os.rmdir(directory.name, dir_fd=above.descriptor)
                return True
        except FileNotFoundError:
            return True
        except OSError as error:
            raise LaunchError(f"cannot remove {directory}: {error.strerror}") from error
    return False


# --- programs -------------------------------------------------------------------------------------------


def install_extension(bindir: Path, progress: Progress) -> None:
    """Root's part of it: only in a PostgreSQL that nobody else could have changed.

    Nothing is done with another one: once root is given up, the user installs the extension, or
    hears who can.
    """
    try:
        if any(ownership.who_else(bindir / name) is not None for name in ("postgres", "pg_config")):
            return
        installation = Installation(bindir)
        if any(ownership.who_else(folder) is not None for folder in extension.folders(installation)):
            return
    except OSError:
        return  # something is missing, and the user's part says what
    extension.ensure(installation, progress)


def settle_for_program(path: Path) -> None:
    """Root becomes the owner of a program that is not root's; one that only root could change: it stays root.

    LaunchError where a third user could have put the program there.
    """
    try:
        other = ownership.who_else(path)
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}", hint="give the path of a pg_config") from error
    if other is None:
        return
    with accounts.look(path) as way:
        uid = way.last.uid or other.uid
        stranger = ownership.led_by_other(way.steps, uid)
    account = privileges.account_of(uid) if uid else None
    if account is None or stranger is not None:
        folder = (stranger or other).path
        raise LaunchError(
            f"root does not run {path}: others can change {folder}",
            hint=f"run this as the owner of that PostgreSQL, or chmod go-w {folder}",
        )
    become(account)
