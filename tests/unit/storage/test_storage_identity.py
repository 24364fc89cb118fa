"""Identity, peers' memory, the data directory and its lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pgraft.storage import (
    DamagedLog,
    DataDirLocked,
    Identity,
    Peers,
    StorageError,
    create_identity,
    files,
    load_identity,
    load_peers,
    lock_data_dir,
    new_member_id,
    prepare_data_dir,
    save_peers,
    update_identity,
)

IDENTITY = Identity(
    cluster_id="pgraft",
    node_id=2,
    member_id=2**64 - 5,
    initial_members="node1=h:1,node2=h:2",
    election_timeout_ms=1000,
    formed=False,
)


def test_identity_is_made_once_and_changed_as_a_whole(data_dir: Path) -> None:
    assert load_identity(data_dir) is None
    create_identity(data_dir, IDENTITY)
    assert load_identity(data_dir) == IDENTITY
    with pytest.raises(StorageError, match="already has an identity"):
        create_identity(data_dir, IDENTITY)
    formed = msgspec.structs.replace(IDENTITY, formed=True, election_timeout_ms=3000)
    update_identity(data_dir, formed)
    assert load_identity(data_dir) == formed
    assert (data_dir / "identity").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="must not be 0"):
        update_identity(data_dir, msgspec.structs.replace(IDENTITY, member_id=0))


@pytest.mark.parametrize("failing", ["write_at", "sync_file", "rename"])
def test_a_failed_change_leaves_the_old_one(data_dir: Path, monkeypatch: Any, failing: str) -> None:
    create_identity(data_dir, IDENTITY)
    save_peers(data_dir, Peers({1: 11}))

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, failing, fail)
    with pytest.raises(StorageError, match="could not write the identity file: No space left"):
        update_identity(data_dir, msgspec.structs.replace(IDENTITY, formed=True))
    with pytest.raises(StorageError):
        save_peers(data_dir, Peers())
    monkeypatch.undo()
    assert load_identity(data_dir) == IDENTITY
    assert load_peers(data_dir) == Peers({1: 11})
    update_identity(data_dir, msgspec.structs.replace(IDENTITY, formed=True))


def test_it_is_synced_before_it_is_renamed_and_the_folder_after(data_dir: Path, monkeypatch: Any) -> None:
    calls: list[str] = []
    for name in ("write_at", "sync_file", "rename", "sync_dir"):
        monkeypatch.setattr(files, name, noting(calls, name, getattr(files, name)))
    create_identity(data_dir, IDENTITY)
    assert calls == ["write_at", "sync_file", "rename", "sync_dir"]


def noting(calls: list[str], name: str, real: Any) -> Any:
    """`real`, noting its calls."""

    def call(*args: Any) -> Any:
        calls.append(name)
        return real(*args)

    return call


def test_an_identity_that_is_gone_is_not_made_anew(data_dir: Path) -> None:
    """A new member id on an old log would be a node that has forgotten who it voted as."""
    create_identity(data_dir, IDENTITY)
    (data_dir / "raft").mkdir()
    assert load_identity(data_dir) == IDENTITY
    (data_dir / "identity").unlink()
    with pytest.raises(DamagedLog, match="identity file is missing"):
        load_identity(data_dir)


def test_peers_are_remembered(data_dir: Path) -> None:
    assert load_peers(data_dir) == Peers()
    peers = Peers({node: new_member_id() for node in range(1, 65)}, {3: 2})
    save_peers(data_dir, peers)
    assert load_peers(data_dir) == peers
    assert all(0 < member < 2**64 for member in peers.member_ids.values())


@pytest.mark.parametrize("name", ["identity", "peers"])
def test_damage_is_found(data_dir: Path, name: str) -> None:
    create_identity(data_dir, IDENTITY)
    save_peers(data_dir, Peers({1: 2, 3: 4}, {3: 2}))
    path = data_dir / name
    whole = path.read_bytes()
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 4]) + whole[offset + 1 :])
        with pytest.raises(DamagedLog, match=f"the {name} file cannot be used"):
            load_identity(data_dir) if name == "identity" else load_peers(data_dir)
    for broken in (b"", b"\n", whole[:-1], whole + b"x"):
        path.write_bytes(broken)
        with pytest.raises(DamagedLog):
            load_identity(data_dir) if name == "identity" else load_peers(data_dir)


def test_the_lock_is_exclusive_and_names_its_holder(data_dir: Path) -> None:
    code = (
        "import sys, pathlib; from pgraft.storage import lock_data_dir;"
        " lock = lock_data_dir(pathlib.Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(DataDirLocked, match=f"process {holder.pid}") as caught:
            lock_data_dir(data_dir)
        assert caught.value.holder_pid == holder.pid
        holder.kill()
        holder.wait()
    with lock_data_dir(data_dir) as lock:
        assert (data_dir / "LOCK").read_text() == f"{os.getpid()}\n"
        with pytest.raises(DataDirLocked):
            lock_data_dir(data_dir)
    lock.release()
    lock_data_dir(data_dir).release()


def test_missing_directories_are_made_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    old = os.umask(0)
    try:
        prepare_data_dir(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o700


def test_an_open_directory_is_refused_unless_it_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "open"
    path.mkdir()
    path.chmod(0o755)
    prepare_data_dir(path)
    assert path.stat().st_mode & 0o777 == 0o700
    (path / "identity").touch()
    for mode in (0o750, 0o701, 0o777):
        path.chmod(mode)
        with pytest.raises(StorageError, match=f"invalid permissions: 0{mode:o}, should be u=rwx"):
            lock_data_dir(path)


def test_another_owner_is_refused(data_dir: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: data_dir.stat().st_uid + 1)
    with pytest.raises(StorageError, match="wrong ownership"):
        prepare_data_dir(data_dir)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="not a directory"):
        prepare_data_dir(tmp_path / "file")
    with pytest.raises(StorageError, match="could not prepare the data directory"):
        prepare_data_dir(tmp_path / "file" / "below")
