"""Every crash point: after each recorded call, with what was not synced kept, lost or torn."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pgraft.raft.types import ConfState, Entry, HardState, Snapshot, SnapshotMetadata
from pgraft.storage import StorageError, open_store
from tests.support.storage_disk import Choice, Killed, RecordingDisk, crash
from tests.support.storage_model import Model, State, state_of

SEGMENT_BYTES = 4096
STEPS = 20
CRASHES_LATER = 2
SEED_OF_KILLS = 3


def recorded_history(
    root: Path, monkeypatch: Any, seed: int
) -> tuple[RecordingDisk, list[tuple[int, bool, State]]]:
    """A random life of a Store; the states it passed through, each with the number of calls made when it
    was reached and whether it was durable then."""
    disk = RecordingDisk(root, monkeypatch)
    history = [(0, True, Model(random.Random()).state())]
    live(disk, seed, history)
    return disk, history


def live(disk: RecordingDisk, seed: int, history: list[tuple[int, bool, State]]) -> None:
    """The random life itself; the same for the same seed."""
    rng = random.Random(seed)
    model = Model(rng)
    store = open_store(disk.root, segment_bytes=SEGMENT_BYTES)
    history.append((len(disk.calls), True, model.state()))
    for _ in range(STEPS):
        name = model.step(store)
        history.append((len(disk.calls), name != "commit", model.state()))
        if rng.random() < 0.1:
            store.close()
            store = open_store(disk.root, segment_bytes=SEGMENT_BYTES)
            history.append((len(disk.calls), True, model.state()))
    store.close()


def check_allowed(found: State, history: list[tuple[int, bool, State]], calls: int) -> None:
    """`found` is the last durable state, a later one that was reached, or the one that was being made."""
    durable = max(i for i, (at, is_durable, _) in enumerate(history) if at <= calls and is_durable)
    reached = max(i for i, (at, _, _) in enumerate(history) if at <= calls)
    allowed = [state for _, _, state in history[durable : reached + 2]]
    assert found.essence in [state.essence for state in allowed]
    commits = [state.hard_state.commit for state in allowed]
    assert min(commits) <= found.hard_state.commit <= max(commits)
    assert found.snapshot.metadata.index <= found.hard_state.commit or not found.entries


def second_life(disk: RecordingDisk, found: State, rng: random.Random) -> list[tuple[int, bool, State]]:
    """The Store is opened once more, lives on for some steps on the recovered state, and its history."""
    store = open_store(disk.root, segment_bytes=SEGMENT_BYTES)
    assert state_of(store) == found, "a second start finds something else than the first"
    model = Model.of(found, rng, data_bytes_max=200)
    history = [(0, True, found)]
    for _ in range(rng.choice((1, 2, 5))):
        name = model.step(store)
        history.append((len(disk.calls), name != "commit", model.state()))
    assert state_of(store) == model.state()
    store.close()
    return history


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 30))]
)
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
            recovered = len(again.calls)
            later = second_life(again, found, rng)
            for _ in range(CRASHES_LATER):
                at = rng.randint(loaded, recovered)
                image = crash(again.calls[:at], Choice("some", rng))
                assert recovered_from(tmp_path / "again", monkeypatch, image) == found
                at = rng.randint(recovered, len(again.calls))
                image = crash(again.calls[:at], Choice(rng.choice(("all", "none", "some")), rng))
                check_allowed(recovered_from(tmp_path / "again", monkeypatch, image), later, at)


def recovered_from(root: Path, monkeypatch: Any, image: dict[str, bytes]) -> State:
    """What a start finds on an image."""
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    root.mkdir(exist_ok=True)
    RecordingDisk(root, monkeypatch).load(image)
    store = open_store(root, segment_bytes=SEGMENT_BYTES)
    found = state_of(store)
    store.close()
    return found


@pytest.mark.parametrize("sync_fails", [False, True])
def test_what_a_killed_process_left_in_the_kernel_is_durable_before_it_counts(
    tmp_path: Path, monkeypatch: Any, sync_fails: bool
) -> None:
    (tmp_path / "whole").mkdir()
    whole, history = recorded_history(tmp_path / "whole", monkeypatch, SEED_OF_KILLS)
    none = Choice("none", random.Random())
    for number in range(len(whole.calls)):
        if sync_fails and whole.calls[number].name != "sync":
            continue
        root = tmp_path / str(number)
        root.mkdir()
        disk = RecordingDisk(root, monkeypatch)
        disk.kill_at, disk.sync_fails = number, sync_fails
        with pytest.raises((Killed, StorageError)):
            live(disk, SEED_OF_KILLS, [])
        store = open_store(root, segment_bytes=SEGMENT_BYTES)
        found = state_of(store)
        check_allowed(found, history, number)
        # Now the power goes, before anything else is written.
        image = crash(disk.calls, none)
        assert recovered_from(tmp_path / "again", monkeypatch, image) == found
        store.close()


def test_an_unfinished_installation_never_comes_back(tmp_path: Path, monkeypatch: Any) -> None:
    """Its file's number is given again, so its removal must be durable before that."""
    disk = RecordingDisk(tmp_path, monkeypatch)
    store = open_store(tmp_path, segment_bytes=SEGMENT_BYTES)
    store.append(HardState(1, 0, 0), [Entry(1, 1, 0, b"one")])
    snapshot = Snapshot(SnapshotMetadata(ConfState((1,)), 9, 1))
    # The process dies when the new file has its name and the snapshot has not.
    disk.kill_at = len(disk.calls) + 6
    with pytest.raises(Killed):
        store.install_snapshot(snapshot)
    assert len(list((tmp_path / "raft").glob("log-*.pgl"))) == 2
    store = open_store(tmp_path, segment_bytes=SEGMENT_BYTES)
    assert len(list((tmp_path / "raft").glob("log-*.pgl"))) == 1
    store.append(None, [Entry(1, 2, 0, b"two" * SEGMENT_BYTES)])
    renamed = max(number for number, call in enumerate(disk.calls) if call.name == "rename")
    for seed in range(60):
        image = crash(disk.calls[: renamed + 1], Choice("some", random.Random(seed)))
        again = recovered_from(tmp_path / "again", monkeypatch, image)
        assert [entry[1] for entry in again.entries] == [1]
    store.close()
