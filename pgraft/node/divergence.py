"""A follower whose committed entries are not its leader's finds out here, and which entry is the first.

Committed entries never change, so every true leader has the same ones. Where they differ all the same, there
were two leaders of one term (a copied Raft directory, a disk that was put back), and nobody can tell from
inside which of the two is right. See README.md, "A diverged log".

Two comparisons. The terms in a leader's message, with those of what is committed here (`conflict`). And
checksums (checksums.py): a heartbeat carries the leader's running checksum and the ends of its newest blocks;
a follower also asks for the older blocks, one a second, the newest first. No clock, no I/O but reading
entries again.
"""

from __future__ import annotations

import msgspec

from pgraft.log import log
from pgraft.node.checksums import Checksums, block_of, first_of, last_of, pack, unpack
from pgraft.node.envelope import Digest
from pgraft.raft import ErrCompacted, ErrUnavailable
from pgraft.raft.log import RaftLog
from pgraft.raft.types import Message, MessageType

ENDS_MAX = 64
"""Ends of blocks that go with a heartbeat: at ten heartbeats a second 650,000 entries a second."""
AUDIT_EVERY_NS = 1_000_000_000
"""Between the answer about one older block and the question for the next."""
WORK_EVERY_NS = 20_000_000
"""Between two steps of reading older entries again: 3 MB a second, whatever this node has to do."""


class Diverged(Exception):
    """A committed entry of this node is another one than its leader's. `hint` says what an operator does."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


def hint(node_id: int, index: int) -> str:
    """What to do about it."""
    return (
        "Which of the two is right only an operator can say: compare"
        f" pgraft_log_get_entry({index}) on the nodes, and do not trust this node's data. To give it up: stop"
        f" it, SELECT pgraft_remove_node({node_id}) on the leader, and add it under a new id with an empty"
        " pgraft.data_dir."
    )


class Conflict(msgspec.Struct, frozen=True):
    """A committed entry that has another term in the leader's message."""

    index: int
    term_here: int
    term_there: int


def conflict(raft_log: RaftLog, committed: int, message: Message) -> Conflict | None:
    """The first entry up to `committed` that has another term in the message of a leader, None if none has.

    `committed` was the commit index before the message counted. What is compacted here is not compared.
    """
    if message.type is MessageType.MsgApp:
        if message.index > committed:
            return None
        pairs = [(message.index, message.log_term)]
        pairs += [(entry.index, entry.term) for entry in message.entries if entry.index <= committed]
    elif message.type is MessageType.MsgSnap and message.snapshot is not None:
        place = message.snapshot.metadata
        pairs = [(place.index, place.term)] if place.index <= committed else []
    else:
        return None
    for index, term in pairs:
        try:
            own = raft_log.term(index)
        except (ErrCompacted, ErrUnavailable):
            continue
        if own != term:
            return Conflict(index, own, term)
    return None


class _Suspicion(msgspec.Struct, frozen=True):
    """One of the entries `lo` to `hi`, all of one block, differs from the leader's; `how` says in what.

    The leader is asked which one it is, and then, whether an earlier block differs as well. At `due_ns` this
    node waits for no more answers.
    """

    leader: int
    term: int
    lo: int
    hi: int
    how: str
    due_ns: int

    @property
    def asks(self) -> int:
        """The block to ask the leader for: where the entry is not known yet its own, else the one before."""
        return block_of(self.lo) - (self.lo == self.hi)


class Audit:
    """What one node compares with its leader, and what it tells its followers. Times in ns.

    As follower: `follow`, `hear`, `question`; as leader: `asked`, `word`; in both roles `poll`, once a turn.
    """

    def __init__(self, node_id: int, checksums: Checksums, election_timeout_ns: int) -> None:
        self._node_id = node_id
        self._sums = checksums
        self._timeout_ns = election_timeout_ns
        self._leader = (0, 0)
        self._worked_ns = 0
        self._suspicion: _Suspicion | None = None
        self._forget_leader()

    def _forget_leader(self) -> None:
        self._pending: Digest | None = None
        self._theirs: tuple[int, bytes] | None = None
        self._asked = 0
        self._asked_ns = 0
        self._ask_ns = 0
        self._equal = 0
        self._compared = 0
        self._same = 0
        self._again = False
        self._cursor = block_of(self._sums.applied + 1) - 1
        self._wanted: dict[int, tuple[int, int]] = {}

    # --- what is applied --------------------------------------------------------------------------------

    def restored(self, index: int) -> None:
        """A snapshot at `index` took the place of all entries."""
        self._sums.reset(index)
        self._forget_leader()

    # --- as a follower ----------------------------------------------------------------------------------

    @property
    def suspects(self) -> bool:
        """Whether something differs, and this node is about to leave."""
        return self._suspicion is not None

    def follow(self, leader: int, term: int) -> None:
        """This node follows this leader now (or leads, or nobody is known): compare everything once more."""
        if self._leader != (leader, term):
            self._leader = (leader, term)
            self._forget_leader()

    def reconnected(self, node_id: int) -> None:
        """A connection with this node is new: who is at its other end is compared from the start."""
        if node_id == self._leader[0]:
            self._forget_leader()

    def hear(self, digest: Digest, now_ns: int) -> None:
        """The leader's word, or its answer. The caller knows that it comes from the leader that this node
        follows, in the present term. Raises Diverged."""
        if digest.answers and digest.answers == self._asked:
            self._answered(digest, now_ns)
        if digest.index and self._pending is None:
            # Until this node has applied as much, later words must not take its place.
            self._pending = digest
            self._compare(digest, now_ns)

    def _compare(self, word: Digest, now_ns: int) -> None:
        if word.index > self._sums.applied:
            return
        self._pending = None
        self._compare_ends(block_of(word.index), unpack(word.ends), now_ns)
        own = self._sums.at(word.index)
        if own == word.checksum:
            self._equal = word.index
        elif own is not None:
            lo = max(first_of(block_of(word.index)), self._equal + 1)
            self._suspect(lo, word.index, _checksums(own, word.checksum), now_ns)

    def _compare_ends(self, block: int, ends: tuple[int, ...], now_ns: int) -> None:
        """The ends of the blocks right before `block`, those that were not compared before."""
        oldest = block - len(ends)
        if self._compared and oldest > self._compared + 1:
            self._again = True
        for one, end in enumerate(ends, oldest):
            if one <= self._compared:
                continue
            own = self._sums.end(one)
            if own is None:
                self._again = self._again or bool(self._compared)
            elif own != end:
                self._suspect(first_of(one), last_of(one), _checksums(own, end), now_ns)
            else:
                self._same = one
        self._compared = max(self._compared, block - 1)

    def suspect_terms(self, found: Conflict, now_ns: int) -> None:
        """A message of the leader that this node follows has another term. Raises Diverged."""
        how = f"its term is {found.term_here} here, {found.term_there} there"
        self._suspect(first_of(block_of(found.index)), found.index, how, now_ns)

    def _suspect(self, lo: int, hi: int, how: str, now_ns: int) -> None:
        if self._suspicion is not None:
            return
        leader, term = self._leader
        suspicion = _Suspicion(leader, term, lo, hi, how, now_ns + self._timeout_ns)
        log(
            "WARNING",
            f"node {self._node_id} has other committed entries than node {leader}, which leads term {term}:"
            f" {_which(lo, hi)}: {how}",
            detail="It asks the leader which one is the first, and then leaves consensus.",
        )
        self._look_further(suspicion)

    def _look_further(self, suspicion: _Suspicion) -> None:
        """Ask which entry it is, or whether an earlier block differs, too. Raises Diverged where that is
        known."""
        self._suspicion = suspicion
        self._asked = 0
        is_first = suspicion.asks == 0 or suspicion.asks == self._same or not self._sums.keeps(suspicion.asks)
        if suspicion.lo == suspicion.hi and is_first:
            raise self._diverged(suspicion)
        self._sums.forget_part(suspicion.asks)
        self._sums.want(suspicion.asks)

    def question(self, now_ns: int) -> Digest | None:
        """What to ask the leader with an envelope that goes to it now, None for nothing."""
        if self._asked:
            if now_ns - self._asked_ns < self._timeout_ns:
                return None
        elif now_ns < self._ask_ns and self._suspicion is None:
            return None
        block = self._suspicion.asks if self._suspicion is not None else self._cursor
        end = self._sums.end(block) if block else None
        if self._suspicion is None and end is None:
            self._prepare(block)
            self._ask_ns = now_ns + WORK_EVERY_NS
            return None
        self._asked, self._asked_ns = block, now_ns
        return Digest(asks=block, checksum=end or 0)

    def _prepare(self, block: int) -> None:
        """Know the end of a block before the leader is asked; at the oldest one the audit is over."""
        if block and self._sums.keeps(block):
            self._sums.want(block)
            return
        self._cursor = 0
        if self._again:
            self._again = False
            self._cursor = block_of(self._sums.applied + 1) - 1

    def _answered(self, digest: Digest, now_ns: int) -> None:
        block, self._ask_ns = digest.answers, now_ns + AUDIT_EVERY_NS
        suspicion = self._suspicion
        if digest.values:
            self._theirs = (block, digest.values)
            self._compare_values(now_ns)
        elif suspicion is None:
            self._is_compared(block)
        elif suspicion.lo == suspicion.hi:
            # The block before is the same, or the leader has no more of it.
            raise self._diverged(suspicion)
        # Else it cannot say more either, and may be asked again; this node leaves when its time is over.

    def _is_compared(self, block: int) -> None:
        self._asked = 0
        if block == self._cursor:
            self._cursor -= 1

    def _compare_values(self, now_ns: int) -> None:
        """The leader's values of one block with those here, once they are read. Raises Diverged."""
        if self._theirs is None:
            return
        block, data = self._theirs
        own = self._sums.values(block)
        if own is None:
            if self._sums.keeps(block):
                self._sums.want(block)
            else:
                self._theirs = None
                self._is_compared(block)
            return
        self._theirs = None
        suspicion = self._suspicion
        for index, (here, there) in enumerate(zip(own, unpack(data), strict=False), first_of(block)):
            if here != there:
                leader, term = self._leader
                due_ns = suspicion.due_ns if suspicion is not None else now_ns + self._timeout_ns
                self._look_further(_Suspicion(leader, term, index, index, _checksums(here, there), due_ns))
                return
        self._is_compared(block)
        if suspicion is not None and suspicion.asks == block:
            self._is_same(suspicion, first_of(block) + min(len(own), len(data) // 4) - 1)

    def _is_same(self, suspicion: _Suspicion, upto: int) -> None:
        """The block that was asked for, for a suspicion, does not differ up to this index."""
        if suspicion.lo == suspicion.hi:
            raise self._diverged(suspicion)
        if upto >= suspicion.hi:
            # Another leader than the one that differed: that one will find out itself.
            self._suspicion = None
            log("WARNING", f"node {self._node_id} has the same entries as node {self._leader[0]}")

    def _diverged(self, what: _Suspicion, more: str = "") -> Diverged:
        text = (
            f"{_which(what.lo, what.hi)}, which is committed, is another one here than on node {what.leader},"
            f" the leader of term {what.term}: {what.how}{more}"
        )
        return Diverged(text, hint(self._node_id, what.lo))

    # --- as a leader ------------------------------------------------------------------------------------

    def asked(self, follower: int, digest: Digest) -> None:
        """A follower, a member, asks for the values of a block; its newest question counts."""
        self._sums.forget_part(digest.asks)
        self._wanted[follower] = (digest.asks, digest.checksum)

    def word(self, follower: int) -> Digest | None:
        """What goes to a follower with a heartbeat: the newest checksum, ends, and what it asked for."""
        index, checksum = self._sums.newest()
        if not index and follower not in self._wanted:
            return None
        ends = self._sums.ends_before(block_of(index), ENDS_MAX) if index else []
        word = Digest(index=index, checksum=checksum, ends=pack(ends))
        values = self._answer(follower)
        if values is not None:
            word.answers, _ = self._wanted.pop(follower)
            word.values = values
        return word

    def _answer(self, follower: int) -> bytes | None:
        """The values that a follower asked for; empty when there is nothing to compare, since the end is
        the same or the block is not kept here; None while they are being read, or nothing was asked."""
        if follower not in self._wanted:
            return None
        block, checksum = self._wanted[follower]
        end = self._sums.end(block)
        if (end is not None and end == checksum) or not self._sums.keeps(block):
            return b""
        values = self._sums.values(block)
        if values is None:
            self._sums.want(block)
            return None
        return pack(values)

    # --- in both roles ----------------------------------------------------------------------------------

    def poll(self, now_ns: int) -> None:
        """Once a turn: a bounded piece of what has to be read again, and what waits. Raises Diverged and
        StorageError."""
        if now_ns - self._worked_ns >= WORK_EVERY_NS:
            self._worked_ns = now_ns
            self._sums.work()
            if self._theirs is not None:
                self._compare_values(now_ns)
        if self._pending is not None:
            self._compare(self._pending, now_ns)
        suspicion = self._suspicion
        if suspicion is not None and now_ns >= suspicion.due_ns:
            raise self._diverged(suspicion, "; there was no time to find out whether an earlier one differs")


def _which(lo: int, hi: int) -> str:
    return f"entry {lo}" if lo == hi else f"one of the entries {lo} to {hi}"


def _checksums(here: int, there: int) -> str:
    return f"checksum {here:08x} here, {there:08x} there"
