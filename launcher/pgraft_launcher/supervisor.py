"""The supervisor: `python -m pgraft_launcher.supervisor DATA_DIR`, started by `pgraft-launch`.

The process half: pidfds, signals and timers feed the policy, and its actions are carried out. It
stays for as long as the node runs, so its imports are few.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import assert_never

from pgraft.log import log
from pgraft.postgres import postmaster, process
from pgraft.postgres.process import ProcessRef, Program
from pgraft.shm.layout import WorkerState, Yields
from pgraft.shm.words import now_ns
from pgraft_launcher import children, policy, rundir
from pgraft_launcher.children import Held
from pgraft_launcher.pages import Pages
from pgraft_launcher.policy import Action, End, Part, Policy, StopMode
from pgraft_launcher.rundir import Plan, Record

READY_POLL_S = 0.02
"""PostgreSQL tells that it is ready by a line in postmaster.pid only; looked at while it starts."""
READY_POLL_SLOW_S = 0.25
READY_POLL_FAST_FOR_S = 10.0
HAND_OVER_POLL_S = 0.002
"""How often a stop looks whether leadership was handed over, for HAND_OVER_S at most."""

STOP_MODES = tuple(StopMode)
Commands = Mapping[Part, list[str]]
Programs = Callable[[Part], Program]

_STOP_BY_SIGNAL = {
    signal.SIGTERM: StopMode.FAST,
    signal.SIGINT: StopMode.FAST,
    signal.SIGQUIT: StopMode.IMMEDIATE,
    signal.SIGUSR1: StopMode.SMART,
}
SIGNAL_BY_STOP = {
    StopMode.FAST: signal.SIGTERM,
    StopMode.IMMEDIATE: signal.SIGQUIT,
    StopMode.SMART: signal.SIGUSR1,
}


def commands_of(plan: Plan) -> dict[Part, list[str]]:
    """What each part is started with."""
    python = [sys.executable, "-P", "-m"]
    return {
        Part.POSTMASTER: [os.path.join(plan.bindir, "postgres"), "-D", plan.config_dir, *plan.options],
        Part.WORKER: [*python, "pgraft.raft_worker", "--data-dir", plan.data_dir],
        Part.NETWORK: [*python, "pgraft.network_worker", "--data-dir", plan.data_dir],
    }


class Supervisor:
    """Keeps the processes of one node. `reports` gets one JSON object a line for a waiting `start`.
    `programs` tells what a process must run to be taken over."""

    def __init__(
        self,
        record: Record,
        pages: Pages,
        commands: Commands,
        *,
        programs: Programs | None = None,
        reports: int = -1,
    ) -> None:
        self._record = record
        self._pages = pages
        self._commands = commands
        self._programs = programs or record.claim().program
        self._reports = reports
        self._policy = Policy(_yields_of(pages))
        self._selector = selectors.DefaultSelector()
        self._held: dict[Part, Held] = {}
        self._backends: dict[int, Held] = {}
        self._statuses: dict[int, int] = {}
        self._ready_since = time.monotonic()
        self._exit_code: int | None = None
        self._last_pids: dict[Part, int] = {}
        self._catch_signals()

    # --- the loop ---------------------------------------------------------------------------------

    def run(self, stop: StopMode | None = None) -> int:
        """Start or adopt everything and keep it until the node has stopped; the exit code.

        With `stop`, only stop what lives: what a supervisor that died has left.
        """
        adopted = self._adopt()
        now = time.monotonic()
        if stop is None:
            self._do(self._policy.begin(now, frozenset(adopted)))
        else:
            leads = self._pages.has_lease()
            self._do(self._policy.begin_stop(now, frozenset(adopted), stop, leads=leads))
        self._save()
        while self._exit_code is None:
            for key, _ in self._selector.select(self._timeout(time.monotonic())):
                handler: Callable[[], None] = key.data
                handler()
            self._look_for_ready()
            self._look_for_hand_over()
            self._do(self._policy.tick(time.monotonic()))
        return self._exit_code

    def _timeout(self, now: float) -> float | None:
        deadline = self._policy.next_deadline()
        due = [] if deadline is None else [deadline]
        if self._policy.is_handing_over:
            due.append(now + HAND_OVER_POLL_S)
        if self._policy.awaits_ready():
            slow = now - self._ready_since > READY_POLL_FAST_FOR_S
            due.append(now + (READY_POLL_SLOW_S if slow else READY_POLL_S))
        return max(0.0, min(due) - now) if due else None

    def _catch_signals(self) -> None:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(reader, selectors.EVENT_READ, lambda: self._on_signals(reader))
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (*_STOP_BY_SIGNAL, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, _noted)

    def _on_signals(self, reader: int) -> None:
        for number in os.read(reader, 256):
            mode = _STOP_BY_SIGNAL.get(signal.Signals(number))
            if mode is not None:
                self._do(self._policy.stop(mode, time.monotonic(), leads=self._pages.has_lease()))
            elif number == signal.SIGHUP:
                log("LOG", "received SIGHUP, PostgreSQL and the network process reload their settings")
                self._send(Part.POSTMASTER, signal.SIGHUP)
                self._send(Part.NETWORK, signal.SIGHUP)
            elif number == signal.SIGCHLD:
                self._reap()

    # --- processes --------------------------------------------------------------------------------

    def _adopt(self) -> list[Part]:
        for part, ref in self._record.processes.items():
            held = children.adopt(ref, self._programs(part))
            if held is not None:
                log("LOG", f"took over {policy.TITLES[part]}, PID {ref.pid}")
                self._hold(part, held)
        return list(self._held)

    def _hold(self, part: Part, held: Held) -> None:
        self._held[part] = held
        self._selector.register(held.pidfd, selectors.EVENT_READ, lambda: self._on_end(part))
        self._publish(part, held.ref)
        self._ready_since = time.monotonic()

    def _spawn(self, part: Part) -> None:
        if part is Part.POSTMASTER:
            self._clear_stale_locks()
        try:
            held = children.spawn(self._commands[part], now_ns())
        except OSError as error:
            how = f"cannot be started: {self._commands[part][0]}: {error.strerror}"
            self._do(self._policy.exited(part, End.FAILED, how, time.monotonic()))
            return
        self._hold(part, held)
        self._save()

    def _on_end(self, part: Part) -> None:
        self._reap()
        held = self._held.pop(part)
        self._selector.unregister(held.pidfd)
        held.close()
        self._publish(part, None)
        end, how = self._judge(part, self._statuses.pop(held.ref.pid, None))
        if part is not Part.POSTMASTER and not self._policy.is_stopping and not self._pages.is_linked():
            end = End.PERMANENT  # a new process would look for it in vain
            log(
                "ERROR",
                f"the segment {self._pages.name} is gone from /dev/shm: another program removed it",
                hint="pgraft-launch restart makes another; systemd's RemoveIPC=yes does this when a user"
                " logs out",
            )
        self._do(self._policy.exited(part, end, how, time.monotonic()))
        self._save()

    def _judge(self, part: Part, status: int | None) -> tuple[End, str]:
        """How it ended; `status` is None for an adopted process, whose exit code we are not told."""
        code = None if status is None else os.waitstatus_to_exitcode(status)
        how = "has ended" if status is None else children.describe_status(status)
        if part is Part.POSTMASTER:
            orderly = self._was_orderly() if code is None else code == 0
            return (End.ORDERLY if orderly else End.FAILED), how
        return (End.PERMANENT if code == policy.EXIT_PERMANENT else End.FAILED), how

    def _was_orderly(self) -> bool:
        """Whether an adopted postmaster was stopped.

        A stop leaves "shut down" in pg_control, an immediate one does not; but both remove
        postmaster.pid, which a crash leaves behind.
        """
        pgdata = self._record.plan.pgdata
        return postmaster.is_shut_down(pgdata) or postmaster.read_pid_file(pgdata) is None

    def _reap(self) -> None:
        ours = {held.ref.pid for held in self._held.values()}
        self._statuses |= {pid: status for pid, status in children.reap().items() if pid in ours}

    def _send(self, part: Part, number: int) -> None:
        held = self._held.get(part)
        if held is not None:
            held.send(number)

    def _look_for_ready(self) -> None:
        for part in self._policy.awaits_ready():
            held = self._held.get(part)
            if held is None:
                continue
            if (
                part is Part.WORKER
                and self._pages.worker["state"] == WorkerState.ERROR
                and self._is_new(held)
            ):
                self._do(self._policy.broken(part, self._pages.worker_error()))
            elif self._is_ready(part, held):
                self._do(self._policy.ready(part))

    def _look_for_hand_over(self) -> None:
        if self._policy.is_handing_over and (self._pages.worker["yielded"] or not self._pages.has_lease()):
            self._do(self._policy.handed_over())

    def _is_new(self, held: Held) -> bool:
        """Whether the worker page speaks of this process and not of one that died before it."""
        return self._pages.worker["started_boot_ns"] >= held.since_ns

    def _is_ready(self, part: Part, held: Held) -> bool:
        match part:
            case Part.POSTMASTER:
                pid_file = postmaster.read_pid_file(self._record.plan.pgdata)
                return pid_file is not None and pid_file.pid == held.ref.pid and pid_file.is_ready
            case Part.WORKER:
                # Ready says that it takes part, also one that is not a member yet, or no more. With
                # autostart off it waits for pgraft_init().
                serves = self._pages.worker["ready"] == 1
                return self._is_new(held) and (serves or not self._record.plan.autostart)
            case Part.NETWORK:
                return self._pages.network["started_boot_ns"] >= held.since_ns
            case _:
                assert_never(part)

    # --- a dead postmaster's backends -------------------------------------------------------------

    def _await_backends(self) -> None:
        plan = self._record.plan
        dying = postmaster.find_dying(plan.pgdata, plan.socket_dirs)
        for ref in {*postmaster.find_backends(plan.pgdata), *dying}:
            held = None if ref.pid in self._backends else children.adopt(ref)
            if held is not None:
                self._backends[ref.pid] = held
                self._selector.register(held.pidfd, selectors.EVENT_READ, self._forget_backend(ref.pid))
        if not self._backends:
            self._do(self._policy.backends_gone(time.monotonic()))

    def _forget_backend(self, pid: int) -> Callable[[], None]:
        def forget() -> None:
            held = self._backends.pop(pid)
            self._selector.unregister(held.pidfd)
            held.close()
            if not self._backends:
                self._await_backends()  # one may have forked another before it ended

        return forget

    def _clear_stale_locks(self) -> None:
        plan = self._record.plan
        for lock in postmaster.find_stale_locks(plan.pgdata, plan.socket_dirs):
            try:
                os.unlink(lock.path)
            except OSError as error:
                # PostgreSQL says itself that the file is in its way.
                log("WARNING", f"cannot remove the stale {lock.path}: {error.strerror}")
            else:
                log("LOG", f"removed the stale {lock.path}: {lock.why}")

    # --- actions -----------------------------------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            self._do_one(action)

    def _do_one(self, action: Action) -> None:
        match action:
            case policy.Spawn(part):
                self._spawn(part)
            case policy.Kill(part, number):
                self._send(part, number)
            case policy.AwaitBackends():
                self._await_backends()
            case policy.KillBackends(number):
                for held in self._backends.values():
                    held.send(number)
            case policy.Yield(yields):
                self._pages.ask_to_yield(yields, rundir.path(self._record.plan.data_dir))
                if yields == Yields.NOT_SERVING:
                    log(
                        "WARNING",
                        "PostgreSQL does not come back: this node leads no more until it serves again",
                    )
            case policy.Say(level, text):
                log(level, text)
            case policy.Started():
                log("LOG", "the node is ready")
                self._report({"event": "started"})
            case policy.StartFailed():
                self._report_failure(action)
            case policy.GivenUp(part, text):
                self._record.given_up[part] = text
            case policy.Finish(code):
                self._finish(code)
            case _:
                assert_never(action)

    def _report(self, message: dict[str, object], *, is_last: bool = True) -> None:
        """Tell a waiting `pgraft-launch start`, if it still waits.

        After a failed start the descriptor stays open: its end tells that all is stopped.
        """
        if self._reports < 0:
            return
        try:
            os.write(self._reports, json.dumps(message).encode() + b"\n")
        except OSError:
            return
        if is_last:
            os.close(self._reports)
            self._reports = -1

    def _report_failure(self, failure: policy.StartFailed) -> None:
        self._report(
            {
                "event": "failed",
                "part": failure.part.value,
                "pid": self._last_pids.get(failure.part, 0),
                "text": failure.text,
                "is_stopping": failure.is_stopping,
            },
            is_last=not failure.is_stopping,
        )

    def _publish(self, part: Part, ref: ProcessRef | None) -> None:
        """Write the process into the segment's header and the record. The pid goes last: it is what
        a reader trusts the start time by."""
        header = self._pages.header
        header[f"{part.value}_pid"] = 0
        if ref is None:
            self._record.processes.pop(part, None)
            return
        self._record.processes[part] = ref
        self._record.given_up.pop(part, None)
        self._last_pids[part] = ref.pid
        header[f"{part.value}_start"] = ref.start
        header[f"{part.value}_pid"] = ref.pid

    def _save(self) -> None:
        try:
            rundir.save(self._record)
        except OSError as error:
            # The segment's header tells the same; a full disk must not end the supervision.
            log("WARNING", f"cannot write {rundir.path(self._record.plan.data_dir)}: {error.strerror}")

    def _finish(self, code: int) -> None:
        """Everything is down: take away what only a running node needs."""
        self._exit_code = code
        self._pages.header["supervisor_pid"] = 0
        self._pages.header["retired"] = 1
        self._pages.unlink()
        self._record.supervisor = None
        self._save()
        rundir.clean(self._record.plan.data_dir)
        log("LOG", "the node is stopped")


def _yields_of(pages: Pages) -> Yields:
    """What an earlier supervisor asked of the worker. A stop that it had begun is not ours."""
    return Yields.NO if pages.header["yields"] == Yields.NO else Yields.NOT_SERVING


def _noted(number: int, frame: object) -> None:
    """The wakeup descriptor has brought the signal to the loop already."""


def _arguments(argv: list[str]) -> tuple[str, dict[str, int]]:
    """`DATA_DIR [--report-fd N] [--lock-fd N] [--stop N]`: read by hand, argparse would stay in memory."""
    names = argv[1::2]
    return argv[0], {name: int(value) for name, value in zip(names, argv[2::2], strict=True)}


def main(argv: list[str]) -> int:
    """Supervise the node whose record `pgraft-launch` has written to DATA_DIR/run."""
    data_dir, options = _arguments(argv)
    for name in ("--report-fd", "--lock-fd"):
        if name in options:
            os.set_inheritable(options[name], False)
    record = rundir.load(data_dir)
    if record is None:
        log("FATAL", f"no readable record in {rundir.path(data_dir)}", hint="use pgraft-launch start")
        return 1
    stop = STOP_MODES[options["--stop"]] if "--stop" in options else None
    pages = Pages(record.plan.segment, may_be_gone=stop is not None)
    record.supervisor = process.identify(os.getpid())
    pages.header["supervisor_pid"] = 0
    pages.header["supervisor_start"] = record.supervisor.start if record.supervisor else 0
    pages.header["supervisor_pid"] = os.getpid()
    reports = options.get("--report-fd", -1)
    try:
        return Supervisor(record, pages, commands_of(record.plan), reports=reports).run(stop)
    except Exception as error:
        log(
            "FATAL",
            f"the supervisor ends, its processes go on: {type(error).__name__}: {error}",
            hint="pgraft-launch start takes the node over",
        )
        raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
