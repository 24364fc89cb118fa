"""`fill.py DATA_DIR COUNT`: entries for the log of a stopped node, in a cluster of one.

Through pgraft.storage, so that the files are what a worker would have written, in a fraction of the
time that a million commits take.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pgraft.raft.types import Entry, HardState
from pgraft.storage import lock_data_dir, open_store

BATCH_ENTRIES = 1000
VALUE = b"x" * 100
SEGMENT_BYTES = 16 * 1024 * 1024


def fill(data_dir: Path, count: int) -> None:
    """Append `count` committed entries of 100 bytes behind what is there."""
    with lock_data_dir(data_dir):
        store = open_store(data_dir, segment_bytes=SEGMENT_BYTES)
        state = store.hard_state
        at = store.last_index() + 1
        end = at + count
        while at < end:
            batch = [Entry(state.term, index, 0, VALUE) for index in range(at, min(at + BATCH_ENTRIES, end))]
            # A cluster of one commits what it has written; the index goes out with the next batch.
            store.append(HardState(state.term, state.vote, at - 1), batch)
            at = batch[-1].index + 1
        store.append(HardState(state.term, state.vote, end - 1), [])
        store.close()


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]))
