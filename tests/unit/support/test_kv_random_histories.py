"""Histories from a simulated store pass; with one fault in the store or one change made afterwards, not.

Many more seeds: `python -m tests.unit.support.kv_rates SEEDS`.
"""

from __future__ import annotations

import random
import time

import pytest

from tests.support.kvcheck.check import check
from tests.unit.support.kv_faults import Fault
from tests.unit.support.kv_rates import EDITS, Rates, edited, faulty, good, profile_of
from tests.unit.support.kv_reference import is_linearizable, perturbed
from tests.unit.support.kv_simulation import Profile, Simulation, Told

SEEDS = 60


@pytest.mark.parametrize("told", Told)
def test_linearizable_histories_pass(told: Told) -> None:
    for seed in range(SEEDS):
        result = good(seed, told)
        assert not result.violations, f"seed {seed}: {result}"
    assert good(0, told).ok


FAULTS = [(fault, told) for fault in Fault for told in Told if (fault, told) != (Fault.CAS, Told.VALUES)]
"""Without revisions, no client can compare with one."""


@pytest.mark.parametrize(("fault", "told"), FAULTS)
def test_faults_are_seen(fault: Fault, told: Told) -> None:
    rates = Rates()
    for seed in range(12):
        faulty(seed, told, fault, rates)
    assert rates.fired > 5
    assert not rates.missed


@pytest.mark.parametrize("name", EDITS)
def test_changes_are_seen(name: str) -> None:
    rates = Rates()
    for seed in range(20):
        edited(seed, name, rates)
    assert rates.fired > 5
    assert not rates.missed


@pytest.mark.parametrize("told", Told)
def test_agrees_with_the_definition(told: Told) -> None:
    """All orders of few operations: never a false alarm, and without revisions nothing is missed either.

    With them, the definition knows that revisions have no gaps here, which the checker does not suppose.
    """
    differ = wrong = 0
    for seed in range(300):
        profile = Profile(
            3, 2, 6, told, unknown=0.2, transactions=0.2, few_values=seed % 2 == 0, extras=False
        )
        history = Simulation(seed, profile).run()
        history = perturbed(history, random.Random(seed))
        truth = is_linearizable(history)
        wrong += not truth
        found = check(history)
        assert not (truth and found.violations), f"seed {seed}: {found}"
        differ += truth != found.ok
    assert wrong > 30
    assert differ <= (0 if told is Told.VALUES else wrong // 4)


def test_ten_thousand_operations_take_seconds() -> None:
    """50 keys, 20 clients. Processor time: the machine may be busy."""
    history = Simulation(1, Profile(20, 50, 10_000, unknown=0.01, transactions=0.0)).run()
    start = time.process_time()
    result = check(history)
    assert result.ok, result
    assert time.process_time() - start < 20


def test_rates_profile_varies() -> None:
    assert len({profile_of(seed, Told.ALL) for seed in range(40)}) > 20
