"""Whatever stands in a segment, the inspector prints a page or one line, and ends."""

from __future__ import annotations

import contextlib
import io
import random
import time

import pytest

from pgraft.inspector.cli import main
from pgraft.inspector.rings import RECORDS_WALKED_MAX, take_rings
from pgraft.shm import layout

ROUNDS = 40
SECONDS_MAX = 5.0
INTERESTING = (0, 1, 7, 8, 4095, 4096, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def look(name: str) -> None:
    for command in ("show", "json", "rings"):
        out, err = io.StringIO(), io.StringIO()
        begun = time.monotonic()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([command, name])
        assert time.monotonic() - begun < SECONDS_MAX
        if status == 0:
            assert out.getvalue()
            assert not err.getvalue()
        else:
            assert status == 1
            assert not out.getvalue()
            assert err.getvalue().count("\n") == 1


def _words_of_interest(node) -> list[int]:
    """Every word up to the end of the members block, the command page, slots, and both rings' starts."""
    header = node.segment.header
    words = list(range(layout.STATUS_OFFSET // 8 + 64))
    words += range(header["members_offset"] // 8, header["members_offset"] // 8 + 200)
    words += range(header["command_offset"] // 8, header["command_offset"] // 8 + 600)
    slots = header["slots_offset"] // 8
    words += [slots + i * layout.SLOT_BYTES // 8 + w for i in range(header["slot_count"]) for w in range(16)]
    return words


@pytest.mark.parametrize("seed", range(8))
def test_random_words_never_break_it(node, seed):
    chance = random.Random(seed)
    node.put_command(b"one")
    node.put_command(b"two" * 100)
    raw = node.segment.words_at(0, node.segment.size // 8 * 8)
    whole = bytes(node.segment.bytes_at(0, node.segment.size))
    words = _words_of_interest(node)
    protected = {layout.HEADER_WORDS["magic"], layout.HEADER_WORDS["layout_version"]}
    for _ in range(ROUNDS):
        for _ in range(chance.choice((1, 1, 2, 5, 50))):
            word = chance.choice(words)
            if word not in protected:
                raw[word] = chance.choice((chance.getrandbits(64), chance.choice(INTERESTING)))
        look(node.name)
        node.segment.bytes_at(0, node.segment.size)[:] = whole


def test_every_header_word_at_each_extreme(node):
    for name, number in layout.HEADER_WORDS.items():
        before = node.segment.header[name]
        for value in (0, 1, 2**32, 2**64 - 1):
            node.segment.header.raw[number] = value
            look(node.name)
        node.segment.header.raw[number] = before


def test_wholly_random_behind_a_good_magic(node):
    chance = random.Random(99)
    memory = node.segment.bytes_at(0, node.segment.size)
    for _ in range(3):
        memory[:] = chance.randbytes(node.segment.size)
        node.segment.header["magic"] = layout.MAGIC
        node.segment.header["layout_version"] = layout.LAYOUT_VERSION
        look(node.name)


def test_blocks_with_a_good_checksum_and_nonsense_inside(node):
    """A checksum only says that the worker wrote it, not that it makes sense."""
    import struct
    import zlib

    chance = random.Random(5)
    for offset, copy_bytes in (
        (layout.STATUS_OFFSET, layout.STATUS_COPY_BYTES),
        (node.segment.header["members_offset"], layout.MEMBERS_COPY_BYTES),
    ):
        for _ in range(10):
            used = chance.choice((16, 24, 64, 300, copy_bytes))
            body = struct.pack("<Q", used) + chance.randbytes(copy_bytes - 16)
            copy = struct.pack("<Q", zlib.crc32(body[: used - 8])) + body
            node.segment.bytes_at(offset, 2 * copy_bytes)[:] = copy + copy
            look(node.name)


def test_a_ring_full_of_the_smallest_records_does_not_take_long(node):
    header = node.segment.header
    ring = node.segment.bytes_at(header["inbound_offset"], header["inbound_bytes"])
    for at in range(0, header["inbound_bytes"], 16):
        ring[at : at + 8] = at.to_bytes(8, "little")
        ring[at + 8 : at + 16] = bytes(8)
    node.segment.network["inbound_head"] = header["inbound_bytes"]
    look(node.name)
    assert len(take_rings(node.segment).inbound_messages) == RECORDS_WALKED_MAX
