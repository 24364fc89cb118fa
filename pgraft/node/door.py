"""The door: what a peer says is looked at here before any of it counts.

The network process has checked checksums and lengths, the decoder types. What is left is well-formed,
and may still be absurd: no pgraft sends it, whatever was lost, delayed or restarted. It changes nothing
and is counted. Nothing that can be true is refused here: a node that lags may see a learner's request for
a vote that is a voter's by now. What members only may say is judged where it counts (node.py), and counts as
refused: who was removed may not know it yet.

Two bounds need a word. Terms and indexes end at 2^62: SQL shows them as bigint, and no arithmetic on them
comes near an edge. And a message may be at most TERM_JUMP_MAX terms ahead of this node, or else one message
of a far term, accepted once, would end all elections for good: 2^32 is an election a second for 136 years,
and to come to 2^62 in such steps takes 2^30 messages, each of which costs a sync. Only a node that has no
membership yet knows nothing, and takes any term up to 2^62.
"""

from __future__ import annotations

from collections.abc import Callable

from pgraft.node.core import Core
from pgraft.node.envelope import Envelope, NodeStatus
from pgraft.node.membership import MembershipError, decode_change, from_snapshot
from pgraft.node.outputs import LogLines
from pgraft.node.quiet import CAMPAIGN_TRANSFER
from pgraft.postgres.settings import BY_NAME
from pgraft.raft.read_only import POSITION_BYTES, position_of
from pgraft.raft.types import Entry, EntryType, Message, MessageType, StateType
from pgraft.ranges import NODE_ID_MAX
from pgraft.shm.layout import MEMBERS_MAX, Outcome, Role

TERM_MAX = 2**62
TERM_JUMP_MAX = 2**32
INDEX_MAX = 2**62
INDEX_JUMP_MAX = 2**48
"""How far a snapshot may lead: a million entries a second for nine years."""
ENVELOPE_MESSAGES_MAX = 4096
ENVELOPE_CALLS_MAX = 65536
"""Of each kind: more than any server has sessions that wait."""
CONTEXT_BYTES_MAX = 64
TIMEOUT_MS_MAX = 2**31
AGE_MS_MAX = 2**42
U64_MAX = 2**64 - 1
REPORT_INTERVAL_NS = 60_000_000_000
_PROMISE_MS_MAX = BY_NAME["pgraft.election_timeout"].maximum
_OUTCOMES = frozenset(int(outcome) for outcome in Outcome)
_ROLES = frozenset(int(role) for role in Role)
_WITH_ENTRIES = frozenset((MessageType.MsgApp, MessageType.MsgReadIndex, MessageType.MsgReadIndexResp))
_FINE = ""


class Door:
    """Judges what peers say by what this node knows. A judgement is why it cannot be, empty when it can."""

    def __init__(self, node_id: int, core: Core, log: LogLines) -> None:
        self._node_id = node_id
        self._log = log
        self._core = core
        self._raft = core.raft
        self.absurd = 0
        self._kept_back = 0
        self._reported_ns = 0

    def turn_away(self, sender: int, why: str, now_ns: int) -> None:
        """Count it, and say so in the log: the first at once, then a line a minute at most."""
        self.absurd += 1
        if self._reported_ns and now_ns - self._reported_ns < REPORT_INTERVAL_NS:
            self._kept_back += 1
            return
        more = f" ({self._kept_back} more since the last report)" if self._kept_back else ""
        self._reported_ns, self._kept_back = now_ns, 0
        self._log(
            "WARNING",
            f"node {self._node_id} turned away what node {sender} sent: {why}{more}",
            detail="It was well-formed and cannot be true. Nothing was changed.",
            hint="Does everything that connects here belong to this cluster? Has an entry log lost entries?",
        )

    # --- envelopes ----------------------------------------------------------------------------------------

    def envelope(self, envelope: Envelope, newest_round: int) -> str:
        """What stands around the messages. `newest_round`: the last one that this node asked for."""
        if len(envelope.messages) > ENVELOPE_MESSAGES_MAX or len(envelope.table) > 2 * MEMBERS_MAX:
            return f"{len(envelope.messages)} messages, {len(envelope.table)} rows in one envelope"
        if not (0 <= envelope.term <= TERM_MAX and 0 <= envelope.echo_term <= TERM_MAX):
            return f"an envelope of term {envelope.term}, answering term {envelope.echo_term}"
        removed_max = min(INDEX_MAX, self._raft.raft_log.last_index() + INDEX_JUMP_MAX)
        if not (0 <= envelope.round <= U64_MAX and 0 <= envelope.removed_index <= removed_max):
            return f"round {envelope.round}, removed at {envelope.removed_index}"
        if not 0 <= envelope.promise_ms <= _PROMISE_MS_MAX:
            return f"a promise for {envelope.promise_ms} ms"
        # What was never asked cannot be answered: a lease would be counted from it.
        raft = self._raft
        leads = raft.state is StateType.StateLeader and envelope.echo_term == raft.term
        asked = newest_round if leads else U64_MAX
        if not 0 <= envelope.echo <= asked:
            return f"an answer to round {envelope.echo}, the last one is {newest_round}"
        why = _wrong_status(envelope.status)
        for row in envelope.table:
            why = why or _wrong_status(row)
        if not why and (envelope.calls or envelope.replies):
            why = _wrong_commands(envelope)
        return why

    # --- messages -----------------------------------------------------------------------------------------

    def message(self, m: Message) -> str:
        """One message of the core, right before it is stepped: an earlier one may have changed what holds."""
        judge = _JUDGES.get(m.type)
        if judge is None:
            return f"{m.type.name}, which does not travel"
        if m.type is MessageType.MsgReadIndex:
            if m.term:
                return f"MsgReadIndex of term {m.term}"
        elif not 0 < m.term <= self._term_max():
            return f"{m.type.name} of term {m.term}, the term here is {self._raft.term}"
        if not (
            0 <= m.log_term <= m.term
            and 0 <= m.index <= INDEX_MAX
            and 0 <= m.commit <= INDEX_MAX
            and 0 <= m.reject_hint <= INDEX_MAX
        ):
            return (
                f"{m.type.name} of term {m.term} at {m.log_term}/{m.index}, commit {m.commit},"
                f" hint {m.reject_hint}"
            )
        if m.vote or m.responses or len(m.context) > CONTEXT_BYTES_MAX:
            return f"{m.type.name} with what belongs to other messages"
        if (m.entries and m.type not in _WITH_ENTRIES) or (
            m.snapshot is not None and m.type is not MessageType.MsgSnap
        ):
            return f"{m.type.name} with entries or a snapshot"
        return judge(self, m)

    def _term_max(self) -> int:
        if not self._core.membership_log.current.nodes:
            return TERM_MAX
        return min(TERM_MAX, self._raft.term + TERM_JUMP_MAX)

    def _from_leader(self, m: Message) -> str:
        raft = self._raft
        if m.term == raft.term and raft.lead not in (0, m.from_):
            return f"{m.type.name} as leader of term {m.term}, whose leader is node {raft.lead}"
        return _FINE

    def _app(self, m: Message) -> str:
        if (m.index == 0) != (m.log_term == 0):
            return f"MsgApp behind entry {m.log_term}/{m.index}"
        index, term = m.index, m.log_term
        for entry in m.entries:
            index += 1
            if entry.index != index or entry.term < term:
                return f"entry {entry.term}/{entry.index} where one at {index} of term {term} or more belongs"
            if entry.type:
                why = _wrong_change(entry)
                if why:
                    return why
            term = entry.term
        if term > m.term or index > INDEX_MAX:
            return f"entry {term}/{index} in an append of term {m.term}"
        return self._from_leader(m)

    def _heartbeat(self, m: Message) -> str:
        last = self._raft.raft_log.last_index()
        if m.commit > last:
            # A leader tells no more than this node has acknowledged.
            return f"a heartbeat with commit index {m.commit}, the last entry here is {last}"
        return self._from_leader(m)

    def _snap(self, m: Message) -> str:
        if m.snapshot is None:
            return "MsgSnap without a snapshot"
        metadata = m.snapshot.metadata
        state = metadata.conf_state
        bound = min(INDEX_MAX, self._raft.raft_log.last_index() + INDEX_JUMP_MAX)
        if not (0 < metadata.index <= bound and 0 < metadata.term <= m.term):
            return f"a snapshot at {metadata.term}/{metadata.index} in term {m.term}"
        if state.voters_outgoing:
            return "a snapshot with a joint configuration"
        try:
            known = {node.node_id for node in from_snapshot(m.snapshot).nodes}
        except MembershipError as error:
            return str(error)
        ids = {*state.voters, *state.learners}
        # Receivers that came later were added to the members, and not to their addresses (admitting).
        if self._node_id not in ids or not known <= ids:
            return f"a snapshot of members {sorted(ids)} that describes {sorted(known)}"
        return self._from_leader(m)

    def _app_resp(self, m: Message) -> str:
        raft = self._raft
        if raft.state is not StateType.StateLeader or m.term != raft.term:
            return _FINE
        last = raft.raft_log.last_index()
        if m.index > last or m.reject_hint > m.index:
            return f"an answer for entry {m.index} (hint {m.reject_hint}), the last one is {last}"
        return _FINE

    def _heartbeat_resp(self, m: Message) -> str:
        raft = self._raft
        if raft.state is not StateType.StateLeader or m.term != raft.term or not m.context:
            return _FINE
        if len(m.context) != POSITION_BYTES or position_of(m.context) > raft.read_only.newest_position():
            return f"an answer to read {position_of(m.context)}, which was not asked"
        return _FINE

    def _vote(self, m: Message) -> str:
        if m.log_term >= m.term or (m.index == 0) != (m.log_term == 0):
            return f"a request for a vote of term {m.term} with last entry {m.log_term}/{m.index}"
        if m.context not in (b"", CAMPAIGN_TRANSFER):
            return f"a request for a vote for the reason {m.context!r}"
        return _FINE

    def _vote_resp(self, m: Message) -> str:
        if m.term > self._raft.term:
            return f"a vote of term {m.term}, which was not asked for: the term here is {self._raft.term}"
        return _FINE

    def _pre_vote_resp(self, m: Message) -> str:
        if not m.reject and m.term > self._raft.term + 1:
            return f"a pre-vote of term {m.term}, which was not asked for: the term here is {self._raft.term}"
        return _FINE

    def _timeout_now(self, m: Message) -> str:
        raft = self._raft
        # The message may be late, and this node wait for no leader any more; see Replica._step.
        if m.term > raft.term or (m.term == raft.term and raft.lead not in (0, m.from_)):
            return f"MsgTimeoutNow of term {m.term}, the leader of term {raft.term} is node {raft.lead}"
        return _FINE

    def _read_index(self, m: Message) -> str:
        if len(m.entries) != 1 or len(m.entries[0].data) > CONTEXT_BYTES_MAX:
            return f"a request to read with {len(m.entries)} contexts"
        return _FINE

    def _read_index_resp(self, m: Message) -> str:
        raft = self._raft
        if len(m.entries) != 1 or len(m.entries[0].data) > CONTEXT_BYTES_MAX:
            return f"an answer to a read with {len(m.entries)} contexts"
        # This node may have stopped waiting for that leader meanwhile, which may lead a later term by now.
        if m.term == raft.term and raft.lead not in (0, m.from_):
            return f"a read answered in term {m.term}, the leader of term {raft.term} is node {raft.lead}"
        return _FINE


def _wrong_change(entry: Entry) -> str:
    """Why a membership change could not be applied: it would be found out when it is committed."""
    if entry.type != EntryType.EntryConfChange:
        return f"entry {entry.term}/{entry.index} of type {entry.type}"
    try:
        decode_change(entry)
    except MembershipError as error:
        return str(error)
    return _FINE


def _wrong_status(status: NodeStatus) -> str:
    if (
        1 <= status.node_id <= NODE_ID_MAX
        and status.role in _ROLES
        and 0 <= status.term <= TERM_MAX
        and 0 <= status.commit_index <= INDEX_MAX
        and 0 <= status.last_index <= INDEX_MAX
        and 0 <= status.age_ms <= AGE_MS_MAX
    ):
        return _FINE
    return f"a status that no node has: {status}"


def _wrong_commands(envelope: Envelope) -> str:
    if max(len(envelope.calls), len(envelope.replies)) > ENVELOPE_CALLS_MAX:
        return f"{len(envelope.calls)} commands and {len(envelope.replies)} answers in one envelope"
    for call in envelope.calls:
        if not (
            0 < call.timeout_ms <= TIMEOUT_MS_MAX
            and _are_words(call.nonce, call.number, call.arg1, call.arg2)
        ):
            return f"a command of kind {call.kind} for {call.timeout_ms} ms on {call.arg1}, {call.arg2}"
    for reply in envelope.replies:
        if reply.outcome not in _OUTCOMES or not _are_words(reply.value1, reply.value2):
            return f"an answer with outcome {reply.outcome}, {reply.value1}, {reply.value2}"
    return _FINE


def _are_words(*values: int) -> bool:
    return all(0 <= value <= U64_MAX for value in values)


_JUDGES: dict[MessageType, Callable[[Door, Message], str]] = {
    MessageType.MsgApp: Door._app,
    MessageType.MsgAppResp: Door._app_resp,
    MessageType.MsgVote: Door._vote,
    MessageType.MsgVoteResp: Door._vote_resp,
    MessageType.MsgSnap: Door._snap,
    MessageType.MsgHeartbeat: Door._heartbeat,
    MessageType.MsgHeartbeatResp: Door._heartbeat_resp,
    MessageType.MsgTimeoutNow: Door._timeout_now,
    MessageType.MsgReadIndex: Door._read_index,
    MessageType.MsgReadIndexResp: Door._read_index_resp,
    MessageType.MsgPreVote: Door._vote,
    MessageType.MsgPreVoteResp: Door._pre_vote_resp,
}
"""What travels; MsgProp does not, since commands do. Of the others, none may come from outside."""
