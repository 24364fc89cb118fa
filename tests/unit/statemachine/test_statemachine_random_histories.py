"""Random histories: the machine against a naive store, machines against each other, restored ones against
both."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from pgraft.statemachine import commands as c
from pgraft.statemachine import results as r
from pgraft.statemachine.codec import encode_command
from pgraft.statemachine.key_value import KeyValueMachine
from pgraft.statemachine.key_value_restore import KeyValueRestorer
from pgraft.statemachine.limits import HISTORY_REVISIONS_MAX
from pgraft.statemachine.validation import validate
from tests.support.naive_kv import Commands, NaiveStore


def said(result: object) -> tuple[object, ...]:
    """A result in the words of the naive store."""
    match result:
        case r.Refused(reason):
            return ("refused", reason)
        case r.PutDone():
            return ("put",)
        case r.DeleteDone(_, deleted):
            return ("deleted", deleted)
        case r.CompareAndSetDone(_, succeeded):
            return ("compared", succeeded)
        case r.TxnDone(_, succeeded, responses):
            return ("txn", succeeded, [response_said(response) for response in responses])
        case r.LeaseGranted(lease_id, ttl_ms):
            return ("granted", lease_id, ttl_ms)
        case r.LeaseEnded(_, _, existed, deleted):
            return ("ended", existed, deleted)
        case r.HistoryCompacted(first):
            return ("compacted", first)
        case r.StoreReset(_, deleted):
            return ("reset", deleted)
    raise AssertionError(result)


def response_said(response: r.Response) -> tuple[object, ...]:
    match response:
        case r.PutResponse():
            return ("put",)
        case r.DeleteResponse(deleted):
            return ("deleted", deleted)
        case r.GetResponse(row):
            return ("got", None if row is None else plain(row))
        case r.ListResponse(rows, more):
            return ("listed", [plain(row) for row in rows], more)


def plain(row: r.Row) -> tuple[bytes, bytes, int, int, int, int]:
    return row.key, row.value, row.create_revision, row.mod_revision, row.version, row.lease_id


def restored(machine: KeyValueMachine) -> KeyValueMachine:
    restorer = KeyValueRestorer()
    for piece in machine.snapshot():
        restorer.feed(piece)
    return restorer.finish()


def all_events(
    machine: KeyValueMachine, prefix: bytes, after: int, rows: int, size: int
) -> list[r.Event] | int:
    """The events, read page by page; every page but an oversized one within its bounds."""
    found: list[r.Event] = []
    while True:
        page = machine.events(prefix, after, rows, size)
        if isinstance(page, r.Compacted):
            return page.first_kept_revision
        assert len(page.events) <= rows or len({event.revision for event in page.events}) == 1
        found += page.events
        if page.through_revision >= machine.revision:
            return found
        assert page.through_revision > after
        after = page.through_revision


def check_equal(machine: KeyValueMachine, naive: NaiveStore, rng: random.Random) -> None:
    assert machine.revision == naive.revision
    assert [plain(row) for row in machine.scan(b"", None)[1]] == naive.list_rows(b"", None)
    assert list(machine.list_keys()) == sorted(naive.rows)
    prefix = rng.choice([b"a", "ä".encode(), "日1".encode(), b"nothing"])
    after = rng.choice([None, b"a3", "日".encode(), b""])
    expected = naive.list_rows(prefix, after)
    listing = machine.list_rows(prefix, after, 3)
    assert [plain(row) for row in listing.rows] == expected[:3]
    assert listing.more == (len(expected) > 3)
    assert [plain(row) for row in machine.scan(prefix, after)[1]] == expected
    check_events(machine, naive, rng)
    assert machine.leases() == naive.leases
    for lease_id in naive.leases:
        keys = sorted(key for key, row in naive.rows.items() if row[5] == lease_id)
        assert machine.lease_keys(lease_id) == keys
    stats = machine.stats()
    assert stats.keys == len(naive.rows)
    assert stats.bytes == sum(len(key) + len(row[1]) for key, row in naive.rows.items())
    assert (stats.events, stats.first_kept_revision) == (len(naive.history), naive.first_kept)
    assert stats.leased_keys == sum(1 for row in naive.rows.values() if row[5])
    assert stats.history_bytes == naive_stale_bytes(naive)


def naive_stale_bytes(naive: NaiveStore) -> int:
    stale = [
        (key, value)
        for revision, key, value in naive.history
        if key not in naive.rows or naive.rows[key][3] != revision
    ]
    return sum(len(key) + 32 + len(value or b"") + 80 for key, value in stale)


def check_events(machine: KeyValueMachine, naive: NaiveStore, rng: random.Random) -> None:
    prefix = rng.choice([b"", b"", b"a", "日".encode()])
    after = max(0, naive.revision - rng.choice([0, 3, 50, 20_000]))
    expected = naive.events(prefix, after)
    found = all_events(machine, prefix, after, rng.choice([1, 7, 1000]), rng.choice([1, 300, 10**6]))
    if isinstance(expected, int) or isinstance(found, int):
        assert found == expected
        return
    told = [(event.revision, event.key, event.value) for event in found]
    assert sorted(told, key=lambda e: e[:2]) == sorted(expected, key=lambda e: e[:2])
    assert [revision for revision, _, _ in told] == [revision for revision, _, _ in expected]


@pytest.mark.parametrize("seed", range(8))
def test_a_random_history_gives_what_the_naive_store_gives(seed: int) -> None:
    source, rng = Commands(seed), random.Random(seed)
    machine, naive, index = KeyValueMachine(), NaiveStore(), 0
    kinds: set[object] = set()
    for _ in range(2500):
        index += rng.randrange(1, 4)
        source.revision = naive.revision
        command = source.next()
        if validate(command):
            result = machine.apply(index, encode_command(command))
            assert said(result) == ("refused", r.Refusal.INVALID)
            continue
        result = machine.apply(index, encode_command(command))
        expected = naive.apply(command)
        assert said(result) == expected, (seed, index, command)
        kinds.add(expected[:2] if expected[0] in ("refused", "compared", "txn") else expected[0])
        if rng.random() < 0.03:
            check_equal(machine, naive, rng)
        if rng.random() < 0.01:
            copy = restored(machine)
            assert list(copy.snapshot()) == list(machine.snapshot())
            assert copy.stats() == machine.stats()
            machine = copy
    check_equal(machine, naive, rng)
    # The history was worth something: every sort of outcome came up, but perhaps a reset.
    assert len(kinds) >= 12, kinds


def test_equal_commands_give_equal_bytes_also_after_a_restore_in_the_middle() -> None:
    source = Commands(99, keys=2000, max_bytes=10**9, wipes=False)
    commands = [encode_command(source.next()) for _ in range(14_000)]
    one, two = KeyValueMachine(), KeyValueMachine()
    for index, data in enumerate(commands, 1):
        assert one.apply(index, data) == two.apply(index, data)
        if index in (1, 5000, 12_345):
            two = restored(two)
    pieces = list(one.snapshot())
    assert pieces == list(two.snapshot())
    assert one.stats().keys > 300
    # Block borders in memory depend on the past; the snapshot does not.
    assert list(restored(one).snapshot()) == pieces


def test_a_history_longer_than_the_bound_is_trimmed_alike() -> None:
    source, rng = Commands(7, max_bytes=10**9), random.Random(7)
    machine, naive = KeyValueMachine(), NaiveStore()
    index = 0
    while naive.revision < HISTORY_REVISIONS_MAX * 2 + 500:
        index += 1
        command = source.next()
        if validate(command) or isinstance(command, c.CompactHistory | c.Reset):
            continue
        assert said(machine.apply(index, encode_command(command))) == naive.apply(command)
        if index % 4000 == 0:
            check_equal(machine, naive, rng)
            machine = restored(machine)
    check_equal(machine, naive, rng)
    stats = machine.stats()
    assert stats.first_kept_revision == stats.revision - HISTORY_REVISIONS_MAX + 1


def test_a_snapshot_shows_its_moment_whatever_comes_later() -> None:
    source = Commands(5, keys=4000, max_bytes=10**9, wipes=False)
    machine, index = KeyValueMachine(), 3000
    for number in range(1, index + 1):
        machine.apply(number, encode_command(source.next()))
    expected = list(machine.snapshot())
    late, scan = machine.snapshot(), machine.scan(b"", None)[1]
    before = list(machine.scan(b"", None)[1])
    pieces: list[bytes] = []
    rows: list[r.Row] = []
    for piece in late:
        pieces.append(piece)
        rows += islice(scan, 20)
        for _ in range(500):
            index += 1
            machine.apply(index, encode_command(source.next()))
    machine.apply(index + 1, encode_command(c.Reset()))
    assert pieces == expected
    assert rows + list(scan) == before


def test_damaged_commands_are_results_and_the_same_everywhere() -> None:
    source, rng = Commands(11, max_bytes=10**6), random.Random(11)
    one, two = KeyValueMachine(), KeyValueMachine()
    refused = 0
    for index in range(1, 20_000):
        data = bytearray(encode_command(source.next()))
        for _ in range(rng.randrange(3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        result = one.apply(index, bytes(data))
        assert result == two.apply(index, bytes(data))
        refused += said(result) == ("refused", r.Refusal.INVALID)
    assert 5_000 < refused < 19_000
    assert list(one.snapshot()) == list(two.snapshot())
