"""A network for the tests: each node in a namespace of its own, and a router that loses what it is told to.

The router is a namespace, too, so nothing of the machine's own network is touched. A namespace lives as
long as a process is in it: first a holder, which ends with the process that made the network, however
that ends, and then the node's own processes. Unix sockets, FIFOs and shared memory do not care for network
namespaces, so SQL clients reach every PostgreSQL by its socket.

Faults are rules of nftables in the router, for packets from one node to another; `Network.apply` puts
all of them in place at once. They are what a real network does: TCP sees loss, not an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

RAFT_PORT = 7001
"""The same on every node: each has an address of its own."""
PROXY_PORT = 7000
"""Where the router's proxy listens for the connections that are led through it."""
TOOLS = ("ip", "nft", "nsenter", "unshare")
COMMAND_TIMEOUT_S = 30
HOLDER_WAIT_S = 10
Pair = tuple[int, int]
"""(from, to), node ids from 1."""


class NetworkError(AssertionError):
    """A command of the network failed; the text holds its output."""


class Namespace:
    """A network namespace and the process that holds it."""

    def __init__(self, name: str) -> None:
        self.name = name
        # cat ends at the end of its input, which comes when this process ends, however it ends.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self._await()
        except BaseException:
            self.close()
            raise

    def _await(self) -> None:
        """Until the holder has left this process's own namespace."""
        own = os.stat("/proc/self/ns/net").st_ino
        end = time.monotonic() + HOLDER_WAIT_S
        while os.stat(self.path).st_ino == own:
            if self._holder.poll() is not None:
                _, said = self._holder.communicate()
                raise NetworkError(f"unshare --net: {said.strip()}")
            if time.monotonic() > end:
                raise NetworkError(f"no namespace {self.name} within {HOLDER_WAIT_S} s")
            time.sleep(0.005)

    @property
    def pid(self) -> int:
        """The holder's."""
        return self._holder.pid

    @property
    def path(self) -> str:
        """The file that nsenter takes."""
        return f"/proc/{self.pid}/ns/net"

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words before a command line that is to run in here."""
        return ("nsenter", f"--net={self.path}", "--")

    def run(self, *words: str, text: str | None = None) -> str:
        """Run a command in here; what it printed. Raises NetworkError."""
        done = subprocess.run(
            [*self.prefix, *words],
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            shown = f"\n{text}" if text is not None else ""
            raise NetworkError(f"{' '.join(words)} in {self.name}: {done.stderr.strip()}{shown}")
        return done.stdout

    def close(self) -> None:
        """End the holder; the namespace goes with its last process."""
        self._holder.kill()
        self._holder.communicate()


class Network:
    """`count` namespaces, numbered from 1, and the router between them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._namespaces: list[Namespace] = []
        self.cut: set[Pair] = set()
        """Pairs of which nothing comes through."""
        self.loss: dict[Pair, int] = {}
        """Pairs of which so many packets in a hundred are lost."""
        self.proxied: set[Pair] = set()
        """Pairs whose connections, asked for by the first of them, end in the router's proxy."""
        try:
            self.router = self._namespace("router")
            self._nodes = {node_id: self._join(node_id) for node_id in self.ids}
            self.router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            self.router.run("nft", "-f", "-", text=_TABLE)
        except BaseException:
            self.close()
            raise

    @property
    def ids(self) -> range:
        """All node ids."""
        return range(1, self.count + 1)

    def address(self, node_id: int) -> str:
        """The node's own address."""
        return f"10.77.{node_id}.2"

    def prefix(self, node_id: int) -> tuple[str, ...]:
        """Words before a command line that is to run in the node's namespace."""
        return self._nodes[node_id].prefix

    def namespace(self, node_id: int) -> Namespace:
        """The node's namespace."""
        return self._nodes[node_id]

    def _namespace(self, name: str) -> Namespace:
        made = Namespace(name)
        self._namespaces.append(made)
        return made

    def _join(self, node_id: int) -> Namespace:
        node, router, link = self._namespace(f"node{node_id}"), self.router, f"to-node{node_id}"
        gateway = f"10.77.{node_id}.1"
        router.run("ip", "link", "add", "name", link, "type", "veth", "peer", "eth0", "netns", str(node.pid))
        router.run("ip", "address", "add", f"{gateway}/24", "dev", link)
        router.run("ip", "link", "set", link, "up")
        node.run("ip", "link", "set", "lo", "up")
        node.run("ip", "address", "add", f"{self.address(node_id)}/24", "dev", "eth0")
        node.run("ip", "link", "set", "eth0", "up")
        node.run("ip", "route", "add", "default", "via", gateway)
        return node

    # --- faults ---------------------------------------------------------------------------------------

    def between(self, some: set[int]) -> set[Pair]:
        """Every pair with one end in `some` and the other outside, both ways."""
        others = set(self.ids) - some
        return {pair for a in some for b in others for pair in ((a, b), (b, a))}

    def apply(self) -> None:
        """Put the faults in place, all at once. Raises NetworkError."""
        rules = ["flush chain ip pgraft forwarded", "flush chain ip pgraft redirected"]
        for pair in sorted(self.cut):
            rules.append(f"add rule ip pgraft forwarded {self._match(pair)} counter name cut drop")
        for pair, percent in sorted(self.loss.items()):
            chance = f"numgen random mod 100 < {percent}"
            rules.append(f"add rule ip pgraft forwarded {self._match(pair)} {chance} counter name lost drop")
        for pair in sorted(self.proxied):
            asks = f"{self._match(pair)} tcp dport {RAFT_PORT}"
            # A connection that was made past the proxy ends with the next word on it.
            rules.append(f"add rule ip pgraft forwarded {asks} counter name broken reject with tcp reset")
            rules.append(f"add rule ip pgraft redirected {asks} redirect to :{PROXY_PORT}")
        self.router.run("nft", "-f", "-", text="\n".join(rules) + "\n")

    def heal(self) -> None:
        """No faults any more."""
        self.cut, self.loss, self.proxied = set(), {}, set()
        self.apply()

    def dropped(self) -> dict[str, int]:
        """Packets that the faults have taken so far: `cut`, `lost`, `broken`."""
        page: dict[str, Any] = json.loads(
            self.router.run("nft", "-j", "list", "counters", "table", "ip", "pgraft")
        )
        counters = [item["counter"] for item in page["nftables"] if "counter" in item]
        return {str(counter["name"]): int(counter["packets"]) for counter in counters}

    def _match(self, pair: Pair) -> str:
        return f"ip saddr {self.address(pair[0])} ip daddr {self.address(pair[1])}"

    def close(self) -> None:
        """End the holders. What still runs in a namespace keeps it; end the nodes first."""
        for namespace in self._namespaces:
            namespace.close()


_TABLE = """
table ip pgraft {
  counter cut { }
  counter lost { }
  counter broken { }
  # The kernel tracks connections only where a rule asks for their state. It must know those that were made
  # before the first redirection, or it would lead them away in the middle.
  chain tracked { type filter hook prerouting priority -150; ct state invalid accept; }
  chain redirected { type nat hook prerouting priority -100; policy accept; }
  chain forwarded { type filter hook forward priority 0; policy accept; }
}
"""


@contextlib.contextmanager
def network(count: int) -> Iterator[Network]:
    """A network that is gone afterwards."""
    made = Network(count)
    try:
        yield made
    finally:
        made.close()


def why_not() -> str:
    """Why there can be no such network here; empty when there can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)} (Debian: apt-get install iproute2 nftables util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    # One of each kind that the network is made of: the kernel or the sandbox may lack any of them.
    tried = subprocess.run(
        ["unshare", "--net", "sh", "-ec", _TRIAL],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    return f"network namespaces are not to be had: {tried.stderr.strip()}" if tried.returncode else ""


_TRIAL = """
ip link add name here type veth peer there
echo 1 > /proc/sys/net/ipv4/ip_forward
nft add table ip trial
nft 'add chain ip trial f { type filter hook forward priority 0; }'
nft 'add chain ip trial r { type nat hook prerouting priority -100; }'
nft add rule ip trial f numgen random mod 100 '<' 5 drop
nft add rule ip trial f ip protocol tcp counter reject with tcp reset
nft add rule ip trial r tcp dport 7001 redirect to :7000
"""
