"""A follower behind the compacted log gets a snapshot and what is kept, and answers heartbeats meanwhile."""

from __future__ import annotations

from tests.support.node_sim import ELECTION_MS, HEARTBEAT_MS, MS, Sim

SMALL = {"log_keep_entries": 200, "log_keep_bytes": 0, "snapshot_threshold": 10}


def test_a_follower_behind_the_compacted_log_answers_while_it_catches_up(sim: Sim) -> None:
    sim.form(3, **SMALL)
    leader = sim.wait_leader()
    lagging, other = sim.followers(leader)
    sim.isolate(lagging.id)
    for start in range(0, 600, 12):
        sim.wait(*(leader.replicate(b"%d " % number * 2000) for number in range(start, start + 12)))
    assert leader.status.first_index > lagging.status.last_index + 1, "only a snapshot can help"
    term = leader.status.term
    sim.heal()
    assert sim.run(20 * ELECTION_MS, lambda: lagging.status.leader_id == leader.id)
    silent_ms: list[float] = []

    def look() -> None:
        assert leader.lease_valid, "an election, or a lease that ran out"
        assert (leader.status.term, lagging.status.term) == (term, term)
        heard = next(row.heard_boot_ns for row in leader.status.rows if row.node_id == lagging.id)
        silent_ms.append((sim.now_ns - heard) / MS)

    sim.on_step.append(look)
    assert sim.run(20 * ELECTION_MS, lambda: lagging.status.commit_index == leader.status.commit_index)
    sim.run(2 * HEARTBEAT_MS)
    assert silent_ms
    assert max(silent_ms) < ELECTION_MS, "it was silent for an election timeout"
    assert lagging.status.first_index > 100
    assert lagging.texts == leader.texts[-len(lagging.texts) :]
    assert len(lagging.texts) >= SMALL["log_keep_entries"]
    assert other.status.commit_index == leader.status.commit_index
