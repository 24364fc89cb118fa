"""Who this node is, and whom it has met: two small files that change seldom and atomically.

Each is text, for people to read: a first line with kind, format version and checksum, then JSON.

    pgraft identity 1 crc32=5f3759df
    {"cluster_id": "pgraft", "node_id": 1, ...}

Written by the Raft worker only, under the lock of the data directory.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from pgraft.ranges import INCARNATION_MAX, MEMBER_ID_MAX, NODE_ID_MAX
from pgraft.storage import files
from pgraft.storage.data_dir import RAFT_NAME
from pgraft.storage.errors import DamagedLog, OtherVersion, StorageError, failed_call, hint_of
from pgraft.storage.place import OtherPlace, Place, difference, place_of
from pgraft.storage.snapshots import read_whole

FORMAT_VERSION = 1
IDENTITY_NAME = "identity"
PEERS_NAME = "peers"
TEXT_BYTES_MAX = 4 * 1024 * 1024
ELECTION_TIMEOUT_MS_MAX = 2**31 - 1
_Shape = TypeVar("_Shape", bound=msgspec.Struct)
_FIRST_LINE = re.compile(rb"pgraft ([a-z]+) ([0-9]{1,9}) crc32=([0-9a-f]{8})")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Made at the first start. `member_id` is random and never 0; `initial_members` is the list that peers
    compare before the cluster is `formed`; `election_timeout_ms` is the longest one ever promised.

    `place` is where the directory lives, None in one of the release before. `incarnation` grows each time
    that it is adopted in another place; peers refuse older ones. `catching_up`: it may have forgotten what it
    promised before it was adopted, and gives no vote until it has caught up with a leader.
    """

    cluster_id: str
    node_id: int
    member_id: int
    initial_members: str
    election_timeout_ms: int
    formed: bool
    place: Place | None = None
    incarnation: int = 1
    catching_up: bool = False
    format_version: int = FORMAT_VERSION


class Peers(msgspec.Struct, frozen=True):
    """By node id: member ids, as first met, and incarnations where they are above 1."""

    member_ids: dict[int, int] = {}
    incarnations: dict[int, int] = {}


def new_member_id() -> int:
    """A random member id, never 0."""
    member_id = 0
    while member_id == 0:
        member_id = int.from_bytes(os.urandom(8), "little")
    return member_id


def load_identity(data_dir: Path) -> Identity | None:
    """The identity, or None before the first start. DamagedLog when the file does not read back, or is gone
    from beside a Raft state, which is made after it."""
    identity = _load(data_dir / IDENTITY_NAME, "identity", Identity, _check_identity)
    if identity is None and files.exists(data_dir / RAFT_NAME):
        raise DamagedLog(
            data_dir / IDENTITY_NAME, None, "there is a Raft state, but its identity file is missing"
        )
    return identity


def create_identity(data_dir: Path, identity: Identity) -> None:
    """Store the identity of a new node, durably. StorageError when the directory already has one."""
    path = data_dir / IDENTITY_NAME
    if files.exists(path):
        raise StorageError(path, None, "the data directory already has an identity")
    update_identity(data_dir, identity)


def update_identity(data_dir: Path, identity: Identity) -> None:
    """Replace the identity, atomically and durably."""
    if identity.member_id == 0:
        raise ValueError("a member id must not be 0")
    _save(data_dir / IDENTITY_NAME, "identity", identity)


def check_place(data_dir: Path, identity: Identity) -> Place:
    """Where the directory is, which is where its node lives. OtherPlace when it is not; StorageError."""
    here = place_of(data_dir)
    why = difference(identity.place, here) if identity.place is not None else ""
    if why:
        raise OtherPlace(data_dir, why)
    return here


def load_peers(data_dir: Path) -> Peers:
    """What is remembered of the nodes met so far; nothing before the first. DamagedLog as above."""
    return _load(data_dir / PEERS_NAME, "peers", Peers, _check_peers) or Peers()


def save_peers(data_dir: Path, peers: Peers) -> None:
    """Replace what is remembered of the peers, atomically and durably."""
    _save(data_dir / PEERS_NAME, "peers", peers)


def _save(path: Path, kind: str, value: Identity | Peers) -> None:
    body = msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
    head = f"pgraft {kind} {FORMAT_VERSION} crc32={zlib.crc32(body):08x}\n".encode()
    try:
        files.replace(path, head + body)
    except OSError as error:
        raise failed_call(f"write the {kind} file", path, error) from error


def _load(path: Path, kind: str, shape: type[_Shape], check: Callable[[_Shape], None]) -> _Shape | None:
    try:
        data = read_whole(path, TEXT_BYTES_MAX)
        found = msgspec.json.decode(_body(data, kind), type=shape)
        check(found)
        return found
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failed_call(f"read the {kind} file", path, error) from error
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        raise DamagedLog(path, 0, f"the {kind} file cannot be used: {error}", hint_of(error)) from error


def _check_identity(identity: Identity) -> None:
    _check_ids(identity.node_id, identity.member_id)
    if not 0 <= identity.election_timeout_ms <= ELECTION_TIMEOUT_MS_MAX:
        raise ValueError(f"election_timeout_ms {identity.election_timeout_ms} is out of range")
    _check_incarnation(identity.incarnation)


def _check_peers(peers: Peers) -> None:
    for node_id, member_id in peers.member_ids.items():
        _check_ids(node_id, member_id)
    for incarnation in peers.incarnations.values():
        _check_incarnation(incarnation)


def _check_ids(node_id: int, member_id: int) -> None:
    if not (1 <= node_id <= NODE_ID_MAX and 1 <= member_id <= MEMBER_ID_MAX):
        raise ValueError(f"node id {node_id} with member id {member_id} is out of range")


def _check_incarnation(incarnation: int) -> None:
    if not 1 <= incarnation <= INCARNATION_MAX:
        raise ValueError(f"incarnation {incarnation} is out of range")


def _body(data: bytes, kind: str) -> bytes:
    line, _, body = data.partition(b"\n")
    match = _FIRST_LINE.fullmatch(line)
    if match is None or match[1].decode() != kind:
        raise ValueError("its first line is not one of pgraft's")
    if int(match[2]) != FORMAT_VERSION:
        raise OtherVersion(int(match[2]), FORMAT_VERSION)
    if zlib.crc32(body) != int(match[3], 16):
        raise ValueError("its checksum does not match")
    return body
