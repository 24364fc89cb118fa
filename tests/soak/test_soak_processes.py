"""The form `processes`, for a few seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.processes import Processes
from tests.soak.run import Plan, soak

pytestmark = pytest.mark.cluster


def test_a_short_soak_of_processes(template: Path) -> None:
    plan = Plan(seconds=6, seed=5, calm_s=1, audit_pause_s=1, election_timeout_ms=500)
    report = soak(Processes(), plan, template)
    assert report.violations == [], report.text()
    assert sum(report.faults.values()) >= 2
    assert report.acknowledged > 0
    assert report.entries > report.acknowledged


@pytest.mark.slow
def test_a_longer_soak_of_processes(template: Path) -> None:
    report = soak(Processes(), Plan(seconds=120, seed=1), template)
    assert report.violations == [], report.text()
