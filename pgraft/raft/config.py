"""How a Raft node is set up."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

from pgraft.raft.errors import ErrConfig
from pgraft.raft.types import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, NO_NODE

if TYPE_CHECKING:
    import random

    from pgraft.raft.storage import Storage

MAX_SIZE_PER_MSG_DEFAULT = 1024 * 1024
MAX_INFLIGHT_MSGS_DEFAULT = 256
PENDING_READS_MAX = 65_536
"""ReadIndex requests that a leader holds; further ones are dropped, and their callers ask again."""


class ReadOnlyOption(enum.IntEnum):
    """How a leader makes sure of its leadership before it answers a ReadIndex."""

    ReadOnlySafe = 0
    """A heartbeat round that a quorum answers."""
    ReadOnlyLeaseBased = 1
    """The quorum check's lease: only as good as the clocks. Needs check_quorum."""


class Config(msgspec.Struct, kw_only=True, frozen=True):
    """Parameters of a node; times are in ticks, sizes in bytes (sizes.NO_LIMIT for none)."""

    id: int
    """This node, neither 0 nor one of the local targets."""
    election_tick: int
    """Election timeout; elections start at random between this and one tick less than twice this."""
    heartbeat_tick: int
    """A leader sends heartbeats every so many ticks; less than election_tick."""
    storage: Storage
    rng: random.Random
    """The only source of chance: a seed replays everything."""
    applied: int = 0
    """Last entry the application has applied; set on restart, so that it is not handed out again."""
    async_storage_writes: bool = False
    """Ready carries messages to the append and apply threads, and there is no advance()."""
    max_size_per_msg: int = MAX_SIZE_PER_MSG_DEFAULT
    """Limit for the entries of one append message; at least one entry is always sent."""
    max_committed_size_per_ready: int = 0
    """Limit for the committed entries that are out to be applied; 0: max_size_per_msg."""
    max_uncommitted_entries_size: int = 0
    """A leader drops proposals beyond so many uncommitted payload bytes; 0: no limit."""
    max_inflight_msgs: int = MAX_INFLIGHT_MSGS_DEFAULT
    """Append messages in flight to one follower."""
    max_inflight_bytes: int = 0
    """Payload bytes in flight to one follower; 0: no limit."""
    check_quorum: bool = False
    """A leader steps down when it has not heard from a quorum for an election timeout; followers that
    hear from a leader give no votes."""
    pre_vote: bool = False
    """Ask whether an election could be won before disturbing anyone with it."""
    read_only_option: ReadOnlyOption = ReadOnlyOption.ReadOnlySafe
    disable_proposal_forwarding: bool = False
    """A follower drops proposals."""
    disable_conf_change_validation: bool = False
    """Membership changes enter the log unchecked: the application checks them when it applies them."""
    step_down_on_removal: bool = False
    """A leader that is removed or demoted steps down when it applies that."""

    def validate(self) -> None:
        """Raise ErrConfig naming the field that is wrong."""
        _require(
            self.id not in (NO_NODE, LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD) and self.id > 0,
            f"id {self.id} does not name a node",
        )
        _require(self.heartbeat_tick > 0, f"heartbeat_tick {self.heartbeat_tick} must be greater than 0")
        _require(
            self.election_tick > self.heartbeat_tick,
            f"election_tick {self.election_tick} must be greater than heartbeat_tick {self.heartbeat_tick}",
        )
        _require(self.max_inflight_msgs > 0, f"max_inflight_msgs {self.max_inflight_msgs} must be positive")
        _require(
            self.max_inflight_bytes == 0 or self.max_inflight_bytes >= self.max_size_per_msg,
            f"max_inflight_bytes {self.max_inflight_bytes} < max_size_per_msg {self.max_size_per_msg}",
        )
        _require(
            self.read_only_option is ReadOnlyOption.ReadOnlySafe or self.check_quorum,
            "read_only_option ReadOnlyLeaseBased needs check_quorum",
        )

    @property
    def committed_limit(self) -> int:
        """max_committed_size_per_ready, with its default filled in; at least a byte, so that there is
        room for an entry."""
        return self.max_committed_size_per_ready or self.max_size_per_msg or 1


def _require(condition: bool, detail: str) -> None:
    if not condition:
        raise ErrConfig(detail)
