"""Carries out what a replica wants: the one place that connects it to files, rings, bells and words.

Owner: the Raft worker, one thread. The order of the parts is node/turn.py's; here is what each part is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

from pgraft.log import log
from pgraft.node.commands import Answer, Command, CommandSource
from pgraft.node.disk_watch import DiskWatch
from pgraft.node.envelope import encode
from pgraft.node.node import Replica
from pgraft.node.outputs import NETWORK_PROCESS, Inputs, LogLine, Outputs, Sending, Shown
from pgraft.node.turn import carry_out, turn
from pgraft.raft.types import Entry, HardState, Snapshot
from pgraft.shm.blocks import MembersWriter, Status, StatusWriter
from pgraft.shm.doorbell import NETWORK_BELL, Bell
from pgraft.shm.layout import Yields
from pgraft.shm.rings import RingReader
from pgraft.shm.segment import Segment
from pgraft.shm.words import now_ns
from pgraft.storage import Identity, Store, save_peers, update_identity
from pgraft.transport.records import HURRY, NO_HURRY, RecordKind, prefix

INBOUND_READ_BYTES = 2 * 1024 * 1024


class SegmentExecutor:
    """The segment, the store and the data directory of one node, as `turn.Executor` has it."""

    def __init__(
        self,
        data_dir: Path,
        segment: Segment,
        inbound: RingReader,
        source: CommandSource,
        store: Store,
        watch: DiskWatch,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self.inbound = inbound
        self.source = source
        self.store = store
        self.watch = watch
        self._clock = clock
        self._data_dir = data_dir
        self._words = segment.worker
        self._lease = segment.worker_ref("lease_end_ns")
        self._outbound = segment.outbound_writer()
        self._bell = Bell(data_dir / "run" / NETWORK_BELL, segment.network_ref("sleeping"))
        self._status = StatusWriter(segment)
        self._status_shown: Status | None = None
        self._members = MembersWriter(segment)
        self._network_epoch = segment.network_ref("epoch")
        self.yields = Yields.NO
        self._inputs = Inputs()
        self._unsent: list[int] = []
        self._shown = Shown()
        self._noise = (0, 0)
        # What earlier workers counted goes on.
        self._before = {name: self._words[name] for name in _COUNTED}
        self._syncs = self._sync_ns_total = self._sync_ns_max = self._dropped = 0
        self._show_counters(self._shown)

    def turn(self, replica: Replica) -> Outputs:
        """One whole turn; the outputs of its last step. Raises StorageError, DiskStalled when the disk
        answered too late, and what `Replica.step` raises."""
        self.watch.next_step()
        deque(turn(replica, self, self._inputs), maxlen=0)  # in one go: nobody looks in between
        return replica.outputs

    # --- in ---------------------------------------------------------------------------------------------

    def note(self, inputs: Inputs) -> None:
        """What only the executor knows."""
        inputs.unsent, self._unsent = self._unsent, []
        inputs.yields = self.yields
        inputs.network_epoch = self._network_epoch.load()

    def read_records(self) -> list[bytes]:
        """Off the network process's ring, bounded."""
        return self.inbound.read(INBOUND_READ_BYTES)

    def clock_ns(self) -> int:
        """CLOCK_BOOTTIME."""
        return self._clock()

    def take_commands(self, now_ns: int) -> list[Command]:
        """Off the command ring, bounded."""
        commands = self.source.take(now_ns)
        if commands:
            self._words.add("commands_taken", len(commands))
        noise = (self.source.malformed, self.source.damage + self.inbound.damage)
        if noise != self._noise:
            self._noise = noise
            self._show_counters(self._shown)
        return commands

    # --- out --------------------------------------------------------------------------------------------

    def carry_out(self, outputs: Outputs) -> None:
        """The outputs of a last step, which was not part of a turn. Raises as `turn` does."""
        deque(carry_out(outputs, self), maxlen=0)

    def save_identity(self, identity: Identity) -> None:
        """Write and sync the identity."""
        update_identity(self._data_dir, identity)
        self.watch.next_step()

    def save_peers(self, member_ids: dict[int, int]) -> None:
        """Write and sync the peers' member ids."""
        save_peers(self._data_dir, member_ids)
        self.watch.next_step()

    def show_lease(self, end_ns: int) -> None:
        """One aligned store."""
        self._lease.store(end_ns)

    def tell_network(self, records: list[bytes]) -> None:
        """Records for the network process itself."""
        for record in records:
            if not self._outbound.put(record):
                self._unsent.append(NETWORK_PROCESS)
        self._ring_network()

    def send(self, sendings: list[Sending]) -> None:
        """Put envelopes on the ring and wake the network process."""
        for sending in sendings:
            hurry = HURRY if sending.hurry else NO_HURRY
            head = prefix(RecordKind.MESSAGE, sending.to)
            if not self._outbound.put(head, hurry, encode(sending.envelope)):
                # The network process is behind or away. Raft sends again what matters; a forwarded
                # command ends as unknown.
                self._dropped += 1
                self._words["messages_dropped"] = self._dropped
                self._unsent.append(sending.to)
        self._ring_network()

    def _ring_network(self) -> None:
        if self._outbound.publish():
            self._bell.ring()

    def persist(self, hard_state: HardState, entries: list[Entry], snapshot: Snapshot | None) -> None:
        """One batch, synced. Entries behind a snapshot, and their commit, go after it."""
        started_ns = now_ns()
        self.store.persist(hard_state, entries, snapshot)
        self._count_sync(now_ns() - started_ns)
        # Too late is never: what was promised meanwhile may not be sent.
        self.watch.next_step()

    def _count_sync(self, took_ns: int) -> None:
        self._syncs += 1
        self._sync_ns_total += took_ns
        self._sync_ns_max = max(self._sync_ns_max, took_ns)
        words = self._words
        words["fsyncs"] = self._syncs
        words["fsync_ns_total"] = self._sync_ns_total
        words["fsync_ns_max"] = self._sync_ns_max

    def compact(self, snapshot: Snapshot) -> None:
        """Drop the entries up to the snapshot, and show how much is left."""
        self.store.compact(snapshot)
        self.watch.next_step()
        if self._status_shown is not None:
            self._status_shown.log_bytes = self.store.log_bytes
            self._status.publish_head(self._status_shown)

    def publish(self, outputs: Outputs) -> None:
        """Members and status, then the first lease of a term, then the words."""
        if outputs.members is not None:
            self._members.publish(outputs.members.rows, outputs.members.removed)
        status = outputs.status
        if status is not None:
            self._status_shown = status
            status.log_bytes = self.store.log_bytes
            if outputs.rows_changed:
                self._status.publish(status)
            else:
                self._status.publish_head(status)
        if outputs.lease_begin_ns is not None:
            self._lease.store(outputs.lease_begin_ns)
        if outputs.shown != self._shown:
            self._show_counters(outputs.shown)

    def _show_counters(self, shown: Shown) -> None:
        words, before = self._words, self._before
        if shown.elections != self._shown.elections:
            words.add("elections", shown.elections - self._shown.elections)
        words["messages_refused"] = before["messages_refused"] + shown.refused + self._noise[0]
        words["messages_malformed"] = before["messages_malformed"] + shown.malformed
        words["messages_absurd"] = before["messages_absurd"] + shown.absurd
        words["ring_damage"] = self._noise[1]
        words["debug"] = int(shown.debug)
        words["yielded"] = int(shown.has_yielded)
        self._shown = shown

    def answer(self, answers: list[tuple[Command, Answer]]) -> None:
        """Fill the slots and wake their sessions."""
        for command, answer in answers:
            self.source.answer(command, answer)

    def log(self, lines: list[LogLine]) -> None:
        """Write the server log."""
        for line in lines:
            log(line.level, line.message, detail=line.detail, hint=line.hint)


_COUNTED = ("messages_refused", "messages_malformed", "messages_absurd")
