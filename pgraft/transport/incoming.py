"""Accepted connections: bounded while unknown, judged by their hello, then a source of messages."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pgraft.transport import handshake
from pgraft.transport.channel import Channel, PlainChannel, prepare, where
from pgraft.transport.framing import FrameType, RemoteViolation, ViolationKind
from pgraft.transport.handshake import NOT_READY, Hello, Refused
from pgraft.transport.limits import (
    ACCEPT_PAUSE_MS,
    ACCEPTS_PER_WAKE,
    HANDSHAKE_TIMEOUT_MS,
    LINGER_MS,
    LISTEN_ADDRESSES_MAX,
    LISTEN_BACKLOG,
    PENDING_CONNECTIONS_MAX,
    PENDING_PER_ADDRESS_MAX,
)
from pgraft.transport.loop import READ, now_ns
from pgraft.transport.records import Refusal
from pgraft.transport.session import Session, Shared, who_says

if TYPE_CHECKING:
    from pgraft.transport.hub import Hub

_MS = 1_000_000
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class CannotListen(Exception):
    """The listen address cannot be bound; the text says which and why."""


class IncomingSession(Session):
    """The accepting side of the handshake."""

    def __init__(self, hub: Hub, lobby: Lobby, channel: Channel, at: str, host: str) -> None:
        self._hub = hub
        self._lobby = lobby
        self.host = host
        self.hello: Hello | None = None
        super().__init__(hub.shared, channel, at)

    def on_shaken(self) -> None:
        """The other side has the first word."""

    def on_handshake(self, kind: int, payload: memoryview) -> None:
        """A hello; anything after it, before we answered, is out of order."""
        if kind != FrameType.HELLO or self.hello is not None:
            raise RemoteViolation(ViolationKind.ORDER, f"{FrameType(kind).name} where a hello was expected")
        local = self.shared.local
        hello = handshake.decode_hello(payload)
        self.hello = hello
        if local is None or self.shared.inbox.stalled:
            self.refuse(NOT_READY)
            return
        # The certificate first: what the hello says counts once it is known who says it.
        address = self.shared.directory.address_of(hello.node_id)
        refusal = self.judge_certificate(hello.cluster_id, hello.node_id, address)
        if refusal is not None:
            self.refuse(refusal)
        elif self.is_still_welcome():
            self._hub.admit(self, hello)

    def is_still_welcome(self) -> bool:
        """Whether its hello passes by what is known now; it is refused when it does not."""
        hello, local = self.hello, self.shared.local
        if hello is None or local is None:
            return False
        remembered = self.shared.directory.remembered(hello.node_id)
        refusal = handshake.judge_hello(hello, local, remembered)
        if refusal is not None:
            self.refuse(refusal)
        return refusal is None

    def welcome(self) -> None:
        """Let it in. It may have waited, and more be known of its node since."""
        hello, local = self.hello, self.shared.local
        if hello is None or local is None or self.ended or not self.is_still_welcome():
            return
        version = handshake.agreed_version(hello)
        # The welcome goes out first: establish() fixes the agreed version for what follows it.
        self.connection.send_frame(FrameType.WELCOME, handshake.encode(local.welcome(version)))
        if not self.establish(who_says(hello), version):
            self.on_lost("the raft worker takes nothing")
            return
        self._lobby.leave(self)
        self._hub.on_incoming(self)

    def refuse(self, refusal: Refusal) -> None:
        """Say why, on both sides, and end; also of an established session."""
        if self.ended:
            return
        node_id = self.hello.node_id if self.hello is not None else 0
        self.complain(refusal, node_id)
        self.say_refused(refusal)
        self._lobby.enter(self, LINGER_MS)
        self._hub.on_incoming_ended(self)

    def on_unfinished(self) -> None:
        """What all strangers together may hold is bounded."""
        if self.who is not None and self.who.node_id not in self.shared.directory.members:
            self._hub.bound_strangers()

    def on_refused(self, refused: Refused) -> None:
        """It did not like our welcome, or does not want us any more: its own line says why."""
        node_id = self.hello.node_id if self.hello is not None else 0
        self.shared.complaints.log(
            ("refused by", node_id, refused.code),
            "WARNING",
            f"node {node_id} at {self.at} refuses this node: {refused.text}",
            hint=refused.hint,
        )
        self.on_lost("refused by the other side")

    def on_lost(self, reason: str) -> None:
        """Closed or broken."""
        self.ended = True
        self.connection.close()
        self._lobby.leave(self)
        self._hub.on_incoming_ended(self)


class Lobby:
    """Connections that nobody answers for yet, or that linger after a refusal: bounded in number, in
    all and from each address, and in time. When it is full the oldest goes, since a true peer says
    hello at once and is out again."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._inside: dict[IncomingSession, int] = {}
        self._per_host: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._inside)

    def enter(self, session: IncomingSession, ms: float) -> None:
        """Give it `ms`, and a place, at the cost of the oldest when there is none."""
        self.leave(session)
        if self._per_host.get(session.host, 0) >= PENDING_PER_ADDRESS_MAX:
            self._evict(session.host)
        elif len(self._inside) >= PENDING_CONNECTIONS_MAX:
            self._evict(None)
        self._inside[session] = now_ns() + int(ms * _MS)
        self._shared.wire.counters.pending = len(self._inside)
        self._per_host[session.host] = self._per_host.get(session.host, 0) + 1
        timers = self._shared.wire.loop.timers
        if not timers.is_set("lobby"):
            timers.set("lobby", ms, self._clear_overdue)

    def leave(self, session: IncomingSession) -> None:
        """It is let in, or gone."""
        if self._inside.pop(session, None) is None:
            return
        self._shared.wire.counters.pending = len(self._inside)
        left = self._per_host[session.host] - 1
        if left:
            self._per_host[session.host] = left
        else:
            del self._per_host[session.host]

    def waiting_for(self, node_id: int) -> list[IncomingSession]:
        """Those inside that passed as `node_id` and wait until another instance was asked."""
        timers = self._shared.wire.loop.timers
        return [
            session
            for session in self._inside
            if session.hello is not None
            and session.hello.node_id == node_id
            and timers.is_set(("probe", session))
        ]

    def close(self) -> None:
        """Close everyone inside."""
        for session in list(self._inside):
            session.on_lost("this node is stopping")

    def _evict(self, host: str | None) -> None:
        for session in self._inside:
            if host is None or session.host == host:
                self._shared.wire.counters.crowded_out += 1
                self._complain(session.host, "too many connections that say nothing")
                session.on_lost("made room for another connection")
                return

    def _clear_overdue(self) -> None:
        now = now_ns()
        for session in [session for session, due in self._inside.items() if due <= now]:
            if not session.ended:
                self._shared.wire.counters.timed_out += 1
                self._complain(session.host, "no complete handshake in time")
            session.on_lost("out of time")
        if self._inside:
            after_ms = (min(self._inside.values()) - now) / _MS
            self._shared.wire.loop.timers.set("lobby", max(1.0, after_ms), self._clear_overdue)

    def _complain(self, host: str, what: str) -> None:
        self._shared.complaints.log(("lobby", host, what), "LOG", f"closed a connection from {host}: {what}")


class Listener:
    """The bound sockets."""

    def __init__(
        self,
        shared: Shared,
        sockets: list[socket.socket],
        on_accept: Callable[[socket.socket, str, str], None],
    ) -> None:
        self._shared = shared
        self._on_accept = on_accept
        self._sockets = sockets
        self._watch()

    def _watch(self) -> None:
        for sock in self._sockets:
            self._shared.wire.loop.watch(sock.fileno(), READ, partial(self._accept, sock))

    def _accept(self, listening: socket.socket, _events: int) -> None:
        for _ in range(ACCEPTS_PER_WAKE):
            try:
                sock, remote = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._pause(error)
                    return
                continue  # the connection died before it was accepted (accept(2), "Error handling")
            try:
                prepare(sock, self._shared.user_timeout_ms)
            except OSError:
                sock.close()
                continue
            self._on_accept(sock, where(remote), remote[0])

    def _pause(self, error: OSError) -> None:
        self._shared.complaints.log(
            "accept", "WARNING", f"cannot accept connections for a moment: {os.strerror(error.errno or 0)}"
        )
        for sock in self._sockets:
            self._shared.wire.loop.forget(sock.fileno())
        self._shared.wire.loop.timers.set("accept", ACCEPT_PAUSE_MS, self._watch)

    def close(self) -> None:
        """Close the listening sockets."""
        self._shared.wire.loop.timers.cancel("accept")
        for sock in self._sockets:
            self._shared.wire.loop.forget(sock.fileno())
            sock.close()
        self._sockets = []


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of `host`, and on no other. Raises CannotListen."""
    address = f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CannotListen(
            f'cannot resolve "{address}": {getattr(error, "strerror", None) or error}'
        ) from error
    sockets: list[socket.socket] = []
    for family, _, _, _, target in dict.fromkeys(found[:LISTEN_ADDRESSES_MAX]):
        try:
            sockets.append(_bind_one(family, target))
        except OSError as error:
            for sock in sockets:
                sock.close()
            raise CannotListen(f'cannot bind "{address}": {error.strerror}') from error
    return sockets


def _bind_one(family: int, target: tuple[str | int, ...] | tuple[int, bytes]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # Lets a restarted process bind while connections of the one before are still in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(target)
        sock.listen(LISTEN_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def accept_session(hub: Hub, lobby: Lobby, sock: socket.socket, at: str, host: str) -> None:
    """A connection came in: nobody yet."""
    tls = hub.shared.tls
    try:
        channel: Channel = PlainChannel(sock) if tls is None else tls.wrap(sock, server_side=True)
    except OSError:
        sock.close()  # gone again already: ssl looks whether a socket is still connected
        return
    session = IncomingSession(hub, lobby, channel, at, host)
    lobby.enter(session, HANDSHAKE_TIMEOUT_MS)
