"""What a command says while it works: on stdout, as pg_ctl does, and nothing with -s."""

from __future__ import annotations

import contextlib
import sys
import time

DOT_EVERY_S = 1.0


class Progress:
    """Lines and dots; flushed at once, so that they show through a pipe."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._dotted = False
        self._next_dot = 0.0

    def say(self, text: str) -> None:
        """One line."""
        self._end_dots()
        self._write(text + "\n")

    def begin(self, text: str) -> None:
        """The beginning of a line that dots and an end will follow."""
        self._end_dots()
        self._write(text + "...")
        self._dotted = True
        self._next_dot = time.monotonic() + DOT_EVERY_S

    def dot(self) -> None:
        """Called often while waiting: one dot a second."""
        if self._dotted and time.monotonic() >= self._next_dot:
            self._next_dot += DOT_EVERY_S
            self._write(".")

    def end(self, text: str) -> None:
        """The end of the line that `begin` began."""
        self._write(f" {text}\n" if self._dotted else "")
        self._dotted = False

    def _end_dots(self) -> None:
        if self._dotted:
            self.end("")

    def _write(self, text: str) -> None:
        if self._silent or not text:
            return
        # A reader that has gone (a closed pipe) must not keep a node from starting.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(text)
            sys.stdout.flush()
