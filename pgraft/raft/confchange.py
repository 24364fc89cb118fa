"""Membership changes as functions from one configuration to the next (dissertation, section 4).

A change works on copies: when it is refused (ErrConfChange), the tracker is as it was.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pgraft.raft.errors import ErrConfChange
from pgraft.raft.quorum import JointConfig
from pgraft.raft.tracker import Progress, ProgressTracker, TrackerConfig, check_config
from pgraft.raft.types import ConfChangeSingle, ConfChangeType, ConfState

NextConfig = tuple[TrackerConfig, dict[int, Progress]]


class Changer:
    """Computes the configuration that follows the tracker's.

    `last_index` is where a newcomer's Progress starts probing.
    """

    def __init__(self, tracker: ProgressTracker, last_index: int) -> None:
        self.tracker = tracker
        self.last_index = last_index

    def simple(self, changes: Iterable[ConfChangeSingle]) -> NextConfig:
        """Apply changes that alter at most one voter: old and new majorities still overlap."""
        draft = _Draft(self.tracker, self.last_index)
        if draft.outgoing:
            raise ErrConfChange("can't apply simple config change in joint config")
        before = set(draft.incoming)
        draft.apply(changes)
        if len(before ^ draft.incoming) > 1:
            raise ErrConfChange("more than one voter changed without entering joint config")
        return draft.finish()

    def enter_joint(self, auto_leave: bool, changes: Iterable[ConfChangeSingle]) -> NextConfig:
        """Apply any changes to the incoming half; the voters so far become the outgoing half."""
        draft = _Draft(self.tracker, self.last_index)
        if draft.outgoing:
            raise ErrConfChange("config is already joint")
        if not draft.incoming:
            raise ErrConfChange("can't make a zero-voter config joint")
        draft.outgoing = set(draft.incoming)
        draft.apply(changes)
        draft.auto_leave = auto_leave
        return draft.finish()

    def leave_joint(self) -> NextConfig:
        """Keep the incoming half only; voters that were to become learners become so."""
        draft = _Draft(self.tracker, self.last_index)
        if not draft.outgoing:
            raise ErrConfChange("can't leave a non-joint config")
        draft.leave()
        return draft.finish()


class _Draft:
    """The mutable working copy of one change."""

    def __init__(self, tracker: ProgressTracker, last_index: int) -> None:
        check_config(tracker.config, tracker.progress)
        config = tracker.config
        self.incoming = set(config.voters.incoming)
        self.outgoing = set(config.voters.outgoing)
        self.learners = set(config.learners)
        self.learners_next = set(config.learners_next)
        self.auto_leave = config.auto_leave
        self.progress = {id: progress.clone() for id, progress in tracker.progress.items()}
        self._tracker = tracker
        self._last_index = last_index

    def apply(self, changes: Iterable[ConfChangeSingle]) -> None:
        for change in changes:
            if change.node_id == 0:  # a change that the application withdrew after it was proposed
                continue
            if change.type == ConfChangeType.ConfChangeAddNode:
                self._make_voter(change.node_id)
            elif change.type == ConfChangeType.ConfChangeAddLearnerNode:
                self._make_learner(change.node_id)
            elif change.type == ConfChangeType.ConfChangeRemoveNode:
                self._remove(change.node_id)
            elif change.type != ConfChangeType.ConfChangeUpdateNode:
                raise ErrConfChange(f"unexpected conf type {change.type}")
        if not self.incoming:
            raise ErrConfChange("removed all voters")

    def _make_voter(self, id: int) -> None:
        if id not in self.progress:
            self._add_progress(id, is_learner=False)
        self.progress[id].is_learner = False
        self.learners.discard(id)
        self.learners_next.discard(id)
        self.incoming.add(id)

    def _make_learner(self, id: int) -> None:
        progress = self.progress.get(id)
        if progress is None:
            self._add_progress(id, is_learner=True)
            self.learners.add(id)
            return
        if progress.is_learner:
            return
        self._remove(id)
        self.progress[id] = progress  # a demoted voter keeps what is known of its log
        if id in self.outgoing:
            self.learners_next.add(id)  # it must still vote there, and nobody is both
        else:
            progress.is_learner = True
            self.learners.add(id)

    def _remove(self, id: int) -> None:
        if id not in self.progress:
            return
        self.incoming.discard(id)
        self.learners.discard(id)
        self.learners_next.discard(id)
        if id not in self.outgoing:
            del self.progress[id]

    def _add_progress(self, id: int, *, is_learner: bool) -> None:
        # A newcomer counts as recently active: else the next quorum check could depose the leader
        # before the newcomer had a chance to speak.
        self.progress[id] = Progress(
            match=0,
            next=max(self._last_index, 1),
            inflights=self._tracker.new_inflights(),
            is_learner=is_learner,
            recent_active=True,
        )

    def leave(self) -> None:
        for id in self.learners_next:
            self.learners.add(id)
            self.progress[id].is_learner = True
        self.learners_next.clear()
        for id in self.outgoing - self.incoming - self.learners:
            del self.progress[id]
        self.outgoing.clear()
        self.auto_leave = False

    def finish(self) -> NextConfig:
        config = TrackerConfig(
            voters=JointConfig(frozenset(self.incoming), frozenset(self.outgoing)),
            learners=frozenset(self.learners),
            learners_next=frozenset(self.learners_next),
            auto_leave=self.auto_leave,
        )
        check_config(config, self.progress)
        return config, self.progress


def restore(tracker: ProgressTracker, last_index: int, conf_state: ConfState) -> None:
    """Bring an empty tracker to `conf_state`, by changes that lead there.

    A joint configuration is built as its outgoing half first, then entered with the operations that
    make the incoming half from it. Raises ErrConfChange when there is no such way.
    """
    add, remove = ConfChangeType.ConfChangeAddNode, ConfChangeType.ConfChangeRemoveNode
    learn = ConfChangeType.ConfChangeAddLearnerNode
    changer = Changer(tracker, last_index)
    incoming = [ConfChangeSingle(remove, id) for id in conf_state.voters_outgoing]
    incoming += [ConfChangeSingle(add, id) for id in conf_state.voters]
    incoming += [ConfChangeSingle(learn, id) for id in conf_state.learners]
    incoming += [ConfChangeSingle(learn, id) for id in conf_state.learners_next]
    if not conf_state.voters_outgoing:
        for change in incoming:
            tracker.use(*changer.simple([change]))
        return
    for id in conf_state.voters_outgoing:
        tracker.use(*changer.simple([ConfChangeSingle(add, id)]))
    tracker.use(*changer.enter_joint(conf_state.auto_leave, incoming))


def equivalent(left: ConfState, right: ConfState) -> bool:
    """Whether two configurations are the same, in whatever order their ids are listed."""
    return _in_order(left) == _in_order(right)


def _in_order(state: ConfState) -> ConfState:
    return msgspec.structs.replace(
        state,
        voters=tuple(sorted(state.voters)),
        learners=tuple(sorted(state.learners)),
        voters_outgoing=tuple(sorted(state.voters_outgoing)),
        learners_next=tuple(sorted(state.learners_next)),
    )
