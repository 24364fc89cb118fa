"""Starting, holding and signalling processes: children by posix_spawn, adopted ones by pid and start time."""

from __future__ import annotations

import os
import signal

from pgraft.postgres import process
from pgraft.postgres.process import ProcessRef, Program

DAEMON_UMASK = 0o077


class Held:
    """A living process and its pidfd, which becomes readable when it ends."""

    __slots__ = ("is_child", "pidfd", "ref", "since_ns")

    def __init__(self, ref: ProcessRef, pidfd: int, *, is_child: bool, since_ns: int) -> None:
        self.ref = ref
        self.pidfd = pidfd
        self.is_child = is_child
        self.since_ns = since_ns

    def send(self, number: int) -> None:
        """Send a signal: through the pidfd, so never to another process. One that has ended is fine."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self.pidfd)


def spawn(argv: list[str], since_ns: int) -> Held:
    """Start a child with our standard output and error and no input, in a process group of its own.

    Its own group keeps a terminal's Ctrl-C from reaching it: the supervisor says when it ends.
    """
    pid = os.posix_spawn(
        argv[0],
        argv,
        dict(os.environ),
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        setpgroup=0,
        setsigmask=[],
        # Python ignores these, and exec would hand that on.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
    # A child keeps its pid until it is reaped, so neither of these can meet another process.
    return Held(process.child_ref(pid), os.pidfd_open(pid), is_child=True, since_ns=since_ns)


def adopt(ref: ProcessRef, program: Program | None = None) -> Held | None:
    """Hold a process that is no child of ours; None when it has ended, or does not run `program`."""
    pidfd = process.open_pidfd(ref, program)
    return None if pidfd is None else Held(ref, pidfd, is_child=False, since_ns=0)


def reap() -> dict[int, int]:
    """Statuses of all children that have ended, strangers too: as PID 1 of a container we get those."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def describe_status(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
