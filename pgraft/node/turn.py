"""One turn of a replica: what is read, in which order, and how its outputs are carried out.

An executor is the world around a replica. There are two: the Raft worker's (pgraft/executor.py) and the
simulator's (tests/simulation/host.py). Both go through `turn`, so the order stands here and nowhere else.

The contract: the next call of `Replica.step` says that everything of the one before was carried out. Where a
part fails, nothing behind it happens, and `step` is never called again.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Protocol

from pgraft.node.commands import Answer, Command
from pgraft.node.node import Replica
from pgraft.node.outputs import Inputs, LogLine, Outputs, Sending
from pgraft.raft.types import Entry, HardState, Snapshot
from pgraft.storage import Identity

STEPS_MAX = 64
"""Steps of one turn behind the first. What is left comes in the next, behind new records and commands."""


class Executor(Protocol):
    """The world around one replica. A call that fails raises, and is the last one."""

    def note(self, inputs: Inputs) -> None:
        """Fill in `unsent`, `yields` and `network_epoch`."""

    def read_records(self) -> list[bytes]:
        """What the network process has put on its ring."""

    def clock_ns(self) -> int:
        """The time (CLOCK_BOOTTIME ns)."""

    def take_commands(self, now_ns: int) -> list[Command]:
        """What sessions ask; their time begins now."""

    def save_identity(self, identity: Identity) -> None:
        """Write and sync the identity."""

    def save_peers(self, member_ids: dict[int, int]) -> None:
        """Write and sync the peers' member ids."""

    def show_lease(self, end_ns: int) -> None:
        """Store the lease's end where every session reads it."""

    def tell_network(self, records: list[bytes]) -> None:
        """Hand records to the network process."""

    def send(self, sendings: list[Sending]) -> None:
        """Hand envelopes to the network process; what finds no room is a peer of the next `unsent`."""

    def persist(self, hard_state: HardState, entries: list[Entry], snapshot: Snapshot | None) -> None:
        """Write and sync one batch, behind the snapshot where there is one."""

    def compact(self, snapshot: Snapshot) -> None:
        """Let the snapshot take the place of the entries up to it."""

    def publish(self, outputs: Outputs) -> None:
        """Show members, status, the first lease of a term, and the words, in this order."""

    def answer(self, answers: list[tuple[Command, Answer]]) -> None:
        """Wake the sessions that wait for these."""

    def log(self, lines: list[LogLine]) -> None:
        """Write the server log."""


class Part(enum.Enum):
    """A part of a turn that is done."""

    RECORDS = "records"
    CLOCK = "clock"
    STEP = "step"
    FILES = "files"
    LEASE = "lease"
    EARLY = "early"
    PERSIST = "persist"
    PUBLISH = "publish"
    LATE = "late"
    COMPACT = "compact"
    ANSWERS = "answers"


def carry_out(outputs: Outputs, executor: Executor) -> Iterator[Part]:
    """The order of all that a step does to the world; yields after each part that there was.

    Between any two parts the process may be stopped for any time, or die.
    """
    if outputs.identity is not None or outputs.peers is not None:
        if outputs.identity is not None:
            executor.save_identity(outputs.identity)
        if outputs.peers is not None:
            executor.save_peers(outputs.peers)
        yield Part.FILES
    if outputs.lease_end_ns is not None:
        executor.show_lease(outputs.lease_end_ns)
        yield Part.LEASE
    if outputs.network:
        executor.tell_network(outputs.network)
    if outputs.early:
        executor.send(outputs.early)
        yield Part.EARLY
    if outputs.hard_state is not None:
        executor.persist(outputs.hard_state, outputs.entries, outputs.snapshot)
        yield Part.PERSIST
    executor.publish(outputs)
    yield Part.PUBLISH
    if outputs.late:
        executor.send(outputs.late)
        yield Part.LATE
    if outputs.compact is not None:
        executor.compact(outputs.compact)
        yield Part.COMPACT
    if outputs.answers:
        executor.answer(outputs.answers)
        yield Part.ANSWERS
    if outputs.log:
        executor.log(outputs.log)


def turn(replica: Replica, executor: Executor, inputs: Inputs) -> Iterator[Part]:
    """Take what has come, and step until nothing is left to do at once, or STEPS_MAX are done. Yields after
    each part. The outputs of the last step are then `replica.outputs`. `inputs` is filled anew.

    The time is read behind the records. This process may be stopped between any two parts, for any time; it
    must not answer a leader's round with a promise that begins before that round was sent.
    """
    executor.note(inputs)
    inputs.records = executor.read_records()
    yield Part.RECORDS
    now = executor.clock_ns()
    yield Part.CLOCK
    inputs.commands = executor.take_commands(now)
    outputs = replica.step(inputs, now)
    yield Part.STEP
    yield from carry_out(outputs, executor)
    for _ in range(STEPS_MAX):
        if not outputs.more:
            return
        executor.note(inputs)
        inputs.records, inputs.commands = [], []
        now = executor.clock_ns()
        yield Part.CLOCK
        outputs = replica.step(inputs, now)
        yield Part.STEP
        yield from carry_out(outputs, executor)
