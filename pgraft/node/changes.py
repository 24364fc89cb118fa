"""Membership as operators change it: adding, moving and removing a node, and handing leadership over.

Each is a small state machine that its node polls after every turn. Only one runs at a time, since
the core takes one membership change at a time; the others wait in order.
"""

from __future__ import annotations

import enum
from typing import Protocol

from pgraft.hosts import is_host
from pgraft.node import answers
from pgraft.node.commands import Answer, Command
from pgraft.node.membership import ChangeContext, Membership, Node, encode_context
from pgraft.raft.types import ConfChange, ConfChangeType
from pgraft.ranges import NODE_ID_MAX, PORT_MAX
from pgraft.shm.layout import ADDRESS_BYTES_MAX, MEMBERS_MAX, CommandKind
from pgraft.transport.handshake import printable

NOTICE_INTERVAL_NS = 2_000_000_000
PROPOSE_AGAIN_NS = 100_000_000
"""A change that the core would not take (another one is pending) is proposed again after this."""


class Host(Protocol):
    """What a change needs of its node."""

    node_id: int
    election_timeout_ns: int

    @property
    def membership(self) -> Membership: ...
    @property
    def leads(self) -> bool: ...
    @property
    def leader_id(self) -> int: ...
    @property
    def can_propose_change(self) -> bool: ...
    @property
    def applied(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    def propose_change(self, change: ConfChange) -> int: ...
    def match_of(self, node_id: int) -> int: ...
    def is_reachable(self, node_id: int) -> bool: ...
    def can_take_over(self, node_id: int) -> bool: ...
    def silence_of(self, node_id: int) -> str: ...
    def notice(self, command: Command, text: str) -> None: ...
    def begin_transfer(self, node_id: int) -> None: ...
    def best_successor(self) -> int: ...
    def voters(self) -> answers.Voters: ...
    def refusal_of(self, node_id: int) -> str: ...
    def member_id_of(self, node_id: int) -> int: ...
    def forward_to_leader(self, command: Command) -> None: ...


class Change(Protocol):
    """One running operation."""

    command: Command

    def poll(self, now_ns: int) -> Answer | None:
        """Take the next step; the answer when it is over."""
        ...


class _Proposed:
    """A membership change on its way: proposed until it is seen applied."""

    def __init__(self, host: Host, change: ConfChange) -> None:
        self._host = host
        self._change = change
        self._index = 0
        self._next_try_ns = 0
        self.was_proposed = False

    def is_applied(self, done: bool, now_ns: int) -> bool:
        """`done` says whether the membership shows the change; proposes it (again) where it does not."""
        if done:
            return True
        if self._index and self._host.applied < self._index:
            return False
        if self._host.can_propose_change and now_ns >= self._next_try_ns:
            self._next_try_ns = now_ns + PROPOSE_AGAIN_NS
            self._index = self._host.propose_change(self._change)
            self.was_proposed = self.was_proposed or self._index > 0
        return False


def _refuse_place(membership: Membership, node: Node) -> Answer | None:
    """Whether a node may be at this address: None, or the error that says why not."""
    if not 1 <= node.node_id <= NODE_ID_MAX:
        return answers.argument(f"node_id {node.node_id} is not within 1 .. {NODE_ID_MAX}")
    if not 1 <= node.port <= PORT_MAX:
        return answers.argument(f"port {node.port} is not within 1 .. {PORT_MAX}")
    if not 1 <= len(node.address.encode()) < ADDRESS_BYTES_MAX:
        return answers.argument(f"the address must have 1 to {ADDRESS_BYTES_MAX - 1} bytes")
    if not is_host(node.address):
        return answers.argument(f'"{printable(node.address)}" is neither a host name nor an IP address')
    for other in membership.nodes:
        same_place = (other.address, other.port) == (node.address, node.port)
        if same_place and other.node_id != node.node_id:
            return answers.argument(
                f"{node.address}:{node.port} is the address of node {other.node_id} already"
            )
    return None


def _refuse_removal(host: Host, node_id: int) -> Answer | None:
    """Whether enough voters can be reached to commit it, and to go on without the node: None, or the error
    that says how many are missing. One whose connection has just broken is not waited for."""
    voters = host.membership.conf_state.voters
    left = [voter for voter in voters if voter != node_id]
    if not left:
        return answers.state(
            f"node {node_id} is the only voter",
            hint="Add another node first, or stop this one with pgraft-launch stop.",
        )
    reached = {voter for voter in voters if host.can_take_over(voter)}
    if len(reached) < len(voters) // 2 + 1:
        return answers.state(
            f"there is no quorum that could remove node {node_id}",
            f"Of the {len(voters)} voters, {len(reached)} can be reached and"
            f" {len(voters) // 2 + 1} are needed.",
            "Start or reconnect the missing nodes. Where a majority is gone for good:"
            " pgraft-launch force-new-cluster --help.",
        )
    staying = len(reached - {node_id})
    if staying < len(left) // 2 + 1:
        return answers.state(
            f"removing node {node_id} would leave no quorum",
            f"Of the {len(left)} voters that stay, {staying} can be reached and"
            f" {len(left) // 2 + 1} are needed.",
            "Start the missing nodes, or remove those first.",
        )
    return None


class _AddStep(enum.Enum):
    LEARNER = "learner"
    CATCH_UP = "catch up"
    PROMOTE = "promote"
    UNDO = "undo"


class AddNode:
    """Learner first; a voter once it has caught up; taken back when it does not in time."""

    def __init__(self, host: Host, command: Command) -> None:
        self.command = command
        self._host = host
        self._id = command.arg1
        self._node = Node(command.arg1, command.data.decode("utf-8", "replace"), command.arg2)
        self._step = _AddStep.LEARNER
        self._was_learner = self._id in host.membership.conf_state.learners
        context = encode_context(ChangeContext(self._node.address, self._node.port))
        self._add = _Proposed(host, ConfChange(ConfChangeType.ConfChangeAddLearnerNode, self._id, context))
        self._promote: _Proposed
        # One that was removed before stays barred, since it was a voter once.
        undone = encode_context(ChangeContext(forget=self._id not in host.membership.removed))
        self._undo = _Proposed(host, ConfChange(ConfChangeType.ConfChangeRemoveNode, self._id, undone))
        self._is_given_up = False
        self._round_target = 0
        self._round_start_ns = 0
        self._next_notice_ns = 0

    def give_up(self, node_id: int) -> None:
        """Somebody wants the newcomer removed: it is, unless it is being promoted already."""
        if node_id != self._id or self._step not in (_AddStep.LEARNER, _AddStep.CATCH_UP):
            return
        self._is_given_up = True
        context = encode_context(ChangeContext())
        self._undo = _Proposed(self._host, ConfChange(ConfChangeType.ConfChangeRemoveNode, self._id, context))

    def poll(self, now_ns: int) -> Answer | None:
        """One step."""
        match self._step:
            case _AddStep.LEARNER:
                return self._poll_learner(now_ns)
            case _AddStep.CATCH_UP:
                return self._poll_catch_up(now_ns)
            case _AddStep.PROMOTE:
                return self._poll_promote(now_ns)
            case _AddStep.UNDO:
                return self._poll_undo(now_ns)

    def _poll_learner(self, now_ns: int) -> Answer | None:
        membership = self._host.membership
        refused = self._refuse(membership)
        if refused is not None:
            return refused
        if membership.is_voter(self._id):
            return answers.ok(self._host.applied)
        if now_ns >= self.command.deadline_ns:
            text = f"node {self._id} could not be added: no membership change got through in time"
            return answers.unknown(text) if self._add.was_proposed else answers.state(text)
        if not self._add.is_applied(self._id in membership.conf_state.learners, now_ns):
            return None
        self._host.notice(self.command, f"node {self._id} is a learner now, and is catching up")
        self._step = _AddStep.CATCH_UP
        self._start_round(now_ns)
        self._next_notice_ns = now_ns + NOTICE_INTERVAL_NS
        return None

    def _refuse(self, membership: Membership) -> Answer | None:
        refused = _refuse_place(membership, self._node)
        if refused is not None:
            return refused
        known = membership.get(self._id)
        if known is not None and (known.address, known.port) != (self._node.address, self._node.port):
            return answers.argument(
                f"node {self._id} is a member already, at {known.address}:{known.port}",
                hint=f"Where it has moved: SELECT pgraft_update_node({self._id}, '{self._node.address}',"
                f" {self._node.port})",
            )
        if known is None and len(membership.nodes) >= MEMBERS_MAX:
            return answers.state(f"the cluster has {len(membership.nodes)} members, the most it can have")
        return None

    def _start_round(self, now_ns: int) -> None:
        self._round_target = self._host.last_index
        self._round_start_ns = now_ns

    def _poll_catch_up(self, now_ns: int) -> Answer | None:
        # Rounds as in the dissertation, 4.2.1: caught up when a round took less than an election
        # timeout, so that as a voter it does not hold commits up for longer than an election would.
        match_index = self._host.match_of(self._id)
        if (
            not self._is_given_up
            and match_index >= self._round_target > 0
            and self._host.is_reachable(self._id)
        ):
            if now_ns - self._round_start_ns < self._host.election_timeout_ns:
                return self._begin_promote(now_ns)
            self._start_round(now_ns)
        if self._is_given_up or now_ns >= self.command.deadline_ns:
            self._step = _AddStep.UNDO
            return self._poll_undo(now_ns)
        if now_ns >= self._next_notice_ns:
            self._next_notice_ns = now_ns + NOTICE_INTERVAL_NS
            self._host.notice(self.command, self._progress_text(match_index))
        return None

    def _progress_text(self, match_index: int) -> str:
        if match_index:
            return f"node {self._id} has caught up to index {match_index} of {self._host.last_index}"
        reason = self._host.refusal_of(self._id)
        where = f"{self._node.address}:{self._node.port}"
        return f"waiting for node {self._id} at {where}" + (f": {reason}" if reason else "")

    def _begin_promote(self, now_ns: int) -> Answer | None:
        """Make it a voter, with the disk that it has now, as everybody is to know it."""
        member_id = self._host.member_id_of(self._id)
        context = encode_context(ChangeContext(self._node.address, self._node.port, member_id=member_id))
        change = ConfChange(ConfChangeType.ConfChangeAddNode, self._id, context)
        self._promote = _Proposed(self._host, change)
        self._step = _AddStep.PROMOTE
        return self._poll_promote(now_ns)

    def _poll_promote(self, now_ns: int) -> Answer | None:
        voter = self._id in self._host.membership.conf_state.voters
        if not voter and not self._promote.was_proposed and not self._host.is_reachable(self._id):
            # Gone while another change was on its way: as a voter it would only weaken the quorum.
            self._step = _AddStep.CATCH_UP
            self._start_round(now_ns)
            return None
        if self._promote.is_applied(voter, now_ns):
            return answers.ok(self._host.applied)
        return None

    def _poll_undo(self, now_ns: int) -> Answer | None:
        gone = self._host.membership.get(self._id) is None
        must_go = self._is_given_up or not self._was_learner
        if must_go and not self._undo.is_applied(gone, now_ns):
            return None
        if self._is_given_up:
            return answers.state(f"node {self._id} was removed before it had caught up")
        reason = self._host.refusal_of(self._id)
        left = "It stays a learner, as it was." if self._was_learner else "The cluster is as it was."
        return answers.state(
            f"node {self._id} at {self._node.address}:{self._node.port} did not catch up within"
            f" {self.command.timeout_ms} ms (pgraft.add_node_timeout)",
            f"{left}{' ' + reason if reason else ''}",
            "Start it with pgraft.initial_cluster_state = existing and the same pgraft.node_id,"
            " pgraft.address and pgraft.port, then call pgraft_add_node again"
            + (f", or give it up with pgraft_remove_node({self._id})." if self._was_learner else "."),
        )


class RemoveNode:
    """Removes a member. Removing the leader itself hands leadership over first, then asks the new leader."""

    def __init__(self, host: Host, command: Command) -> None:
        self.command = command
        self._host = host
        self._id = command.arg1
        context = encode_context(ChangeContext())
        self._remove = _Proposed(host, ConfChange(ConfChangeType.ConfChangeRemoveNode, self._id, context))
        self._was_member = False

    def poll(self, now_ns: int) -> Answer | None:
        """One step."""
        membership = self._host.membership
        if membership.get(self._id) is None:
            if self._was_member or self._id in membership.removed:
                return answers.ok(self._host.applied)
            return answers.argument(
                f"node {self._id} is not a member", hint="pgraft_get_nodes() lists the members."
            )
        if now_ns >= self.command.deadline_ns:
            text = f"the removal of node {self._id} was not committed within its time"
            return answers.unknown(text) if self._remove.was_proposed else answers.state(text)
        self._was_member = True
        if not self._remove.was_proposed:
            # Also where it waits for another change meanwhile: voters may be lost in that time.
            refused = _refuse_removal(self._host, self._id)
            if refused is not None:
                return refused
        self._remove.is_applied(False, now_ns)
        return None


class TransferLeadership:
    """Hands leadership to a voter; over when it leads, or when an election timeout has passed."""

    def __init__(self, host: Host, command: Command) -> None:
        self.command = command
        self._host = host
        self._target = command.arg1
        self._started_ns = 0

    def poll(self, now_ns: int) -> Answer | None:
        """One step."""
        if not self._started_ns:
            refused = self._start()
            self._started_ns = now_ns
            return refused
        leader = self._host.leader_id
        if leader == self._target:
            return answers.ok(self._host.applied)
        # Twice: the core gives up after one, and then somebody leads again.
        if now_ns - self._started_ns > 2 * self._host.election_timeout_ns:
            return answers.state(
                f"leadership was not handed over to node {self._target}",
                "It did not take over within two election timeouts.",
                "pgraft_get_cluster_status() shows whether it is up and how far it is behind.",
            )
        return None

    def _start(self) -> Answer | None:
        if self._target == 0:
            self._target = self._host.best_successor()
            if self._target == 0:
                return answers.state("no other voter can be reached to hand leadership over to")
        if self._target == self._host.node_id:
            return answers.ok(self._host.applied)
        if self._target not in self._host.membership.conf_state.voters:
            return answers.argument(
                f"node {self._target} is not a voter", hint="pgraft_get_nodes() lists the members."
            )
        if not self._host.can_take_over(self._target):
            # The lease ends with the transfer, whether anybody takes over or not.
            return answers.state(
                f"node {self._target} cannot take leadership over",
                f"{self._host.silence_of(self._target)} This node goes on leading.",
                "Start or reconnect it first, or hand over to whichever node can take over:"
                " SELECT pgraft_transfer_leadership()",
            )
        self._host.begin_transfer(self._target)
        return None


class UpdateNode:
    """Tells all members that a node has moved: its vote and its log stay."""

    def __init__(self, host: Host, command: Command) -> None:
        self.command = command
        self._host = host
        self._node = Node(command.arg1, command.data.decode("utf-8", "replace"), command.arg2)
        context = encode_context(ChangeContext(self._node.address, self._node.port))
        change = ConfChange(ConfChangeType.ConfChangeUpdateNode, command.arg1, context)
        self._update = _Proposed(host, change)

    def poll(self, now_ns: int) -> Answer | None:
        """One step."""
        node, membership = self._node, self._host.membership
        known = membership.get(node.node_id)
        if known is None:
            return answers.argument(
                f"node {node.node_id} is not a member", hint="pgraft_get_nodes() lists the members."
            )
        refused = _refuse_place(membership, node)
        if refused is not None:
            return refused
        if now_ns >= self.command.deadline_ns:
            text = f"the new address of node {node.node_id} was not committed within its time"
            return answers.unknown(text) if self._update.was_proposed else answers.state(text)
        done = (known.address, known.port) == (node.address, node.port)
        return answers.ok(self._host.applied) if self._update.is_applied(done, now_ns) else None


def start_change(host: Host, command: Command) -> Change:
    """The operation for a command of one of the four kinds."""
    if command.kind == CommandKind.ADD_NODE:
        return AddNode(host, command)
    if command.kind == CommandKind.UPDATE_NODE:
        return UpdateNode(host, command)
    if command.kind == CommandKind.TRANSFER_LEADER:
        return TransferLeadership(host, command)
    if command.arg1 == host.node_id and len(host.membership.conf_state.voters) > 1:
        return RemoveSelf(host, command)
    return RemoveNode(host, command)


class RemoveSelf:
    """The leader removes itself: it hands over, and the new leader commits the removal."""

    def __init__(self, host: Host, command: Command) -> None:
        self.command = command
        self._host = host
        self._transfer: TransferLeadership | None = None

    def poll(self, now_ns: int) -> Answer | None:
        """One step; once another node leads, the command goes to it and is answered from there."""
        if self._transfer is None:
            refused = _refuse_removal(self._host, self._host.node_id)
            if refused is not None:
                return refused
            hand_over = Command(
                CommandKind.TRANSFER_LEADER, self.command.slot, 0, False, 0, self.command.timeout_ms
            )
            self._transfer = TransferLeadership(self._host, hand_over)
        answer = self._transfer.poll(now_ns)
        if answer is not None and answer.outcome != answers.OK.outcome:
            return answer
        if answer is not None:
            self._host.forward_to_leader(self.command)
            return answers.progress("leadership was handed over; the new leader removes this node")
        return None
