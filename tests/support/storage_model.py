"""What a Store must hold, kept in the simplest way, and random operations on both."""

from __future__ import annotations

import random
from typing import NamedTuple

from pgraft.raft.types import ConfState, Entry, EntryType, HardState, Snapshot, SnapshotMetadata
from pgraft.storage import Store

NO_LIMIT = 2**64 - 1


class State(NamedTuple):
    """All that a reader of a Store can see."""

    hard_state: HardState
    snapshot: Snapshot
    entries: tuple[tuple[int, int, int, bytes], ...]

    @property
    def essence(self) -> tuple[object, ...]:
        """Everything but the commit index."""
        return (self.hard_state.term, self.hard_state.vote, self.snapshot, self.entries)


def state_of(store: Store) -> State:
    """The Store's state, asked for through its public face; checks that its parts agree."""
    first, last = store.first_index(), store.last_index()
    entries: list[Entry] = []
    while first + len(entries) <= last:
        entries += store.entries(first + len(entries), last + 1, NO_LIMIT)
    assert [e.index for e in entries] == list(range(first, last + 1))
    assert [store.term(e.index) for e in entries] == [e.term for e in entries]
    snapshot = store.snapshot()
    assert snapshot.metadata.index == first - 1
    assert store.term(first - 1) == snapshot.metadata.term
    hard_state, conf_state = store.initial_state()
    assert conf_state == snapshot.metadata.conf_state
    assert hard_state == store.hard_state
    changes = [e for e in entries if e.type != EntryType.EntryNormal]
    assert store.conf_change_entries(first, last + 1) == changes
    return State(hard_state, snapshot, tuple((e.term, e.index, e.type, e.data) for e in entries))


class Model:
    """A Store's twin in memory, and a source of operations that are allowed next."""

    def __init__(self, rng: random.Random, data_bytes_max: int = 1500) -> None:
        self.rng = rng
        self.data_bytes_max = data_bytes_max
        self.hard_state = HardState()
        self.snapshot = Snapshot()
        self.entries: list[Entry] = []

    @classmethod
    def of(cls, state: State, rng: random.Random, data_bytes_max: int) -> Model:
        """The twin of a Store that shows `state`."""
        model = cls(rng, data_bytes_max)
        model.hard_state, model.snapshot = state.hard_state, state.snapshot
        model.entries = [Entry(*fields) for fields in state.entries]
        return model

    @property
    def first(self) -> int:
        """Index of the first entry."""
        return self.snapshot.metadata.index + 1

    @property
    def last(self) -> int:
        """Index of the last entry."""
        return self.first + len(self.entries) - 1

    def state(self) -> State:
        """What the Store must show."""
        entries = tuple((e.term, e.index, e.type, e.data) for e in self.entries)
        return State(self.hard_state, self.snapshot, entries)

    def step(self, store: Store) -> str:
        """One random operation on both. Its name comes back; "commit" is the one that is not synced."""
        operations = ["append"] * 6 + ["replace"] * 2 + ["commit"] * 3 + ["vote", "compact", "install"]
        name = self.rng.choice(operations)
        match name:
            case "replace" if self.last > self.hard_state.commit:
                self._append(store, self.rng.randint(self.hard_state.commit + 1, self.last))
            case "commit" if self.last > self.hard_state.commit:
                self._commit(store)
            case "vote":
                self._vote(store)
            case "compact" if self.hard_state.commit >= self.first:
                self._compact(store)
            case "install" if self.rng.random() < 0.5:
                self._install(store)
            case _:
                self._append(store, self.last + 1)
                name = "append"
        return name

    def _append(self, store: Store, first: int) -> None:
        term = self.hard_state.term + (1 if first <= self.last else self.rng.choice((0, 0, 0, 1)))
        term = max(term, 1)
        entries = []
        for index in range(first, first + self.rng.randint(1, 5)):
            kind = EntryType.EntryConfChangeV2 if self.rng.random() < 0.1 else EntryType.EntryNormal
            data = self.rng.randbytes(self.rng.choice((0, 10, 100, self.data_bytes_max)))
            entries.append(Entry(term, index, int(kind), data))
        if self.rng.random() < 0.2 and len(entries) > 2:
            term += 1
            for entry in entries[2:]:
                entry.term = term
        vote = self.hard_state.vote if term == self.hard_state.term else 0
        commit = self.rng.randint(self.hard_state.commit, max(self.hard_state.commit, first - 1))
        state = HardState(term, vote, commit)
        store.append(None if state == self.hard_state else state, entries)
        del self.entries[first - self.first :]
        self.entries += entries
        self.hard_state = state

    def _commit(self, store: Store) -> None:
        commit = self.rng.randint(self.hard_state.commit + 1, self.last)
        state = HardState(self.hard_state.term, self.hard_state.vote, commit)
        store.append(state, [], must_sync=False)
        self.hard_state = state

    def _vote(self, store: Store) -> None:
        state = HardState(self.hard_state.term + 1, self.rng.randint(1, 3), self.hard_state.commit)
        store.append(state, [])
        self.hard_state = state

    def _snapshot(self, index: int, term: int) -> Snapshot:
        voters = tuple(range(1, self.rng.randint(2, 6)))
        data = self.rng.randbytes(self.rng.choice((0, 30, 3000)))
        return Snapshot(SnapshotMetadata(ConfState(voters), index, term), data)

    def _compact(self, store: Store) -> None:
        index = self.rng.randint(self.first, self.hard_state.commit)
        snapshot = self._snapshot(index, self.entries[index - self.first].term)
        store.compact(snapshot)
        del self.entries[: index + 1 - self.first]
        self.snapshot = snapshot

    def _install(self, store: Store) -> None:
        index = self.rng.randint(self.hard_state.commit + 1, self.last + 3)
        term = max(self.hard_state.term, 1) + self.rng.randint(0, 1)
        snapshot = self._snapshot(index, term)
        store.install_snapshot(snapshot)
        vote = self.hard_state.vote if term == self.hard_state.term else 0
        self.hard_state = HardState(term, vote, index)
        self.snapshot = snapshot
        self.entries = []
