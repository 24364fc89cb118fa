"""Where segments lie, what they are called, and the one way to open one.

The name is `pgraft.UID.HASH.RANDOM`: HASH stands for the path of the Raft directory, and RANDOM is drawn
at each start, so that no other user can take the name before us. Everybody may make files in /dev/shm:
what is opened there is believed only when it is a regular file of ours, of mode 0600, with one name.

Import-light: the supervisor lives with what this module loads.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from pgraft import ownfile
from pgraft.shm import layout
from pgraft.shm.words import WordPage

SHM_DIR = Path("/dev/shm")
NAME_PREFIX = "pgraft."
NAME_BYTES_MAX = 200
"""Of a segment's name, in sql/segment.c, too."""
RANDOM_BYTES = 8


class SegmentError(Exception):
    """A segment is not there, or is not what it should be. The text says which one, and why."""


class SegmentExists(SegmentError):
    """The name is taken."""


class Place(NamedTuple):
    """A directory, whatever it is called: device and inode."""

    device: int
    inode: int


def place_of(directory: str | Path) -> Place | None:
    """Where a directory is; None when it is not there, or cannot be looked at."""
    try:
        found = os.stat(directory)
    except OSError:
        return None
    return Place(found.st_dev, found.st_ino)


# --- names --------------------------------------------------------------------------------------------


def name_stem(data_dir: str | Path) -> str:
    """What the names of all segments of this Raft directory begin with."""
    path = os.fsencode(os.path.realpath(data_dir))
    return f"{NAME_PREFIX}{os.geteuid()}.{zlib.crc32(path):08x}{zlib.adler32(path):08x}"


def new_name(data_dir: str | Path) -> str:
    """A name that nobody can know before."""
    return f"{name_stem(data_dir)}.{os.urandom(RANDOM_BYTES).hex()}"


def has_stem(name: str, data_dir: str | Path) -> bool:
    """Whether a name is one of this Raft directory's: also one without RANDOM, as earlier releases gave."""
    stem = name_stem(data_dir)
    return name == stem or name.startswith(f"{stem}.")


def is_name(text: str) -> bool:
    """Whether this can be the name of a segment."""
    return (
        text.startswith(NAME_PREFIX)
        and "/" not in text
        and text.isprintable()
        and len(text.encode()) <= NAME_BYTES_MAX
    )


def stored_name(data_dir: str | Path, owner: int | None = None) -> str:
    """The name in run/segment of this Raft directory; empty when there is none.

    Raises SegmentError when that file must not be believed, or cannot be read.
    """
    path = Path(data_dir, "run", "segment")
    try:
        text = ownfile.read_own(path, NAME_BYTES_MAX + 1, owner=owner).decode("utf-8", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise SegmentError(f"{path} is not used: it {_predicate(error)}") from error
    return text if is_name(text) else ""


def own_names(owner: int | None = None) -> list[str]:
    """The names of this user's segments, whatever else lies in /dev/shm."""
    owner = os.geteuid() if owner is None else owner
    found = []
    with contextlib.suppress(OSError), os.scandir(SHM_DIR) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if is_name(entry.name) and entry.stat(follow_symlinks=False).st_uid == owner:
                    found.append(entry.name)
    return sorted(found)


def unlink(name: str) -> None:
    """Remove the segment's name; whoever has it mapped keeps the memory.

    Nothing is done where there is nothing, or where the file is another user's.
    """
    if is_name(name):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.unlink(SHM_DIR / name)


# --- opening ------------------------------------------------------------------------------------------


def open_segment(name: str, *, writable: bool = False, owner: int | None = None) -> int:
    """A descriptor of a segment of ours (or of `owner`). Raises SegmentError that says what is wrong."""
    flags = os.O_RDWR if writable else os.O_RDONLY
    if not is_name(name):
        raise SegmentError(f"{name!r} is not the name of a segment")
    try:
        return ownfile.open_own(SHM_DIR / name, flags, owner=owner, is_private=True)
    except FileNotFoundError as error:
        raise SegmentError(f"no segment {name} in {SHM_DIR}: {error.strerror}") from error
    except ownfile.ForeignFile as error:
        raise SegmentError(f"{SHM_DIR / name} is not used: it {error.strerror}") from error
    except OSError as error:
        raise SegmentError(f"cannot open segment {name}: {error.strerror}") from error


def map_segment(name: str, size: int, *, writable: bool, owner: int | None = None) -> mmap.mmap:
    """Map the first `size` bytes of a segment, 0 for all of it. Raises SegmentError."""
    descriptor = open_segment(name, writable=writable, owner=owner)
    try:
        found = os.fstat(descriptor).st_size
        if found < max(size, layout.STATUS_OFFSET + 2 * layout.STATUS_COPY_BYTES):
            raise SegmentError(f"segment {name} has only {found} bytes: not a pgraft segment")
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return mmap.mmap(descriptor, size, access=access)
    except (OSError, ValueError) as error:
        raise SegmentError(f"cannot map segment {name}: {error}") from error
    finally:
        os.close(descriptor)


class Header:
    """A copy of a segment's header page."""

    def __init__(self, name: str, page: bytes) -> None:
        self.name = name
        self._page = page
        self.words = WordPage(memoryview(page).cast("Q"), layout.HEADER_WORDS)

    def text(self, name: str) -> str:
        """A text of the header page (layout.HEADER_TEXTS)."""
        offset, room = layout.HEADER_TEXTS[name]
        length = min(int.from_bytes(self._page[offset : offset + 8], "little"), room)
        return self._page[offset + 8 : offset + 8 + length].decode("utf-8", "surrogateescape")

    @property
    def is_current(self) -> bool:
        """Whether it is complete, and of the layout that this release knows."""
        return is_current(self.words)

    def age(self) -> tuple[bool, int]:
        """Orders segments of one node: retired ones first, then by the time that they were made."""
        return not self.words["retired"], self.words["created_boot_ns"]


def is_current(header: WordPage) -> bool:
    """Whether a header is complete, and of the layout that this release knows."""
    return header["magic"] == layout.MAGIC and header["layout_version"] == layout.LAYOUT_VERSION


def pgdata_of(header: WordPage) -> Place:
    """PostgreSQL's data directory that a segment was made for."""
    return Place(header["pgdata_device"], header["pgdata_inode"])


def data_dir_of(header: WordPage) -> Place:
    """The Raft directory that a segment was made for."""
    return Place(header["data_dir_device"], header["data_dir_inode"])


def read_header(name: str, owner: int | None = None) -> Header:
    """Copy a segment's header page. Raises SegmentError when the file is not to be believed, or too short."""
    descriptor = open_segment(name, owner=owner)
    try:
        page = os.pread(descriptor, layout.PAGE_BYTES, 0)
    finally:
        os.close(descriptor)
    if len(page) < layout.PAGE_BYTES:
        raise SegmentError(f"segment {name} has only {len(page)} bytes: not a pgraft segment")
    return Header(name, page)


# --- finding ------------------------------------------------------------------------------------------


def find_of_data_dir(data_dir: str | Path, owner: int | None = None) -> Header | None:
    """The segment that was made for this Raft directory: the one that run/segment names.

    Where that file is lost or names another node's segment, as in a copy, the newest one in /dev/shm.
    """
    place = place_of(data_dir)
    if place is None:
        return None
    with contextlib.suppress(SegmentError):
        header = read_header(stored_name(data_dir, owner), owner)
        if header.is_current and data_dir_of(header.words) == place:
            return header
    return max(
        (one for one in _current_headers(owner) if data_dir_of(one.words) == place),
        key=Header.age,
        default=None,
    )


def find_of_pgdata(pgdata: str | Path, owner: int | None = None) -> list[Header]:
    """Segments made for this PostgreSQL data directory, those that count first, the newest first."""
    place = place_of(pgdata)
    found = [one for one in _current_headers(owner) if pgdata_of(one.words) == place]
    return sorted(found, key=Header.age, reverse=True)


def _current_headers(owner: int | None) -> list[Header]:
    found = []
    for name in own_names(owner):
        with contextlib.suppress(SegmentError):
            header = read_header(name, owner)
            found += [header] if header.is_current else []
    return found


def find_leftovers(data_dir: str | Path) -> list[str]:
    """Names of all segments of ours that belong to this Raft directory, of earlier releases, too.

    Told by the name, or by the directory in the header, which counts for one that was moved.
    """
    place = place_of(data_dir)
    moved = {one.name for one in _current_headers(None) if place and data_dir_of(one.words) == place}
    return [name for name in own_names() if name in moved or has_stem(name, data_dir)]


def _predicate(error: OSError) -> str:
    return (
        f"{error.strerror}" if isinstance(error, ownfile.ForeignFile) else f"cannot be read: {error.strerror}"
    )
