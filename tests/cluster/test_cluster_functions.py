"""The SQL functions on the leader and on the followers of a running cluster (SPEC section 1)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import pgcluster
from tests.support.pgcluster import Cluster, eventually

pytestmark = pytest.mark.cluster
ACCEPTANCE = Path(__file__).resolve().parents[2].parent / "shared" / "acceptance"
FUNCTIONS = (
    "pgraft_add_node",
    "pgraft_get_cluster_status",
    "pgraft_get_leader",
    "pgraft_get_nodes",
    "pgraft_get_term",
    "pgraft_get_version",
    "pgraft_get_worker_state",
    "pgraft_init",
    "pgraft_is_leader",
    "pgraft_log_get_entry",
    "pgraft_log_get_replication_status",
    "pgraft_log_get_stats",
    "pgraft_remove_node",
    "pgraft_replicate_entry",
    "pgraft_set_debug",
)


@pytest.fixture(scope="module", params=[16, 18])
def running(request: pytest.FixtureRequest, templates: dict[int, Path]) -> Iterator[Cluster]:
    """Three nodes of one PostgreSQL version."""
    with pgcluster.cluster(templates[request.param], 3, request.param, command_ring_size="16kB") as made:
        yield made


def test_a_follower_asks_for_leadership_by_forwarding(running: Cluster) -> None:
    follower = running.followers(running.wait_agreed())[0]
    with follower.connect() as session:
        session.execute("SET pgraft.forward_proposals = on")
        call = session.execute("SELECT pgraft_transfer_leadership(%s)", (follower.node_id,))
        assert call.fetchone() == (True,)
    assert running.wait_agreed() is follower


def test_all_nodes_agree(running: Cluster) -> None:
    leader = running.wait_agreed()
    assert leader.value("SELECT pgraft_replicate_entry('agree')") is True
    running.wait_agreed()
    expected_nodes = [(node.node_id, "127.0.0.1", node.raft_port, node is leader) for node in running.nodes]
    terms = {node.value("SELECT pgraft_get_term()") for node in running.nodes}
    assert len(terms) == 1
    for node in running.nodes:
        assert node.value("SELECT pgraft_get_leader()") == leader.node_id
        assert node.value("SELECT pgraft_is_leader()") is (node is leader)
        assert node.sql("SELECT * FROM pgraft_get_nodes()") == expected_nodes
        assert node.value("SELECT pgraft_get_worker_state()") == "running"
        size, last, commit, applied = node.sql("SELECT * FROM pgraft_log_get_stats()")[0]
        assert last == commit == applied >= 3
        assert size > 0
        assert node.value("SELECT pgraft_init()") is True


def test_cluster_status_is_the_same_everywhere(running: Cluster) -> None:
    leader = running.wait_agreed()

    def rows(node: pgcluster.Node) -> list[tuple[Any, ...]]:
        return node.sql(
            "SELECT node_id, address, port, is_leader, state, term, commit_index, last_log_index"
            " FROM pgraft_get_cluster_status()"
        )

    def same() -> bool:
        return len({str(rows(node)) for node in running.nodes}) == 1

    eventually(same, "one cluster status on all nodes")
    states = {row[0]: row[4] for row in rows(leader)}
    assert states == {n.node_id: "Leader" if n is leader else "Follower" for n in running.nodes}
    for node in running.nodes:
        for (age,) in node.sql("SELECT last_heartbeat FROM pgraft_get_cluster_status()"):
            assert 0 <= age.total_seconds() < 1


def test_replication_status(running: Cluster) -> None:
    leader = running.wait_agreed()
    last = leader.value("SELECT last_index FROM pgraft_log_get_stats()")
    rows = leader.sql("SELECT * FROM pgraft_log_get_replication_status() ORDER BY 1")
    assert [row[0] for row in rows] == [n.node_id for n in running.nodes if n is not leader]
    for _, match_index, next_index, is_replicating, heartbeat in rows:
        assert (match_index, next_index, is_replicating) == (last, last + 1, True)
        assert heartbeat.total_seconds() < 1
    follower = running.followers(leader)[0]
    notices: list[str] = []
    with follower.connect() as session:
        session.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        assert session.execute("SELECT * FROM pgraft_log_get_replication_status()").fetchall() == []
    assert any(f"node {leader.node_id}" in notice for notice in notices), notices


def test_entries_come_back_unchanged_on_every_node(running: Cluster) -> None:
    leader = running.wait_agreed()
    one_mib = "é" * (512 * 1024)
    texts = [
        "",
        'it\'s "quoted"',
        "line\nline\r\n\ttab",
        "🐘🐍 emoji",
        "\\x00 not a zero",
        "x" * 100_000,
        one_mib,
    ]
    places: dict[int, str] = {}
    with leader.connect() as session:
        for text in texts:
            assert session.execute("SELECT pgraft_replicate_entry(%s)", (text,)).fetchone() == (True,)
            row = session.execute("SELECT last_index FROM pgraft_log_get_stats()").fetchone()
            assert row is not None
            places[row[0]] = text
    running.wait_agreed()
    for node in running.nodes:
        with node.connect() as session:
            for index, text in places.items():
                assert session.execute("SELECT pgraft_log_get_entry(%s)", (index,)).fetchone() == (text,)


def test_too_long_a_text_is_refused_before_anything_is_written(running: Cluster) -> None:
    leader = running.wait_agreed()
    before = leader.value("SELECT last_index FROM pgraft_log_get_stats()")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="1048577"):
        leader.value("SELECT pgraft_replicate_entry(%s)", "x" * (1024 * 1024 + 1))
    assert leader.value("SELECT last_index FROM pgraft_log_get_stats()") == before


def test_entries_that_cannot_be_read(running: Cluster) -> None:
    leader = running.wait_agreed()
    # Where all nodes start from, and the first entry of a leader's term, carry no user data.
    assert leader.value("SELECT pgraft_log_get_entry(1)") is None
    assert leader.value("SELECT pgraft_log_get_entry(2)") is None
    commit = leader.value("SELECT commit_index FROM pgraft_log_get_stats()")
    with pytest.raises(psycopg.Error, match=rf"(?s){commit + 5}.*{commit}"):
        leader.value("SELECT pgraft_log_get_entry(%s)", commit + 5)
    with pytest.raises(psycopg.Error):
        leader.value("SELECT pgraft_log_get_entry(0)")


def test_a_follower_names_the_leader(running: Cluster) -> None:
    leader = running.wait_agreed()
    where = f"127.0.0.1:{leader.raft_port}"
    for query in (
        "SELECT pgraft_replicate_entry('x')",
        "SELECT pgraft_add_node(9, '127.0.0.1', 1)",
        "SELECT pgraft_remove_node(1)",
    ):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
            running.followers(leader)[0].value(query)
        diag = caught.value.diag
        for text in (diag.message_detail, diag.message_hint):
            assert text is not None
            assert f"node {leader.node_id}" in text
            assert where in text


def test_a_follower_forwards_when_asked_to(running: Cluster) -> None:
    leader = running.wait_agreed()
    with running.followers(leader)[0].connect() as session:
        session.execute("SET pgraft.forward_proposals = on")
        assert session.execute("SELECT pgraft_replicate_entry('forwarded')").fetchone() == (True,)
    last = leader.value("SELECT last_index FROM pgraft_log_get_stats()")
    assert leader.value("SELECT pgraft_log_get_entry(%s)", last) == "forwarded"


def test_rolling_back_does_not_take_an_entry_back(running: Cluster) -> None:
    leader = running.wait_agreed()
    with leader.connect() as session:
        session.execute("BEGIN")
        session.execute("SELECT pgraft_replicate_entry('rolled back')")
        session.execute("ROLLBACK")
        row = session.execute(
            "SELECT pgraft_log_get_entry(last_index) FROM pgraft_log_get_stats()"
        ).fetchone()
    assert row == ("rolled back",)


def test_every_function_has_a_comment_and_is_revoked_from_public(running: Cluster) -> None:
    node = running.nodes[0]
    rows = node.sql(
        "SELECT p.proname, obj_description(p.oid, 'pg_proc') IS NOT NULL,"
        " has_function_privilege('pg_monitor', p.oid, 'EXECUTE'),"
        " coalesce(aclexplode.grantee = 0, false)"
        " FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'"
        " JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pgraft'"
        " LEFT JOIN LATERAL aclexplode(p.proacl) ON aclexplode.grantee = 0"
    )
    names = [row[0] for row in rows]
    assert set(FUNCTIONS) <= set(names)
    assert len(names) == len(set(names)), "a name is overloaded"
    for name, has_comment, monitor_may, public_may in rows:
        assert has_comment, name
        assert not public_may, name
        changes = name in (
            "pgraft_init",
            "pgraft_add_node",
            "pgraft_remove_node",
            "pgraft_replicate_entry",
            "pgraft_set_debug",
        )
        if name in FUNCTIONS and name != "pgraft_log_get_entry":
            assert monitor_may is not changes, name


def test_settings_are_real(running: Cluster) -> None:
    rows = running.nodes[0].sql(
        "SELECT name, unit, vartype, min_val, max_val, setting, short_desc <> '' FROM pg_settings"
        " WHERE name LIKE 'pgraft.%%'"
    )
    settings = {row[0]: row[1:] for row in rows}
    assert settings["pgraft.election_timeout"][:2] == ("ms", "integer")
    assert settings["pgraft.election_timeout"][4] == "1000"
    assert settings["pgraft.command_ring_size"][0] == "kB"
    assert settings["pgraft.ssl_enabled"][1] == "bool"
    assert len(settings) >= 20
    assert all(row[5] for row in settings.values())


@pytest.mark.skipif(not ACCEPTANCE.is_dir(), reason="no ../shared/acceptance: a clone of the project alone")
def test_acceptance_sql(running: Cluster) -> None:
    """shared/acceptance loads and runs as it stands, with the results that its README gives."""
    leader = running.wait_agreed()
    psql = str(pgcluster.bindir(running.major) / "psql")
    for node in running.nodes:
        for name in ("config_store.sql", "health_check.sql", "roles.sql"):
            node.value("SELECT count(*) FROM pg_class")
            pgcluster.run(psql, "-X", "-v", "ON_ERROR_STOP=1", "-d", node.dsn, "-f", str(ACCEPTANCE / name))
    query = """SELECT config_set('database.max_connections', '{"value": 100}'::jsonb)"""
    result = leader.value(query)
    assert (result["success"], result["version"], result["replicated"]) == (True, 1, True)
    last = leader.value("SELECT last_index FROM pgraft_log_get_stats()")
    entry = json.loads(leader.value("SELECT pgraft_log_get_entry(%s)", last))
    assert (entry["operation"], entry["key"]) == ("config_set", "database.max_connections")
    assert leader.value("SELECT config_get('database.max_connections')")["value"] == {"value": 100}
    with pytest.raises(psycopg.errors.RaiseException, match=f"Current leader: {leader.node_id}"):
        running.followers(leader)[0].value(query)
    assert leader.value("SELECT config_delete('database.max_connections')")["success"] is True
    health = {row[0]: row[1:] for row in leader.sql("SELECT * FROM pgraft_health_check()")}
    assert health["Leader Status"] == ("LEADER", "OK")
    assert health["Worker State"] == ("running", "OK")
    assert health["Log Commit Status"][1] == "OK"
    with leader.connect() as session:
        session.execute("SET ROLE pgraft_monitor")
        assert session.execute("SELECT pgraft_is_leader()").fetchone() == (True,)
        session.execute("RESET ROLE")
        session.execute("SET ROLE pgraft_admin")
        assert session.execute("SELECT pgraft_replicate_entry('as admin')").fetchone() == (True,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT pgraft_get_term()")


def test_an_unprivileged_role_can_do_nothing(running: Cluster) -> None:
    """Each function with NULLs, extremes and wrong types, as nobody in particular and as superuser."""
    leader = running.wait_agreed()
    numbers = ("NULL", "0", "-1", "2147483647", "-2147483648", "9223372036854775807", "'text'", "1.5")
    calls = [f"pgraft_log_get_entry({n})" for n in numbers]
    calls += [f"pgraft_remove_node({n})" for n in ("NULL", "0", "-1", "2147483647", "'x'")]
    calls += [
        f"pgraft_add_node({n}, {a}, {p})"
        for n in ("NULL", "0", "-5", "2147483647")
        for a in ("NULL", "''", "'a b'", "repeat('x', 300)", "E'new\\nline'")
        for p in ("NULL", "0", "-1", "65536", "7001")
        if not (n == "2147483647" and p == "7001" and a not in ("NULL", "''"))
    ]
    calls += ["pgraft_replicate_entry(NULL)", "pgraft_set_debug(NULL)", "pgraft_set_debug('maybe')"]
    calls += [f"{name}()" for name in FUNCTIONS if not name.endswith(("_node", "_entry", "_debug"))]
    with leader.connect() as session:
        session.execute("DROP ROLE IF EXISTS pgraft_stranger; CREATE ROLE pgraft_stranger")
        session.execute("SET ROLE pgraft_stranger")
        for call in calls:
            error = _error_of(session, call)
            # A strict function of a NULL constant is never called, so not refused either: it is NULL.
            # 42501: not allowed; 42 and 22 otherwise: not even a call.
            assert error is not None or "NULL" in call, call
            assert error is None or (error.sqlstate or "")[:2] in ("42", "22"), (call, error)
        session.execute("RESET ROLE")
        members = session.execute("SELECT count(*) FROM pgraft_get_nodes()").fetchone()
        for call in calls:
            error = _error_of(session, call)
            assert error is None or (error.sqlstate or "XX000") != "XX000", (call, error)
        assert session.execute("SELECT count(*) FROM pgraft_get_nodes()").fetchone() == members
        assert session.execute("SELECT pgraft_replicate_entry('still well')").fetchone() == (True,)


def _error_of(session: psycopg.Connection[Any], call: str) -> psycopg.Error | None:
    try:
        session.execute(f"SELECT {call}")
    except psycopg.Error as error:
        return error
    return None


def test_debug_logging_can_be_switched(running: Cluster) -> None:
    leader = running.wait_agreed()
    assert leader.value("SELECT pgraft_set_debug(true)") is True
    leader.value("SELECT pgraft_replicate_entry('debugged')")
    eventually(lambda: "DEBUG:  pgraft: node" in leader.log_text(), "debug lines in the log")
    assert leader.value("SELECT pgraft_set_debug(false)") is True


def test_the_library_is_quiet_where_nothing_runs(running: Cluster) -> None:
    """Another database of the same server may create the extension, too."""
    node = running.nodes[1]
    with node.connect() as session:
        session.execute("CREATE DATABASE other")
        with psycopg.connect(node.dsn.replace("dbname=postgres", "dbname=other"), autocommit=True) as other:
            other.execute("CREATE SCHEMA s")
            other.execute("CREATE EXTENSION pgraft SCHEMA s")
            row = other.execute("SELECT s.pgraft_get_leader(), s.pgraft_get_version()").fetchone()
            assert row is not None
            assert row[0] > 0
        session.execute("DROP DATABASE other")
