"""The small parts: back-off, timers, the log's bounds, the directory, the resolver, records."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from pgraft.shm.layout import MEMBERS_MAX, PEER_RING_BYTES, RECORD_HEADER_BYTES
from pgraft.transport import complaints, records, resolver
from pgraft.transport.backoff import Backoff
from pgraft.transport.complaints import Complaints
from pgraft.transport.directory import Directory, PeerAddress
from pgraft.transport.handshake import Remembered
from pgraft.transport.limits import (
    BACKOFF_FIRST_MS,
    BACKOFF_MAX_MS,
    FRAME_BYTES_MAX,
    HANDSHAKE_BYTES_MAX,
    INCOMING_MAX,
    LOG_LINES_PER_MINUTE_MAX,
    LOG_SUBJECTS_MAX,
    REFUSED_STARTS_MAX,
    RESOLVER_THREADS_MAX,
    UNKNOWN_PEERS_MAX,
)
from pgraft.transport.loop import Loop
from pgraft.transport.records import (
    NetIdentity,
    PeerHello,
    RecordKind,
    RecordMalformed,
    Refusal,
    RefusalCode,
    RefusedStart,
    WorkerStart,
)
from pgraft.transport.resolver import Resolver


def test_limits_fit_one_another() -> None:
    record = RECORD_HEADER_BYTES + records.PREFIX_BYTES + FRAME_BYTES_MAX
    assert (record + 15) & ~15 <= PEER_RING_BYTES // 2
    assert INCOMING_MAX >= 2 * MEMBERS_MAX + UNKNOWN_PEERS_MAX
    # A list of the most members with the longest names and addresses that settings take.
    assert MEMBERS_MAX * (64 + 256 + 8) < HANDSHAKE_BYTES_MAX


# --- back-off -----------------------------------------------------------------------------------------


def test_backoff_doubles_to_a_bound_and_starts_again() -> None:
    backoff = Backoff(lambda: 0.999_999)
    waits = [round(backoff.next_ms()) for _ in range(8)]
    assert waits == [50, 100, 200, 400, 800, 1000, 1000, 1000]
    backoff.reset()
    assert round(backoff.next_ms()) == BACKOFF_FIRST_MS
    assert round(backoff.longest_ms()) == BACKOFF_MAX_MS


def test_backoff_jitter_takes_up_to_half() -> None:
    assert Backoff(lambda: 0.0).next_ms() == BACKOFF_FIRST_MS / 2


# --- timers -------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], int]:
    """Advances the time that the transport sees, by seconds."""
    now = [10**12]

    def advance(seconds: float) -> int:
        now[0] += int(seconds * 1e9)
        return now[0]

    for module in ("loop", "complaints", "resolver", "incoming"):
        monkeypatch.setattr(f"pgraft.transport.{module}.now_ns", lambda: now[0])
    return advance


def test_timers_run_once_when_due_and_can_be_moved(clock: Callable[[float], int]) -> None:
    loop, ran = Loop(), []
    timers = loop.timers
    timers.set("a", 100, lambda: ran.append("a"))
    timers.set("b", 50, lambda: ran.append("b"))
    timers.set("c", 10, lambda: ran.append("c"))
    timers.cancel("c")
    timers.set("b", 500, lambda: ran.append("late b"))
    timers.run(clock(0.2))
    assert ran == ["a"]
    assert timers.next_ns == clock(0) + 300_000_000
    timers.run(clock(0.4))
    assert ran == ["a", "late b"]
    assert loop.wait_s() == -1.0
    loop.close()


def test_a_timer_may_cancel_another_that_is_due_too(clock: Callable[[float], int]) -> None:
    loop, ran = Loop(), []
    loop.timers.set("a", 1, lambda: loop.timers.cancel("b"))
    loop.timers.set("b", 1, lambda: ran.append("b"))
    loop.timers.run(clock(1))
    assert ran == []
    loop.close()


# --- the log ------------------------------------------------------------------------------------------


def test_same_complaint_once_a_minute_with_a_count(
    clock: Callable[[float], int], capfd: pytest.CaptureFixture[str]
) -> None:
    log = Complaints()
    assert log.log("x", "LOG", "first")
    for _ in range(20):
        clock(1)
        assert not log.log("x", "LOG", "again")
    assert log.log("y", "LOG", "another")
    clock(41)
    assert log.log("x", "LOG", "later")
    assert "later (20 more since the last report)" in capfd.readouterr().err


def test_a_peer_that_is_down_for_a_day_costs_a_handful(
    clock: Callable[[float], int], capfd: pytest.CaptureFixture[str]
) -> None:
    log = Complaints()
    for _ in range(24 * 3600 // 2):
        log.log("down", "LOG", "cannot connect")
        clock(2)
    assert 3 <= capfd.readouterr().err.count("cannot connect") <= 6
    # Back for a while, and then away again: that is news.
    clock(3600)
    assert log.log("down", "LOG", "cannot connect")
    assert not log.log("down", "LOG", "cannot connect")
    clock(61)
    assert log.log("down", "LOG", "cannot connect")


def test_many_faces_do_not_fill_the_log(
    clock: Callable[[float], int], capfd: pytest.CaptureFixture[str]
) -> None:
    log = Complaints()
    for number in range(10 * LOG_SUBJECTS_MAX):
        log.log(number, "LOG", "someone")
    assert capfd.readouterr().err.count("someone") == LOG_LINES_PER_MINUTE_MAX
    assert len(log._subjects) == LOG_SUBJECTS_MAX
    clock(61)
    assert log.log("new", "LOG", "next minute")
    assert complaints.LOG_REPEAT_MS == 60_000


# --- the directory ------------------------------------------------------------------------------------


def member(node_id: int, member_id: int = 0) -> dict[int, PeerAddress]:
    return {node_id: PeerAddress(node_id, "a", 1, member_id)}


def test_first_seen_wins_until_the_worker_says() -> None:
    directory = Directory()
    directory.update(member(2), frozenset())
    directory.learn(2, 5, 3)
    assert directory.remembered(2) == Remembered(5, incarnation=3)
    directory.learn(2, 5, 2)
    directory.learn(2, 6, 4)
    assert directory.remembered(2) == Remembered(5, incarnation=3), "nor a lower one, nor another disk's"
    directory.update(member(2, 7), frozenset())
    assert directory.remembered(2) == Remembered(7), "the incarnation of another disk"
    directory.learn(2, 7, 4)
    assert directory.remembered(2) == Remembered(7, incarnation=4)
    directory.update({2: PeerAddress(2, "a", 1, 7, incarnation=6)}, frozenset())
    assert directory.remembered(2) == Remembered(7, incarnation=6), "the worker heard of a higher one"


def test_a_learner_may_come_with_another_disk_in_any_incarnation() -> None:
    directory = Directory()
    directory.update({2: PeerAddress(2, "a", 1, is_learner=True)}, frozenset())
    directory.learn(2, 5, 3)
    assert directory.remembered(2) == Remembered()


def test_one_start_of_a_peer_is_refused_until_the_next() -> None:
    directory = Directory()
    refusal = Refusal(RefusalCode.SHORTER_LOG, "less than it had")
    for node_id in range(1, REFUSED_STARTS_MAX + 2):
        directory.refuse_start(node_id, RefusedStart(77, refusal))
    assert directory.remembered(2) == Remembered(refused_start=77, refusal=refusal)
    assert directory.remembered(1) == Remembered(), "they are bounded"
    directory.refuse_start(2, RefusedStart(78, refusal))
    assert directory.remembered(2).refused_start == 78


def test_leaving_and_coming_back_forgets() -> None:
    directory = Directory()
    directory.update(member(2), frozenset())
    directory.learn(2, 5, 1)
    directory.update({}, frozenset({2}))
    assert directory.remembered(2) == Remembered(0, removed=True)
    directory.update(member(2), frozenset({2}))
    assert directory.remembered(2) == Remembered(0, removed=False)


def test_strangers_are_bounded_and_forgotten() -> None:
    directory = Directory()
    for number in range(1, 1000):
        directory.learn(number, 5, 1)
    assert directory.remembered(UNKNOWN_PEERS_MAX).member_id == 5
    assert directory.remembered(UNKNOWN_PEERS_MAX + 1).member_id == 0
    directory.forget_stranger(1)
    assert directory.remembered(1).member_id == 0


# --- the resolver -------------------------------------------------------------------------------------


class Names:
    """A getaddrinfo that can hang."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, list[str]] = {}
        self.go_on = threading.Event()

    def __call__(self, host: str, *_args: object, **_named: object) -> list[tuple[object, ...]]:
        self.asked.append(host)
        assert self.go_on.wait(10)
        if host not in self.answers:
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in self.answers[host]]


def test_names_do_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names()
    names.answers = {f"n{number}": ["192.0.2.1", "192.0.2.2"] for number in range(10)}
    monkeypatch.setattr(resolver.socket, "getaddrinfo", names)
    loop, answered = Loop(), []
    asker = Resolver(loop, answered.append)
    assert asker.lookup("127.0.0.1") == ("127.0.0.1",)
    assert asker.lookup("::1") == ("::1",)
    for number in range(10):
        assert asker.lookup(f"n{number}") is None
        assert asker.lookup(f"n{number}") is None
    assert len(asker._asking) == RESOLVER_THREADS_MAX
    names.go_on.set()
    while len(answered) < 10:
        loop.dispatch(loop.poll(5))
    assert sorted(names.asked) == sorted(names.answers)
    assert asker.lookup("n7") == ("192.0.2.1", "192.0.2.2")
    asker.close()
    loop.close()


def test_an_answer_is_kept_while_the_name_cannot_be_resolved(
    monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], int]
) -> None:
    names = Names()
    names.answers = {"n": ["192.0.2.1"]}
    names.go_on.set()
    monkeypatch.setattr(resolver.socket, "getaddrinfo", names)
    loop, answered = Loop(), []
    asker = Resolver(loop, answered.append)

    def resolved(host: str, count: int) -> None:
        asker.lookup(host)
        while len(answered) < count:
            loop.dispatch(loop.poll(5))

    resolved("n", 1)
    names.answers = {}
    clock(3)
    asker.doubt("n")
    resolved("n", 2)
    assert asker.lookup("n") == ("192.0.2.1",)
    asker.lookup("unknown")
    while len(answered) < 3:
        loop.dispatch(loop.poll(5))
    with pytest.raises(OSError, match="not known"):
        asker.lookup("unknown")
    asked = len(names.asked)
    with pytest.raises(OSError, match="not known"):
        asker.lookup("unknown")
    assert len(names.asked) == asked
    asker.close()
    loop.close()


# --- records ------------------------------------------------------------------------------------------


def test_records_come_back_as_they_were() -> None:
    identity = NetIdentity("c", 1, 2**64 - 1, "list", "new", True, 1000, 3, WorkerStart(2**64 - 1, 4, 5))
    raw = records.pack(RecordKind.IDENTITY, 1, identity)
    assert records.unpack_prefix(raw) == (RecordKind.IDENTITY, 1)
    assert records.unpack_identity(raw) == identity
    hello = PeerHello(5, "host", 7001, 9, 2, WorkerStart(6, 7, 8))
    assert records.unpack_peer_hello(records.pack(RecordKind.PEER_HELLO, 2, hello)) == hello
    refusal = Refusal(RefusalCode.REMOVED, "text", "hint")
    assert records.unpack_refusal(records.pack(RecordKind.REFUSED_BY_PEER, 2, refusal)) == refusal
    refused = RefusedStart(9, refusal)
    assert records.unpack_refused_start(records.pack(RecordKind.REFUSE_START, 2, refused)) == refused
    raw = records.pack(RecordKind.MESSAGE, 2, b"body")
    assert raw == records.prefix(RecordKind.MESSAGE, 2) + b"body"


@pytest.mark.parametrize("raw", [b"", bytes(15), bytes(16), bytes(16) + b"\xc1", bytes(16) + b"\x91\x01"])
def test_malformed_records(raw: bytes) -> None:
    with pytest.raises(RecordMalformed):
        records.unpack_prefix(raw[:15])
    for unpack in (
        records.unpack_identity,
        records.unpack_peer_hello,
        records.unpack_refusal,
        records.unpack_refused_start,
    ):
        with pytest.raises(RecordMalformed):
            unpack(raw)
