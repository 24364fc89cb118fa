"""Running fuzzers: guided by coverage where atheris is installed, by seeded mutation where it is not."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from pgraft.shm import place
from tests.fuzz import corpus
from tests.fuzz.target import Target

ROOT = Path(__file__).resolve().parents[2]
_RUNS = re.compile(r"stat::number_of_executed_units:\s+(\d+)|DONE\s+\S+\s+runs:\s+(\d+)")
INPUT_SECONDS_MAX = 20
MEMORY_MB_MAX = 1024


class Finding(Exception):
    """An input that breaks a promise; the text has it in hexadecimal, for the corpus."""


class Outcome(NamedTuple):
    """How a run went."""

    inputs: int
    seconds: float
    guided: bool


def can_be_guided() -> bool:
    """Whether atheris is there (it has wheels for some versions of Python and machines only)."""
    return importlib.util.find_spec("atheris") is not None


def first_inputs(target: Target) -> list[bytes]:
    """Seeds and the kept corpus."""
    return [*target.seeds, *corpus.load(target.name)]


def guided(target: Target, *, seconds: int = 0, runs: int = 0, seed: int = 1, grow: bool = False) -> Outcome:
    """Until `runs` inputs were tried or `seconds` have passed. Raises Finding."""
    with tempfile.TemporaryDirectory(prefix="pgraft-fuzz-") as name:
        root = Path(name)
        kept, found = root / "corpus", root / "found"
        kept.mkdir()
        found.mkdir()
        for number, one in enumerate(first_inputs(target)):
            (kept / f"{number:06d}").write_bytes(one)
        limits = [f"-seed={seed}", f"-timeout={INPUT_SECONDS_MAX}", f"-rss_limit_mb={MEMORY_MB_MAX}"]
        limits += [f"-max_total_time={seconds}"] if seconds else []
        limits += [f"-runs={runs}"] if runs else []
        began = time.monotonic()
        said, code = _libfuzzer(
            target, *limits, "-print_final_stats=1", f"-artifact_prefix={found}/", str(kept)
        )
        took = time.monotonic() - began
        if code:
            raise Finding(_what(target, found, said))
        if grow:
            corpus.save(target.name, smallest(target, [path.read_bytes() for path in kept.iterdir()]))
    counts = [int(one or other) for one, other in _RUNS.findall(said)]
    return Outcome(max(counts, default=0), took, True)


def _libfuzzer(target: Target, *arguments: str) -> tuple[str, int]:
    command = [sys.executable, "-m", "tests.fuzz.guided", target.name, *arguments]
    with tempfile.TemporaryDirectory(prefix="pgraft-fuzz-", dir="/dev/shm") as name:
        environment = os.environ | {"PGRAFT_FUZZ_DIRECTORY": name}
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        finally:
            for data_dir in (Path(name), Path(name) / "node"):
                for left in place.find_leftovers(data_dir):
                    place.unlink(left)
    return done.stderr + done.stdout, done.returncode


def _what(target: Target, found: Path, said: str) -> str:
    inputs = [path.read_bytes().hex() for path in sorted(found.iterdir())]
    last = "\n".join(said.splitlines()[-60:])
    return (
        f"{target.name} broke on {inputs}\n(keep it as a line of tests/fuzz/corpus/{target.name}.hex)\n{last}"
    )


def smallest(target: Target, inputs: list[bytes]) -> list[bytes]:
    """Those that reach a step from line to line of pgraft which no shorter one reached."""
    seen: set[tuple[str, int, int]] = set()
    kept = []
    for one in sorted(inputs, key=lambda data: (len(data), data)):
        steps = _steps(target, one)
        if not steps <= seen:
            seen |= steps
            kept.append(one)
    return kept


def _steps(target: Target, data: bytes) -> set[tuple[str, int, int]]:
    found: set[tuple[str, int, int]] = set()
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _argument: object) -> object:
        if "/pgraft/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            found.add((frame.f_code.co_filename, last.get(frame, 0), frame.f_lineno))
            last[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        replay(target, data)
    finally:
        sys.settrace(None)
    return found


def mutated(target: Target, *, seconds: float = 0, runs: int = 0, seed: int = 1) -> Outcome:
    """Mutations of the first inputs, by a seed, without looking at coverage. Raises Finding."""
    rng = random.Random(seed)
    inputs = first_inputs(target)
    began = time.monotonic()
    count = 0
    while (not runs or count < runs) and (not seconds or time.monotonic() - began < seconds):
        replay(target, _mutation(rng, inputs)[: target.bytes_max])
        count += 1
    return Outcome(count, time.monotonic() - began, False)


def replay(target: Target, data: bytes) -> None:
    """One input. Raises Finding."""
    try:
        target.run(data)
    except Exception as error:
        raise Finding(f"{target.name} broke on {data.hex()}: {type(error).__name__}: {error}") from error


def _mutation(rng: random.Random, inputs: list[bytes]) -> bytes:
    data = bytearray(rng.choice(inputs))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                data[at:at] = rng.randbytes(rng.randrange(9))
            case 2:
                del data[at : at + rng.randrange(9)]
            case 3:
                other = rng.choice(inputs)
                start = rng.randrange(len(other) + 1)
                data[at : at + 32] = other[start : start + 32]
            case _:
                data[at : at + 8] = rng.choice((0, 2**63, 2**64 - 1, 2**31)).to_bytes(8, "little")
    return bytes(data)
