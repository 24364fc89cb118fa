"""Commands from real sessions, taken and answered by a stand-in for the worker."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgraft.shm.layout import CommandFlag, CommandKind, Outcome, SlotState
from tests.support.shim_harness import (
    ELECTION_TIMEOUT_MS,
    FakeRuntime,
    Reply,
    Server,
    Session,
    Taken,
    run,
    until,
)

MAYBE = "may or may not have been committed"
AT_ONCE_S = 2.0
"""What "at once" may take on a busy machine; far below the timeouts of the commands."""


def silent(_: Taken) -> list[Reply]:
    """Never answers."""
    return []


class Call:
    """A query in a thread of its own, with its result or its error."""

    def __init__(self, session: Session, query: str, *arguments: object) -> None:
        self.error: psycopg.Error | None = None
        self.result: Any = None
        self.took_s = 0.0
        self._thread = threading.Thread(target=self._run, args=(session, query, arguments))
        self._thread.start()

    def _run(self, session: Session, query: str, arguments: tuple[object, ...]) -> None:
        began = time.monotonic()
        try:
            self.result = session.value(query, *arguments)
        except psycopg.Error as error:
            self.error = error
        self.took_s = time.monotonic() - began

    def join(self) -> Call:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self


@contextlib.contextmanager
def waiting(pg: Server, runtime: FakeRuntime) -> Iterator[tuple[Session, Call]]:
    """A session that waits for the outcome of an entry that was taken."""
    runtime.handler = silent
    with pg.connect() as session:
        call = Call(session, "SELECT pgraft_replicate_entry('waits')")
        until(lambda: runtime.taken, "taken")
        yield session, call
        call.join()


def test_every_command_gets_through(pg: Server, runtime: FakeRuntime) -> None:
    with pg.connect() as session:
        session.value("SELECT set_config('pgraft.proposal_timeout', '3456ms', false)")
        assert session.value("SELECT pgraft_replicate_entry('hello')") is True
        assert session.value("SELECT pgraft_add_node(4, 'fd00::4', 7004)") is True
        assert session.value("SELECT pgraft_remove_node(3)") is True
        assert session.value("SELECT pgraft_transfer_leadership()") is True
        assert session.value("SELECT pgraft_transfer_leadership(2)") is True
        assert session.value("SELECT pgraft_set_debug(true)") is True
        assert session.value("SELECT pgraft_read_barrier()") == 7
        assert session.value("SELECT pgraft_take_snapshot()") == 7
        assert session.value("SELECT pgraft_init()") is True
    seen = [(taken.kind, taken.arg1, taken.arg2, taken.data, taken.timeout_ms) for taken in runtime.taken]
    assert seen == [
        (CommandKind.REPLICATE, 0, 0, b"hello", 3456),
        (CommandKind.ADD_NODE, 4, 7004, b"fd00::4", 60_000),
        (CommandKind.REMOVE_NODE, 3, 0, b"", 3456),
        (CommandKind.TRANSFER_LEADER, 0, 0, b"", 3456),
        (CommandKind.TRANSFER_LEADER, 2, 0, b"", 3456),
        (CommandKind.SET_DEBUG, 1, 0, b"", 3456),
        (CommandKind.READ_BARRIER, 0, 0, b"", 3456),
        (CommandKind.TAKE_SNAPSHOT, 0, 0, b"", 3456),
    ]
    assert runtime.owned_slots() == []


def test_init_asks_a_worker_that_does_not_run_yet(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.segment.worker["state"] = 1
    with pg18.connect() as session:
        assert session.value("SELECT pgraft_init()") is True
    assert [taken.kind for taken in runtime.taken] == [CommandKind.INIT]


def test_forwarding_is_a_flag_of_the_session(pg18: Server, runtime: FakeRuntime) -> None:
    with pg18.connect() as session:
        session.value("SELECT pgraft_replicate_entry('a')")
        session.value("SELECT set_config('pgraft.forward_proposals', 'on', false)")
        session.value("SELECT pgraft_replicate_entry('b')")
    assert [taken.flags for taken in runtime.taken] == [0, CommandFlag.FORWARD]


@pytest.mark.parametrize(
    ("outcome", "sqlstate"),
    [
        (Outcome.ERROR_STATE, "55000"),
        (Outcome.ERROR_ARGUMENT, "22023"),
        (Outcome.ERROR_UNKNOWN, "40003"),
        (Outcome.ERROR_INTERNAL, "XX000"),
        (99, "XX000"),
    ],
)
def test_error_outcomes(pg18: Server, runtime: FakeRuntime, outcome: int, sqlstate: str) -> None:
    runtime.handler = lambda _: [Reply(outcome, 0, "no: é\0why\0do this".encode())]
    with pg18.connect() as session:
        with pytest.raises(psycopg.Error) as caught:
            session.value("SELECT pgraft_replicate_entry('x')")
        assert caught.value.sqlstate == sqlstate
        if outcome != 99:
            said = caught.value.diag
            assert (said.message_primary, said.message_detail, said.message_hint) == (
                "no: é",
                "why",
                "do this",
            )
    assert runtime.owned_slots() == []


@pytest.mark.parametrize(
    ("payload", "message", "detail"),
    [
        (b"", "the command failed", None),
        (b"\0\0", "the command failed", None),
        (b"\xff\xfe\0\xc3", "??", "?"),
        (b"a\x01b" * 3000, "a?b" * 3000, None),
        (b"\0" * 16384, "the command failed", None),
    ],
    ids=["empty", "parts", "no utf-8", "control", "zeros"],
)
def test_error_texts_that_are_no_text(
    pg18: Server, runtime: FakeRuntime, payload: bytes, message: str, detail: str | None
) -> None:
    runtime.handler = lambda _: [Reply(Outcome.ERROR_STATE, 0, payload)]
    with pg18.connect() as session:
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
            session.value("SELECT pgraft_replicate_entry('x')")
        assert caught.value.diag.message_primary == message
        assert caught.value.diag.message_detail == detail


def test_progress_comes_as_notices(pg: Server, runtime: FakeRuntime) -> None:
    ready = threading.Event()

    def handler(command: Taken) -> list[Reply]:
        runtime.answer(command, Reply(Outcome.PROGRESS, 0, b"first"))
        ready.wait(5)
        return [Reply(Outcome.PROGRESS, 0, b"second"), Reply(Outcome.OK)]

    runtime.handler = handler
    with pg.connect() as session:
        call = Call(session, "SELECT pgraft_add_node(4, 'host', 1)")
        until(lambda: session.messages, "first notice")
        ready.set()
        assert call.join().result is True
        assert session.messages[0] == ("NOTICE", "first")


# --- texts and sizes ----------------------------------------------------------------------------------


def echo(runtime: FakeRuntime) -> Callable[[Taken], list[Reply]]:
    """Keeps the entry, and gives it back in pieces."""
    kept: list[bytes] = []

    def handler(command: Taken) -> list[Reply]:
        if command.kind == CommandKind.REPLICATE:
            kept.append(command.data)
            return [Reply(Outcome.OK, len(kept))]
        data = kept[command.arg1 - 1]
        return [Reply(Outcome.DATA, len(data), data[command.arg2 : command.arg2 + 16 * 1024])]

    return handler


@pytest.mark.parametrize(
    "text",
    ["", "x", "quote ' and \" and \\", "line\r\n\tend", "🐘 λ Ж 中", "é" * 5000, "a" * 4096, "b" * 16384],
    ids=["empty", "one", "quotes", "lines", "emoji", "long", "piece", "answer"],
)
def test_texts_come_back(pg: Server, runtime: FakeRuntime, text: str) -> None:
    runtime.handler = echo(runtime)
    with pg.connect() as session:
        assert session.value("SELECT pgraft_replicate_entry(%s)", text) is True
        assert session.value("SELECT pgraft_log_get_entry(1)") == text


def test_the_largest_entry_and_one_byte_more(pg: Server, runtime: FakeRuntime) -> None:
    runtime.handler = echo(runtime)
    text = "é" + "m" * (1024 * 1024 - 2)
    with pg.connect() as session:
        assert session.value("SELECT pgraft_replicate_entry(%s)", text) is True
        assert session.value("SELECT pgraft_log_get_entry(1)") == text
        before = len(runtime.taken)
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="1048577 bytes"):
            session.value("SELECT pgraft_replicate_entry(%s)", text + "m")
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            session.value("SELECT pgraft_replicate_entry(repeat('x', 200000000))")
        assert len(runtime.taken) == before


def test_a_smaller_limit_of_the_node(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.segment.header["max_entry_bytes"] = 1024
    with pg18.connect() as session:
        assert session.value("SELECT pgraft_replicate_entry(repeat('x', 1024))") is True
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="1025 bytes"):
            session.value("SELECT pgraft_replicate_entry(repeat('x', 1025))")


def test_an_entry_without_data_is_null(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.handler = lambda _: [Reply(Outcome.NULL_ENTRY)]
    with pg18.connect() as session:
        assert session.value("SELECT pgraft_log_get_entry(1)") is None


@pytest.mark.parametrize(
    "reply",
    [
        Reply(Outcome.OK),
        Reply(Outcome.DATA, 10, b""),
        Reply(Outcome.DATA, 2**60, b"x"),
        Reply(Outcome.DATA, 1, b"more than one"),
    ],
)
def test_pieces_that_make_no_sense(pg18: Server, runtime: FakeRuntime, reply: Reply) -> None:
    runtime.handler = lambda _: [reply]
    with pg18.connect() as session, pytest.raises(psycopg.errors.InternalError_, match="makes no sense"):
        session.value("SELECT pgraft_log_get_entry(1)")
    assert runtime.owned_slots() == []


def test_text_of_an_entry_that_is_not_utf8(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.handler = lambda _: [Reply(Outcome.DATA, 3, b"a\xff\0")]
    with pg18.connect() as session, pytest.raises(psycopg.errors.CharacterNotInRepertoire):
        session.value("SELECT pgraft_log_get_entry(1)")


# --- ends of the wait -----------------------------------------------------------------------------------


def check_interrupted(call: Call, sqlstate: str) -> None:
    """The error has that SQLSTATE, came at once, and says that the outcome is open."""
    assert call.error is not None
    assert call.error.sqlstate == sqlstate
    assert MAYBE in (call.error.diag.context or "")
    assert "pgraft_log_get_entry" in (call.error.diag.context or "")


def test_cancel(pg: Server, runtime: FakeRuntime) -> None:
    with waiting(pg, runtime) as (session, call):
        began = time.monotonic()
        with pg.connect() as other:
            other.value("SELECT pg_cancel_backend(%s)", session.pid)
        call.join()
        assert time.monotonic() - began < AT_ONCE_S
        check_interrupted(call, "57014")
        assert runtime.owned_slots() == []
        runtime.handler = lambda _: [Reply(Outcome.OK)]
        assert session.value("SELECT pgraft_replicate_entry('next')") is True


def test_statement_timeout(pg: Server, runtime: FakeRuntime) -> None:
    runtime.handler = silent
    with pg.connect() as session:
        session.value("SELECT set_config('statement_timeout', '200ms', false)")
        call = Call(session, "SELECT pgraft_replicate_entry('x')").join()
        check_interrupted(call, "57014")
        assert 0.2 <= call.took_s < AT_ONCE_S


def test_terminate(pg: Server, runtime: FakeRuntime) -> None:
    with waiting(pg, runtime) as (session, call):
        with pg.connect() as other:
            other.value("SELECT pg_terminate_backend(%s)", session.pid)
        call.join()
        check_interrupted(call, "57P01")
        assert call.took_s < AT_ONCE_S + 1
        until(lambda: runtime.owned_slots() == [], "slot given back")


def test_an_interrupt_before_the_command_was_handed_over(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.segment.worker["command_tail"] = 0
    with runtime.paused():
        runtime.segment.command_head().store(1024 * 1024)
        with pg18.connect() as session:
            session.value("SELECT set_config('statement_timeout', '150ms', false)")
            call = Call(session, "SELECT pgraft_replicate_entry('x')").join()
            assert call.error is not None
            assert call.error.sqlstate == "57014"
            assert MAYBE not in (call.error.diag.context or "")
        runtime.segment.command_head().store(0)  # the worker that goes on finds the ring empty


def test_no_answer_within_the_time(pg18: Server, runtime: FakeRuntime) -> None:
    runtime.handler = silent
    with pg18.connect() as session:
        session.value("SELECT set_config('pgraft.proposal_timeout', '100ms', false)")
        call = Call(session, "SELECT pgraft_replicate_entry('x')").join()
        assert call.error is not None
        assert call.error.sqlstate == "40003"
        assert MAYBE in (call.error.diag.message_detail or "")
        call = Call(session, "SELECT pgraft_log_get_entry(1)").join()
        assert call.error is not None
        assert call.error.sqlstate == "55000"


def test_a_worker_that_dies_meanwhile(pg: Server, runtime: FakeRuntime) -> None:
    with waiting(pg, runtime) as (_, call):
        runtime.beating = False
        began = time.monotonic()
        call.join()
        assert call.error is not None
        assert call.error.sqlstate == "40003"
        assert "went away" in str(call.error)
        assert time.monotonic() - began < 3 * ELECTION_TIMEOUT_MS / 1000 + AT_ONCE_S


def test_a_segment_that_is_retired_meanwhile(pg18: Server, runtime: FakeRuntime) -> None:
    with waiting(pg18, runtime) as (_, call):
        runtime.segment.header["retired"] = 1
        call.join()
        assert call.error is not None
        assert call.error.sqlstate == "40003"


def test_the_wait_event(pg: Server, runtime: FakeRuntime) -> None:
    with waiting(pg, runtime) as (session, _), pg.connect() as other:
        query = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
        version = other.connection.info.server_version
        expected = "PgraftCommit" if version >= 170000 else "Extension"
        assert other.value(query, session.pid) == expected
        other.value("SELECT pg_cancel_backend(%s)", session.pid)


# --- the ring and the slots -----------------------------------------------------------------------------


@pytest.fixture
def small(pg18: Server) -> Iterator[FakeRuntime]:
    """A runtime with the smallest ring."""
    running = FakeRuntime(pg18.data_dir, ring_bytes=16 * 1024).start()
    yield running
    running.close()


def pgbench(pg: Server, script: str, clients: int, count: int) -> subprocess.CompletedProcess[str]:
    """Run a script in many sessions."""
    path = pg.root / "script.sql"
    path.write_text(script)
    path.chmod(0o644)
    return run(
        pg.bin / "pgbench", "-n", "-h", pg.root, "-p", pg.port, "-U", "postgres", "-f", path, "-c", clients,
        "-j", "2", "-t", count, "-D", "pid=0", "postgres",
    )  # fmt: skip


def test_two_hundred_sessions_through_the_smallest_ring(pg18: Server, small: FakeRuntime) -> None:
    # The stand-in for the worker shares its processor with 200 backends: a beat may come late.
    small.segment.header["election_timeout_ms"] = 60_000
    script = (
        "SELECT pgraft_replicate_entry(pg_backend_pid() || ' ' || clock_timestamp() || repeat(' pad', 100)),"
        " 1 / pgraft_replicate_entry(repeat('y', 6000))::int;\n"
    )
    done = pgbench(pg18, script, 200, 5)
    assert "number of transactions actually processed: 1000/1000" in done.stdout
    assert "number of failed transactions: 0 " in done.stdout
    texts = [taken.data for taken in small.taken if taken.data[0] != ord("y")]
    assert len(texts) == len(set(texts)) == 1000
    assert len(small.taken) == 2000
    assert small.owned_slots() == []


def test_a_backend_that_is_killed_blocks_nobody(pg18: Server, small: FakeRuntime) -> None:
    """Killed at random under load; the server restarts, and the ring and the slots go on."""
    rng = random.Random(7)
    for _ in range(3):
        busy = [psycopg.connect(pg18.dsn(), autocommit=True) for _ in range(6)]
        pids = [connection.info.backend_pid for connection in busy]
        loop = "DO $$BEGIN LOOP PERFORM pgraft_replicate_entry(repeat('z', 9000)); END LOOP; END$$"
        threads = [threading.Thread(target=_until_error, args=(one, loop)) for one in busy]
        before = len(small.taken)
        for thread in threads:
            thread.start()
        until(lambda before=before: len(small.taken) > before + 20, "load")
        time.sleep(rng.random() / 50)
        os.kill(rng.choice(pids), signal.SIGKILL)
        for thread in threads:
            thread.join(20)
        for connection in busy:
            connection.close()
        until(lambda: _accepts(pg18), "the server is back")
        with pg18.connect() as session:
            assert session.value("SELECT pgraft_replicate_entry('after')") is True


def _until_error(connection: psycopg.Connection[Any], query: str) -> None:
    with contextlib.suppress(psycopg.Error):
        connection.execute(query)


def _accepts(pg: Server) -> bool:
    try:
        psycopg.connect(pg.dsn()).close()
    except psycopg.OperationalError:
        return False
    return True


def test_what_the_slot_says_while_its_backend_waits(pg18: Server, runtime: FakeRuntime) -> None:
    """A new worker goes by this to tell what an earlier one took."""
    with waiting(pg18, runtime) as (session, _):
        slot = runtime.segment.slot(runtime.taken[0].slot)
        assert slot.owner_pid == session.pid
        assert slot.request_no == runtime.taken[0].number
        assert slot.backend_word("state") == SlotState.SUBMITTED
        assert slot.backend_word("submitted_pos") == runtime.segment.worker["command_tail"]
        with pg18.connect() as other:
            other.value("SELECT pg_cancel_backend(%s)", session.pid)
    assert slot.backend_word("state") == SlotState.FREE


def test_a_full_ring_makes_the_session_wait(pg18: Server, small: FakeRuntime) -> None:
    """It asks for a ring when there is room, and goes on at once."""
    with pg18.connect() as session, small.paused():
        call = Call(session, "SELECT pgraft_replicate_entry(repeat('w', 100000))")
        until(small.owned_slots, "slot")
        slot = small.segment.slot(small.owned_slots()[0])
        until(lambda: slot.backend_word("want_space"), "want_space")
        assert slot.backend_word("state") == SlotState.PREPARING
    call.join()
    assert call.result is True
    assert small.taken[-1].data == b"w" * 100_000


def test_slots_of_dead_owners_are_taken_over(pg18: Server) -> None:
    few = FakeRuntime(pg18.data_dir, slot_count=2).start()
    try:
        for number in range(2):
            few.segment.slot(number).words[0] = (2**22 + number << 32) | 1
        with pg18.connect() as session:
            assert session.value("SELECT pgraft_replicate_entry('x')") is True
            # Both taken by the living: a clear error after the time of the command.
            with pg18.connect() as other:
                for number in range(2):
                    few.segment.slot(number).words[0] = (other.pid << 32) | 1
                session.value("SELECT set_config('pgraft.proposal_timeout', '100ms', false)")
                with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="slots"):
                    session.value("SELECT pgraft_replicate_entry('x')")
    finally:
        few.close()


def test_a_lock_whose_owner_died_is_taken_over(pg18: Server, runtime: FakeRuntime, tmp_path: Path) -> None:
    """A process takes the ring's lock and is killed with it."""
    source = tmp_path / "holder.c"
    source.write_text(
        "#include <fcntl.h>\n#include <pthread.h>\n#include <stdlib.h>\n#include <sys/mman.h>\n"
        "#include <unistd.h>\n"
        "int main(int c, char **v) { int fd = shm_open(v[1], O_RDWR, 0);\n"
        " char *p = mmap(0, atol(v[2]), PROT_READ|PROT_WRITE, MAP_SHARED, fd, 0);\n"
        " if (pthread_mutex_lock((pthread_mutex_t *) (p + atol(v[3])))) return 1;\n"
        ' write(1, "held", 4); pause(); }\n'
    )
    subprocess.run(["gcc", "-w", str(source), "-o", str(tmp_path / "holder")], check=True, timeout=60)
    header = runtime.segment.header
    command = [tmp_path / "holder", f"/{runtime.name}", header["segment_bytes"], header["command_offset"]]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.read(4) == b"held"
        with pg18.connect() as session:
            session.value("SELECT set_config('statement_timeout', '100ms', false)")
            with pytest.raises(psycopg.errors.QueryCanceled):
                session.value("SELECT pgraft_replicate_entry('x')")
            holder.kill()
            holder.wait()
            assert session.value("SELECT pgraft_replicate_entry('x')") is True
