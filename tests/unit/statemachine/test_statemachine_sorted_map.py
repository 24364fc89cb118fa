"""The sorted map against a dict, with copies that must not notice what happens to the original."""

from __future__ import annotations

import random

import pytest

from pgraft.statemachine.sorted_map import BLOCK_KEYS_MAX, SortedMap, after_prefix


def ordered(
    plain: dict[bytes, bytes], start: bytes = b"", stop: bytes | None = None
) -> list[tuple[bytes, bytes]]:
    return [(k, v) for k, v in sorted(plain.items()) if k >= start and (stop is None or k < stop)]


@pytest.mark.parametrize("seed", range(4))
def test_it_does_what_a_sorted_dict_does_and_copies_stay_as_they_were(seed: int) -> None:
    rng = random.Random(seed)
    plain: dict[bytes, bytes] = {}
    found = SortedMap()
    copies: list[tuple[SortedMap, dict[bytes, bytes]]] = []
    for step in range(12_000):
        # Waves of growth and decay, so that blocks split and merge.
        grow = rng.random() < (0.8 if step // 3000 % 2 == 0 else 0.25)
        key = b"%06d" % rng.randrange(4000)
        if grow:
            value = b"%d" % step
            plain[key] = value
            found.put(key, value)
        elif key in plain:
            del plain[key]
            found.remove(key)
        if rng.random() < 0.002:
            copies.append((found.copy(), dict(plain)))
        if rng.random() < 0.01:
            probe, start = b"%06d" % rng.randrange(4000), b"%06d" % rng.randrange(4000)
            assert found.get(probe) == plain.get(probe)
            stop = rng.choice([None, b"%06d" % rng.randrange(4000)])
            assert list(found.items(start, stop)) == ordered(plain, start, stop)
        if copies and rng.random() < 0.002:
            found, plain = copies.pop(rng.randrange(len(copies)))
    assert list(found.items()) == ordered(plain)
    for copy, then in copies:
        assert (len(copy), list(copy.items())) == (len(then), ordered(then))
    for key in sorted(plain):
        found.remove(key)
    assert (len(found), list(found.items()), found.get(b"000001")) == (0, [], None)


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_blocks_are_never_above_their_limit_and_rarely_below_a_third_of_it(order: str) -> None:
    keys = [b"%08d" % number for number in range(20_000)]
    if order == "down":
        keys.reverse()
    elif order == "random":
        random.Random(1).shuffle(keys)
    found = SortedMap()
    for key in keys:
        found.put(key, b"")
    sizes = [len(block) for block in found._keys]
    assert max(sizes) <= BLOCK_KEYS_MAX
    assert sum(sizes) / len(sizes) > BLOCK_KEYS_MAX / 2
    for key in keys[::2] + keys[1::4]:
        found.remove(key)
    sizes = [len(block) for block in found._keys]
    assert sum(sizes) / len(sizes) > BLOCK_KEYS_MAX / 6
    assert [key for key, _ in found.items()] == sorted(keys[3::4])


def test_appending_keeps_blocks_full_and_leaves_copies_alone() -> None:
    found = SortedMap()
    for number in range(BLOCK_KEYS_MAX + 5):
        found.append(b"%05d" % number, b"")
    copy = found.copy()
    found.append(b"x", b"1")
    found.append(b"y", b"1")
    assert [len(block) for block in found._keys] == [BLOCK_KEYS_MAX, 7]
    assert (len(copy), copy.get(b"x"), found.get(b"x")) == (BLOCK_KEYS_MAX + 5, None, b"1")


@pytest.mark.parametrize("key", [b"a", b"b", b"zz"])
def test_removing_what_is_not_there_is_an_error(key: bytes) -> None:
    found = SortedMap()
    found.put(b"az", b"")
    with pytest.raises(KeyError):
        found.remove(key)


@pytest.mark.parametrize(
    ("prefix", "above"),
    [(b"", None), (b"a", b"b"), (b"a\xff\xff", b"b"), (b"\xff", None), ("é".encode(), b"\xc3\xaa")],
)
def test_what_follows_a_prefix(prefix: bytes, above: bytes | None) -> None:
    assert after_prefix(prefix) == above
