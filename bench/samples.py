"""What one load run gave: per-request times, and the figures made of them.

pgbench and h2load both write one line per finished request. Both go through `summarise`, so that
pgraft and etcd are measured by the same arithmetic over the same window.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

US_PER_S = 1_000_000


class BenchError(Exception):
    """A measurement could not be made; the text says which and why, in one line."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One finished request: when it ended (microseconds, any epoch) and how long it took."""

    end_us: int
    took_us: int


@dataclasses.dataclass(frozen=True)
class LoadFigures:
    """Figures of one run, or of several put together: times in ms, rate in requests a second."""

    clients: int
    requests: int
    per_second: float
    min_ms: float
    p50_ms: float
    mean_ms: float
    p99_ms: float
    each_per_second: tuple[float, ...] = ()
    """The rate of each round: how far apart they are says how quiet the machine was."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values already in order; `share` is 0 to 1."""
    if not ordered:
        raise BenchError("no samples to take a percentile of")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def in_window(requests: Iterable[Request], warm_up_s: float, seconds: float) -> list[Request]:
    """The requests that ended in the `seconds` behind the warm-up, counted from the first one's start."""
    everything = list(requests)
    if not everything:
        return []
    opened = min(r.end_us - r.took_us for r in everything) + int(warm_up_s * US_PER_S)
    closed = opened + int(seconds * US_PER_S)
    return [r for r in everything if opened <= r.end_us < closed]


def summarise(rounds: Sequence[Sequence[Request]], clients: int, seconds: float) -> LoadFigures:
    """Figures over all rounds; each round's window is `seconds` long.

    A time of 0 counts in the rate only: pgbench reads its clock once a wake-up, and writes 0 when it
    was put aside by the scheduler until the answer was there (pgbench.c, pg_time_now_lazy).
    """
    requests = sum(len(one) for one in rounds)
    ordered = sorted(r.took_us / 1000 for one in rounds for r in one if r.took_us > 0)
    if not ordered:
        raise BenchError(f"no request finished in the window with {clients} clients")
    return LoadFigures(
        clients=clients,
        requests=requests,
        per_second=requests / (seconds * len(rounds)),
        min_ms=ordered[0],
        p50_ms=percentile(ordered, 0.50),
        mean_ms=statistics.fmean(ordered),
        p99_ms=percentile(ordered, 0.99),
        each_per_second=tuple(len(one) / seconds for one in rounds),
    )
