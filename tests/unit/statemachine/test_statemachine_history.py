"""The history of events: pages, bounds, what is still kept."""

from __future__ import annotations

from pgraft.statemachine import commands as c
from pgraft.statemachine import limits
from pgraft.statemachine.codec import encode_command
from pgraft.statemachine.history import EVENT_OBJECT_BYTES, History
from pgraft.statemachine.key_value import KeyValueMachine
from pgraft.statemachine.key_value_restore import KeyValueRestorer
from pgraft.statemachine.record import RECORD_HEAD_BYTES, make_record
from pgraft.statemachine.results import Compacted, Event, EventPage

ROOM = 2**40


def put(machine: KeyValueMachine, key: bytes, value: bytes) -> None:
    machine.apply(machine.applied_index + 1, encode_command(c.Put(key, value, ROOM)))


def txn(machine: KeyValueMachine, *operations: c.Operation) -> None:
    machine.apply(machine.applied_index + 1, encode_command(c.Txn((), operations, (), ROOM)))


def revisions(page: EventPage | Compacted) -> list[int]:
    assert isinstance(page, EventPage)
    return [event.revision for event in page.events]


def test_pages_end_between_revisions() -> None:
    machine = KeyValueMachine()
    put(machine, b"a", b"1")
    txn(machine, *(c.PutOp(b"b%d" % n, b"2") for n in range(5)))
    put(machine, b"c", b"3")
    assert revisions(machine.events(b"", 0, 3, 10**6)) == [1]
    assert revisions(machine.events(b"", 1, 3, 10**6)) == [2] * 5  # larger than the page, whole all the same
    assert revisions(machine.events(b"", 0, 6, 10**6)) == [1, 2, 2, 2, 2, 2]
    assert revisions(machine.events(b"", 0, 7, 10**6)) == [1, 2, 2, 2, 2, 2, 3]
    assert revisions(machine.events(b"", 0, 100, 40)) == [1]
    assert revisions(machine.events(b"", 0, 0, 0)) == [1]
    page = machine.events(b"c", 0, 0, 0)
    assert page == EventPage((Event(3, b"c", b"3"),), 3)


def test_what_matches_nothing_moves_on_all_the_same() -> None:
    machine = KeyValueMachine()
    put(machine, b"a", b"1")
    assert machine.events(b"x", 0, 10, 100) == EventPage((), 1)
    # A node that lags behind the one that named the revision has nothing to say yet.
    assert machine.events(b"", 5, 10, 100) == EventPage((), 5)


def test_one_read_looks_at_a_bounded_number_of_events() -> None:
    machine = KeyValueMachine()
    for number in range(limits.EVENTS_SCANNED_MAX // 100 + 10):
        txn(machine, *(c.PutOp(b"%d" % n, b"%d" % number) for n in range(100)))
    page = machine.events(b"nothing", 0, 10, 100)
    assert page == EventPage((), limits.EVENTS_SCANNED_MAX // 100)


def test_many_events_in_few_revisions_are_bounded() -> None:
    machine = KeyValueMachine()
    for _ in range(limits.HISTORY_EVENTS_MAX // 128 + 3):
        txn(machine, *(c.PutOp(b"%d" % n, b"") for n in range(128)))
    stats = machine.stats()
    assert limits.HISTORY_EVENTS_MAX - 128 < stats.events <= limits.HISTORY_EVENTS_MAX
    assert machine.events(b"", stats.first_kept_revision - 2, 10, 10) == Compacted(stats.first_kept_revision)
    assert (
        revisions(machine.events(b"", stats.first_kept_revision - 1, 10, 10))[0] == stats.first_kept_revision
    )


def test_old_values_are_bounded_by_their_bytes_and_current_ones_are_shared() -> None:
    machine = KeyValueMachine()
    value = b"v" * limits.VALUE_BYTES_MAX
    for number in range(40):  # current all of them
        put(machine, b"%d" % number, value)
    assert (machine.stats().events, machine.stats().history_bytes) == (40, 0)
    for _ in range(40):
        put(machine, b"k", value)
    stats = machine.stats()
    per_event = len(value) + 1 + RECORD_HEAD_BYTES + EVENT_OBJECT_BYTES
    kept = limits.HISTORY_STALE_BYTES_MAX // per_event
    assert stats.history_bytes == kept * per_event
    assert stats.events == kept + 1
    restorer = KeyValueRestorer()
    for piece in machine.snapshot():
        restorer.feed(piece)
    assert restorer.finish().stats() == stats


def test_dropped_events_are_cut_off_from_the_lists() -> None:
    history = History()
    for revision in range(1, 3 * limits.HISTORY_REVISIONS_MAX):
        history.add_revision()
        history.add_event(b"k", make_record(revision, revision, 1, 0, b""), False)
        history.trim()
    assert len(history) == limits.HISTORY_REVISIONS_MAX
    assert len(history._keys) < 2 * limits.HISTORY_REVISIONS_MAX
    assert len(history._counts) < 2 * limits.HISTORY_REVISIONS_MAX
    assert history.newest == 3 * limits.HISTORY_REVISIONS_MAX - 1
