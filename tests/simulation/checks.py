"""What must hold after every step. Each check looks only at what the step can have changed.

Log matching is kept by induction: an entry is known by index and term, has one content and one
predecessor, everywhere and for ever; so two logs that share an entry share all before it.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right, insort
from typing import TYPE_CHECKING

from pgraft.raft import ConfState, Entry, Message, MessageType, Ready, StateType
from pgraft.raft.errors import ErrCompacted, ErrUnavailable
from pgraft.raft.types import HardState
from tests.simulation.machine import State

if TYPE_CHECKING:
    from tests.simulation.host import Host

LEADER = StateType.StateLeader
_VOTE_RESP = MessageType.MsgVoteResp
_APP_RESP = MessageType.MsgAppResp

Durable = tuple[HardState, int, int]
"""Hard state, last index and its term, as a start from the disk must find them."""


class Violation(Exception):
    """Something that must always hold does not."""


def require(holds: bool, text: str) -> None:
    """Raise Violation unless it holds."""
    if not holds:
        raise Violation(text)


class Memory:
    """What is remembered of one host between its steps."""

    def __init__(self) -> None:
        self.term = 0
        self.committed = 0
        self.quorum_checked = 0
        self.lead_term = 0
        self.needed = 0
        self.promised_term = 0
        self.durable: Durable = (HardState(), 0, 0)
        self.may_be: Durable | None = None


class Checks:
    """The whole cluster's history, as far as the rules need it."""

    def __init__(self) -> None:
        self.hosts: dict[int, Host] = {}
        self.memory: dict[int, Memory] = {}
        self.leaders: dict[int, int] = {}
        self.votes: dict[tuple[int, int], int] = {}
        self.contents: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.committed: dict[int, int] = {}
        self.committed_by: dict[int, int] = {}
        self.highest = 0
        self.entries: dict[int, tuple[int, int, int]] = {}
        self.states: dict[int, State] = {}
        self.confs: dict[int, ConfState] = {}
        self._conf_indexes: list[int] = []
        self._elected: set[int] = set()

    def add(self, host: Host) -> None:
        """A host takes part from now on."""
        self.hosts[host.id] = host
        self.memory[host.id] = Memory()

    # --- the disk -------------------------------------------------------------------------------------

    def writing(self, host: Host, hard_state: HardState, last: int, last_term: int) -> None:
        """A write begins; until it is done, a crash may leave it whole or not at all. Last 0: unchanged."""
        memory = self.memory[host.id]
        _, old_last, old_term = memory.durable
        memory.may_be = (hard_state, last, last_term) if last else (hard_state, old_last, old_term)

    def written(self, host: Host) -> None:
        """The write is done, and durable."""
        memory = self.memory[host.id]
        if memory.may_be is not None:
            memory.durable, memory.may_be = memory.may_be, None
            hard_state = memory.durable[0]
            if hard_state.vote:
                self._check_vote(host.id, hard_state.term, hard_state.vote)

    def recovered(self, host: Host) -> None:
        """A start found what was durable, or that and the write that was going on."""
        memory, store = self.memory[host.id], host.store
        last = store.last_index()
        found: Durable = (store.hard_state, last, store.term(last))
        if host.life > 1:
            allowed = [memory.durable] + ([memory.may_be] if memory.may_be is not None else [])
            require(found in allowed, f"node {host.id} starts with {found}, but should have one of {allowed}")
        memory.durable, memory.may_be = found, None
        require(
            store.hard_state.term >= memory.promised_term,
            f"node {host.id} starts at term {store.hard_state.term}, but spoke in {memory.promised_term}",
        )
        first = store.first_index()
        if last >= first:
            self._match(host, store.entries(first, last + 1, 1 << 40), store.term(first - 1))

    def started(self, host: Host) -> None:
        """A new process: term and commit begin where its disk left them."""
        memory, raft = self.memory[host.id], host.raw.raft
        memory.term = raft.term
        memory.committed = min(raft.raft_log.committed, memory.committed)
        memory.quorum_checked = memory.committed
        self.after(host)

    # --- the log --------------------------------------------------------------------------------------

    def ready(self, host: Host, ready: Ready) -> None:
        """New entries of a log match all others'; what a leader commits is durable on a quorum."""
        raft = host.raw.raft
        entries = ready.entries
        if entries:
            self._match(host, entries, raft.raft_log.term(entries[0].index - 1))
            if raft.state is LEADER:
                self._check_changes(host, entries)
        memory, committed = self.memory[host.id], raft.raft_log.committed
        if committed > memory.quorum_checked:
            memory.quorum_checked = committed
            if raft.state is LEADER:
                self._check_quorum(host, committed, raft.term)

    def _match(self, host: Host, entries: list[Entry], previous_term: int) -> None:
        contents = self.contents
        for entry in entries:
            term = entry.term
            content = (previous_term, entry.type, zlib.crc32(entry.data))
            known = contents.setdefault((entry.index, term), content)
            if known != content:
                raise Violation(
                    f"log matching: entry {entry.index} of term {term} is {content} on node {host.id}"
                    f", {known} elsewhere (term before, type, checksum)"
                )
            previous_term = term

    def _check_quorum(self, host: Host, index: int, term: int) -> None:
        own = host.raw.raft.raft_log.term(index)
        require(
            own == term, f"leader {host.id} of term {term} committed entry {index} of term {own} by counting"
        )
        voters = host.raw.raft.trk.config.voters
        for half in (voters.incoming, voters.outgoing):
            if not half:
                continue
            having = [id for id in half if id in self.hosts and self._has(self.hosts[id], index, own)]
            require(
                len(having) > len(half) // 2,
                f"leader {host.id} of term {term} committed entry {index}, durable only on {having} of"
                f" {sorted(half)}",
            )

    def _has(self, host: Host, index: int, term: int) -> bool:
        try:
            return host.store.term(index) == term
        except ErrCompacted:
            return True
        except ErrUnavailable:
            return False

    # --- after a step ---------------------------------------------------------------------------------

    def after(self, host: Host) -> None:
        """Term and commit never go back; what is committed stays."""
        memory, raft = self.memory[host.id], host.raw.raft
        if raft.term != memory.term:
            require(
                raft.term > memory.term, f"node {host.id} went from term {memory.term} back to {raft.term}"
            )
            memory.term = raft.term
        committed = raft.raft_log.committed
        if committed != memory.committed:
            require(
                committed > memory.committed,
                f"node {host.id} went from commit {memory.committed} back to {committed}",
            )
            self._check_committed(host, memory.committed, committed)
            memory.committed = committed
        if raft.state is LEADER and self.leaders.get(raft.term) != host.id:
            self.role(host)

    def _check_committed(self, host: Host, old: int, new: int) -> None:
        log, term = host.raw.raft.raft_log, host.raw.raft.term
        known = self.committed
        for index in range(max(old + 1, log.first_index() - 1, 1), new + 1):
            own = log.term(index)
            if known.setdefault(index, own) != own:
                raise Violation(
                    f"entry {index} is committed with term {own} on node {host.id}, {known[index]} before"
                )
        if new > self.highest:
            self.highest = new
            self.committed_by[term] = new

    def role(self, host: Host) -> None:
        """One leader a term, and it has everything that was committed in the terms before."""
        raft = host.raw.raft
        if raft.state is not LEADER:
            return
        leader = self.leaders.setdefault(raft.term, host.id)
        require(leader == host.id, f"nodes {leader} and {host.id} both lead in term {raft.term}")
        self._check_elected(host)
        before = [index for term, index in self.committed_by.items() if term < raft.term]
        if before:
            index = max(before)
            own = raft.raft_log.term(index) if index <= raft.raft_log.last_index() else 0
            require(
                own == self.committed[index] or index < raft.raft_log.first_index(),
                f"leader completeness: node {host.id} leads term {raft.term}, but has term {own} at committed"
                f" entry {index} of term {self.committed[index]}",
            )

    def _check_elected(self, host: Host) -> None:
        """A new leader has the durable votes of a quorum."""
        raft = host.raw.raft
        if raft.term in self._elected:
            return
        self._elected.add(raft.term)
        for half in (raft.trk.config.voters.incoming, raft.trk.config.voters.outgoing):
            votes = [id for id in half if self.votes.get((id, raft.term)) == host.id]
            require(
                len(votes) > len(half) // 2 or not half,
                f"node {host.id} leads term {raft.term} with the votes of {votes} of {sorted(half)}",
            )

    def _check_changes(self, host: Host, entries: list[Entry]) -> None:
        """A leader begins a membership change only when all that it found in its log is applied, and every
        earlier change."""
        raft = host.raw.raft
        memory, log = self.memory[host.id], raft.raft_log
        for entry in entries:
            if entry.term != raft.term:
                continue
            if memory.lead_term != raft.term:
                memory.lead_term, memory.needed = raft.term, entry.index - 1
            if not entry.type:
                continue
            require(
                log.applied >= memory.needed,
                f"leader {host.id} of term {raft.term} begins the change at {entry.index}, applied is"
                f" {log.applied}, not {memory.needed}",
            )
            memory.needed = entry.index

    # --- messages -------------------------------------------------------------------------------------

    def sending(self, host: Host, message: Message) -> None:
        """What a message promises is on the disk."""
        kind = message.type
        if kind is not _APP_RESP and kind is not _VOTE_RESP:
            return
        memory = self.memory[host.id]
        hard_state, last, _ = memory.durable
        term = message.term
        if term > memory.promised_term:
            memory.promised_term = term
            require(
                hard_state.term >= term,
                f"node {host.id} sends {kind.name} of term {term}, its disk has term {hard_state.term}",
            )
        if kind is _VOTE_RESP and not message.reject:
            self._check_vote(host.id, term, message.to)
            require(
                hard_state.term > term or hard_state.vote == message.to,
                f"node {host.id} votes for {message.to} in term {term}, its disk has {hard_state}",
            )
        elif kind is _APP_RESP and not message.reject and message.index > last:
            raise Violation(
                f"node {host.id} acknowledges entry {message.index} in term {term}, its disk ends at {last}"
            )

    def _check_vote(self, id: int, term: int, candidate: int) -> None:
        known = self.votes.setdefault((id, term), candidate)
        require(known == candidate, f"node {id} votes for {known} and for {candidate} in term {term}")

    # --- applying -------------------------------------------------------------------------------------

    def applied(self, host: Host, entry: Entry) -> None:
        """Every node applies the same entries, in order, without a gap."""
        require(entry.index == host.applied + 1, f"node {host.id} applies {entry.index} after {host.applied}")
        content = (entry.term, entry.type, zlib.crc32(entry.data))
        known = self.entries.setdefault(entry.index, content)
        require(
            known == content, f"node {host.id} applies {content} at {entry.index}, others applied {known}"
        )
        require(
            self.committed.get(entry.index, entry.term) == entry.term,
            f"node {host.id} applies entry {entry.index} of term {entry.term}, committed is another",
        )

    def state(self, index: int, state: State) -> None:
        """The same state after the same entry."""
        known = self.states.setdefault(index, state)
        if known != state:
            raise Violation(f"the state after entry {index} is {state}, elsewhere {known}")

    def installed(self, host: Host, index: int) -> None:
        """A snapshot carries the state that applying gives."""
        if index in self.states:
            self.state(index, host.machine.state)

    def conf(self, host: Host, index: int, conf: ConfState) -> None:
        """The same change leads to the same voters everywhere."""
        known = self.confs.get(index)
        if known is None:
            self.confs[index] = conf
            insort(self._conf_indexes, index)
            return
        require(
            (known.voters, known.voters_outgoing) == (conf.voters, conf.voters_outgoing),
            f"the change at {index} leads to {conf} on node {host.id}, to {known} elsewhere",
        )

    def conf_at(self, index: int) -> ConfState | None:
        """The configuration after everything up to `index`, None before the first change."""
        place = bisect_right(self._conf_indexes, index)
        return self.confs[self._conf_indexes[place - 1]] if place else None

    # --- leases ---------------------------------------------------------------------------------------

    def lease(self, host: Host) -> None:
        """No two valid leases at one true time."""
        now, own = host.at, host.raw.raft.term
        if host.true(host.lease_end) <= now:
            return
        for other in self.hosts.values():
            if other is host or not other.lease_end:
                continue
            until = other.true(other.lease_end)
            require(
                until <= now,
                f"node {host.id} has a lease in term {own}, node {other.id}'s is valid for {until - now} us",
            )
