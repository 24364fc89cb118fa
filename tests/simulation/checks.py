"""What must hold after every step. Each check looks only at what the step can have changed.

Log matching is kept by induction: an entry is known by index and term, has one content and one
predecessor, everywhere and for ever; so two logs that share an entry share all before it.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from pgraft.node.commands import Answer
from pgraft.node.envelope import Envelope
from pgraft.node.lease import LEASE_PERCENT
from pgraft.node.outputs import Outputs, Shown
from pgraft.raft import Entry, MessageType, Snapshot, StateType
from pgraft.raft.errors import ErrCompacted, ErrUnavailable
from pgraft.raft.quorum import JointConfig
from pgraft.raft.types import ConfState, HardState
from pgraft.shm.blocks import Status
from pgraft.shm.layout import CommandKind, Outcome
from tests.simulation.profile import MS

if TYPE_CHECKING:
    from tests.simulation.host import Host

LEADER = StateType.StateLeader
_VOTE_RESP = MessageType.MsgVoteResp
_APP_RESP = MessageType.MsgAppResp
_READ_RESP = MessageType.MsgReadIndexResp
_ALL = 1 << 40

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
        self.shown = (0, 0)
        self.voters = JointConfig()
        self.durable: Durable = (HardState(), 0, 0)
        self.may_be: list[Durable] = []


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
        self.places: dict[bytes, int] = {}
        self.denied: set[bytes] = set()
        self.confs: dict[int, ConfState] = {}
        self._elected: set[int] = set()

    def add(self, host: Host) -> None:
        """A host takes part from now on."""
        self.hosts[host.id] = host
        self.memory[host.id] = Memory()

    # --- the disk -------------------------------------------------------------------------------------

    def writing(
        self, host: Host, hard_state: HardState, entries: list[Entry], snapshot: Snapshot | None
    ) -> None:
        """A write begins; until it is done, a crash may leave any of its two parts, or nothing of it."""
        memory = self.memory[host.id]
        _, last, last_term = memory.durable
        if snapshot is not None:
            place = snapshot.metadata
            last, last_term = place.index, place.term
            at = HardState(hard_state.term, hard_state.vote, min(hard_state.commit, place.index))
            memory.may_be.append((at, last, last_term))
        if entries:
            last, last_term = entries[-1].index, entries[-1].term
        memory.may_be.append((hard_state, last, last_term))

    def written(self, host: Host) -> None:
        """The write is done, and durable."""
        memory = self.memory[host.id]
        memory.durable, memory.may_be = memory.may_be[-1], []
        hard_state = memory.durable[0]
        if hard_state.vote:
            self._check_vote(host.id, hard_state.term, hard_state.vote)

    def recovered(self, host: Host) -> None:
        """A start found what was durable, or that and the write that was going on."""
        memory, store = self.memory[host.id], host.store
        last = store.last_index()
        found: Durable = (store.hard_state, last, store.term(last) if last else 0)
        if host.life > 1:
            allowed = [memory.durable, *memory.may_be]
            require(found in allowed, f"node {host.id} starts with {found}, but should have one of {allowed}")
        memory.durable, memory.may_be = found, []
        require(
            store.hard_state.term >= memory.promised_term,
            f"node {host.id} starts at term {store.hard_state.term}, but spoke in {memory.promised_term}",
        )
        first = store.first_index()
        if last >= first:
            self._match(host, store.entries(first, last + 1, _ALL), store.term(first - 1))

    def started(self, host: Host) -> None:
        """A new process: term and commit begin where its disk left them, and what it showed stays."""
        memory, raft = self.memory[host.id], host.replica.raft
        memory.term = raft.term
        memory.committed = min(raft.raft_log.committed, memory.committed)
        memory.quorum_checked = memory.committed
        memory.voters = raft.trk.config.voters
        if host.status is None:
            memory.shown = (0, 0)
        self.after(host)

    # --- a step ---------------------------------------------------------------------------------------

    def stepped(self, host: Host, outputs: Outputs) -> None:
        """New entries of a log match all others'; what a leader commits is durable on a quorum; what is
        applied is the same everywhere."""
        raft = host.replica.raft
        log = raft.raft_log
        entries = outputs.entries
        if entries:
            self._match(host, entries, log.term(entries[0].index - 1))
            if raft.state is LEADER:
                self._check_changes(host, entries)
        memory, committed = self.memory[host.id], log.committed
        if committed > memory.quorum_checked:
            memory.quorum_checked = committed
            if raft.state is LEADER:
                self._check_quorum(host, memory.voters, committed, raft.term)
        memory.voters = raft.trk.config.voters
        self.after(host)
        self._check_applied(host, outputs)
        if host.replica.door.absurd:
            said = [line.message for line in outputs.log if "turned away" in line.message]
            raise Violation(f"node {host.id} turned away what a true node said: {said}")

    def turned(self, host: Host) -> None:
        """A turn that is over leaves nothing that is ready and not announced."""
        if host.replica.outputs.more or host.rng.random() > 0.1:
            return
        core = host.replica.core
        core.advance()  # what the next step does first
        require(not core.raw.has_ready(), f"node {host.id} has more to do, and has not said so")

    def _check_applied(self, host: Host, outputs: Outputs) -> None:
        applied = host.replica.core.applied
        if applied == host.applied:
            return
        if outputs.snapshot is not None:
            host.applied = max(host.applied, outputs.snapshot.metadata.index)
        for entry in host.replica.raft.raft_log.slice(host.applied + 1, applied + 1, _ALL):
            self._apply(host, entry)
        host.applied = applied

    def _apply(self, host: Host, entry: Entry) -> None:
        """Every node applies the same entries, each text at one place only."""
        index, data = entry.index, entry.data
        content = (entry.term, entry.type, zlib.crc32(data))
        known = self.entries.setdefault(index, content)
        require(known == content, f"node {host.id} applies {content} at {index}, others applied {known}")
        require(
            self.committed.get(index, entry.term) == entry.term,
            f"node {host.id} applies entry {index} of term {entry.term}, committed is another",
        )
        if entry.type:
            states = host.replica.core.membership_log
            # A compaction of the same step may have forgotten it already.
            if states._states[0][0] <= index:
                self._conf(host, index, states.at(index).conf_state)
        elif data:
            place = self.places.setdefault(data[1:], index)
            require(place == index, f"{data[1:]!r} was carried out twice, at {place} and at {index}")
            require(data[1:] not in self.denied, f"{data[1:]!r} is at {index}, and was refused")

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

    def _check_quorum(self, host: Host, before: JointConfig, index: int, term: int) -> None:
        own = host.replica.raft.raft_log.term(index)
        require(
            own == term, f"leader {host.id} of term {term} committed entry {index} of term {own} by counting"
        )
        # Before or after the membership changes that were applied in this step.
        counted = [before, host.replica.raft.trk.config.voters]
        require(
            any(self._quorum_has(voters, index, own) for voters in counted),
            f"leader {host.id} of term {term} committed entry {index}, which is not durable on a quorum of"
            f" any of {counted}",
        )

    def _quorum_has(self, voters: JointConfig, index: int, term: int) -> bool:
        halves = [half for half in (voters.incoming, voters.outgoing) if half]
        return all(
            sum(id in self.hosts and self._has(self.hosts[id], index, term) for id in half) > len(half) // 2
            for half in halves
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
        memory, raft = self.memory[host.id], host.replica.raft
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
        log, term = host.replica.raft.raft_log, host.replica.raft.term
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
        raft = host.replica.raft
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
        raft = host.replica.raft
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
        raft = host.replica.raft
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

    # --- what leaves ----------------------------------------------------------------------------------

    def _check_promise(self, host: Host, leader: Host, envelope: Envelope) -> None:
        """No vote is given before the lease has ended that may be counted from this answer."""
        if not leader.leads or leader.replica.raft.term != envelope.echo_term:
            return
        lease_end = leader.true(envelope.echo + envelope.promise_ms * MS * LEASE_PERCENT // 100)
        quiet_until = host.true(host.replica.leadership.quiet.until_ns)
        require(
            quiet_until >= lease_end,
            f"node {host.id} answers a round of node {leader.id} and votes again {lease_end - quiet_until} ns"
            " before the lease ends that stands on it",
        )

    def sending(self, host: Host, to: int, envelope: Envelope) -> None:
        """What a message promises is on the disk; what it tells sessions elsewhere is in the status block."""
        memory = self.memory[host.id]
        told = [reply.value1 for reply in envelope.replies if reply.outcome == Outcome.OK]
        told += [m.index for m in envelope.messages if m.type is _READ_RESP]
        if told and host.leads:
            require(
                host.status is not None and host.status.commit_index >= max(told),
                f"node {host.id} tells node {to} of entry {max(told)}, its status block is older",
            )
        for message in envelope.messages:
            kind = message.type
            if kind is not _APP_RESP and kind is not _VOTE_RESP:
                continue
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
            elif (
                kind is _APP_RESP and not message.reject and message.index > last and hard_state.term == term
            ):
                # In a later term the entries may have been replaced before they came to the disk, as they
                # may be at any time after: whoever could elect that term's leader did not have them.
                raise Violation(
                    f"node {host.id} acknowledges entry {message.index} in term {term}, its disk ends at"
                    f" {last}"
                )
        if envelope.echo:
            self._check_promise(host, self.hosts[to], envelope)
            require(
                memory.durable[0].term >= envelope.echo_term,
                f"node {host.id} answers a round of term {envelope.echo_term}, its disk has"
                f" {memory.durable[0]}",
            )

    def _check_vote(self, id: int, term: int, candidate: int) -> None:
        known = self.votes.setdefault((id, term), candidate)
        require(known == candidate, f"node {id} votes for {known} and for {candidate} in term {term}")

    def _conf(self, host: Host, index: int, conf: ConfState) -> None:
        """The same change leads to the same voters everywhere. One that began with a snapshot is a learner in
        its own eyes from there on."""
        known = self.confs.setdefault(index, conf)
        require(
            (known.voters, known.voters_outgoing) == (conf.voters, conf.voters_outgoing),
            f"the change at {index} leads to {conf} on node {host.id}, to {known} elsewhere",
        )

    # --- what sessions see ----------------------------------------------------------------------------

    def published(self, host: Host, status: Status) -> None:
        """A segment's sessions never see the commit index or the applied one go back."""
        memory = self.memory[host.id]
        require(
            status.commit_index >= memory.shown[0] and status.applied >= memory.shown[1],
            f"node {host.id} showed commit {memory.shown[0]} and applied {memory.shown[1]}, and now"
            f" {status.commit_index} and {status.applied}",
        )
        memory.shown = (status.commit_index, status.applied)

    def shown(self, host: Host, shown: Shown) -> None:
        """Nothing that a true node says is thrown away."""
        require(not shown.malformed, f"node {host.id} got what it cannot read")

    def answering(self, host: Host, kind: int, answer: Answer) -> None:
        """An answer is covered by the status block, where its node has the entry itself."""
        if answer.outcome == Outcome.OK and kind == CommandKind.READ_BARRIER:
            require(
                host.status is not None and host.status.applied >= answer.value1,
                f"node {host.id} answers a read at {answer.value1}, its status block is older",
            )

    def acknowledged(self, data: bytes, index: int) -> None:
        """A write was answered with its place: it is there, and nowhere else. A leader that has just lost its
        leadership answers before it applies."""
        content = self.entries.get(index)
        require(
            index in self.committed if content is None else content[2] == zlib.crc32(b"\x01" + data),
            f"{data!r} was acknowledged at {index}, where {content} was applied",
        )
        place = self.places.setdefault(data, index)
        require(place == index, f"{data!r} was acknowledged at {index}, and is at {place}")

    def refused(self, data: bytes) -> None:
        """A write was refused for certain: it never happens."""
        self.denied.add(data)
        place = self.places.get(data, 0)
        require(not place, f"{data!r} was refused, and is at {place}")

    def looked_up(self, host: Host, index: int, payload: bytes) -> None:
        """A session read an entry; a node that was restarted does not apply again what it had applied."""
        content = self.entries.get(index)
        require(
            index in self.committed if content is None else content[2] == zlib.crc32(b"\x01" + payload),
            f"node {host.id} gives {payload!r} for entry {index}, where {content} was applied",
        )

    # --- leases ---------------------------------------------------------------------------------------

    def lease(self, host: Host) -> None:
        """No two valid leases at one true time."""
        now, own = host.cluster.now, host.replica.raft.term
        if host.true(host.lease_end) <= now:
            return
        for other in self.hosts.values():
            if other is host or not other.lease_end:
                continue
            until = other.true(other.lease_end)
            require(
                until <= now,
                f"node {host.id} has a lease in term {own}, node {other.id}'s is valid for {until - now} ns",
            )
