"""Where a directory lives: what counts as the same place, and what of a real file system tells a copy."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path

import msgspec
import pytest

from pgraft.storage import (
    Identity,
    OtherPlace,
    Place,
    check_place,
    create_identity,
    difference,
    load_identity,
    lock_data_dir,
    place_of,
    update_identity,
)
from tests.unit.storage.test_storage_identity import IDENTITY

SDA1, SDB1 = os.makedev(8, 1), os.makedev(8, 17)
NFS1, NFS2 = os.makedev(0, 45), os.makedev(0, 48)
EXT4 = {"fsid": "f60cdead39d7a9e0", "uuid": "5" * 32}
HERE = Place(machine="m1", boot="b1", device=SDA1, inode=12, generation=99, file_system=EXT4)
SAME, MACHINE, COPY, MISSING, DISK = (
    "",
    "belongs to machine",
    "is another one",
    "is missing",
    "another one, of",
)


def on(device: int, names: dict[str, str], **other: object) -> Place:
    return msgspec.structs.replace(HERE, device=device, file_system=names, **other)


def at(**changes: object) -> Place:
    return msgspec.structs.replace(HERE, **changes)


@pytest.mark.parametrize(
    ("stored", "here", "why"),
    [
        pytest.param(HERE, HERE, SAME, id="as it was"),
        pytest.param(HERE, at(boot="b2"), SAME, id="after a reboot"),
        pytest.param(HERE, at(boot="b2", device=SDB1), SAME, id="disks numbered anew at a reboot"),
        pytest.param(HERE, at(device=SDB1), DISK, id="another device in the same boot: a clone of the disk"),
        pytest.param(HERE, on(SDB1, {"fsid": "1"}, boot="b2"), DISK, id="another file system, numbered anew"),
        pytest.param(HERE, on(SDB1, {}, boot="b2"), DISK, id="another device, and nothing tells more"),
        pytest.param(on(SDA1, {"uuid": "1"}), on(SDA1, {"fsid": "2"}), SAME, id="no name in common"),
        pytest.param(HERE, on(SDA1, EXT4 | {"uuid": "6"}), SAME, id="a disk's device rules in one boot"),
        pytest.param(
            on(SDA1, {"uuid": "7"}), on(SDB1, {"uuid": "7", "fsid": "1"}, boot="b2"), SAME,
            id="a kernel that knows more names",
        ),
        pytest.param(HERE, on(SDB1, EXT4 | {"fsid": "1"}, boot="b2"), DISK, id="one of two names differs"),
        pytest.param(on(NFS1, {"source": "s:/a"}), on(NFS2, {"source": "s:/a"}), SAME, id="mounted again"),
        pytest.param(on(NFS1, {"source": "s:/a"}), on(NFS1, {"source": "s:/b"}), DISK, id="another export"),
        pytest.param(on(NFS1, {}), on(NFS1, {}), SAME, id="no disk and no name: its device"),
        pytest.param(on(NFS1, {}), on(NFS2, {}), DISK, id="no disk, no name, another device"),
        pytest.param(on(NFS1, {"fsid": "1"}), on(NFS2, {"fsid": "2"}), DISK, id="a snapshot of a subvolume"),
        pytest.param(HERE, at(inode=13), COPY, id="copied"),
        pytest.param(HERE, at(generation=98), COPY, id="copied, and the inode's number used again"),
        pytest.param(HERE, at(generation=0), SAME, id="a kernel that does not tell the generation"),
        pytest.param(at(generation=0), HERE, SAME, id="a kernel that tells it now"),
        pytest.param(HERE, at(inode=0, device=0), MISSING, id="its lock file was removed"),
        pytest.param(HERE, at(machine="m2"), MACHINE, id="another machine"),
        pytest.param(HERE, at(machine=""), SAME, id="a container without a machine id"),
        pytest.param(at(machine=""), HERE, SAME, id="a machine id now"),
        pytest.param(
            at(machine=""), at(machine="", boot="b2", device=SDB1), SAME,
            id="a volume attached to the next container",
        ),
        pytest.param(at(boot=""), at(boot="", device=SDB1), SAME, id="boots are not told"),
    ],
)  # fmt: skip
def test_what_counts_as_the_same_place(stored: Place, here: Place, why: str) -> None:
    found = difference(stored, here)
    assert why in found
    assert bool(why) == bool(found)


def made(data_dir: Path) -> Identity:
    """A directory with an identity that lives there."""
    with lock_data_dir(data_dir):
        identity = msgspec.structs.replace(IDENTITY, place=place_of(data_dir))
        create_identity(data_dir, identity)
    return identity


def test_a_real_directory_is_recognised_where_it_is(tmp_path: Path) -> None:
    data_dir = tmp_path / "node"
    identity = made(data_dir)
    assert load_identity(data_dir) == identity
    place = identity.place
    assert place is not None
    assert place.inode == (data_dir / "LOCK").stat().st_ino
    with lock_data_dir(data_dir):
        assert check_place(data_dir, identity) == place, "a start writes to the lock file"
    moved = data_dir.rename(tmp_path / "moved")
    assert check_place(moved, identity) == place, "moved within its file system"


def test_a_real_copy_is_not(tmp_path: Path) -> None:
    data_dir = tmp_path / "node"
    identity = made(data_dir)
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy)
    before = {path: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(
        OtherPlace, match=r'does not belong where it is: its file LOCK.* in "/.*/copy"'
    ) as caught:
        check_place(copy, identity)
    assert "pgraft-launch adopt -D DIR" in caught.value.hint
    assert {path: path.read_bytes() for path in copy.iterdir()} == before
    (copy / "LOCK").unlink()
    with pytest.raises(OtherPlace, match="is missing"):
        check_place(copy, identity)


def test_a_copy_in_the_place_of_a_removed_one_is_not(tmp_path: Path) -> None:
    """ext4 gives the freed inode to the next file: its generation tells."""
    data_dir = tmp_path / "node"
    identity = made(data_dir)
    backup = tmp_path / "backup"
    shutil.copytree(data_dir, backup)
    for _ in range(20):
        shutil.rmtree(data_dir)
        shutil.copytree(backup, data_dir)
        if identity.place is not None and (data_dir / "LOCK").stat().st_ino == identity.place.inode:
            break
    if place_of(data_dir).generation == 0:
        pytest.skip("this file system tells no generation")
    with pytest.raises(OtherPlace):
        check_place(data_dir, identity)


def test_another_file_system_is_another_place(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    place = made(tmp_path / "node").place
    away = shm / f"pgraft-test-place-{os.getpid()}"
    away.mkdir(mode=0o700)
    try:
        with lock_data_dir(away):
            there = place_of(away)
        assert place is not None
        same_file = msgspec.structs.replace(there, inode=place.inode, generation=place.generation)
        assert "on another one, of device" in difference(place, same_file)
    finally:
        shutil.rmtree(away)


def test_a_lock_file_that_is_a_link_or_a_pipe_is_no_lock_file(tmp_path: Path) -> None:
    """It hangs nobody and leads nowhere."""
    data_dir = tmp_path / "node"
    identity = made(data_dir)
    (data_dir / "LOCK").rename(data_dir / "away")
    (data_dir / "LOCK").symlink_to(data_dir / "away")
    with pytest.raises(Exception, match="could not look at the lock file"):
        check_place(data_dir, identity)
    (data_dir / "LOCK").unlink()
    os.mkfifo(data_dir / "LOCK")
    with pytest.raises(OtherPlace):
        check_place(data_dir, identity)


def test_one_of_the_release_before_has_no_place_and_is_taken_over(tmp_path: Path) -> None:
    data_dir = tmp_path / "node"
    identity = made(data_dir)
    update_identity(data_dir, msgspec.structs.replace(identity, place=None))
    old = load_identity(data_dir)
    assert old is not None
    assert old.place is None
    assert check_place(data_dir, old) == identity.place


def test_what_the_release_before_wrote_is_read(tmp_path: Path) -> None:
    """Byte by byte as 0.1.0 wrote it."""
    body = b"""{
 "cluster_id": "pgraft",
 "node_id": 2,
 "member_id": 77,
 "initial_members": "1:node1=h:1,2:node2=h:2",
 "election_timeout_ms": 1000,
 "formed": true,
 "format_version": 1
}
"""
    head = f"pgraft identity 1 crc32={zlib.crc32(body):08x}\n".encode()
    (tmp_path / "identity").write_bytes(head + body)
    found = load_identity(tmp_path)
    assert found is not None
    assert (found.place, found.incarnation, found.catching_up) == (None, 1, False)
