"""Every deliberate fault of breaks.py is seen: by the simulator within SEEDS seeds, or by a named test."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.simulation.breaks import BREAKS

SEEDS = 150
STEPS = 4000
NOT_A_FINDING = (
    r"step \d+: (NameError|AttributeError|TypeError|KeyError|SyntaxError|ImportError|UnboundLocal)"
)
TIMEOUT_S = 900
PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "tests.simulation.broken")


@pytest.mark.parametrize("name", [name for name, fault in BREAKS.items() if not fault.test])
def test_the_simulator_sees(name: str) -> None:
    command = [sys.executable, "-m", "tests.simulation", "--break", name, "--jobs", "1", "--stop"]
    command += ["--first", "1", "--seeds", str(SEEDS), "--steps", str(STEPS)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ran.returncode == 1, f"{name} was not seen in {SEEDS} seeds\n{ran.stdout}{ran.stderr}"
    assert "VIOLATION seed" in ran.stdout
    assert not re.search(NOT_A_FINDING, ran.stdout), f"the fault itself is broken\n{ran.stdout}"
    assert f"--break {name}" in ran.stdout  # the command that replays it


@pytest.mark.parametrize("name", [name for name, fault in BREAKS.items() if fault.test])
def test_a_named_test_sees(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, *PYTEST, BREAKS[name].test],
        env=os.environ | {"PGRAFT_TEST_BREAK": name},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 1, f"{name} was not seen by {BREAKS[name].test}\n{ran.stdout}{ran.stderr}"
    assert " failed" in ran.stdout
