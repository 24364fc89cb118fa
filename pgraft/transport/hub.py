"""The whole of the transport: members in, records in and out, sessions between.

The network process calls `set_identity`, `set_members` and `send`; peers' messages go to the inbox.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial

from pgraft.log import log
from pgraft.transport.channel import Buffer
from pgraft.transport.connection import Wire
from pgraft.transport.directory import Directory, PeerAddress
from pgraft.transport.handshake import (
    Hello,
    Local,
    duplicate_refusal,
    judge_state,
    removed_refusal,
    superseded_refusal,
)
from pgraft.transport.inbox import Inbox
from pgraft.transport.incoming import IncomingSession, Listener, Lobby, accept_session
from pgraft.transport.limits import (
    CONNECT_TIMEOUT_MS_MAX,
    CONNECT_TIMEOUT_MS_MIN,
    INCOMING_MAX,
    PROBE_MS_MAX,
    STRANGERS_HELD_BYTES_MAX,
    UNKNOWN_PEERS_MAX,
)
from pgraft.transport.outgoing import OutgoingSession, Peer, PeerState
from pgraft.transport.records import NetIdentity, RecordKind, Refusal, RefusalCode, RefusedStart, pack
from pgraft.transport.resolver import Resolver
from pgraft.transport.session import Session, Shared

_USER_TIMEOUTS = 2
"""Election timeouts that sent bytes may stay unacknowledged before a connection counts as dead. TCP waits
twice as long before each repetition; after a long cut a new connection is there sooner."""
_USER_TIMEOUT_MS_MIN = 2_000
_USER_TIMEOUT_MS_MAX = 60_000


class Hub:
    """All peers and sessions of one node."""

    def __init__(self, wire: Wire, inbox: Inbox, node_id: int, address: str, port: int, instance_id: int):
        self.shared = Shared(wire, inbox, Directory(), node_id)
        self._address = address
        self._port = port
        self._instance_id = instance_id
        self._resolver = Resolver(wire.loop, self._on_resolved)
        self._lobby = Lobby(self.shared)
        self._listener: Listener | None = None
        self.peers: dict[int, Peer] = {}
        self._retired: list[Peer] = []
        self.incoming: dict[int, list[IncomingSession]] = {}
        self._probe_ms = float(PROBE_MS_MAX)

    # --- from the worker --------------------------------------------------------------------------

    def listen(self, sockets: list[socket.socket]) -> None:
        """Accept connections; until the identity came they are answered NOT_READY."""
        self._listener = Listener(self.shared, sockets, self._on_accept)

    def set_identity(self, identity: NetIdentity) -> None:
        """The worker said who this node is. It is a new worker perhaps: tell it who is connected."""
        before = self.shared.local
        self.shared.local = Local(
            identity=identity, instance_id=self._instance_id, address=self._address, port=self._port
        )
        timeout_ms = identity.election_timeout_ms
        self._probe_ms = float(min(timeout_ms, PROBE_MS_MAX))
        self.shared.user_timeout_ms = min(
            max(_USER_TIMEOUTS * timeout_ms, _USER_TIMEOUT_MS_MIN), _USER_TIMEOUT_MS_MAX
        )
        self.shared.connect_timeout_ms = float(
            min(max(timeout_ms, CONNECT_TIMEOUT_MS_MIN), CONNECT_TIMEOUT_MS_MAX)
        )
        if before is not None and _person(before.identity) != _person(identity):
            # A new worker, too, perhaps on another state: peers judge by the hello what is on its disk.
            self._start_over("this node has a new raft worker")
        self._announce_all()
        for peer in self.peers.values():
            peer.start()

    def set_members(self, members: Sequence[PeerAddress], removed: Sequence[int]) -> None:
        """The worker published another membership; this node itself may be in it."""
        others = {member.node_id: member for member in members if member.node_id != self.shared.node_id}
        self.shared.directory.update(others, frozenset(removed))
        if len(others) < len(members):
            # A member itself: from here on nothing but the membership says where somebody is.
            self.shared.directory.initial = {}
        self._resolver.keep_only({member.address for member in others.values()})
        for node_id in [node_id for node_id in self.peers if node_id not in others]:
            peer = self.peers.pop(node_id)
            peer.retire()
            self._retired.append(peer)
        self._retired = [peer for peer in self._retired if peer.lingering]
        for member in others.values():
            if member.node_id in self.peers:
                self.peers[member.node_id].move(member)
            else:
                self._add_peer(member)
        self._check_incoming()
        for session in self.sessions():
            self._judge_again(session)

    def refuse_start(self, node_id: int, refused: RefusedStart) -> None:
        """The worker found that a peer came back with less than it had acknowledged."""
        self.shared.directory.refuse_start(node_id, refused)
        for session in self.sessions():
            self._judge_again(session)

    def _judge_again(self, session: Session) -> None:
        """More is known of a member than when it was let in: an older copy of it hears so and goes."""
        who = session.who
        if who is None or session.ended:
            return
        remembered = self.shared.directory.remembered(who.node_id)
        if remembered.member_id == who.member_id:
            refusal = judge_state(who.node_id, who.incarnation, who.start, remembered)
            if refusal is not None:
                session.refuse(refusal)

    def _add_peer(self, member: PeerAddress) -> None:
        peer = Peer(self.shared, self._resolver, member, self._on_outgoing, self._on_outgoing_ended)
        self.peers[member.node_id] = peer
        peer.start()

    def send(self, node_id: int, bodies: Sequence[Buffer]) -> None:
        """Messages to one node, on our connection to it, else on one that it made; else they are dropped."""
        session = self._session_to(node_id)
        counters = self.shared.wire.counters
        if session is None:
            counters.dropped += len(bodies)
            return
        dropped = session.connection.send_messages(bodies)
        counters.dropped += dropped
        if self.shared.debug:
            log("DEBUG", f"{len(bodies)} messages to node {node_id}, {dropped} of them dropped")

    def _session_to(self, node_id: int) -> Session | None:
        peer = self.peers.get(node_id)
        if peer is not None and peer.state is PeerState.CONNECTED:
            return peer.session
        # A newcomer that is no member here yet must hear our answers, too: on its own connection.
        sessions = self.incoming.get(node_id)
        return sessions[-1] if sessions else None

    # --- incoming -----------------------------------------------------------------------------------

    def _on_accept(self, sock: socket.socket, at: str, host: str) -> None:
        accept_session(self, self._lobby, sock, at, host)

    def admit(self, session: IncomingSession, hello: Hello) -> None:
        """A hello passed the judges; what is left is room, and whether somebody else is this node."""
        if not self._has_room(hello.node_id):
            session.refuse(Refusal(RefusalCode.TOO_MANY, "too many connections of nodes that are no members"))
            return
        directory = self.shared.directory
        if hello.incarnation > directory.remembered(hello.node_id).incarnation:
            # First of all: those that wait to be let in are judged by it, too.
            directory.learn(hello.node_id, hello.member_id, hello.incarnation)
            self._turn_out_older(hello.node_id, hello.incarnation)
        rivals = self._rivals(hello.node_id, hello.instance_id)
        if not rivals:
            session.welcome()
            return
        key = ("probe", session)
        self.shared.wire.loop.timers.set(key, self._probe_ms, lambda: self._rivals_silent(session))
        for rival in rivals:
            rival.probe(partial(self._rival_alive, session, rival))

    def _has_room(self, node_id: int) -> bool:
        if sum(map(len, self.incoming.values())) >= INCOMING_MAX:
            return False
        members = self.shared.directory.members
        if node_id in members or node_id in self.incoming:
            return True
        return sum(1 for known in self.incoming if known not in members) < UNKNOWN_PEERS_MAX

    def _turn_out_older(self, node_id: int, incarnation: int) -> None:
        """An operator has said that older incarnations are gone for good: nobody asks whether they live."""
        for one in self._sessions_of(node_id):
            if one.who is not None and one.who.incarnation < incarnation:
                one.refuse(superseded_refusal(node_id, one.who.incarnation, incarnation))

    def _sessions_of(self, node_id: int) -> list[Session]:
        """Established sessions with this node, whichever instance of it."""
        sessions: list[Session] = list(self.incoming.get(node_id, ()))
        peer = self.peers.get(node_id)
        if peer is not None and peer.state is PeerState.CONNECTED and peer.session is not None:
            sessions.append(peer.session)
        return sessions

    def _rivals(self, node_id: int, instance_id: int) -> list[Session]:
        """Established sessions with another instance of the same node."""
        sessions = self._sessions_of(node_id)
        return [one for one in sessions if one.who is not None and one.who.instance_id != instance_id]

    def _rival_alive(self, session: IncomingSession, rival: Session) -> None:
        self.shared.wire.loop.timers.cancel(("probe", session))
        if session.ended or session.hello is None:
            return
        session.refuse(duplicate_refusal(session.hello.node_id, rival.at, session.at))
        peer = self.peers.get(session.hello.node_id)
        if peer is not None:
            # Whoever answers at the member's own address is the one: see _on_outgoing.
            peer.hurry()

    def _rivals_silent(self, session: IncomingSession) -> None:
        hello = session.hello
        if session.ended or hello is None or not session.is_still_welcome():
            return
        for rival in self._rivals(hello.node_id, hello.instance_id):
            rival.on_lost("it was silent when another instance of this node came")
        session.welcome()

    def _rival_gone(self, node_id: int) -> None:
        """A session of this node ended: those that wait for its sign of life may need to wait no more."""
        for session in self._lobby.waiting_for(node_id):
            if session.hello is not None and not self._rivals(node_id, session.hello.instance_id):
                self.shared.wire.loop.timers.cancel(("probe", session))
                session.welcome()

    def on_incoming(self, session: IncomingSession) -> None:
        """It was let in. An older connection of the same instance is one that it has given up."""
        if session.who is None:
            return
        node_id = session.who.node_id
        sessions = self.incoming.setdefault(node_id, [])
        older = [one for one in sessions if one.who and one.who.instance_id == session.who.instance_id]
        sessions.append(session)
        for one in older:
            one.on_lost("replaced by a newer connection")
        self._count()
        peer = self.peers.get(node_id)
        if peer is not None:
            peer.hurry()

    def bound_strangers(self) -> None:
        """While unfinished frames of nodes that are no members hold too much, the oldest goes: who sends
        to be heard is done soon."""
        members = self.shared.directory.members
        holding = [
            session
            for node_id, sessions in self.incoming.items()
            if node_id not in members
            for session in sessions
            if session.connection.unfinished_since
        ]
        holding.sort(key=lambda session: session.connection.unfinished_since, reverse=True)
        held = sum(session.connection.held_bytes for session in holding)
        while held > STRANGERS_HELD_BYTES_MAX:
            oldest = holding.pop()
            held -= oldest.connection.held_bytes
            self.shared.wire.counters.crowded_out += 1
            oldest.give_up("made room for frames of others that are no members either")

    def on_incoming_ended(self, session: IncomingSession) -> None:
        """It is gone, or refused."""
        self.shared.wire.loop.timers.cancel(("probe", session))
        if session.who is None:
            return
        node_id = session.who.node_id
        sessions = self.incoming.get(node_id, [])
        if session not in sessions:
            return
        sessions.remove(session)
        if not sessions:
            del self.incoming[node_id]
            self.shared.directory.forget_stranger(node_id)
        self._count()
        self._rival_gone(node_id)

    def _check_incoming(self) -> None:
        """A node that was removed hears so on the connections that it has."""
        for node_id in list(self.incoming):
            remembered = self.shared.directory.remembered(node_id)
            if remembered.removed:
                for session in list(self.incoming.get(node_id, ())):
                    session.refuse(removed_refusal(node_id))

    # --- outgoing -----------------------------------------------------------------------------------

    def _on_resolved(self, host: str) -> None:
        for peer in list(self.peers.values()):
            peer.on_resolved(host)

    def _on_outgoing(self, session: OutgoingSession) -> None:
        """The instance at the member's own address is the one that counts: another one that is alive
        and connected to us is a copy which came while the first could not be reached."""
        self._count()
        who = session.who
        if who is None:
            return
        self._turn_out_older(who.node_id, who.incarnation)
        for rival in self.incoming.get(who.node_id, ()):
            if rival.who is not None and rival.who.instance_id != who.instance_id:
                refusal = duplicate_refusal(who.node_id, session.at, rival.at)
                rival.probe(partial(rival.refuse, refusal))

    def _on_outgoing_ended(self, peer: Peer, _session: OutgoingSession) -> None:
        self._count()
        self._rival_gone(peer.node_id)

    # --- all ----------------------------------------------------------------------------------------

    def _count(self) -> None:
        self.shared.wire.counters.connections = len(self.sessions())

    def sessions(self) -> list[Session]:
        """Every established session."""
        found: list[Session] = [one for sessions in self.incoming.values() for one in sessions]
        found += [peer.session for peer in self.peers.values() if peer.session is not None]
        return [session for session in found if session.who is not None]

    def pause_reading(self) -> None:
        """The inbound ring is full: let TCP hold the senders back."""
        for session in self.sessions():
            session.connection.pause()

    def resume_reading(self) -> None:
        """There is room again."""
        for session in self.sessions():
            session.connection.resume()

    def _announce_all(self) -> None:
        for session in self.sessions():
            if session.who is not None:
                self.shared.control(session.who.hello_record())
        for peer in self.peers.values():
            if peer.state is PeerState.CONNECTED:
                self.shared.control(pack(RecordKind.PEER_CONNECTED, peer.node_id))

    def _start_over(self, reason: str) -> None:
        for session in self.sessions():
            if isinstance(session, IncomingSession):
                session.on_lost(reason)
        for peer in self.peers.values():
            peer.restart(reason)

    @property
    def unsent_bytes(self) -> int:
        """What waits for peers to read it."""
        return sum(session.connection.queued_bytes for session in self.sessions())

    def close(self) -> None:
        """End every connection at once."""
        if self._listener is not None:
            self._listener.close()
        self._lobby.close()
        for session in self.sessions():
            if isinstance(session, IncomingSession):
                session.on_lost("this node is stopping")
        for peer in [*self.peers.values(), *self._retired]:
            peer.close()
        self._resolver.close()


def _person(identity: NetIdentity) -> tuple[str, int, int, int]:
    return identity.cluster_id, identity.node_id, identity.member_id, identity.start.start_id
