"""Giving up root for good: ids and saved ids, groups, capabilities, the terminal, the environment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import termios

_OF_ROOT = (
    "DBUS_SESSION_BUS_ADDRESS",
    "KRB5CCNAME",
    "MAIL",
    "PGPASSFILE",
    "PGPASSWORD",
    "PGSERVICEFILE",
    "PSQLRC",
    "PSQL_HISTORY",
    "SSH_AGENT_PID",
    "SSH_AUTH_SOCK",
    "SUDO_COMMAND",
    "SUDO_GID",
    "SUDO_UID",
    "SUDO_USER",
    "XAUTHORITY",
)
"""Variables that name root's secrets or places: the processes to come are another user's."""


class PrivilegeError(Exception):
    """Root cannot go on, or cannot become another user; `hint` says what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def is_root() -> bool:
    """Whether this process could do anything, now or by taking an id back, and so should not."""
    return 0 in os.getresuid()


def account_of(uid: int) -> pwd.struct_passwd | None:
    """The account with this id; None where it has none."""
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def become(user: pwd.struct_passwd) -> None:
    """Become this user in every respect. PrivilegeError where that fails, or leaves a way back."""
    _leave_terminal()
    try:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    except OSError as error:
        raise PrivilegeError(f"cannot become user {user.pw_name}: {error.strerror}") from error
    _check_gone(user)
    _change_environment(user)
    _change_directory()


def _leave_terminal() -> None:
    """Root's terminal stays root's: who has it as its own could type into the shell that runs there.

    The signals of Ctrl-C and Ctrl-Z reach us all the same: they go to the process group. A process that
    leads its session has the terminal to itself, and would be hung up.
    """
    if os.getsid(0) == os.getpid():
        return
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)
        finally:
            os.close(terminal)


def _check_gone(user: pwd.struct_passwd) -> None:
    """That nothing of root is left, as the kernel tells it, and cannot be taken back."""
    is_changed = os.getresuid() == (user.pw_uid,) * 3 and os.getresgid() == (user.pw_gid,) * 3
    allowed = {user.pw_gid, *os.getgrouplist(user.pw_name, user.pw_gid)}
    if not is_changed or not set(os.getgroups()) <= allowed or _capabilities() or _can_return():
        raise PrivilegeError(
            f"became user {user.pw_name}, and kept some of root's rights",
            hint="run this as that user instead: runuser -u or sudo -u",
        )


def _can_return() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True


def _capabilities() -> int:
    """The bits of all that this process may use or hand on to itself; 0 where /proc does not tell."""
    found = 0
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(("CapPrm:", "CapEff:", "CapAmb:")):
                    found |= int(line.split()[1], 16)
    except FileNotFoundError:
        return 0
    return found


def _change_environment(user: pwd.struct_passwd) -> None:
    os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}
    for name in [*_OF_ROOT, *(name for name in os.environ if name.startswith("XDG_"))]:
        os.environ.pop(name, None)
    if not os.access(os.environ.get("TMPDIR", "/"), os.W_OK | os.X_OK):
        os.environ.pop("TMPDIR", None)


def _change_directory() -> None:
    """Out of a folder that the user cannot use: root's home, say."""
    try:
        os.getcwd()
        os.stat(".")
    except OSError:
        os.chdir("/")
    if not os.access(".", os.X_OK):
        os.chdir("/")
