"""What can only be seen on this machine: directories, the Raft port."""

from __future__ import annotations

import errno
import os
import socket
import stat

from pgraft.postgres.errors import PostgresError, SettingError
from pgraft.postgres.members import join_address
from pgraft.postgres.settings import NodeConfig

DIR_MODE = 0o700


def prepare_data_dir(path: str) -> None:
    """Make the directory of the Raft state and see that it is ours alone."""
    try:
        os.makedirs(path, mode=DIR_MODE, exist_ok=True)
    except OSError as error:
        raise SettingError(
            "pgraft.data_dir", path, f"cannot be created: {error.strerror}", hint=_owner_hint(path)
        ) from error
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise SettingError("pgraft.data_dir", path, "must be a directory")
    if found.st_uid != os.geteuid() or not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise SettingError(
            "pgraft.data_dir",
            path,
            f"must belong to and be writable by the user that runs PostgreSQL (uid {os.geteuid()};"
            f" it is uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o})",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise SettingError(
            "pgraft.data_dir",
            path,
            f"must have mode 0700, and has {stat.S_IMODE(found.st_mode):04o}",
            hint=f"chmod 0700 {path}",
        )
    _check_writes(path)


def _check_writes(path: str) -> None:
    """Permission bits do not tell of a read-only file system: write and see."""
    probe = os.path.join(path, f".probe.{os.getpid()}")
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # PostgreSQL may have room where it lies; whoever has something to write here says so
        raise SettingError("pgraft.data_dir", path, f"must be writable: {error.strerror}") from error
    os.close(descriptor)
    os.unlink(probe)


def _owner_hint(path: str) -> str:
    return f"create it with mode 0700 for the user that runs PostgreSQL: install -d -m 0700 -o USER {path}"


def check_port(config: NodeConfig) -> None:
    """Bind the Raft port once, to hear now and in one line that it is taken."""
    where = join_address(config.listen_host, config.listen_port)
    try:
        found = socket.getaddrinfo(
            config.listen_host, config.listen_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise SettingError("pgraft.listen_address", where, f"cannot be resolved: {error.strerror}") from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise SettingError(
                "pgraft.listen_address",
                where,
                f"cannot be bound: {error.strerror}",
                hint="another process uses the port, or the address is not of this machine",
            ) from error


def check_environment(config: NodeConfig) -> None:
    """All of it, before anything is started."""
    if not os.path.isdir(config.pgdata):
        raise PostgresError(f"{config.pgdata} is not a directory")
    check_port(config)
