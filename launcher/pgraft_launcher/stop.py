"""`stop` and `reload`: through the supervisor, or without one where it died."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from pgraft_launcher import daemon, rundir, tls
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.logfile import open_log
from pgraft_launcher.node import Node
from pgraft_launcher.policy import Part, StopMode
from pgraft_launcher.progress import Progress
from pgraft_launcher.rundir import Plan, Record
from pgraft_launcher.supervisor import SIGNAL_BY_STOP, STOP_MODES

PROGRESS_TICK_S = 0.2


class StopOptions:
    """What the command line asks of a stop."""

    def __init__(self, *, mode: StopMode, wait: bool, timeout_s: float, progress: Progress) -> None:
        self.mode = mode
        self.wait = wait
        self.timeout_s = timeout_s
        self.progress = progress


def is_running(node: Node) -> bool:
    """Whether any process of the node lives."""
    return node.supervisor() is not None or bool(node.living())


def stop(node: Node, options: StopOptions) -> None:
    """Stop all three parts, in order. LaunchError when nothing runs, or something does not end in time."""
    node.refuse_other()
    ending = node.open_supervisor()
    if ending is None:
        ending = _stop_orphans(node, options)
    else:
        _ask(ending, options.mode)
    if not options.wait:
        options.progress.say("node shutting down")
        return
    options.progress.begin("waiting for the node to stop")
    if not _await(ending, options):
        options.progress.end("failed")
        raise LaunchError(
            f"the node did not stop within {options.timeout_s:g} s; it goes on stopping",
            hint="-m fast disconnects the sessions that a smart stop waits for",
        )
    options.progress.end("done")
    options.progress.say("node stopped")


def _ask(supervisor: int, mode: StopMode) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile, as was wanted
        signal.pidfd_send_signal(supervisor, SIGNAL_BY_STOP[mode])


def _stop_orphans(node: Node, options: StopOptions) -> int:
    """Nobody supervises: a supervisor that only stops does it. Returns a descriptor that ends with it."""
    living = node.living()
    if not living:
        raise LaunchError(
            f"the node in {node.config_dir} is not running", hint="pgraft-launch status shows what is there"
        )
    os.makedirs(rundir.path(node.data_dir), mode=0o700, exist_ok=True)
    lock = rundir.take_lock(node.data_dir)
    if lock is None:
        raise LaunchError("another command is starting or stopping the node", hint="try again")
    record = node.record()
    rundir.save(Record(record.plan if record else _plan_without_record(node), None, living))
    log = _log_descriptor(node, record)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    argv = daemon.supervisor_argv(
        node.data_dir, report_fd=writer, lock_fd=lock, stop=STOP_MODES.index(options.mode)
    )
    daemon.spawn(argv, log, [writer, lock])
    for number in (writer, lock, log):
        os.close(number)
    return reader


def _log_descriptor(node: Node, record: Record | None) -> int:
    """Where the node has logged; our own stderr where that cannot be opened: it stops all the same."""
    try:
        return open_log(node.pgdata, record.plan.log or None if record else None).descriptor
    except LaunchError:
        return os.dup(2)


def _plan_without_record(node: Node) -> Plan:
    return Plan(
        name="",
        config_dir=str(node.config_dir),
        pgdata=node.pgdata,
        data_dir=node.data_dir,
        bindir=str(node.installation.bindir),
        segment=node.segment_name(),
        options=[],
        socket_dirs=[],
        log="",
        autostart=True,
    )


def _await(ending: int, options: StopOptions) -> bool:
    """Until a pidfd or a pipe's other end says that the supervisor has left."""
    deadline = time.monotonic() + options.timeout_s
    poller = select.poll()
    poller.register(ending, select.POLLIN)
    try:
        while (left := deadline - time.monotonic()) > 0:
            if poller.poll(int(min(left, PROGRESS_TICK_S) * 1000)):
                return True
            options.progress.dot()
        return False
    finally:
        os.close(ending)


def reload(node: Node, progress: Progress) -> None:
    """PostgreSQL reads its files again, and the network process its certificates."""
    node.refuse_other()
    if not _hang_up(node, Part.POSTMASTER):
        raise LaunchError(f"the node in {node.config_dir} is not running", hint="pgraft-launch start")
    config = node.config()
    if not _hang_up(node, Part.NETWORK) and config is not None and config.ssl_enabled:
        raise LaunchError(
            "PostgreSQL signaled, but no certificates were loaded: the node's network process does not run",
            hint="the server log says why; with the reason mended: pgraft-launch restart",
        )
    if config is not None:
        tls.check_reloaded(config)
    progress.say("node signaled")


def _hang_up(node: Node, part: Part) -> bool:
    """Send SIGHUP, as pg_ctl reload does; whether the process was there to get it."""
    descriptor = node.open_part(part)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGHUP)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
