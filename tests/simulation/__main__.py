"""`python -m tests.simulation`: run the simulator for a time, over seeds, or replay one.

`--break NAME` breaks the core or the storage on purpose first (see breaks.py).
"""

from __future__ import annotations

import argparse
import os
import sys

import coverage

from tests.simulation import breaks

STEPS_DEFAULT = 5000


def main() -> int:
    """0: nothing was violated; 1: something was; 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seconds", type=float, help="run for so long, over new seeds")
    parser.add_argument("--seeds", type=int, help="run so many seeds")
    parser.add_argument("--seed", type=int, help="replay this one seed")
    parser.add_argument("--first", type=int, help="the first seed (default: by chance)")
    parser.add_argument("--steps", type=int, default=STEPS_DEFAULT, help="steps with faults in each seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--break", dest="fault", choices=sorted(breaks.BREAKS), help="break this on purpose")
    parser.add_argument("--stop", action="store_true", help="stop at the first violation")
    parser.add_argument("--log", action="store_true", help="with --seed: show what the nodes log")
    parser.add_argument("--coverage", action="store_true", help="measure coverage of pgraft.raft (a tenth)")
    options = parser.parse_args()
    if options.fault:
        breaks.install(options.fault)
    importing = coverage.Coverage(branch=True, source=["pgraft.raft"], data_file=None)
    if options.coverage:
        importing.start()  # what runs at import counts, too
    from tests.simulation import report

    if options.coverage:
        importing.stop()
    if options.seed is not None:
        return report.replay(options.seed, options.steps, shows_log=options.log)
    if options.seconds is None and options.seeds is None:
        parser.error("one of --seconds, --seeds and --seed is needed")
    return report.run(options, importing)


if __name__ == "__main__":
    sys.exit(main())
