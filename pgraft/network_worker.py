"""The network process of one node: `python -m pgraft.network_worker --data-dir DIR`.

A thin loop between the segment's two peer rings and the transport. It knows nothing of Raft.
Exit codes: 0 after SIGTERM or when its segment counts no more, 3 when the configuration stops it.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pgraft.log import bound_lines, log
from pgraft.ownfile import ForeignFile
from pgraft.postgres.nodefile import ConfigUnreadable, read_config
from pgraft.postgres.settings import NodeConfig
from pgraft.shm import layout
from pgraft.shm.blocks import BlockUnreadable, read_members
from pgraft.shm.doorbell import NETWORK_BELL, WORKER_BELL, Bell, BellListener
from pgraft.shm.place import SegmentError
from pgraft.shm.segment import Segment, attach
from pgraft.transport import records
from pgraft.transport.connection import Wire
from pgraft.transport.directory import PeerAddress
from pgraft.transport.hub import Hub
from pgraft.transport.inbox import Inbox
from pgraft.transport.incoming import CannotListen, bind
from pgraft.transport.limits import EXPIRY_NEAR_DAYS, FRAME_BYTES_MAX, STALL_RECHECK_MS, STOP_FLUSH_MS
from pgraft.transport.loop import READ, Loop, now_ns
from pgraft.transport.records import RecordKind, RecordMalformed

if TYPE_CHECKING:
    from pgraft.transport.tls import TlsContext

EXIT_CONFIG = 3
OUTBOUND_BATCH_BYTES = 1024 * 1024
"""Taken from the outbound ring in one turn; input of peers comes in between."""
BEATS_PER_ELECTION_TIMEOUT = 4

_COUNTERS = (
    "frames_in",
    "frames_out",
    "bytes_in",
    "bytes_out",
    "refused",
    "malformed",
    "dropped",
    "connects",
    "crowded_out",
    "timed_out",
)
_MESSAGE = int(RecordKind.MESSAGE)
_RECORD_BYTES_MAX = FRAME_BYTES_MAX + records.PREFIX_BYTES
_U64_MASK = 2**64 - 1
_DAY_S = 24 * 3600


class ConfigError(Exception):
    """This node cannot run as it is configured; message and hint for the operator."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NetworkWorker:
    """The rings, the doorbells and the hub, and the loop that connects them."""

    def __init__(self, config: NodeConfig, segment: Segment) -> None:
        self._config = config
        self._segment = segment
        self._worker_words = segment.worker.raw
        self._network_words = segment.network.raw
        self._epoch = segment.header["epoch"]
        self._stopping = False
        self._reload_wanted = False
        self._members_seen = 0
        self.loop = Loop()
        self._wire = Wire(self.loop)
        run_dir = Path(config.data_dir) / "run"
        self._bell = BellListener(run_dir / NETWORK_BELL, segment.network_ref("sleeping"))
        self._worker_bell = Bell(run_dir / WORKER_BELL, segment.worker_ref("sleeping"))
        self._outbound = segment.outbound_reader()
        self._inbox = Inbox(segment.inbound_writer(), self._worker_bell.ring, self._on_stall)
        instance_id = int.from_bytes(os.urandom(8), "little") or 1
        self.hub = Hub(self._wire, self._inbox, config.node_id, config.address, config.port, instance_id)
        self.hub.shared.directory.initial = {one.node_id: one.address for one in config.initial_cluster}
        for name in _COUNTERS:
            setattr(self._wire.counters, name, segment.network[name])

    # --- start and end ----------------------------------------------------------------------------

    def start(self, sockets: list[socket.socket]) -> None:
        """Listen on `sockets`, take the rings over, tell the worker."""
        self.hub.listen(sockets)
        self.loop.watch(self._bell.fd, READ, self._on_bell)
        self._watch_signals()
        # What was meant for connections of an earlier process is of no use; Raft sends again. Only
        # then the epoch, since the worker answers a new one with its identity.
        self._outbound.skip_all()
        self._segment.network["started_boot_ns"] = now_ns()
        self._segment.network.add("epoch")
        self._beat()
        self._worker_bell.ring()
        log("LOG", f'network process listens on "{self._config.listen_host}:{self._config.listen_port}"')

    def _watch_signals(self) -> None:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGHUP, self._on_sighup)
        # Ctrl-C in the terminal of `pgraft-launch run` goes to the supervisor, which stops us in order.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.loop.watch(read_fd, READ, lambda _events: self._on_signal(read_fd))

    def _on_sigterm(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _on_sighup(self, _number: int, _frame: object) -> None:
        self._reload_wanted = True

    def _on_signal(self, read_fd: int) -> None:
        os.read(read_fd, 64)
        if self._reload_wanted:
            self._reload_wanted = False
            self._reload()

    def _reload(self) -> None:
        """New certificates count for connections made from now on; those that stand go on."""
        if self.hub.shared.tls is None:
            return
        try:
            self.hub.shared.tls, days_left = load_tls(self._config)
        except ConfigError as error:
            log("ERROR", f"{error}; the certificates loaded before stay in use", hint=error.hint)
            return
        log("LOG", f"network process reloaded its certificates, this node's is good for {days_left} days")
        _warn_of_expiry(days_left)

    def stop(self) -> None:
        """Let what is under way go out, for STOP_FLUSH_MS at most; then close everything."""
        self._pump_outbound()
        deadline = now_ns() + STOP_FLUSH_MS * 1_000_000
        while self.hub.unsent_bytes and now_ns() < deadline:
            self.loop.dispatch(self.loop.poll(max(0.0, (deadline - now_ns()) / 1e9)))
        self.hub.close()
        self._inbox.publish()
        self._publish_counters()
        self._bell.awake(rung=False)

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Until SIGTERM, or until the segment counts no more."""
        while not self._stopping:
            self.turn()

    def turn(self) -> None:
        """Wait for something, and do all that waits."""
        bell, loop = self._bell, self.loop
        bell.about_to_sleep()
        events = loop.poll(0 if self._has_work() else loop.wait_s())
        bell.awake(rung=False)
        loop.dispatch(events)
        self._inbox.publish()
        if self._worker_words[_MEMBERS_GENERATION] != self._members_seen:
            self._read_members()
        self._pump_outbound()
        self._inbox.publish()
        self._publish_counters()

    def _has_work(self) -> bool:
        return self._outbound.pending() or self._worker_words[_MEMBERS_GENERATION] != self._members_seen

    def _on_bell(self, _events: int) -> None:
        self._bell.awake(rung=True)
        if self._inbox.stalled:
            self._retry_inbox()

    def _pump_outbound(self) -> None:
        batch = self._outbound.read(OUTBOUND_BATCH_BYTES)
        if not batch:
            return
        by_node: dict[int, list[memoryview | bytes]] = {}
        for record in batch:
            try:
                kind, node_id = records.unpack_prefix(record)
                if kind != _MESSAGE or len(record) > _RECORD_BYTES_MAX:
                    self._on_special(kind, record)
                    continue
            except RecordMalformed as error:
                log("ERROR", f"the raft worker sent what the network process cannot read: {error}")
                continue
            body = memoryview(record)[records.PREFIX_BYTES :]
            if node_id in by_node:
                by_node[node_id].append(body)
            else:
                by_node[node_id] = [body]
        for node_id, bodies in by_node.items():
            self.hub.send(node_id, bodies)

    def _on_special(self, kind: int, record: bytes) -> None:
        if kind == RecordKind.IDENTITY:
            self.hub.set_identity(records.unpack_identity(record))
        elif kind == RecordKind.REFUSE_START:
            _, node_id = records.unpack_prefix(record)
            self.hub.refuse_start(node_id, records.unpack_refused_start(record))
        elif kind == RecordKind.MESSAGE:
            raise RecordMalformed(f"message of {len(record)} bytes, at most {_RECORD_BYTES_MAX} fit")
        else:
            raise RecordMalformed(f"record of kind {kind}")

    def _read_members(self) -> None:
        self._members_seen = self._worker_words[_MEMBERS_GENERATION]
        try:
            block = read_members(self._segment)
        except BlockUnreadable as error:
            log("ERROR", f"cannot read the members: {error}")
            return
        addresses = [
            PeerAddress(row.node_id, row.address, row.port, row.member_id, row.is_learner, row.incarnation)
            for row in block.members
        ]
        self.hub.set_members(addresses, block.removed)
        self._segment.network["members_generation_seen"] = self._members_seen

    # --- a full inbound ring ------------------------------------------------------------------------

    def _on_stall(self) -> None:
        self.hub.pause_reading()
        self.loop.timers.set("stall", STALL_RECHECK_MS, self._retry_inbox)

    def _retry_inbox(self) -> None:
        if self._inbox.retry():
            self.loop.timers.cancel("stall")
            self.hub.resume_reading()
        else:
            self.loop.timers.set("stall", STALL_RECHECK_MS, self._retry_inbox)

    # --- signs of life ------------------------------------------------------------------------------

    def _beat(self) -> None:
        header = self._segment.header
        self._segment.network["beat_ns"] = now_ns()
        if header["retired"] or header["epoch"] != self._epoch:
            log("LOG", "network process ends: its segment was given up for another one")
            self._stopping = True
            return
        self.loop.timers.set(
            "beat", self._config.election_timeout_ms / BEATS_PER_ELECTION_TIMEOUT, self._beat
        )

    def _publish_counters(self) -> None:
        self.hub.shared.debug = bool(self._worker_words[_DEBUG])
        words, counters = self._network_words, self._wire.counters
        words[_WORD["frames_in"]] = counters.frames_in & _U64_MASK
        words[_WORD["frames_out"]] = counters.frames_out & _U64_MASK
        words[_WORD["bytes_in"]] = counters.bytes_in & _U64_MASK
        words[_WORD["bytes_out"]] = counters.bytes_out & _U64_MASK
        words[_WORD["refused"]] = counters.refused & _U64_MASK
        words[_WORD["malformed"]] = counters.malformed & _U64_MASK
        words[_WORD["dropped"]] = counters.dropped & _U64_MASK
        words[_WORD["connects"]] = counters.connects & _U64_MASK
        words[_WORD["crowded_out"]] = counters.crowded_out & _U64_MASK
        words[_WORD["timed_out"]] = counters.timed_out & _U64_MASK
        words[_WORD["connections"]] = counters.connections
        words[_WORD["pending"]] = counters.pending
        words[_WORD["ring_damage"]] = self._outbound.damage


_WORD = layout.NETWORK_WORDS
_MEMBERS_GENERATION = layout.WORKER_WORDS["members_generation"]
_DEBUG = layout.WORKER_WORDS["debug"]


def load_config(data_dir: Path) -> NodeConfig:
    """What the supervisor wrote for this node. Raises ConfigError naming the file."""
    try:
        return read_config(data_dir)
    except ConfigUnreadable as error:
        raise ConfigError(str(error), "Start the node with pgraft-launch.") from error


def _bind(config: NodeConfig) -> list[socket.socket]:
    try:
        return bind(config.listen_host, config.listen_port)
    except CannotListen as error:
        raise ConfigError(
            f"pgraft.listen_address: {error}",
            "Is another node or program using this port, and is the address one of this machine?",
        ) from error


def _attach(config: NodeConfig) -> Segment:
    try:
        return attach(config.segment_name)
    except SegmentError as error:
        raise ConfigError(str(error), "Start the node with pgraft-launch.") from error


def _make_worker(config: NodeConfig, segment: Segment) -> NetworkWorker:
    try:
        return NetworkWorker(config, segment)
    except ForeignFile as error:
        raise ConfigError(
            f"{error.filename} is not used: it {error.strerror}",
            "Remove it, and restart this node with pgraft-launch restart, which makes another.",
        ) from error


class CertificateExpired(ConfigError):
    """This node's certificate is out of date, and otherwise good."""


def load_tls(config: NodeConfig) -> tuple[TlsContext, int]:
    """What the files of pgraft.ssl_*_file hold, after a look at whether peers would accept it; and the
    days that this node's certificate is still good for. Raises ConfigError."""
    from pgraft.transport import tls_files

    try:
        context = _tls_context(config)
        left_s = context.check_own(tls_files.Whom(config.cluster_id, config.node_id, config.address))
    except tls_files.CertificateOutOfDate as error:
        raise CertificateExpired(str(error), error.hint) from error
    except tls_files.TlsFilesWrong as error:
        raise ConfigError(str(error), error.hint) from error
    return context, int(left_s // _DAY_S)


def _tls_context(config: NodeConfig) -> TlsContext:
    from pgraft.transport import tls, tls_files  # ssl costs megabytes, and only those pay who use it

    files = tls_files.TlsFiles(config.ssl_cert_file, config.ssl_key_file, config.ssl_ca_file)
    return tls.TlsContext(files)


def _tls_at_start(config: NodeConfig) -> TlsContext:
    """As `load_tls`. An expired certificate is no reason to stay away: who renews it reloads it here."""
    try:
        context, days_left = load_tls(config)
    except CertificateExpired as error:
        log("WARNING", f"{error}: peers will refuse this node", hint=error.hint)
        return _tls_context(config)
    _warn_of_expiry(days_left)
    return context


def _warn_of_expiry(days_left: int) -> None:
    if days_left < EXPIRY_NEAR_DAYS:
        log(
            "WARNING",
            f"this node's certificate expires in {days_left} days",
            hint="Renew it, then pgraft-launch reload.",
        )


def _data_dir(arguments: list[str]) -> Path:
    match arguments:
        case ["--data-dir", directory]:
            return Path(directory)
        case _:
            raise ConfigError("usage: python -m pgraft.network_worker --data-dir DIR")


def main(arguments: list[str]) -> int:
    """Run until told to stop; the exit code."""
    bound_lines()
    try:
        config = load_config(_data_dir(arguments))
        tls = _tls_at_start(config) if config.ssl_enabled else None
        sockets = _bind(config)
        segment = _attach(config)
        worker = _make_worker(config, segment)
    except ConfigError as error:
        log("FATAL", str(error), hint=error.hint)
        return EXIT_CONFIG
    worker.hub.shared.tls = tls
    worker.start(sockets)
    # What is here stays: later collections need not walk it, which took milliseconds of a commit.
    gc.collect()
    gc.freeze()
    worker.run()
    worker.stop()
    segment.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
