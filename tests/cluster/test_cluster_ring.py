"""Many sessions through the smallest ring that can be set (SPEC section 3)."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest

from tests.support import pgcluster

pytestmark = pytest.mark.cluster
SESSIONS = 200
COMMANDS = 10
FILLER_BYTES = 3000
"""Enough for 200 commands to be many times the ring."""


def test_200_sessions_through_the_smallest_ring(template: Path, tmp_path: Path) -> None:
    with pgcluster.cluster(template, 0, command_ring_size="16kB") as made:
        for node in made.add(3):
            node.init(made.initial_list(made.nodes[:3]))
            with (node.pgdata / "postgresql.conf").open("a") as conf:
                conf.write("max_connections = 230\n")
        made.start_all()
        leader = made.wait_agreed()
        leader.execute("CREATE EXTENSION pgraft")
        results: list[bool] = []
        errors: list[str] = []
        start = threading.Barrier(SESSIONS)

        def session(number: int) -> None:
            try:
                with leader.connect() as connection:
                    start.wait(timeout=120)
                    for count in range(COMMANDS):
                        text = f"{number}:{count}:" + "x" * FILLER_BYTES
                        row = connection.execute("SELECT pgraft_replicate_entry(%s)", (text,)).fetchone()
                        results.append(row == (True,))
            except (psycopg.Error, threading.BrokenBarrierError) as error:
                errors.append(repr(error))

        threads = [threading.Thread(target=session, args=(number,)) for number in range(SESSIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
        assert errors == []
        assert results == [True] * (SESSIONS * COMMANDS)
        rows = leader.sql(
            "SELECT split_part(t, ':', 1)::int, split_part(t, ':', 2)::int, count(*)"
            " FROM pgraft_log_get_stats() s, generate_series(2, s.last_index) i,"
            " LATERAL pgraft_log_get_entry(i) t WHERE t IS NOT NULL GROUP BY 1, 2"
        )
        assert len(rows) == SESSIONS * COMMANDS
        assert all(row[2] == 1 for row in rows)
