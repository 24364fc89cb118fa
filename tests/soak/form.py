"""How a form of the soak plugs in: where its nodes run, and the faults that it brings.

The soak (`run.py`) makes the cluster in the places that the form gives, runs the clients, strikes faults
at moments and with choices that follow from the seed, mends each when its time is over, and checks. A form
says nothing of clients, checking, progress or reports.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.support.pgcluster import Node

if TYPE_CHECKING:
    from tests.soak.field import Field


def nothing() -> None:
    """The mending of what mends itself."""


class Struck(NamedTuple):
    """A fault that stands now. `mend` is called after `lasts_s`, in a thread of its own; what it raises is a
    violation."""

    what: str
    lasts_s: float = 0.0
    mend: Callable[[], None] = nothing


class Fault:
    """One kind of fault."""

    kind = ""
    """Its row of the report, as "kill worker"."""
    weight = 1
    """How often it is chosen, beside the others' weights."""

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """Do it. None when it cannot be done now (the process is not there), which is counted, too.

        All choices come from `chance`, in the same number and order whatever the cluster is doing.
        Must return soon: the next fault waits. Claim what must not be struck twice at a time with
        `field.claim`.
        """
        raise NotImplementedError


class Form:
    """One form of the soak. Used once: `open`, then everything else, then the end of `open`."""

    name = ""
    pause_s: tuple[float, float] = (0.5, 2.5)
    """Between two strikes. Faults overlap when they last longer than this."""

    def why_not(self) -> str:
        """Why it cannot run here; empty when it can."""
        return ""

    @contextlib.contextmanager
    def open(self, count: int, seed: int, home: Path) -> Iterator[None]:
        """Everything that must be there before the nodes and after them. `home` outlives a failing run."""
        yield

    def settings(self) -> dict[str, str]:
        """pgraft settings of every node, without "pgraft."; they go over the soak's."""
        return {}

    def place(self, node: Node) -> None:
        """Say where a node runs and how it is reached, before it is made (see `places.py`)."""

    def prepare(self, node: Node) -> None:
        """Called for each node after it was made and before its first start."""

    def faults(self) -> Sequence[Fault]:
        """Those that it brings. The nodes are there."""
        return ()

    def calm(self, field: Field) -> None:
        """All mends were called; take away what may still stand. Progress is expected from here on."""

    def report(self) -> dict[str, int | float | str]:
        """Rows for the report, after `calm`."""
        return {}
