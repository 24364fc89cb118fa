"""Everything before a start: settings read and validated, the segment made, the run directory written."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from pgraft import __version__
from pgraft.postgres import config as configs
from pgraft.postgres import environment
from pgraft.postgres.conffile import library_list
from pgraft.postgres.config import StoredIdentity
from pgraft.postgres.reader import Reader
from pgraft.postgres.settings import NodeConfig
from pgraft.postgres.unknown import find_unknown
from pgraft.shm import place
from pgraft.shm import segment as segments
from pgraft.shm.place import SegmentError, SegmentExists
from pgraft.shm.segment import Segment
from pgraft_launcher import claims, rundir
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.node import Node
from pgraft_launcher.rundir import Plan

NAME_TRIES_MAX = 8


def _was_started(data_dir: str) -> bool:
    """Whether a worker has been at work there before."""
    return any(os.path.exists(os.path.join(data_dir, name)) for name in ("identity", "raft"))


def stored_identity(data_dir: str) -> StoredIdentity | None:
    """What the identity file says; None before the first start."""
    if not _was_started(data_dir):
        return None
    from pgraft.storage import StorageError, load_identity  # heavy, and only needed from the second start on

    try:
        identity = load_identity(Path(data_dir))
    except StorageError as error:
        raise LaunchError(str(error), hint=error.hint) from error
    return None if identity is None else StoredIdentity(identity.cluster_id, identity.node_id)


def check_place(data_dir: str) -> None:
    """Refuse a Raft directory that was copied, moved or restored, before anything is written into it.

    LaunchError. The worker looks again, under the lock of the directory.
    """
    if not _was_started(data_dir):
        return
    from pgraft.storage import StorageError, check_place, load_identity

    try:
        identity = load_identity(Path(data_dir))
        if identity is not None:
            check_place(Path(data_dir), identity)
    except StorageError as error:
        raise LaunchError(str(error), hint=error.hint) from error


class Settled(NamedTuple):
    """What the settings of a node come to."""

    config: NodeConfig
    socket_dirs: list[str]
    is_preloaded: bool


def read_config(node: Node, settings: Reader) -> Settled:
    """The validated configuration, and what else a start must know of PostgreSQL's settings."""
    server = settings.read_server()
    config = configs.build_config(
        configs.parse_values(settings.read_pgraft()),
        server,
        pgdata=node.pgdata,
        data_dir=node.data_dir,
        segment_name=place.new_name(node.data_dir),
        stored=stored_identity(node.data_dir),
    )
    sockets = server.get("unix_socket_directories", "").split(",")
    libraries = server.get("shared_preload_libraries", "")
    return Settled(
        config,
        [os.path.abspath(path.strip()) for path in sockets if path.strip()],
        library_list(libraries) == libraries,
    )


def unknown_settings(node: Node, settings: Reader) -> list[str]:
    """A line for each name below `pgraft.` that is no setting, and would silently do nothing."""
    files = [settings.read("config_file"), os.path.join(node.pgdata, "postgresql.auto.conf")]
    return [str(unknown) for unknown in find_unknown(files, settings.options)]


def make_run_dir(data_dir: str) -> None:
    """<data_dir>/run, ours alone."""
    environment.prepare_data_dir(data_dir)
    os.makedirs(rundir.path(data_dir), mode=0o700, exist_ok=True)


def make_plan(
    node: Node, config: NodeConfig, *, options: list[str], socket_dirs: list[str], log: str
) -> Plan:
    """What the supervisor needs to know."""
    return Plan(
        name=config.name,
        config_dir=str(node.config_dir),
        pgdata=node.pgdata,
        data_dir=node.data_dir,
        bindir=str(node.installation.bindir),
        segment=config.segment_name,
        options=options,
        socket_dirs=socket_dirs,
        log=log,
        autostart=config.autostart,
    )


def make_segment(config: NodeConfig) -> NodeConfig:
    """A new segment in the place of what a crash left, the doorbells, and run/segment.

    Returns the configuration with the segment's name: it is another one where that was taken.
    """
    epoch = remove_leftovers(config.data_dir) + 1
    segment = _create(config)
    try:
        _fill_header(segment, config)
        segments.open_for_use(segment, epoch)
        run = Path(rundir.path(config.data_dir))
        for stale in run.glob("*.bell"):
            stale.unlink()
        segments.make_fifos(run, config.slot_count)
        rundir.write_file(rundir.path(config.data_dir, "segment"), segment.name + "\n")
    except OSError:
        place.unlink(segment.name)
        raise
    finally:
        segment.close()
    return msgspec.structs.replace(config, segment_name=segment.name)


def _create(config: NodeConfig) -> Segment:
    name = config.segment_name
    try:
        for _ in range(NAME_TRIES_MAX):
            try:
                return segments.create(
                    name, command_ring_bytes=config.command_ring_bytes, slot_count=config.slot_count
                )
            except SegmentExists:
                name = place.new_name(config.data_dir)
        raise SegmentError(f"no free name for a segment in {place.SHM_DIR}")
    except SegmentError as error:
        raise LaunchError(
            str(error),
            hint="free space in /dev/shm, give the container more (--shm-size), or lower max_connections",
        ) from error


def write_config(config: NodeConfig) -> None:
    """run/node.json, for worker and network process."""
    rundir.write_file(rundir.path(config.data_dir, "node.json"), msgspec.json.encode(config).decode())


def remove_leftovers(data_dir: str) -> int:
    """Take segments that a crash left out of use, and remove them.

    Returns the newest epoch among them, or one that no segment has had before.
    """
    epochs = [_retire(name) for name in place.find_leftovers(data_dir) if not _is_in_use(name, data_dir)]
    return max(epochs, default=0) or time.time_ns()


def _is_in_use(name: str, data_dir: str) -> bool:
    """Whether it is that of a living node which had this path before it was moved."""
    try:
        header = place.read_header(name)
    except SegmentError:
        return False
    if not header.is_current or place.data_dir_of(header.words) == place.place_of(data_dir):
        return False
    claim = claims.of_header(header.words, header.text("data_dir"), header.text("pgdata"))
    return bool(claim.living() or claim.living_supervisor())


def _retire(name: str) -> int:
    """Returns its epoch; 0 of one that cannot be attached."""
    epoch = 0
    try:
        old = segments.attach(name)
    except SegmentError:
        pass  # damaged, or of another release: nobody can use it
    else:
        epoch = old.header["epoch"]
        old.retire()
        old.close()
    place.unlink(name)
    return epoch


def _fill_header(segment: Segment, config: NodeConfig) -> None:
    header = segment.header
    header["created_wall_ns"] = time.time_ns()
    header["node_id"] = config.node_id
    header["election_timeout_ms"] = config.election_timeout_ms
    header["heartbeat_interval_ms"] = config.heartbeat_interval_ms
    header["max_entry_bytes"] = config.max_entry_bytes
    segment.set_text("version", __version__)
    segment.set_text("node_name", config.name)
    segment.set_text("cluster_id", config.cluster_id)
    segments.set_directories(segment, data_dir=config.data_dir, pgdata=config.pgdata)
