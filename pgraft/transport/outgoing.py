"""Our one connection to each other member: found, greeted, kept, tried again when it is lost."""

from __future__ import annotations

import contextlib
import enum
import os
import socket
from collections.abc import Callable
from typing import assert_never

from pgraft.log import log
from pgraft.transport import handshake
from pgraft.transport.backoff import Backoff
from pgraft.transport.channel import Channel, PlainChannel, prepare, where
from pgraft.transport.directory import PeerAddress
from pgraft.transport.framing import FrameType, RemoteViolation, ViolationKind
from pgraft.transport.handshake import Refused, Welcome, printable
from pgraft.transport.limits import HANDSHAKE_TIMEOUT_MS, LINGER_MS
from pgraft.transport.loop import WRITE
from pgraft.transport.records import RecordKind, Refusal, RefusalCode, pack
from pgraft.transport.resolver import Resolver, numeric_family
from pgraft.transport.session import Session, Shared, who_says


class PeerState(enum.Enum):
    """Where a peer's outgoing connection stands."""

    IDLE = "not started"
    RESOLVING = "looking up its name"
    CONNECTING = "connecting"
    GREETING = "waiting for its welcome"
    CONNECTED = "connected"
    WAITING = "waiting before the next attempt"
    RETIRED = "no member any more"


def _chance() -> float:
    return int.from_bytes(os.urandom(4), "little") / 2**32


class OutgoingSession(Session):
    """The connecting side of the handshake."""

    def __init__(self, shared: Shared, channel: Channel, at: str, peer: Peer) -> None:
        self._peer = peer
        super().__init__(shared, channel, at)

    def on_shaken(self) -> None:
        """Say who we are and whom we expect; but to nobody whose certificate names another, and nothing that
        it says counts, not even a refusal."""
        peer, local = self._peer, self.shared.local
        if local is None:
            peer.on_failed(self, "this node is not ready")
            return
        refusal = self.judge_certificate(local.identity.cluster_id, peer.node_id, peer.address)
        if refusal is not None:
            self.complain(refusal, peer.node_id)
            peer.on_refusal(self, refusal.code)
            return
        self.connection.send_frame(FrameType.HELLO, handshake.encode(local.hello(peer.node_id)))

    def on_handshake(self, kind: int, payload: memoryview) -> None:
        """The answer to our hello."""
        match kind:
            case FrameType.WELCOME:
                self._on_welcome(handshake.decode_welcome(payload))
            case FrameType.REFUSED:
                self.on_refused(handshake.decode_refused(payload))
            case _:
                raise RemoteViolation(
                    ViolationKind.ORDER, f"{FrameType(kind).name} where a welcome was expected"
                )

    def _on_welcome(self, welcome: Welcome) -> None:
        local = self.shared.local
        if local is None:
            self._peer.on_failed(self, "this node is not ready")
            return
        expected = self._peer.node_id
        remembered = self.shared.directory.remembered(expected)
        refusal = handshake.judge_welcome(welcome, local, expected, remembered)
        if refusal is not None:
            self.refuse(refusal)
            return
        if self.establish(who_says(welcome), welcome.protocol_version):
            self._peer.on_established(self)
        else:
            self._peer.on_failed(self, "the raft worker of this node takes nothing")

    def refuse(self, refusal: Refusal) -> None:
        """Say why on both sides, and end; also of an established session."""
        if self.ended:
            return
        self.complain(refusal, self._peer.node_id)
        self.say_refused(refusal)
        self._peer.on_refusal(self, refusal.code)

    def on_refused(self, refused: Refused) -> None:
        """It does not let us in: the worker hears of it, and the log, at a bounded rate."""
        peer, shared = self._peer, self.shared
        if refused.code != RefusalCode.NOT_READY:
            text, hint = printable(refused.text), printable(refused.hint)
            shared.control(pack(RecordKind.REFUSED_BY_PEER, peer.node_id, Refusal(refused.code, text, hint)))
            shared.complaints.log(
                ("refused by", peer.node_id, refused.code),
                "WARNING",
                f"node {peer.node_id} at {self.at} refuses this node: {text}",
                hint=hint,
            )
        peer.on_refusal(self, refused.code)

    def on_unfinished(self) -> None:
        """Members may: they are few."""

    def on_lost(self, reason: str) -> None:
        """Closed or broken."""
        self._peer.on_failed(self, reason)


class Peer:
    """One other member. Makes one attempt after another; one of them at a time."""

    def __init__(
        self,
        shared: Shared,
        resolver: Resolver,
        member: PeerAddress,
        on_established: Callable[[OutgoingSession], None],
        on_ended: Callable[[Peer, OutgoingSession], None],
    ) -> None:
        self._shared = shared
        self._resolver = resolver
        self._on_established = on_established
        self._on_ended = on_ended
        self._backoff = Backoff(_chance)
        self._sock: socket.socket | None = None
        self._attempts = 0
        self.node_id = member.node_id
        self.address = member.address
        self.port = member.port
        self.state = PeerState.IDLE
        self.session: OutgoingSession | None = None
        self._lingering: OutgoingSession | None = None

    @property
    def at(self) -> str:
        """host:port as configured."""
        return where((self.address, self.port))

    # --- commands ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Make an attempt now, unless one is on its way. Needs to know who this node is."""
        match self.state:
            case PeerState.IDLE | PeerState.WAITING | PeerState.RESOLVING:
                if self._shared.local is not None:
                    self._attempt()
            case PeerState.CONNECTING | PeerState.GREETING | PeerState.CONNECTED | PeerState.RETIRED:
                return
            case _:
                assert_never(self.state)

    def hurry(self) -> None:
        """A sign that it is there: do not wait out the back-off."""
        if self.state is PeerState.WAITING:
            self._backoff.reset()
            self.start()

    def on_resolved(self, host: str) -> None:
        """The resolver has news of a name."""
        if self.state is PeerState.RESOLVING and host == self.address:
            self.start()

    def move(self, member: PeerAddress) -> None:
        """Its address in the membership changed: leave the old one, try the new one."""
        if (member.address, member.port) == (self.address, self.port):
            return
        self._drop("its address changed")
        self.address, self.port = member.address, member.port
        self._backoff.reset()
        self.start()

    def restart(self, reason: str) -> None:
        """Close and begin again: this node's own identity or certificates changed."""
        self._drop(reason)
        self.start()

    def retire(self) -> None:
        """No member any more: what was queued still goes out, then the connection ends."""
        session = self.session
        if session is not None and session.who is not None:
            self.session = None
            self._linger(session)
            self._on_ended(self, session)
        self._drop("no member any more")
        self.state = PeerState.RETIRED

    def close(self) -> None:
        """End everything at once."""
        self._drop("this node is stopping")
        self._end_linger()
        self.state = PeerState.RETIRED

    @property
    def lingering(self) -> bool:
        """Whether its last words are still on their way."""
        return self._lingering is not None

    # --- one attempt ------------------------------------------------------------------------------

    def _attempt(self) -> None:
        self._set_timer(None)
        try:
            hosts = self._resolver.lookup(self.address)
        except OSError as error:
            self._failed(f"cannot resolve its name: {error}")
            return
        if hosts is None:
            self.state = PeerState.RESOLVING
            return
        host = hosts[self._attempts % len(hosts)]
        self._attempts += 1
        try:
            self._connect(host)
        except OSError as error:
            self._failed(error.strerror or str(error))

    def _connect(self, host: str) -> None:
        family = numeric_family(host.partition("%")[0]) or socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._sock = sock
        prepare(sock, self._shared.user_timeout_ms)
        # An ephemeral port of ours may be the port that a node of this machine wants to bind next.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.state = PeerState.CONNECTING
        with contextlib.suppress(BlockingIOError):
            sock.connect((host, self.port))
        self._set_timer(self._shared.connect_timeout_ms, "no answer in time")
        self._shared.wire.loop.watch(sock.fileno(), WRITE, self._on_connect_event)

    def _on_connect_event(self, _events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._failed(os.strerror(code))
            return
        try:
            remote = sock.getpeername()
        except OSError:
            return  # an event of an earlier descriptor with this number; ours is still to come
        if remote == sock.getsockname():
            # Nobody listens, and the kernel gave us that very port as ours (TCP simultaneous open).
            self._failed("connected to itself, nobody listens there")
            return
        self._shared.wire.loop.forget(sock.fileno())
        self._sock = None
        self._greet(sock, where(remote))

    def _greet(self, sock: socket.socket, at: str) -> None:
        shared = self._shared
        self._set_timer(HANDSHAKE_TIMEOUT_MS, "no complete handshake in time")
        self.state = PeerState.GREETING
        try:
            channel: Channel = (
                PlainChannel(sock) if shared.tls is None else shared.tls.wrap(sock, server_side=False)
            )
        except OSError as error:
            sock.close()
            self._failed(error.strerror or str(error))
            return
        self.session = OutgoingSession(shared, channel, at, self)
        self.session.connection.shake()

    # --- what comes of it ---------------------------------------------------------------------------

    def on_established(self, session: OutgoingSession) -> None:
        """The welcome passed."""
        self._set_timer(None)
        self.state = PeerState.CONNECTED
        self._backoff.reset()
        self._shared.wire.counters.connects += 1
        self._shared.control(pack(RecordKind.PEER_CONNECTED, self.node_id))
        self._shared.complaints.log(
            ("up", self.node_id), "LOG", f"connected to node {self.node_id} at {session.at}"
        )
        self._on_established(session)

    def on_refusal(self, session: OutgoingSession, code: int) -> None:
        """One of the two sides refused the other. Most reasons last until somebody acts."""
        if session is not self.session:
            return
        if session.ended:
            self.session = None
            self._linger(session)
            self._end(session)
        soon = code in (RefusalCode.NOT_READY, RefusalCode.DUPLICATE, RefusalCode.TOO_MANY)
        self._drop("refused")
        self._wait(self._backoff.next_ms() if soon else self._backoff.longest_ms())

    def on_failed(self, session: OutgoingSession, reason: str) -> None:
        """A session broke, during the handshake or after it."""
        session.connection.close()
        if session is self.session:
            self._failed(reason)
        elif session is self._lingering:
            self._end_linger()

    def _failed(self, reason: str) -> None:
        was_up = self.state is PeerState.CONNECTED
        self._drop(reason)
        if not numeric_family(self.address):
            self._resolver.doubt(self.address)
        what = "lost the connection to" if was_up else "cannot connect to"
        self._shared.complaints.log(
            ("down", self.node_id, was_up), "LOG", f"{what} node {self.node_id} at {self.at}: {reason}"
        )
        self._wait(self._backoff.next_ms())

    def _wait(self, ms: float) -> None:
        self.state = PeerState.WAITING
        self._shared.wire.loop.timers.set(("peer", self), ms, self.start)

    def _drop(self, reason: str) -> None:
        """Let go of socket and session, whatever stage they are in."""
        self._set_timer(None)
        self.state = PeerState.IDLE
        if self._sock is not None:
            self._shared.wire.loop.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None
        session, self.session = self.session, None
        if session is not None:
            session.ended = True
            session.connection.close()
            self._end(session)
            if self._shared.debug:
                log("DEBUG", f"closed the connection to node {self.node_id}: {reason}")

    def _end(self, session: OutgoingSession) -> None:
        if session.who is not None:
            self._shared.control(pack(RecordKind.PEER_DISCONNECTED, self.node_id))
            self._on_ended(self, session)

    def _linger(self, session: OutgoingSession) -> None:
        self._end_linger()
        session.ended = True
        session.connection.finish()
        self._lingering = session
        self._shared.wire.loop.timers.set(("linger", self), LINGER_MS, self._end_linger)

    def _end_linger(self) -> None:
        session, self._lingering = self._lingering, None
        if session is not None:
            session.connection.close()
            self._shared.wire.loop.timers.cancel(("linger", self))

    def _set_timer(self, ms: float | None, reason: str = "") -> None:
        timers = self._shared.wire.loop.timers
        if ms is None:
            timers.cancel(("peer", self))
        else:
            timers.set(("peer", self), ms, lambda: self._failed(reason))
