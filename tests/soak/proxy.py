"""A TCP proxy between nodes that delays, stalls, resets, cuts frames into small pieces and damages bytes.

A process of its own (`python -m tests.soak.proxy`), told what to do by lines of JSON on its input; `Proxy`
is the other end of that. It ends with its input, so with the process that started it. What it does is
set for each link, (from, to) by node id, for bytes that go that way on whichever connection; two nodes
have two connections, one made by each.

Connections come in on a port for each node (a node's address in `pgraft.initial_cluster` is then the
proxy's, and `pgraft.listen_address` its own), or are redirected here by the router of `netns.py`. Who
connects is known by its address, or else by the hello that it says first.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from pgraft.transport.framing import FrameDecoder, FrameType, RemoteViolation
from pgraft.transport.handshake import decode_hello
from pgraft.transport.limits import HANDSHAKE_BYTES_MAX

REPO = Path(__file__).resolve().parents[2]
CHUNK_BYTES = 64 * 1024
CHUNKS_WAITING_MAX = 256
"""Of one direction of one connection; beyond, TCP holds the sender back."""
ANSWER_WAIT_S = 30
_SO_ORIGINAL_DST = 80
"""linux/netfilter_ipv4.h"""
Pair = tuple[int, int]


class ProxyError(AssertionError):
    """The proxy did not start, or did not answer."""


class Faults(msgspec.Struct, frozen=True):
    """What happens to the bytes of one link."""

    delay_ms: float = 0
    stalled: bool = False
    """Nothing moves, nothing is lost: TCP goes on to acknowledge what fits into its buffers."""
    piece_bytes: int = 0
    """Written in pieces of this size; 0 for whole."""
    damaged_percent: int = 0
    """So many chunks in a hundred have one bit flipped."""
    refused: bool = False
    """Connections that the link's first node makes to the second are reset at once."""


class Door(msgspec.Struct, frozen=True):
    """A port of the proxy: who is behind it."""

    node_id: int
    port: int
    to_host: str
    to_port: int


class Plan(msgspec.Struct, frozen=True):
    """The first line of input."""

    seed: int
    doors: list[Door] = []
    redirected_port: int = 0
    """Where redirected connections come in; 0 for none."""
    addresses: dict[str, int] = {}
    """Node ids by address, for redirected connections."""


class Order(msgspec.Struct, frozen=True):
    """Every further line; each is answered with Counts when it has been carried out."""

    links: list[tuple[int, int, Faults]] = []
    reset: list[Pair] = []
    """Connections between these two, made by the first, are reset now."""


class Counts(msgspec.Struct):
    """What the proxy has done so far. `open` and `pairs` are of now."""

    connections: int = 0
    open: int = 0
    bytes: int = 0
    delayed: int = 0
    stalled: int = 0
    pieces: int = 0
    damaged: int = 0
    resets: int = 0
    refused: int = 0
    unknown: int = 0
    """Connections whose maker neither its address nor its hello told."""


# --- the other end: what tests use ----------------------------------------------------------------------


class Proxy:
    """A running proxy. `prefix`: words before its command line, to run it in a namespace."""

    def __init__(self, plan: Plan, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.soak.proxy"],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._say(plan)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _say(self, word: Plan | Order) -> Counts:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ProxyError("the proxy has no pipes")
        try:
            stdin.write(msgspec.json.encode(word) + b"\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError as error:
            raise ProxyError("the proxy has ended; its own words are on standard error") from error
        if not line:
            raise ProxyError("the proxy has ended; its own words are on standard error")
        return msgspec.json.decode(line, type=Counts)

    def links(self, faults: dict[Pair, Faults]) -> Counts:
        """Set the faults of some links; they hold from now on, until they are set again."""
        return self._say(Order(links=[(*pair, fault) for pair, fault in faults.items()]))

    def reset(self, *pairs: Pair) -> Counts:
        """Reset the connections that the first of each pair has made to the second."""
        return self._say(Order(reset=list(pairs)))

    def counts(self) -> Counts:
        """What it has done so far."""
        return self._say(Order())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate(timeout=ANSWER_WAIT_S)


@contextlib.contextmanager
def proxy(plan: Plan, prefix: Sequence[str] = ()) -> Iterator[Proxy]:
    """A running proxy that is gone afterwards."""
    made = Proxy(plan, prefix)
    try:
        yield made
    finally:
        made.close()


# --- the process ----------------------------------------------------------------------------------------


class Link:
    """One link: its faults, and whether it moves."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.moves = asyncio.Event()
        self.moves.set()

    def put(self, faults: Faults) -> None:
        """From now on."""
        self.faults = faults
        if faults.stalled:
            self.moves.clear()
        else:
            self.moves.set()


class Connected:
    """One connection through the proxy, made by `pair[0]`."""

    def __init__(self, pair: Pair, writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.pair = pair
        self._writers = writers

    def reset(self) -> None:
        """Both sides are told at once."""
        for writer in self._writers:
            reset(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST: what was sent and not read yet is gone."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Relay:
    """All connections, links and counts."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._links: dict[Pair, Link] = {}
        self._connected: set[Connected] = set()
        self.counts = Counts()

    async def listen(self) -> None:
        """Open the doors."""
        for door in self._plan.doors:
            await self._serve("127.0.0.1", door.port, door)
        if self._plan.redirected_port:
            await self._serve("0.0.0.0", self._plan.redirected_port, None)

    async def _serve(self, host: str, port: int, door: Door | None) -> None:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                await self._accepted(door or self._original(writer), reader, writer)

        await asyncio.start_server(accepted, host, port, backlog=256)

    def _original(self, writer: asyncio.StreamWriter) -> Door:
        """Where a redirected connection was going."""
        raw = writer.get_extra_info("socket").getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
        port, address = struct.unpack("!2xH4s8x", raw)
        host = socket.inet_ntoa(address)
        return Door(self._plan.addresses[host], port, host, port)

    def link(self, pair: Pair) -> Link:
        """The link of this pair."""
        return self._links.setdefault(pair, Link())

    def obey(self, order: Order) -> Counts:
        """Carry an order out."""
        for a, b, faults in order.links:
            self.link((a, b)).put(faults)
        for one in [one for one in self._connected if one.pair in set(order.reset)]:
            self.counts.resets += 1
            one.reset()
        self.counts.open = len(self._connected)
        return self.counts

    async def _accepted(self, door: Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, maker = await self._maker(reader, writer)
        pair = (maker, door.node_id)
        self.counts.connections += 1
        if self.link(pair).faults.refused:
            self.counts.refused += 1
            reset(writer)
            return
        try:
            there_reader, there_writer = await asyncio.open_connection(door.to_host, door.to_port)
        except OSError:
            reset(writer)
            return
        one = Connected(pair, (writer, there_writer))
        self._connected.add(one)
        there, back = self.link(pair), self.link((pair[1], pair[0]))
        jobs = self._carry(there, reader, there_writer, first) + self._carry(back, there_reader, writer, b"")
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_EXCEPTION)
            if any(job.exception() for job in done):
                one.reset()
        finally:
            self._connected.discard(one)
            for job in jobs:
                job.cancel()
            for end in (writer, there_writer):
                end.close()

    async def _maker(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, int]:
        """What was read to find out who connects, and who it is; 0 when that cannot be told."""
        known = self._plan.addresses.get(writer.get_extra_info("peername")[0])
        if known is not None:
            return b"", known
        first = b""
        while len(first) <= HANDSHAKE_BYTES_MAX:
            data = await reader.read(CHUNK_BYTES)
            first += data
            said = hello_of(first)
            if said:
                return first, said
            if said == 0 or not data:
                break
        self.counts.unknown += 1
        return first, 0

    def _carry(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes
    ) -> list[asyncio.Task[None]]:
        """One direction of one connection, until its end."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_WAITING_MAX)
        if first:
            waiting.put_nowait((self._due(link), first))
        return [
            asyncio.create_task(self._take(link, reader, waiting)),
            asyncio.create_task(self._give(link, waiting, writer)),
        ]

    def _due(self, link: Link) -> float:
        return asyncio.get_running_loop().time() + link.faults.delay_ms / 1000

    async def _take(
        self, link: Link, reader: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        while True:
            data = await reader.read(CHUNK_BYTES)
            await waiting.put((self._due(link), data))
            if not data:
                return

    async def _give(
        self, link: Link, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await waiting.get()
            if due > loop.time():
                self.counts.delayed += 1
                await asyncio.sleep(due - loop.time())
            if not link.moves.is_set():
                self.counts.stalled += 1
                await link.moves.wait()
            if not data:
                writer.write_eof()
                return
            self.counts.bytes += len(data)
            await self._write(link.faults, self._perhaps_damaged(link.faults, data), writer)

    def _perhaps_damaged(self, faults: Faults, data: bytes) -> bytes:
        if self._random.randrange(100) >= faults.damaged_percent:
            return data
        self.counts.damaged += 1
        at = self._random.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << self._random.randrange(8))]) + data[at + 1 :]

    async def _write(self, faults: Faults, data: bytes, writer: asyncio.StreamWriter) -> None:
        size = faults.piece_bytes or len(data)
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            await writer.drain()
            if size < len(data):
                self.counts.pieces += 1
                await asyncio.sleep(0)  # the other side gets the chance to read this piece alone


def hello_of(data: bytes) -> int | None:
    """Node id in the hello that `data` begins with; None while it is not whole, 0 when it is none."""
    try:
        frames = FrameDecoder().feed(memoryview(data))
        if not frames:
            return None
        kind, payload = frames[0]
        return decode_hello(payload).node_id if kind == FrameType.HELLO else 0
    except RemoteViolation:
        return 0


async def _main() -> None:
    loop = asyncio.get_running_loop()
    said = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(said), sys.stdin)
    relay = Relay(msgspec.json.decode(await said.readline(), type=Plan))
    await relay.listen()
    order = Order()
    while True:
        counts = relay.obey(order)
        sys.stdout.buffer.write(msgspec.json.encode(counts) + b"\n")
        sys.stdout.buffer.flush()
        line = await said.readline()
        if not line:
            return
        order = msgspec.json.decode(line, type=Order)


if __name__ == "__main__":
    asyncio.run(_main())
