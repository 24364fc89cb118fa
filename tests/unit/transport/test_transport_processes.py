"""Network processes with real segments, the test playing the workers."""

from __future__ import annotations

from pgraft.transport.records import RecordKind
from tests.support.transport_nodes import Cluster


def test_messages_travel_both_ways(cluster: Cluster) -> None:
    one, two = cluster.up(2)
    one.send(2, b"to two", b"again")
    two.send(1, b"to one")
    two.wait_for(RecordKind.MESSAGE, 1, b"again")
    one.wait_for(RecordKind.MESSAGE, 2, b"to one")
