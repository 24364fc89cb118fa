"""Damage in any byte of any file, every mixture of sectors, and crashes around the two small files."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pgraft.raft.types import Entry, HardState
from pgraft.storage import (
    DamagedLog,
    Identity,
    Peers,
    create_identity,
    files,
    load_identity,
    load_peers,
    open_store,
    save_peers,
    update_identity,
)
from tests.support.storage_disk import SECTOR_BYTES, Choice, RecordingDisk, crash
from tests.support.storage_model import Model, State, state_of
from tests.unit.storage.test_storage_damage import flip
from tests.unit.storage.test_storage_identity import IDENTITY

SEGMENT_BYTES = 4096


def _life(data_dir: Path, seed: int) -> State:
    """A directory with everything in it: identity, peers, a snapshot, several log files."""
    create_identity(data_dir, IDENTITY)
    save_peers(data_dir, Peers({1: 11, 3: 33}, {3: 2}))
    store = open_store(data_dir, segment_bytes=SEGMENT_BYTES)
    model = Model(random.Random(seed), data_bytes_max=900)
    while not model.snapshot.metadata.index or len(list((data_dir / "raft").glob("log-*"))) < 3:
        model.step(store)
    # What the last batch holds could not be told from a torn one; so it holds next to nothing.
    store.append(HardState(model.hard_state.term + 1, 0, model.hard_state.commit), [])
    state = state_of(store)
    store.close()
    return state


def _found(data_dir: Path) -> tuple[Identity | None, Peers, State]:
    """What a start reads, everything of it."""
    identity, peers = load_identity(data_dir), load_peers(data_dir)
    store = open_store(data_dir, segment_bytes=SEGMENT_BYTES)
    try:
        return identity, peers, state_of(store)
    finally:
        store.close()


@pytest.mark.parametrize(
    ("seed", "stride"), [(1, 23), *(pytest.param(seed, 1, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_a_flipped_byte_anywhere_is_found_or_harmless(data_dir: Path, seed: int, stride: int) -> None:
    """Never another state: the start is refused with the file's name, or what is found is what was there
    (the last batch, of a term and no entries, may be cut as torn; so may damage behind the last record)."""
    state = _life(data_dir, seed)
    whole = {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
    assert len(whole) >= 6
    refused = 0
    for path, data in whole.items():
        if path.name == "LOCK":
            continue
        for offset in range(seed % stride, len(data), stride):
            flip(path, offset, 1 << (offset + seed) % 8)
            error: DamagedLog | None = None
            try:
                identity, peers, found = _found(data_dir)
            except DamagedLog as caught:
                error = caught
            if error is not None:
                refused += 1
                assert error.subject == path, f"{path.name} {offset}: {error}"
                assert error.offset is not None, f"{path.name} {offset}: {error}"
                assert error.hint, f"{path.name} {offset}: {error}"
            else:
                assert (identity, peers) == (IDENTITY, Peers({1: 11, 3: 33}, {3: 2})), f"{path.name} {offset}"
                assert found.entries == state.entries, f"{path.name} {offset}"
                assert found.snapshot == state.snapshot, f"{path.name} {offset}"
                assert found.hard_state.term >= state.hard_state.term - 1, f"{path.name} {offset}"
            for other, content in whole.items():
                if not other.exists() or other.read_bytes() != content:
                    other.write_bytes(content)
    assert refused > 100


def test_every_mixture_of_sectors_of_a_batch(data_dir: Path) -> None:
    """Whatever subset of a batch's sectors reached the disk: the batch is there as a whole, or not at all."""
    store = open_store(data_dir, segment_bytes=64 * 1024)
    store.append(HardState(1, 1, 0), [Entry(1, 1, 0, b"before")])
    (path,) = (data_dir / "raft").glob("log-*")
    before, start = path.read_bytes(), store._log._end
    store.append(HardState(1, 1, 1), [Entry(1, 2, 0, b"x" * 3000), Entry(1, 3, 0, b"y" * 500)])
    after, end = path.read_bytes(), store._log._end
    store.close()
    sectors = range(start // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1)
    assert 7 <= len(sectors) <= 9
    lasts = set()
    for kept in itertools.product((False, True), repeat=len(sectors)):
        mixed = bytearray(before)
        for sector, keep in zip(sectors, kept, strict=True):
            if keep:
                at = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
                mixed[at] = after[at]
        path.write_bytes(mixed)
        again = open_store(data_dir, segment_bytes=64 * 1024)
        assert again.last_index() == (3 if all(kept) else 1), kept
        assert again.hard_state.commit == (1 if all(kept) else 0), kept
        lasts.add(again.last_index())
        again.close()
    assert lasts == {1, 3}


def test_every_crash_around_identity_and_peers(tmp_path: Path, monkeypatch: Any) -> None:
    """After each call, with what was not synced kept, lost, torn or in another order: old or new, whole."""
    life = tmp_path / "life"
    life.mkdir()
    disk = RecordingDisk(life, monkeypatch)
    identities: list[tuple[int, Identity | None]] = [(0, None)]
    peers: list[tuple[int, Peers]] = [(0, Peers())]
    create_identity(life, IDENTITY)
    identities.append((len(disk.calls), IDENTITY))
    for number in range(3):
        known = Peers({node: node * 11 for node in range(1, number + 2)}, {1: number + 1})
        save_peers(life, known)
        peers.append((len(disk.calls), known))
        changed = msgspec.structs.replace(IDENTITY, formed=True, election_timeout_ms=1000 + number)
        update_identity(life, changed)
        identities.append((len(disk.calls), changed))
    rng = random.Random(1)
    for calls in range(len(disk.calls) + 1):
        for number in range(12):
            image = crash(disk.calls[:calls], Choice(("all", "none", "some")[min(number, 2)], rng))
            root = tmp_path / f"{calls}-{number}"
            root.mkdir()
            RecordingDisk(root, monkeypatch).load(image)
            assert load_identity(root) in _allowed(identities, calls), (calls, number)
            assert load_peers(root) in _allowed(peers, calls), (calls, number)
            # What a crash left aside is in nobody's way.
            update_identity(root, IDENTITY)
            save_peers(root, Peers({7: 7}))
            assert (load_identity(root), load_peers(root)) == (IDENTITY, Peers({7: 7}))
            assert not list(root.glob(f"*{files.TEMPORARY_SUFFIX}"))


def _allowed(history: list[tuple[int, Any]], calls: int) -> list[Any]:
    """The last value that was durable after so many calls, and the one that was being made."""
    done = max(i for i, (at, _) in enumerate(history) if at <= calls)
    return [value for _, value in history[done : done + 2]]
