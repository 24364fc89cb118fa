"""Running the harness of the shim: build it, mutate, and take back what reached new code."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.runner import Finding, Outcome
from tests.fuzz.shim.build import build, make_template

NAME = "shim"


def fuzz(*, seconds: int = 0, runs: int = 0, seed: int = 1, grow: bool = False) -> Outcome:
    """Until `runs` inputs were tried or `seconds` have passed. Raises Finding and CannotBuild."""
    with tempfile.TemporaryDirectory(prefix="pgraft-fuzz-") as name:
        root = Path(name)
        program = build(root)
        make_template(root)
        given, reached = root / "given.hex", root / "reached.hex"
        given.write_text("".join(f"{one.hex()}\n" for one in corpus.load(NAME)))
        arguments = [root / "template", root, runs, seconds, seed, given, reached]
        began = time.monotonic()
        done = subprocess.run(
            [str(program), *map(str, arguments)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        took = time.monotonic() - began
        if done.returncode:
            raise Finding(f"shim broke (keep what is behind BROKE ON as a line):\n{done.stderr[-6000:]}")
        if grow:
            corpus.save(NAME, [bytes.fromhex(line) for line in reached.read_text().split()])
    found = re.search(r"inputs (\d+)", done.stdout)
    return Outcome(int(found[1]) if found else 0, took, True)
