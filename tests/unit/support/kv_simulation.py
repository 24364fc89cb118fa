"""Random clients of a store, with random delays and outcomes that nobody learns: linearizable histories."""

from __future__ import annotations

import enum
import heapq
import random
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from tests.support.kvcheck.history import (
    ABSENT,
    Answer,
    Compare,
    Delete,
    Get,
    History,
    LeaseCall,
    Listing,
    Op,
    Poll,
    Put,
    Request,
    Result,
    Row,
    Seen,
    Target,
    compare_and_set,
    delete,
    get,
    may_write,
    put,
)
from tests.unit.support.kv_store import Replica, Store

MS = 1_000_000
TTL = 100 * MS


class Told(enum.Enum):
    """How much answers tell: all, revisions by reads alone, or values alone (as `pgraft_kv_get`)."""

    ALL = "all"
    READS = "reads"
    VALUES = "values"


class Profile(NamedTuple):
    """The size of a run."""

    clients: int = 4
    keys: int = 3
    ops: int = 80
    told: Told = Told.ALL
    unknown: float = 0.05
    transactions: float = 0.1
    few_values: bool = False
    extras: bool = True


class Simulation:
    """One run. `run` gives the history."""

    def __init__(self, seed: int, profile: Profile) -> None:
        self.rng = random.Random(f"{seed} {profile.told.value}")
        self.profile = profile
        self.store = Store()
        self.replicas = [Replica(self.rng, self.store) for _ in range(3)]
        self.history = History()
        self.keys = [f"k{number}" for number in range(profile.keys)]
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.now = 0
        self.left = profile.ops
        self.seen: dict[str, int] = {}

    def at(self, time: int, act: Callable[[], None]) -> None:
        """Do something then."""
        self.count += 1
        heapq.heappush(self.events, (time, self.count, act))

    def delay(self) -> int:
        return int(self.rng.expovariate(1 / (3 * MS))) + 1

    def run(self) -> History:
        """Until the clients have done all they had to do."""
        for client in range(self.profile.clients):
            self.at(self.delay(), lambda client=client: self.ask(client))  # type: ignore[misc]
        if self.profile.extras:
            for number in range(2):
                self.at(self.delay(), lambda number=number: self.poll(number, 0))  # type: ignore[misc]
            self.at(self.delay(), lambda: self.grant(1))
        while self.events:
            self.now, _, act = heapq.heappop(self.events)
            act()
        return self.history

    def ask(self, client: int) -> None:
        """A client's next request."""
        if self.left <= 0:
            return
        self.left -= 1
        applied = self.now + self.delay()
        op = Op(client, self.rng.randrange(3), self.now, applied + self.delay(), self.request())
        self.at(op.ret + self.delay(), lambda: self.ask(client))
        if self.profile.extras and self.rng.random() < 0.1:
            self.at(applied, lambda: self.list_all(op))
            return
        chance = self.rng.random()
        if chance < self.profile.unknown:
            self.history.add(msgspec.structs.replace(op, result=Result.UNKNOWN))
            if self.rng.random() < 0.6:
                late = applied + self.rng.choice((0, 0, 20 * MS, 200 * MS))
                lost = msgspec.structs.replace(op, result=Result.UNKNOWN)
                self.at(late, lambda: self.do(lost))
        elif chance < self.profile.unknown + 0.03:
            self.history.add(msgspec.structs.replace(op, result=Result.ERROR))
        elif not may_write(op.request) and self.rng.random() < 0.3:
            self.at(applied, lambda: self.read_locally(op))
        else:
            self.at(applied, lambda: self.answer(op))

    def do(self, op: Op) -> None:
        """Without an answer."""
        self.apply(op)

    def request(self) -> Request:
        """Reads and writes in about the shares of a real client; transactions within groups of 5 keys."""
        rng, key = self.rng, self.rng.choice(self.keys)
        if rng.random() < self.profile.transactions:
            group = self.keys.index(key) // 5 * 5
            return self.transaction(key, rng.choice(self.keys[group : group + 5]))
        expected = self.expected(key)
        return rng.choices(
            (
                get(key),
                put(key, self.value()),
                delete(key),
                compare_and_set(key, expected, self.value()),
                compare_and_set(key, expected, None),
                get(rng.choice(["lease", key])),
            ),
            (35, 25, 6, 15, 3, 16),
        )[0]

    def value(self) -> str:
        return f"v{self.rng.randrange(3) if self.profile.few_values else self.count}"

    def expected(self, key: str) -> int:
        """A revision that clients know of; 0 for an absent key, or where nobody is told revisions."""
        return 0 if self.profile.told is Told.VALUES else self.seen.get(key, 0)

    def transaction(self, key: str, other: str) -> Request:
        rng = self.rng
        compares: tuple[Compare, ...] = (
            Compare(key, Target.MOD, rng.choice(("=", "<", ">", "!=")), self.expected(key)),
            Compare(other, Target.VERSION, ">", 0),
            Compare(key, Target.CREATE, "=", 0),
            Compare(other, Target.VALUE, "!=", "v1"),
        )
        number = rng.randrange(4)
        return Request(
            (Put(key, self.value()), Get(other), Get(key)),
            compares[number : number + 1] if rng.random() < 0.8 else (),
            (Get(key), Delete(other)) if rng.random() < 0.5 else (Get(other),),
        )

    def answer(self, op: Op) -> None:
        """The store does it and answers."""
        answer = self.apply(op)
        for action, told in zip(op.request.then, answer.results, strict=False):
            if isinstance(told, Seen):
                self.saw(op, action.key, told)
        self.history.add(msgspec.structs.replace(op, answer=self.tell(op, answer)))

    def apply(self, op: Op) -> Answer:
        """As it should be; a broken store differs."""
        return self.store.apply(op.request, op)

    def saw(self, op: Op, key: str, told: Seen) -> None:
        """A linearizable read, at the moment it was done."""
        self.seen[key] = told.mod_revision or 0

    def tell(self, op: Op, answer: Answer) -> Answer:
        """Leave out what clients are not told."""
        told = self.profile.told
        if told is Told.ALL:
            return answer
        results = tuple(
            Seen(one.present, one.value, one.mod_revision if told is Told.READS else None)
            if isinstance(one, Seen)
            else one
            for one in answer.results
        )
        return Answer(answer.succeeded, results)

    def read_locally(self, op: Op) -> None:
        revision = self.replicas[op.node].catch_up()
        seen = self.store.at(op.request.then[0].key, revision).seen()
        answer = self.tell(op, Answer(None, (seen,), revision))
        self.history.add(msgspec.structs.replace(op, local=True, answer=answer))

    def list_all(self, op: Op) -> None:
        now = [(key, self.store.now(key).seen()) for key in self.keys]
        rows = tuple(Row(key, seen) for key, seen in now if seen != ABSENT)
        if self.profile.told is Told.VALUES:
            rows = tuple(Row(row.key, Seen(True, row.seen.value)) for row in rows)
        self.history.add(Listing(op.client, op.node, op.call, op.ret, "k", rows))

    def poll(self, watcher: int, after: int) -> None:
        """A watcher, each time on another node; now and then it has lost its place and begins anew."""
        node = self.rng.randrange(3)
        until = self.replicas[node].catch_up()
        events = tuple(self.store.behind("", after, until))
        ret = self.now + self.delay()
        call = max(self.now - self.delay(), 0)
        self.history.add(Poll(watcher, node, call, ret, "", after, events))
        if events:
            after = events[-1].revision if self.rng.random() < 0.9 else 0
        if self.left > 0:
            self.at(ret + 20 * MS, lambda: self.poll(watcher, after))

    def grant(self, lease: int) -> None:
        """Grant, put, keep alive some times, and let it end."""
        self.lease_call("grant", lease)
        op = Op(99, 0, self.now, self.now + 2 * self.delay() + 2, put("lease", f"lease{lease}", lease))
        self.history.add(msgspec.structs.replace(op, answer=self.tell(op, self.store.apply(op.request, op))))
        times = self.rng.randrange(1, 4)
        for number in range(1, times + 1):
            self.at(self.now + number * 60 * MS, lambda: self.keep_alive(lease))
        last = self.now + times * 60 * MS
        self.at(self.expiry(last, op), lambda: self.end_lease(lease))

    def expiry(self, last: int, _: Op) -> int:
        """When a lease ends that was renewed last at a time, for the key that this put wrote."""
        return last + TTL + self.delay()

    def keep_alive(self, lease: int) -> None:
        self.lease_call("keep_alive", lease)

    def lease_call(self, kind: str, lease: int) -> None:
        ret = self.now + self.delay()
        call = max(self.now - 1, 0)
        self.history.add(LeaseCall(kind, 99, 0, lease, call, ret, ttl=TTL))  # type: ignore[arg-type]

    def end_lease(self, lease: int) -> None:
        self.store.expire(lease)
        if self.left > 0:
            self.at(self.now + self.delay() + TTL, lambda: self.grant(lease + 1))
