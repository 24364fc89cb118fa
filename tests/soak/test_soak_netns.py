"""The network of namespaces loses what it is told to lose, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.netns import RAFT_PORT, Network, network, why_not
from tests.soak.places import router_plan
from tests.soak.proxy import REPO, proxy
from tests.support.pgcluster import eventually

WAIT_S = 30
ANSWERS = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
while True:
    sock, _ = listener.accept()
    while data := sock.recv(100):
        sock.sendall(data)
"""
ASKS = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
print("connected", flush=True)
for line in sys.stdin:
    try:
        sock.settimeout(float(line))
        sock.sendall(b"x")
        print(len(sock.recv(1)), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture(scope="module")
def made() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    with network(2) as net:
        yield net


@pytest.fixture
def net(made: Network) -> Iterator[Network]:
    yield made
    made.heal()


class Process:
    """A program in a node's namespace, asked and answering by lines."""

    def __init__(self, net: Network, node_id: int, program: str, host: str) -> None:
        self._process = subprocess.Popen(
            [*net.prefix(node_id), sys.executable, "-c", program, host, str(RAFT_PORT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = self.hear()

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, timeout_s: float) -> str:
        """One byte there and back: `1`, or the error's name."""
        assert self._process.stdin is not None
        print(timeout_s, file=self._process.stdin, flush=True)
        return self.hear()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def talking(net: Network) -> Iterator[Process]:
    """Node 1 is connected to node 2, which answers."""
    answers = Process(net, 2, ANSWERS, net.address(2))
    try:
        assert answers.first == "listening"
        asks = Process(net, 1, ASKS, net.address(2))
        try:
            assert asks.first == "connected"
            assert asks.ask(WAIT_S) == "1"
            yield asks
        finally:
            asks.close()
    finally:
        answers.close()


@pytest.mark.parametrize("cut", [{(1, 2)}, {(2, 1)}, {(1, 2), (2, 1)}])
def test_what_is_cut_does_not_come_through_until_it_is_healed(
    net: Network, cut: set[tuple[int, int]]
) -> None:
    with talking(net) as asks:
        net.cut = cut
        net.apply()
        before = net.dropped()["cut"]
        assert asks.ask(0.3) == "TimeoutError"
        assert net.dropped()["cut"] > before
        net.heal()
        assert asks.ask(WAIT_S) == "1"  # TCP sends again


def test_loss_takes_its_part_and_tcp_mends_it(net: Network) -> None:
    with talking(net) as asks:
        net.loss = {(1, 2): 20, (2, 1): 20}
        net.apply()
        before = net.dropped()["lost"]
        for _ in range(10):
            assert asks.ask(WAIT_S) == "1"
        assert net.dropped()["lost"] > before


def test_connections_are_led_through_the_routers_proxy_and_past_it_again(net: Network) -> None:
    with proxy(router_plan(net, seed=3), net.router.prefix) as relay:
        with talking(net) as asks:
            net.proxied = {(1, 2)}
            net.apply()
            assert asks.ask(WAIT_S) == "ConnectionResetError"  # it was made past the proxy
            assert net.dropped()["broken"] > 0
        assert relay.counts().connections == 0
        with talking(net):
            counts = relay.counts()
            assert (counts.connections, counts.unknown) == (1, 0)
            assert relay.reset((1, 2)).resets == 1
        net.heal()
        with talking(net):
            assert relay.counts().connections == 1


def test_unix_sockets_reach_into_namespaces(net: Network, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    program = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'x')"
    caller = threading.Thread(
        target=net.namespace(1).run, args=(sys.executable, "-c", program, str(tmp_path / "socket"))
    )
    caller.start()
    listener.settimeout(WAIT_S)
    with listener, listener.accept()[0] as sock:
        assert sock.recv(1) == b"x"
    caller.join()


def test_the_namespaces_go_with_the_process_that_made_them(made: Network) -> None:
    program = (
        "import time; from tests.soak.netns import Network\n"
        "net = Network(2)\n"
        "print(*(net.namespace(i).pid for i in net.ids), net.router.pid, flush=True)\n"
        "time.sleep(600)"
    )
    maker = subprocess.Popen([sys.executable, "-c", program], cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    holders = [int(word) for word in maker.stdout.readline().split()]
    spaces = [os.open(f"/proc/{pid}/ns/net", os.O_RDONLY) for pid in holders]
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    maker.stdout.close()
    try:
        eventually(lambda: not any(_is_running(pid) for pid in holders), "the holders' end", WAIT_S)
    finally:
        for space in spaces:
            os.close(space)


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
