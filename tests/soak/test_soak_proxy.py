"""The proxy does to a link what it is told, to that link only, and ends with whoever started it."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pgraft.transport.framing import FrameType, encode_frame
from pgraft.transport.handshake import encode
from tests.soak.proxy import REPO, Door, Faults, Plan, Proxy, proxy
from tests.support.pgcluster import eventually, free_port
from tests.support.transport_hubs import hello_of

WAIT_S = 30
MAKER, BEHIND = 1, 2
THERE, BACK = (MAKER, BEHIND), (BEHIND, MAKER)
HELLO = encode_frame(FrameType.HELLO, encode(hello_of(MAKER, BEHIND)))


class Echo:
    """A server that sends back what it gets, and keeps the sizes of the pieces that it came in."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.pieces: list[int] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(65536):
                self.pieces.append(len(data))
                sock.sendall(data)

    def close(self) -> None:
        self._listener.close()


class Pair:
    """A proxy with one door, and the server behind it."""

    def __init__(self, made: Proxy, port: int, echo: Echo) -> None:
        self.proxy = made
        self.port = port
        self.echo = echo

    def connect(self, first: bytes = HELLO) -> socket.socket:
        """A connection that has said its first words and heard them back."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(first)
        assert receive(sock, len(first)) == first
        return sock


@pytest.fixture
def pair() -> Iterator[Pair]:
    echo, port = Echo(), free_port()
    with proxy(Plan(seed=7, doors=[Door(BEHIND, port, "127.0.0.1", echo.port)])) as made:
        yield Pair(made, port, echo)
    echo.close()


def receive(sock: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (data := sock.recv(size - len(got))):
        got += data
    return got


def test_bytes_come_through_unchanged_and_the_maker_is_known(pair: Pair) -> None:
    with pair.connect() as sock:
        data = bytes(range(256)) * 4096
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        assert receive(sock, len(data)) == data
        sender.join()
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    counts = pair.proxy.counts()
    assert (counts.connections, counts.unknown, counts.damaged) == (1, 0, 0)
    assert counts.bytes == 2 * (len(data) + len(HELLO))


def test_a_stranger_is_let_through(pair: Pair) -> None:
    with pair.connect(b"no frame of pgraft's at all"):
        assert pair.proxy.counts().unknown == 1


@pytest.mark.parametrize(("links", "least_ms"), [((THERE,), 80), ((BACK,), 80), ((THERE, BACK), 160)])
def test_each_direction_is_delayed_by_itself(
    pair: Pair, links: tuple[tuple[int, int], ...], least_ms: int
) -> None:
    with pair.connect() as sock:
        pair.proxy.links(dict.fromkeys(links, Faults(delay_ms=80)))
        started = time.monotonic()
        sock.sendall(b"x" * 100)
        assert receive(sock, 100) == b"x" * 100
        assert (time.monotonic() - started) * 1000 >= least_ms


def test_other_links_are_left_alone(pair: Pair) -> None:
    with pair.connect() as sock:
        pair.proxy.links({(3, BEHIND): Faults(stalled=True, refused=True), (BEHIND, 3): Faults(stalled=True)})
        sock.sendall(b"ping")
        assert receive(sock, 4) == b"ping"


def test_a_stall_holds_everything_and_loses_nothing(pair: Pair) -> None:
    with pair.connect() as sock:
        pair.proxy.links({BACK: Faults(stalled=True)})
        sock.sendall(b"held")
        eventually(lambda: pair.proxy.counts().stalled, "the proxy holds the answer", WAIT_S)
        assert not select.select([sock], [], [], 0.1)[0]
        pair.proxy.links({BACK: Faults()})
        assert receive(sock, 4) == b"held"


def test_a_reset_is_seen_as_one(pair: Pair) -> None:
    with pair.connect() as sock:
        assert pair.proxy.reset(BACK).resets == 0
        assert pair.proxy.reset(THERE).resets == 1
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_a_refused_connection_is_reset(pair: Pair) -> None:
    pair.proxy.links({THERE: Faults(refused=True)})
    with socket.create_connection(("127.0.0.1", pair.port), timeout=WAIT_S) as sock:
        sock.sendall(HELLO)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_frames_come_in_small_pieces(pair: Pair) -> None:
    with pair.connect() as sock:
        pair.proxy.links({THERE: Faults(piece_bytes=3)})
        sock.sendall(b"y" * 300)
        assert receive(sock, 300) == b"y" * 300
        assert pair.proxy.counts().pieces == 100


def test_damage_is_one_bit(pair: Pair) -> None:
    with pair.connect() as sock:
        pair.proxy.links({THERE: Faults(damaged_percent=100)})
        sock.sendall(bytes(1000))
        got = receive(sock, 1000)
        chunks = pair.proxy.counts().damaged
        assert chunks >= 1
        assert sum(byte.bit_count() for byte in got) == chunks


def test_it_ends_with_the_process_that_started_it() -> None:
    plan = f"Plan(seed=1, doors=[Door(2, {free_port()}, '127.0.0.1', 9)])"
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; from tests.soak.proxy import Door, Plan, Proxy\n"
            f"made = Proxy({plan})\nprint(made.pid, flush=True)\ntime.sleep(600)",
        ],
        cwd=REPO,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    eventually(lambda: not _is_running(pid), "the proxy's end", WAIT_S)


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
