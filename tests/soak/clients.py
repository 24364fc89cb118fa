"""Sessions that write and read through SQL, and put down what happened. Each is a thread."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import psycopg

from pgraft.shm.words import now_ns
from tests.soak.field import Field
from tests.soak.history import (
    READ,
    Command,
    Entry,
    History,
    Reading,
    Result,
    describe,
    digest_of,
    key_of,
    make_text,
    result_of,
)
from tests.support.pgcluster import Node

SMALL_BYTES = 100
BIG_BYTES_MAX = 200_000
BIG_PERCENT = 1
IMPATIENT_PERCENT = 2
IMPATIENT_MS_MAX = 30
"""A statement_timeout that ends some waits in the middle."""
PAGE_ENTRIES = 500
FIRST_INDEX = 2
"""Index 1 is where all nodes start from; there is nothing to read."""
CONNECT_AGAIN_S = 0.05


class Client(threading.Thread):
    """A thread that works in a session until `over`; `failure` is what it did not expect."""

    def __init__(self, name: str, over: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.over = over
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Work, in one session after the other."""
        try:
            while not self.over.is_set():
                with contextlib.suppress(psycopg.OperationalError):
                    node = self.choose()
                    with node.connect(prepare_threshold=1) as session:
                        self.work(node, session)
                self.over.wait(CONNECT_AGAIN_S)
        except BaseException as error:  # noqa: BLE001 - the soak looks at it
            self.failure = error

    def choose(self) -> Node:
        """The node of the next session."""
        raise NotImplementedError

    def work(self, node: Node, session: psycopg.Connection[Any]) -> None:
        """Until the session is of no use."""
        raise NotImplementedError


class Writer(Client):
    """Sends entries, one at a time. With `forwards`, through any node; else to the leader."""

    def __init__(
        self, field: Field, history: History, number: int, seed: int, pause_s: float, over: threading.Event
    ) -> None:
        super().__init__(f"writer {number}", over)
        self._field = field
        self._history = history
        self._number = number
        self._forwards = number % 2 == 1
        self._chance = random.Random(f"{seed}/writer/{number}")
        self._prefix = f"{seed}.{number}"
        self._pause_s = pause_s
        self._count = 0

    def choose(self) -> Node:
        """Who leads, as the segments say; anyone when that is not known."""
        leader = self._field.watch.leader
        if leader and not self._forwards:
            return self._field.node(leader)
        return self._chance.choice(self._field.nodes)

    def work(self, node: Node, session: psycopg.Connection[Any]) -> None:
        """Until an error says that another session would do better."""
        session.execute(f"SET pgraft.forward_proposals = {'on' if self._forwards else 'off'}")
        while not self.over.is_set():
            timeout_ms = 0
            if self._chance.randrange(100) < IMPATIENT_PERCENT:
                timeout_ms = self._chance.randint(1, IMPATIENT_MS_MAX)
                session.execute(f"SET statement_timeout = {timeout_ms}")
            result = self._command(node, session)
            if session.closed or result is Result.ERROR:
                return
            if timeout_ms:
                session.execute("RESET statement_timeout")
            self.over.wait(self._pause_s)

    def _command(self, node: Node, session: psycopg.Connection[Any]) -> Result:
        self._count += 1
        big = self._chance.randrange(100) < BIG_PERCENT
        size = self._chance.randint(SMALL_BYTES, BIG_BYTES_MAX if big else SMALL_BYTES)
        key = f"{self._prefix}.{self._count}"
        command = send(session, self._number, node, key, size)
        self._history.commands.append(command)
        return command.result


class Reader(Client):
    """Looks at one node, a few times a second."""

    def __init__(
        self, field: Field, history: History, node: Node, pause_s: float, over: threading.Event
    ) -> None:
        super().__init__(f"reader of {node.name}", over)
        self._field = field
        self._history = history
        self._node = node
        self._pause_s = pause_s

    def choose(self) -> Node:
        """Always the same."""
        return self._node

    def work(self, node: Node, session: psycopg.Connection[Any]) -> None:
        """Look until the session is gone."""
        while not self.over.wait(self._pause_s):
            asked_ns = now_ns()
            row = session.execute(READ).fetchone()
            if row is not None:
                self._history.readings.append(Reading(node.node_id, asked_ns, now_ns(), *row))


class Auditor(Client):
    """Reads the newest entries of a node now and then: they must still be there at the end."""

    def __init__(
        self, field: Field, history: History, seed: int, pause_s: float, over: threading.Event
    ) -> None:
        super().__init__("auditor", over)
        self._field = field
        self._history = history
        self._chance = random.Random(f"{seed}/auditor")
        self._pause_s = pause_s

    def choose(self) -> Node:
        """Any."""
        return self._chance.choice(self._field.nodes)

    def work(self, node: Node, session: psycopg.Connection[Any]) -> None:
        """One look, then another node."""
        self.over.wait(self._pause_s)
        commit = commit_index(session)
        first = max(FIRST_INDEX, commit - PAGE_ENTRIES + 1)
        self._history.entries += read_entries(node, session, first, commit, final=False)


def send(session: psycopg.Connection[Any], client: int, node: Node, key: str, size: int) -> Command:
    """Have an entry of about `size` characters replicated, and put down what was said."""
    text = make_text(key, size)
    sent_ns, said, result = now_ns(), "", Result.OK
    try:
        session.execute("SELECT pgraft_replicate_entry(%s)", (text,))
    except psycopg.Error as error:
        result, said = result_of(error), describe(error)
    return Command(client, key, digest_of(text), node.node_id, sent_ns, now_ns(), result, said)


def send_one(node: Node, key: str) -> Command:
    """The same in a session of its own."""
    with node.connect() as session:
        return send(session, -1, node, key, SMALL_BYTES)


def commit_index(session: psycopg.Connection[Any]) -> int:
    """The node's, 0 when it knows none."""
    row = session.execute("SELECT commit_index FROM pgraft_log_get_stats()").fetchone()
    return int(row[0]) if row is not None else 0


def read_entries(
    node: Node, session: psycopg.Connection[Any], first: int, last: int, *, final: bool
) -> Iterator[Entry]:
    """Entries `first` to `last` of the node."""
    query = "SELECT i, t FROM generate_series(%s::bigint, %s) i, LATERAL pgraft_log_get_entry(i) t"
    for index, text in session.execute(query, (first, last)):
        yield Entry(node.node_id, index, key_of(text), digest_of(text), final)


def read_log(node: Node) -> list[Entry]:
    """The whole log of a node, page by page."""
    entries: list[Entry] = []
    with node.connect(prepare_threshold=1) as session:
        last = commit_index(session)
        for first in range(FIRST_INDEX, last + 1, PAGE_ENTRIES):
            entries += read_entries(node, session, first, min(last, first + PAGE_ENTRIES - 1), final=True)
    return entries
