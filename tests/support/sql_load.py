"""Sessions that replicate entries through SQL while something happens to the cluster, and remember
what they were told: acknowledged, refused (nothing written) or unknown.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import psycopg

from tests.support.pgcluster import Cluster, Failed, Node

PAUSE_S = 0.002
"""Between two entries of a session."""
RETRY_S = 0.005
"""Between two tries of a session that found no leader; there is no event that tells of one."""


class Load:
    """`sessions` threads, each with one connection at a time, to whichever node leads."""

    def __init__(self, cluster: Cluster, sessions: int) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(sessions)]
        self.acknowledged: list[str] = []
        self.unknown: list[str] = []
        self.refused = 0
        self.broken: list[str] = []

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and complain of what no client should ever see."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.broken:
            raise Failed(f"{len(self.broken)} unexpected errors, the first: {self.broken[0]}")

    def wait_for(self, more: int, timeout_s: float = 60) -> None:
        """Until `more` entries were acknowledged from now on."""
        target, end = len(self.acknowledged) + more, time.monotonic() + timeout_s
        while len(self.acknowledged) < target:
            if time.monotonic() > end:
                raise Failed(f"only {len(self.acknowledged)} of {target} entries within {timeout_s} s")
            self._stop.wait(RETRY_S)

    def _run(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            node = self._leader()
            if node is None:
                self._stop.wait(RETRY_S)
                continue
            with contextlib.suppress(psycopg.OperationalError), node.connect() as session:
                while not self._stop.is_set():
                    count += 1
                    if not self._one(session, f"{number}.{count}"):
                        break

    def _leader(self) -> Node | None:
        for node in self._cluster.nodes:
            with contextlib.suppress(psycopg.Error):
                if node.value("SELECT pgraft_is_leader()"):
                    return node
        return None

    def _one(self, session: psycopg.Connection[object], text: str) -> bool:
        """Replicate one entry; False when this session had better look for the leader again."""
        try:
            session.execute("SELECT pgraft_replicate_entry(%s)", (text,))
        except psycopg.errors.ObjectNotInPrerequisiteState:
            self.refused += 1
            return False
        except (psycopg.errors.StatementCompletionUnknown, psycopg.OperationalError):
            # 40003; or the server ended the session: 57P01, or the connection broke.
            self.unknown.append(text)
            return False
        except psycopg.Error as error:
            self.broken.append(f"{error.sqlstate} {error}")
            return False
        self.acknowledged.append(text)
        # A pause, so that there is not more than can be read back in a moment.
        self._stop.wait(PAUSE_S)
        return True

    def check(self, nodes: Sequence[Node]) -> None:
        """Every node has each acknowledged entry once, and an unknown one at most once."""
        for node in nodes:
            found = Counter(log_of(node))
            missing = [text for text in self.acknowledged if found[text] != 1]
            twice = [text for text in self.unknown if found[text] > 1]
            if missing or twice:
                raise Failed(f"{node.name}: acknowledged but not there once {missing[:5]}, twice {twice[:5]}")


def log_of(node: Node) -> list[str]:
    """The texts of the node's committed entries, in order."""
    rows = node.sql(
        "SELECT pgraft_log_get_entry(i) FROM generate_series(2, (SELECT commit_index FROM"
        " pgraft_log_get_stats())) AS i"
    )
    return [text for (text,) in rows if text is not None]


@contextlib.contextmanager
def load(cluster: Cluster, sessions: int = 4) -> Iterator[Load]:
    """Sessions that are at work meanwhile; `check` then compares what they were told."""
    work = Load(cluster, sessions)
    work.start()
    try:
        yield work
    finally:
        work.stop()
