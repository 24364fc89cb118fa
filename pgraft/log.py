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

Level = Literal["DEBUG", "LOG", "WARNING", "ERROR", "FATAL", "DETAIL", "HINT"]


def log(level: Level, message: str, *, detail: str = "", hint: str = "") -> None:
    """Write one message at a PostgreSQL level, with optional DETAIL and HINT lines, in one write."""
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
