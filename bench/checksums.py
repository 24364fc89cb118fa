"""What the running checksum of committed entries costs on the way of a commit (pgraft/node/checksums.py).

    python -m bench.checksums

Processor time of one process for each entry, in the batches that one session and 64 sessions make, as a share
of the raft worker's processor time for a commit there (figures of the README in this folder).
"""

from __future__ import annotations

import sys
import time

from pgraft.node.checksums import BLOCK, FIRST_INDEX, Checksums
from pgraft.raft.types import Entry

SIZES = (20, 100, 1000)
COMMIT_NS = {1: 350_000, 64: 20_000}
"""Processor time of the leader's worker for a commit, by entries in a batch."""
BLOCKS = 20
ROUNDS = 15


class Nothing:
    """No entries are read again."""

    def first_index(self) -> int:
        """As if all were kept."""
        return FIRST_INDEX

    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        """None are asked for."""
        raise RuntimeError("nothing is read again here")


def measure(batch: int, size: int) -> float:
    """Nanoseconds an entry, the best of some rounds."""
    count = BLOCKS * BLOCK
    data = [b"\x01" + bytes([number % 251]) * size for number in range(count)]
    entries = [Entry(7, index, 0, one) for index, one in enumerate(data, FIRST_INDEX)]
    batches = [entries[at : at + batch] for at in range(0, count, batch)]
    best = float("inf")
    for _ in range(ROUNDS):
        sums = Checksums(Nothing(), FIRST_INDEX - 1)
        began = time.process_time_ns()
        for one in batches:
            sums.extend(one)
        best = min(best, (time.process_time_ns() - began) / count)
    return best


def main() -> int:
    """Print the table."""
    print(f"{'entries a batch':>16}{'bytes':>8}{'ns an entry':>14}{'of a commit':>14}")
    for batch, commit_ns in COMMIT_NS.items():
        for size in SIZES:
            took = measure(batch, size)
            print(f"{batch:>16}{size:>8}{took:>14.0f}{took / commit_ns:>14.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
