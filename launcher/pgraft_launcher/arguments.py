"""What more than one command's arguments have in common."""

from __future__ import annotations

import argparse


def seconds(text: str) -> int:
    """-t, or PGCTLTIMEOUT."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return int(text)
