"""Where the nodes of a cluster run: each in a network namespace of its own, or behind a proxy on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from tests.soak.netns import PROXY_PORT, RAFT_PORT, Network
from tests.soak.proxy import Door, Pair, Plan
from tests.support.pgcluster import Node, free_port, server_user

Place = Callable[[Node], None]


def in_namespaces(network: Network) -> Place:
    """Each node in its namespace; SQL clients use a unix socket, which lies outside of all that."""

    def place(node: Node) -> None:
        sockets = node.cluster.root / "s"
        sockets.mkdir(exist_ok=True)
        if user := server_user():
            shutil.chown(sockets, user)
        node.address, node.raft_port = network.address(node.node_id), RAFT_PORT
        node.prefix = network.prefix(node.node_id)
        node.pg_host = str(sockets)
        node.settings |= {"unix_socket_directories": str(sockets), "listen_addresses": ""}

    return place


def router_plan(network: Network, seed: int) -> Plan:
    """Of a proxy in the network's router, for the pairs that are led through it."""
    addresses = {network.address(node_id): node_id for node_id in network.ids}
    return Plan(seed=seed, redirected_port=PROXY_PORT, addresses=addresses)


class Doors:
    """For `count` nodes on loopback that know each other by ports of a proxy, which is started first."""

    def __init__(self, count: int) -> None:
        ids = range(1, count + 1)
        self._doors = {n: Door(n, free_port(), "127.0.0.1", free_port()) for n in ids}

    @property
    def pairs(self) -> list[Pair]:
        """Every link."""
        return [(a, b) for a in self._doors for b in self._doors if a != b]

    def place(self, node: Node) -> None:
        """The others find the node at the proxy's port; it listens on its own."""
        door = self._doors[node.node_id]
        node.raft_port = door.port
        node.settings["pgraft.listen_address"] = f"{door.to_host}:{door.to_port}"

    def plan(self, seed: int) -> Plan:
        """Of the proxy."""
        return Plan(seed=seed, doors=list(self._doors.values()))
