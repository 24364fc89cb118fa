"""How many good histories pass and how many broken ones are seen.

`python -m tests.unit.support.kv_rates SEEDS` prints the table.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from tests.support.kvcheck.check import Result as CheckResult
from tests.support.kvcheck.check import Rules, check
from tests.support.kvcheck.history import Answer, History, Op, Poll, Put, Result
from tests.support.kvcheck.leases import LeaseRules
from tests.unit.support.kv_faults import Broken, Fault
from tests.unit.support.kv_simulation import MS, Profile, Simulation, Told

RULES = Rules(visited_max=20_000, monotonic_local=True, leases=LeaseRules(late=60 * MS))


@dataclass
class Rates:
    """`fired`: the fault happened; `sure`: in a way that no order explains. `missed` are seeds of those."""

    fired: int = 0
    sure: int = 0
    seen: int = 0
    undecided: int = 0
    missed: list[int] = field(default_factory=list)

    def count(self, seed: int, sure: bool, result: CheckResult) -> None:
        self.fired += 1
        self.sure += sure
        self.seen += bool(result.violations)
        self.undecided += not result.violations and bool(result.undecided)
        if sure and not result.violations:
            self.missed.append(seed)

    def __str__(self) -> str:
        return (
            f"{self.fired} broken, {self.seen} seen; {self.sure} surely not linearizable,"
            f" {len(self.missed)} of them missed {self.missed[:5]}; {self.undecided} not decided"
        )


def profile_of(seed: int, told: Told, ops: int = 80) -> Profile:
    """Sizes that change from seed to seed."""
    unknown = (0.02, 0.05, 0.2)[seed % 3]
    return Profile(2 + seed % 7, 1 + seed % 4, ops, told, unknown, few_values=seed % 5 == 4)


def good(seed: int, told: Told) -> CheckResult:
    """The verdict on a history that is linearizable."""
    return check(Simulation(seed, profile_of(seed, told)).run(), RULES)


def faulty(seed: int, told: Told, fault: Fault, rates: Rates) -> None:
    """One run with a fault in the store."""
    profile = profile_of(seed, told, 150)._replace(few_values=False)
    run = Broken(seed, profile, fault)
    history = run.run()
    if run.fired:
        rates.count(seed, run.sure, check(history, RULES))


def reorder(history: History, rng: random.Random) -> bool:
    """Two puts of a key, one after the other, have each other's revision."""
    puts = [op for op in history.ops if op.result is Result.OK and isinstance(op.request.then[0], Put)]
    puts = [op for op in puts if not op.request.compares and op.answer.revision is not None]
    pairs = [
        (one, other)
        for one in puts
        for other in puts
        if one.ret < other.call and one.request.then[0].key == other.request.then[0].key
    ]
    if not pairs:
        return False
    one, other = rng.choice(pairs)
    swapped = {id(one): other.answer, id(other): one.answer}
    history.ops = [_answered(op, swapped) for op in history.ops]
    return True


def _answered(op: Op, answers: dict[int, Answer]) -> Op:
    return msgspec.structs.replace(op, answer=answers.get(id(op), op.answer))


def _change_poll(history: History, rng: random.Random, change: Callable[[list, int], None]) -> bool:  # type: ignore[type-arg]
    """Change one event that is not the last of its poll; neither is the one behind of its revision."""
    places = [
        (number, place)
        for number, poll in enumerate(history.polls)
        for place in range(len(poll.events) - 1)
        if poll.events[place].revision < poll.events[place + 1].revision and poll.events[place].value
    ]
    if not places:
        return False
    number, place = rng.choice(places)
    events = list(history.polls[number].events)
    change(events, place)
    history.polls[number] = msgspec.structs.replace(history.polls[number], events=tuple(events))
    return True


def drop_event(history: History, rng: random.Random) -> bool:
    return _change_poll(history, rng, lambda events, place: events.pop(place))


def repeat_event(history: History, rng: random.Random) -> bool:
    return _change_poll(history, rng, lambda events, place: events.insert(place, events[place]))


def swap_events(history: History, rng: random.Random) -> bool:
    def swap(events: list, place: int) -> None:  # type: ignore[type-arg]
        events[place : place + 2] = reversed(events[place : place + 2])

    return _change_poll(history, rng, swap)


def alter_event(history: History, rng: random.Random) -> bool:
    def alter(events: list, place: int) -> None:  # type: ignore[type-arg]
        events[place] = msgspec.structs.replace(events[place], value="another")

    return _change_poll(history, rng, alter)


def refuse_poll(history: History, rng: random.Random) -> bool:
    """A watcher is told that history was compacted, when all it asks for is kept."""
    poll: Poll = rng.choice(history.polls)
    place = history.polls.index(poll)
    refused = msgspec.structs.replace(poll, events=(), compacted=poll.after_revision + 1)
    history.polls[place] = refused
    return True


EDITS: dict[str, Callable[[History, random.Random], bool]] = {
    "two puts reordered": reorder,
    "watch event dropped": drop_event,
    "watch event repeated": repeat_event,
    "watch events swapped": swap_events,
    "watch event altered": alter_event,
    "watch refused": refuse_poll,
}


def edited(seed: int, name: str, rates: Rates) -> None:
    """One good history with one change that breaks it for sure."""
    history = Simulation(seed, profile_of(seed, Told.ALL)).run()
    if EDITS[name](history, random.Random(seed)):
        rates.count(seed, True, check(history, RULES))


def main() -> None:
    """Print the table."""
    seeds = int(sys.argv[1])
    for told in Told:
        start = time.process_time()
        results = [good(seed, told) for seed in range(seeds)]
        alarms = [seed for seed, result in enumerate(results) if result.violations]
        undecided = sum(bool(result.undecided) for result in results)
        spent = (time.process_time() - start) / seeds
        print(
            f"good, told {told.value}: {seeds}, false alarms {alarms}, not decided {undecided},"
            f" {spent * 1000:.0f} ms each",
            flush=True,
        )
    for told in Told:
        for fault in Fault:
            rates = Rates()
            for seed in range(seeds // 10):
                faulty(seed, told, fault, rates)
            print(f"{fault.value}, told {told.value}: {rates}", flush=True)
    for name in EDITS:
        rates = Rates()
        for seed in range(seeds // 10):
            edited(seed, name, rates)
        print(f"{name}: {rates}", flush=True)


if __name__ == "__main__":
    main()
