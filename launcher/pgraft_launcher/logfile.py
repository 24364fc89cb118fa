"""The server log: where it is, and the lines that tell why a start failed."""

from __future__ import annotations

import os
import re

from pgraft_launcher.errors import LaunchError

DEFAULT_BYTES_MAX = 16 * 1024 * 1024
"""A start moves a longer default log aside (one older one is kept). -l files are their owner's affair."""
TAIL_BYTES_MAX = 64 * 1024
TAIL_LINES = 12
_LINE = re.compile(r"\[(\d+)\] (\w+):  (?:pgraft: )?(.*)")


def default_path(pgdata: str) -> str:
    """Beside the data directory, as people name it for pg_ctl -l.

    Not among the Raft state: a PostgreSQL that logs much fills its file system, and the node with a full
    one takes no part in consensus.
    """
    return f"{pgdata}.log"


def open_log(pgdata: str, given: str | None) -> ServerLog:
    """The log of a start or a stop: the file that -l names, or the default."""
    path = os.path.abspath(given) if given else default_path(pgdata)
    try:
        return ServerLog(path, is_default=not given)
    except OSError as error:
        hint = "" if given else "name another with -l FILE"
        raise LaunchError(f"cannot open the log file {path}: {error.strerror}", hint=hint) from error


class ServerLog:
    """The log file of one start: what has been written since it was opened."""

    def __init__(self, path: str, *, is_default: bool) -> None:
        self.path = path
        if is_default and _size(path) > DEFAULT_BYTES_MAX:
            os.replace(path, path + ".old")  # not .1, which logrotate may have made
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._begin = os.fstat(self.descriptor).st_size

    def lines(self) -> list[str]:
        """The lines of this start, the last ones when there are many."""
        with open(self.path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._begin, end - TAIL_BYTES_MAX))
            return file.read(TAIL_BYTES_MAX).decode("utf-8", "replace").splitlines()

    def tail(self) -> list[str]:
        """The last lines of this start."""
        return self.lines()[-TAIL_LINES:]

    def complaint(self, pid: int) -> tuple[str, str]:
        """The last error that this process logged, and its hint; empty where there is none."""
        message, hint = "", ""
        for line in self.lines():
            match = _LINE.search(line)
            if match is None or int(match[1]) != pid:
                continue
            if match[2] in ("FATAL", "ERROR"):
                message, hint = match[3], ""
            elif match[2] == "HINT" and message:
                hint = match[3]
        return message, hint


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
