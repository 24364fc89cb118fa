"""What mutual TLS between the nodes costs: two clusters, with and without, measured in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from bench import latency, resources
from bench.cluster import PgraftCluster
from bench.samples import LoadFigures, Request, in_window, summarise

CLIENTS = (1, 64)


@dataclasses.dataclass(frozen=True)
class TlsFigures:
    """One kind of cluster: its loads, the memory of its largest node, processor time of the leader's
    network process."""

    loads: tuple[LoadFigures, ...]
    pss_mb: float
    network_us_per_commit: dict[int, float]


@dataclasses.dataclass(frozen=True)
class TlsCost:
    """The same machine, the same minutes, the same loads."""

    plain: TlsFigures
    tls: TlsFigures


class _Kind:
    """One of the two clusters and what was measured on it."""

    def __init__(self, cluster: PgraftCluster, root: Path) -> None:
        self.cluster = cluster
        self._root = root
        self._windows: dict[int, list[list[Request]]] = {count: [] for count in CLIENTS}
        self._network_us: dict[int, list[float]] = {count: [] for count in CLIENTS}
        self._pss_mb: list[float] = []

    def round(self, load_s: float, warm_up_s: float, value_bytes: int) -> str:
        """Measure once; what to say about it."""
        leader, followers = self.cluster.healthy()
        said = []
        for clients in CLIENTS:
            meter = resources.LoadMeter(leader, followers)
            requests = latency.pgbench_load(leader, self._root, clients, load_s, warm_up_s, value_bytes)
            self._network_us[clients].append(meter.us_per_commit(len(requests))["leader network"])
            window = in_window(requests, warm_up_s, load_s)
            self._windows[clients].append(window)
            figures = summarise([window], clients, load_s)
            said.append(f"{clients}: {figures.per_second:.0f}/s, mean {figures.mean_ms:.2f} ms")
        nodes = [leader, *followers]
        self._pss_mb.append(max(sum(map(resources.pss_mb, node.python_pids())) for node in nodes))
        return "; ".join(said)

    def figures(self, load_s: float) -> TlsFigures:
        """All rounds together."""
        return TlsFigures(
            loads=tuple(summarise(windows, count, load_s) for count, windows in self._windows.items()),
            pss_mb=max(self._pss_mb),
            network_us_per_commit={count: sum(us) / len(us) for count, us in self._network_us.items()},
        )


def measure(
    plain: PgraftCluster,
    tls: PgraftCluster,
    root: Path,
    rounds: int,
    times_s: tuple[float, float],
    value_bytes: int,
    say: Callable[[str], None],
) -> TlsCost:
    """`rounds` of both in turns, one stopped while the other is measured; `times_s`: load, warm-up.

    Both run, or have run, before; afterwards the plain one runs.
    """
    load_s, warm_up_s = times_s
    kinds = {"TLS": _Kind(tls, root), "plain": _Kind(plain, root)}
    plain.stop()
    for number in range(1, rounds + 1):
        for name, kind in kinds.items():
            kind.cluster.start()
            text = kind.round(load_s, warm_up_s, value_bytes)
            say(f"round {number} of {rounds}: {name}, sessions {text}")
            if number < rounds or kind.cluster is not plain:
                kind.cluster.stop()
    return TlsCost(plain=kinds["plain"].figures(load_s), tls=kinds["TLS"].figures(load_s))
