"""The network form of the soak: each node in a network namespace, and a bad network between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.soak import netns
from tests.soak.elections import elections
from tests.soak.form import Fault, Form
from tests.soak.network_faults import KINDS, Leadership
from tests.soak.places import in_namespaces, router_plan
from tests.soak.proxy import proxy
from tests.soak.weather import Weather
from tests.support.pgcluster import Node

if TYPE_CHECKING:
    from tests.soak.field import Field


class Network(Form):
    """Partitions, loss, delay, stalls, resets, small pieces and damage; processes are left alone."""

    name = "network"

    def __init__(self) -> None:
        self._elections = 0
        self._weather: Weather | None = None
        self._leadership: Leadership | None = None

    def why_not(self) -> str:
        """Why there can be no namespaces here."""
        return netns.why_not()

    @contextlib.contextmanager
    def open(self, count: int, seed: int, home: Path) -> Iterator[None]:
        """The namespaces, and the proxy in the router's."""
        with (
            netns.network(count) as network,
            proxy(router_plan(network, seed), network.router.prefix) as relay,
        ):
            self._weather = Weather(network, relay)
            self._leadership = Leadership(self._weather)
            try:
                yield
            finally:
                self._leadership.close()

    @property
    def weather(self) -> Weather:
        """What stands between the nodes."""
        if self._weather is None:
            raise RuntimeError("the form is not open")
        return self._weather

    @property
    def leadership(self) -> Leadership:
        """Who watches for leaders."""
        if self._leadership is None:
            raise RuntimeError("the form is not open")
        return self._leadership

    def place(self, node: Node) -> None:
        """In its namespace."""
        in_namespaces(self.weather.network)(node)

    def faults(self) -> Sequence[Fault]:
        """One of each kind."""
        return [kind(self.weather, self.leadership) for kind in KINDS]

    def calm(self, field: Field) -> None:
        """A whole network."""
        self.weather.clear()
        self._elections = len(elections(field.nodes))

    def report(self) -> dict[str, int | float | str]:
        """What the faults have met, and how long there was no leader though there could be one."""
        return {
            "elections": self._elections,
            **self.weather.report(),
            "s without a leader while a majority was undisturbed, longest": round(self.leadership.worst_s, 2),
        }
