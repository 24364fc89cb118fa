"""How long a restarted worker gives no vote.

Before it died it may have promised a leader not to vote for one election timeout; it has forgotten
to whom and since when. So it gives no vote for the longest that it can have promised: the election
timeout that the identity remembers, or the new one. A vote for a transfer counts: the leader ended
its lease before it asked for it.
"""

from __future__ import annotations

from pgraft.raft.types import Message, MessageType

CAMPAIGN_TRANSFER = b"CampaignTransfer"
"""The context of a vote request that a leader asked for, as the core writes it."""


class Quiet:
    """Drops vote requests until the forgotten promise has run out."""

    def __init__(self, until_ns: int) -> None:
        self.until_ns = until_ns

    def drops(self, message: Message, now_ns: int) -> bool:
        """Whether this message must not reach the core yet."""
        if now_ns >= self.until_ns:
            return False
        match message.type:
            case MessageType.MsgVote | MessageType.MsgPreVote:
                return message.context != CAMPAIGN_TRANSFER
            case _:
                return False
