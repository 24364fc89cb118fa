"""The LAN and the WAN profile: no spurious election. Short here; ten minutes each under the marker slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.elections import Election, in_log
from tests.soak.profiles import LAN, WAN, Outcome, Profile, measure, profiled

pytestmark = pytest.mark.cluster
SHORT_S = 6
LONG_S = 600


def run(template: Path, profile: Profile, nodes: int, seconds: float) -> Outcome:
    with profiled(template, profile, nodes) as cluster:
        outcome = measure(cluster, profile, seconds)
    print(outcome.text())
    assert outcome.spurious == []
    assert outcome.commits > 0
    # A commit waits for a round trip to a majority.
    assert outcome.median_ms >= 2 * profile.delay_ms
    return outcome


@pytest.mark.parametrize(("profile", "nodes"), [(LAN, 3), (WAN, 5)], ids=["lan", "wan"])
def test_no_spurious_election_for_a_while(template: Path, profile: Profile, nodes: int) -> None:
    run(template, profile, nodes, SHORT_S)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [3, 5, 7])
@pytest.mark.parametrize("profile", [LAN, WAN], ids=["lan", "wan"])
def test_no_spurious_election_in_ten_minutes(template: Path, profile: Profile, nodes: int) -> None:
    outcome = run(template, profile, nodes, LONG_S)
    assert outcome.failed == 0 or outcome.explained


def test_elections_are_read_from_a_log() -> None:
    text = (
        "2026-11-23 23:36:25.999 UTC [11501] LOG:  pgraft: node 3 follows node 2 at term 2\n"
        "2026-11-23 23:36:27.250 UTC [11501] LOG:  pgraft: node 3 is the leader at term 3\n"
        "2026-11-23 23:36:27.250 UTC [11501] DETAIL:  node 3 is the leader at term 4\n"
    )
    assert in_log(text) == [Election(1795476987.25, 3, 3)]
