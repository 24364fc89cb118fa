"""The form `storage`, for a few seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.run import Plan, soak
from tests.soak.storage import Storage

pytestmark = pytest.mark.cluster


def test_a_short_soak_of_storage(template: Path) -> None:
    plan = Plan(seconds=8, seed=5, calm_s=1, audit_pause_s=1, election_timeout_ms=500)
    report = soak(Storage(), plan, template)
    assert report.violations == [], report.text()
    assert sum(report.faults.values()) >= 2
    assert len(report.own) > 1, "no call has met a fault"
    assert report.acknowledged > 0


@pytest.mark.slow
def test_a_longer_soak_of_storage(template: Path) -> None:
    report = soak(Storage(), Plan(seconds=120, seed=1), template)
    assert report.violations == [], report.text()
    assert report.own["times a node left consensus"] > 0
