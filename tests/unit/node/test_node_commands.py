"""Commands off the ring: pieces, who is answered, and what a new worker tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.node.commands import RESTARTED, Answer, CommandSource
from pgraft.shm import place
from pgraft.shm.layout import PIECE_BYTES_MAX, CommandKind, Outcome, SlotState
from pgraft.shm.segment import Segment
from tests.support.node_sim import Backend, make_config, make_segment

BYTES_MAX = 64 * 1024
LONG = bytes(range(256)) * 40


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    config = make_config(tmp_path / "d", 1, (), command_ring_bytes=128 * 1024)
    made = make_segment(config)
    yield made
    made.close()
    place.unlink(made.name)


@pytest.fixture
def backend(segment: Segment) -> Backend:
    return Backend(segment)


@pytest.fixture
def source(segment: Segment, tmp_path: Path) -> Iterator[CommandSource]:
    made = CommandSource(segment, tmp_path / "d" / "run", BYTES_MAX)
    yield made
    made.close()


def test_a_command_with_everything_in_one_record(backend: Backend, source: CommandSource) -> None:
    number = backend.submit(
        3, CommandKind.ADD_NODE, b"host", arg1=4, arg2=7004, timeout_ms=1500, forward=True
    )
    assert source.pending()
    (command,) = source.take(now_ns=10)
    assert (command.kind, command.slot, command.number) == (CommandKind.ADD_NODE, 3, number)
    assert (command.arg1, command.arg2, command.data, command.forward) == (4, 7004, b"host", True)
    assert command.deadline_ns == 10 + 1500 * 1_000_000
    assert not source.pending()


def test_the_answer_goes_to_its_request_and_to_no_later_one(
    backend: Backend, source: CommandSource, segment: Segment
) -> None:
    number = backend.submit(0, CommandKind.INIT)
    (command,) = source.take(0)
    assert source.answer(command, Answer(Outcome.OK, 5))
    assert backend.answer(0, number) == (number, Outcome.OK, 5, 0, b"")
    assert segment.worker["commands_answered"] == 1
    late = backend.submit(0, CommandKind.INIT)
    assert not source.answer(command, Answer(Outcome.OK, 6))
    assert backend.answer(0, late) is None
    (command,) = source.take(0)
    backend.release(0)
    assert not source.answer(command, Answer(Outcome.OK, 7))


def test_pieces_of_several_sessions_are_put_together(backend: Backend, source: CommandSource) -> None:
    texts = {slot: bytes([slot]) + LONG for slot in range(5)}
    for slot, text in texts.items():
        backend.submit(slot, CommandKind.REPLICATE, text)
    assert len(LONG) > 2 * PIECE_BYTES_MAX
    assert {command.slot: command.data for command in source.take(0)} == texts


def test_pieces_that_an_earlier_worker_took_make_the_outcome_unknown(
    backend: Backend, source: CommandSource
) -> None:
    number = backend.submit(0, CommandKind.REPLICATE, LONG, pieces=slice(1, None))
    assert source.take(0) == []
    answer = backend.answer(0, number)
    assert answer is not None
    assert answer[1] == Outcome.ERROR_UNKNOWN


def test_pieces_of_a_session_that_went_away_are_given_up(backend: Backend, source: CommandSource) -> None:
    backend.submit(0, CommandKind.REPLICATE, LONG, pieces=slice(2))
    assert source.take(0) == []
    assert source._partial
    backend.release(0)
    backend.submit(1, CommandKind.INIT)
    source.take(0)
    assert not source._partial
    backend.submit(0, CommandKind.REPLICATE, b"next")
    assert [command.data for command in source.take(0)] == [b"next"]


def test_what_makes_no_sense_is_counted_and_passed_over(backend: Backend, source: CommandSource) -> None:
    backend.writer.put(b"short")
    backend.writer.publish()
    backend.submit(0, CommandKind.REPLICATE, b"x" * (BYTES_MAX + 1))
    backend.submit(1, CommandKind.REPLICATE, b"good")
    assert [command.data for command in source.take(0)] == [b"good"]
    assert source.malformed > 1


def test_a_new_worker_answers_what_the_earlier_one_took_and_nothing_else(
    backend: Backend, source: CommandSource, segment: Segment, tmp_path: Path
) -> None:
    taken, answered, told = (backend.submit(slot, CommandKind.REPLICATE, b"x") for slot in range(3))
    _, second, third = source.take(0)
    source.answer(second, Answer(Outcome.OK, 9))
    source.answer(third, Answer(Outcome.PROGRESS, payload=b"half way"))
    gone = backend.submit(3, CommandKind.REPLICATE, b"x")
    source.take(0)
    backend.release(3)
    waits = backend.submit(4, CommandKind.REPLICATE, b"x")
    backend.slots[5].words[0] = 1 << 32
    backend.slots[5].words[1] += 1
    backend.slots[5].words[3] = SlotState.PREPARING

    after = CommandSource(segment, tmp_path / "d" / "run", BYTES_MAX)
    assert after.answer_taken_earlier(RESTARTED) == 2
    for slot, number in ((0, taken), (2, told)):
        answer = backend.answer(slot, number)
        assert answer is not None
        assert answer[1] == Outcome.ERROR_UNKNOWN
    kept = backend.answer(1, answered)
    assert kept is not None
    assert kept[1] == Outcome.OK
    assert backend.answer(3, gone) is None
    assert backend.answer(4, waits) is None
    assert backend.answer(5, backend.slots[5].request_no) is None
    assert [command.slot for command in after.take(0)] == [4]
    after.close()


def test_those_who_wait_for_room_are_rung(backend: Backend, source: CommandSource, tmp_path: Path) -> None:
    import select

    from pgraft.shm.doorbell import open_bell

    for slot in range(4):
        backend.submit(slot, CommandKind.REPLICATE, b"x" * 20_000)
    backend.slots[7].words[4] = 1
    fd = open_bell(tmp_path / "d" / "run" / "slot.7.bell")
    source.take(0)
    assert select.select([fd], [], [], 0)[0]


def test_drain_answers_everything_at_once(backend: Backend, source: CommandSource) -> None:
    numbers = [backend.submit(slot, CommandKind.REPLICATE, b"x") for slot in range(5)]
    source.drain(lambda _: Answer(Outcome.ERROR_STATE), 0)
    assert all(backend.answer(slot, number) for slot, number in enumerate(numbers))
