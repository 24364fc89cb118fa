"""Every fuzzer over its kept inputs, then for a moment on its own; `make fuzz` is for longer."""

from __future__ import annotations

import pytest

from tests.fuzz import corpus, runner
from tests.fuzz.shim import run as shim
from tests.fuzz.shim.build import CannotBuild
from tests.fuzz.targets import MODULES, load

RUNS = {
    "frames": 1500,
    "handshakes": 3000,
    "incoming": 700,
    "outgoing": 700,
    "envelopes": 20_000,
    "changes": 8000,
    "nodes": 60,
    "logs": 150,
    "snapshots": 600,
    "texts": 2000,
    "rings": 1500,
    "records": 5000,
    "commands": 250,
    "blocks": 200,
}
"""About a second each."""
SHIM_RUNS = 1500


@pytest.mark.parametrize("name", MODULES)
def test_kept_inputs(name: str) -> None:
    """What was found once, and what reaches each part of the code."""
    target = load(name)
    for one in runner.first_inputs(target):
        runner.replay(target, one)


@pytest.mark.parametrize("name", MODULES)
def test_a_short_run(name: str) -> None:
    target = load(name)
    if runner.can_be_guided():
        done = runner.guided(target, runs=RUNS[name])
    else:
        done = runner.mutated(target, runs=RUNS[name])
    assert done.inputs >= RUNS[name]


def test_the_shim_under_sanitizers() -> None:
    try:
        done = shim.fuzz(runs=SHIM_RUNS)
    except CannotBuild as error:
        pytest.skip(str(error))
    assert done.inputs >= SHIM_RUNS


def test_every_fuzzer_has_a_corpus() -> None:
    for name in (*MODULES, shim.NAME):
        assert corpus.load(name), f"python -m tests.fuzz {name} --seconds 60 --grow"


def test_a_finding_is_reported_with_its_input() -> None:
    """Seen to fail: a fuzzer that breaks says on what."""
    target = load("frames")

    def broken(data: bytes) -> None:
        if len(data) > 3:
            raise ValueError("as planned")

    wrong = type(target)(target.name, broken, target.seeds)
    with pytest.raises(runner.Finding, match=r"frames broke on [0-9a-f]+: ValueError"):
        runner.mutated(wrong, runs=100)
