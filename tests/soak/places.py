"""Where the nodes of a cluster run: each in a network namespace of its own, or behind a proxy on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from tests.soak.netns import PROXY_PORT, RAFT_PORT, Network
from tests.soak.proxy import Door, Plan
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
    """For nodes on loopback that know each other by ports of a proxy."""

    def __init__(self) -> None:
        self.doors: list[Door] = []

    def place(self, node: Node) -> None:
        """The node listens on a port of its own, and what it was given is the proxy's."""
        own = free_port()
        node.settings["pgraft.listen_address"] = f"127.0.0.1:{own}"
        self.doors.append(Door(node.node_id, node.raft_port, "127.0.0.1", own))

    def plan(self, seed: int) -> Plan:
        """Of the proxy; start it before the nodes."""
        return Plan(seed=seed, doors=self.doors)
