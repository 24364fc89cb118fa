"""Whatever stands in the segment, PostgreSQL goes on. Seeded; the seed is in the test's name."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pgraft.shm import layout, place
from pgraft.shm.doorbell import WORKER_BELL
from pgraft.shm.words import now_ns
from tests.support.shim_harness import FakeRuntime, Reply, Server, Session, Taken, give, until

READERS = (
    "pgraft_is_leader", "pgraft_get_leader", "pgraft_get_term", "pgraft_get_nodes", "pgraft_get_learners",
    "pgraft_get_cluster_status", "pgraft_log_get_stats", "pgraft_log_get_replication_status",
    "pgraft_get_worker_state", "pgraft_get_version", "pgraft_get_network_stats",
)  # fmt: skip
COMMANDS = ("pgraft_replicate_entry('x')", "pgraft_log_get_entry(1)", "pgraft_init()")
EXTREMES = (0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)
ROUNDS = 60


@contextlib.contextmanager
def unharmed(pg: Server) -> Iterator[None]:
    """No backend crashed meanwhile, which would have restarted them all."""
    before = len(pg.log())
    yield
    with pg.connect() as session:
        assert session.value("SELECT 1") == 1
    said = pg.log()[before:]
    assert "terminated by signal" not in said
    assert "PANIC" not in said
    assert "TRAP" not in said


def call_all(session: Session, rng: random.Random) -> None:
    """Each reader must answer, in its own time on a busy machine; a command may fail in any orderly way."""
    session.value("SELECT set_config('statement_timeout', '10s', false)")
    for name in READERS:
        session.value(f"SELECT count(*) FROM {name}()")
    session.value("SELECT set_config('statement_timeout', '40ms', false)")
    with contextlib.suppress(psycopg.Error):
        session.value(f"SELECT {rng.choice(COMMANDS)}")
    assert session.connection.broken is False


def value(rng: random.Random, size: int) -> int:
    """A word: an extreme, a near miss of the segment's size, a time, or anything."""
    choices: tuple[Callable[[], int], ...] = (
        lambda: rng.choice(EXTREMES),
        lambda: size + rng.randint(-64, 64),
        lambda: max(now_ns() + rng.randint(-(10**10), 10**10), 0),
        lambda: rng.getrandbits(64),
    )
    return rng.choice(choices)()


def regions(runtime: FakeRuntime) -> list[tuple[int, int]]:
    """What is fuzzed, as (offset, bytes): everything that the shim reads, but the ring's lock."""
    header = runtime.segment.header
    command = header["command_offset"]
    return [
        (0, len(layout.HEADER_WORDS) * 8),
        (1024, 3072),
        (layout.WORKER_PAGE, len(layout.WORKER_WORDS) * 8),
        (layout.STATUS_OFFSET, 2 * layout.STATUS_COPY_BYTES),
        (header["members_offset"], 2 * layout.MEMBERS_COPY_BYTES),
        (command + layout.LOCK_BYTES, 64),
        (header["slots_offset"], 4 * layout.SLOT_BYTES),
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_garbage_in_every_word(pg: Server, runtime: FakeRuntime, seed: int) -> None:
    rng = random.Random(seed)
    runtime.stop()
    size = runtime.segment.size
    words = runtime.segment.words_at(0, size // 8 * 8)
    places = regions(runtime)
    kept = [bytes(runtime.segment.bytes_at(*place)) for place in places]
    with unharmed(pg), pg.connect() as session:
        session.value("SELECT set_config('pgraft.proposal_timeout', '100', false)")
        session.value("SELECT set_config('statement_timeout', '40ms', false)")
        for _ in range(ROUNDS):
            for place, copy in zip(places, kept, strict=True):
                runtime.segment.bytes_at(*place)[:] = copy
            runtime.segment.worker["beat_ns"] = now_ns()
            offset, length = rng.choice(places)
            for _ in range(rng.choice((1, 1, 2, 5, 50))):
                words[(offset + rng.randrange(length)) // 8] = value(rng, size)
            call_all(session, rng)
        for place, copy in zip(places, kept, strict=True):
            runtime.segment.bytes_at(*place)[:] = copy


@pytest.mark.parametrize("seed", [11, 12])
def test_blocks_with_right_checksums_and_wrong_contents(
    pg18: Server, runtime: FakeRuntime, seed: int
) -> None:
    """The checksum fits, and the counts, lengths and ids within are anything."""
    rng = random.Random(seed)
    blocks = (
        (layout.STATUS_OFFSET, layout.STATUS_COPY_BYTES, "status_selector"),
        (runtime.segment.header["members_offset"], layout.MEMBERS_COPY_BYTES, "members_selector"),
    )
    with unharmed(pg18), pg18.connect() as session:
        session.value("SELECT set_config('statement_timeout', '1s', false)")
        for _ in range(ROUNDS):
            for offset, size, selector in blocks:
                used = rng.choice((size, rng.randrange(16, size)))
                body = bytearray(rng.choice((rng.randbytes(used - 8), bytes(used - 8))))
                body[:8] = used.to_bytes(8, "little")
                for _ in range(20):
                    at = rng.choice((rng.randrange(8, 128), rng.randrange(8, max(used - 16, 9)))) // 8 * 8
                    body[at : at + 8] = struct.pack("<Q", value(rng, size))
                del body[used - 8 :]
                copy = runtime.segment.worker[selector] & 1
                whole = struct.pack("<Q", zlib.crc32(body)) + body
                runtime.segment.bytes_at(offset + copy * size, len(whole))[:] = whole
            call_all(session, rng)


def test_an_address_longer_than_its_room(pg18: Server, runtime: FakeRuntime) -> None:
    row = {"node_id": 9, "port": 1, "is_leaving": 0, "address_bytes": 2**40}
    words = bytearray(b"a" * layout.MEMBER_ROW_BYTES)
    for name, number in row.items():
        struct.pack_into("<Q", words, layout.MEMBER_ROW_WORDS[name] * 8, number)
    body = bytearray(b"a" * (layout.MEMBERS_COPY_BYTES - 8))
    struct.pack_into("<QQQQ", body, 0, layout.MEMBERS_COPY_BYTES, 1, 1, 0)
    at = layout.MEMBERS_ROWS_OFFSET - 8
    body[at : at + len(words)] = words
    selected = runtime.segment.worker["members_selector"] & 1
    offset = runtime.segment.header["members_offset"] + selected * layout.MEMBERS_COPY_BYTES
    whole = struct.pack("<Q", zlib.crc32(body)) + body
    runtime.segment.bytes_at(offset, len(whole))[:] = whole
    with pg18.connect() as session:
        rows = session.rows("SELECT address FROM pgraft_get_nodes()")
        assert rows == [("a" * layout.ADDRESS_BYTES_MAX,)]


@pytest.mark.parametrize("seed", [21])
def test_garbage_while_sessions_read(pg18: Server, runtime: FakeRuntime, seed: int) -> None:
    """Words change under the readers' hands; the lock and the ring's contents are left alone."""
    rng = random.Random(seed)
    runtime.stop()
    size = runtime.segment.size
    words = runtime.segment.words_at(0, size // 8 * 8)
    places = regions(runtime)
    script = pg18.root / "fuzz.sql"
    calls = "".join(f"SELECT count(*) FROM {name}();\n" for name in READERS)
    script.write_text("SET client_min_messages = error;\n" + calls)
    script.chmod(0o644)
    command = [pg18.bin / "pgbench", "-n", "-h", pg18.root, "-U", "postgres", "-f", script, "-c", 4, "-T", 2]
    with (
        unharmed(pg18),
        subprocess.Popen([*map(str, command), "postgres"], stdout=subprocess.PIPE, text=True) as bench,
    ):
        while bench.poll() is None:
            for _ in range(100):
                offset, length = rng.choice(places)
                words[(offset + rng.randrange(length)) // 8] = value(rng, size)
            runtime.segment.header["retired"] = 0
            time.sleep(0.0005)
        assert bench.stdout is not None
        assert "number of failed transactions: 0 " in bench.stdout.read()


KIND_AT = 16
"""Where glibc keeps a mutex's kind, on 64-bit machines."""


def wrong_locks(kept: bytes, rng: random.Random) -> Iterator[bytes]:
    """Noise in all of it, in single words, and every kind of lock with an owner that is not there."""
    for _ in range(ROUNDS // 2):
        yield rng.randbytes(len(kept))
        at = rng.randrange(10) * 4
        yield kept[:at] + rng.choice((rng.randbytes(4), b"\0\0\0\x40", b"\xff\xff\xff\x7f")) + kept[at + 4 :]
    dead = struct.pack("<IIII", 2**22 + 1, 1, 2**22 + 1, 1)
    for kind in range(256):
        yield dead + struct.pack("<I", kind) + kept[KIND_AT + 4 :]


@pytest.mark.parametrize("seed", [31])
def test_garbage_in_the_lock(pg18: Server, runtime: FakeRuntime, seed: int) -> None:
    rng = random.Random(seed)
    lock = runtime.segment.bytes_at(runtime.segment.header["command_offset"], layout.LOCK_BYTES)
    kept = bytes(lock)
    with unharmed(pg18), pg18.connect() as session:
        session.value("SELECT set_config('statement_timeout', '30ms', false)")
        for wrong in wrong_locks(kept, rng):
            lock[:] = wrong
            with contextlib.suppress(psycopg.Error):
                session.value("SELECT pgraft_replicate_entry('x')")
            assert session.connection.broken is False
        lock[:] = kept
        session.value("SELECT set_config('statement_timeout', '10s', false)")
        assert session.value("SELECT pgraft_replicate_entry('x')") is True


@pytest.mark.parametrize("seed", [41])
def test_answers_that_are_garbage(pg18: Server, runtime: FakeRuntime, seed: int) -> None:
    rng = random.Random(seed)

    def handler(_: Taken) -> list[Reply]:
        size = rng.choice((0, 1, 100, 16 * 1024))
        return [Reply(rng.choice((*range(1, 10), 2**64 - 1)), rng.choice(EXTREMES), rng.randbytes(size))]

    runtime.handler = handler
    with unharmed(pg18), pg18.connect() as session:
        session.value("SELECT set_config('statement_timeout', '50ms', false)")
        for _ in range(200):
            with contextlib.suppress(psycopg.Error):
                session.value(f"SELECT {rng.choice(COMMANDS)}")
            assert session.connection.broken is False


@pytest.mark.parametrize("length", [16 * 1024 + 1, 2**31, 2**40, 2**64 - 1])
def test_answers_longer_than_their_slot(pg18: Server, runtime: FakeRuntime, length: int) -> None:
    def handler(taken: Taken) -> list[Reply]:
        words = runtime.segment.slot(taken.slot).words
        number = layout.SLOT_WORKER_WORDS
        words[number["answered_no"]] = taken.number
        words[number["outcome"]] = layout.Outcome.ERROR_STATE
        words[number["payload_bytes"]] = length
        words[number["answer_no"]] += 1
        return []

    runtime.handler = handler
    with unharmed(pg18), pg18.connect() as session:
        session.value("SELECT set_config('statement_timeout', '150ms', false)")
        with pytest.raises(psycopg.errors.QueryCanceled):
            session.value("SELECT pgraft_replicate_entry('x')")


# --- files that are not what they should be -------------------------------------------------------------


def test_segments_that_are_none(pg: Server, runtime: FakeRuntime) -> None:
    """Missing, empty, short, sparse, foreign: not mapped, and the reason is given."""
    runtime.stop()
    name_file = runtime.run_dir / "segment"
    path = place.SHM_DIR / f"{runtime.name}.other"

    def refused(why: str) -> None:
        with pg.connect() as session:
            assert session.value("SELECT pgraft_is_leader()") is False
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
                session.value("SELECT pgraft_replicate_entry('x')")
            assert why in (caught.value.diag.message_detail or "")

    with unharmed(pg):
        for text in ("", "\n", "../../etc/passwd", "/", "x" * 5000, "no.such.segment", "\0\0"):
            name_file.write_text(text)
            refused("")
        name_file.write_text(path.name)
        try:
            for make, why in (
                (lambda: path.write_bytes(b""), "not completely there"),
                (lambda: path.write_bytes(b"x" * 100), "not completely there"),
                (lambda: path.write_bytes(b"x" * 8192), "no complete pgraft header"),
                (lambda: _sparse(path, runtime), "not completely there"),
                (lambda: _short(path, runtime), "makes no sense"),
                (lambda: _version(path, runtime), "another layout version"),
            ):
                path.unlink(missing_ok=True)
                make()
                path.chmod(0o600)
                give(path)
                refused(why)
            if os.geteuid() == 0:
                path.unlink()
                shutil.copyfile(place.SHM_DIR / runtime.name, path)
                path.chmod(0o666)
                refused("another operating system user")
        finally:
            path.unlink(missing_ok=True)


def _refusal(pg: Server) -> str:
    """Why a session that is new does not map the segment."""
    with pg.connect() as session:
        session.value("SELECT set_config('statement_timeout', '10s', false)")
        assert session.value("SELECT pgraft_is_leader()") is False
        assert session.value("SELECT pgraft_get_leader()") == 0
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState) as caught:
            session.value("SELECT pgraft_replicate_entry('x')")
        return caught.value.diag.message_detail or ""


def test_a_segment_that_others_may_reach_is_not_mapped(pg: Server, runtime: FakeRuntime) -> None:
    path = place.SHM_DIR / runtime.name
    other = place.SHM_DIR / f"{runtime.name}.other"
    with unharmed(pg):
        path.chmod(0o660)
        assert "mode 0600" in _refusal(pg)
        path.chmod(0o600)
        os.link(path, other)
        assert "one name" in _refusal(pg)
        other.unlink()
        path.rename(other)
        path.symlink_to(other)
        assert "its segment" in _refusal(pg)
        path.unlink()
        other.rename(path)
        with pg.connect() as session:
            assert session.value("SELECT pgraft_is_leader()") is True


def test_a_name_file_that_others_may_have_written_is_not_read(pg: Server, runtime: FakeRuntime) -> None:
    """A FIFO hangs nobody; a link, a file of mode 0666 and a file of another user are not believed."""
    name_file = runtime.run_dir / "segment"
    aside = runtime.run_dir / "aside"
    name_file.rename(aside)

    def refused() -> None:
        assert "run/segment" in _refusal(pg)
        name_file.unlink()

    with unharmed(pg):
        os.mkfifo(name_file, 0o600)
        give(name_file)
        refused()
        name_file.symlink_to(aside)
        refused()
        name_file.write_text(runtime.name)
        give(name_file)
        name_file.chmod(0o666)
        refused()
        if os.geteuid() == 0:
            name_file.write_text(runtime.name)
            refused()
        aside.rename(name_file)
        with pg.connect() as session:
            assert session.value("SELECT pgraft_is_leader()") is True


@pytest.mark.parametrize("name", ["pgdata", "data_dir"])
def test_a_segment_made_for_another_directory_is_not_mapped(
    pg: Server, runtime: FakeRuntime, name: str
) -> None:
    """As with a copy of PostgreSQL's data directory, or of the Raft directory: the paths may be the same."""
    runtime.segment.header[f"{name}_inode"] += 1
    with unharmed(pg):
        why = _refusal(pg)
        assert "another PostgreSQL data directory" in why if name == "pgdata" else "was copied" in why
        assert name != "pgdata" or str(runtime.pgdata) in why
        runtime.segment.header[f"{name}_inode"] -= 1
        with pg.connect() as session:
            assert session.value("SELECT pgraft_is_leader()") is True


def _sparse(path: os.PathLike[str], runtime: FakeRuntime) -> None:
    with open(path, "wb") as file:
        file.write(bytes(runtime.segment.bytes_at(0, 4096)))
        file.truncate(runtime.segment.size)


def _short(path: os.PathLike[str], runtime: FakeRuntime) -> None:
    with open(path, "wb") as file:
        file.write(bytes(runtime.segment.bytes_at(0, 128 * 1024)))


def _version(path: os.PathLike[str], runtime: FakeRuntime) -> None:
    data = bytearray(runtime.segment.bytes_at(0, runtime.segment.size))
    data[8:16] = (99).to_bytes(8, "little")
    with open(path, "wb") as file:
        file.write(data)


def test_doorbells_that_are_none(pg18: Server, runtime: FakeRuntime) -> None:
    bell = runtime.run_dir / WORKER_BELL
    for make in (lambda: None, lambda: bell.write_bytes(b"no fifo"), bell.mkdir):
        bell.unlink(missing_ok=True)
        make()
        if bell.exists():
            give(bell)
        wrong = pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="FIFO")
        with pg18.connect() as session, wrong:
            session.value("SELECT pgraft_replicate_entry('x')")
        until(lambda: runtime.owned_slots() == [], "slot given back")
