"""Words: named, aligned, and never seen half written."""

from __future__ import annotations

from pgraft.shm import layout
from pgraft.shm.segment import Segment
from pgraft.shm.words import now_ns
from tests.support.shm_peer import PATTERNS, peer


def test_words_by_name(segment: Segment) -> None:
    segment.worker["elections"] = 2**64 - 1
    segment.worker.add("elections", 3)
    assert segment.worker["elections"] == 2
    assert segment.worker.as_dict()["elections"] == 2
    assert set(segment.worker.as_dict()) == set(layout.WORKER_WORDS)
    ref = segment.worker_ref("elections")
    ref.store(9)
    assert ref.load() == segment.worker["elections"] == 9


def test_a_word_is_eight_aligned_bytes_in_the_native_order(segment: Segment) -> None:
    segment.worker["state"] = 0x0102030405060708
    at = layout.WORKER_PAGE + 8 * layout.WORKER_WORDS["state"]
    assert bytes(segment.bytes_at(at, 8)) == bytes(range(8, 0, -1))


def test_another_process_never_sees_half_a_word(segment: Segment) -> None:
    segment.worker["lease_end_ns"] = PATTERNS[0]
    raw, number = segment.worker.raw, layout.WORKER_WORDS["lease_end_ns"]
    seen: set[int] = set()
    with peer("words", segment.name, 1) as process:
        while process.poll() is None:
            seen.update([raw[number] for _ in range(20_000)])
    assert seen == set(PATTERNS)


def test_the_clock_counts_in_nanoseconds_and_never_goes_back() -> None:
    times = [now_ns() for _ in range(1000)]
    assert times == sorted(times)
    assert times[-1] - times[0] < 10**9
