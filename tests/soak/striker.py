"""Strikes a form's faults at moments that follow from the seed, and has them mended."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

from tests.soak.field import Field
from tests.soak.form import Fault, Form, Struck

MEND_WAIT_S = 150


class Striker:
    """Counts what was struck, by kind; `missed` is what could not be done at its moment."""

    def __init__(self, form: Form, seed: int) -> None:
        self._form = form
        self._seed = seed
        self._timers: list[threading.Timer] = []
        self.struck: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.failures: list[str] = []
        """Mends that raised, or did not end."""
        self.last = "none"

    def strikes(self, field: Field, end: float) -> Iterator[None]:
        """Strike until `end` (time.monotonic()); yields after each."""
        faults = list(self._form.faults())
        weights = [fault.weight for fault in faults]
        number = 0
        while True:
            # A generator for each fault: what one draws does not move the others.
            chance = random.Random(f"{self._seed}/{number}")
            number += 1
            due = time.monotonic() + chance.uniform(*self._form.pause_s)
            if due > end:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            self._strike(chance.choices(faults, weights)[0], field, chance)
            yield

    def _strike(self, fault: Fault, field: Field, chance: random.Random) -> None:
        struck = fault.strike(field, chance)
        if struck is None:
            self.missed[fault.kind] += 1
            return
        self.struck[fault.kind] += 1
        self.last = f"{fault.kind}, {struck.what}"
        timer = threading.Timer(struck.lasts_s, self._mend, (fault, struck))
        timer.daemon = True
        self._timers = [one for one in self._timers if one.is_alive()] + [timer]
        timer.start()

    def _mend(self, fault: Fault, struck: Struck) -> None:
        try:
            struck.mend()
        except BaseException as error:  # noqa: BLE001 - becomes a violation
            self.failures.append(f"mending {fault.kind} ({struck.what}): {error}")

    def mend_all(self, field: Field) -> None:
        """Wait until every fault has been mended."""
        end = time.monotonic() + MEND_WAIT_S
        for timer in self._timers:
            timer.join(max(0.0, end - time.monotonic()))
            if timer.is_alive():
                self.failures.append(f"a fault was not mended within {MEND_WAIT_S} s")
        self._form.calm(field)
