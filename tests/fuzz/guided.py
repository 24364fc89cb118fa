"""One fuzzer in this process, guided by coverage: `python -m tests.fuzz.guided TARGET ARGUMENT...`."""

from __future__ import annotations

import sys

import atheris

from tests.fuzz.targets import load


def main() -> None:
    """Does not return: libFuzzer ends the process."""
    with atheris.instrument_imports(include=["pgraft"]):
        target = load(sys.argv[1])
    atheris.Setup([sys.argv[0], f"-max_len={target.bytes_max}", *sys.argv[2:]], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
