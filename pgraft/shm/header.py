"""Writes sql/pgraft_shm.h, the C view of the segment, from layout.py.

python -m pgraft.shm.header            write it
python -m pgraft.shm.header --check    exit 1 when the committed one differs
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable
from pathlib import Path

from pgraft import __version__, header_file
from pgraft.shm import layout

HEADER_PATH = Path(__file__).resolve().parents[2] / "sql" / "pgraft_shm.h"

_NUMBERS = (
    "LAYOUT_VERSION PAGE_BYTES WORD_BYTES MEMBERS_MAX REMOVED_MAX ADDRESS_BYTES_MAX SLOT_PAYLOAD_BYTES"
    " PIECE_BYTES_MAX COMMAND_RING_BYTES_MIN RECORD_HEADER_BYTES RECORD_ALIGN LOCK_BYTES WORKER_PAGE"
    " NETWORK_PAGE STATUS_OFFSET STATUS_ROWS_OFFSET STATUS_ROW_BYTES STATUS_COPY_BYTES MEMBERS_ROWS_OFFSET"
    " MEMBER_ADDRESS_OFFSET MEMBER_ROW_BYTES MEMBERS_REMOVED_OFFSET MEMBERS_COPY_BYTES COMMAND_LOCK_OFFSET"
    " COMMAND_RING_OFFSET COMMAND_RECORD_BYTES SLOT_PAYLOAD_OFFSET SLOT_BYTES"
)
"""Sizes and offsets in bytes, and counts, that keep their name behind PGRAFT_."""

_WORDS = (
    ("HEADER", layout.HEADER_WORDS),
    ("WORKER", layout.WORKER_WORDS),
    ("NETWORK", layout.NETWORK_WORDS),
    ("STATUS", layout.STATUS_WORDS),
    ("STATUS_ROW", layout.STATUS_ROW_WORDS),
    ("MEMBERS", layout.MEMBERS_WORDS),
    ("MEMBER_ROW", layout.MEMBER_ROW_WORDS),
    ("COMMAND", layout.COMMAND_WORDS),
    ("COMMAND_RECORD", layout.COMMAND_RECORD_WORDS),
    ("SLOT", layout.SLOT_BACKEND_WORDS | layout.SLOT_WORKER_WORDS),
)
_TEXTS = (("HEADER", layout.HEADER_TEXTS), ("WORKER", layout.WORKER_TEXTS))
_ENUMS: tuple[tuple[str, type[enum.IntEnum] | type[enum.IntFlag]], ...] = (
    ("WORKER_IS", layout.WorkerState),
    ("SLEEPS", layout.Sleep),
    ("ROLE", layout.Role),
    ("COMMAND_KIND", layout.CommandKind),
    ("COMMAND_FLAG", layout.CommandFlag),
    ("SLOT_IS", layout.SlotState),
    ("OUTCOME", layout.Outcome),
)


def constants() -> dict[str, int]:
    """Every number of the header by its C name."""
    found = {f"PGRAFT_{name}": int(getattr(layout, name)) for name in _NUMBERS.split()}
    found["PGRAFT_MAGIC"] = layout.MAGIC
    for prefix, words in _WORDS:
        found |= {f"PGRAFT_{prefix}_W_{name.upper()}": number for name, number in words.items()}
        found[f"PGRAFT_{prefix}_WORD_COUNT"] = max(words.values()) + 1
    for prefix, texts in _TEXTS:
        for name, (offset, room) in texts.items():
            found[f"PGRAFT_{prefix}_TEXT_{name.upper()}"] = offset
            found[f"PGRAFT_{prefix}_TEXT_{name.upper()}_BYTES"] = room
    for prefix, members in _ENUMS:
        found |= {f"PGRAFT_{prefix}_{member.name}": int(member.value) for member in members}
    return found


def _lines() -> Iterable[str]:
    yield "/*"
    yield " * pgraft_shm.h: the segment as C sees it."
    yield " *"
    yield " * Made by `python -m pgraft.shm.header` from pgraft/shm/layout.py, which says what each word"
    yield " * means and who writes it. Do not edit. _W_ names are word (8-byte) numbers within their page,"
    yield " * block, row, record or slot; everything else is in bytes or a plain number."
    yield " */"
    yield "#ifndef PGRAFT_SHM_H"
    yield "#define PGRAFT_SHM_H"
    yield ""
    yield f'#define PGRAFT_VERSION "{__version__}"'
    for name, value in constants().items():
        suffix = "ULL" if value > 2**31 - 1 else ""
        yield f"#define {name} {value:#x}{suffix}" if suffix else f"#define {name} {value}"
    yield ""
    yield "#endif"


def render() -> str:
    """The whole text of the header."""
    return "\n".join(_lines()) + "\n"


def main(arguments: list[str]) -> int:
    """Write the header, or with --check compare it; the exit code."""
    return header_file.main(arguments, "pgraft.shm.header", "layout.py", HEADER_PATH, render())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
