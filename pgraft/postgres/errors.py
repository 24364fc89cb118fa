"""What goes wrong with PostgreSQL and its settings, as errors that print as one line."""

from __future__ import annotations


class PostgresError(Exception):
    """Something about a PostgreSQL installation or data directory; `hint` says what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingError(PostgresError):
    """A setting with a wrong value: names the setting, the value and what is allowed."""

    def __init__(self, name: str, value: object, allowed: str, *, hint: str = "") -> None:
        super().__init__(f"{name} = {quoted(value)}: {allowed}", hint=hint)
        self.name = name


def quoted(value: object) -> str:
    """A value as an error line shows it: strings in quotes, control characters visible."""
    if isinstance(value, str):
        shown = value.encode("unicode_escape").decode("ascii") if not value.isprintable() else value
        return f"'{shown}'"
    return str(value)
