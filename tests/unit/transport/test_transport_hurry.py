"""Records that do not wake the worker: it reads them when it wakes by itself."""

from __future__ import annotations

from pgraft.node.envelope import Call, Envelope, NodeStatus
from pgraft.node.outbox import _can_wait
from pgraft.raft.types import Message, MessageType
from pgraft.transport.inbox import Inbox


class _Ring:
    """A ring that takes everything."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.shown = 0

    def put(self, *parts: bytes | bytearray | memoryview) -> bool:
        self.records.append(b"".join(parts))
        return True

    def publish(self) -> bool:
        news = self.shown != len(self.records)
        self.shown = len(self.records)
        return news


def test_only_a_record_with_hurry_rings() -> None:
    ring, rung = _Ring(), []
    inbox = Inbox(ring, lambda: rung.append(ring.shown), lambda: None)
    inbox.deliver(b"prefix", b"later", hurry=False)
    inbox.publish()
    assert (ring.shown, rung) == (1, [])
    inbox.deliver(b"prefix", b"now")
    inbox.deliver(b"prefix", b"later", hurry=False)
    inbox.publish()
    assert (ring.shown, rung) == (3, [3])
    inbox.deliver(b"prefix", b"later", hurry=False)
    inbox.publish()
    assert (ring.shown, rung) == (4, [3])


def test_only_bare_answers_to_heartbeats_can_wait() -> None:
    def envelope(*messages: Message) -> Envelope:
        return Envelope(2, 5, NodeStatus(2), list(messages), echo=7, echo_term=5)

    answer = Message(type=MessageType.MsgHeartbeatResp, to=1, from_=2, term=5)
    assert _can_wait(envelope(answer))
    barrier = Message(type=MessageType.MsgHeartbeatResp, to=1, from_=2, term=5, context=b"x")
    assert not _can_wait(envelope(answer, barrier))
    for kind in MessageType:
        if kind != MessageType.MsgHeartbeatResp:
            assert not _can_wait(envelope(answer, Message(type=kind, to=1, from_=2, term=5))), kind
    with_call = envelope(answer)
    with_call.calls = [Call(1, 1, 1, 1)]
    assert not _can_wait(with_call)
    with_removal = envelope(answer)
    with_removal.removed_index = 3
    assert not _can_wait(with_removal)
