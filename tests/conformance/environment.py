"""The cluster that a file's `interaction` directives drive: nodes in memory, messages in a bag."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from pgraft.raft import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    Config,
    Entry,
    EntryType,
    HardState,
    MemoryStorage,
    Message,
    MessageType,
    RaftError,
    RawNode,
    Snapshot,
    SnapshotMetadata,
    decode_conf_change,
)
from pgraft.raft.describe import describe_entries, describe_message, describe_ready
from pgraft.raft.errors import ErrConfChange

LOCAL_TARGETS = (LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD)


class DirectiveError(Exception):
    """A directive that cannot be carried out; its text is the directive's output."""


class LateRandom(random.Random):
    """Draws the longest election timeout: scenarios set the ones that matter."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        """The largest value."""
        return (start if stop is None else stop) - step


class HistoryStorage(MemoryStorage):
    """A storage whose snapshot is always the newest applied state, wherever the log begins."""

    def __init__(self, history: list[Snapshot]) -> None:
        super().__init__()
        self._history = history

    def snapshot(self) -> Snapshot:
        """See Storage."""
        return self._history[-1]


@dataclass
class Node:
    """A node, its storage, the snapshots after each applied entry, and the work of its local threads."""

    raw: RawNode
    config: Config
    storage: HistoryStorage
    history: list[Snapshot]
    append_work: list[Message] = field(default_factory=list)
    apply_work: list[Message] = field(default_factory=list)

    def store(self, hard_state: HardState | None, entries: list[Entry], snapshot: Snapshot | None) -> None:
        """Carry out an append."""
        if hard_state is not None and hard_state != HardState():
            self.storage.set_hard_state(hard_state)
        if snapshot is not None:
            if entries:
                raise DirectiveError("can't apply snapshot and entries at the same time")
            self.storage.apply_snapshot(snapshot)
            self.history.append(snapshot)
            return
        self.storage.append(entries)

    def apply(self, entries: list[Entry]) -> None:
        """Apply entries to a state machine that appends all data to one string."""
        for entry in entries:
            before = self.history[-1]
            conf_state = before.metadata.conf_state
            update = entry.data
            if entry.type != EntryType.EntryNormal:
                change = decode_conf_change(entry)
                update = change.context
                conf_state = self.raw.apply_conf_change(change)
            metadata = SnapshotMetadata(conf_state=conf_state, index=entry.index, term=entry.term)
            self.history.append(Snapshot(metadata=metadata, data=before.data + update))


def error_text(error: RaftError) -> str:
    """The error as etcd words it: without our details."""
    return str(error) if isinstance(error, ErrConfChange) else error.text


def is_local(m: Message) -> bool:
    """Whether a message stays within its node, and therefore cannot be lost."""
    return m.from_ == m.to or m.from_ in LOCAL_TARGETS or m.to in LOCAL_TARGETS


class Environment:
    """Nodes 1, 2, … and the messages between them. Output is collected unless `quiet`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.messages: list[Message] = []
        self.quiet = False
        self._output: list[str] = []

    # Output

    def take_output(self) -> str:
        """What was written since the last call."""
        output, self._output = self._output, []
        return "".join(output)

    def write(self, text: str) -> None:
        """Add to the output."""
        if not self.quiet:
            self._output.append(text)

    def indented(self, action: Callable[[], object]) -> None:
        """Carry out `action` with its output indented."""
        before, self._output = self._output, []
        try:
            action()
        finally:
            inner = "".join(self._output).splitlines()
            self._output = before + [f"  {line}\n" for line in inner]

    # Nodes

    def node(self, id: int) -> Node:
        """Node `id`."""
        if not 1 <= id <= len(self.nodes):
            raise DirectiveError(f"there is no node {id}")
        return self.nodes[id - 1]

    def add_node(self, make_config: Callable[[int, HistoryStorage], Config], snapshot: Snapshot) -> None:
        """Add the next node, starting from `snapshot`; an empty one means from nothing."""
        history = [snapshot]
        storage = HistoryStorage(history)
        if snapshot != Snapshot():
            if snapshot.metadata.index <= 1:
                raise DirectiveError("index must be specified as > 1 due to bootstrap")
            storage.apply_snapshot(snapshot)
        config = make_config(len(self.nodes) + 1, storage)
        self.nodes.append(Node(RawNode(config), config, storage, history))

    # Work

    def process_ready(self, node: Node) -> None:
        """Take a Ready and do what it asks, or hand it to the local threads."""
        ready = node.raw.ready()
        self.write(describe_ready(ready))
        if not node.config.async_storage_writes:
            node.store(ready.hard_state, ready.entries, ready.snapshot)
            node.apply(ready.committed_entries)
        for m in ready.messages:
            if m.to not in LOCAL_TARGETS:
                self.messages.append(m)
            elif m.type is MessageType.MsgStorageAppend:
                node.append_work.append(m)
            else:
                node.apply_work.append(m)
        if not node.config.async_storage_writes:
            node.raw.advance(ready)

    def process_append_thread(self, node: Node) -> None:
        """Carry out the oldest append."""
        if not node.append_work:
            self.write("no append work to perform")
            return
        m = node.append_work.pop(0)
        self._work_header(m)
        node.store(HardState(m.term, m.vote, m.commit), m.entries, m.snapshot)
        self._respond(m)

    def process_apply_thread(self, node: Node) -> None:
        """Carry out the oldest apply."""
        if not node.apply_work:
            self.write("no apply work to perform")
            return
        m = node.apply_work.pop(0)
        self._work_header(m)
        node.apply(m.entries)
        self._respond(m)

    def _work_header(self, m: Message) -> None:
        shown = Message(**{name: getattr(m, name) for name in m.__struct_fields__ if name != "responses"})
        self.write(f"Processing:\n{describe_message(shown)}\n")

    def _respond(self, m: Message) -> None:
        self.write("Responses:\n" + "".join(f"{describe_message(r)}\n" for r in m.responses))
        self.messages += m.responses

    # Messages

    def messages_to(self, id: int, kind: MessageType | None, drop: bool) -> list[Message]:
        """The messages that deliver() would take, in order."""
        return [
            m
            for m in self.messages
            if m.to == id and (kind is None or m.type is kind) and not (drop and is_local(m))
        ]

    def deliver(self, id: int, kind: MessageType | None = None, drop: bool = False) -> int:
        """Deliver (or drop) the messages to node `id`; how many."""
        taken = self.messages_to(id, kind, drop)
        self.messages = [m for m in self.messages if not any(m is one for one in taken)]
        for m in taken:
            self.write(("dropped: " if drop else "") + describe_message(m) + "\n")
            if drop:
                continue
            try:
                self.node(id).raw.step(m)
            except RaftError as error:
                self.write(error_text(error) + "\n")
        return len(taken)

    def stabilize(self, ids: list[int]) -> None:
        """Let the nodes work and exchange messages until nothing happens any more."""
        ids = ids or [position + 1 for position in range(len(self.nodes))]
        busy = True
        while busy:
            busy = False
            for id in ids:
                if self.node(id).raw.has_ready():
                    busy = True
                    self._headed(id, "handling Ready", self.process_ready)
            for id in ids:
                if self.messages_to(id, None, drop=False):
                    busy = True
                    self.write(f"> {id} receiving messages\n")
                    self.indented(lambda id=id: self.deliver(id))  # type: ignore[misc]
            for id in ids:
                if self.node(id).append_work:
                    busy = True
                    self._headed(id, "processing append thread", self._all_appends)
            for id in ids:
                if self.node(id).apply_work:
                    busy = True
                    self._headed(id, "processing apply thread", self._all_applies)

    def _headed(self, id: int, title: str, action: Callable[[Node], None]) -> None:
        self.write(f"> {id} {title}\n")
        self.indented(lambda: action(self.node(id)))

    def _all_appends(self, node: Node) -> None:
        while node.append_work:
            self.process_append_thread(node)

    def _all_applies(self, node: Node) -> None:
        while node.apply_work:
            self.process_apply_thread(node)

    # Views

    def show_log(self, node: Node) -> None:
        """The entries in a node's storage."""
        first, last = node.storage.first_index(), node.storage.last_index()
        if last < first:
            self.write(f"log is empty: first index={first}, last index={last}")
            return
        self.write(describe_entries(node.storage.entries(first, last + 1, 2**64 - 1)))

    def show_states(self) -> None:
        """A line for each node: role, whether it votes, term, leader."""
        for node in self.nodes:
            status = node.raw.status()
            basic = status.basic
            voter = "Voter" if basic.id in status.config.voters.ids() else "Non-Voter"
            state = basic.soft_state.raft_state.name
            self.write(
                f"{basic.id}: {state} ({voter}) Term:{basic.hard_state.term} Lead:{basic.soft_state.lead}\n"
            )
