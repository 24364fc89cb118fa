"""What a fuzzer is: a name, and a function that takes bytes and fails when a promise is broken.

The function raises anything but nothing: what the code under test may raise is caught in the target, by
name. It must not depend on earlier inputs, so that one input replays a failure.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

_Item = TypeVar("_Item")
U64_MAX = 2**64 - 1
EXTREMES = (
    0, 1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62 - 1, 2**62,
    2**62 + 1, 2**63 - 1, 2**63, U64_MAX - 1, U64_MAX,
)  # fmt: skip


class Target(msgspec.Struct, frozen=True):
    """One fuzzer. `seeds` are inputs to begin with, beside the kept corpus."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...] = ()
    bytes_max: int = 4096


class Taker:
    """Cuts decisions off an input, from its start; an input that is used up gives zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that are not used yet."""
        return len(self._data) - self._at

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end."""
        start = self._at
        self._at = min(len(self._data), start + count)
        return self._data[start : self._at]

    def rest(self) -> bytes:
        """All that is left."""
        return self.bytes(self.left)

    def byte(self) -> int:
        """0 to 255."""
        found = self.bytes(1)
        return found[0] if found else 0

    def below(self, limit: int) -> int:
        """0 to limit - 1, of limits up to 65536."""
        if limit <= 256:
            return self.byte() % limit
        return int.from_bytes(self.bytes(2), "little") % limit

    def chance(self, one_in: int) -> bool:
        """True once in `one_in`; False when the input is used up."""
        return self.byte() % one_in == 1

    def choice(self, items: Sequence[_Item]) -> _Item:
        """One of them."""
        return items[self.below(len(items))]

    def number(self) -> int:
        """Any unsigned word: small, an extreme, or all of its bits."""
        how = self.byte() % 4
        if how < 2:
            return self.byte()
        if how == 2:
            return self.choice(EXTREMES)
        return int.from_bytes(self.bytes(8), "little")

    def near(self, *values: int) -> int:
        """One of `values`, give or take one, or any number at all; never below zero."""
        how = self.byte()
        if how % 8 == 7:
            return self.number()
        value = values[how // 8 % len(values)]
        return max(0, value + (0, 0, 0, 0, 1, -1, 2)[how % 8 % 7])

    def text(self) -> str:
        """Some text, not always short, not always ASCII."""
        raw = self.bytes(self.byte() % 24)
        text = raw.decode("utf-8", "replace")
        return text * 2000 if self.chance(40) else text


def chunks(data: bytes, taker: Taker) -> list[bytes]:
    """`data` in pieces, as a network delivers it."""
    pieces = []
    at = 0
    while at < len(data):
        size = taker.choice((1, 3, 15, 16, 17, 64, 4096, 1 << 20))
        pieces.append(data[at : at + size])
        at += size
        if len(pieces) > 64:
            pieces.append(data[at:])
            break
    return pieces


def noise(count: int, size: int) -> tuple[bytes, ...]:
    """Seeded random inputs, for a target that has no better ones to begin with."""
    return tuple(random.Random(seed).randbytes(size) for seed in range(count))
