"""The server log that a person can live with: what happens is a line, what goes on is none."""

from __future__ import annotations

import re

import pytest

import pgraft.log
from pgraft.log import BURST_LINES, LINES_PER_S
from tests.support.node_sim import ELECTION_MS, Sim

SETTLE_MS = 5 * ELECTION_MS
LONG_MS = 120_000


def lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What was logged since the last call, without time and pid."""
    text = capfd.readouterr().err
    return [re.sub(r"^.*? \[\d+\] ", "", line) for line in text.splitlines() if "pgraft: " in line]


def test_an_idle_cluster_writes_nothing(sim: Sim, capfd: pytest.CaptureFixture[str]) -> None:
    sim.form(3)
    sim.wait_leader()
    sim.run(SETTLE_MS)
    lines(capfd)
    sim.run(LONG_MS)
    assert lines(capfd) == []


def test_an_election_says_who_when_and_why(sim: Sim, capfd: pytest.CaptureFixture[str]) -> None:
    sim.form(3)
    old = sim.wait_leader()
    sim.run(SETTLE_MS)
    others = sim.followers(old)
    term = old.status.term
    lines(capfd)
    old.kill()
    new = sim.wait_leader_of(others)
    sim.run(SETTLE_MS)
    said = lines(capfd)
    (loser,) = [node for node in others if node is not new]
    assert f"LOG:  pgraft: node {new.id} is the leader at term {new.status.term}" in said
    assert f"LOG:  pgraft: node {loser.id} follows node {new.id} at term {new.status.term}" in said
    gone = [line for line in said if f"follows node {old.id} at term {term} no more: " in line]
    assert len(gone) == 2
    assert any(re.search(r"nothing was heard from it for \d{4} ms", line) for line in gone)
    assert len(said) == 4


def test_a_node_that_is_cut_off_costs_a_handful(sim: Sim, capfd: pytest.CaptureFixture[str]) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(SETTLE_MS)
    lines(capfd)
    sim.isolate(leader.id)
    sim.run(SETTLE_MS)
    said = lines(capfd)
    assert any(f"node {leader.id} leads no more: it steps down at term" in line for line in said)
    assert len(said) <= 6
    # It asks for pre-votes all the time, and the others miss it: that is no news.
    sim.run(LONG_MS)
    assert lines(capfd) == []
    sim.heal()
    sim.run(SETTLE_MS)
    assert len(lines(capfd)) <= 3


def test_whatever_peers_do_a_process_writes_at_a_bounded_rate(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(pgraft.log, "_bound", None)
    monkeypatch.setattr(pgraft.log.time, "monotonic", lambda: now[0])
    pgraft.log.bound_lines()
    for number in range(BURST_LINES + 500):
        pgraft.log.log("LOG", f"line {number}")
    assert len(lines(capfd)) == BURST_LINES
    pgraft.log.log("ERROR", "what must be told is told")
    assert len(lines(capfd)) == 1
    now[0] += 2 / LINES_PER_S
    for number in range(10):
        pgraft.log.log("LOG", f"later {number}")
    said = lines(capfd)
    assert len(said) == 2
    assert "later 0 (500 messages before this one were too many, and are left out)" in said[0]
