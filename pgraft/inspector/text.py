"""Text as a terminal may show it: what stands in a segment is not trusted."""

from __future__ import annotations

import enum


def clean(text: str) -> str:
    """Control characters, which could steer the terminal, become "?"."""
    return "".join(char if char.isprintable() else "?" for char in text)


def enum_name(kind: type[enum.IntEnum], value: int) -> str:
    """The member's name in lower case, or "unknown (N)" for a value that is none."""
    try:
        return kind(value).name.lower()
    except ValueError:
        return f"unknown ({value})"


def table(columns: list[str], rows: list[list[str]], *, left: frozenset[int] = frozenset()) -> list[str]:
    """A table as psql draws it. Columns whose numbers are in `left` are left-aligned, others right."""
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]

    def draw(line: list[str]) -> str:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return (" " + " | ".join(cells)).rstrip()

    heads = [name.center(width) for name, width in zip(columns, widths, strict=True)]
    rule = "+".join("-" * (width + 2) for width in widths)
    return [(" " + " | ".join(heads)).rstrip(), rule, *map(draw, rows)]


def size(count: int) -> str:
    """Bytes in PostgreSQL's manner (pg_size_pretty): "512 bytes", "16 kB", "8 MB"."""
    if count < 10 * 1024:
        return f"{count} bytes"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1024
        if value < 10 * 1024:
            return f"{value:.0f} {unit}"
    return f"{value / 1024:.0f} TB"


def ago(ms: float | None) -> str:
    """A time that has passed: "40 ms", "3.2 s", "5 min", or "never"."""
    if ms is None:
        return "never"
    for limit, divisor, unit, digits in (
        (1000, 1, "ms", 0),
        (100_000, 1000, "s", 1),
        (6e6, 60_000, "min", 0),
    ):
        if ms < limit:
            return f"{ms / divisor:.{digits}f} {unit}"
    return f"{ms / 3_600_000:.1f} h"
