"""For how long this node gives no vote: the promises that leases stand on, and what a directory has
forgotten.

A node that answers a leader's round promises to give no vote for almost an election timeout. The
core keeps to it as long as it follows that leader, but forgets it when a message of a higher term
comes along; so the promise is kept here, by the clock. Before it died, a restarted worker may have
promised too; it has forgotten to whom and since when, so it begins with the longest that it can have
promised: the election timeout that the identity remembers, or the new one. Its own vote counts like
any other: it does not campaign meanwhile either. A vote for a transfer is free, since the leader
ended its lease before it asked for it.

A directory that was adopted in another place may have forgotten more: terms that it had entered, votes, and
entries that it had acknowledged. Until it has caught up with a leader it gives no vote at all, and does not
campaign; and for some election timeouts it hears nobody, so that no leader of a term that it has forgotten
about can live on its answers. README.md, "A directory in another place", says why that is enough.
"""

from __future__ import annotations

from pgraft.raft.types import Message, MessageType

CAMPAIGN_TRANSFER = b"CampaignTransfer"
"""The context of a vote request that a leader asked for, as the core writes it."""
ADOPTED_DEAF_ELECTION_TIMEOUTS = 3
"""A leader that a majority does not answer steps down within two, and a candidate gives up; one more for
clocks that run at different rates."""


class Quiet:
    """Drops what must not reach the core yet. Times in CLOCK_BOOTTIME ns.

    `catching_up`: the directory was adopted, and may have forgotten; then nothing at all counts before
    `deaf_until_ns`.
    """

    def __init__(self, until_ns: int, *, catching_up: bool = False, deaf_until_ns: int = 0) -> None:
        self.until_ns = until_ns
        self.catching_up = catching_up
        self._deaf_until_ns = deaf_until_ns

    def promise(self, until_ns: int) -> None:
        """No vote before `until_ns`."""
        self.until_ns = max(self.until_ns, until_ns)

    def holds(self, now_ns: int) -> bool:
        """Whether this node may not vote, for itself neither."""
        return self.catching_up or now_ns < self.until_ns

    def drops(self, message: Message, now_ns: int) -> bool:
        """Whether this message must not reach the core yet."""
        if self.catching_up and now_ns < self._deaf_until_ns:
            return True
        if not self.holds(now_ns):
            return False
        match message.type:
            case MessageType.MsgVote | MessageType.MsgPreVote:
                return self.catching_up or message.context != CAMPAIGN_TRANSFER
            case MessageType.MsgTimeoutNow:
                return self.catching_up
            case _:
                return False
