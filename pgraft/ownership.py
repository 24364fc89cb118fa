"""Who could have put a file where it is: paths walked component by component, never resolved twice.

Every component is opened with O_PATH | O_NOFOLLOW from the descriptor of the one before it. Such a
descriptor only names a file: nothing is read, listed, run or waited for, and what the file is and to
whom it belongs is asked of the descriptor. Symbolic links are read and followed here, not by the kernel,
so that each one's owner is known.

A group's right to write counts as a stranger's, and an access control list shows in the mode's group
bits. In a folder with the sticky bit (/tmp) everybody may write, but nobody can move what is another's.
"""

from __future__ import annotations

import functools
import os
import stat
from collections import deque
from pathlib import Path
from typing import NamedTuple

import pgraft

LINKS_MAX = 40
"""As the kernel's own limit."""
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Step(NamedTuple):
    """One component on the way: a directory, a symbolic link, or the file at the end."""

    path: str
    uid: int
    mode: int
    file: tuple[int, int]
    """Device and inode."""

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link, whose mode says nothing."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def others_may_change(self) -> bool:
        """Whether others than its owner can change it, or move what is in it."""
        if self.is_link or not self.mode & _OTHERS_WRITE:
            return False
        return not (self.is_directory and self.mode & stat.S_ISVTX)


class Walk:
    """What is on the way to a path. `close` it, or use it in a `with`.

    steps       from / on, every directory and link, and the file at the end when it is there
    missing     the components that do not exist
    descriptor  of the last component that exists (O_PATH)
    """

    def __init__(self, steps: list[Step], missing: list[str], descriptor: int) -> None:
        self.steps = steps
        self.missing = missing
        self.descriptor = descriptor

    @property
    def last(self) -> Step:
        """What the path names; where that does not exist, the deepest directory that does."""
        return self.steps[-1]

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def walk(path: Path | str) -> Walk:
    """The way to an absolute path. OSError where a component cannot be looked at, or links lead nowhere."""
    steps: list[Step] = []
    held = [os.open("/", _LOOK)]
    names = [""]
    left = deque(os.path.abspath(path).split("/"))
    links = 0
    try:
        steps.append(_step("/", held[0]))
        while left:
            name = left.popleft()
            if name in ("", "."):
                continue
            if name == "..":
                if len(held) > 1:
                    os.close(held.pop())
                    names.pop()
                continue
            try:
                found = os.open(name, _LOOK, dir_fd=held[-1])
            except FileNotFoundError:
                missing = [name, *(one for one in left if one not in ("", "."))]
                if ".." in missing:
                    raise
                return Walk(steps, missing, os.dup(held[-1]))
            held.append(found)
            names.append(name)
            step = _step("/".join(names), found)
            steps.append(step)
            if not step.is_link:
                continue
            links += 1
            if links > LINKS_MAX:
                raise OSError(40, "Too many levels of symbolic links", str(path))
            target = os.readlink("", dir_fd=found)
            os.close(held.pop())
            names.pop()
            if target.startswith("/"):
                while len(held) > 1:
                    os.close(held.pop())
                del names[1:]
            left.extendleft(reversed(target.split("/")))
        return Walk(steps, [], os.dup(held[-1]))
    finally:
        for descriptor in held:
            os.close(descriptor)


def _step(path: str, descriptor: int) -> Step:
    about = os.fstat(descriptor)
    return Step(path, about.st_uid, about.st_mode, (about.st_dev, about.st_ino))


def first_not_of(steps: list[Step], *owners: int) -> Step | None:
    """The first step that somebody else than these owners could have put there, or could change."""
    for step in steps:
        if step.uid not in owners or step.others_may_change:
            return step
    return None


def led_by_other(steps: list[Step], owner: int) -> Step | None:
    """The first step by which a third user could lead the way elsewhere: one that belongs neither to root
    nor to the owner of what it leads to, or one that everybody can change."""
    for step in steps:
        if step.uid not in (0, owner) or (step.others_may_change and step.mode & stat.S_IWOTH):
            return step
    return None


class Trust(NamedTuple):
    """Whom root believes already, because its own program could have been changed by them."""

    owners: frozenset[int]
    shared: frozenset[tuple[int, int]]
    """Directories on the way to this program: who can write there has changed the program itself."""


@functools.cache
def own_trust() -> Trust:
    """Root, and whoever owns a directory on the way to this very program.

    A checkout that an ordinary user made and that root runs (`sudo make demo`, a mounted folder in a
    container) is such a way: its PostgreSQL is as much to be believed as its pgraft.
    """
    with walk(os.path.dirname(os.path.abspath(pgraft.__file__))) as found:
        return Trust(
            frozenset({0, *(step.uid for step in found.steps)}), frozenset(step.file for step in found.steps)
        )


def who_else(path: Path | str) -> Step | None:
    """The first component by which somebody whom root does not believe could have put the file there.

    None: root may run, read or write it. OSError when it does not exist.
    """
    trust = own_trust()
    with walk(path) as found:
        if found.missing:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        steps = [step for step in found.steps if step.file not in trust.shared]
    return first_not_of(steps, *trust.owners)


def safe_search_path() -> str:
    """PATH without the folders in which another than root could have put a program."""
    kept = []
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        try:
            if os.path.isabs(folder) and who_else(folder) is None:
                kept.append(folder)
        except OSError:
            continue
    return os.pathsep.join(kept)
