"""Starting the supervisor: as a daemon that outlives the command, or in the command's own place."""

from __future__ import annotations

import os
import sys

DAEMON_UMASK = 0o077


def supervisor_argv(data_dir: str, **descriptors: int) -> list[str]:
    """The command line of a supervisor for this node."""
    argv = [sys.executable, "-P", "-m", "pgraft_launcher.supervisor", data_dir]
    for name, value in descriptors.items():
        argv += [f"--{name.replace('_', '-')}", str(value)]
    return argv


def spawn(argv: list[str], log_fd: int, kept: list[int]) -> None:
    """Run `argv` in a session of its own, its output to the log, with the descriptors `kept` open.

    Two forks: the first child leads the new session and ends, so that the daemon can never get a
    terminal, and is no child of ours.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    # In the child nothing may return or raise: it shares the command's buffers and handlers.
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        _become_daemon(argv, log_fd, kept)
    finally:
        os._exit(127)


def _become_daemon(argv: list[str], log_fd: int, kept: list[int]) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log_fd, 1), (log_fd, 2)):
        os.dup2(source, target)
    for number in kept:
        os.set_inheritable(number, True)
    os.chdir("/")
    os.umask(DAEMON_UMASK)
    os.execv(argv[0], argv)


def replace_self(argv: list[str], kept: list[int]) -> None:
    """Become the supervisor, with the terminal and the PID of the command."""
    for number in kept:
        os.set_inheritable(number, True)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], argv)
