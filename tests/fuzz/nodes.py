"""A whole node, and peers that say anything: followers, leaders, candidates and newcomers, past the decoder.

Each input makes a node anew, brings it into a role by messages that are right, and then feeds it envelopes
whose every field may be anything. Whatever comes, the node goes on; what the door turns away has changed
nothing; and what it lets in keeps term and indexes in their bounds.
"""

from __future__ import annotations

import atexit
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec

from pgraft.executor import SegmentExecutor
from pgraft.node.boot import build_node, open_durable_state, open_identity
from pgraft.node.commands import CommandSource
from pgraft.node.disk_watch import DiskWatch
from pgraft.node.door import INDEX_MAX, TERM_JUMP_MAX, TERM_MAX
from pgraft.node.envelope import Call, Envelope, NodeStatus, Reply, encode
from pgraft.node.membership import ChangeContext, Membership, MembershipError, encode_context
from pgraft.node.membership import Node as Member
from pgraft.node.node import Replica
from pgraft.node.outputs import LogLine
from pgraft.postgres.settings import Member as InitialMember
from pgraft.postgres.settings import NodeConfig
from pgraft.raft.codec import encode_conf_change
from pgraft.raft.types import ConfChange, ConfState, Entry, Message, MessageType, Snapshot, StateType
from pgraft.shm import segment as segments
from pgraft.shm.blocks import read_status
from pgraft.shm.segment import Segment
from pgraft.transport.records import HURRY, NO_HURRY, PeerHello, RecordKind, Refusal, pack, prefix
from tests.fuzz.disk import directory
from tests.fuzz.target import Taker, Target, noise
from tests.support.node_sim import make_config, make_run_dir

MS = 1_000_000
ELECTION_MS, HEARTBEAT_MS = 1000, 100
M = MessageType
SENT = (M.MsgApp, M.MsgHeartbeat, M.MsgAppResp, M.MsgHeartbeatResp, M.MsgSnap)
MEMBERS = tuple(InitialMember(i, f"n{i}", "127.0.0.1", 7000 + i) for i in (1, 2, 3))


class Clock:
    """Time by hand."""

    def __init__(self) -> None:
        self.now = 10**13


CLOCK = Clock()


@cache
def config(state: str) -> NodeConfig:
    """Node 1's settings."""
    data_dir = directory() / "node"
    initial = MEMBERS if state == "new" else MEMBERS[:1]
    return make_config(
        data_dir, 1, initial, initial_cluster_state=state, command_ring_bytes=65536, slot_count=2,
        log_segment_bytes=65536,
    )  # fmt: skip


@cache
def segment() -> Segment:
    """One segment for all inputs: what is left in it by an input is overwritten by the next."""
    name = config("new").segment_name
    segments.unlink(name)
    made = segments.create(name, command_ring_bytes=65536, slot_count=2)
    segments.open_for_use(made, 1)
    atexit.register(segments.unlink, name)
    atexit.register(made.close)
    return made


class Silent(SegmentExecutor):
    """Reads what is put into its inbox, carries everything out, and writes no log."""

    inbox: list[bytes]

    def read_records(self) -> list[bytes]:
        """The inbox."""
        records, self.inbox = self.inbox, []
        return records

    def log(self, lines: list[LogLine]) -> None:
        """Nothing."""


class Rig:
    """Node 1, with its outbound ring read and thrown away."""

    def __init__(self, state: str) -> None:
        given = config(state)
        shutil.rmtree(given.data_dir, ignore_errors=True)
        make_run_dir(given)
        CLOCK.now = 10**13
        self.segment = segment()
        self._views = len(self.segment._views)
        for name in ("lease_end_ns", "status_generation", "members_generation"):
            self.segment.worker[name] = 0
        self.segment.outbound_reader().skip_all()
        identity = open_identity(given)
        store = open_durable_state(given, identity, lambda: None)
        self.source = CommandSource(self.segment, Path(given.data_dir) / "run", given.max_entry_bytes)
        self.node: Replica = build_node(given, identity, store, now_ns=CLOCK.now, chance=random.Random(1))
        watch = DiskWatch(given.disk_stall_timeout_ms, given.data_dir)
        inbound = self.segment.inbound_reader()
        data_dir = Path(given.data_dir)
        self.executor = Silent(data_dir, self.segment, inbound, self.source, store, watch, lambda: CLOCK.now)
        self._out = self.segment.outbound_reader()
        for peer in (2, 3, 4):
            self.give(pack(RecordKind.PEER_HELLO, peer, PeerHello(peer + 100, "127.0.0.1", 7000 + peer, 1)))

    def close(self) -> None:
        """The end of the input."""
        self.executor.store._log.close()
        self.source.close()
        for view in self.segment._views[self._views :]:
            view.release()
        del self.segment._views[self._views :]

    def give(self, *records: bytes) -> None:
        """One turn with these records; what the node publishes must be readable."""
        self.executor.inbox = list(records)
        more = True
        while more:
            more = self.executor.turn(self.node).more
            self._out.skip_all()

    def say(self, sender: int, *messages: Message, **more: object) -> None:
        """A peer says what it may say."""
        for m in messages:
            m.from_, m.to = sender, 1
        term = max((m.term for m in messages), default=0)
        fields: dict[str, object] = {"messages": list(messages)} | more
        envelope = Envelope(sender, term, NodeStatus(sender, 1, term), **fields)  # type: ignore[arg-type]
        self.give(prefix(RecordKind.MESSAGE, sender) + HURRY + encode(envelope))

    def pass_ms(self, ms: int) -> None:
        """Let time pass."""
        CLOCK.now += ms * MS
        self.give()

    # --- roles ------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Node 2 leads at term 2, and three entries are here, two of them committed."""
        entries = [Entry(2, index, 0, b"\x01x") for index in (2, 3, 4)]
        self.say(2, Message(type=M.MsgApp, term=2, log_term=1, index=1, entries=entries, commit=3))

    def campaign(self) -> None:
        """Nobody was heard: the pre-vote is asked for, and node 2 grants it."""
        for _ in range(30):
            if self.node.raft.state is not StateType.StateFollower:
                break
            self.pass_ms(100)
        self.say(2, Message(type=M.MsgPreVoteResp, term=self.node.raft.term + 1))

    def lead(self) -> None:
        """It is elected, and its first entry is acknowledged."""
        self.campaign()
        raft = self.node.raft
        self.say(3, Message(type=M.MsgVoteResp, term=raft.term))
        self.say(2, Message(type=M.MsgAppResp, term=raft.term, index=raft.raft_log.last_index()))

    def learner(self) -> None:
        """It leads, and has a learner, node 4."""
        self.lead()
        change = ConfChange(3, 4, encode_context(ChangeContext("127.0.0.1", 7004)))
        self.node.core.raw.propose_conf_change(change)
        raft = self.node.raft
        self.give()
        self.say(2, Message(type=M.MsgAppResp, term=raft.term, index=raft.raft_log.last_index()))


def state_of(node: Replica) -> tuple[object, ...]:
    """What a message that is turned away must leave as it is."""
    raft, log = node.raft, node.raft.raft_log
    core = node.core
    lead = (raft.term, raft.vote, raft.lead, raft.state, raft.lead_transferee, raft.pending_conf_index)
    entries = (log.committed, node.core.applied, log.last_index(), log.last_term(), core.store.hard_state)
    peers = {one: (p.match, p.next, p.state, p.recent_active) for one, p in raft.trk.items()}
    return (
        lead,
        entries,
        peers,
        core.membership_log.current,
        node.removed,
        node.barred,
        dict(node.lease._answers),
    )


# --- what peers say ---------------------------------------------------------------------------------------


def entry(taker: Taker, index: int, term: int) -> Entry:
    """An entry that follows, or nearly."""
    made = Entry(term, index, 0, b"\x01" + taker.bytes(taker.byte() % 4))
    if taker.chance(4):
        context = taker.choice((b"", encode_context(ChangeContext("h", 1)), taker.bytes(5)))
        made = encode_conf_change(ConfChange(taker.near(0, 1, 2, 3), taker.near(1, 2, 3, 4, 5), context))
        made.term, made.index = term, index
        if taker.chance(6):
            made.data = taker.bytes(taker.byte() % 8)
    if taker.chance(8):
        made.index = taker.near(index)
    if taker.chance(8):
        made.term = taker.near(term)
    if taker.chance(12):
        made.type = taker.byte()
    return made


def snapshot(taker: Taker, node: Replica) -> Snapshot:
    """A snapshot of some members."""
    nodes = tuple(Member(i, "127.0.0.1", taker.near(7000)) for i in (1, 2, 3) if not taker.chance(6))
    voters = tuple(member.node_id for member in nodes) if not taker.chance(5) else (taker.near(1, 2),)
    learners = (taker.near(1, 4),) if taker.chance(4) else ()
    state = ConfState(voters, learners)
    if taker.chance(6):
        state = ConfState(voters, learners, (taker.near(1, 2),), (taker.near(2),), taker.chance(2))
    removed = (taker.near(5),) if taker.chance(5) else ()
    last = node.raft.raft_log.last_index()
    made = Membership(nodes, removed, state).to_snapshot(
        taker.near(last + 3, last), taker.near(node.raft.term)
    )
    return msgspec.structs.replace(made, data=taker.bytes(9)) if taker.chance(8) else made


def message(taker: Taker, node: Replica, sender: int) -> Message:
    """A message of any type, whose numbers are near what would be true."""
    raft, log = node.raft, node.raft.raft_log
    last, last_term = log.last_index(), log.last_term()
    kind = taker.choice(SENT) if taker.chance(3) else taker.choice(tuple(M))
    made = Message(type=kind, to=1, from_=sender, term=taker.near(raft.term, raft.term + 1))
    made.index = taker.near(last, log.committed, 0)
    made.log_term = taker.near(last_term, 0)
    made.commit = taker.near(log.committed, last)
    if kind is M.MsgApp or taker.chance(12):
        index = made.index
        made.entries = [entry(taker, index + 1 + i, taker.near(made.term)) for i in range(taker.byte() % 4)]
    if kind in (M.MsgReadIndex, M.MsgReadIndexResp):
        made.entries = [Entry(data=taker.bytes(8)) for _ in range(taker.near(1) % 4)]
        made.term = 0 if kind is M.MsgReadIndex else made.term
    if kind is M.MsgSnap or taker.chance(24):
        made.snapshot = snapshot(taker, node)
    made.reject = taker.chance(4)
    made.reject_hint = taker.near(0, last) if made.reject or taker.chance(8) else 0
    if taker.chance(4):
        made.context = taker.choice((b"CampaignTransfer", bytes(7) + b"\1", taker.bytes(taker.byte() % 80)))
    if taker.chance(16):
        made.to, made.from_, made.vote = taker.near(1), taker.near(sender), taker.near(0)
    if taker.chance(24):
        made.responses = [Message(type=kind)]
    return made


def status(taker: Taker, node: Replica, sender: int) -> NodeStatus:
    """A status, right in most of its fields."""
    made = NodeStatus(sender, taker.byte() % 6, node.raft.term, 1, 1, taker.near(0, 100))
    if taker.chance(16):
        field = taker.choice(("node_id", "role", "term", "commit_index", "last_index", "age_ms"))
        setattr(made, field, taker.choice((taker.number(), -1, -(2**63))))
    return made


def envelope(taker: Taker, node: Replica, sender: int) -> Envelope:
    """One frame's content."""
    made = Envelope(sender, node.raft.term, status(taker, node, sender))
    made.messages = [message(taker, node, sender) for _ in range(taker.byte() % 4)]
    if taker.chance(3):
        made.round, made.echo = taker.near(CLOCK.now), taker.near(CLOCK.now, node.leadership.newest_round)
        made.echo_term, made.promise_ms = taker.near(node.raft.term), taker.near(900)
    if taker.chance(5):
        made.table = [status(taker, node, taker.near(1, 2, 3, 4)) for _ in range(taker.byte() % 5)]
    if taker.chance(6):
        made.calls = [call(taker) for _ in range(taker.byte() % 3)]
    if taker.chance(6):
        nonce = taker.choice((node.desk._forwarded.nonce, taker.number()))
        made.replies = [Reply(nonce, taker.near(1), taker.near(1, 5), taker.near(1), taker.near(1))]
    if taker.chance(16):
        made.removed_index = taker.near(node.raft.raft_log.committed)
    if taker.chance(16):
        made.term = taker.near(made.term)
    return made


def call(taker: Taker) -> Call:
    """A command that is sent on."""
    data = taker.choice((b"127.0.0.1", taker.bytes(6), b"\xff\xfe"))
    return Call(
        7, taker.byte(), taker.near(1, 2, 3, 7), taker.near(1000), taker.near(1, 4), taker.near(7), data
    )


def other_record(taker: Taker, sender: int) -> bytes:
    """A record that is no message."""
    hello = PeerHello(taker.near(100 + sender), taker.text(), taker.near(7000), taker.number())
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: pack(RecordKind.PEER_HELLO, sender, hello),
        lambda: pack(RecordKind.REFUSED_BY_PEER, sender, Refusal(taker.byte() % 13, taker.text())),
        lambda: pack(RecordKind.PEER_CONNECTED, sender),
        lambda: pack(RecordKind.PEER_DISCONNECTED, sender),
        lambda: taker.bytes(taker.byte()),
        lambda: prefix(RecordKind.MESSAGE, sender) + taker.bytes(taker.byte()),
    )
    return taker.choice(choices)()


# --- the target -------------------------------------------------------------------------------------------


def one_step(rig: Rig, taker: Taker) -> None:
    """Something comes, or time passes."""
    node = rig.node
    sender = taker.choice((2, 3, 2, 3, 4, 9))
    how = taker.byte() % 16
    if how == 0:
        rig.pass_ms(taker.choice((1, 10, 100, 1000, 5000)))
        return
    if how == 1:
        rig.give(other_record(taker, sender))
        return
    made = envelope(taker, node, sender)
    before, absurd = state_of(node), node.door.absurd
    members, removed = node.core.membership_log.current, node.removed
    term, known = node.raft.term, bool(members.nodes)
    try:
        body = encode(made)
    except OverflowError:  # a number that no wire carries
        return
    rig.give(prefix(RecordKind.MESSAGE, sender) + taker.choice((HURRY, NO_HURRY)) + body)
    turned_away = node.door.absurd - absurd
    nothing_else = turned_away == max(1, len(made.messages)) and not (made.calls or made.echo)
    if nothing_else and before != state_of(node):
        raise AssertionError(f"{made} was turned away and made {before} into {state_of(node)}")
    by_word = node.removed and not removed and node.core.membership_log.current.get(1) is not None
    if by_word and members.get(sender) is None:
        raise AssertionError(f"node {sender}, which is no member, has ended this node's part by {made}")
    check(rig, term if known else TERM_MAX - TERM_JUMP_MAX)


def check(rig: Rig, term_before: int) -> None:
    """What holds whatever was said."""
    raft, log = rig.node.raft, rig.node.raft.raft_log
    if not raft.term <= min(TERM_MAX, term_before + 4 * TERM_JUMP_MAX):
        raise AssertionError(f"term {raft.term} after {term_before}")
    applied = rig.node.core.applied
    if not applied <= log.committed <= log.last_index() <= INDEX_MAX:
        raise AssertionError(f"applied {applied}, committed {log.committed}, last {log.last_index()}")
    if rig.segment.worker["lease_end_ns"] > CLOCK.now + ELECTION_MS * MS:
        raise AssertionError("a lease that is longer than an election timeout")
    read_status(rig.segment)


def nodes(data: bytes) -> None:
    """One node, one role, a few dozen things that peers say."""
    taker = Taker(data)
    role = taker.byte() % 6
    segment()
    rig = Rig("existing" if role == 5 else "new")
    try:
        ways: tuple[Callable[[], None], ...] = (
            rig.follow, rig.campaign, rig.lead, rig.learner, rig.follow, lambda: None,
        )  # fmt: skip
        ways[role]()
        steps = 0
        while taker.left and steps < 40:
            one_step(rig, taker)
            steps += 1
        rig.pass_ms(3000)
    except MembershipError:
        # A leader had a change committed that cannot be: the worker says so, and takes part no more.
        return
    finally:
        rig.close()


TARGETS = (
    Target("nodes", nodes, tuple(bytes([role]) + one for role, one in enumerate(noise(6, 300))), 1024),
)
