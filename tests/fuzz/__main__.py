"""`python -m tests.fuzz [TARGET...] [--seconds 60 | --runs 1000] [--seed 1] [--grow]`

Without a name every fuzzer runs, one after another, and `--seconds` is what each of them gets.
`--grow` keeps what reached new code as the corpus.
"""

from __future__ import annotations

import argparse
import sys

from tests.fuzz import runner
from tests.fuzz.shim import run as shim
from tests.fuzz.shim.build import CannotBuild
from tests.fuzz.targets import MODULES, load

NAMES = (*MODULES, shim.NAME)


def main() -> int:
    """0 when every promise held."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--grow", action="store_true")
    given = parser.parse_args()
    unknown = set(given.targets) - set(NAMES)
    if unknown:
        parser.error(f"no fuzzer named {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if not given.seconds and not given.runs:
        parser.error("give --seconds or --runs")
    status = 0
    for name in given.targets or NAMES:
        status |= run_one(name, given)
    return status


def run_one(name: str, given: argparse.Namespace) -> int:
    """Run one fuzzer and say how it went."""
    limits = {"seconds": given.seconds, "runs": given.runs, "seed": given.seed}
    try:
        if name == shim.NAME:
            done = shim.fuzz(**limits, grow=given.grow)
        elif runner.can_be_guided():
            done = runner.guided(load(name), **limits, grow=given.grow)
        else:
            done = runner.mutated(load(name), **limits)
    except CannotBuild as error:
        print(f"{name}: not run: {error}", flush=True)
        return 1
    except runner.Finding as finding:
        print(f"{name}: {finding}", flush=True)
        return 1
    how = "guided by coverage" if done.guided else "seeded mutation"
    print(f"{name}: {done.inputs} inputs in {done.seconds:.0f} s, {how}, nothing found", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
