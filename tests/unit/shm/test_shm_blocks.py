"""The two-copy blocks: what is written comes out, whole, whatever happens to the writer."""

from __future__ import annotations

import pytest

from pgraft.shm import layout
from pgraft.shm.blocks import (
    BlockUnreadable,
    MemberRow,
    MembersWriter,
    Status,
    StatusRow,
    StatusWriter,
    read_members,
    read_status,
)
from pgraft.shm.segment import Segment
from tests.support.shm_peer import peer, status_of


def test_fields_stand_in_the_layouts_order() -> None:
    words = [*layout.STATUS_WORDS][2:-1]
    assert words == [name for name in Status.__struct_fields__ if name != "rows"]
    assert [*layout.STATUS_ROW_WORDS] == [*StatusRow.__struct_fields__]


def test_a_status_comes_out_as_it_went_in(segment: Segment) -> None:
    status = Status(*range(100, 114))
    status.rows = [StatusRow(*range(number, number + 11)) for number in range(layout.MEMBERS_MAX)]
    writer = StatusWriter(segment)
    writer.publish(status)
    got = read_status(segment)
    assert got.generation == 1
    assert got == status
    writer.publish(status_of(5))
    assert read_status(segment).generation == 2


def test_members_come_out_as_they_went_in(segment: Segment) -> None:
    members = tuple(
        MemberRow(
            number,
            "h" * (number * 4),
            7000 + number,
            number % 2 == 0,
            number % 3 == 0,
            2**64 - number,
            number,
        )
        for number in range(1, layout.MEMBERS_MAX + 1)
    )
    removed = tuple(range(1000, 1000 + layout.REMOVED_MAX))
    MembersWriter(segment).publish(members[::-1], removed[::-1])
    got = read_members(segment)
    assert got.members == members
    assert got.removed == removed
    assert got.generation == segment.worker["members_generation"] == 1


def test_what_was_never_written_is_said_to_be_so(segment: Segment) -> None:
    for read in (read_status, read_members):
        with pytest.raises(BlockUnreadable):
            read(segment)


def other_copy(segment: Segment) -> int:
    return layout.STATUS_OFFSET + (1 - segment.worker["status_selector"]) * layout.STATUS_COPY_BYTES


@pytest.mark.parametrize("written", [1, 8, 40, 256, 300])
def test_a_writer_that_dies_in_the_middle_leaves_the_other_copy(segment: Segment, written: int) -> None:
    writer = StatusWriter(segment)
    writer.publish(status_of(3))
    segment.bytes_at(other_copy(segment), layout.STATUS_COPY_BYTES)[:written] = b"\xa5" * written
    assert read_status(segment).term == 3
    after = StatusWriter(segment)
    after.publish(status_of(4))
    assert read_status(segment).term == 4


def test_damage_of_the_selected_copy_shows_the_other(segment: Segment) -> None:
    writer = StatusWriter(segment)
    for number in (3, 4):
        writer.publish(status_of(number))
    at = layout.STATUS_OFFSET + segment.worker["status_selector"] * layout.STATUS_COPY_BYTES
    segment.bytes_at(at, 64)[20] ^= 1
    assert read_status(segment).term == 3


def test_a_length_that_makes_no_sense_is_not_followed(segment: Segment) -> None:
    StatusWriter(segment).publish(status_of(3))
    for copy in range(2):
        at = layout.STATUS_OFFSET + copy * layout.STATUS_COPY_BYTES
        segment.bytes_at(at + 8, 8)[:] = b"\xff" * 8
    with pytest.raises(BlockUnreadable):
        read_status(segment)


def test_a_reader_never_sees_a_mix_under_a_hot_writer(segment: Segment) -> None:
    StatusWriter(segment).publish(status_of(0))
    count, reads, last = 30_000, 0, 0
    with peer("status", segment.name, count) as process:
        while process.poll() is None:
            got = read_status(segment)
            number = got.term
            assert number >= last
            expected = status_of(number)
            expected.generation = got.generation
            assert got == expected
            last = number
            reads += 1
    assert read_status(segment).term == count
    assert reads > 50
