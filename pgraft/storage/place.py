"""Where a Raft directory lives: what tells a directory that was copied or restored from the one it was made
of.

A directory is its lock file: machine, file system, inode, and the inode's generation, which is another one
when the file system gives an inode's number to a new file. What a system does not tell is not compared. What
cannot be told at all is a clone of a whole disk, block by block, on a machine with the same machine id.
"""

from __future__ import annotations

import enum
import fcntl
import os
from pathlib import Path

import msgspec

from pgraft.storage.data_dir import LOCK_NAME
from pgraft.storage.errors import StorageError, failed_call

MACHINE_ID_PATH = Path("/etc/machine-id")
BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")
MOUNTS_PATH = Path("/proc/self/mountinfo")
_TEXT_BYTES_MAX = 128
# linux/fs.h and xfs_fs.h: _IOR('v', 1, long), _IOR(0x15, 0, struct fsuuid2), _IOR('X', 100, xfs_fsop_geom_v1)
_FS_IOC_GETVERSION, _GENERATION_BYTES = 0x80087601, 8
_FS_IOC_GETFSUUID, _FSUUID_BYTES = 0x80111500, 17
_XFS_IOC_FSGEOMETRY_V1, _GEOMETRY_BYTES, _GEOMETRY_UUID = 0x80705864, 112, slice(64, 80)

ADOPT_HINT = (
    "If this directory was moved or restored, and the original is gone for good: pgraft-launch adopt -D DIR,"
    " where DIR is PostgreSQL's data directory. If the original is still there: start that one, or give this"
    " node an empty pgraft.data_dir and a new id."
)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Of a directory: machine and boot ids (empty: not known), then device, inode and generation of its lock
    file (0: not known), and what its file system is called, by each kind of name that it has."""

    machine: str = ""
    boot: str = ""
    device: int = 0
    inode: int = 0
    generation: int = 0
    file_system: dict[str, str] = {}


class OtherPlace(StorageError):
    """The directory is not where its node lives: a copy, or moved or restored; nothing may be started on
    it."""

    def __init__(self, subject: Path, what: str) -> None:
        super().__init__(subject, None, f"the Raft state does not belong where it is: {what}", ADOPT_HINT)


class _Match(enum.Enum):
    SAME = enum.auto()
    OTHER = enum.auto()
    UNKNOWN = enum.auto()


def place_of(data_dir: Path) -> Place:
    """Where the directory is now. Without a lock file, inode and device are 0. StorageError."""
    machine, boot = _line(MACHINE_ID_PATH), _line(BOOT_ID_PATH)
    lock = data_dir / LOCK_NAME
    if machine == "uninitialized":  # machine-id(5): so it is called before the first boot
        machine = ""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return Place(machine=machine, boot=boot)
    except OSError as error:
        raise failed_call("look at the lock file", lock, error) from error
    try:
        found = os.fstat(fd)
        return Place(
            machine=machine,
            boot=boot,
            device=found.st_dev,
            inode=found.st_ino,
            generation=int.from_bytes(_asked(fd, _FS_IOC_GETVERSION, _GENERATION_BYTES), "little"),
            file_system=_file_system(fd, found.st_dev),
        )
    except OSError as error:
        raise failed_call("look at the lock file", lock, error) from error
    finally:
        os.close(fd)


def difference(stored: Place, here: Place) -> str:
    """Why `here` is not the place that was `stored`, for people; empty when it is."""
    if stored.machine and here.machine and stored.machine != here.machine:
        return f"it belongs to machine {stored.machine}, and this is machine {here.machine}"
    if not here.inode:
        return f"its file {LOCK_NAME}, by which it is recognised, is missing"
    is_reused = stored.generation and here.generation and stored.generation != here.generation
    if stored.inode != here.inode or is_reused:
        return f"its file {LOCK_NAME}, by which it is recognised, is another one, as in a copy"
    if _is_other_file_system(stored, here):
        return (
            f"it belongs on the file system of device {_numbers(stored.device)},"
            f" and is on another one, of device {_numbers(here.device)}"
        )
    return ""


def _is_other_file_system(stored: Place, here: Place) -> bool:
    """Device numbers are given anew at each boot, and those without a disk at each mount; names stay."""
    names = _compare_names(stored.file_system, here.file_system)
    is_diskless = os.major(here.device) == 0
    if stored.device == here.device:
        return is_diskless and names is _Match.OTHER
    is_renumbered = is_diskless or not stored.boot or stored.boot != here.boot
    return names is not _Match.SAME or not is_renumbered


def _compare_names(stored: dict[str, str], here: dict[str, str]) -> _Match:
    both = stored.keys() & here.keys()
    if not both:
        return _Match.UNKNOWN
    return _Match.SAME if all(stored[kind] == here[kind] for kind in both) else _Match.OTHER


def _numbers(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _file_system(fd: int, device: int) -> dict[str, str]:
    """The names of the file system that `fd` is on: none of them is made of the device's number."""
    names: dict[str, str] = {}
    major, minor = os.major(device), os.minor(device)
    fsid = os.fstatvfs(fd).f_fsid
    # XFS and others have no id of their own there but huge_encode_dev() of linux/kdev_t.h.
    is_number = fsid == (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
    if fsid and not is_number:
        names["fsid"] = f"{fsid:016x}"
    uuid = _asked(fd, _FS_IOC_GETFSUUID, _FSUUID_BYTES)[1:]
    if not any(uuid) and is_number:
        uuid = _asked(fd, _XFS_IOC_FSGEOMETRY_V1, _GEOMETRY_BYTES)[_GEOMETRY_UUID]
    if any(uuid):
        names["uuid"] = uuid.hex()
    if not names and major == 0:
        source = _network_source(f"{major}:{minor}")
        if source:
            names["source"] = source
    return names


def _network_source(device: str) -> str:
    """What is mounted there from another machine (`server:/path`, `//server/share`); empty for anything
    else."""
    try:
        lines = MOUNTS_PATH.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        # proc(5): id, parent, device, root, mount point, options, fields up to "-", type, source, ...
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) > 3 and len(kind) > 1 and fields[2] == device:
            source = kind[1]
            return source if ":/" in source or source.startswith("//") else ""
    return ""


def _asked(fd: int, request: int, length: int) -> bytes:
    """What a file system answers to an ioctl; zeros where it does not know it."""
    answer = bytearray(length)
    try:
        fcntl.ioctl(fd, request, answer, True)
    except OSError:
        return bytes(length)
    return bytes(answer)


def _line(path: Path) -> str:
    """The first line of a small file of the system; empty where there is none."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(_TEXT_BYTES_MAX).partition("\n")[0].strip()
    except OSError:
        return ""
