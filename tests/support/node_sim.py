"""Several nodes of pgraft.node in one process, with real stores and segments, and time by hand.

There is no network process: what a node puts into its outbound ring is handed to the others here,
over links that can be cut. Nothing that nodes say to each other may be turned away at the door of
another: only a test that says hostile things itself sets `hostile`. Nodes can be killed (what they did
not sync is on disk all the same, but their memory is gone), frozen and thawed. Commands go through the
real command ring, as a backend's.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgraft.executor import SegmentExecutor
from pgraft.node.boot import applied_before, build_node, open_durable_state, open_identity, shown_before
from pgraft.node.commands import RESTARTED, CommandSource
from pgraft.node.disk_watch import DiskWatch
from pgraft.node.node import Replica
from pgraft.postgres.settings import Member, NodeConfig
from pgraft.shm import segment as segments
from pgraft.shm.blocks import Members, Status, read_members, read_status
from pgraft.shm.layout import COMMAND_RING_OFFSET, PIECE_BYTES_MAX, CommandKind, Outcome, SlotState, Yields
from pgraft.shm.rings import RingWriter
from pgraft.shm.segment import Segment
from pgraft.storage import lock_data_dir
from pgraft.storage.data_dir import LockedDir
from pgraft.transport.records import (
    ENVELOPE_OFFSET,
    PREFIX_BYTES,
    PeerHello,
    RecordKind,
    Refusal,
    RefusalCode,
    pack,
    prefix,
    unpack_prefix,
)

MS = 1_000_000
HOP_NS = 100_000
"""How long a message is on its way."""
REFUSED_EVERY_NS = 500 * MS
SLOTS = 16
HEARTBEAT_MS = 100
ELECTION_MS = 1000
Answer = tuple[int, int, int, int, bytes]


def make_config(data_dir: Path, node_id: int, initial: tuple[Member, ...], **other: object) -> NodeConfig:
    """A node's settings; `other` overrides any of them."""
    values: dict[str, object] = {
        "name": f"node{node_id}",
        "node_id": node_id,
        "cluster_id": "sim",
        "initial_cluster": initial,
        "initial_cluster_state": "new",
        "address": "127.0.0.1",
        "port": 7000 + node_id,
        "listen_host": "127.0.0.1",
        "listen_port": 7000 + node_id,
        "data_dir": str(data_dir),
        "pgdata": "/nonexistent",
        "segment_name": segments.segment_name(data_dir),
        "election_timeout_ms": ELECTION_MS,
        "heartbeat_interval_ms": HEARTBEAT_MS,
        "ssl_enabled": False,
        "ssl_cert_file": "",
        "ssl_key_file": "",
        "ssl_ca_file": "",
        "autostart": True,
        "max_entry_bytes": 1024 * 1024,
        "command_ring_bytes": 4 * 1024 * 1024,
        "slot_count": SLOTS,
        "log_keep_entries": 1_000_000,
        "log_keep_bytes": 1 << 30,
        "snapshot_threshold": 10_000,
        "log_segment_bytes": 4 << 20,
        "disk_stall_timeout_ms": 60_000,
    }
    return NodeConfig(**(values | other))  # type: ignore[arg-type]


def make_run_dir(config: NodeConfig) -> Path:
    """An empty data directory with its FIFOs."""
    run_dir = Path(config.data_dir) / "run"
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(config.data_dir, 0o700)
    segments.make_fifos(run_dir, config.slot_count)
    return run_dir


def make_segment(config: NodeConfig) -> Segment:
    """The node's segment with its FIFOs, as the supervisor makes them."""
    make_run_dir(config)
    segments.unlink(config.segment_name)
    segment = segments.create(
        config.segment_name, command_ring_bytes=config.command_ring_bytes, slot_count=config.slot_count
    )
    segment.header["node_id"] = config.node_id
    segments.open_for_use(segment, 1)
    return segment


class Backend:
    """Sessions of one node: they put commands into the ring and look at their slots."""

    def __init__(self, segment: Segment) -> None:
        header = segment.header
        ring = segment.bytes_at(header["command_offset"] + COMMAND_RING_OFFSET, header["command_ring_bytes"])
        self.writer = RingWriter(ring, segment.command_head(), segment.worker_ref("command_tail"))
        self.slots = [segment.slot(number) for number in range(header["slot_count"])]

    def submit(
        self,
        slot: int,
        kind: int,
        data: bytes = b"",
        *,
        arg1: int = 0,
        arg2: int = 0,
        timeout_ms: int = 10_000,
        forward: bool = False,
        pieces: slice = slice(None),
    ) -> int:
        """Put one command into the ring, in pieces where it is long; its request number."""
        words = self.slots[slot].words
        words[0] = (os.getpid() << 32) | 1
        words[3] = SlotState.PREPARING
        number = words[1] + 1
        words[1] = number
        offsets = list(range(0, len(data), PIECE_BYTES_MAX)) or [0]
        for offset in offsets[pieces]:
            piece = data[offset : offset + PIECE_BYTES_MAX]
            record = struct.pack(
                "<12Q", kind, slot, number, int(forward), len(data), offset, timeout_ms, arg1, arg2, 1, 0, 0
            )
            if not self.writer.put(record, piece):
                raise RuntimeError("the command ring is full")
        words[2] = self.writer._next
        words[3] = SlotState.SUBMITTED
        self.writer.publish()
        return int(number)

    def answer(self, slot: int, number: int) -> Answer | None:
        """The answer to the request, None while there is none."""
        answer = self.slots[slot].read_answer()
        if answer is None or answer[0] != number:
            return None
        return answer

    def release(self, slot: int) -> None:
        """The session goes away."""
        words = self.slots[slot].words
        words[3] = SlotState.FREE
        words[0] = 0


class Ticket:
    """One command on its way. `answers` counts the final ones: never more than one."""

    def __init__(self, node: SimNode, slot: int, number: int, data: bytes) -> None:
        self.node = node
        self.slot = slot
        self.number = number
        self.data = data
        self.notices: list[str] = []
        self.final: Answer | None = None

    def look(self) -> None:
        """Take what is in the slot now."""
        answer = self.node.backend.answer(self.slot, self.number)
        if answer is None or self.final is not None:
            return
        if answer[1] == Outcome.PROGRESS:
            text = answer[4].decode()
            if text not in self.notices[-1:]:
                self.notices.append(text)
        elif answer[1] != Outcome.NONE:
            self.final = answer

    @property
    def outcome(self) -> Outcome | None:
        """The final outcome, None while the command waits."""
        return Outcome(self.final[1]) if self.final else None

    @property
    def text(self) -> str:
        """The text of an error: message, detail, hint."""
        return self.final[4].decode().replace("\0", "\n") if self.final else ""


class InboxExecutor(SegmentExecutor):
    """The worker's executor where there is no network process: others put records into the inbox."""

    def __init__(self, node: SimNode, *parts: Any) -> None:
        super().__init__(*parts)
        self._node = node

    def read_records(self) -> list[bytes]:
        """What others have put there."""
        records, self._node.inbox = self._node.inbox, []
        return records


class SimNode:
    """One node of the simulation."""

    def __init__(self, sim: Sim, config: NodeConfig) -> None:
        self.sim = sim
        self.config = config
        self.id = config.node_id
        self.segment = make_segment(config)
        self.backend = Backend(self.segment)
        self.reader = self.segment.outbound_reader()
        self.inbox: list[bytes] = []
        self.node: Replica | None = None
        self.executor: SegmentExecutor | None = None
        self.yields = Yields.NO
        self.frozen = False
        self._lock: LockedDir | None = None
        self._next_slot = 0
        self._members: tuple[int, Members] | None = None
        self.due_ns = 0

    # --- life -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """What raft_worker does at its start."""
        data_dir = Path(self.config.data_dir)
        self._lock = lock_data_dir(data_dir)
        identity = open_identity(self.config)
        self.segment.worker["lease_end_ns"] = 0
        self.segment.worker["epoch"] += 1
        self.source = CommandSource(self.segment, data_dir / "run", self.config.max_entry_bytes)
        self.source.answer_taken_earlier(RESTARTED)
        store = open_durable_state(self.config, identity, lambda: None)
        self.node = build_node(
            self.config,
            identity,
            store,
            now_ns=self.sim.now_ns,
            chance=self.sim.chance,
            applied=applied_before(shown_before(self.segment), store),
        )
        watch = DiskWatch(self.config.disk_stall_timeout_ms, self.config.data_dir)
        inbound = self.segment.inbound_reader()
        self.executor = InboxExecutor(
            self, data_dir, self.segment, inbound, self.source, store, watch, lambda: self.sim.now_ns
        )
        self.inbox = []
        self.frozen = False
        self.due_ns = self.sim.now_ns

    def kill(self) -> None:
        """kill -9 of the worker: its memory is gone, the segment and the disk stay."""
        if self.node is None:
            return
        self.sim.turned_away += self.node.door.absurd
        self.runs.store._log.close()
        self.node = None
        self.source.close()
        if self._lock is not None:
            self._lock.release()
        self.sim.unlink(self.id)

    def close(self) -> None:
        """The end of the test."""
        self.kill()
        segments.unlink(self.config.segment_name)
        self.segment.close()

    def restart(self) -> None:
        """kill -9, and a new worker at once."""
        self.kill()
        self.start()

    @property
    def live(self) -> Replica:
        """The running replica."""
        if self.node is None:
            raise RuntimeError(f"node {self.id} does not run")
        return self.node

    @property
    def runs(self) -> SegmentExecutor:
        """The executor of the running replica."""
        if self.executor is None:
            raise RuntimeError(f"node {self.id} does not run")
        return self.executor

    # --- what others see ------------------------------------------------------------------------------

    @property
    def lease_valid(self) -> bool:
        """What pgraft_is_leader() would say now."""
        return bool(self.segment.worker["lease_end_ns"] > self.sim.now_ns)

    @property
    def has_yielded(self) -> bool:
        """What the supervisor reads before it stops PostgreSQL."""
        return bool(self.segment.worker["yielded"])

    @property
    def status(self) -> Status:
        """The status block."""
        return read_status(self.segment)

    @property
    def members(self) -> Members:
        """The members block; empty before the first step."""
        generation = self.segment.worker["members_generation"]
        if not generation:
            return Members(0, (), ())
        if self._members is None or self._members[0] != generation:
            self._members = (generation, read_members(self.segment))
        return self._members[1]

    @property
    def texts(self) -> list[bytes]:
        """User data of the committed entries, in order."""
        core = self.live.core
        store, last = core.store, min(core.raft.raft_log.committed, core.store.last_index())
        entries = store.entries(store.first_index(), last + 1, 2**62) if last >= store.first_index() else []
        return [entry.data[1:] for entry in entries if not entry.type and entry.data]

    def command(self, kind: int, data: bytes = b"", **other: object) -> Ticket:
        """A session sends a command, from the next slot."""
        slot = self._next_slot
        self._next_slot = (slot + 1) % SLOTS
        number = self.backend.submit(slot, kind, data, **other)  # type: ignore[arg-type]
        ticket = Ticket(self, slot, number, data)
        self.sim.tickets.append(ticket)
        return ticket

    def replicate(self, data: bytes, **other: object) -> Ticket:
        """pgraft_replicate_entry."""
        return self.command(CommandKind.REPLICATE, data, **other)

    # --- one turn -------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Let the node handle what has come."""
        self.runs.yields = self.yields
        outputs = self.runs.turn(self.live)
        self.due_ns = self.sim.now_ns if outputs.more else max(outputs.deadline_ns, self.sim.now_ns)

    def wants_turn(self) -> bool:
        """Whether anything waits, or the time has come."""
        if self.node is None or self.frozen:
            return False
        return bool(self.inbox) or self.source.pending() or self.due_ns <= self.sim.now_ns


class Sim:
    """The cluster, its clock and its links. `on_step` is called after every turn of a node."""

    def __init__(self, root: Path, seed: int = 1) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.chance = random.Random(seed)
        self.now_ns = 3_600_000 * MS
        self.nodes: dict[int, SimNode] = {}
        self.tickets: list[Ticket] = []
        self.on_step: list[Callable[[], None]] = []
        self.drop: Callable[[int, int, bytes], bool] = lambda sender, to, envelope: False
        self.hostile = False
        self.turned_away = 0
        self._links: set[tuple[int, int]] = set()
        self._cut: set[frozenset[int]] = set()
        self._on_way: list[tuple[int, int, int, bytes]] = []
        self._refused_ns: dict[tuple[int, int], int] = {}

    # --- making ---------------------------------------------------------------------------------------

    def add(self, node_id: int, initial: tuple[int, ...], *, start: bool = True, **other: object) -> SimNode:
        """A node whose initial cluster is `initial`."""
        members = tuple(Member(i, f"node{i}", "127.0.0.1", 7000 + i) for i in initial)
        config = make_config(self.root / f"n{node_id}", node_id, members, **other)
        self.nodes[node_id] = node = SimNode(self, config)
        if start:
            node.start()
        return node

    def form(self, count: int, **other: object) -> list[SimNode]:
        """A cluster of `count` initial nodes."""
        ids = tuple(range(1, count + 1))
        return [self.add(node_id, ids, **other) for node_id in ids]

    def join(self, node_id: int, *, start: bool = True, **other: object) -> SimNode:
        """A node that waits to be added."""
        return self.add(node_id, tuple(self.nodes), start=start, initial_cluster_state="existing", **other)

    # --- faults ---------------------------------------------------------------------------------------

    def cut(self, one: int, other: int) -> None:
        """Nothing passes between the two."""
        self._cut.add(frozenset((one, other)))
        self._drop_link(one, other)

    def isolate(self, node_id: int) -> None:
        """Cut a node off from all others."""
        for other in self.nodes:
            if other != node_id:
                self.cut(node_id, other)

    def heal(self) -> None:
        """Every link works again."""
        self._cut.clear()

    def unlink(self, node_id: int) -> None:
        """A node's connections are gone."""
        for one, other in list(self._links):
            if node_id in (one, other):
                self._drop_link(one, other)

    def _drop_link(self, one: int, other: int) -> None:
        pair = (min(one, other), max(one, other))
        if pair in self._links:
            self._links.discard(pair)
            for here, there in (pair, pair[::-1]):
                self._tell(here, pack(RecordKind.PEER_DISCONNECTED, there))
        self._on_way = [item for item in self._on_way if {item[1], item[2]} != {one, other}]

    def _tell(self, node_id: int, record: bytes) -> None:
        node = self.nodes[node_id]
        if node.node is not None:
            node.inbox.append(record)

    # --- links ----------------------------------------------------------------------------------------

    def _connect(self) -> None:
        alive = [node for node in self.nodes.values() if node.node is not None]
        for index, one in enumerate(alive):
            for other in alive[index + 1 :]:
                pair = (min(one.id, other.id), max(one.id, other.id))
                if frozenset(pair) in self._cut:
                    continue
                wanted = self._knows(one, other.id) or self._knows(other, one.id)
                barred = self._bars(one, other) or self._bars(other, one)
                if pair in self._links:
                    if barred or not wanted:
                        self._drop_link(*pair)
                elif wanted and not barred:
                    self._links.add(pair)
                    for here, there in ((one, other), (other, one)):
                        hello = PeerHello(
                            there.live.roster.identity.member_id, there.config.address, there.config.port, 1
                        )
                        self._tell(here.id, pack(RecordKind.PEER_HELLO, there.id, hello))
                        self._tell(here.id, pack(RecordKind.PEER_CONNECTED, there.id))

    @staticmethod
    def _knows(node: SimNode, other: int) -> bool:
        return any(row.node_id == other for row in node.members.members)

    def _bars(self, judge: SimNode, guest: SimNode) -> bool:
        """Whether `judge` refuses `guest`, which it then hears, if it tries at all."""
        block = judge.members
        removed = guest.id in block.removed and not self._knows(judge, guest.id)
        if not removed:
            return False
        key = (judge.id, guest.id)
        if self._knows(guest, judge.id) and self.now_ns - self._refused_ns.get(key, 0) >= REFUSED_EVERY_NS:
            self._refused_ns[key] = self.now_ns
            refusal = Refusal(RefusalCode.REMOVED, "it was removed")
            self._tell(guest.id, pack(RecordKind.REFUSED_BY_PEER, judge.id, refusal))
        return True

    # --- time -----------------------------------------------------------------------------------------

    def run(self, ms: float, until: Callable[[], bool] | None = None) -> bool:
        """Let at most `ms` pass, or less when `until` holds; whether it holds at the end."""
        end_ns = self.now_ns + int(ms * MS)
        while self.now_ns < end_ns:
            if until is not None and until():
                return True
            self._step(end_ns)
        return until is None or until()

    def _step(self, end_ns: int) -> None:
        self._connect()
        self._deliver()
        busy = [node for node in self.nodes.values() if node.wants_turn()]
        self.random.shuffle(busy)
        for node in busy:
            node.turn()
            self._collect(node)
            self._look()
        self._advance(end_ns, moved=bool(busy))

    def _advance(self, end_ns: int, *, moved: bool) -> None:
        if moved:
            self.now_ns += HOP_NS // 2
            return
        due = [node.due_ns for node in self.nodes.values() if node.node is not None and not node.frozen]
        due += [at for at, *_ in self._on_way]
        self.now_ns = max(self.now_ns + HOP_NS // 2, min([end_ns, *due]))
        self._look()

    def _look(self) -> None:
        for ticket in self.tickets:
            if ticket.final is None:
                ticket.look()
        for check in self.on_step:
            check()

    def _collect(self, node: SimNode) -> None:
        for record in node.reader.read(1 << 30):
            kind, to = unpack_prefix(record)
            if kind != RecordKind.MESSAGE or to not in self.nodes:
                continue
            pair = (min(node.id, to), max(node.id, to))
            if pair in self._links and not self.drop(node.id, to, record[ENVELOPE_OFFSET:]):
                self._on_way.append((self.now_ns + HOP_NS, node.id, to, record[PREFIX_BYTES:]))

    def _deliver(self) -> None:
        later = []
        for item in self._on_way:
            at, sender, to, envelope = item
            if at > self.now_ns:
                later.append(item)
            else:
                self._tell(to, prefix(RecordKind.MESSAGE, sender) + envelope)
        self._on_way = later

    # --- asking ---------------------------------------------------------------------------------------

    def leaders(self) -> list[SimNode]:
        """Nodes whose pgraft_is_leader() is true now."""
        return [node for node in self.nodes.values() if node.lease_valid]

    def wait_leader(self, ms: float = 10_000) -> SimNode:
        """Until a node holds the lease."""
        if not self.run(ms, lambda: bool(self.leaders())):
            raise AssertionError(f"no leader within {ms} ms")
        return self.leaders()[0]

    def wait_leader_of(self, nodes: list[SimNode], ms: float = 10_000) -> SimNode:
        """Until one of these nodes holds the lease."""
        if not self.run(ms, lambda: any(node.lease_valid for node in nodes)):
            raise AssertionError(f"none of {[node.id for node in nodes]} leads within {ms} ms")
        return next(node for node in nodes if node.lease_valid)

    def wait(self, *tickets: Ticket, ms: float = 20_000) -> None:
        """Until all have their final answer."""
        if not self.run(ms, lambda: all(ticket.final is not None for ticket in tickets)):
            open_ = [ticket.data[:40] for ticket in tickets if ticket.final is None]
            raise AssertionError(f"no answer within {ms} ms to {open_}")

    def followers(self, leader: SimNode) -> list[SimNode]:
        """All others."""
        return [node for node in self.nodes.values() if node is not leader]


@contextmanager
def simulation(root: Path, seed: int = 1) -> Iterator[Sim]:
    """A simulation; everything is closed at the end."""
    sim = Sim(root, seed)
    try:
        yield sim
    finally:
        for one in sim.nodes.values():
            one.close()
    if sim.turned_away and not sim.hostile:
        raise AssertionError(f"{sim.turned_away} messages of true nodes were turned away")
