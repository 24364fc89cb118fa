"""Introspection: copies of a node's state, safe to keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pgraft.raft.tracker import Progress, TrackerConfig
from pgraft.raft.types import NO_NODE, HardState, StateType

if TYPE_CHECKING:
    from pgraft.raft.raft import Raft


class SoftState(msgspec.Struct, frozen=True):
    """What need not be durable: the leader as far as known (0: nobody), and the role."""

    lead: int = NO_NODE
    raft_state: StateType = StateType.StateFollower


class BasicStatus(msgspec.Struct, frozen=True):
    """The cheap part of Status."""

    id: int
    hard_state: HardState
    soft_state: SoftState
    applied: int
    lead_transferee: int


class Status(msgspec.Struct, frozen=True):
    """A node's state; `progress`, by id, is empty unless the node leads."""

    basic: BasicStatus
    config: TrackerConfig
    progress: dict[int, Progress]


def hard_state_of(r: Raft) -> HardState:
    """The hard state as it is now."""
    return HardState(r.term, r.vote, r.raft_log.committed)


def soft_state_of(r: Raft) -> SoftState:
    """The soft state as it is now."""
    return SoftState(r.lead, r.state)


def basic_status_of(r: Raft) -> BasicStatus:
    """See BasicStatus."""
    return BasicStatus(
        id=r.id,
        hard_state=hard_state_of(r),
        soft_state=soft_state_of(r),
        applied=r.raft_log.applied,
        lead_transferee=r.lead_transferee,
    )


def status_of(r: Raft) -> Status:
    """See Status."""
    leads = r.state is StateType.StateLeader
    progress = {id: pr.clone() for id, pr in r.trk.items()} if leads else {}
    return Status(basic=basic_status_of(r), config=r.trk.config, progress=progress)
