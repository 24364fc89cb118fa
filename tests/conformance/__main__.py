"""`python -m tests.conformance DIR…`: run the data files in directories (or single files)."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conformance.runner import data_files, run_file


def main(arguments: list[str]) -> int:
    """Print a line for each file, the first difference of each that failed, and a total."""
    paths = [Path(argument) for argument in arguments]
    missing = [str(path) for path in paths if not path.exists()]
    if not paths or missing:
        reason = f"no such directory: {', '.join(missing)}" if missing else "no directory given"
        print(f"{reason}; usage: python -m tests.conformance DIR…", file=sys.stderr)
        return 2
    files = cases = failed = 0
    for path in data_files(paths):
        result = run_file(path)
        files += 1
        cases += result.cases
        failed += result.failed
        print(f"{'ok    ' if result.ok else 'FAILED'} {path}: {result.cases - result.failed}/{result.cases}")
        if result.difference:
            print("    " + result.difference.replace("\n", "\n    "))
    print(f"{files} files, {cases} cases, {failed} failed")
    if not cases:
        print("nothing to run: no .txt files with cases found", file=sys.stderr)
    return 0 if cases and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
