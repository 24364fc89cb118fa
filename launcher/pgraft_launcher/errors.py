"""How a command ends when it cannot do what it was asked."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_NOT_RUNNING = 3
"""pg_ctl status: the server is not running."""
EXIT_NO_DATA_DIR = 4
"""pg_ctl status: no accessible data directory."""


class LaunchError(Exception):
    """One line for stderr, with what to do next in `hint`, and the exit code."""

    def __init__(self, message: str, *, hint: str = "", code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
