"""Server-log lines in PostgreSQL's own form, on stderr.

The supervisor points stderr of the runtime processes at the file (or terminal) that PostgreSQL
logs to, so that an operator reads one story in one place. Lines look like PostgreSQL's with its
default `log_line_prefix = '%m [%p] '`.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Literal

BURST_LINES = 200
"""How many messages a bounded process may write at once."""
LINES_PER_S = 1.0
"""And how many for good: an election a second has a line on each node."""
_BOUNDED = ("LOG", "WARNING")
Level = Literal["DEBUG", "LOG", "WARNING", "ERROR", "FATAL", "DETAIL", "HINT"]


class _Bound:
    """Messages at a bounded rate; errors and what was asked for (DEBUG) always pass."""

    def __init__(self) -> None:
        self._left = float(BURST_LINES)
        self._at = time.monotonic()
        self.kept_back = 0

    def lets(self) -> bool:
        """Whether a message may be written now."""
        now = time.monotonic()
        self._left = min(BURST_LINES, self._left + (now - self._at) * LINES_PER_S)
        self._at = now
        if self._left < 1:
            self.kept_back += 1
            return False
        self._left -= 1
        return True


_bound: _Bound | None = None


def bound_lines() -> None:
    """From now on this process writes at a bounded rate: what peers do must not fill a disk with lines."""
    global _bound
    _bound = _Bound()


def log(level: Level, message: str, *, detail: str = "", hint: str = "") -> None:
    """Write one message at a PostgreSQL level, with optional DETAIL and HINT lines, in one write."""
    if _bound is not None and level in _BOUNDED:
        if not _bound.lets():
            return
        if _bound.kept_back:
            message = (
                f"{message} ({_bound.kept_back} messages before this one were too many, and are left out)"
            )
            _bound.kept_back = 0
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d} UTC"
    prefix = f"{stamp} [{os.getpid()}] "
    text = f"{prefix}{level}:  pgraft: {_one_line(message)}\n"
    if detail:
        text += f"{prefix}DETAIL:  {_one_line(detail)}\n"
    if hint:
        text += f"{prefix}HINT:  {_one_line(hint)}\n"
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        # A full disk or a closed terminal under the log must not stop consensus.
        return


def _one_line(text: str) -> str:
    return text.replace("\n", " ")
