"""The leader's clock for leases, with the time in hand: never early, also across changes of leader."""

from __future__ import annotations

import random

from pgraft.statemachine import commands as c
from pgraft.statemachine.codec import encode_command
from pgraft.statemachine.key_value import KeyValueMachine
from pgraft.statemachine.lessor import _HEAP_SLACK, Lessor
from pgraft.statemachine.results import LeaseEnded, LeaseGranted, PutDone, StoreReset

MS = 1_000_000


def test_a_lease_is_due_when_its_time_is_over_and_not_before() -> None:
    lessor = Lessor({}, 0)
    lessor.applied(LeaseGranted(7, 1000), 5 * MS)
    assert lessor.next_deadline() == 1005 * MS
    assert lessor.due(1005 * MS - 1, 10) == []
    assert lessor.time_left_ms(7, 5 * MS + 1) == 999
    assert lessor.due(1005 * MS, 10) == [7]
    assert lessor.due(2000 * MS, 10) == []
    assert (lessor.time_left_ms(7, 2000 * MS), lessor.next_deadline()) == (0, None)
    lessor.applied(LeaseEnded(1, 7, True, 0), 2000 * MS)
    assert lessor.time_left_ms(7, 2000 * MS) is None


def test_keep_alive_starts_the_time_again_until_an_expiry_is_on_its_way() -> None:
    lessor = Lessor({1: 1000, 2: 5000}, 0)
    assert lessor.keep_alive(1, 900 * MS) == 1000
    assert lessor.next_deadline() == 1900 * MS
    assert lessor.due(1899 * MS, 10) == []
    # Late, but nothing was proposed yet: the lease lives.
    assert lessor.keep_alive(1, 2500 * MS) == 1000
    assert lessor.due(3500 * MS, 10) == [1]
    assert lessor.keep_alive(1, 3500 * MS) is None
    assert lessor.keep_alive(3, 3500 * MS) is None
    lessor.not_proposed(1)
    lessor.not_proposed(1)
    lessor.not_proposed(2)
    assert lessor.keep_alive(1, 3500 * MS) is None
    assert lessor.due(3500 * MS, 10) == [1]
    assert lessor.due(3500 * MS, 10) == []


def test_one_call_returns_a_bounded_number_the_oldest_first() -> None:
    lessor = Lessor({lease_id: 1000 + lease_id for lease_id in range(100)}, 0)
    assert lessor.due(10**12, 30) == list(range(30))
    assert lessor.due(10**12, 100) == list(range(30, 100))


def test_a_new_leader_starts_every_lease_again() -> None:
    machine = KeyValueMachine()
    granted = machine.apply(1, encode_command(c.LeaseGrant(7, 10_000)))
    machine.apply(2, encode_command(c.Put(b"k", b"v", 10**6, 7)))
    first = Lessor({}, 0)
    first.applied(granted, 0)
    first.applied(PutDone(1), 0)
    assert first.due(9_999 * MS, 10) == []
    # Another node leads from 9.9 s on by its own clock, which says something else altogether.
    second = Lessor(machine.leases(), 77_000 * MS)
    assert second.due(86_999 * MS, 10) == []
    assert second.keep_alive(7, 86_999 * MS) == 10_000
    assert second.due(96_999 * MS, 10) == [7]
    ended = machine.apply(3, encode_command(c.LeaseExpire(7)))
    second.applied(ended, 97_000 * MS)
    assert (machine.exists(b"k"), machine.leases(), second.keep_alive(7, 97_000 * MS)) == (False, {}, None)
    # The expiry that the first leader had proposed as well comes later, and does no harm.
    assert machine.apply(4, encode_command(c.LeaseExpire(7))) == LeaseEnded(2, 7, False, 0)


def test_a_reset_forgets_all_leases() -> None:
    lessor = Lessor({1: 1000, 2: 1000}, 0)
    assert lessor.due(1000 * MS, 1) == [1]
    lessor.applied(StoreReset(4, 2), 0)
    assert (lessor.due(10**15, 10), lessor.next_deadline()) == ([], None)
    # The same id again is a new lease.
    lessor.applied(LeaseGranted(1, 1000), 0)
    assert lessor.keep_alive(1, 500 * MS) == 1000
    assert lessor.due(1500 * MS, 10) == [1]


def test_the_same_id_again_with_a_shorter_time_counts_from_its_own_grant() -> None:
    lessor = Lessor({1: 100_000}, 0)
    lessor.applied(LeaseEnded(0, 1, True, 0), 0)
    lessor.applied(LeaseGranted(1, 1000), 0)
    assert lessor.due(1000 * MS, 10) == [1]
    assert lessor.due(10**15, 10) == []


def test_leases_that_end_early_leave_nothing_behind() -> None:
    lessor = Lessor({}, 0)
    for lease_id in range(1, 10_000):
        lessor.applied(LeaseGranted(lease_id, 10**10), 0)
        lessor.applied(LeaseEnded(0, lease_id, True, 0), 0)
    assert len(lessor._heap) <= _HEAP_SLACK + 1


def test_random_leases_are_due_exactly_when_a_plain_table_says_so() -> None:
    rng = random.Random(3)
    lessor, plain, now, expiring = Lessor({}, 0), {}, 0, set()
    ttls: dict[int, int] = {}
    for _ in range(20_000):
        now += rng.randrange(0, 40 * MS)
        lease_id = rng.randrange(30)
        kind = rng.randrange(5)
        if kind == 0 and lease_id not in ttls:
            ttls[lease_id] = rng.randrange(1000, 3000)
            plain[lease_id] = now + ttls[lease_id] * MS
            lessor.applied(LeaseGranted(lease_id, ttls[lease_id]), now)
        elif kind == 1 and rng.random() < 0.2:
            lessor.applied(LeaseEnded(0, lease_id, lease_id in ttls, 0), now)
            ttls.pop(lease_id, None)
            plain.pop(lease_id, None)
            expiring.discard(lease_id)
        elif kind == 2:
            kept = lessor.keep_alive(lease_id, now)
            assert (kept is None) == (lease_id not in ttls or lease_id in expiring)
            if kept is not None:
                plain[lease_id] = now + ttls[lease_id] * MS
        else:
            due = {i for i, deadline in plain.items() if deadline <= now and i not in expiring}
            waiting = [deadline for i, deadline in plain.items() if i not in expiring]
            assert lessor.next_deadline() == min(waiting, default=None)
            assert set(lessor.due(now, 100)) == due
            expiring |= due
