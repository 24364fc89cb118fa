"""Random lives of a Store against a model in memory, opened again now and then."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pgraft.storage import files, open_store, store
from pgraft.storage.cache import EntryCache
from tests.support.storage_model import Model, state_of

STEPS = 400


@pytest.mark.parametrize("seed", range(5))
def test_store_is_what_the_model_is(data_dir: Path, monkeypatch: Any, seed: int) -> None:
    rng = random.Random(seed)
    for name in ("sync_data", "sync_file", "sync_dir"):
        monkeypatch.setattr(files, name, lambda _: None)
    monkeypatch.setattr(store, "EntryCache", lambda: EntryCache(rng.choice((1000, 10_000, 1_000_000))))
    segment_bytes = rng.choice((4096, 20_000, 1_000_000))
    model = Model(rng, data_bytes_max=rng.choice((200, 5000, 200_000)))
    it = open_store(data_dir, segment_bytes=segment_bytes)
    for step in range(STEPS):
        model.step(it)
        if rng.random() < 0.05:
            it.close()
            it = open_store(data_dir, segment_bytes=segment_bytes)
            assert it.recovered.cut_bytes == 0
        if step % 20 == 0:
            assert state_of(it) == model.state()
            check_parts(it, model, rng)
    it.close()
    assert state_of(open_then_close(data_dir, segment_bytes)) == model.state()


def open_then_close(data_dir: Path, segment_bytes: int) -> Any:
    """The Store, opened a last time."""
    return open_store(data_dir, segment_bytes=segment_bytes)


def check_parts(it: Any, model: Model, rng: random.Random) -> None:
    """Random ranges and limits: what comes back is a prefix of what was asked for, never empty."""
    for _ in range(10 if model.entries else 0):
        low = rng.randint(model.first, model.last)
        high = rng.randint(low + 1, model.last + 1)
        limit = rng.choice((0, 100, 5000, 2**64 - 1))
        wanted = model.entries[low - model.first : high - model.first]
        part = it.entries(low, high, limit)
        assert part
        assert part == wanted[: len(part)]
        assert limit < 2**64 - 1 or part == wanted
        changes = [e for e in wanted if e.type]
        assert it.conf_change_entries(low, high) == changes
