"""One replica: records of peers, requests of sessions and the time in; what to write, send and answer out.

`Replica.step` is the only way in. It owns no file, no ring and no clock: what it wants done it returns, in
the order of `turn.carry_out`. See README.md, "The order of a step".
"""

from __future__ import annotations

import msgspec

from pgraft.node import answers
from pgraft.node.board import Board
from pgraft.node.commands import Command
from pgraft.node.core import Core
from pgraft.node.desk import Desk
from pgraft.node.display import Display
from pgraft.node.door import Door
from pgraft.node.envelope import BadEnvelope, Envelope, decode
from pgraft.node.leadership import Leadership
from pgraft.node.membership import Membership, MembershipError, admitting, decode_change, from_snapshot
from pgraft.node.outbox import Outbox
from pgraft.node.outputs import NETWORK_PROCESS, Inputs, LogLine, LogLines, Outputs, Sending, Shown
from pgraft.node.quiet import Quiet
from pgraft.node.roster import Roster
from pgraft.postgres.settings import NodeConfig
from pgraft.raft import ProgressState, RaftError, Ready
from pgraft.raft.types import NO_NODE, Entry, Message, MessageType, Snapshot, StateType
from pgraft.shm.layout import CommandKind
from pgraft.transport.records import (
    ENVELOPE_OFFSET,
    RecordKind,
    RecordMalformed,
    Refusal,
    RefusalCode,
    unpack_peer_hello,
    unpack_prefix,
    unpack_refusal,
)

FAREWELL_ELECTION_TIMEOUTS = 3
"""For how long a removed node still hears that it was removed."""

_FROM_LEADER = frozenset((MessageType.MsgApp, MessageType.MsgHeartbeat, MessageType.MsgSnap))
BEFORE_SYNC = _FROM_LEADER
"""They promise nothing: a leader's may leave before its own write is done."""
_VOTES = frozenset((MessageType.MsgVote, MessageType.MsgPreVote))
_OF_MEMBERS = frozenset((MessageType.MsgReadIndex, MessageType.MsgVoteResp, MessageType.MsgPreVoteResp))
"""Who is none may send them all the same, since it does not know yet; they are of no use then."""
_BARRED = frozenset((RefusalCode.MEMBER_ID_CHANGED, RefusalCode.DUPLICATE))


class Replica:
    """Consensus as one node sees it. All times are CLOCK_BOOTTIME ns."""

    def __init__(
        self,
        config: NodeConfig,
        core: Core,
        roster: Roster,
        board: Board,
        outbox: Outbox,
        desk: Desk,
        quiet: Quiet,
        log: LogLines,
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
        self.door = Door(config.node_id, core, log)
        self.leadership = Leadership(config, core, roster, desk, quiet, log, started_ns)
        self.lease = self.leadership.lease
        self.rejected = 0
        self.malformed = 0
        self.elections = 0
        self.barred = ""
        self._log = log
        self._quiet = quiet
        self._timeout_ns = config.election_timeout_ms * 1_000_000
        self._display = Display(config, core, board)
        self.outputs = Outputs()
        self._network_epoch = 0
        self._now = started_ns
        self._role = (self.raft.term, self.raft.lead, self.raft.state)
        self._snapshots: dict[int, int] = {}
        self._forms = False
        self._hand_over: tuple[int, Message] | None = None
        self._goes_on = False
        self._compacted_check = core.applied
        self._start_membership(core.membership_log.current)

    def _start_membership(self, membership: Membership) -> None:
        self.roster.publish(membership)
        own = membership.get(self.node_id)
        if own is None and self.node_id in membership.removed:
            self._on_removed("its own log says so")

    @property
    def removed(self) -> bool:
        """Whether this node was removed from the cluster and takes no part."""
        return bool(self.desk.out_reason)

    # --- one step ---------------------------------------------------------------------------------------

    def step(self, inputs: Inputs, now_ns: int) -> Outputs:
        """Handle what has come, and take at most one Ready of the core. Raises StorageError, MembershipError
        and InvariantViolation; then this replica takes part no more.

        Everything of the step before was carried out. `now_ns` was read after `inputs.records`: the promise
        that answers a leader's round begins now, and may not begin before that round was sent.
        """
        outputs = self._begin(inputs, now_ns)
        # Time first: it passed before these records were read. Behind a leader's message it would count
        # against the promise that is given in answer.
        self.leadership.begin_step(now_ns, inputs.yields)
        for record in inputs.records:
            self._record(record)
        for command in inputs.commands:
            self._take(command)
        self.leadership.way_out(now_ns)
        self.desk.route_all()
        ready = self.core.take()
        if ready is not None:
            self._handle(ready, outputs)
        if self.desk.polls:
            self.desk.poll()
            self._goes_on = True
        self.desk.sweep()
        if self.roster.leaving:
            self._farewells()
        if self._snapshots:
            self._report_snapshots()
        self.outbox.release_held(now_ns)
        self._compact(outputs)
        outputs.more = self.core.has_more(also_new=self._goes_on) or self._hand_over is not None
        if ready is not None and self._goes_on and self.desk.polls:
            # What goes on there may have waited for what has just been applied.
            outputs.more = True
        self._finish(outputs)
        return outputs

    def _begin(self, inputs: Inputs, now_ns: int) -> Outputs:
        self._now = self.desk.now = now_ns
        self._goes_on = False
        self.outputs.clear()
        self.core.advance()
        self._network_epoch = inputs.network_epoch
        for node_id in inputs.unsent:
            if node_id == NETWORK_PROCESS:
                self.roster.tell_again()
            else:
                self.core.raw.report_unreachable(node_id)
        if self._forms:
            self._mark_formed()
        if self._hand_over is not None:
            (sender, message), self._hand_over = self._hand_over, None
            self._step(sender, message)
        return self.outputs

    def begin_stop(self) -> int:
        """Start to hand leadership over, with the next step. The node that is to lead, 0 for none."""
        return self.leadership.hand_over_for_stop()

    def stop(self, now_ns: int) -> Outputs:
        """The last step: the lease ends, everybody who waits is answered, and the commit index is written."""
        outputs = self._begin(Inputs(network_epoch=self._network_epoch), now_ns)
        self.lease.end()
        self.desk.stop()
        self.core.persist_commit(outputs)
        self._finish(outputs)
        return outputs

    def take_log_lines(self) -> list[LogLine]:
        """What a step that raised had to say."""
        return self._log.take()

    def _take(self, command: Command) -> None:
        if command.kind != CommandKind.SET_DEBUG:
            self.desk.take(command)
            return
        self.desk.debug = bool(command.arg1)
        self._log("LOG", f"node {self.node_id}: detailed logging is {'on' if self.desk.debug else 'off'}")
        self.desk.answer(command, answers.OK)

    def _handle(self, ready: Ready, outputs: Outputs) -> None:
        """Sort a Ready into what goes before the write, the write, and what goes after it."""
        core = self.core
        self._notice_role(outputs)
        promises = core.promises(ready)
        early = core.leads and not promises
        after: list[Message] = []
        for message in ready.messages:
            if early and message.type in BEFORE_SYNC:
                self._send(message)
            else:
                after.append(message)
        if core.persist(ready, promises, outputs) and not promises and self.outbox.is_due():
            outputs.early = self._envelopes(outputs, due=True, promises=False)
        if ready.snapshot is not None:
            self._on_snapshot(ready.snapshot)
        for message in after:
            self._send(message)
        if ready.committed_entries:
            self._on_committed(ready.committed_entries, outputs)
        for read in ready.read_states:
            self.desk.read_index(read.index, read.request_ctx)

    def _finish(self, outputs: Outputs) -> None:
        """What a step shows to others."""
        self.desk.deliver(outputs)
        due = self.outbox.is_due()
        if due or not outputs.more:
            outputs.late = self._envelopes(outputs, due=due, promises=True)
        else:
            self.leadership.show(outputs)
        self.roster.give(outputs, self._network_epoch)
        if self._log.lines:
            outputs.log = self._log.take()
        outputs.deadline_ns = self._now
        if outputs.more and not outputs.answers and not outputs.late and outputs.lease_begin_ns is None:
            # The next step follows at once, and nobody hears of what this one would show.
            return
        self._display.publish(outputs, self._role, self.removed, self._now)
        outputs.shown = self._shown()
        outputs.gathers_until_ns = self.desk.gathers_until()
        if not outputs.more:
            outputs.deadline_ns = self._deadline_ns()

    def _shown(self) -> Shown:
        return Shown(
            self.elections,
            self.rejected,
            self.malformed,
            self.door.absurd,
            self.desk.debug,
            self.leadership.has_yielded,
            bool(self.core.membership_log.current.nodes),
            self.desk.out_reason,
            self.barred,
        )

    def _deadline_ns(self) -> int:
        """When the next step is due though nothing comes."""
        # The worker's beat stays fresh, and silence visible.
        due = min(self.leadership.tick_due_ns(self._now), self._now + self._timeout_ns // 4)
        for other in (self.desk.next_ns(), self.outbox.held_due_ns()):
            if other:
                due = min(due, other)
        return due

    def _farewells(self) -> None:
        over = self.roster.farewells_over(self._now)
        for node_id in over:
            self.outbox.forget(node_id)
            self.board.forget(node_id)
        if over:
            self.roster.publish(self.core.membership_log.current)

    def _compact(self, outputs: Outputs) -> None:
        applied = self.core.applied
        due = applied - self._compacted_check >= self.config.snapshot_threshold
        if not due and not self.desk.compactions:
            return
        snapshot = outputs.snapshot
        if snapshot is None:
            threshold = 1 if self.desk.compactions else self.config.snapshot_threshold
            outputs.compact = snapshot = self.core.compact(self.config, threshold=threshold)
        if due:
            self._compacted_check = applied
        if snapshot is not None:
            self.desk.compacted(snapshot.metadata.index)
        else:
            self.desk.compacted(self.core.store.first_index() - 1)

    # --- what peers send --------------------------------------------------------------------------------

    def _record(self, record: bytes) -> None:
        try:
            kind, node_id = unpack_prefix(record)
            match kind:
                case RecordKind.MESSAGE:
                    self._envelope(node_id, decode(record[ENVELOPE_OFFSET:]))
                case RecordKind.PEER_HELLO:
                    self.roster.hello(node_id, unpack_peer_hello(record))
                    self.roster.publish(self.core.membership_log.current)
                case RecordKind.REFUSED_BY_PEER:
                    self._refused(node_id, unpack_refusal(record))
                case RecordKind.PEER_CONNECTED:
                    self.roster.connected(node_id)
                case RecordKind.PEER_DISCONNECTED:
                    self.roster.disconnected(node_id)
                    self.core.raw.report_unreachable(node_id)
                case _:
                    self.malformed += 1
        except (RecordMalformed, BadEnvelope):
            self.malformed += 1

    def _envelope(self, sender: int, envelope: Envelope) -> None:
        honest = envelope.sender == sender == envelope.status.node_id
        if not honest or sender == self.node_id or not self.roster.is_trusted(sender):
            self.rejected += 1
            return
        why = self.door.envelope(envelope, self.leadership.newest_round)
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
            if envelope.removed_index:
                return
            if not any(m.type in _FROM_LEADER and not self.door.message(m) for m in envelope.messages):
                self._vote_though_removed(sender, envelope.messages)
                return
            self._on_added_again()
        raft = self.raft
        for message in envelope.messages:
            if message.type is MessageType.MsgTimeoutNow and raft.raft_log.committed > self.core.applied:
                # The core does not campaign with a membership change that is not applied. This step applies
                # what came just before, in this envelope; the next one campaigns.
                self._hand_over = (sender, message)
            else:
                self._step(sender, message)
        if envelope.round and self._follows(sender, envelope):
            self._quiet.promise(self._now + self.core.promise_ns)
            self.outbox.echo(sender, envelope.round, envelope.term)
        if envelope.echo and raft.state == StateType.StateLeader and envelope.echo_term == raft.term:
            self.lease.answer(sender, envelope.echo, envelope.promise_ms * 1_000_000)
        if envelope.table and raft.lead == sender:
            self.board.hear_table(envelope.table, sender, self._now)
        if envelope.calls and not self._is_member(sender):
            self.rejected += 1
            return
        for call in envelope.calls:
            self.desk.call(sender, call)

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
        return self.core.applied < index or current.get(self.node_id) is None

    def _is_of_no_use(self, sender: int, message: Message) -> bool:
        """Whether what a true node may say comes from one that is not, or no longer, of a kind to say it."""
        if message.type is MessageType.MsgReadIndex:
            return not self._is_member(sender)
        return not self.core.membership_log.current.is_voter(sender)

    def _is_member(self, node_id: int) -> bool:
        """Whether its sessions are served here. One that was removed may not know it yet."""
        return self.core.membership_log.current.get(node_id) is not None

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
        if message.type in _OF_MEMBERS and self._is_of_no_use(sender, message):
            self.rejected += 1
            return
        if self._quiet.drops(message, self._now):
            return
        if message.type is MessageType.MsgTimeoutNow and self.raft.lead != sender:
            # Only the leader may have this node campaign against promises: it has ended its lease before.
            return
        if self.desk.debug:
            text = f"node {self.node_id} got {message.type.name} of term {message.term} from {sender}"
            self._log("DEBUG", text)
        try:
            self.core.raw.step(message)
        except RaftError:
            # From a node that is no member any more, or of a kind that must not travel: nothing changes.
            self.rejected += 1

    def _refused(self, node_id: int, refusal: Refusal) -> None:
        self.roster.refused(node_id, refusal)
        # A peer that lags may bar this node though it was added again: the leader knows better.
        if refusal.code == RefusalCode.REMOVED and not self._hears_leader():
            self._on_removed(f"node {node_id} refuses it")
        elif refusal.code in _BARRED and not self.raft.lead:
            self.barred = f"refused by node {node_id}: {refusal.text}"

    def _on_removed(self, why: str) -> None:
        if self.removed:
            return
        self._log(
            "WARNING",
            f"node {self.node_id} was removed from the cluster and takes no part any more ({why})",
            hint="Stop it with pgraft-launch stop, or add it again with pgraft_add_node() on the leader.",
        )
        self.lease.end()
        self.desk.out(f"node {self.node_id} was removed from the cluster")

    def _on_added_again(self) -> None:
        self.desk.out_reason = ""
        self._log("LOG", f"node {self.node_id} hears a leader again, and takes part again")

    # --- what the core wants ----------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        """Queue a message. A hand-over ends the lease before the successor can hear of it."""
        if self.desk.debug:
            self._log("DEBUG", f"node {self.node_id} sends {message.type.name} to node {message.to}")
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
                self._goes_on = True

    def _envelopes(self, outputs: Outputs, *, due: bool, promises: bool) -> list[Sending]:
        """All that is gathered, one envelope a peer; where it asks for a round, that counts from now.

        The round's time was read before the envelopes leave, so that the lease is no longer for that. With
        `promises`: behind the write, so that rounds of a leader may be answered.
        """
        now = self._now
        asks = self.leadership.ask_round(now, beats=self.outbox.beats)
        self.leadership.show(outputs)
        if not due:
            return []
        if asks:
            self.leadership.newest_round = now
        own = self._display.own_status(yields=bool(self.leadership.yields))
        return self.outbox.flush(
            own,
            lambda: self.board.table(own, now),
            round_ns=now if asks else 0,
            promises=promises,
        )

    def _notice_role(self, outputs: Outputs) -> None:
        """React to a change of term, leader or role."""
        raft = self.raft
        role = (raft.term, raft.lead, raft.state)
        if role == self._role:
            return
        (old_term, old_lead, old_state), self._role = self._role, role
        self.outbox.drop_held()
        led = old_state == StateType.StateLeader
        leads = raft.state == StateType.StateLeader
        if led and (not leads or raft.term != old_term):
            self.lease.end()
            self.leadership.show(outputs)
            text = f"node {self.node_id} leads no more: "
            if raft.term == old_term:
                text += f"it steps down at term {old_term}"
            else:
                text += f"its term {old_term} is over, the term is {raft.term}"
            self._log("LOG", text, detail=f"{answers.voters_text(self.desk.voters())}.")
            self.desk.deposed()
        if leads and (not led or raft.term != old_term):
            self.lease.begin(raft.term)
            self.elections += 1
            self._log("LOG", f"node {self.node_id} is the leader at term {raft.term}")
        if raft.lead != old_lead:
            self.desk.leader_changed(raft.lead)
            if raft.lead and not leads:
                self.barred = ""
                self._log("LOG", f"node {self.node_id} follows node {raft.lead} at term {raft.term}")
            elif not raft.lead and not led:
                self._log_lost_leader(old_lead, old_term)

    def _log_lost_leader(self, lead: int, term: int) -> None:
        if self.raft.term != term:
            why = f"term {self.raft.term} has begun"
        else:
            silent_ms = (self._now - self.board.heard_ns(lead)) // 1_000_000
            why = f"nothing was heard from it for {silent_ms} ms"
        self._log("LOG", f"node {self.node_id} follows node {lead} at term {term} no more: {why}")

    def _on_committed(self, entries: list[Entry], outputs: Outputs) -> None:
        """Apply: membership changes take effect, sessions get their answer."""
        for entry in entries:
            if entry.type:
                self._apply_change(entry, outputs)
        last = entries[-1]
        self.core.applied = last.index
        if self.raft.state == StateType.StateLeader:
            if last.term == self.raft.term and self.leadership.led_term != last.term:
                self.leadership.led_term = last.term
                self._tell_pending()
            self.desk.committed(last.index)
        self._mark_formed()

    def _tell_pending(self) -> None:
        """What an earlier leader may have begun: the call that added a node ended with it as unknown."""
        membership = self.core.membership_log.current
        for node_id in membership.conf_state.learners:
            node = membership.get(node_id)
            if node is not None:
                call = f"pgraft_add_node({node_id}, '{node.address}', {node.port})"
                self._log(
                    "LOG",
                    f"the addition of node {node_id} is not finished: it is a learner",
                    hint=f"SELECT {call} finishes it, pgraft_remove_node({node_id}) ends it.",
                )

    def _mark_formed(self) -> None:
        """The cluster lives: never again start from the initial list. Where nothing is stored yet, one step
        later: the identity is written first, and with nothing behind it no start would be allowed."""
        if self.roster.identity.formed:
            return
        self._forms = self.core.store.is_empty
        if not self._forms:
            self.roster.update(msgspec.structs.replace(self.roster.identity, formed=True))

    def _apply_change(self, entry: Entry, outputs: Outputs) -> None:
        change = decode_change(entry)
        if change is None:
            return
        states = self.core.membership_log
        before = states.current
        try:
            conf_state = self.core.raw.apply_conf_change(change)
            self._goes_on = True
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
        self.core.persist_commit(outputs)
        text = f"Voters {list(conf_state.voters)}, learners {list(conf_state.learners)}."
        self._log("LOG", f"membership changed at index {entry.index}, term {entry.term}", detail=text)
        self.roster.publish(states.current)
        # One that was taken back before it ever voted just waits to be added again.
        if left is not None and left.node_id == self.node_id and self.node_id in states.current.removed:
            self._on_removed(f"the change at index {entry.index}")

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        """The leader's snapshot took the place of the log."""
        state = from_snapshot(snapshot)
        self.core.membership_log.reset(snapshot.metadata.index, state)
        self.roster.publish(state)
        self.core.applied = self._compacted_check = snapshot.metadata.index
        self._mark_formed()
        self._log("LOG", f"node {self.node_id} starts from the snapshot at index {snapshot.metadata.index}")
