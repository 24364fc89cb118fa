"""For how long this node gives no vote: the promises that leases stand on.

A node that answers a leader's round promises to give no vote for almost an election timeout. The
core keeps to it as long as it follows that leader, but forgets it when a message of a higher term
comes along; so the promise is kept here, by the clock. Before it died, a restarted worker may have
promised too; it has forgotten to whom and since when, so it begins with the longest that it can have
promised: the election timeout that the identity remembers, or the new one. Its own vote counts like
any other: it does not campaign meanwhile either. A vote for a transfer is free, since the leader
ended its lease before it asked for it.
"""

from __future__ import annotations

from pgraft.raft.types import Message, MessageType

CAMPAIGN_TRANSFER = b"CampaignTransfer"
"""The context of a vote request that a leader asked for, as the core writes it."""


class Quiet:
    """Drops vote requests until every promise has run out. Times in CLOCK_BOOTTIME ns."""

    def __init__(self, until_ns: int) -> None:
        self.until_ns = until_ns

    def promise(self, until_ns: int) -> None:
        """No vote before `until_ns`."""
        self.until_ns = max(self.until_ns, until_ns)

    def holds(self, now_ns: int) -> bool:
        """Whether a promise stands."""
        return now_ns < self.until_ns

    def drops(self, message: Message, now_ns: int) -> bool:
        """Whether this message must not reach the core yet."""
        if not self.holds(now_ns):
            return False
        match message.type:
            case MessageType.MsgVote | MessageType.MsgPreVote:
                return message.context != CAMPAIGN_TRANSFER
            case _:
                return False
