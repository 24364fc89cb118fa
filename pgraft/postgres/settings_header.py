"""Writes sql/pgraft_settings.h, the settings as the shim defines them, from settings.py.

    python -m pgraft.postgres.settings_header            write it
    python -m pgraft.postgres.settings_header --check    exit 1 when the committed one differs

The header is a list of macro calls (X macros), one a setting, so that the C that declares the
variables and the C that defines the settings are made from the same lines.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import assert_never

from pgraft import header_file
from pgraft.postgres.settings import BY_NAME, SETTINGS, Context, Kind, Setting

HEADER_PATH = Path(__file__).resolve().parents[2] / "sql" / "pgraft_settings.h"
PREFIX = "pgraft."
_CONTEXTS = {Context.POSTMASTER: "PGC_POSTMASTER", Context.USER: "PGC_USERSET"}
_UNITS = {"": "0", "ms": "GUC_UNIT_MS", "kB": "GUC_UNIT_KB", "MB": "GUC_UNIT_MB"}


def c_string(text: str) -> str:
    """`text` as a C string literal. Raises ValueError for what a description has no use for."""
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"not printable ASCII: {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _field(setting: Setting) -> str:
    return setting.name.removeprefix(PREFIX)


def _own(setting: Setting) -> list[str]:
    match setting.kind:
        case Kind.STRING:
            return [c_string(str(setting.default)), "GUC_SUPERUSER_ONLY" if setting.is_private else "0"]
        case Kind.INTEGER:
            bounds = [str(setting.default), str(setting.minimum), str(setting.maximum)]
            return [*bounds, _UNITS[setting.unit]]
        case Kind.BOOL:
            return ["true" if setting.default else "false"]
        case Kind.ENUM:
            return [str(setting.options.index(str(setting.default))), f"pgraft_options_{_field(setting)}"]
        case _ as never:
            assert_never(never)


def _call(setting: Setting) -> str:
    long = c_string(setting.long) if setting.long else "NULL"
    parts = [_field(setting), c_string(setting.name), c_string(setting.short), long]
    return f"X({', '.join([*parts, _CONTEXTS[setting.context], *_own(setting)])})"


def _macro(kind: Kind) -> Iterable[str]:
    lines = [f"\t{_call(setting)}" for setting in SETTINGS if setting.kind is kind]
    yield f"#define PGRAFT_{kind.name}_SETTINGS(X) \\"
    yield from (line + " \\" for line in lines[:-1])
    yield from lines[-1:]
    yield ""


def _options(setting: Setting) -> Iterable[str]:
    yield f"#define PGRAFT_OPTIONS_{_field(setting).upper()} \\"
    for number, option in enumerate(setting.options):
        yield f"\t{{{c_string(option)}, {number}, false}}, \\"
    yield "\t{NULL, 0, false}"
    yield ""


def _lines() -> Iterable[str]:
    yield "/*"
    yield " * pgraft_settings.h: the settings of pgraft."
    yield " *"
    yield " * Made by `python -m pgraft.postgres.settings_header` from settings.py beside it. Do not edit."
    yield " * X(field, name, short description, long description, context, then by type:"
    yield " *   string: default, flags;  integer: default, minimum, maximum, unit;  bool: default;"
    yield " *   enum: default, options)"
    yield " */"
    yield "#ifndef PGRAFT_SETTINGS_H"
    yield "#define PGRAFT_SETTINGS_H"
    yield ""
    election = BY_NAME["pgraft.election_timeout"]
    yield f"#define PGRAFT_ELECTION_TIMEOUT_MS_MIN {election.minimum}"
    yield f"#define PGRAFT_ELECTION_TIMEOUT_MS_MAX {election.maximum}"
    yield f"#define PGRAFT_ENTRY_BYTES_MAX ({BY_NAME['pgraft.max_entry_size'].maximum} * 1024)"
    yield f"#define PGRAFT_COMMAND_RING_BYTES_MAX ({BY_NAME['pgraft.command_ring_size'].maximum} * 1024)"
    yield ""
    for setting in SETTINGS:
        if setting.kind is Kind.ENUM:
            yield from _options(setting)
    for kind in Kind:
        yield from _macro(kind)
    yield "#endif"


def render() -> str:
    """The whole text of the header."""
    return "\n".join(_lines()) + "\n"


def main(arguments: list[str]) -> int:
    """Write the header, or with --check compare it; the exit code."""
    return header_file.main(
        arguments, "pgraft.postgres.settings_header", "settings.py", HEADER_PATH, render()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
