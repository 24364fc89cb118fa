"""Leadership as this node has it: its lease, the promises that it keeps to others, and the way out of it.

All times are CLOCK_BOOTTIME ns, and come with the step. What the lease is to show goes into the outputs.
"""

from __future__ import annotations

import msgspec

from pgraft.node.core import Core
from pgraft.node.desk import Desk
from pgraft.node.lease import Lease
from pgraft.node.outputs import LogLines, Outputs
from pgraft.node.quiet import Quiet
from pgraft.node.roster import Roster
from pgraft.postgres.settings import NodeConfig
from pgraft.raft.types import NO_NODE, StateType
from pgraft.shm.layout import Yields


class Leadership:
    """Ticks, lease and hand-over of one node."""

    def __init__(
        self,
        config: NodeConfig,
        core: Core,
        roster: Roster,
        desk: Desk,
        quiet: Quiet,
        log: LogLines,
        started_ns: int,
    ) -> None:
        self.lease = Lease()
        self.quiet = quiet
        self.newest_round = 0
        self.led_term = 0
        self.last_tick_ns = started_ns
        self._config = config
        self._node_id = config.node_id
        self._timeout_ns = config.election_timeout_ms * 1_000_000
        self._core = core
        self._raft = core.raft
        self._roster = roster
        self._desk = desk
        self._log = log
        self._first_quiet_ns = quiet.until_ns
        self._shown_ns = 0
        self._begins = False
        self._basis: tuple[object, ...] = ()
        self.yields = Yields.NO
        """Whether this node had better not lead; the supervisor knows."""
        self._yield_again_ns = 0

    # --- time -------------------------------------------------------------------------------------------

    def begin_step(self, now_ns: int, yields: Yields) -> None:
        """What the step before wanted shown is shown. Let the core have the ticks that have passed."""
        self._begins = False
        if yields != self.yields:
            self.yields = yields
            self._yield_again_ns = 0
        core = self._core
        ticks = (now_ns - self.last_tick_ns) // core.tick_ns
        if ticks <= 0:
            return
        self.last_tick_ns += ticks * core.tick_ns
        if self._desk.out_reason:
            return
        # After a long freeze two election timeouts of ticks say all there is to say.
        for _ in range(min(ticks, 2 * core.election_tick)):
            if self._must_not_campaign(now_ns):
                break
            core.raw.tick()
        self._forget_long_promise(now_ns)

    def _must_not_campaign(self, now_ns: int) -> bool:
        """Whether the next tick would begin a campaign, with a vote of its own that is promised away."""
        if self._raft.state == StateType.StateLeader or not self.quiet.holds(now_ns):
            return False
        return self._core.raw.ticks_to_deadline() <= 1

    def tick_due_ns(self, now_ns: int) -> int:
        """When the core does something by itself."""
        due = self.last_tick_ns + self._core.raw.ticks_to_deadline() * self._core.tick_ns
        return max(due, self.quiet.until_ns) if self._must_not_campaign(now_ns) else due

    def _forget_long_promise(self, now_ns: int) -> None:
        """Once the promises of an earlier worker have run out, only the present timeout counts."""
        if not self._first_quiet_ns or now_ns < self._first_quiet_ns:
            return
        self._first_quiet_ns = 0
        identity, timeout_ms = self._roster.identity, self._config.election_timeout_ms
        if identity.election_timeout_ms > timeout_ms:
            self._roster.update(msgspec.structs.replace(identity, election_timeout_ms=timeout_ms))

    # --- the lease --------------------------------------------------------------------------------------

    def ask_round(self, now_ns: int, *, beats: bool) -> bool:
        """Whether the envelopes of this moment ask for a round of the lease: those with heartbeats (`beats`),
        and all while there is no lease.

        Every append could ask, too, but heartbeats renew it long before it ends.
        """
        if self._raft.state != StateType.StateLeader or self.lease.ended:
            return False
        if not (beats or self._shown_ns == 0 or self._is_alone()):
            return False
        self.lease.answer(self._node_id, now_ns, self._timeout_ns)
        return True

    def _is_alone(self) -> bool:
        state = self._core.membership_log.current.conf_state
        return len(state.voters) == 1 and not state.voters_outgoing

    def show(self, outputs: Outputs) -> None:
        """Have the lease's end shown where it has changed: at once, and the first one of a term behind the
        status block that shows this node as the leader."""
        raft, membership = self._raft, self._core.membership_log.current
        basis = (raft.state, raft.term, self.led_term, membership, self._desk.out_reason)
        if not self.lease.changed and basis == self._basis:
            return
        self._basis = basis
        end = 0
        # Only after its first own commit does a leader know the commit index (section 8 of the paper).
        if raft.state == StateType.StateLeader and self.led_term == raft.term and not self._desk.out_reason:
            end = self.lease.end_ns(membership.halves())
        if end == self._shown_ns:
            return
        if not end:
            outputs.lease_end_ns, outputs.lease_begin_ns = 0, None
        elif self._shown_ns and not self._begins:
            outputs.lease_end_ns = end
        else:
            self._begins = True
            outputs.lease_begin_ns = end
        self._shown_ns = end

    # --- the way out ------------------------------------------------------------------------------------

    def way_out(self, now_ns: int) -> None:
        """Lead no more, where that is called for."""
        if self._raft.state is StateType.StateLeader:
            if self.lease.ended:
                self._leave_failed_transfer()
            if self.yields:
                self._yield_leadership(now_ns)

    def _leave_failed_transfer(self) -> None:
        """A transfer that came to nothing leaves a leader that has ended its lease: a new term mends it."""
        raft = self._raft
        if self.lease.term != raft.term or self._desk.out_reason:
            return
        if raft.lead_transferee == NO_NODE:
            self._log("LOG", f"node {self._node_id} could not hand leadership over, and steps down")
            self._core.resign()

    @property
    def has_yielded(self) -> bool:
        """Whether nothing keeps from a stop: this node leads no more, or nobody can take over from it."""
        if self.yields == Yields.NO:
            return False
        return not self._desk.leads or (self._raft.lead_transferee == NO_NODE and not self._successor())

    def _successor(self) -> int:
        return self._desk.best_successor(serving=self.yields == Yields.NOT_SERVING)

    def _yield_leadership(self, now_ns: int) -> None:
        """Lead no more, where another can. One try an election: who has not taken over may be busy."""
        if not self._desk.leads or now_ns < self._yield_again_ns:
            return
        successor = self._successor() if self._raft.lead_transferee == NO_NODE else NO_NODE
        if successor == NO_NODE:
            return
        self._yield_again_ns = now_ns + 2 * self._timeout_ns
        why = "this node stops" if self.yields == Yields.STOPPING else "PostgreSQL does not serve here"
        self._log("LOG", f"node {self._node_id} hands leadership over to node {successor}: {why}")
        self._desk.begin_transfer(successor)

    def hand_over_for_stop(self) -> int:
        """A planned stop costs the cluster no election: the best voter takes over first. Who does, or 0."""
        successor = self._desk.best_successor() if self._desk.leads else NO_NODE
        if successor:
            self._log("LOG", f"node {self._node_id} hands leadership over to node {successor}")
            self._desk.begin_transfer(successor)
        return successor
