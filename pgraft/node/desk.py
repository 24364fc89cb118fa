"""Where commands are taken in, sent on, and answered.

A command of a session waits here for a leader, for the commit of its entry, for the answer of the
leader it was forwarded to, or for a membership change to run its course. Whatever happens, it is
answered once, and never carried out twice: nothing here sends or proposes a command again whose
entry may be in a log.
"""

from __future__ import annotations

import msgspec

from pgraft.node import answers
from pgraft.node.board import Board
from pgraft.node.commands import Answer, Command
from pgraft.node.core import Core
from pgraft.node.envelope import Call, Reply
from pgraft.node.outbox import Outbox
from pgraft.node.outputs import LogLines, Outputs
from pgraft.node.queue import ChangeQueue
from pgraft.node.roster import Roster
from pgraft.node.router import DATA_PREFIX, Forwarded, Proposals, Waiting
from pgraft.node.standing import Standing
from pgraft.postgres.settings import NodeConfig
from pgraft.raft import ErrProposalDropped
from pgraft.raft.types import Entry
from pgraft.shm.layout import SLOT_PAYLOAD_BYTES, CommandKind, Outcome

BOOTSTRAP_INDEX = 1
"""Where every node of the initial cluster starts: the same snapshot, made from the same list."""
SWEEP_INTERVAL_NS = 20_000_000
"""How exactly the times of waiting commands are kept."""
GATHER_NS = 10_000_000
"""For how long after an append the next commands wait for its commit at most: a round on a local network is
shorter, also on a busy machine, and on a wide one it adds little."""
_READ_ONE = 2**62


class _Asked(msgspec.Struct, frozen=True):
    """A read barrier on its way to the leader, since `at_ns`."""

    command: Command
    at_ns: int


_CHANGES = (
    CommandKind.ADD_NODE,
    CommandKind.REMOVE_NODE,
    CommandKind.UPDATE_NODE,
    CommandKind.TRANSFER_LEADER,
)


class Desk(Standing):
    """Commands of one node's sessions, and those that other nodes forward to it."""

    def __init__(
        self,
        config: NodeConfig,
        core: Core,
        roster: Roster,
        board: Board,
        outbox: Outbox,
        nonce: int,
        log: LogLines,
    ) -> None:
        super().__init__(config, core, roster, board)
        self.config = config
        self.debug = False
        self._outbox = outbox
        self._log = log
        self._proposals = Proposals()
        self._forwarded = Forwarded(nonce)
        self._waiting = Waiting(self.election_timeout_ns)
        self._appends: list[Command] = []
        self._changes = ChangeQueue(self, self.answer)
        self._barriers: dict[bytes, _Asked] = {}
        self._reads: list[tuple[int, Command]] = []
        self._barrier_no = 0
        self._answers: list[tuple[Command, Answer]] = []
        self.compactions: list[Command] = []
        """Sessions that wait for one."""
        self._next_sweep_ns = 0
        self._appended_ns = 0
        self._entry_read: tuple[int, bytes | None] = (0, None)

    # --- what membership changes ask beside that (changes.Host) ----------------------------------------

    def notice(self, command: Command, text: str) -> None:
        """Tell the session, and the log, how far its command is."""
        self._log("LOG", text)
        self.answer(command, answers.progress(text))

    # --- taking in ------------------------------------------------------------------------------------

    def take(self, command: Command) -> None:
        """A command came, from a session or from another node."""
        if self.debug:
            text = f"node {self.node_id} took command kind {command.kind}, {len(command.data)} bytes"
            self._log("DEBUG", text)
        match command.kind:
            case CommandKind.REPLICATE:
                self._appends.append(command)
            case CommandKind.GET_ENTRY:
                self._get_entry(command)
            case CommandKind.INIT:
                out = self.out_reason
                self.answer(command, answers.not_running(out) if out else answers.OK)
            case CommandKind.READ_BARRIER | CommandKind.ADD_NODE:
                self._waiting.add(command, self.now)
            case CommandKind.REMOVE_NODE | CommandKind.UPDATE_NODE | CommandKind.TRANSFER_LEADER:
                self._waiting.add(command, self.now)
            case CommandKind.TAKE_SNAPSHOT:
                self.compactions.append(command)
            case _:
                self.answer(command, answers.argument(f"unknown command {command.kind}"))

    def call(self, sender: int, call: Call) -> None:
        """Another node forwards a command of one of its sessions."""
        if call.kind != CommandKind.REPLICATE and call.kind not in _CHANGES:
            return
        deadline = self.now + call.timeout_ms * 1_000_000
        command = Command(
            call.kind, 0, call.number, False, deadline, call.timeout_ms, call.arg1, call.arg2, call.data
        )
        command.peer, command.nonce = sender, call.nonce
        if len(call.data) > self.config.max_entry_bytes:
            text = f"{len(call.data)} bytes are more than the leader's pgraft.max_entry_size"
            self.answer(command, answers.argument(text))
            return
        self.take(command)

    def reply(self, sender: int, reply: Reply) -> None:
        """The leader answers a command that was forwarded to it."""
        if reply.nonce != self._forwarded.nonce or sender != self._forwarded.sent_to(reply.number):
            return
        answer = Answer(Outcome(reply.outcome), reply.value1, reply.value2, reply.payload)
        if answer.outcome == Outcome.PROGRESS:
            command = self._forwarded.get(reply.number)
        else:
            command = self._forwarded.take(reply.number)
        if command is not None:
            self.answer(command, answer)

    # --- to where it belongs --------------------------------------------------------------------------

    def route_all(self) -> None:
        """Give everything that needs a leader to the leader, wherever that is."""
        for command in self._waiting.take_all():
            if command.kind == CommandKind.REPLICATE:
                self._appends.append(command)
            else:
                self._route(command)
        if self._appends:
            commands, self._appends = self._appends, []
            if self.leads:
                self._append(commands)
            else:
                for command in commands:
                    self._route(command)

    def _append(self, commands: list[Command]) -> None:
        first = self.last_index + 1
        try:
            self._core.raw.propose_entries([DATA_PREFIX + command.data for command in commands])
        except ErrProposalDropped:
            # Leadership is being handed over, or too much is uncommitted: they wait.
            for command in commands:
                self._waiting.add(command, self.now)
            return
        self._proposals.add(self._raft.term, first, commands)
        self._appended_ns = self.now

    def _route(self, command: Command) -> None:
        leader = self.leader_id
        if self.out_reason:
            self.answer(command, answers.not_running(self.out_reason))
        elif not leader:
            self._waiting.add(command, self.now)
        elif command.kind == CommandKind.READ_BARRIER:
            self._start_barrier(command)
        elif leader == self.node_id:
            self._changes.add(command)
        elif command.forward and not command.peer:
            self.forward_to_leader(command)
        else:
            self.answer(command, answers.not_leader(self.membership.get(leader), leader))

    def forward_to_leader(self, command: Command) -> None:
        """Let the leader carry the command out; its answer comes back to the session here."""
        leader = self.leader_id
        number = self._forwarded.add(command, leader)
        left_ms = max(1, (command.deadline_ns - self.now) // 1_000_000)
        nonce = self._forwarded.nonce
        call = Call(nonce, number, command.kind, left_ms, command.arg1, command.arg2, command.data)
        self._outbox.call(leader, call)

    def _start_barrier(self, command: Command) -> None:
        self._barrier_no += 1
        context = self._forwarded.nonce.to_bytes(8, "little") + self._barrier_no.to_bytes(8, "little")
        self._barriers[context] = _Asked(command, self.now)
        self._core.raw.read_index(context)

    def _get_entry(self, command: Command) -> None:
        index, offset = command.arg1, command.arg2
        store = self._core.store
        first, committed = store.first_index(), min(self.applied, store.last_index())
        if index == BOOTSTRAP_INDEX == first - 1:
            # What every node of the initial cluster starts from: members, and no user data.
            self.answer(command, Answer(Outcome.NULL_ENTRY))
            return
        if not first <= index <= committed:
            self.answer(command, _no_such_entry(index, first, committed))
            return
        if self._entry_read[0] != index:
            self._entry_read = (index, _user_data(store.entries(index, index + 1, _READ_ONE)[0]))
        data = self._entry_read[1]
        if data is None:
            self.answer(command, Answer(Outcome.NULL_ENTRY))
            return
        self.answer(
            command, Answer(Outcome.DATA, len(data), index, data[offset : offset + SLOT_PAYLOAD_BYTES])
        )

    # --- what happens meanwhile -----------------------------------------------------------------------

    def committed(self, upto: int) -> None:
        """Entries up to `upto` are committed, and this node led all the while."""
        if self._proposals:
            for pending in self._proposals.committed(upto):
                self.answer(pending.command, answers.ok(pending.index))

    def read_index(self, index: int, context: bytes) -> None:
        """A read barrier got its index."""
        asked = self._barriers.pop(context, None)
        if asked is not None:
            self._reads.append((index, asked.command))

    def poll(self) -> None:
        """Take the running membership change one step on, and answer barriers that are reached."""
        if self._reads:
            applied = self.applied
            for index, command in self._reads:
                if index <= applied:
                    self.answer(command, answers.ok(index))
            self._reads = [(index, command) for index, command in self._reads if index > applied]
        elsewhere = self._changes.poll(self.now)
        if elsewhere is not None:
            self._route(elsewhere)

    @property
    def polls(self) -> bool:
        """Whether something here goes on as soon as the core has applied what it was given."""
        return bool(self._changes or self._reads)

    def sweep(self) -> None:
        """Answer those who have waited for as long as they wanted."""
        if self.now < self._next_sweep_ns:
            return
        self._next_sweep_ns = self.now + SWEEP_INTERVAL_NS
        now = self.now
        for command in self._waiting.take_expired(now):
            self.answer(command, self._why_not())
        for command in self._proposals.take_expired(now):
            self.answer(command, answers.timed_out(self.voters()))
        for command in self._forwarded.take_where(lambda command, _: command.deadline_ns <= now):
            self.answer(command, answers.timed_out(self.voters()))
        self._sweep_barriers()
        self._changes.sweep(now)

    def _sweep_barriers(self) -> None:
        """A request for an index may get lost: it is asked again, until its time is over."""
        now = self.now
        for context, asked in list(self._barriers.items()):
            if asked.command.deadline_ns <= now:
                del self._barriers[context]
                self.answer(asked.command, answers.not_confirmed(self.voters()))
            elif now - asked.at_ns > self.election_timeout_ns:
                del self._barriers[context]
                self._waiting.add(asked.command, now)
        late = [command for _, command in self._reads if command.deadline_ns <= now]
        if late:
            self._reads = [(index, command) for index, command in self._reads if command.deadline_ns > now]
            for command in late:
                self.answer(command, answers.not_confirmed(self.voters()))

    def gathers_until(self) -> int:
        """Until when further commands had better wait for the batch that is on its way; 0: they need not.

        They then make one batch of their own, which costs a round of messages and a sync less each.
        """
        return self._appended_ns + GATHER_NS if self._proposals else 0

    def next_ns(self) -> int:
        """When something here is due, 0 for never."""
        if (
            self._proposals
            or self._waiting
            or self._forwarded
            or self._changes
            or self._barriers
            or self._reads
        ):
            return max(self._next_sweep_ns, self.now)
        return 0

    def _why_not(self) -> Answer:
        leader = self.leader_id
        if leader and leader != self.node_id:
            return answers.not_leader(self.membership.get(leader), leader)
        if leader:
            return answers.state(
                "leadership is being handed over", "Nothing was written.", "Try again in a moment."
            )
        if not self.membership.nodes:
            where = f"'{self.config.address}', {self.config.port}"
            return answers.state(
                f"node {self.node_id} is not a member of a cluster yet",
                hint=f"On the leader: SELECT pgraft_add_node({self.node_id}, {where})",
            )
        return answers.no_leader(self.voters())

    def deposed(self) -> None:
        """This node leads no more: what is committed is told so, the rest is unknown."""
        for pending in self._proposals.committed(self._raft.raft_log.committed):
            if self._raft.raft_log.match_term(pending.index, self._proposals.term):
                self.answer(pending.command, answers.ok(pending.index))
            else:
                self.answer(pending.command, answers.lost_leadership(self.voters()))
        for command in self._proposals.take_all():
            self.answer(command, answers.lost_leadership(self.voters()))
        for command in self._changes.deposed(answers.lost_leadership(self.voters())):
            self._waiting.add(command, self.now)

    def leader_changed(self, leader: int) -> None:
        """Another node leads, or nobody: whoever was asked before may or may not have done it."""
        gone = self._forwarded.take_where(
            lambda command, asked: asked != leader and not _hands_itself_over(command, asked)
        )
        for command in gone:
            self.answer(command, answers.unknown("the leader was lost before it answered"))
        if leader:
            for command in self._forwarded.take_where(lambda _, asked: asked != leader):
                self._go_on_under(leader, command)
        for asked in self._barriers.values():
            self._waiting.add(asked.command, self.now)
        self._barriers = {}

    def _go_on_under(self, leader: int, command: Command) -> None:
        """The leader that was asked has handed over, as it was asked to."""
        if command.kind != CommandKind.TRANSFER_LEADER:
            # A removal may be asked for twice: who is removed already is answered with success.
            self._ask_again(command)
        elif command.arg1 in (0, leader):
            self.answer(command, answers.ok(self.applied))
        else:
            self.answer(command, answers.unknown("the leader was lost before it answered"))

    def _ask_again(self, command: Command) -> None:
        if self.leads:
            self._changes.add(command)
        else:
            self.forward_to_leader(command)

    def out(self, reason: str) -> None:
        """This node takes no part any more, by removal or failure: nobody waits in vain."""
        self.out_reason = reason
        definite = answers.not_running(reason)
        for command in (*self._waiting.take_all(), *self._appends, *self._take_reads()):
            self.answer(command, definite)
        self._appends = []
        self._fail_uncertain(answers.unknown(f"this node stopped taking part in consensus: {reason}"))

    def stop(self) -> None:
        """The worker stops: whoever waits hears it now."""
        for command in (*self._waiting.take_all(), *self._appends, *self._take_reads()):
            self.answer(command, answers.not_running("the raft worker is being stopped"))
        self._appends = []
        for command in self._forwarded.take_where(lambda *_: True):
            self.answer(command, answers.stopping())
        self._fail_uncertain(answers.stopping())

    def _take_reads(self) -> list[Command]:
        commands = [asked.command for asked in self._barriers.values()]
        commands += [command for _, command in self._reads]
        self._barriers, self._reads = {}, []
        return commands

    def _fail_uncertain(self, answer: Answer) -> None:
        for command in self._proposals.take_all():
            self.answer(command, answer)
        self._changes.fail(answer)

    # --- answering --------------------------------------------------------------------------------------

    def compacted(self, index: int) -> None:
        """The snapshot stands at `index` now; those who wanted it hear so."""
        for command in self.compactions:
            self.answer(command, answers.ok(index))
        self.compactions = []

    def answer(self, command: Command, answer: Answer) -> None:
        """Answer at the end of this step."""
        self._answers.append((command, answer))

    def deliver(self, outputs: Outputs) -> None:
        """Put the answers where they belong: to sessions, or into the envelope for another node."""
        if not self._answers:
            return
        delivered, self._answers = self._answers, []
        for command, answer in delivered:
            if command.peer:
                reply = Reply(
                    command.nonce,
                    command.number,
                    answer.outcome,
                    answer.value1,
                    answer.value2,
                    answer.payload,
                )
                self._outbox.reply(command.peer, reply)
            else:
                outputs.answers.append((command, answer))


def _hands_itself_over(command: Command, asked: int) -> bool:
    """Whether the leader that was asked was asked to hand over: to another, or since it is to be removed."""
    if command.kind == CommandKind.TRANSFER_LEADER:
        return command.arg1 != asked
    return command.kind == CommandKind.REMOVE_NODE and command.arg1 == asked


def _user_data(entry: Entry) -> bytes | None:
    if entry.type or not entry.data:
        return None
    return entry.data[len(DATA_PREFIX) :]


def _no_such_entry(index: int, first: int, committed: int) -> Answer:
    if index > committed:
        return answers.argument(
            f"entry {index} is not committed", f"The commit index of this node is {committed}."
        )
    return answers.argument(
        f"entry {index} is not kept any more, it has been compacted",
        f"The first kept index is {first}.",
        "pgraft.log_keep_entries and pgraft.log_keep_bytes say how much is kept.",
    )
