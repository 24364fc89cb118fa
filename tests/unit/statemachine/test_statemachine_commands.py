"""What each command does, as etcd's does it, and every limit."""

from __future__ import annotations

import msgspec
import pytest

from pgraft.raft.errors import InvariantViolation
from pgraft.statemachine import commands as c
from pgraft.statemachine import limits
from pgraft.statemachine import results as r
from pgraft.statemachine.codec import decode_command, decode_result, encode_command, encode_result
from pgraft.statemachine.key_value import KeyValueMachine
from pgraft.statemachine.validation import validate

ROOM = 64 * 1024 * 1024


class Store:
    """A machine with an index that counts by itself."""

    def __init__(self) -> None:
        self.machine = KeyValueMachine()

    def __call__(self, command: c.Command) -> r.Result:
        return self.machine.apply(self.machine.applied_index + 1, encode_command(command))

    def put(self, key: bytes, value: bytes = b"v", lease_id: int = 0) -> r.Result:
        return self(c.Put(key, value, ROOM, lease_id))

    def txn(self, *success: c.Operation, compare: tuple[c.Compare, ...] = ()) -> r.Result:
        return self(c.Txn(compare, success, (), ROOM))

    def refused(self, command: c.Command) -> tuple[r.Refusal, str]:
        """Reason and text of a refusal, which must have changed nothing but the applied index."""
        before = list(self.machine.scan(b"", None)[1]), self.machine.stats()
        result = self(command)
        assert isinstance(result, r.Refused), result
        after = list(self.machine.scan(b"", None)[1]), self.machine.stats()
        assert after[0] == before[0]
        assert msgspec.structs.replace(after[1], applied_index=0) == msgspec.structs.replace(
            before[1], applied_index=0
        )
        return r.Refusal(result.reason), result.text


@pytest.fixture
def store() -> Store:
    return Store()


def test_revisions_and_versions_count_as_in_etcd(store: Store) -> None:
    assert store.put(b"a", b"1") == r.PutDone(1)
    assert store.put(b"b", b"2") == r.PutDone(2)
    assert store.put(b"a", b"3") == r.PutDone(3)
    assert store.machine.get(b"a") == r.Row(b"a", b"3", 1, 3, 2, 0)
    assert store(c.Delete(b"a")) == r.DeleteDone(4, 1)
    assert store(c.Delete(b"a")) == r.DeleteDone(4, 0)
    assert store.put(b"a") == r.PutDone(5)
    assert store.machine.get(b"a") == r.Row(b"a", b"v", 5, 5, 1, 0)
    assert (store.machine.exists(b"b"), store.machine.exists(b"c"), store.machine.get(b"c")) == (
        True,
        False,
        None,
    )


def test_compare_and_set(store: Store) -> None:
    def compare_and_set(expected: int, value: bytes | None) -> r.Result:
        return store(c.CompareAndSet(b"k", expected, value, ROOM))

    assert compare_and_set(1, b"x") == r.CompareAndSetDone(0, False)
    assert compare_and_set(0, None) == r.CompareAndSetDone(0, True)
    assert compare_and_set(0, b"x") == r.CompareAndSetDone(1, True)
    assert compare_and_set(0, b"y") == r.CompareAndSetDone(1, False)
    assert compare_and_set(1, b"y") == r.CompareAndSetDone(2, True)
    assert compare_and_set(2, None) == r.CompareAndSetDone(3, True)
    assert store.machine.get(b"k") is None
    reason, text = store.refused(c.CompareAndSet(b"k", 0, b"x" * 100, 50))
    assert (reason, "pgraft.kv_max_bytes is 50" in text) == (r.Refusal.STORE_FULL, True)


def test_a_transaction_is_one_revision_and_its_reads_see_its_writes(store: Store) -> None:
    store.put(b"a", b"1")
    done = store.txn(
        c.GetOp(b"a"), c.PutOp(b"a", b"2"), c.PutOp(b"ab", b"3"), c.GetOp(b"a"), c.ListOp(b"a", 1),
        c.DeleteOp(b"zz"), c.GetOp(b"zz"),
    )  # fmt: skip
    a1, a2 = r.Row(b"a", b"1", 1, 1, 1, 0), r.Row(b"a", b"2", 1, 2, 2, 0)
    assert done == r.TxnDone(
        2,
        True,
        (
            r.GetResponse(a1), r.PutResponse(), r.PutResponse(), r.GetResponse(a2),
            r.ListResponse((a2,), True), r.DeleteResponse(0), r.GetResponse(None),
        ),
    )  # fmt: skip
    page = store.machine.events(b"", 1, 10, 1000)
    assert page == r.EventPage((r.Event(2, b"a", b"2"), r.Event(2, b"ab", b"3")), 2)


def test_a_transaction_without_an_effect_makes_no_revision(store: Store) -> None:
    store.put(b"a")
    assert store.txn(c.DeleteOp(b"x"), c.DeleteOp(b"y", True), c.ListOp(b"")).revision == 1  # type: ignore[union-attr]
    assert store.txn() == r.TxnDone(1, True, ())


def test_the_failure_list_runs_when_a_compare_does_not_hold(store: Store) -> None:
    compare = c.Compare(b"a", c.TARGET_EXISTS, c.EQUAL, 1)
    txn = c.Txn((compare,), (c.PutOp(b"yes", b""),), (c.PutOp(b"a", b"no"),), ROOM)
    assert store(txn) == r.TxnDone(1, False, (r.PutResponse(),))
    assert store(txn) == r.TxnDone(2, True, (r.PutResponse(),))


@pytest.mark.parametrize(
    ("target", "number", "holds"),
    [
        (c.TARGET_CREATE_REVISION, 1, "="), (c.TARGET_MOD_REVISION, 3, "="), (c.TARGET_VERSION, 2, "="),
        (c.TARGET_LEASE, 7, "="), (c.TARGET_MOD_REVISION, 4, "<"), (c.TARGET_VERSION, 1, ">"),
    ],
)  # fmt: skip
def test_every_target_of_a_compare(store: Store, target: int, number: int, holds: str) -> None:
    store(c.LeaseGrant(7, 1000))
    store.put(b"k", b"m")
    store.put(b"other")
    store.put(b"k", b"m", 7)
    signs = {
        "=": (True, False, False, False),
        "<": (False, True, True, False),
        ">": (False, True, False, True),
    }
    for op, expected in zip((c.EQUAL, c.NOT_EQUAL, c.LESS, c.GREATER), signs[holds], strict=True):
        done = store.txn(compare=(c.Compare(b"k", target, op, number),))
        assert isinstance(done, r.TxnDone)
        assert done.succeeded == expected, op


def test_compares_of_values_and_of_absent_keys(store: Store) -> None:
    store.put(b"k", b"m")
    for key, target, op, number, value, expected in [
        (b"k", c.TARGET_VALUE, c.EQUAL, 0, b"m", True),
        (b"k", c.TARGET_VALUE, c.LESS, 0, b"n", True),
        (b"k", c.TARGET_VALUE, c.GREATER, 0, b"n", False),
        (b"k", c.TARGET_VALUE, c.NOT_EQUAL, 0, b"n", True),
        (b"none", c.TARGET_VALUE, c.NOT_EQUAL, 0, b"n", False),  # as etcd
        (b"none", c.TARGET_VALUE, c.EQUAL, 0, b"", False),
        (b"none", c.TARGET_VERSION, c.EQUAL, 0, b"", True),
        (b"none", c.TARGET_MOD_REVISION, c.LESS, 1, b"", True),
        (b"none", c.TARGET_EXISTS, c.NOT_EQUAL, 1, b"", True),
    ]:
        done = store.txn(compare=(c.Compare(key, target, op, number, value),))
        assert isinstance(done, r.TxnDone)
        assert done.succeeded == expected, (key, target, op)


def test_lists(store: Store) -> None:
    for key in (b"b", b"a/2", b"a/1", "a/é".encode(), b"a"):
        store.put(key)
    listing = store.machine.list_rows(b"a/", None, 2)
    assert (listing.revision, [row.key for row in listing.rows], listing.more) == (5, [b"a/1", b"a/2"], True)
    listing = store.machine.list_rows(b"a/", b"a/2", 2)
    assert ([row.key for row in listing.rows], listing.more) == (["a/é".encode()], False)
    assert [row.key for row in store.machine.list_rows(b"", b"a/", 9).rows] == [
        b"a/1",
        b"a/2",
        "a/é".encode(),
        b"b",
    ]
    assert [row.key for row in store.machine.list_rows(b"a/", b"a", 9).rows] == [
        b"a/1",
        b"a/2",
        "a/é".encode(),
    ]
    assert list(store.machine.list_keys()) == [b"a", b"a/1", b"a/2", "a/é".encode(), b"b"]


def test_leases_delete_their_keys_in_one_revision(store: Store) -> None:
    assert store(c.LeaseGrant(5, 60_000)) == r.LeaseGranted(5, 60_000)
    assert store(c.LeaseGrant(6, 1000)) == r.LeaseGranted(6, 1000)
    for key in (b"z", b"y", b"x"):
        store.put(key, b"v", 5)
    store.put(b"x", b"w", 6)  # moves to the other lease
    store.put(b"y", b"w")  # has none any more
    store.put(b"z", b"w", 5)
    store.put(b"a", b"v", 5)
    assert (store.machine.lease_keys(5), store.machine.lease_keys(6)) == ([b"a", b"z"], [b"x"])
    assert store(c.LeaseRevoke(5)) == r.LeaseEnded(8, 5, True, 2)
    assert store.machine.events(b"", 7, 10, 1000) == r.EventPage(
        (r.Event(8, b"a", None), r.Event(8, b"z", None)), 8
    )
    assert store(c.LeaseRevoke(5)) == r.LeaseEnded(8, 5, False, 0)
    assert store(c.LeaseExpire(6)) == r.LeaseEnded(9, 6, True, 1)
    assert store(c.LeaseGrant(6, 1000)) == r.LeaseGranted(6, 1000)
    assert store(c.LeaseExpire(6)) == r.LeaseEnded(9, 6, True, 0)
    assert list(store.machine.list_keys()) == [b"y"]
    assert (store.machine.leases(), store.machine.lease_keys(6)) == ({}, [])


def test_a_deleted_key_leaves_its_lease(store: Store) -> None:
    store(c.LeaseGrant(5, 1000))
    store.put(b"k", b"v", 5)
    store(c.Delete(b"k"))
    store.put(b"k")
    assert store(c.LeaseRevoke(5)) == r.LeaseEnded(3, 5, True, 0)
    assert store.machine.exists(b"k")


def test_a_lease_that_there_is_not_refuses_the_whole_request(store: Store) -> None:
    store.put(b"k", b"old")
    reason, text = store.refused(c.Put(b"k", b"v", ROOM, 9))
    assert (reason, text) == (r.Refusal.LEASE_UNKNOWN, "there is no lease 9: it has ended, or never was")
    store(c.LeaseGrant(5, 1000))
    store.put(b"l", b"leased", 5)
    txn = c.Txn(
        (), (c.DeleteOp(b"l"), c.PutOp(b"m", b""), c.PutOp(b"k", b"new", 5), c.PutOp(b"n", b"", 9)), (), ROOM
    )
    assert store.refused(txn)[0] == r.Refusal.LEASE_UNKNOWN
    assert store.machine.lease_keys(5) == [b"l"]
    store(c.LeaseGrant(9, 1000))
    assert isinstance(store(txn), r.TxnDone)
    assert store.machine.lease_keys(5) == [b"k"]
    assert store.refused(c.LeaseGrant(9, 1000)) == (r.Refusal.LEASE_EXISTS, "there is a lease 9 already")


def test_there_is_a_limit_to_leases_and_to_their_keys(store: Store) -> None:
    for lease_id in range(1, limits.LEASES_MAX + 1):
        store(c.LeaseGrant(lease_id, 1000))
    assert store.refused(c.LeaseGrant(10**12, 1000))[0] == r.Refusal.LEASES_FULL
    for number in range(limits.LEASE_KEYS_MAX):
        store.put(b"%05d" % number, b"", 1)
    assert store.refused(c.Put(b"more", b"", ROOM, 1))[0] == r.Refusal.LEASE_KEYS_FULL
    assert store.put(b"00001", b"again", 1) == r.PutDone(limits.LEASE_KEYS_MAX + 1)
    assert store(c.LeaseRevoke(1)) == r.LeaseEnded(limits.LEASE_KEYS_MAX + 2, 1, True, limits.LEASE_KEYS_MAX)


def test_one_request_deletes_at_most_so_many_keys(store: Store) -> None:
    for number in range(limits.DELETES_MAX + 1):
        store.put(b"%05d" % number, b"")
    everything = c.DeleteOp(b"", True)
    assert store.refused(c.Txn((), (c.PutOp(b"y", b""),), (), 0))[0] == r.Refusal.STORE_FULL
    assert store.refused(c.Txn((), (everything,), (), 0))[0] == r.Refusal.TOO_MANY_DELETES
    halves = (c.DeleteOp(b"000", True), c.DeleteOp(b"0", True))
    done = store.txn(*halves)
    assert done == r.TxnDone(
        limits.DELETES_MAX + 2, True, (r.DeleteResponse(100), r.DeleteResponse(limits.DELETES_MAX - 100))
    )
    assert list(store.machine.list_keys()) == [b"10000"]


def test_the_store_has_the_size_that_the_command_says(store: Store) -> None:
    assert store(c.Put(b"k", b"x" * 99, 100)) == r.PutDone(1)
    assert store.refused(c.Put(b"k", b"x" * 100, 100)) == (
        r.Refusal.STORE_FULL,
        "keys and values would take 101 bytes, and pgraft.kv_max_bytes is 100",
    )
    # What makes it smaller, or no larger, is always possible: the limit may have been lowered.
    assert store(c.Put(b"k", b"y" * 99, 10)) == r.PutDone(2)
    assert store(c.Put(b"k", b"x" * 50, 10)) == r.PutDone(3)
    # And not more keys than 64 bytes each would fill.
    for number in range(3):
        store(c.Put(b"%d" % number, b"", 256))
    assert store.refused(c.Put(b"3", b"", 256)) == (
        r.Refusal.STORE_FULL,
        "there would be 5 keys, and a store of 256 bytes holds at most 4",
    )


def test_what_a_transaction_reads_is_bounded(store: Store) -> None:
    for number in range(9):
        store.put(b"large%d" % number, b"x" * 500_000)
    reason, text = store.refused(c.Txn((), (c.PutOp(b"a", b""), c.ListOp(b"large")), (), ROOM))
    assert (reason, "smaller max_rows" in text) == (r.Refusal.RESPONSE_TOO_LARGE, True)
    assert isinstance(store.txn(c.ListOp(b"large", 8)), r.TxnDone)
    for number in range(limits.TXN_RESPONSE_ROWS_MAX + 1):
        store.put(b"s%05d" % number, b"")
    assert store.refused(c.Txn((), (c.ListOp(b"s"),), (), ROOM))[0] == r.Refusal.RESPONSE_TOO_LARGE


def test_reset_and_compact(store: Store) -> None:
    store(c.LeaseGrant(5, 1000))
    store.put(b"a", b"v", 5)
    store.put(b"a", b"w")
    assert store(c.CompactHistory()) == r.HistoryCompacted(3)
    assert store.machine.events(b"", 1, 9, 999) == r.Compacted(3)
    assert store.machine.events(b"", 2, 9, 999) == r.EventPage((), 2)
    assert store(c.Reset()) == r.StoreReset(3, 1)
    assert store.machine.events(b"", 2, 9, 999) == r.Compacted(4)
    assert store.machine.stats() == r.Stats(
        keys=0, bytes=0, revision=3, first_kept_revision=4, leases=0, leased_keys=0, events=0,
        history_bytes=0, applied_index=5,
    )  # fmt: skip
    assert store.put(b"a") == r.PutDone(4)


LONG = b"k" * (limits.KEY_BYTES_MAX + 1)
BIG = b"v" * (limits.VALUE_BYTES_MAX + 1)
A_PUT = c.PutOp(b"a", b"")
IN_RANGE = f"it must be 0 to {2**63 - 1}"
NO_ZERO = "contains a zero byte, which no text in PostgreSQL can"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (c.Put(b"", b"", ROOM), "a key must not be empty"),
        (c.Put(LONG, b"", ROOM), "the key has 1025 bytes of UTF-8, at most 1024 are possible"),
        (c.Put(b"a\0", b"", ROOM), f"the key {NO_ZERO}"),
        (c.Put(b"\xff", b"", ROOM), "the key is not valid UTF-8"),
        (c.Put(b"k", BIG, ROOM), "the value has 1048577 bytes of UTF-8, at most 1048576 are possible"),
        (c.Put(b"k", b"\xed\xa0\x80", ROOM), "the value is not valid UTF-8"),
        (c.Put(b"k", b"", -1), f"max_bytes is -1, {IN_RANGE}"),
        (c.Put(b"k", b"", ROOM, -5), f"the lease id is -5, {IN_RANGE}"),
        (c.Delete(b""), "a key must not be empty"),
        (c.CompareAndSet(b"", 0, None, ROOM), "a key must not be empty"),
        (c.CompareAndSet(b"k", 0, b"\0", ROOM), f"the value {NO_ZERO}"),
        (c.CompareAndSet(b"k", 2**63, None, ROOM), f"the expected revision is {2**63}, {IN_RANGE}"),
        (c.CompareAndSet(b"k", 0, None, -1), f"max_bytes is -1, {IN_RANGE}"),
        (c.LeaseGrant(0, 1000), f"the lease id is 0, it must be 1 to {2**63 - 1}"),
        (
            c.LeaseGrant(1, 999),
            "the lease's time to live is 999 ms, it must be 1 s to 10 years (315360000000 ms)",
        ),
        (c.LeaseRevoke(0), f"the lease id is 0, it must be 1 to {2**63 - 1}"),
        (c.LeaseExpire(2**63), f"the lease id is {2**63}, it must be 1 to {2**63 - 1}"),
        (c.Txn((), (A_PUT,) * 129, (), ROOM), "success: 129 operations, at most 128 are possible"),
        (c.Txn((), (), (c.GetOp(b"a"),) * 129, ROOM), "failure: 129 operations, at most 128 are possible"),
        (
            c.Txn((c.Compare(b"a", c.TARGET_EXISTS, c.EQUAL, 1),) * 129, (), (), ROOM),
            "compare: 129 conditions, at most 128 are possible",
        ),
        (c.Txn((), (), (), -1), f"max_bytes is -1, {IN_RANGE}"),
        (
            c.Txn((), (c.PutOp(b"a", BIG[1:]), c.PutOp(b"b", b"v" * 32768)), (), ROOM),
            "keys and values have 1081346 bytes of UTF-8 together, at most 1081344 are possible",
        ),
        (c.Txn((c.Compare(b"", 0, 0, 1),), (), (), ROOM), "compare[0]: key: a key must not be empty"),
        (
            c.Txn((c.Compare(b"k", 6, 0),), (), (), ROOM),
            "compare[0]: target 6 with op 0 is none that there is",
        ),
        (
            c.Txn((c.Compare(b"k", 0, 4),), (), (), ROOM),
            "compare[0]: target 0 with op 4 is none that there is",
        ),
        (
            c.Txn((c.Compare(b"k", c.TARGET_EXISTS, c.LESS, 1),), (), (), ROOM),
            "compare[0]: op: whether a key exists can be compared by = and != with true and false only",
        ),
        (
            c.Txn((c.Compare(b"k", c.TARGET_VALUE, c.EQUAL, 0, BIG),), (), (), ROOM),
            "compare[0]: the value has 1048577 bytes of UTF-8, at most 1048576 are possible",
        ),
        (c.Txn((c.Compare(b"k", 0, 0, -1),), (), (), ROOM), f"compare[0]: value is -1, {IN_RANGE}"),
        (c.Txn((), (A_PUT, c.PutOp(b"", b"")), (), ROOM), "success[1].put.key: a key must not be empty"),
        (
            c.Txn((), (), (c.PutOp(b"a", b"\xff"),), ROOM),
            "failure[0].put.value: the value is not valid UTF-8",
        ),
        (
            c.Txn((), (c.PutOp(b"a", b"", -1),), (), ROOM),
            f"success[0].put.lease: the lease id is -1, {IN_RANGE}",
        ),
        (c.Txn((), (c.DeleteOp(b""),), (), ROOM), "success[0].delete.key: a key must not be empty"),
        (
            c.Txn((), (c.DeleteOp(b"\xff", True),), (), ROOM),
            "success[0].delete.prefix: the prefix is not valid UTF-8",
        ),
        (c.Txn((), (c.GetOp(b""),), (), ROOM), "success[0].get.key: a key must not be empty"),
        (
            c.Txn((), (c.ListOp(LONG),), (), ROOM),
            "success[0].list.prefix: the prefix has 1025 bytes of UTF-8, at most 1024 are possible",
        ),
        (
            c.Txn((), (c.ListOp(b"", -1),), (), ROOM),
            f"success[0].list.max_rows: max_rows is -1, {IN_RANGE}",
        ),
        (c.Txn((), (A_PUT, A_PUT), (), ROOM), "success[1].put.key: success[0] puts the same key"),
        (
            c.Txn((), (), (c.DeleteOp(b"a"), A_PUT), ROOM),
            "failure[0].delete: failure[1] puts a key that this deletes",
        ),
        (
            c.Txn((), (c.PutOp(b"b", b""), c.PutOp(b"ab", b""), c.DeleteOp(b"a", True)), (), ROOM),
            "success[2].delete: success[1] puts a key that this deletes",
        ),
    ],
)
def test_the_proposer_and_every_node_refuse_alike(store: Store, command: c.Command, text: str) -> None:
    assert validate(command) == text
    assert store.refused(command)[0] == r.Refusal.INVALID


@pytest.mark.parametrize(
    "command",
    [
        c.Put(b"k" * limits.KEY_BYTES_MAX, b"v" * limits.VALUE_BYTES_MAX, 2**63 - 1, 0),
        c.Put("日".encode(), b"", ROOM),
        c.CompareAndSet(b"k", 0, b"v" * limits.VALUE_BYTES_MAX, ROOM),
        c.Txn(
            tuple(c.Compare(b"%d" % n, c.TARGET_MOD_REVISION, c.LESS, 2**63 - 1) for n in range(128)),
            tuple(c.PutOp(b"%d" % n, b"v" * 8200) for n in range(128)),
            tuple(c.ListOp(b"%d" % n, 2**63 - 1) for n in range(128)),
            ROOM,
        ),
        c.LeaseGrant(2**63 - 1, limits.LEASE_TTL_MS_MAX),
        c.LeaseGrant(1, limits.LEASE_TTL_MS_MIN),
        c.CompactHistory(),
        c.Reset(),
    ],
)
def test_what_is_within_the_limits_fits_into_an_entry(store: Store, command: c.Command) -> None:
    assert validate(command) == ""
    data = encode_command(command)
    assert len(data) <= limits.COMMAND_BYTES_MAX
    assert decode_command(data) == command
    result = store(command)
    assert not isinstance(result, r.Refused)
    assert decode_result(encode_result(result)) == result


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x00",
        msgspec.msgpack.encode([99, b"k"]),
        msgspec.msgpack.encode([1, b"k"]),
        msgspec.msgpack.encode([1, b"k", b"v", 10, 0, "a later field"]),
        msgspec.msgpack.encode([1, "k", b"v", 10]),
        msgspec.msgpack.encode([1, b"k", b"v", 2**64 - 1, 0])[:-1],
        encode_command(c.Put(b"k", b"v", 10)) + b"\x00",
        b"\x91" * 100_000 + b"\x01",
        b"\x95\x04" + b"\x91" * 100_000 + b"\x90\x90\x90\x01",
        b"\x92\x04\xdd\xff\xff\xff\xff",
        encode_command(c.Put(b"k", b"v" * (limits.COMMAND_BYTES_MAX + 1), 10)),
    ],
)
def test_a_committed_entry_that_makes_no_sense_is_a_result(store: Store, data: bytes) -> None:
    result = store.machine.apply(7, data)
    assert result == r.Refused(r.Refusal.INVALID, "the entry holds no key-value command that can be read")
    assert store.machine.stats().applied_index == 7
    with pytest.raises(InvariantViolation, match="key-value entry 7 applied behind entry 7"):
        store.machine.apply(7, data)


def test_results_of_a_newer_release_are_read_as_far_as_they_are_known() -> None:
    assert decode_result(msgspec.msgpack.encode([2, 7, "a later field"])) == r.PutDone(7)
    assert decode_result(msgspec.msgpack.encode([1, 77, "a later reason"])) == r.Refused(77, "a later reason")
    with pytest.raises(ValueError, match="cannot be read"):
        decode_result(b"\xc1")
