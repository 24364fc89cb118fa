"""Several hubs in one process, on loopback, each with a loop of its own that `World.run` turns."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from pgraft.transport import records
from pgraft.transport.connection import Wire
from pgraft.transport.directory import PeerAddress
from pgraft.transport.framing import PROTOCOL_VERSION, FrameDecoder, FrameType, encode_frame
from pgraft.transport.handshake import Hello, encode
from pgraft.transport.hub import Hub
from pgraft.transport.inbox import Inbox
from pgraft.transport.incoming import bind
from pgraft.transport.loop import Loop
from pgraft.transport.records import NetIdentity, RecordKind

RUN_S = 10.0


class FakeRing:
    """A ring for `room` records."""

    def __init__(self) -> None:
        self.room = 10**9
        self.put_records: list[tuple[RecordKind, int, bytes]] = []

    def put(self, *parts: bytes | bytearray | memoryview) -> bool:
        if len(self.put_records) >= self.room:
            return False
        raw = b"".join(parts)
        kind, node_id = records.unpack_prefix(raw)
        self.put_records.append((RecordKind(kind), node_id, raw[records.PREFIX_BYTES :]))
        return True

    def publish(self) -> bool:
        return False


class HubNode:
    """One hub, as the network process would run it."""

    def __init__(self, node_id: int, instance_id: int, port: int = 0) -> None:
        self.node_id = node_id
        self.loop = Loop()
        self.ring = FakeRing()
        sockets = bind("127.0.0.1", port)
        self.port = int(sockets[0].getsockname()[1])
        self.inbox = Inbox(self.ring, lambda: None, self._on_stall)
        self.hub = Hub(Wire(self.loop), self.inbox, node_id, "127.0.0.1", self.port, instance_id)
        self.hub.listen(sockets)
        self.counters = self.hub.shared.wire.counters

    def _on_stall(self) -> None:
        self.hub.pause_reading()

    def identify(self, **changes: object) -> HubNode:
        fields: dict[str, object] = {
            "cluster_id": "test",
            "node_id": self.node_id,
            "member_id": 0x1000 + self.node_id,
            "initial_members": "the list",
            "initial_state": "new",
            "formed": True,
            "election_timeout_ms": 300,
        }
        self.hub.set_identity(NetIdentity(**(fields | changes)))  # type: ignore[arg-type]
        return self

    def address(self, member_id: int = 0) -> PeerAddress:
        return PeerAddress(self.node_id, "127.0.0.1", self.port, member_id)

    def members(self, *nodes: HubNode | PeerAddress, removed: tuple[int, ...] = ()) -> HubNode:
        rows = [node if isinstance(node, PeerAddress) else node.address() for node in nodes]
        self.hub.set_members(rows, removed)
        return self

    def got(self, kind: RecordKind, node_id: int) -> list[bytes]:
        return [body for one, sender, body in self.ring.put_records if (one, sender) == (kind, node_id)]

    def refusals(self, node_id: int) -> list[int]:
        bodies = self.got(RecordKind.REFUSED_BY_PEER, node_id)
        return [records.unpack_refusal(records.prefix(RecordKind.MESSAGE, 0) + body).code for body in bodies]


class World:
    """Hubs that are turned together."""

    def __init__(self) -> None:
        self.nodes: list[HubNode] = []
        self._frozen: list[HubNode] = []
        self.sockets: list[socket.socket] = []
        self._instances = 0

    def node(self, node_id: int, port: int = 0) -> HubNode:
        self._instances += 1
        node = HubNode(node_id, self._instances, port)
        self.nodes.append(node)
        return node

    def pair(self) -> tuple[HubNode, HubNode]:
        """Two nodes that know each other and are connected both ways."""
        one, two = self.node(1).identify(), self.node(2).identify()
        one.members(one, two)
        two.members(one, two)
        self.run(lambda: one.counters.connections == 2 and two.counters.connections == 2)
        return one, two

    def turn(self) -> None:
        for node in self.nodes:
            node.loop.dispatch(node.loop.poll(0.0005))

    def run(self, condition: Callable[[], bool]) -> None:
        """Turn until it holds."""
        deadline = time.monotonic() + RUN_S
        while not condition():
            assert time.monotonic() < deadline, [node.ring.put_records[-5:] for node in self.nodes]
            self.turn()

    def run_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.turn()

    def freeze(self, node: HubNode) -> None:
        """Its sockets stay, and nobody reads them."""
        self.nodes.remove(node)
        self._frozen.append(node)

    def thaw(self, node: HubNode) -> None:
        self._frozen.remove(node)
        self.nodes.append(node)

    def stop(self, node: HubNode) -> None:
        """End a node as its process would end: everything closed by the kernel."""
        (self.nodes if node in self.nodes else self._frozen).remove(node)
        node.hub.close()
        node.loop.close()

    def stranger(self, node: HubNode) -> Stranger:
        """A plain connection to a node's port."""
        sock = socket.create_connection(("127.0.0.1", node.port))
        sock.setblocking(False)
        self.sockets.append(sock)
        return Stranger(self, sock)

    def close(self) -> None:
        for node in self.nodes + self._frozen:
            self.stop(node)
        for sock in self.sockets:
            sock.close()


class Stranger:
    """The other end of a connection, driven by hand."""

    def __init__(self, world: World, sock: socket.socket) -> None:
        self._world = world
        self.sock = sock
        self._decoder = FrameDecoder()
        self.frames: list[tuple[int, bytes]] = []
        self.ended = False

    def say(self, kind: FrameType, payload: bytes = b"") -> None:
        self.sock.sendall(encode_frame(kind, payload))

    def hello(self, hello: Hello) -> None:
        self.say(FrameType.HELLO, encode(hello))

    def pump(self) -> None:
        """Read what is there."""
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = True
            return
        frames = self._decoder.feed(memoryview(data))
        while frames:
            self.frames += [(kind, bytes(body)) for kind, body in frames]
            if frames[0][0] != FrameType.WELCOME:
                return
            self._decoder.established(PROTOCOL_VERSION)
            frames = self._decoder.feed(memoryview(b""))

    def wait_frame(self, kind: FrameType) -> bytes:
        """Turn the world until such a frame came; its payload."""

        def came() -> bool:
            self.pump()
            return any(one == kind for one, _ in self.frames) or self.ended

        self._world.run(came)
        return next(body for one, body in self.frames if one == kind)

    def wait_end(self) -> None:
        """Turn the world until the other side closed."""

        def came() -> bool:
            self.pump()
            return self.ended

        self._world.run(came)


def hello_of(node_id: int, receiver: int, **changes: object) -> Hello:
    """A hello that a node of the test cluster would say."""
    fields: dict[str, object] = {
        "protocol_version": 1,
        "min_version": 1,
        "cluster_id": "test",
        "node_id": node_id,
        "member_id": 0x1000 + node_id,
        "instance_id": 777,
        "expected_receiver": receiver,
        "initial_state": "new",
        "initial_members": "the list",
        "formed": True,
        "address": "127.0.0.1",
        "port": 1,
    }
    return Hello(**(fields | changes))  # type: ignore[arg-type]
