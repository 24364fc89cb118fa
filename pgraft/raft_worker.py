"""The raft worker of one node: `python -m pgraft.raft_worker --data-dir DIR`.

A thin loop around the replica (`pgraft.node`) and its executor (`pgraft.executor`). Exit codes: 0 after
SIGTERM or when its segment counts no more, 1 when it can be tried again, 3 when only an operator can mend it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pgraft.executor import SegmentExecutor
from pgraft.log import bound_lines, log
from pgraft.node import answers
from pgraft.node.boot import (
    ConfigConflict,
    applied_before,
    build_node,
    open_durable_state,
    open_identity,
    shown_before,
)
from pgraft.node.commands import RESTARTED, CommandSource
from pgraft.node.disk_watch import DiskStalled, DiskWatch
from pgraft.node.membership import MembershipError
from pgraft.node.node import Replica
from pgraft.node.outputs import Outputs, Shown
from pgraft.postgres.settings import NodeConfig
from pgraft.raft import InvariantViolation
from pgraft.shm.doorbell import WORKER_BELL, BellListener, ring_fd
from pgraft.shm.layout import CommandKind, Sleep, WorkerState, Yields
from pgraft.shm.segment import Segment, SegmentError, attach
from pgraft.shm.words import now_ns
from pgraft.storage import DataDirLocked, StorageError, lock_data_dir

GC_OBJECTS = 20_000
EXIT_AGAIN = 1
EXIT_OPERATOR = 3
HAND_OVER_MS_MAX = 1000
IDLE_WAKE_MS = 200
"""How often a worker that takes no part looks whether its segment still counts."""
START_STALL_HINT = "Check the disk and the kernel's log; the node goes on starting when the disk answers."
STALL_HINT = "Check the disk and the kernel's log, then restart this node with pgraft-launch restart."
_MS = 1_000_000
_FAILURES = (StorageError, DiskStalled, InvariantViolation, MembershipError)


class Stop(Exception):
    """The process ends; the exit code says why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class RaftWorker:
    """The worker's life: its bell, its state as sessions see it, and the loop."""

    def __init__(self, config: NodeConfig, segment: Segment, watch: DiskWatch) -> None:
        self._config = config
        self._segment = segment
        self._words = segment.worker
        self._epoch = segment.header["epoch"]
        run_dir = Path(config.data_dir) / "run"
        self._bell = BellListener(run_dir / WORKER_BELL, segment.worker_ref("sleeping"))
        self._beat = segment.worker_ref("beat_ns")
        self.inbound = segment.inbound_reader()
        self.source = CommandSource(segment, run_dir, config.max_entry_bytes)
        self._poll = select.poll()
        self._poll.register(self._bell.fd, select.POLLIN)
        self._state = -1
        self._stopping = False
        self._ready = False
        self._watch = watch

    # --- life -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take the segment over from an earlier worker: no lease, and its commands end as unknown."""
        words = self._words
        words["lease_end_ns"] = 0
        words["epoch"] = words["epoch"] + 1
        words["started_boot_ns"] = now_ns()
        words["debug"] = 0
        words["ready"] = 0
        words["yielded"] = 0
        self._beat.store(now_ns())
        self._segment.set_worker_text("error", "")
        self.inbound.skip_all()
        # A state of stopped would make sessions give up at once; they can wait for this worker.
        self._set_state(WorkerState.INITIALIZING)
        count = self.source.answer_taken_earlier(RESTARTED)
        if count:
            log("LOG", f"{count} commands of an earlier raft worker have an unknown outcome")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._watch.on_stall = self._on_stall_at_start

    def progress(self) -> None:
        """While it starts: a sign of life, and a look whether the disk was too slow. Raises DiskStalled."""
        self._beat.store(now_ns())
        self._watch.next_step()

    def _on_stall_at_start(self, reason: str) -> None:
        """In the watching thread, while this one hangs."""
        self._set_state(WorkerState.ERROR, reason)
        _log_stall_at_start(self._config, reason)

    def _on_signal(self, number: int, frame: object) -> None:
        self._stopping = True
        ring_fd(self._bell.fd)

    def _set_state(self, state: WorkerState, error: str = "") -> None:
        if state == WorkerState.ERROR or state != self._state:
            self._segment.set_worker_text("error", error)
        if state != self._state:
            self._state = state
            self._words["state"] = state

    def wait_for_init(self) -> None:
        """pgraft.autostart is off: wait for pgraft_init(), unless an earlier worker has had it."""
        if self._config.autostart or self._words["joined"]:
            return
        log("LOG", f"node {self._config.node_id} waits for pgraft_init(), since pgraft.autostart is off")
        while not self._words["joined"]:
            self._end_where_due()
            for command in self.source.take(now_ns()):
                joins = command.kind == CommandKind.INIT
                self.source.answer(command, answers.OK if joins else answers.not_started())
                if joins:
                    self._words["joined"] = 1
            # Nobody is told who this node is yet, so nothing in there can matter.
            self.inbound.skip_all()
            if not self.source.pending():
                self._sleep(now_ns() + IDLE_WAKE_MS * _MS)

    def run(self, replica: Replica, executor: SegmentExecutor) -> None:
        """Turn after turn, until told to stop. Raises Stop."""
        self._words["joined"] = 1
        self._watch.on_stall = self._on_stall
        while True:
            outputs = self._turn(replica, executor)
            if self._is_over():
                self._hand_over_and_stop(replica, executor)
            if not outputs.more:
                self._sleep(outputs.deadline_ns, outputs.gathers_until_ns)

    def _turn(self, replica: Replica, executor: SegmentExecutor) -> Outputs:
        """Take what has come, and step until all of it is done."""
        self._beat.store(now_ns())
        executor.yields = self._asked_to_yield()
        outputs = executor.turn(replica)
        self._show(outputs.shown)
        return outputs

    def _show(self, shown: Shown) -> None:
        if not self._ready:
            self._ready = True
            self._words["ready"] = 1
        if shown.removed:
            self._set_state(WorkerState.STOPPED, shown.removed)
        elif shown.barred:
            self._set_state(WorkerState.ERROR, shown.barred)
        elif shown.is_member:
            self._set_state(WorkerState.RUNNING)
        else:
            self._set_state(WorkerState.INITIALIZING)

    def _asked_to_yield(self) -> Yields:
        asked = self._segment.header["yields"]
        if not asked:
            return Yields.NO
        return Yields.NOT_SERVING if asked == Yields.NOT_SERVING else Yields.STOPPING

    def _sleep(self, until_ns: int, gathers_until_ns: int = 0) -> None:
        """Wait for the bell, at most until `until_ns`; until `gathers_until_ns` for peers' only."""
        now = now_ns()
        gathers = gathers_until_ns > now
        if gathers:
            until_ns = min(until_ns, gathers_until_ns)
        self._bell.about_to_sleep(Sleep.FOR_PEERS if gathers else Sleep.FOR_ANYONE)
        rung = False
        if not self.inbound.pending() and (gathers or not self.source.pending()):
            wait_ms = (until_ns - now + _MS - 1) // _MS
            if wait_ms > 0:
                self._watch.idle = True
                rung = bool(self._poll.poll(wait_ms))
                self._watch.idle = False
        self._bell.awake(rung=rung)

    def _is_over(self) -> bool:
        header = self._segment.header
        return bool(self._stopping or header["retired"] or header["epoch"] != self._epoch)

    def _end_where_due(self) -> None:
        self._beat.store(now_ns())
        if self._is_over():
            self._gone()

    def _gone(self) -> None:
        """An orderly end: nobody shall wait for a beat to grow old. Raises Stop."""
        self._set_state(WorkerState.STOPPED)
        self._beat.store(0)
        raise Stop(0)

    def _hand_over_and_stop(self, replica: Replica, executor: SegmentExecutor) -> None:
        """A planned stop costs the cluster no election: the best voter takes over first."""
        successor = replica.begin_stop()
        if successor:
            until = now_ns() + min(HAND_OVER_MS_MAX, self._config.election_timeout_ms) * _MS
            while replica.desk.leads and replica.desk.can_take_over(successor) and now_ns() < until:
                outputs = self._turn(replica, executor)
                if not outputs.more:
                    self._sleep(min(until, outputs.deadline_ns))
        executor.carry_out(replica.stop(now_ns()))
        executor.store.close()
        self._gone()

    def _on_stall(self, reason: str) -> None:
        """In the watching thread, while this one hangs: what can be told without it."""
        self._leave(reason, STALL_HINT)

    def _leave(self, reason: str, hint: str) -> None:
        self._words["lease_end_ns"] = 0
        self._set_state(WorkerState.ERROR, reason)
        log("ERROR", f"node {self._config.node_id} leaves consensus: {reason}", hint=hint)

    def stay_out(self, reason: str, hint: str) -> None:
        """After a failure: no lease, no vote, no message; sessions are told why. Raises Stop."""
        self._watch.stop()
        if self._watch.stalled:
            # A turn that had begun may have shown its lease again.
            self._words["lease_end_ns"] = 0
            reason = self._watch.stalled
            log("LOG", f"the disk of node {self._config.node_id} answers again, too late", hint=STALL_HINT)
        else:
            self._leave(reason, hint)
        answer = answers.not_running(reason)
        unknown = answers.unknown(f"this node left consensus: {reason}")
        self.source.answer_taken_earlier(unknown)
        while True:
            self._end_where_due()
            self.inbound.skip_all()
            self.source.drain(lambda _: answer, now_ns())
            self._sleep(now_ns() + min(IDLE_WAKE_MS, self._config.election_timeout_ms // 4) * _MS)


def _log_stall_at_start(config: NodeConfig, reason: str) -> None:
    log("ERROR", f"node {config.node_id} cannot go on starting: {reason}", hint=START_STALL_HINT)


def _hint_of(error: Exception) -> str:
    hint = getattr(error, "hint", "")
    return hint if isinstance(hint, str) and hint else "See the server log; then restart this node."


@contextlib.contextmanager
def _one_line_errors(config: NodeConfig) -> Iterator[None]:
    """Errors before the node runs: one line each, and an exit code that says whether to try again."""
    try:
        yield
    except ConfigConflict as error:
        log("FATAL", str(error), hint=error.hint)
        raise Stop(EXIT_OPERATOR) from error
    except DataDirLocked as error:
        log("FATAL", str(error), hint=error.hint)
        raise Stop(EXIT_AGAIN) from error
    except (StorageError, MembershipError, InvariantViolation) as error:
        log("FATAL", f"node {config.node_id} cannot start: {error}", hint=_hint_of(error))
        raise Stop(EXIT_OPERATOR) from error


def _serve(config: NodeConfig, segment: Segment, watch: DiskWatch) -> None:
    worker = RaftWorker(config, segment, watch)
    with _one_line_errors(config):
        worker.begin()
        worker.progress()
        identity = open_identity(config)
        worker.progress()
        worker.wait_for_init()
        store = open_durable_state(config, identity, worker.progress)
        worker.progress()
        applied, chance = applied_before(shown_before(segment), store), random.SystemRandom()
        replica = build_node(config, identity, store, now_ns=now_ns(), chance=chance, applied=applied)
        executor = SegmentExecutor(
            Path(config.data_dir), segment, worker.inbound, worker.source, store, watch
        )
        worker.progress()
    gc.collect()
    gc.freeze()
    # Nearly nothing here makes cycles; looking for them every few hundred objects would cost each commit.
    gc.set_threshold(GC_OBJECTS)
    try:
        worker.run(replica, executor)
    except _FAILURES as error:
        executor.log(replica.take_log_lines())
        worker.stay_out(str(error), _hint_of(error))


def _raise_file_limit(slots: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = slots + 256
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _main(data_dir: Path) -> int:
    node_json = data_dir / "run" / "node.json"
    try:
        config = msgspec.json.decode(node_json.read_bytes(), type=NodeConfig)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        log("FATAL", f"cannot read {node_json}: {error}", hint="Start the node with pgraft-launch start.")
        return EXIT_OPERATOR
    _raise_file_limit(config.slot_count)
    watch = DiskWatch(config.disk_stall_timeout_ms, config.data_dir)
    # Until the lock is held the segment may be another worker's: only the log can tell.
    watch.start(lambda reason: _log_stall_at_start(config, reason))
    try:
        with lock_data_dir(data_dir):
            segment = attach(config.segment_name)
            try:
                _serve(config, segment, watch)
            finally:
                # It must not write to what is unmapped.
                watch.stop()
                segment.close()
    except Stop as stop:
        return stop.code
    except DiskStalled:
        log("LOG", f"the disk of node {config.node_id} answers again: its raft worker starts anew")
        return EXIT_AGAIN
    except SegmentError as error:
        log("FATAL", str(error), hint="Start the node with pgraft-launch start.")
        return EXIT_AGAIN
    except StorageError as error:
        log("FATAL", str(error), hint=error.hint)
        return EXIT_AGAIN
    return 0


def main() -> int:
    """Entry point of `python -m pgraft.raft_worker`."""
    if len(sys.argv) != 3 or sys.argv[1] != "--data-dir":
        print("usage: python -m pgraft.raft_worker --data-dir DIR", file=sys.stderr)
        return EXIT_OPERATOR
    os.umask(0o077)
    bound_lines()
    return _main(Path(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
