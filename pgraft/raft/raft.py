"""The state machine of one node: its state, its roles, its clock, and the term rule.

Only the `become_*` methods change a role. What a role does with a message lies in leader.py, follower.py
and candidate.py, as a table with one handler for each message type; what is common to all roles in
election.py, replication.py and membership.py. Nothing here reads a clock, sleeps, sends or writes:
messages are collected in `msgs` (may leave at once) and `msgs_after_append` (promises: only after what
precedes them is durable), and RawNode hands them out.
"""

from __future__ import annotations

from collections.abc import Callable

from pgraft.raft import candidate, confchange, election, follower, leader, membership
from pgraft.raft.config import Config
from pgraft.raft.errors import InvariantViolation, invariant
from pgraft.raft.log import RaftLog
from pgraft.raft.read_only import ReadOnly, ReadState
from pgraft.raft.tracker import ProgressTracker
from pgraft.raft.types import NO_NODE, HardState, Message, MessageType, StateType

LEADER = StateType.StateLeader
FOLLOWER = StateType.StateFollower
CANDIDATE = StateType.StateCandidate
PRE_CANDIDATE = StateType.StatePreCandidate

MSG_PROP = MessageType.MsgProp
MSG_READ_INDEX = MessageType.MsgReadIndex
MSG_CHECK_QUORUM = MessageType.MsgCheckQuorum
MSG_BEAT = MessageType.MsgBeat
MSG_HUP = MessageType.MsgHup
PROMISES = frozenset({MessageType.MsgAppResp, MessageType.MsgVoteResp, MessageType.MsgPreVoteResp})
VOTE_MESSAGES = frozenset(
    {
        MessageType.MsgVote,
        MessageType.MsgVoteResp,
        MessageType.MsgPreVote,
        MessageType.MsgPreVoteResp,
    }
)


class Raft:
    """One node. Drive it through RawNode; read `id`, `term`, `vote`, `lead`, `state`, `raft_log`, `trk`,
    `lead_transferee` freely, and change nothing."""

    __slots__ = (
        "_handlers",
        "_tick",
        "check_quorum",
        "config",
        "election_elapsed",
        "election_timeout",
        "heartbeat_elapsed",
        "heartbeat_timeout",
        "id",
        "is_learner",
        "lead",
        "lead_transferee",
        "max_msg_size",
        "msgs",
        "msgs_after_append",
        "pending_conf_index",
        "pending_read_index",
        "pre_vote",
        "raft_log",
        "randomized_election_timeout",
        "read_only",
        "read_states",
        "state",
        "term",
        "trk",
        "uncommitted_size",
        "vote",
    )

    def __init__(self, config: Config) -> None:
        config.validate()
        self.config = config
        self.id = config.id
        self.check_quorum = config.check_quorum
        self.pre_vote = config.pre_vote
        self.heartbeat_timeout = config.heartbeat_tick
        self.election_timeout = config.election_tick
        self.max_msg_size = config.max_size_per_msg
        self.term = 0
        self.vote = NO_NODE
        self.lead = NO_NODE
        self.state = FOLLOWER
        self.is_learner = False
        self.raft_log = RaftLog(config.storage, config.committed_limit, pipelined=config.async_storage_writes)
        self.trk = ProgressTracker(config.max_inflight_msgs, config.max_inflight_bytes)
        self.msgs: list[Message] = []
        self.msgs_after_append: list[Message] = []
        self.read_states: list[ReadState] = []
        self.read_only = ReadOnly(config.read_only_option)
        self.pending_read_index: list[Message] = []
        self.lead_transferee = NO_NODE
        self.pending_conf_index = 0
        self.uncommitted_size = 0
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.randomized_election_timeout = 0
        self._handlers = follower.HANDLERS
        self._tick: Callable[[Raft], None] = _tick_election
        self._load()
        self.become_follower(self.term, NO_NODE)

    def _load(self) -> None:
        """Take up where the storage left off."""
        hard_state, conf_state = self.config.storage.initial_state()
        confchange.restore(self.trk, self.raft_log.last_index(), conf_state)
        loaded = membership.switch_to_config(self, self.trk.config, self.trk.progress)
        invariant(
            confchange.equivalent(conf_state, loaded), f"configuration {conf_state} was restored as {loaded}"
        )
        if hard_state != HardState():
            self._load_hard_state(hard_state)
        if self.config.applied > 0:
            self.raft_log.applied_to(self.config.applied, 0)

    def _load_hard_state(self, hard_state: HardState) -> None:
        log = self.raft_log
        invariant(
            log.committed <= hard_state.commit <= log.last_index(),
            f"stored commit {hard_state.commit} not in [{log.committed}, {log.last_index()}]: the log was"
            " damaged, cut or lost",
        )
        log.committed = hard_state.commit
        self.term = hard_state.term
        self.vote = hard_state.vote

    # Roles

    def become_follower(self, term: int, lead: int) -> None:
        """Follow `lead` (0: nobody known) in `term`."""
        self._reset(term)
        self._handlers = follower.HANDLERS
        self._tick = _tick_election
        self.lead = lead
        self.state = FOLLOWER

    def become_candidate(self) -> None:
        """Enter the next term with a vote for ourselves."""
        if self.state is LEADER:
            raise InvariantViolation(f"leader of term {self.term} cannot become a candidate")
        self._reset(self.term + 1)
        self._handlers = candidate.CANDIDATE_HANDLERS
        self._tick = _tick_election
        self.vote = self.id
        self.state = CANDIDATE

    def become_pre_candidate(self) -> None:
        """Ask before campaigning. Term and vote stay; the leader is no longer believed in."""
        if self.state is LEADER:
            raise InvariantViolation(f"leader of term {self.term} cannot become a pre-candidate")
        self._handlers = candidate.PRE_CANDIDATE_HANDLERS
        self._tick = _tick_election
        self.trk.reset_votes()
        self.lead = NO_NODE
        self.state = PRE_CANDIDATE

    def become_leader(self) -> None:
        """Lead the current term; it begins with an empty entry (section 8)."""
        if self.state is FOLLOWER:
            raise InvariantViolation(f"follower of term {self.term} cannot become leader")
        self._reset(self.term)
        self._handlers = leader.HANDLERS
        self._tick = _tick_heartbeat
        self.lead = self.id
        self.state = LEADER
        progress = self.trk.progress[self.id]
        progress.become_replicate()
        progress.recent_active = True
        # There may be a membership change among the entries of earlier terms. Rather than look for it,
        # no new one is taken until all of them are applied.
        self.pending_conf_index = self.raft_log.last_index()
        leader.append_empty(self)

    def _reset(self, term: int) -> None:
        if self.term != term:
            self.term = term
            self.vote = NO_NODE
        self.lead = NO_NODE
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.randomized_election_timeout = self.election_timeout + self.config.rng.randrange(
            self.election_timeout
        )
        self.abort_leader_transfer()
        self.trk.reset_votes()
        last = self.raft_log.last_index()
        for id, progress in self.trk.items():
            progress.restart(match=last if id == self.id else 0, next=last + 1)
        self.pending_conf_index = 0
        self.uncommitted_size = 0
        self.read_only.reset()
        self.pending_read_index = []

    def abort_leader_transfer(self) -> None:
        """Go on as leader: proposals are taken again."""
        self.lead_transferee = NO_NODE

    # Time

    def tick(self) -> None:
        """One tick of the clock has passed."""
        self._tick(self)

    def ticks_to_deadline(self) -> int:
        """Ticks until this node does something by itself, at least 1."""
        if self.state is LEADER:
            heartbeat = self.heartbeat_timeout - self.heartbeat_elapsed
            return max(1, min(heartbeat, self.election_timeout - self.election_elapsed))
        if not self.promotable():
            return self.election_timeout
        return max(1, self.randomized_election_timeout - self.election_elapsed)

    def promotable(self) -> bool:
        """Whether this node may become leader: a voter, with no snapshot still to be written."""
        progress = self.trk.progress.get(self.id)
        return progress is not None and not progress.is_learner and self.raft_log.unstable.snapshot is None

    # Messages

    def step(self, m: Message) -> None:
        """Handle a message. Raises RaftError when it is refused; the state is then unchanged."""
        if m.term != self.term and m.term != 0 and not election.step_other_term(self, m):
            return
        self._handlers[m.type](self, m)

    def send(self, m: Message) -> None:
        """Collect a message: the sender and, but for votes and forwarded requests, the term are filled in."""
        if m.from_ == NO_NODE:
            m.from_ = self.id
        kind = m.type
        if kind in VOTE_MESSAGES:
            # A pre-vote's term lies in the future, a vote's answer in the term asked for. Only a refusal may
            # come from a node that has not seen any term yet.
            if m.term == 0 and not m.reject:
                raise InvariantViolation(f"term must be set when sending {kind.name}")
        elif m.term != 0:
            raise InvariantViolation(f"term must not be set when sending {kind.name} (was {m.term})")
        elif kind is not MSG_PROP and kind is not MSG_READ_INDEX:
            m.term = self.term
        if kind in PROMISES:
            self.msgs_after_append.append(m)
        elif m.to == self.id:
            raise InvariantViolation(f"{kind.name} to ourselves")
        else:
            self.msgs.append(m)


def _tick_election(r: Raft) -> None:
    r.election_elapsed += 1
    if r.election_elapsed >= r.randomized_election_timeout and r.promotable():
        r.election_elapsed = 0
        r.step(Message(type=MSG_HUP, from_=r.id))


def _tick_heartbeat(r: Raft) -> None:
    r.heartbeat_elapsed += 1
    r.election_elapsed += 1
    if r.election_elapsed >= r.election_timeout:
        r.election_elapsed = 0
        if r.check_quorum:
            r.step(Message(type=MSG_CHECK_QUORUM, from_=r.id))
        if r.state is LEADER and r.lead_transferee != NO_NODE:
            # The transfer did not come about within an election timeout.
            r.abort_leader_transfer()
    if r.state is LEADER and r.heartbeat_elapsed >= r.heartbeat_timeout:
        r.heartbeat_elapsed = 0
        r.step(Message(type=MSG_BEAT, from_=r.id))
