"""Raft state on disk: entry log, hard state, snapshots, identity. See README.md in this folder."""

from pgraft.storage.data_dir import LockedDir, lock_data_dir, prepare_data_dir
from pgraft.storage.diverged import DIVERGED_NAME, read_mark, remove_mark, write_mark
from pgraft.storage.errors import DamagedLog, DataDirLocked, StorageError
from pgraft.storage.identity import (
    Identity,
    Peers,
    check_place,
    create_identity,
    load_identity,
    load_peers,
    new_member_id,
    save_peers,
    update_identity,
)
from pgraft.storage.place import OtherPlace, Place, difference, place_of
from pgraft.storage.store import Recovered, Store, open_store

__all__ = [
    "DIVERGED_NAME",
    "DamagedLog",
    "DataDirLocked",
    "Identity",
    "LockedDir",
    "OtherPlace",
    "Peers",
    "Place",
    "Recovered",
    "StorageError",
    "Store",
    "check_place",
    "create_identity",
    "difference",
    "load_identity",
    "load_peers",
    "lock_data_dir",
    "new_member_id",
    "open_store",
    "place_of",
    "prepare_data_dir",
    "read_mark",
    "remove_mark",
    "save_peers",
    "update_identity",
    "write_mark",
]
