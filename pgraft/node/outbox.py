"""What this node is about to send: messages gathered by peer, one envelope a peer at a time.

An append that carries no entries, to a peer that is replicating, only moves the commit index. It
waits for company (the next append, whose commit index covers it, or COMMIT_LAG_MS), since on a
busy node the next append is microseconds away, and on an idle one nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

from pgraft.node.envelope import ENVELOPE_ENTRY_BYTES_MAX, Call, Envelope, NodeStatus, Reply
from pgraft.node.outputs import Sending
from pgraft.raft.types import Message, MessageType

COMMIT_LAG_MS = 5
_APP = MessageType.MsgApp
_HEARTBEAT = MessageType.MsgHeartbeat
_TIMEOUT_NOW = MessageType.MsgTimeoutNow
_ROUND_TYPES = (MessageType.MsgApp, MessageType.MsgHeartbeat)
_MESSAGE_BYTES = 64
"""A guess at what a message takes beside its entries' data, high enough to bound a frame."""
_CONF_STATE_BYTES_MAX = 4096
"""Ids of a snapshot's configuration: each of MEMBERS_MAX members in at most two lists."""


class Peer:
    """What waits for one peer."""

    __slots__ = ("bytes", "calls", "echo", "echo_term", "held", "messages", "removed_index", "replies")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.held: Message | None = None
        self.calls: list[Call] = []
        self.replies: list[Reply] = []
        self.echo = 0
        self.echo_term = 0
        self.removed_index = 0
        self.bytes = 0


class Outbox:
    """Gathers what goes to each peer."""

    def __init__(self, node_id: int, promise_ms: int) -> None:
        self._node_id = node_id
        self._promise_ms = promise_ms
        self._peers: dict[int, Peer] = {}
        self._due: dict[int, Peer] = {}
        self._held_since_ns = 0
        self.beats = False

    def _peer(self, node_id: int) -> Peer:
        peer = self._peers.get(node_id)
        if peer is None:
            peer = self._peers[node_id] = Peer()
        return peer

    def add(self, message: Message, *, may_wait: bool, now_ns: int) -> None:
        """Queue a message; `may_wait` when its peer is replicating, so that a bare commit can be held."""
        peer = self._peer(message.to)
        if message.type == _APP:
            if may_wait and not message.entries:
                peer.held = message
                self._held_since_ns = self._held_since_ns or now_ns
                return
            peer.held = None
            self._held_since_ns = self._held_since_ns and self._oldest_held_ns()
        elif message.type == _HEARTBEAT:
            self.beats = True
        elif message.type == _TIMEOUT_NOW:
            # Who has just become a voter must know so before it is asked to campaign.
            self._release(message.to, peer)
        peer.bytes += _size_of(message)
        peer.messages.append(message)
        self._due[message.to] = peer

    def _oldest_held_ns(self) -> int:
        return self._held_since_ns if any(peer.held is not None for peer in self._peers.values()) else 0

    def call(self, node_id: int, call: Call) -> None:
        """Send a command on to the leader."""
        peer = self._peer(node_id)
        self._due[node_id] = peer
        peer.calls.append(call)
        peer.bytes += _MESSAGE_BYTES + len(call.data)

    def reply(self, node_id: int, reply: Reply) -> None:
        """Answer a forwarded command."""
        peer = self._peer(node_id)
        self._due[node_id] = peer
        peer.replies.append(reply)
        peer.bytes += _MESSAGE_BYTES + len(reply.payload)

    def echo(self, node_id: int, round_ns: int, term: int) -> None:
        """Answer the leader's round with the next envelope to it."""
        peer = self._peer(node_id)
        peer.echo, peer.echo_term = round_ns, term

    def tell_removed(self, node_id: int, index: int) -> None:
        """Tell a node that the change at `index` removed it."""
        peer = self._peer(node_id)
        self._due[node_id] = peer
        peer.removed_index = index
        # Behind this, a leader's message would say that the node is a member again.
        peer.held = None

    def held_due_ns(self) -> int:
        """When held commits must go out, 0 when there are none."""
        return self._held_since_ns + COMMIT_LAG_MS * 1_000_000 if self._held_since_ns else 0

    def release_held(self, now_ns: int) -> None:
        """Let held commits go when their time has come."""
        if self._held_since_ns and now_ns >= self.held_due_ns():
            self._held_since_ns = 0
            for node_id, peer in self._peers.items():
                self._release(node_id, peer)

    def _release(self, node_id: int, peer: Peer) -> None:
        if peer.held is not None:
            self._due[node_id] = peer
            peer.bytes += _size_of(peer.held)
            peer.messages.append(peer.held)
            peer.held = None

    def drop_held(self) -> None:
        """Leadership has changed hands: what an earlier leader committed is told by the next one."""
        self._held_since_ns = 0
        for peer in self._peers.values():
            peer.held = None

    def forget(self, node_id: int) -> None:
        """Drop what waits for a peer that is a member no more."""
        self._peers.pop(node_id, None)
        self._due.pop(node_id, None)

    def flush(
        self,
        status: NodeStatus,
        table: Callable[[], list[NodeStatus]],
        *,
        round_ns: int,
        promises: bool,
    ) -> list[Sending]:
        """One envelope for each peer that has something to get, or several where it is much.

        `round_ns`: 0, or the send time when this node leads and asks for a lease answer. Without `promises`
        no round is answered yet: the term that it is answered in may not be on the disk.
        """
        sendings: list[Sending] = []
        due, self._due = self._due, {}
        for node_id, peer in due.items():
            self._send(sendings, node_id, peer, status, table, round_ns, promises)
        self.beats = False
        return sendings

    def is_due(self) -> bool:
        """Whether there is an envelope to send (for a held commit alone there is none)."""
        return bool(self._due)

    def _send(
        self,
        sendings: list[Sending],
        node_id: int,
        peer: Peer,
        status: NodeStatus,
        table: Callable[[], list[NodeStatus]],
        round_ns: int,
        promises: bool,
    ) -> None:
        whole = _Load(peer.messages, peer.calls, peer.replies)
        for load in [whole] if peer.bytes <= ENVELOPE_ENTRY_BYTES_MAX else _split(whole):
            beats = any(message.type == MessageType.MsgHeartbeat for message in load.messages)
            asks = round_ns if any(message.type in _ROUND_TYPES for message in load.messages) else 0
            envelope = Envelope(
                sender=self._node_id,
                term=status.term,
                status=status,
                messages=load.messages,
                round=asks,
                echo=peer.echo if promises else 0,
                echo_term=peer.echo_term,
                promise_ms=self._promise_ms,
                table=table() if beats and round_ns else [],
                calls=load.calls,
                replies=load.replies,
                removed_index=peer.removed_index,
            )
            sendings.append(Sending(node_id, not _can_wait(envelope), envelope))
        peer.messages, peer.calls, peer.replies = [], [], []
        peer.bytes = peer.removed_index = 0
        if promises:
            peer.echo = 0


def _can_wait(envelope: Envelope) -> bool:
    """Whether there are only answers to heartbeats in it, of which none answers a read barrier.

    The leader reads them with its next heartbeat at the latest. Its lease is computed from when the round
    was sent, so it is no longer for that, and the next round comes long before it ends.
    """
    if envelope.calls or envelope.replies or envelope.removed_index:
        return False
    return all(m.type == MessageType.MsgHeartbeatResp and not m.context for m in envelope.messages)


def _size_of(message: Message) -> int:
    """Bytes that the message takes in an envelope, at most."""
    size = _MESSAGE_BYTES
    for entry in message.entries:
        size += len(entry.data) + _MESSAGE_BYTES
    if message.snapshot is not None:
        size += len(message.snapshot.data) + _CONF_STATE_BYTES_MAX
    return size


class _Load:
    """What goes into one envelope."""

    __slots__ = ("calls", "messages", "replies")

    def __init__(self, messages: list[Message], calls: list[Call], replies: list[Reply]) -> None:
        self.messages = messages
        self.calls = calls
        self.replies = replies


def _split(whole: _Load) -> list[_Load]:
    """Loads that each stay below the envelope's limit, in order; a single item always fits by itself."""
    loads: list[_Load] = []
    room = 0

    def load_for(size: int) -> _Load:
        nonlocal room
        if not loads or size > room:
            loads.append(_Load([], [], []))
            room = ENVELOPE_ENTRY_BYTES_MAX
        room -= size
        return loads[-1]

    for message in whole.messages:
        load_for(_size_of(message)).messages.append(message)
    for call in whole.calls:
        load_for(_MESSAGE_BYTES + len(call.data)).calls.append(call)
    for reply in whole.replies:
        load_for(_MESSAGE_BYTES + len(reply.payload)).replies.append(reply)
    return loads
