"""The elections of a cluster, as the nodes' own logs tell them."""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple

from tests.support.pgcluster import Node

_LEADS = re.compile(
    r"^(\d{4}-\d\d-\d\d [\d:.]+) UTC \[\d+\] LOG:  pgraft: node (\d+) is the leader at term (\d+)$",
    re.MULTILINE,
)


class Election(NamedTuple):
    """`node_id` became leader at `at` (time.time())."""

    at: float
    term: int
    node_id: int


def elections(nodes: list[Node]) -> list[Election]:
    """All that the logs hold, in order."""
    return sorted(found for node in nodes for found in in_log(node.log_text()))


def in_log(text: str) -> list[Election]:
    """Those of one node's log."""
    return [
        Election(_seconds(stamp), int(term), int(node_id)) for stamp, node_id, term in _LEADS.findall(text)
    ]


def _seconds(stamp: str) -> float:
    return datetime.datetime.fromisoformat(stamp).replace(tzinfo=datetime.UTC).timestamp()
