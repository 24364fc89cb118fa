"""Every crash point: after each recorded call, with what was not synced kept, lost or torn."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pgraft.raft.types import Entry
from pgraft.storage import open_store
from tests.support.storage_disk import Choice, RecordingDisk, crash
from tests.support.storage_model import Model, State, state_of

SEGMENT_BYTES = 4096
STEPS = 25
CRASHES_IN_RECOVERY = 3


def recorded_history(
    root: Path, monkeypatch: Any, seed: int
) -> tuple[RecordingDisk, list[tuple[int, bool, State]]]:
    """A random life of a Store; the states it passed through, each with the number of calls made when it
    was reached and whether it was durable then."""
    disk = RecordingDisk(root, monkeypatch)
    rng = random.Random(seed)
    model = Model(rng)
    history = [(0, True, model.state())]
    store = open_store(root, segment_bytes=SEGMENT_BYTES)
    history.append((len(disk.calls), True, model.state()))
    for _ in range(STEPS):
        name = model.step(store)
        history.append((len(disk.calls), name != "commit", model.state()))
        if rng.random() < 0.1:
            store.close()
            store = open_store(root, segment_bytes=SEGMENT_BYTES)
            history.append((len(disk.calls), True, model.state()))
    store.close()
    return disk, history


def check_allowed(found: State, history: list[tuple[int, bool, State]], calls: int) -> None:
    """`found` is the last durable state, a later one that was reached, or the one that was being made."""
    durable = max(i for i, (at, is_durable, _) in enumerate(history) if at <= calls and is_durable)
    reached = max(i for i, (at, _, _) in enumerate(history) if at <= calls)
    allowed = [state for _, _, state in history[durable : reached + 2]]
    assert found.essence in [state.essence for state in allowed]
    commits = [state.hard_state.commit for state in allowed]
    assert min(commits) <= found.hard_state.commit <= max(commits)
    assert found.snapshot.metadata.index <= found.hard_state.commit or not found.entries


def write_image(root: Path, image: dict[str, bytes]) -> None:
    """The image as files below `root`."""
    for name, data in image.items():
        path = root / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_bytes(data)


def go_on(root: Path, found: State) -> None:
    """A recovered Store takes another entry and still has everything when it is opened again."""
    store = open_store(root, segment_bytes=SEGMENT_BYTES)
    assert state_of(store) == found, "a second start finds something else than the first"
    entry = Entry(max(found.hard_state.term, 1), store.last_index() + 1, 0, b"after the crash")
    store.append(None, [entry])
    store.close()
    store = open_store(root, segment_bytes=SEGMENT_BYTES)
    assert store.entries(entry.index, entry.index + 1, 1000) == [entry]
    assert state_of(store).entries[:-1] == found.entries
    store.close()


@pytest.mark.parametrize("seed", range(6))
def test_every_crash_point_leaves_an_allowed_state(tmp_path: Path, monkeypatch: Any, seed: int) -> None:
    (tmp_path / "life").mkdir()
    disk, history = recorded_history(tmp_path / "life", monkeypatch, seed)
    rng = random.Random(seed)
    for calls in range(len(disk.calls) + 1):
        for number, what in enumerate(("all", "none", "some", "some")):
            image = crash(disk.calls[:calls], Choice(what, rng))
            root = tmp_path / f"{calls}-{number}"
            root.mkdir()
            again = RecordingDisk(root, monkeypatch)
            again.load(image)
            loaded = len(again.calls)
            store = open_store(root, segment_bytes=SEGMENT_BYTES)
            found = state_of(store)
            check_allowed(found, history, calls)
            store.close()
            recovery = list(again.calls)
            go_on(root, found)
            for _ in range(CRASHES_IN_RECOVERY if what == "some" else 0):
                twice = crash(recovery[: rng.randint(loaded, len(recovery))], Choice("some", rng))
                crash_again(tmp_path / "again", monkeypatch, twice, found)


def crash_again(root: Path, monkeypatch: Any, image: dict[str, bytes], found: State) -> None:
    """A crash while a crash was recovered from changes nothing about what is found."""
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    root.mkdir(exist_ok=True)
    RecordingDisk(root, monkeypatch).load(image)
    store = open_store(root, segment_bytes=SEGMENT_BYTES)
    assert state_of(store) == found
    store.close()
