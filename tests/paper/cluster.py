"""A cluster in one process for the tests of this folder: nodes, their storages, and the wire between them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from pgraft.raft import (
    Config,
    ConfState,
    Entry,
    EntryType,
    HardState,
    MemoryStorage,
    Message,
    MessageType,
    RaftError,
    RawNode,
    ReadState,
    Ready,
    StateType,
    decode_conf_change,
)

ELECTION_TICK = 10
HEARTBEAT_TICK = 1

LEADER = StateType.StateLeader
FOLLOWER = StateType.StateFollower
CANDIDATE = StateType.StateCandidate
PRE_CANDIDATE = StateType.StatePreCandidate


class SeededStorage(MemoryStorage):
    """A storage that begins with a configuration and a log from index 1, as in the paper's figures."""

    def __init__(
        self, conf_state: ConfState, terms: Iterable[int] = (), hard: HardState | None = None
    ) -> None:
        super().__init__()
        self.conf_state = conf_state
        self.append([Entry(term=term, index=index) for index, term in enumerate(terms, 1)])
        if hard is not None:
            self.set_hard_state(hard)

    def initial_state(self) -> tuple[HardState, ConfState]:
        hard, stored = super().initial_state()
        return hard, stored if stored.voters else self.conf_state


def make_node(
    id: int = 1,
    voters: Iterable[int] = (1, 2, 3),
    *,
    learners: Iterable[int] = (),
    terms: Iterable[int] = (),
    hard: HardState | None = None,
    storage: MemoryStorage | None = None,
    **config: Any,
) -> tuple[RawNode, MemoryStorage]:
    """A node alone, with the log whose entries have `terms`."""
    if storage is None:
        storage = SeededStorage(ConfState(tuple(voters), tuple(learners)), terms, hard)
    fields: dict[str, Any] = {
        "id": id,
        "election_tick": ELECTION_TICK,
        "heartbeat_tick": HEARTBEAT_TICK,
        "storage": storage,
        "rng": random.Random(id),
    }
    return RawNode(Config(**(fields | config))), storage


def carry_out(node: RawNode, storage: MemoryStorage) -> Ready:
    """Take a Ready, store it, apply it, advance."""
    ready = node.ready()
    if ready.hard_state is not None:
        storage.set_hard_state(ready.hard_state)
    if ready.snapshot is not None:
        storage.apply_snapshot(ready.snapshot)
    storage.append(ready.entries)
    for entry in ready.committed_entries:
        if entry.type != EntryType.EntryNormal:
            node.apply_conf_change(decode_conf_change(entry))
    node.advance(ready)
    return ready


def drain(node: RawNode, storage: MemoryStorage) -> list[Message]:
    """Carry out all that a node alone wants done; the messages it sent."""
    sent: list[Message] = []
    while node.has_ready():
        sent += carry_out(node, storage).messages
    return sent


def lead(node: RawNode, storage: MemoryStorage) -> None:
    """Make a node alone leader, with the votes of all others, and forget what it sent."""
    node.campaign()
    drain(node, storage)
    for id in node.raft.trk.voter_ids():
        if id != node.raft.id and node.raft.state is CANDIDATE:
            node.step(Message(type=MessageType.MsgVoteResp, from_=id, to=node.raft.id, term=node.raft.term))
    assert node.raft.state is LEADER
    drain(node, storage)


def acknowledge(node: RawNode, id: int, index: int) -> None:
    """Let node `id` acknowledge the log up to `index`."""
    node.step(
        Message(type=MessageType.MsgAppResp, from_=id, to=node.raft.id, term=node.raft.term, index=index)
    )


class Cluster:
    """Nodes whose messages pass through `queue`; `cut` holds the (from, to) links that lose everything."""

    def __init__(
        self,
        ids: Iterable[int] = (1, 2, 3),
        *,
        learners: Iterable[int] = (),
        logs: dict[int, list[int]] | None = None,
        hards: dict[int, HardState] | None = None,
        **config: Any,
    ) -> None:
        conf_state = ConfState(tuple(ids), tuple(learners))
        self.config = config
        self.nodes: dict[int, RawNode] = {}
        self.storages: dict[int, MemoryStorage] = {}
        self.applied: dict[int, list[Entry]] = {}
        self.reads: dict[int, list[ReadState]] = {}
        self.queue: list[Message] = []
        self.sent: list[Message] = []
        self.cut: set[tuple[int, int]] = set()
        self.lose: Callable[[Message], bool] = lambda m: False
        for id in (*ids, *learners):
            storage = SeededStorage(conf_state, (logs or {}).get(id, ()), (hards or {}).get(id))
            self.add(id, storage)

    def add(self, id: int, storage: MemoryStorage, *, applied: int = 0) -> None:
        """Start node `id` on `storage`."""
        self.storages[id] = storage
        self.nodes[id], _ = make_node(id, storage=storage, applied=applied, **self.config)
        self.applied.setdefault(id, [])
        self.reads.setdefault(id, [])

    def restart(self, id: int) -> None:
        """Crash node `id` and start it on what was stored; it applies everything anew."""
        self.applied[id] = []
        self.queue = [m for m in self.queue if m.from_ != id and m.to != id]
        self.add(id, self.storages[id])

    def __getitem__(self, id: int) -> RawNode:
        return self.nodes[id]

    # The wire

    def isolate(self, id: int) -> None:
        """Cut all links of node `id`."""
        for other in self.nodes:
            self.cut |= {(id, other), (other, id)}

    def heal(self) -> None:
        """All links work again."""
        self.cut.clear()
        self.lose = lambda m: False

    def work(self, id: int) -> Ready:
        """Carry out one Ready of node `id`."""
        ready = carry_out(self.nodes[id], self.storages[id])
        self.applied[id] += ready.committed_entries
        self.reads[id] += ready.read_states
        self.queue += ready.messages
        self.sent += ready.messages
        return ready

    def deliver(self) -> None:
        """Deliver what is on the wire."""
        messages, self.queue = self.queue, []
        for m in messages:
            if (m.from_, m.to) in self.cut or self.lose(m) or m.to not in self.nodes:
                continue
            try:
                self.nodes[m.to].step(m)
            except RaftError:
                continue

    def settle(self) -> None:
        """Until nothing happens any more."""
        while self.queue or any(node.has_ready() for node in self.nodes.values()):
            for id, node in self.nodes.items():
                if node.has_ready():
                    self.work(id)
            self.deliver()

    # Shorthands

    def tick(self, ticks: int = 1, *ids: int) -> None:
        """Let time pass, for `ids` or all nodes, and settle after each tick."""
        for _ in range(ticks):
            for id in ids or self.nodes:
                self.nodes[id].tick()
            self.settle()

    def elect(self, id: int) -> RawNode:
        """Let node `id` campaign, and win."""
        self.nodes[id].campaign()
        self.settle()
        assert self.nodes[id].raft.state is LEADER
        return self.nodes[id]

    def leaders(self) -> list[int]:
        """Who believes to lead."""
        return [id for id, node in self.nodes.items() if node.raft.state is LEADER]

    def terms(self, id: int) -> list[int]:
        """The terms of node `id`'s stored entries."""
        storage = self.storages[id]
        return [storage.term(index) for index in range(storage.first_index(), storage.last_index() + 1)]

    def data(self, id: int) -> list[bytes]:
        """What node `id` has applied that carries data."""
        return [e.data for e in self.applied[id] if e.type == EntryType.EntryNormal and e.data]
