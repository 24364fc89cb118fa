"""A follower whose committed entries are not its leader's: found, named, and never a false alarm."""

from __future__ import annotations

import random

import pytest

from pgraft.node import checksums, divergence
from pgraft.node.checksums import Checksums, block_of, first_of, last_of
from pgraft.node.divergence import AUDIT_EVERY_NS, ENDS_MAX, Audit, Diverged, conflict
from pgraft.node.envelope import Digest
from pgraft.raft import MemoryStorage
from pgraft.raft.log import RaftLog
from pgraft.raft.types import ConfState, Entry, Message, MessageType, Snapshot, SnapshotMetadata

BLOCK = 8
TIMEOUT_NS = 10**9
STEP_NS = 50_000_000
M = MessageType


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "BLOCK", BLOCK)
    monkeypatch.setattr(checksums, "PIECE_BYTES", 70)


class Log:
    """Entries that a node keeps, as its store has them."""

    def __init__(self, entries: list[Entry], snapshot: int = 0) -> None:
        self.all = entries
        self.snapshot = snapshot

    def first_index(self) -> int:
        return self.snapshot + 1

    def entries(self, lo: int, hi: int, max_size: int) -> list[Entry]:
        assert self.snapshot < lo < hi <= len(self.all) + 1
        found: list[Entry] = []
        size = 0
        for entry in self.all[lo - 1 : hi - 1]:
            size += len(entry.data)
            if found and size > max_size:
                break
            found.append(entry)
        return found


def history(count: int, seed: int = 1) -> list[Entry]:
    chance = random.Random(seed)
    term, entries = 2, []
    for index in range(1, count + 1):
        term += chance.random() < 0.1
        entries.append(Entry(term, index, 0, chance.randbytes(chance.randrange(20))))
    return entries


def expected(entries: list[Entry], index: int) -> int:
    """From the definition: all of its block, at once."""
    run = checksums._Run(block_of(index))
    run.take(entries[first_of(block_of(index)) - 1 : index])
    return run.crc


# --- checksums ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_checksums_do_not_depend_on_how_a_node_came_to_its_entries(seed: int) -> None:
    """Any start, snapshot, compaction and batches; what is known is right, and what is not known is said."""
    chance = random.Random(seed)
    entries = history(120, seed)
    snapshot = chance.randrange(40)
    applied = snapshot + chance.randrange(40)
    log = Log(entries, snapshot)
    sums = Checksums(log, applied)
    while applied < len(entries):
        match chance.randrange(6):
            case 0:
                sums.work()
            case 1:
                sums.want(chance.randrange(1, block_of(len(entries)) + 1))
            case 2 if log.snapshot < applied:
                log.snapshot = chance.randrange(log.snapshot, applied + 1)
            case 3 if chance.random() < 0.1:
                log.snapshot = applied = min(len(entries), applied + chance.randrange(1, 30))
                sums.reset(applied)
            case _:
                count = chance.randrange(1, 2 * BLOCK + 3)
                sums.extend(entries[applied : applied + count])
                applied = min(len(entries), applied + count)
        assert sums.applied == applied
        for index in range(1, applied + 1):
            value = sums.at(index)
            assert value is None or value == expected(entries, index), index
    for _ in range(100):
        sums.work()
    start = first_of(block_of(applied))
    if log.snapshot < start:
        assert sums.newest() == (applied, expected(entries, applied))


def test_a_block_is_read_again_in_pieces() -> None:
    entries = history(5 * BLOCK)
    sums = Checksums(Log(entries), len(entries))
    assert sums.end(2) is None
    steps = 0
    sums.want(2)
    while sums.reads:
        sums.work()
        steps += 1
    assert steps > 1
    values = sums.values(2)
    assert values is not None
    assert list(values) == [expected(entries, index) for index in range(first_of(2), last_of(2) + 1)]
    assert sums.end(2) == values[-1]


def test_two_blocks_that_are_wanted_in_turn_are_both_read() -> None:
    """Two followers ask their leader for different blocks: neither keeps the other out."""
    entries = history(5 * BLOCK)
    sums = Checksums(Log(entries), len(entries))
    got: set[int] = set()
    for _ in range(20):
        for block in (1, 2):
            if sums.values(block) is None:
                sums.want(block)
            else:
                got.add(block)
        sums.work()
    assert got == {1, 2}


def test_terms_of_any_size_and_order_of_entries_count() -> None:
    def crc(*pairs: tuple[int, bytes]) -> int:
        run = checksums._Run(1)
        run.take([Entry(term, index, 0, data) for index, (term, data) in enumerate(pairs, 1)])
        return run.crc

    plain = crc((2, b"a"), (2, b"b"))
    assert plain != crc((2, b"b"), (2, b"a"))
    assert plain != crc((2, b"ab"), (2, b""))
    assert plain != crc((2, b"a"), (3, b"b"))
    assert crc((2**62, b"a")) == crc((2**62, b"a"))


# --- a leader and a follower -------------------------------------------------------------------------------


class Pair:
    """A leader (node 1, term 9) and a follower (node 2), whose words reach each other at once."""

    def __init__(self, there: Log, here: Log, applied: tuple[int, int], *, answers: bool = True) -> None:
        self.logs = (there, here)
        self.applied = list(applied)
        self.now = 10**12
        self.sums = tuple(Checksums(log, at) for log, at in zip(self.logs, applied, strict=True))
        self.leader = Audit(1, self.sums[0], TIMEOUT_NS)
        self.follower = Audit(2, self.sums[1], TIMEOUT_NS)
        self.answers = answers
        self.asked: list[int] = []
        for audit in (self.leader, self.follower):
            audit.follow(1, 9)

    def apply(self, who: int, upto: int) -> None:
        new = self.logs[who].all[self.applied[who] : upto]
        if new:
            self.sums[who].extend(new)
            self.applied[who] = upto

    def beat(self) -> None:
        """A heartbeat and its answer, and both nodes' turns."""
        self.now += STEP_NS
        word = self.leader.word(2)
        if word is not None:
            if not self.answers:
                word.answers, word.values = 0, b""
            self.follower.hear(word, self.now)
        question = self.follower.question(self.now)
        if question is not None:
            self.asked.append(question.asks)
            self.leader.asked(2, question)
        self.leader.poll(self.now)
        self.follower.poll(self.now)

    def beats(self, seconds: float) -> None:
        for _ in range(int(seconds * 1e9 / STEP_NS)):
            self.beat()


@pytest.mark.parametrize("seed", range(60))
def test_nodes_with_the_same_entries_never_differ(seed: int) -> None:
    """Whatever each has applied, keeps, compacts and forgets in a restart."""
    chance = random.Random(seed)
    entries = history(200, seed)
    logs = (Log(entries, chance.randrange(30)), Log(entries, chance.randrange(30)))
    pair = Pair(*logs, (chance.randrange(30, 60), chance.randrange(30, 60)))
    for _ in range(300):
        who = chance.randrange(2)
        match chance.randrange(8):
            case 0 | 1:
                pair.apply(who, min(200, pair.applied[who] + chance.randrange(1, 12)))
            case 2:
                logs[who].snapshot = chance.randrange(logs[who].snapshot, pair.applied[who] + 1)
            case 3 if chance.random() < 0.2:
                sums = Checksums(logs[who], pair.applied[who])
                pair.sums = (sums, pair.sums[1]) if who == 0 else (pair.sums[0], sums)
                audit = Audit(who + 1, sums, TIMEOUT_NS)
                audit.follow(1, 9)
                if who:
                    pair.follower = audit
                else:
                    pair.leader = audit
                    pair.follower.reconnected(1)
            case _:
                pair.beat()


@pytest.mark.parametrize("seed", range(40))
def test_the_first_entry_that_differs_is_named_wherever_it_stands(seed: int) -> None:
    """In the block that is being filled or in any older one, and whatever differs behind it."""
    chance = random.Random(seed)
    entries = history(100, seed)
    other = history(100, seed)
    wrong, likely = chance.randrange(2, 101), chance.choice((0, 0.8))
    other[wrong - 1].data += b"!"
    for later in range(wrong, min(100, wrong + 3 * BLOCK)):
        if chance.random() < likely:
            other[later].data += b"?"
    pair = Pair(Log(entries), Log(other), (100, 100))
    with pytest.raises(Diverged) as found:
        pair.beats(30)
    assert str(found.value).startswith(
        f"entry {wrong}, which is committed, is another one here than on node 1,"
    )
    assert f"pgraft_log_get_entry({wrong})" in found.value.hint
    assert "pgraft_remove_node(2)" in found.value.hint


def test_an_entry_is_named_at_once_where_all_before_it_was_compared() -> None:
    entries, other = history(30), history(30)
    other[20].data += b"!"
    pair = Pair(Log(entries), Log(other), (9, 9), answers=False)
    for upto in (17, 20):
        pair.beat()
        for who in (0, 1):
            pair.apply(who, upto)
    pair.beat()
    for who in (0, 1):
        pair.apply(who, 21)
    with pytest.raises(Diverged, match="entry 21,"):
        pair.beat()


def test_a_follower_that_lags_compares_when_it_gets_there() -> None:
    """The oldest word is kept: newer ones are further away each time."""
    entries, other = history(30), history(30)
    other[9].data += b"!"
    pair = Pair(Log(entries), Log(other), (9, 9), answers=False)
    pair.beats(0.2)
    for upto in (10, 12):
        pair.apply(0, upto)
        pair.beat()
    pair.apply(1, 10)
    with pytest.raises(Diverged, match="entry 10,"):
        pair.beats(2)


def test_a_leader_that_does_not_answer_is_waited_for_one_election_timeout() -> None:
    entries, other = history(30), history(30)
    other[26].data += b"!"
    pair = Pair(Log(entries), Log(other), (30, 30), answers=False)
    while not pair.follower.suspects:
        pair.beat()
    began = pair.now
    with pytest.raises(Diverged, match="one of the entries 26 to 30,"):
        pair.beats(5)
    assert TIMEOUT_NS <= pair.now - began <= TIMEOUT_NS + STEP_NS


def test_the_next_leader_may_agree_with_this_node() -> None:
    """Then it was the earlier one that differed, and that one will find out."""
    entries, odd = history(30), history(30)
    odd[26].data += b"!"
    pair = Pair(Log(odd), Log(entries), (30, 30), answers=False)
    while not pair.follower.suspects:
        pair.beat()
    good = Pair(Log(entries), Log(entries), (30, 30))
    good.follower, good.now = pair.follower, pair.now
    good.sums = (good.sums[0], pair.sums[1])
    good.follower.follow(1, 10)
    good.beats(5)
    assert not good.follower.suspects


def test_all_that_is_kept_is_asked_for_newest_first_and_one_a_second() -> None:
    entries = history(10 * BLOCK + 3)
    pair = Pair(Log(entries, BLOCK), Log(entries, 2 * BLOCK), (len(entries), len(entries)))
    pair.beats(20)
    assert pair.asked == [10, 9, 8, 7, 6, 5, 4, 3]
    assert AUDIT_EVERY_NS == 10**9
    pair.asked.clear()
    pair.follower.reconnected(1)
    pair.beats(20)
    assert pair.asked == [10, 9, 8, 7, 6, 5, 4, 3]


def test_blocks_that_no_heartbeat_covered_are_asked_for() -> None:
    """More than fit into one word were applied between two heartbeats."""
    count = (ENDS_MAX + 20) * BLOCK
    entries, other = history(count), history(count)
    other[5 * BLOCK].data += b"!"
    pair = Pair(Log(entries), Log(other), (3 * BLOCK, 3 * BLOCK))
    pair.beats(5)
    for who in (0, 1):
        for upto in range(3 * BLOCK, count + 1, 5):
            pair.apply(who, upto)
    with pytest.raises(Diverged, match=f"entry {5 * BLOCK + 1},"):
        pair.beats(200)


def test_what_is_kept_in_memory_is_bounded() -> None:
    pair = Pair(Log(history(50)), Log(history(50)), (50, 50))
    for follower in range(1000):
        pair.leader.asked(follower % 7, Digest(asks=follower))
    assert len(pair.leader._wanted) <= 7
    entries = history(2000)
    sums = Checksums(log := Log(entries), 0)
    for index in range(0, 2000, 10):
        sums.extend(entries[index : index + 10])
        log.snapshot = max(0, index - 100)
    assert len(sums._ends._known) <= 100 // BLOCK + 3


# --- terms -------------------------------------------------------------------------------------------------


def raft_log(terms: list[int], committed: int, snapshot: int = 0) -> RaftLog:
    """A log whose entries from 1 on have these terms."""
    storage = MemoryStorage()
    if snapshot:
        place = SnapshotMetadata(ConfState(voters=(1, 2)), snapshot, terms[snapshot - 1])
        storage.apply_snapshot(Snapshot(place))
    storage.append([Entry(term, index) for index, term in enumerate(terms, 1) if index > snapshot])
    log = RaftLog(storage)
    log.committed = committed
    return log


def test_the_terms_of_what_is_committed_are_compared() -> None:
    log = raft_log([1, 1, 2, 2, 3], committed=4, snapshot=1)
    same = Message(type=M.MsgApp, index=2, log_term=1, entries=[Entry(2, 3), Entry(2, 4), Entry(9, 5)])
    assert conflict(log, 4, same) is None
    assert conflict(log, 4, Message(type=M.MsgApp, index=5, log_term=9)) is None  # not committed
    assert conflict(log, 4, Message(type=M.MsgApp, index=0, log_term=0)) is None  # not known any more
    assert conflict(log, 4, Message(type=M.MsgHeartbeat, index=4, log_term=9)) is None
    for wrong in (
        Message(type=M.MsgApp, index=4, log_term=3),
        Message(type=M.MsgApp, index=2, log_term=1, entries=[Entry(2, 3), Entry(3, 4)]),
        Message(type=M.MsgSnap, snapshot=Snapshot(SnapshotMetadata(ConfState(), 4, 3))),
    ):
        found = conflict(log, 4, wrong)
        assert found is not None
        assert (found.index, found.term_here, found.term_there) == (4, 2, 3)


@pytest.mark.parametrize("seed", range(50))
def test_no_message_that_a_true_leader_ever_sent_differs(seed: int) -> None:
    """Delayed, repeated, out of order: whatever part of its log it held, what is committed is ours."""
    chance = random.Random(seed)
    terms = [entry.term for entry in history(40, seed)]
    committed = chance.randrange(1, 40)
    snapshot = chance.randrange(committed)
    ours = terms[:committed] + [terms[committed - 1]] * chance.randrange(5)
    log = raft_log(ours, committed, snapshot)
    theirs = terms[:committed] + [terms[-1] + 1] * 10
    for _ in range(100):
        index = chance.randrange(len(theirs))
        entries = [Entry(theirs[at - 1], at) for at in range(index + 1, len(theirs) + 1)][
            : chance.randrange(9)
        ]
        log_term = theirs[index - 1] if index else 0
        assert (
            conflict(log, committed, Message(type=M.MsgApp, index=index, log_term=log_term, entries=entries))
            is None
        )


def test_the_module_has_bounds_of_its_own() -> None:
    assert divergence.ENDS_MAX * 4 + checksums.BLOCK * 4 < 64 * 1024
