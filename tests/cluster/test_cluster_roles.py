"""Who may do what (SPEC section 1): every function in every role; and whose the files are, all of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.support import pgcluster
from tests.support.pgcluster import Node

pytestmark = pytest.mark.cluster

READERS = {
    "pgraft_is_leader": "()",
    "pgraft_get_leader": "()",
    "pgraft_get_term": "()",
    "pgraft_get_nodes": "()",
    "pgraft_get_learners": "()",
    "pgraft_get_cluster_status": "()",
    "pgraft_log_get_stats": "()",
    "pgraft_log_get_replication_status": "()",
    "pgraft_get_worker_state": "()",
    "pgraft_get_version": "()",
    "pgraft_log_get_entry": "(1)",
    "pgraft_get_network_stats": "()",
    "pgraft_read_barrier": "()",
}
CHANGERS = {
    "pgraft_init": "()",
    "pgraft_add_node": "(1, '127.0.0.1', {port})",
    "pgraft_remove_node": "(99)",
    "pgraft_update_node": "(99, '127.0.0.1', {port})",
    "pgraft_replicate_entry": "('by a role')",
    "pgraft_set_debug": "(false)",
    "pgraft_transfer_leadership": "(1)",
    "pgraft_take_snapshot": "()",
}
ADMINS = ("pgraft_add_node", "pgraft_remove_node", "pgraft_replicate_entry", "pgraft_init")
MONITORS = (
    "pgraft_is_leader",
    "pgraft_get_leader",
    "pgraft_get_cluster_status",
    "pgraft_get_nodes",
    "pgraft_get_term",
    "pgraft_log_get_stats",
    "pgraft_log_get_replication_status",
)
ROLES: dict[str, frozenset[str]] = {
    "nobody_special": frozenset(),
    "of_pg_monitor": frozenset(READERS),
    "pgraft_admin": frozenset(ADMINS),
    "pgraft_monitor": frozenset(MONITORS),
    "admin_and_monitor": frozenset({*ADMINS, *MONITORS}),
}
"""Role: the functions that it may call, and no other."""
_OUT_OF_NOTHING = """
CREATE ROLE nobody_special LOGIN;
CREATE ROLE of_pg_monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE pgraft_admin LOGIN;   GRANT EXECUTE ON FUNCTION pgraft_add_node, pgraft_remove_node,
                            pgraft_replicate_entry, pgraft_init TO pgraft_admin;
CREATE ROLE pgraft_monitor LOGIN; GRANT EXECUTE ON FUNCTION pgraft_is_leader, pgraft_get_leader,
                            pgraft_get_cluster_status, pgraft_get_nodes, pgraft_get_term,
                            pgraft_log_get_stats, pgraft_log_get_replication_status TO pgraft_monitor;
CREATE ROLE admin_and_monitor LOGIN IN ROLE pgraft_admin, pgraft_monitor;
CREATE DATABASE theirs OWNER nobody_special;
"""


@pytest.fixture(scope="module", params=[16, 18])
def node(request: pytest.FixtureRequest, templates: dict[int, Path]) -> Iterator[Node]:
    """One node with TLS, started by somebody who hides nothing (umask 0), and the roles."""
    before = os.umask(0)
    try:
        with pgcluster.cluster(templates[request.param], 1, request.param, tls=True) as made:
            only = made.nodes[0]
            with only.connect() as session:
                for statement in _OUT_OF_NOTHING.split(";"):
                    session.execute(statement)  # type: ignore[call-overload]
            yield only
    finally:
        os.umask(before)


def _as(node: Node, role: str, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
    """A session of that role, which cannot go back to being a superuser."""
    dsn = node.dsn.replace(f"user={node.cluster.superuser}", f"user={role}")
    return psycopg.connect(dsn.replace("dbname=postgres", f"dbname={database}"), autocommit=True)


def _try(session: psycopg.Connection[tuple[object, ...]], statement: str) -> str:
    """The SQLSTATE that it ends with, 00000 when it works."""
    try:
        session.execute(statement)  # type: ignore[call-overload]
    except psycopg.Error as error:
        return error.sqlstate or "?"
    return "00000"


def test_every_function_is_decided_on(node: Node) -> None:
    rows = node.sql(
        "SELECT p.proname, p.prosecdef FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'"
        " JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pgraft'"
    )
    assert {name for name, _ in rows} == {*READERS, *CHANGERS}
    assert not any(runs_as_owner for _, runs_as_owner in rows)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_call_what_is_its_own_and_nothing_else(node: Node, role: str) -> None:
    entries = "SELECT last_index FROM pgraft_log_get_stats()"
    before = node.value(entries)
    with _as(node, role) as session:
        for name, words in (READERS | CHANGERS).items():
            outcome = _try(session, f"SELECT {name}{words.format(port=node.raft_port)}")
            if name not in ROLES[role]:
                assert outcome == "42501", name
            elif name in ("pgraft_remove_node", "pgraft_update_node"):
                assert outcome == "22023", name  # it was asked, and knows no node 99
            else:
                assert outcome == "00000", name
    may_write = "pgraft_replicate_entry" in ROLES[role]
    assert node.value(entries) == before + may_write


def test_there_is_no_way_around(node: Node) -> None:
    ways = [
        "GRANT EXECUTE ON FUNCTION pgraft_is_leader TO nobody_special",
        "ALTER FUNCTION pgraft_is_leader() OWNER TO nobody_special",
        "ALTER FUNCTION pgraft_is_leader() SECURITY DEFINER",
        "DROP EXTENSION pgraft",
        "ALTER EXTENSION pgraft SET SCHEMA public",
        "LOAD 'pgraft'",
        "SET ROLE pg_monitor",
        "CREATE FUNCTION pg_temp.mine() RETURNS boolean LANGUAGE c AS 'pgraft', 'pgraft_is_leader'",
        "ALTER SYSTEM SET pgraft.data_dir = '/tmp'",
        "SHOW pgraft.data_dir",
    ]
    for role in ("nobody_special", "pgraft_admin"):
        with _as(node, role) as session:
            for way in ways:
                assert _try(session, way) == "42501", way
            assert session.execute("SELECT current_setting('pgraft.name')").fetchone() == ("node1",)
            query = "SELECT count(*) FROM pg_settings WHERE name = 'pgraft.data_dir'"
            assert session.execute(query).fetchone() == (0,)
            # What is PostgreSQL's start to decide nobody changes in a session; only waits are one's own.
            for name in ("data_dir", "ssl_enabled", "ssl_key_file", "listen_address", "cluster_id"):
                assert _try(session, f"SET pgraft.{name} = 'x'") == "55P02", name
            assert _try(session, "SET pgraft.proposal_timeout = '1s'") == "00000"
            assert _try(session, "SET pgraft.invented = 'x'") == "42602"
    with _as(node, "nobody_special", "theirs") as session:
        # The owner of a database, who may create what is trusted there.
        assert _try(session, "CREATE EXTENSION pgraft") == "42501"
    with _as(node, "of_pg_monitor") as session:
        assert _try(session, "SHOW pgraft.data_dir") == "00000"


def test_where_it_is_not_preloaded_no_session_chooses_the_segment(node: Node) -> None:
    """Settings of postmaster context are placeholders then, which anyone can set."""
    if node.cluster.major != 18:
        pytest.skip("once is enough")
    node.stop()
    node.start("-o", "-c shared_preload_libraries=")
    node.cluster.wait_agreed()
    try:
        for role in ("of_pg_monitor", "pgraft_monitor"):
            for when in ("before the library is loaded", "after"):
                with _as(node, role) as session:
                    warnings: list[str] = []
                    session.add_notice_handler(lambda n, w=warnings: w.append(n.message_primary or ""))  # type: ignore[misc]
                    if when == "after":
                        session.execute("SELECT pgraft_get_leader()")
                        assert _try(session, "SET pgraft.data_dir = '/tmp/theirs'") == "42501"
                    else:
                        assert _try(session, "SET pgraft.data_dir = '/tmp/theirs'") == "00000"
                    assert session.execute("SELECT pgraft_get_leader()").fetchone() == (1,)
                    dropped = [text for text in warnings if "permission denied to set parameter" in text]
                    assert bool(dropped) is (when != "after"), warnings
        with node.connect() as session:
            session.execute("ALTER ROLE pgraft_monitor SET pgraft.data_dir = '/tmp/theirs'")
            session.execute("SET pgraft.data_dir = '/tmp/theirs'")  # a superuser may
            assert session.execute("SELECT pgraft_get_leader()").fetchone() == (0,)
    finally:
        node.execute("ALTER ROLE pgraft_monitor RESET pgraft.data_dir")
        node.stop()
        node.start()
        node.cluster.wait_agreed()


# --- files -------------------------------------------------------------------------------------------------

_ALLOWED = {stat.S_IFREG: 0o600, stat.S_IFDIR: 0o700, stat.S_IFIFO: 0o600, stat.S_IFSOCK: 0o600}


def _wrong(path: Path, owner: int) -> str:
    """What is wrong with whose it is and who may read it; empty when nothing is."""
    found = path.lstat()
    kind, mode = stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode)
    if path.suffix == ".crt" and mode == 0o644:
        return ""  # certificates are for showing
    if found.st_uid != owner:
        return f"{path} belongs to {found.st_uid}"
    return "" if mode == _ALLOWED.get(kind, -1) else f"{path} has mode {found.st_mode:o}"


def _everything(node: Node) -> set[Path]:
    segment = Path("/dev/shm", node.segment_name)
    below = (node.raft_dir, node.cluster.certificates)
    return {segment, node.log, *below, *(path for root in below for path in root.rglob("*"))}


def test_all_files_are_the_servers_users_alone(node: Node) -> None:
    with node.connect() as session:
        for number in range(20):
            session.execute("SELECT pgraft_replicate_entry(%s)", (f"entry {number}",))
        session.execute("SELECT pgraft_take_snapshot()")
        session.execute("SELECT pgraft_set_debug(false)")
        owner = node.pgdata.stat().st_uid
        found = _everything(node)
        kinds = {stat.S_IFMT(path.lstat().st_mode) for path in found}
        assert kinds == {stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO}
        assert len(found) > 40
        assert [wrong for path in found if (wrong := _wrong(path, owner))] == []
        # What the processes hold open is among it, or no file of ours; nobody listens on a unix socket.
        for part in ("supervisor", "worker", "network"):
            process = psutil.Process(node.pid(part))
            assert process.uids().effective == owner
            for link in Path(f"/proc/{process.pid}/fd").iterdir():
                target = Path(os.readlink(link))
                if target.is_relative_to(node.cluster.root) or target.is_relative_to("/dev/shm"):
                    assert target in found, (part, target)
            assert [one.laddr for one in process.net_connections("unix") if one.laddr] == []
