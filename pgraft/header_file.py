"""The command of a module that writes a C header, from a table in Python, into the source tree.

The headers are committed, so that the shim builds with a C compiler and PGXS alone.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str], module: str, source: str, path: Path, text: str) -> int:
    """Write `text` to `path`, or with --check compare them; the exit code. `module` is the one that is run,
    `source` the file that it makes the text from."""
    if arguments not in ([], ["--check"]):
        print(f"usage: python -m {module} [--check]", file=sys.stderr)
        return 2
    if not arguments:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    print(f"{path} differs from {source}: run python -m {module}", file=sys.stderr)
    return 1
