"""python -m tests.soak: run a soak; `make soak` does."""

from __future__ import annotations

import argparse
import random
import sys

from tests.soak.form import Form
from tests.soak.network import Network
from tests.soak.processes import Processes
from tests.soak.run import Plan, repeat, soak
from tests.soak.storage import Storage

FORMS: dict[str, type[Form]] = {form.name: form for form in (Processes, Network, Storage)}


def main() -> int:
    """Exit code 0: no violation; 1: some; 2: this form cannot run here."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--form", choices=FORMS, default="processes")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--election-timeout-ms", type=int, default=1000)
    words = parser.parse_args()
    form = FORMS[words.form]()
    if reason := form.why_not():
        print(f"soak: skipped: {reason}")
        return 2
    seed = words.seed if words.seed is not None else random.SystemRandom().randrange(1_000_000)
    plan = Plan(
        seconds=words.minutes * 60,
        seed=seed,
        nodes=words.nodes,
        writers=words.writers,
        election_timeout_ms=words.election_timeout_ms,
    )
    print(f"soak: {repeat(form, plan)}", flush=True)
    report = soak(form, plan, say=lambda line: print(line, flush=True))
    print(report.text())
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
