"""Commit latency and throughput by pgbench, and the cost of a pgraft_is_leader() call."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import time
from pathlib import Path

import psycopg

from bench.cluster import Node, program
from bench.samples import US_PER_S, BenchError, Request

LOAD_EXTRA_WAIT_S = 60
CALLS = 1_000_000
NOOP = "pgraft_bench_noop"
OTHER_ENTRIES_MAX = 10
"""Entries of a run that no session asked for: a new leader's empty one."""


def pgbench_load(
    leader: Node, root: Path, clients: int, seconds: float, warm_up_s: float, value_bytes: int
) -> list[Request]:
    """`clients` sessions on the leader that replicate `value_bytes` in a closed loop, each commit waited for.

    Returns every transaction, warm-up included, after checking that the log grew by as many entries.
    """
    script, prefix = root / "replicate.sql", root / "pgbench_log"
    script.write_text(f"SELECT pgraft_replicate_entry('{'x' * value_bytes}');\n")
    for old in root.glob("pgbench_log.*"):
        old.unlink()
    before = leader.number("SELECT commit_index FROM pgraft_log_get_stats()")
    command = [
        *(program(leader, "pgbench"), "-n", "-M", "prepared", "-f", str(script)),
        *("-c", str(clients), "-j", "1", "-T", f"{warm_up_s + seconds:.0f}"),
        *("-l", f"--log-prefix={prefix}", leader.dsn),
    ]
    wait_s = warm_up_s + seconds + LOAD_EXTRA_WAIT_S
    done = subprocess.run(command, capture_output=True, text=True, timeout=wait_s, check=False)
    if done.returncode != 0:
        complaint = (done.stderr or done.stdout).strip().splitlines()
        raise BenchError(f"pgbench failed: {'; '.join(complaint[-2:])}")
    requests = [one for log in root.glob("pgbench_log.*") for one in read_pgbench_log(log)]
    grown = leader.number("SELECT commit_index FROM pgraft_log_get_stats()") - before
    if not len(requests) <= grown <= len(requests) + OTHER_ENTRIES_MAX:
        raise BenchError(f"pgbench counted {len(requests)} commits, the log grew by {grown}")
    return requests


def read_pgbench_log(path: Path) -> list[Request]:
    """Transactions of `pgbench -l`: client, number, us taken, script, end in s, us of that second."""
    requests = []
    for line in path.read_text().splitlines():
        _, _, took, _, second, microsecond = line.split()[:6]
        requests.append(Request(end_us=int(second) * US_PER_S + int(microsecond), took_us=int(took)))
    return requests


@dataclasses.dataclass(frozen=True)
class CallCost:
    """Microseconds a call: of pgraft_is_leader(), of an empty C function, and the difference."""

    is_leader_us: float
    empty_us: float
    on_top_us: float


def is_leader_cost(leader: Node, rounds: int) -> CallCost:
    """Time a million calls of each in one backend, in turn; medians over the rounds."""
    with psycopg.connect(leader.dsn, autocommit=True) as connection:
        connection.execute("SET jit = off")
        connection.execute("SET max_parallel_workers_per_gather = 0")
        connection.execute("SET work_mem = '256MB'")  # generate_series stays in memory
        _declare_noop(connection)
        try:
            for name in ("pgraft_is_leader", NOOP):
                _time_calls(connection, name)
            times = [
                (_time_calls(connection, "pgraft_is_leader"), _time_calls(connection, NOOP))
                for _ in range(rounds)
            ]
        finally:
            connection.execute(f"DROP FUNCTION {NOOP}()")
    us = US_PER_S / CALLS
    return CallCost(
        is_leader_us=statistics.median(ours for ours, _ in times) * us,
        empty_us=statistics.median(empty for _, empty in times) * us,
        on_top_us=statistics.median(ours - empty for ours, empty in times) * us,
    )


def _declare_noop(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """An empty C function of the same library and with the same markings as pgraft_is_leader()."""
    row = connection.execute(
        "SELECT probin, provolatile, proparallel, proisstrict FROM pg_proc WHERE proname = 'pgraft_is_leader'"
    ).fetchone()
    if row is None:
        raise BenchError("the extension is not created in the database of the leader's dsn")
    library, volatility, parallel, strict = row
    words = {"v": "VOLATILE", "s": "STABLE", "i": "IMMUTABLE"}[str(volatility)]
    words += {"s": " PARALLEL SAFE", "r": " PARALLEL RESTRICTED", "u": " PARALLEL UNSAFE"}[str(parallel)]
    statement = psycopg.sql.SQL(
        "CREATE OR REPLACE FUNCTION {}() RETURNS boolean AS {}, 'pgraft_internal_noop' LANGUAGE C "
    )
    name, path = psycopg.sql.Identifier(NOOP), psycopg.sql.Literal(str(library))
    markings = psycopg.sql.SQL(words + (" STRICT" if strict else ""))
    connection.execute(statement.format(name, path) + markings)


def _time_calls(connection: psycopg.Connection[tuple[object, ...]], function: str) -> float:
    """Seconds for CALLS calls. In the select list, where even a stable function runs once a row."""
    query = psycopg.sql.SQL("SELECT count({}()) FROM generate_series(1, {})").format(
        psycopg.sql.Identifier(function), psycopg.sql.Literal(CALLS)
    )
    begun = time.perf_counter()
    connection.execute(query).fetchone()
    return time.perf_counter() - begun
