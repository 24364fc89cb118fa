"""`start` and `run`: a new node, or what a dead supervisor has left, taken over."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import Any

from pgraft.postgres import postmaster
from pgraft.postgres.environment import check_environment
from pgraft.postgres.process import ProcessRef
from pgraft.postgres.reader import Reader
from pgraft.shm import segment as segments
from pgraft.shm.layout import WorkerState
from pgraft.shm.place import SegmentError
from pgraft_launcher import daemon, prepare, rundir, tls
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.logfile import ServerLog, open_log
from pgraft_launcher.node import Node
from pgraft_launcher.pages import Pages
from pgraft_launcher.policy import Part
from pgraft_launcher.progress import Progress
from pgraft_launcher.rundir import Plan, Record

PROGRESS_TICK_S = 0.2


class StartOptions:
    """What the command line asks of a start."""

    def __init__(self, *, log: str | None, wait: bool, timeout_s: float, progress: Progress) -> None:
        self.log = log
        self.wait = wait
        self.timeout_s = timeout_s
        self.progress = progress


def start(node: Node, settings: Reader, options: StartOptions) -> None:
    """Start the node as a daemon and wait until it serves. LaunchError when it does not."""
    node.refuse_other()
    prepare.check_place(node.data_dir)
    lock = _lock(node)
    log = open_log(node.pgdata, options.log or _log_to_go_on(node))
    _prepare(node, settings, log.path, options.progress)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    argv = daemon.supervisor_argv(node.data_dir, report_fd=writer, lock_fd=lock)
    daemon.spawn(argv, log.descriptor, [writer, lock])
    for number in (writer, lock, log.descriptor):
        os.close(number)
    if not options.wait:
        options.progress.say("node starting")
        return
    options.progress.begin("waiting for the node to start")
    _conclude(_await_report(reader, options), node, log, options)


def run(node: Node, settings: Reader, progress: Progress) -> None:
    """Become the supervisor in the foreground, logging to our stderr. Does not return."""
    node.refuse_other()
    prepare.check_place(node.data_dir)
    lock = _lock(node)
    _prepare(node, settings, "", progress)
    daemon.replace_self(daemon.supervisor_argv(node.data_dir, lock_fd=lock), [lock])


def _lock(node: Node) -> int:
    prepare.make_run_dir(node.data_dir)
    lock = rundir.take_lock(node.data_dir)
    supervisor = node.supervisor()  # counts without its lock, too: the file may have been removed
    if lock is None or supervisor is not None:
        who = f"supervisor PID {supervisor.pid}" if supervisor else "another command is starting it"
        raise LaunchError(
            f"the node in {node.config_dir} is already running ({who}){_pending(node)}",
            hint="pgraft-launch status shows it, restart starts it anew",
        )
    return lock


def _pending(node: Node) -> str:
    """What to say of a setting that names another Raft directory than the running node's."""
    if node.data_dir == node.configured_data_dir:
        return ""
    return (
        f" with the Raft state in {node.data_dir}; by now pgraft.data_dir is {node.configured_data_dir},"
        " which counts after a restart"
    )


def _log_to_go_on(node: Node) -> str | None:
    """Of a node that is taken over, the log that its processes write to."""
    record = node.record()
    return record.plan.log or None if record is not None and node.living() else None


def _prepare(node: Node, settings: Reader, log: str, progress: Progress) -> None:
    """Write the run directory for a supervisor that starts, or takes over, the node."""
    record = node.record()
    living = node.living()
    if record is not None and _can_take_over(record, living):
        progress.say(f"the node runs without a supervisor: taking it over{_pending(node)}")
        if settings.options and settings.options != record.plan.options:
            progress.say("PostgreSQL goes on with the options that it was started with")
        record.plan.log = log
        record.processes, record.supervisor = living, None
        rundir.save(record)
        return
    rundir.save(Record(_fresh(node, settings, log, progress), None, living))


def _can_take_over(record: Record, living: dict[Part, ProcessRef]) -> bool:
    """Whether the segment of what lives is there; refuses where it was taken away from a living worker."""
    if not living:
        return False
    try:
        segments.attach(record.plan.segment).close()
    except SegmentError as error:
        if set(living) == {Part.POSTMASTER}:
            return False
        raise LaunchError(
            f"{error}, although processes of the node live: another program has removed it, or they are of"
            " another release",
            hint="pgraft-launch stop, then start; systemd's RemoveIPC=yes does this when a user logs out",
        ) from error
    return True


def _fresh(node: Node, settings: Reader, log: str, progress: Progress) -> Plan:
    config, sockets, is_preloaded = prepare.read_config(node, settings)
    if not is_preloaded:
        progress.say("note: without pgraft in shared_preload_libraries its settings are not in pg_settings")
    for unknown in prepare.unknown_settings(node, settings):
        progress.say(f"warning: {unknown}")
    check_environment(config)
    tls.check_at_start(config, progress)
    config = prepare.make_segment(config)
    prepare.write_config(config)
    return prepare.make_plan(node, config, options=settings.options, socket_dirs=sockets, log=log)


def _await_report(reader: int, options: StartOptions) -> dict[str, Any] | None:
    """The supervisor's report; None when the time is up. {} when it has died without one."""
    deadline = time.monotonic() + options.timeout_s
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if poller.poll(int(min(left, PROGRESS_TICK_S) * 1000)):
            line = os.read(reader, select.PIPE_BUF)
            report: dict[str, Any] = json.loads(line) if line else {}
            if report.get("is_stopping"):
                _await_end(reader, deadline, options.progress)
            return report
        options.progress.dot()
    return None


def _await_end(reader: int, deadline: float, progress: Progress) -> None:
    """Until the supervisor has closed its end, which it does when all is stopped and it leaves."""
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if poller.poll(int(min(left, PROGRESS_TICK_S) * 1000)) and not os.read(reader, select.PIPE_BUF):
            return
        progress.dot()


def _conclude(report: dict[str, Any] | None, node: Node, log: ServerLog, options: StartOptions) -> None:
    progress = options.progress
    if report is None:
        progress.end("stopped waiting")
        raise LaunchError(
            f"the node did not start within {options.timeout_s:g} s; it goes on starting",
            hint=f"see {log.path}, and pgraft-launch status",
        )
    if report.get("event") == "started":
        progress.end("done")
        record = node.record()
        pid = record.supervisor.pid if record and record.supervisor else 0
        progress.say(f"node started (supervisor PID {pid}), log in {log.path}")
        _say_whether_it_takes_part(node, progress)
        return
    progress.end("failed")
    raise _failure(report, node, log)


def _say_whether_it_takes_part(node: Node, progress: Progress) -> None:
    """A removed node starts, and takes no part: its own log may say so, else its peers soon will."""
    try:
        pages = Pages(node.segment_name())
    except SegmentError:
        return  # stopped again meanwhile
    if pages.worker["state"] == WorkerState.STOPPED and (why := pages.worker_error()):
        progress.say(f"note: it takes no part in consensus: {why}")


def _failure(report: dict[str, Any], node: Node, log: ServerLog) -> LaunchError:
    if not report:
        _show(log)
        return LaunchError("the supervisor died while starting the node", hint=f"see {log.path}")
    if report["part"] == Part.POSTMASTER.value:
        _show(log)
    message, hint = log.complaint(report["pid"])
    if report["part"] == Part.POSTMASTER.value:
        hint = _lock_hint(node) or hint
    text = message or report["text"]
    return LaunchError(f"could not start the node: {text}", hint=hint or f"see {log.path}")


def _lock_hint(node: Node) -> str:
    """What to do about a lock file that only a person can judge; empty when that is not what is wrong."""
    record = node.record()
    lock = postmaster.find_unclear_lock(node.pgdata, record.plan.socket_dirs if record else [])
    if lock is None:
        return ""
    return (
        f"{lock.path} names process {lock.pid}, which cannot be looked at from here; where it is no"
        f" PostgreSQL (ps -p {lock.pid}), remove that file and start again"
    )


def _show(log: ServerLog) -> None:
    for line in log.tail():
        print(line, file=sys.stderr)
