"""What a leader knows of each follower's log (Progress), and the configuration it counts with.

A Progress is in one of three states: Probe sends at most one message and waits; Replicate streams
optimistically, bounded by the in-flight window; Snapshot sends nothing until the snapshot is in.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator

import msgspec

from pgraft.raft.errors import InvariantViolation, invariant
from pgraft.raft.quorum import JointConfig, VoteResult, describe_majority
from pgraft.raft.types import ConfState


class ProgressState(enum.IntEnum):
    """How a leader replicates to a follower, numbered as in etcd's tracker."""

    StateProbe = 0
    StateReplicate = 1
    StateSnapshot = 2


PROBE = ProgressState.StateProbe
REPLICATE = ProgressState.StateReplicate
SNAPSHOT = ProgressState.StateSnapshot


class Inflights:
    """The window of messages with entries that were sent and not yet acknowledged.

    Bounded by count, and by bytes where `max_bytes` is not 0: the window is full once the bytes
    reach the limit, so that a single message larger than the limit can still pass.
    """

    __slots__ = ("_window", "bytes", "max_bytes", "size")

    def __init__(self, size: int, max_bytes: int) -> None:
        self.size = size
        self.max_bytes = max_bytes
        self.bytes = 0
        self._window: deque[tuple[int, int]] = deque()

    def add(self, index: int, size_bytes: int) -> None:
        """Note a message whose last entry is `index`."""
        if self.full():
            raise InvariantViolation(f"cannot add {index} to a full window of {len(self._window)} messages")
        self._window.append((index, size_bytes))
        self.bytes += size_bytes

    def free_le(self, index: int) -> None:
        """Forget the messages that end at or before the acknowledged `index`."""
        window = self._window
        while window and window[0][0] <= index:
            self.bytes -= window.popleft()[1]

    def full(self) -> bool:
        """Whether no further message may be sent."""
        return len(self._window) >= self.size or (self.max_bytes != 0 and self.bytes >= self.max_bytes)

    def count(self) -> int:
        """Messages in flight."""
        return len(self._window)

    def reset(self) -> None:
        """Forget everything."""
        self._window.clear()
        self.bytes = 0


class Progress:
    """A follower through the leader's eyes.

    `match`: last entry known to be on the follower; `next`: first entry not yet sent;
    `sent_commit`: highest commit index sent that the follower can use; `flow_paused`: a probe is out,
    or the window was filled: nothing more until an answer; `recent_active`: heard from since the
    last quorum check. Invariant: match < next.
    """

    __slots__ = (
        "flow_paused",
        "inflights",
        "is_learner",
        "match",
        "next",
        "pending_snapshot",
        "recent_active",
        "sent_commit",
        "state",
    )

    def __init__(
        self,
        *,
        match: int,
        next: int,
        inflights: Inflights,
        is_learner: bool = False,
        recent_active: bool = False,
    ) -> None:
        self.match = match
        self.next = next
        self.sent_commit = 0
        self.state = PROBE
        self.pending_snapshot = 0
        self.recent_active = recent_active
        self.flow_paused = False
        self.inflights = inflights
        self.is_learner = is_learner

    def clone(self) -> Progress:
        """A copy that shares the window; a membership change works on copies until it is accepted."""
        copy = Progress(match=self.match, next=self.next, inflights=self.inflights)
        for name in Progress.__slots__:
            setattr(copy, name, getattr(self, name))
        return copy

    def restart(self, *, match: int, next: int) -> None:
        """Begin anew, as at the start of a term."""
        self.match = match
        self.next = next
        self.sent_commit = 0
        self.recent_active = False
        self._enter(PROBE)

    def _enter(self, state: ProgressState) -> None:
        self.flow_paused = False
        self.pending_snapshot = 0
        self.state = state
        self.inflights.reset()

    def become_probe(self) -> None:
        """Probe from behind what is known: after a snapshot from behind it, else from match + 1."""
        pending = self.pending_snapshot if self.state is SNAPSHOT else 0
        self._enter(PROBE)
        self.next = max(self.match, pending) + 1
        self.sent_commit = min(self.sent_commit, self.next - 1)

    def become_replicate(self) -> None:
        """Stream from match + 1."""
        self._enter(REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        """A snapshot at `index` is on its way; it carries the commit index up to there."""
        self._enter(SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def sent_entries(self, count: int, size_bytes: int) -> None:
        """Account for an append message with `count` entries that has just been sent."""
        if self.state is REPLICATE:
            if count:
                self.next += count
                self.inflights.add(self.next - 1, size_bytes)
            # A message that fills the window, or an empty one while it is full, is a probe.
            self.flow_paused = self.inflights.full()
        elif self.state is PROBE:
            if count:
                self.flow_paused = True
        else:
            raise InvariantViolation(f"sending {count} entries in {self.state.name}")

    def can_bump_commit(self, commit: int) -> bool:
        """Whether sending `commit` may move the follower's commit index forward."""
        return commit > self.sent_commit and self.sent_commit < self.next - 1

    def maybe_update(self, index: int) -> bool:
        """The follower acknowledged `index`; False when that is old news."""
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = index + 1
        self.flow_paused = False
        return True

    def maybe_decr_to(self, rejected: int, match_hint: int) -> bool:
        """The follower rejected an append at `rejected`; False when the rejection is stale.

        While streaming, `next` runs ahead, so a rejection is genuine when it lies beyond match; while
        probing, when it is about the one message that is out.
        """
        if self.state is REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
        else:
            if self.next - 1 != rejected:
                return False
            self.next = max(min(rejected, match_hint + 1), self.match + 1)
            self.flow_paused = False
        self.sent_commit = min(self.sent_commit, self.next - 1)
        return True

    def is_paused(self) -> bool:
        """Whether appends to this follower must wait for an answer."""
        return self.flow_paused or self.state is SNAPSHOT

    def __str__(self) -> str:
        text = f"{self.state.name} match={self.match} next={self.next}"
        if self.is_learner:
            text += " learner"
        if self.is_paused():
            text += " paused"
        if self.pending_snapshot:
            text += f" pendingSnap={self.pending_snapshot}"
        if not self.recent_active:
            text += " inactive"
        if self.inflights.count():
            text += f" inflight={self.inflights.count()}" + ("[full]" if self.inflights.full() else "")
        return text


class TrackerConfig(msgspec.Struct, frozen=True):
    """A configuration as the tracker counts with it. Learners and voters never overlap.

    `learners_next` are voters of the outgoing half that become learners when the joint configuration
    is left; until then they still vote there.
    """

    voters: JointConfig = JointConfig()
    learners: frozenset[int] = frozenset()
    learners_next: frozenset[int] = frozenset()
    auto_leave: bool = False

    def conf_state(self) -> ConfState:
        """The same as a plain value, ids in order."""
        return ConfState(
            voters=tuple(sorted(self.voters.incoming)),
            learners=tuple(sorted(self.learners)),
            voters_outgoing=tuple(sorted(self.voters.outgoing)),
            learners_next=tuple(sorted(self.learners_next)),
            auto_leave=self.auto_leave,
        )

    def __str__(self) -> str:
        text = f"voters={self.voters}"
        if self.learners:
            text += f" learners={describe_majority(self.learners)}"
        if self.learners_next:
            text += f" learners_next={describe_majority(self.learners_next)}"
        return text + (" autoleave" if self.auto_leave else "")


class ProgressTracker:
    """The configuration, a Progress for each of its nodes, and the votes of a running election."""

    __slots__ = (
        "_incoming",
        "_outgoing",
        "config",
        "max_inflight",
        "max_inflight_bytes",
        "progress",
        "votes",
    )

    def __init__(self, max_inflight: int, max_inflight_bytes: int) -> None:
        self.max_inflight = max_inflight
        self.max_inflight_bytes = max_inflight_bytes
        self.config = TrackerConfig()
        self.progress: dict[int, Progress] = {}
        self.votes: dict[int, bool] = {}
        self._incoming: list[Progress] = []
        self._outgoing: list[Progress] = []

    def use(self, config: TrackerConfig, progress: dict[int, Progress]) -> None:
        """Count with `config` from now on. `progress` is kept in id order, the order of sending."""
        self.config = config
        self.progress = dict(sorted(progress.items()))
        self._incoming = [self.progress[id] for id in config.voters.incoming]
        self._outgoing = [self.progress[id] for id in config.voters.outgoing]

    def new_inflights(self) -> Inflights:
        """An empty window of the configured size."""
        return Inflights(self.max_inflight, self.max_inflight_bytes)

    def items(self) -> Iterator[tuple[int, Progress]]:
        """(id, Progress) in id order."""
        return iter(self.progress.items())

    def committed(self) -> int:
        """The largest index that both majorities have, by their `match`."""
        matches = sorted([progress.match for progress in self._incoming])
        committed = matches[(len(matches) - 1) // 2]
        if self._outgoing:
            matches = sorted([progress.match for progress in self._outgoing])
            committed = min(committed, matches[(len(matches) - 1) // 2])
        return committed

    def quorum_active(self) -> bool:
        """Whether a quorum has been heard from since the last check."""
        active = {id: pr.recent_active for id, pr in self.progress.items() if not pr.is_learner}
        return self.config.voters.vote_result(active) is VoteResult.VoteWon

    def voter_ids(self) -> list[int]:
        """Voters of either half, in order."""
        return sorted(self.config.voters.ids())

    def reset_votes(self) -> None:
        """Forget the votes of the last election."""
        self.votes = {}

    def record_vote(self, id: int, granted: bool) -> None:
        """The first answer of a voter counts."""
        self.votes.setdefault(id, granted)

    def vote_result(self) -> VoteResult:
        """How the election stands."""
        return self.config.voters.vote_result(self.votes)


def check_config(config: TrackerConfig, progress: dict[int, Progress]) -> None:
    """Raise InvariantViolation unless configuration and progress fit together."""
    voters = config.voters
    tracked = voters.ids() | config.learners | config.learners_next
    invariant(tracked == progress.keys(), f"tracked {sorted(progress)}, configured {sorted(tracked)}")
    invariant(
        config.learners_next <= voters.outgoing,
        f"learners_next {sorted(config.learners_next)} not in outgoing voters {sorted(voters.outgoing)}",
    )
    for id in config.learners_next:
        invariant(not progress[id].is_learner, f"{id} is in learners_next and a learner already")
    overlap = config.learners & voters.ids()
    invariant(not overlap, f"{sorted(overlap)} are both voters and learners")
    for id, pr in progress.items():
        invariant(pr.is_learner == (id in config.learners), f"{id}: is_learner is {pr.is_learner}")
    if not voters.is_joint():
        invariant(not config.learners_next, f"learners_next {sorted(config.learners_next)} while not joint")
        invariant(not config.auto_leave, "auto_leave while not joint")
