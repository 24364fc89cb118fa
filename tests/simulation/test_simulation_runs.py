"""A fixed budget of the simulator for every test run, and that a seed replays to the letter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.report import KINDS_MIN, Part, run_seed

FIRST = 20_000
CHUNKS = 8
SEEDS = 12
STEPS = 2500


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_seeds_run_without_a_violation(chunk: int) -> None:
    total = Part()
    for number in range(SEEDS):
        total.add(run_seed(FIRST + chunk * SEEDS + number, STEPS))
    assert not total.violations, "\n".join(total.violations)
    assert total.steps >= SEEDS * STEPS
    assert total.full >= SEEDS - 2, f"fewer than {KINDS_MIN} kinds of fault in some seeds"
    # Nothing is shown by a cluster that is always down.
    assert total.counts["acknowledged"] > 10 * SEEDS
    assert total.counts["lease_reads"] > SEEDS
    assert total.counts["restarts"] > SEEDS
    assert total.counts["add_node_ok"] > 0
    assert total.counts["frozen_who_decides"] > 0


def test_a_seed_replays_to_the_letter_in_another_process() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(FIRST), "--steps", "2000"]
    seen = [
        subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": hashes}, capture_output=True, text=True, check=True
        ).stdout
        for hashes in ("1", "2")
    ]
    assert seen[0] == seen[1]
    assert "no violation" in seen[0]
