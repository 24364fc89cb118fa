"""The LAN and the WAN profile: no spurious election. Short here; ten minutes each under the marker slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.elections import Election, in_log
from tests.soak.profiles import LAN, WAN, Outcome, Profile, measure, profiled
from tests.soak.starvation import Starvation, Waited

pytestmark = pytest.mark.cluster
SHORT_S = 6
LONG_S = 600


def run(template: Path, profile: Profile, nodes: int, seconds: float) -> Outcome:
    with profiled(template, profile, nodes) as (cluster, relay_pid):
        outcome = measure(cluster, relay_pid, profile, seconds)
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


def test_waits_excuse_an_election_within_one_timeout_only() -> None:
    starvation = Starvation([])
    starvation.close()
    starvation._noted = [Waited(100 + tenth / 10, 1, 30.0) for tenth in range(20)]
    assert starvation.worst_ms(100, 102, 0.5) == pytest.approx(180)
    assert starvation.worst_ms(100, 102, 2.0) == pytest.approx(600)
    assert starvation.worst_ms(100.95, 102, 2.0) == pytest.approx(300)


def test_elections_are_read_from_a_log() -> None:
    text = (
        "2026-11-23 23:36:25.999 UTC [11501] LOG:  pgraft: node 3 follows node 2 at term 2\n"
        "2026-11-23 23:36:27.250 UTC [11501] LOG:  pgraft: node 3 is the leader at term 3\n"
        "2026-11-23 23:36:27.250 UTC [11501] DETAIL:  node 3 is the leader at term 4\n"
    )
    assert in_log(text) == [Election(1795476987.25, 3, 3)]
