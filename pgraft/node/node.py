"""One node's part in consensus: messages, commands and time in; envelopes, answers and status out.

It owns no process and no clock: `raft_worker.py` calls it with what has come and what time it is.
The order of one turn matters, and `turn` keeps it: what peers sent, what sessions ask, time, the
core (messages, sync, commits), then the lease, the envelopes, the status block, and last the
answers, so that a session that got `true` finds the commit index that covers it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from pgraft.log import log
from pgraft.node import answers
from pgraft.node.acknowledged import Acknowledged
from pgraft.node.board import Board
from pgraft.node.catch_up import CatchUp
from pgraft.node.checksums import Checksums
from pgraft.node.commands import Command
from pgraft.node.core import Core
from pgraft.node.desk import Desk
from pgraft.node.display import Display
from pgraft.node.divergence import Audit, conflict
from pgraft.node.door import Door
from pgraft.node.envelope import BadEnvelope, Digest, Envelope, NodeStatus, decode
from pgraft.node.lease import Lease
from pgraft.node.membership import Membership, MembershipError, admitting, decode_change, from_snapshot
from pgraft.node.outbox import Outbox
from pgraft.node.quiet import Quiet
from pgraft.node.roster import Roster
from pgraft.postgres.settings import NodeConfig
from pgraft.raft import ProgressState, RaftError
from pgraft.raft.types import NO_NODE, Entry, Message, MessageType, Snapshot, StateType
from pgraft.shm.layout import CommandKind, Yields
from pgraft.shm.segment import Segment
from pgraft.shm.words import now_ns as clock
from pgraft.transport.records import (
    ENVELOPE_OFFSET,
    PeerHello,
    RecordKind,
    RecordMalformed,
    Refusal,
    RefusalCode,
    RefusedStart,
    unpack_peer_hello,
    unpack_prefix,
    unpack_refusal,
)

FAREWELL_ELECTION_TIMEOUTS = 3
"""For how long a removed node still hears that it was removed."""

_FROM_LEADER = frozenset((MessageType.MsgApp, MessageType.MsgHeartbeat, MessageType.MsgSnap))
_VOTES = frozenset((MessageType.MsgVote, MessageType.MsgPreVote))
_BARRED = frozenset((RefusalCode.MEMBER_ID_CHANGED, RefusalCode.DUPLICATE))
_OUTDATED = frozenset((RefusalCode.SUPERSEDED, RefusalCode.SHORTER_LOG))
"""Any member's word for it is enough, whoever leads: others may not have heard, or have no memory of it."""


class Node:
    """Consensus as one node sees it. All times are CLOCK_BOOTTIME ns."""

    def __init__(
        self,
        config: NodeConfig,
        core: Core,
        roster: Roster,
        board: Board,
        outbox: Outbox,
        desk: Desk,
        segment: Segment,
        quiet: Quiet,
        started_ns: int,
    ) -> None:
        self.config = config
        self.node_id = config.node_id
        self.core = core
        self.raft = core.raft
        self.roster = roster
        self.board = board
        self.outbox = outbox
        self.desk = desk
        self.lease = Lease()
        self.door = Door(config.node_id, core)
        self.rejected = 0
        self.malformed = 0
        self.barred = ""
        self._outdated = ""
        self._catch_up = CatchUp(config.node_id, roster.identity.incarnation)
        self._acknowledged = Acknowledged()
        self._quiet = quiet
        self._first_quiet_ns = quiet.until_ns
        self._timeout_ns = config.election_timeout_ms * 1_000_000
        self._worker = segment.worker
        self._lease_ref = segment.worker_ref("lease_end_ns")
        self._display = Display(config, core, board, segment, roster)
        self._now = started_ns
        self._last_tick_ns = started_ns
        self._role = (self.raft.term, self.raft.lead, self.raft.state)
        self._led_term = 0
        self._yields = Yields.NO
        self._yield_again_ns = 0
        self._newest_round = 0
        self._snapshots: dict[int, int] = {}
        self._lease_basis: tuple[object, ...] = ()
        self._compacted_check = self.raft.raft_log.applied
        self._sums = Checksums(core.store, self.raft.raft_log.applied)
        self.audit = Audit(config.node_id, self._sums, self._timeout_ns)
        self._start_membership(core.membership_log.current)

    def _start_membership(self, membership: Membership) -> None:
        self.roster.publish(membership)
        own = membership.get(self.node_id)
        if own is None and self.node_id in membership.removed:
            self._on_removed("its own log says so")

    @property
    def removed(self) -> bool:
        """Whether this node was removed from the cluster, or is an older copy, and takes no part."""
        return bool(self.desk.out_reason)

    @property
    def catching_up(self) -> bool:
        """Whether this node gives no vote, since its directory may have forgotten what it promised."""
        return self._quiet.catching_up

    # --- one turn ---------------------------------------------------------------------------------------

    def turn(self, records: list[bytes], commands: list[Command], now_ns: int) -> bool:
        """Handle what has come. Returns whether there is more to do at once. Raises StorageError, Diverged.

        `now_ns` was read after `records`: the promise that answers a leader's round begins now, and may not
        begin before that round was sent.
        """
        self._now = self.desk.now = now_ns
        # Time first: it passed before these records were read. Behind a leader's message it would count
        # against the promise that is given in answer.
        self._tick()
        for record in records:
            self._record(record)
        for command in commands:
            self._take(command)
        self._leave_failed_transfer()
        self._yield_leadership()
        self.desk.route_all()
        more = self.core.turn(self)
        self.desk.poll()
        if self.core.raw.has_ready():
            more = self.core.turn(self)
        self.audit.poll(now_ns)
        self.desk.sweep()
        self._farewells()
        if self._snapshots:
            self._report_snapshots()
        self.outbox.release_held(now_ns)
        if self._quiet.catching_up and not self.removed:
            self._vote_again()
        self._compact()
        self.finish()
        return more

    def _take(self, command: Command) -> None:
        if command.kind != CommandKind.SET_DEBUG:
            self.desk.take(command)
            return
        self.desk.debug = bool(command.arg1)
        self._worker["debug"] = int(self.desk.debug)
        log("LOG", f"node {self.node_id}: detailed logging is {'on' if self.desk.debug else 'off'}")
        self.desk.answer(command, answers.OK)

    def finish(self) -> None:
        """Lease, envelopes, status, answers: what a turn shows to others, in this order."""
        self.flush()
        self._display.publish(self._role, self.removed, self._now)
        if self.desk.deliver():
            self.flush()

    def deadline_ns(self) -> int:
        """When the next turn is due though nothing comes."""
        ticks = self.core.raw.ticks_to_deadline()
        due = self._last_tick_ns + ticks * self.core.tick_ns
        if self._must_not_campaign():
            due = max(due, self._quiet.until_ns, self._now + self._timeout_ns // 4)
        # The worker's beat stays fresh, and silence visible.
        due = min(due, self._now + self._timeout_ns // 4)
        for other in (self.desk.next_ns(), self.outbox.held_due_ns()):
            if other:
                due = min(due, other)
        return due

    def _tick(self) -> None:
        ticks = (self._now - self._last_tick_ns) // self.core.tick_ns
        if ticks <= 0:
            return
        self._last_tick_ns += ticks * self.core.tick_ns
        if self.removed:
            return
        # After a long freeze two election timeouts of ticks say all there is to say.
        for _ in range(min(ticks, 2 * self.core.election_tick)):
            if self._must_not_campaign():
                break
            self.core.raw.tick()
        self._forget_long_promise()

    def _must_not_campaign(self) -> bool:
        """Whether the next tick would begin a campaign, with a vote of its own that is promised away."""
        if self.raft.state == StateType.StateLeader or not self._quiet.holds(self._now):
            return False
        return self.core.raw.ticks_to_deadline() <= 1

    def _forget_long_promise(self) -> None:
        """Once the promises of an earlier worker have run out, only the present timeout counts."""
        if not self._first_quiet_ns or self._now < self._first_quiet_ns:
            return
        self._first_quiet_ns = 0
        identity, timeout_ms = self.roster.identity, self.config.election_timeout_ms
        if identity.election_timeout_ms > timeout_ms:
            self.roster.update(msgspec.structs.replace(identity, election_timeout_ms=timeout_ms))

    def _vote_again(self) -> None:
        """Once everything is here that an older copy of this directory may have promised."""
        raft, applied = self.raft, self.raft.raft_log.applied
        if raft.lead == NO_NODE or not self._catch_up.is_done(
            raft.term, applied, self.core.store.term(applied)
        ):
            return
        self._quiet.catching_up = False
        self.roster.update(msgspec.structs.replace(self.roster.identity, catching_up=False))
        log("LOG", f"node {self.node_id} has caught up at index {applied}, and gives its vote again")

    def _leave_failed_transfer(self) -> None:
        """A transfer that came to nothing leaves a leader that has ended its lease: a new term mends it."""
        raft = self.raft
        if raft.state != StateType.StateLeader or self.lease.term != raft.term or self.removed:
            return
        if self.lease.ended and raft.lead_transferee == NO_NODE:
            log("LOG", f"node {self.node_id} could not hand leadership over, and steps down")
            self.core.resign()

    @property
    def yields(self) -> Yields:
        """Whether this node had better not lead; the supervisor knows."""
        return self._yields

    @yields.setter
    def yields(self, yields: Yields) -> None:
        if yields != self._yields:
            self._yields = yields
            self._yield_again_ns = 0
            self._display.yields = yields != Yields.NO

    @property
    def has_yielded(self) -> bool:
        """Whether nothing keeps from a stop: this node leads no more, or nobody can take over from it."""
        if self._yields == Yields.NO:
            return False
        return not self.desk.leads or (self.raft.lead_transferee == NO_NODE and not self._successor())

    def _successor(self) -> int:
        return self.desk.best_successor(serving=self._yields == Yields.NOT_SERVING)

    def _yield_leadership(self) -> None:
        """Lead no more, where another can. One try an election: who has not taken over may be busy."""
        if self._yields == Yields.NO or not self.desk.leads or self._now < self._yield_again_ns:
            return
        successor = self._successor() if self.raft.lead_transferee == NO_NODE else NO_NODE
        if successor == NO_NODE:
            return
        self._yield_again_ns = self._now + 2 * self._timeout_ns
        why = "this node stops" if self._yields == Yields.STOPPING else "PostgreSQL does not serve here"
        log("LOG", f"node {self.node_id} hands leadership over to node {successor}: {why}")
        self.desk.begin_transfer(successor)

    def _farewells(self) -> None:
        if not self.roster.leaving:
            return
        over = self.roster.farewells_over(self._now)
        for node_id in over:
            self.outbox.forget(node_id)
            self.board.forget(node_id)
        if over:
            self.roster.publish(self.core.membership_log.current)

    def _compact(self) -> None:
        applied = self.raft.raft_log.applied
        if applied - self._compacted_check < self.config.snapshot_threshold:
            return
        self._compacted_check = applied
        self.core.compact(self.config, threshold=self.config.snapshot_threshold)

    # --- what peers send --------------------------------------------------------------------------------

    def _record(self, record: bytes) -> None:
        try:
            kind, node_id = unpack_prefix(record)
            match kind:
                case RecordKind.MESSAGE:
                    self._envelope(node_id, decode(record[ENVELOPE_OFFSET:]))
                case RecordKind.PEER_HELLO:
                    self._hello(node_id, unpack_peer_hello(record))
                case RecordKind.REFUSED_BY_PEER:
                    self._refused(node_id, unpack_refusal(record))
                case RecordKind.PEER_CONNECTED:
                    self.roster.connected(node_id)
                case RecordKind.PEER_DISCONNECTED:
                    self.roster.disconnected(node_id)
                    self.desk.reconnected(node_id)
                    self.core.raw.report_unreachable(node_id)
                case _:
                    self.malformed += 1
        except (RecordMalformed, BadEnvelope):
            self.malformed += 1

    def _hello(self, node_id: int, hello: PeerHello) -> None:
        self.roster.hello(node_id, hello)
        self.audit.reconnected(node_id)
        self.desk.reconnected(node_id)
        if self.roster.is_known(node_id):
            if self._acknowledged.is_another(node_id, hello):
                self.core.raw.report_another_log(node_id)
            refusal = self._acknowledged.judge(node_id, hello)
            if refusal is not None:
                self.roster.refuse_start(node_id, RefusedStart(hello.start.start_id, refusal))
        self.roster.publish(self.core.membership_log.current)

    def _envelope(self, sender: int, envelope: Envelope) -> None:
        honest = envelope.sender == sender == envelope.status.node_id
        if not honest or sender == self.node_id or not self.roster.is_trusted(sender):
            self.rejected += 1
            return
        why = self.door.envelope(envelope, self._newest_round)
        if why:
            self.door.turn_away(sender, why, self._now)
            return
        for reply in envelope.replies:
            self.desk.reply(sender, reply)
        if sender in self.roster.leaving:
            self.outbox.tell_removed(sender, self.roster.leaving[sender].index)
            return
        self.board.hear(envelope.status, self._now)
        if envelope.removed_index and self._believes_removal(sender, envelope.removed_index):
            self._on_removed(f"node {sender} says so: the change at index {envelope.removed_index}")
        if self.removed:
            if envelope.removed_index or self._outdated:
                return
            if not any(m.type in _FROM_LEADER and not self.door.message(m) for m in envelope.messages):
                self._vote_though_removed(sender, envelope.messages)
                return
            self._on_added_again()
        for message in envelope.messages:
            self._step(sender, message)
        raft = self.raft
        if envelope.round and self._follows(sender, envelope):
            self._quiet.promise(self._now + self.core.promise_ns)
            self.outbox.echo(sender, envelope.round, envelope.term)
        if envelope.echo and raft.state == StateType.StateLeader and envelope.echo_term == raft.term:
            self.lease.answer(sender, envelope.echo, envelope.promise_ms * 1_000_000)
        if envelope.table and raft.lead == sender:
            self.board.hear_table(envelope.table, sender, self._now)
            if self.roster.heard_of(envelope.table):
                self.roster.publish(self.core.membership_log.current)
            if envelope.status.term == raft.term:
                self._catch_up.hear(envelope.status, envelope.table)
        for call in envelope.calls:
            self.desk.call(sender, call)
        if envelope.inquiry is not None:
            self.desk.inquired(sender, envelope.inquiry)
        if envelope.digest is not None:
            self._hear_digest(sender, envelope.digest, envelope.term)

    def _hear_digest(self, sender: int, digest: Digest, term: int) -> None:
        """Checksums count from the leader that this node follows, and questions from members."""
        raft, current = self.raft, self.core.membership_log.current
        if raft.state == StateType.StateLeader:
            if digest.asks and current.get(sender) is not None:
                self.audit.asked(sender, digest)
        elif raft.lead == sender and raft.term == term and current.is_voter(sender):
            self.audit.follow(sender, term)
            self.audit.hear(digest, self._now)

    def _vote_though_removed(self, sender: int, messages: list[Message]) -> None:
        """Who asks may have forgotten the commit of the removal, and then needs this vote to go on."""
        for message in messages:
            if message.type in _VOTES and not self.door.message(message):
                # The core would stay true to the leader that removed this node; promises are kept in Quiet.
                self.core.raw.forget_leader()
                self._step(sender, message)

    def _believes_removal(self, sender: int, index: int) -> bool:
        """Whether the change at `index` has removed this node, since `sender` says so.

        A member's word counts, and where this node hears a leader, that one's alone: else a word of anybody's
        would end its part. Not when it has applied that change and is a member: it was added again.
        """
        current, lead = self.core.membership_log.current, self.raft.lead
        if current.get(sender) is None or (self._hears_leader() and sender != lead):
            self.rejected += 1
            return False
        return self.raft.raft_log.applied < index or current.get(self.node_id) is None

    def _hears_leader(self) -> bool:
        lead = self.raft.lead
        return lead != NO_NODE and self.board.is_reachable(lead, self._now)

    def _follows(self, sender: int, envelope: Envelope) -> bool:
        """Whether the sender leads this node, and its messages of this term have just renewed that."""
        raft = self.raft
        if raft.lead != sender or raft.term != envelope.term:
            return False
        return any(m.type in _FROM_LEADER and m.term == raft.term for m in envelope.messages)

    def _step(self, sender: int, message: Message) -> None:
        if message.from_ != sender or message.to != self.node_id:
            self.rejected += 1
            return
        why = self.door.message(message)
        if why:
            self.door.turn_away(sender, why, self._now)
            return
        if self._quiet.drops(message, self._now):
            return
        if self.desk.debug:
            log("DEBUG", f"node {self.node_id} got {message.type.name} of term {message.term} from {sender}")
        committed = self.raft.raft_log.committed
        if message.type is MessageType.MsgAppResp and not message.reject:
            self._acknowledged.heard(sender, message.term, message.index)
        try:
            self.core.raw.step(message)
        except RaftError:
            # From a node that is no member any more, or of a kind that must not travel: nothing changes.
            self.rejected += 1
            return
        if message.type in _FROM_LEADER:
            self._compare_terms(message, committed)

    def _compare_terms(self, message: Message, committed: int) -> None:
        """With what was committed before it came. Only a member counts that this node follows, after the
        message, in its present term: what is left of an earlier leader has a lower one. Raises Diverged."""
        raft = self.raft
        if raft.lead != message.from_ or raft.term != message.term:
            return
        found = conflict(raft.raft_log, committed, message)
        if found is not None and self.core.membership_log.current.is_voter(message.from_):
            self.audit.follow(raft.lead, raft.term)
            self.audit.suspect_terms(found, self._now)

    def _refused(self, node_id: int, refusal: Refusal) -> None:
        self.roster.refused(node_id, refusal)
        # A peer that lags may bar this node though it was added again: the leader knows better.
        if refusal.code == RefusalCode.REMOVED and not self._hears_leader():
            self._on_removed(f"node {node_id} refuses it")
        elif refusal.code in _OUTDATED:
            self._on_outdated(node_id, refusal)
        elif refusal.code in _BARRED and not self.raft.lead:
            self.barred = f"refused by node {node_id}: {refusal.text}"

    def _on_outdated(self, node_id: int, refusal: Refusal) -> None:
        """There is a newer state of this node, or was one: what it has forgotten, it may not decide on."""
        if self._outdated or self.core.membership_log.current.get(node_id) is None:
            return
        self._outdated = self.barred = f"refused by node {node_id}: {refusal.text}"
        log(
            "ERROR",
            f"node {self.node_id} takes no part any more: {self._outdated}",
            hint=refusal.hint,
        )
        self.lease.end()
        if self.core.leads:
            self.core.resign()
        self.desk.out(self._outdated)

    def _on_removed(self, why: str) -> None:
        if self.removed:
            return
        log(
            "WARNING",
            f"node {self.node_id} was removed from the cluster and takes no part any more ({why})",
            hint="Stop it with pgraft-launch stop, or add it again with pgraft_add_node() on the leader.",
        )
        self.lease.end()
        self.desk.out(f"node {self.node_id} was removed from the cluster")

    def _on_added_again(self) -> None:
        self.desk.out_reason = ""
        log("LOG", f"node {self.node_id} hears a leader again, and takes part again")

    # --- what the core does (core.Effects) -------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message. A hand-over ends the lease before the successor can hear of it."""
        if self.desk.debug:
            log("DEBUG", f"node {self.node_id} sends {message.type.name} to node {message.to}")
        may_wait = False
        match message.type:
            case MessageType.MsgTimeoutNow:
                self.lease.end()
            case MessageType.MsgApp:
                progress = self.raft.trk.progress.get(message.to)
                may_wait = progress is not None and progress.state == ProgressState.StateReplicate
            case MessageType.MsgSnap if message.snapshot is not None:
                fitting = admitting(message.snapshot, message.to)
                message = msgspec.structs.replace(message, snapshot=fitting)
                self._snapshots[message.to] = self._now
            case _:
                pass
        self.outbox.add(message, may_wait=may_wait, now_ns=self._now)

    def _report_snapshots(self) -> None:
        """A snapshot that was not answered within an election timeout counts as lost."""
        for node_id, sent_ns in list(self._snapshots.items()):
            progress = self.raft.trk.progress.get(node_id)
            if progress is None or progress.state != ProgressState.StateSnapshot:
                del self._snapshots[node_id]
            elif self._now - sent_ns > self._timeout_ns:
                del self._snapshots[node_id]
                self.core.raw.report_snapshot(node_id, False)

    def flush(self) -> None:
        """Publish the lease, then let the envelopes go."""
        now = clock()
        asks = self._asks_for_lease()
        if asks:
            self.lease.answer(self.node_id, now, self._timeout_ns)
        self._publish_lease()
        if self.roster.tell_network() and self.outbox.publish():
            self.outbox.ring()
        if not self.outbox.is_due():
            return
        if asks:
            self._newest_round = now
        own = self._display.own_status()
        if self.outbox.flush(own, self._table(own, now), self._digest, round_ns=now if asks else 0):
            self.outbox.ring()
        for node_id in self.outbox.take_lost():
            self.core.raw.report_unreachable(node_id)
        self.desk.not_sent(self.outbox.take_unsent())

    def _table(self, own: NodeStatus, now: int) -> Callable[[], list[NodeStatus]]:
        return lambda: self.board.table(own, self.roster.incarnation_of, now)

    def _digest(self, node_id: int, beats: bool) -> Digest | None:
        raft = self.raft
        if raft.state == StateType.StateLeader:
            return self.audit.word(node_id) if beats else None
        return self.audit.question(self._now) if raft.lead == node_id else None

    def _asks_for_lease(self) -> bool:
        """Whether this flush asks for a round of the lease: with heartbeats, and while there is no lease.

        Every append could ask, too, but heartbeats renew it long before it ends.
        """
        if self.raft.state != StateType.StateLeader or self.lease.ended:
            return False
        return self.outbox.beats or self._lease_ref.load() == 0 or self._is_alone()

    def _is_alone(self) -> bool:
        state = self.core.membership_log.current.conf_state
        return len(state.voters) == 1 and not state.voters_outgoing

    def _publish_lease(self) -> None:
        raft = self.raft
        basis = (raft.state, raft.term, self._led_term, self.core.membership_log.current, self.removed)
        if not self.lease.changed and basis == self._lease_basis:
            return
        self._lease_basis = basis
        end = 0
        # Only after its first own commit does a leader know the commit index (section 8 of the paper).
        if raft.state == StateType.StateLeader and self._led_term == raft.term and not self.removed:
            end = self.lease.end_ns(self.core.membership_log.current.halves())
        self._lease_ref.store(end)

    def on_role(self) -> None:
        """React to a change of term, leader or role."""
        raft = self.raft
        role = (raft.term, raft.lead, raft.state)
        if role == self._role:
            return
        (old_term, old_lead, old_state), self._role = self._role, role
        self.audit.follow(raft.lead, raft.term)
        self.outbox.drop_held()
        led = old_state == StateType.StateLeader
        leads = raft.state == StateType.StateLeader
        if led and (not leads or raft.term != old_term):
            self.lease.end()
            self._publish_lease()
            text = f"node {self.node_id} leads no more: "
            if raft.term == old_term:
                text += f"it steps down at term {old_term}"
            else:
                text += f"its term {old_term} is over, the term is {raft.term}"
            log("LOG", text, detail=f"{answers.voters_text(self.desk.voters())}.")
            self.desk.deposed()
        if leads and (not led or raft.term != old_term):
            self.lease.begin(raft.term)
            self._acknowledged.begin(raft.term)
            self._worker.add("elections")
            log("LOG", f"node {self.node_id} is the leader at term {raft.term}")
        if raft.lead == old_lead and raft.term != old_term:
            # It may be another worker, which knows nothing of what its predecessor was asked.
            self.desk.reconnected(raft.lead)
        if raft.lead != old_lead:
            self.desk.leader_changed(raft.lead)
            if raft.lead and not leads:
                self.barred = self._outdated
                log("LOG", f"node {self.node_id} follows node {raft.lead} at term {raft.term}")
            elif not raft.lead and not led:
                self._log_lost_leader(old_lead, old_term)

    def _log_lost_leader(self, lead: int, term: int) -> None:
        if self.raft.term != term:
            why = f"term {self.raft.term} has begun"
        else:
            silent_ms = (self._now - self.board.heard_ns(lead)) // 1_000_000
            why = f"nothing was heard from it for {silent_ms} ms"
        log("LOG", f"node {self.node_id} follows node {lead} at term {term} no more: {why}")

    def on_committed(self, entries: list[Entry]) -> None:
        """Apply: membership changes take effect, sessions get their answer."""
        self._sums.extend(entries)
        for entry in entries:
            if entry.type:
                self._apply_change(entry)
        last = entries[-1]
        if self.raft.state == StateType.StateLeader:
            if last.term == self.raft.term and self._led_term != last.term:
                self._led_term = last.term
                self._tell_pending()
            self._acknowledged.committed(last.index)
            self.desk.committed(last.index)
        self._mark_formed()

    def _tell_pending(self) -> None:
        """What an earlier leader may have begun: the call that added a node ended with it as unknown."""
        membership = self.core.membership_log.current
        for node_id in membership.conf_state.learners:
            node = membership.get(node_id)
            if node is not None:
                call = f"pgraft_add_node({node_id}, '{node.address}', {node.port})"
                log(
                    "LOG",
                    f"the addition of node {node_id} is not finished: it is a learner",
                    hint=f"SELECT {call} finishes it, pgraft_remove_node({node_id}) ends it.",
                )

    def _mark_formed(self) -> None:
        if not self.roster.identity.formed:
            self.roster.update(msgspec.structs.replace(self.roster.identity, formed=True))

    def _apply_change(self, entry: Entry) -> None:
        change = decode_change(entry)
        if change is None:
            return
        states = self.core.membership_log
        before = states.current
        try:
            conf_state = self.core.raw.apply_conf_change(change)
        except RaftError as error:
            # Committed, and impossible: no pgraft leader wrote it, and nobody can go on from here.
            raise MembershipError(f"the membership change at index {entry.index}: {error}") from error
        states.record(entry.index, before.apply(change, conf_state))
        left = before.get(change.node_id)
        if left is None:
            self.roster.came(change.node_id)
        elif states.current.get(change.node_id) is None:
            if change.node_id in states.current.removed:
                until = self._now + FAREWELL_ELECTION_TIMEOUTS * self._timeout_ns
                self.roster.left(left, entry.index, until)
                self.outbox.tell_removed(change.node_id, entry.index)
            else:
                self.roster.taken_back(change.node_id)
        # On disk before anyone hears of it: who was removed may be gone for good, and a node that forgot
        # the commit would ask it for its vote.
        self.core.write_commit()
        text = f"Voters {list(conf_state.voters)}, learners {list(conf_state.learners)}."
        log("LOG", f"membership changed at index {entry.index}, term {entry.term}", detail=text)
        self.roster.publish(states.current)
        # One that was taken back before it ever voted just waits to be added again.
        if left is not None and left.node_id == self.node_id and self.node_id in states.current.removed:
            self._on_removed(f"the change at index {entry.index}")

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """The leader's snapshot took the place of the log."""
        state = from_snapshot(snapshot)
        self.core.membership_log.reset(snapshot.metadata.index, state)
        self.roster.publish(state)
        self._compacted_check = snapshot.metadata.index
        self.audit.restored(snapshot.metadata.index)
        self._mark_formed()
        log("LOG", f"node {self.node_id} starts from the snapshot at index {snapshot.metadata.index}")

    def on_read(self, index: int, context: bytes) -> None:
        """A read barrier got its index: everything up to it is committed."""
        self.desk.read_index(index, context)
