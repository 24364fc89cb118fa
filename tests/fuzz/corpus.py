"""The kept inputs: one file per fuzzer, one input per line in hexadecimal, comments behind a #."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path(__file__).parent / "corpus"


def load(name: str) -> list[bytes]:
    """The inputs kept for this fuzzer, in the file's order."""
    path = DIRECTORY / f"{name}.hex"
    if not path.exists():
        return []
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [bytes.fromhex(line) for line in lines if line]


def save(name: str, inputs: list[bytes]) -> None:
    """Keep these beside the findings, which are the lines that have a comment."""
    path = DIRECTORY / f"{name}.hex"
    before = path.read_text().splitlines() if path.exists() else []
    findings = [line for line in before if "#" in line]
    known = {bytes.fromhex(line.partition("#")[0].strip()) for line in findings}
    fresh = sorted({one for one in inputs if one not in known}, key=lambda one: (len(one), one))
    path.write_text("\n".join([*findings, *(one.hex() for one in fresh)]) + "\n")
