"""Deliberate faults in the core, the replica and the storage, to show that the simulator sees them.

Each changes one place of the source while it is imported (`install`, in a process of its own). They are
the mistakes that Raft implementations make: the known traps, and what storage can get wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import NamedTuple


class Break(NamedTuple):
    """In `module`, `was` (which stands there once) becomes `becomes`.

    `test` names the test that sees it where the simulator would need too many seeds.
    """

    module: str
    was: str
    becomes: str
    test: str = ""


BREAKS = {
    # Terms and votes
    "vote_not_persisted": Break(
        "pgraft.raft.rawnode",
        "hard_state=hard_state_of(r) if self._hard_state_changed() else None",
        "hard_state=HardState(r.term, 0, r.raft_log.committed) if self._hard_state_changed() else None",
    ),
    "vote_forgotten_in_the_same_term": Break(
        "pgraft.raft.raft",
        "        if self.term != term:\n            self.term = term",
        "        if True:\n            self.term = term",
    ),
    "two_votes_in_a_term": Break(
        "pgraft.raft.election", "(r.vote == NO_NODE and r.lead == NO_NODE)", "(r.lead == NO_NODE)"
    ),
    "vote_for_a_shorter_log": Break(
        "pgraft.raft.election",
        "granted = can_vote and r.raft_log.is_up_to_date(m.index, m.log_term)",
        "granted = can_vote",
    ),
    "pre_votes_counted_as_votes": Break(
        "pgraft.raft.candidate",
        "    MessageType.MsgPreVoteResp: ignore,\n    MessageType.MsgStorageAppend",
        "    MessageType.MsgPreVoteResp: handle_vote_resp,\n    MessageType.MsgStorageAppend",
    ),
    "own_vote_counted_before_it_is_durable": Break(
        "pgraft.raft.election",
        "            r.send(Message(type=answer, to=id, term=term))\n            continue",
        "            r.msgs_after_append.append(Message(type=answer, to=id, from_=id, term=term))\n"
        "            r.trk.record_vote(id, True)\n            continue",
        "tests/paper/test_paper_5_elections.py::test_5_2_a_vote_of_its_own_counts_once_it_is_durable",
    ),
    # Committing
    "old_term_committed_by_counting": Break(
        "pgraft.raft.log",
        "if term == 0 or index <= self.committed or not self.match_term(index, term):",
        "if term == 0 or index <= self.committed:",
    ),
    "own_entries_acknowledged_before_they_are_durable": Break(
        "pgraft.raft.leader",
        "    r.raft_log.append(entries)\n",
        "    r.raft_log.append(entries)\n    r.trk.progress[r.id].maybe_update(entries[-1].index)\n",
    ),
    "acknowledged_before_durable": Break(
        "pgraft.raft.follower",
        "    r.msgs_after_append.append(Message(type=MSG_APP_RESP",
        "    r.msgs.append(Message(type=MSG_APP_RESP",
        "tests/paper/test_paper_7_snapshots.py",
    ),
    "appended_without_looking_at_the_term_before": Break(
        "pgraft.raft.log",
        "        if not self.match_term(index, term):\n            return None",
        "        if index > self.last_index():\n            return None",
    ),
    "conflicts_not_replaced": Break(
        "pgraft.raft.log",
        "            if not self.match_term(entry.index, entry.term):\n                return entry.index",
        "            if entry.index > self.last_index():\n                return entry.index",
    ),
    "commit_beyond_what_matched": Break(
        "pgraft.raft.log",
        "self.commit_to(min(committed, last_new))",
        "self.commit_to(min(committed, self.last_index()))",
        "tests/paper/test_paper_5_replication.py::test_5_3_a_follower_commits_no_further_than_it_is_known_to_match",
    ),
    "heartbeats_with_the_bare_commit_index": Break(
        "pgraft.raft.replication",
        "commit = min(progress.match, r.raft_log.committed)",
        "commit = r.raft_log.committed",
    ),
    "write_of_overwritten_entries_taken_for_ours": Break(
        "pgraft.raft.unstable",
        " or self.entries[position].term != term:",
        ":",
        "tests/paper/test_paper_traps.py::test_trap_an_acknowledgement_of_another_terms_entry_at_the_same_index",
    ),
    # Membership
    "joint_commit_counted_as_one": Break(
        "pgraft.raft.tracker",
        "        if self._outgoing:",
        "        if False:",
        "tests/paper/test_paper_6_membership.py",
    ),
    "joint_vote_counted_as_one": Break(
        "pgraft.raft.quorum",
        "        outgoing = majority_vote(self.outgoing, votes)\n",
        "        outgoing = majority_vote((), votes)\n",
        "tests/paper/test_paper_6_membership.py",
    ),
    "change_before_the_own_first_commit": Break(
        "pgraft.raft.raft", "self.pending_conf_index = self.raft_log.last_index()", "pass"
    ),
    "several_changes_pending": Break(
        "pgraft.raft.leader",
        "    if r.pending_conf_index > r.raft_log.applied:",
        "    if False:",
        "tests/paper/test_paper_6_membership.py::test_6_one_change_at_a_time",
    ),
    "joint_configuration_not_left": Break(
        "pgraft.raft.membership",
        "    if r.state is not LEADER or not r.trk.config.auto_leave or",
        "    if r.trk.config.auto_leave or",
    ),
    "learners_refuse_votes": Break(
        "pgraft.raft.election",
        "granted = can_vote and r.raft_log.is_up_to_date(m.index, m.log_term)",
        "granted = can_vote and r.id in r.trk.config.voters.ids() and r.raft_log.is_up_to_date(\n"
        "        m.index, m.log_term\n    )",
        "tests/paper/test_paper_traps.py::test_trap_a_learner_that_refuses_a_vote",
    ),
    "snapshot_without_its_configuration": Break(
        "pgraft.raft.membership",
        "    confchange.restore(r.trk, log.last_index(), conf_state)\n",
        "    one = conf_state.voters[:1]\n"
        "    own = () if r.id in one else (r.id,)\n"
        "    confchange.restore(r.trk, log.last_index(), ConfState(voters=one, learners=own))\n"
        "    return True\n",
    ),
    # Reads, leases, transfers
    "read_index_without_a_round": Break(
        "pgraft.raft.leader",
        "    if r.read_only.option is ReadOnlyOption.ReadOnlyLeaseBased:\n        for request",
        "    if True:\n        for request",
        "tests/paper/test_paper_reads.py::test_6_4_a_leader_that_is_cut_off_answers_nothing",
    ),
    "read_index_before_the_own_first_commit": Break(
        "pgraft.raft.leader",
        "return r.raft_log.match_term(r.raft_log.committed, r.term)",
        "return True",
        "tests/paper/test_paper_traps.py::"
        "test_trap_read_index_answered_by_a_new_leader_before_its_first_commit",
    ),
    "lease_too_long": Break("pgraft.node.lease", "LEASE_PERCENT = 85", "LEASE_PERCENT = 140"),
    "lease_from_the_answer": Break(
        "pgraft.node.lease",
        "return start + min(promises)",
        "return max(sent for sent, _ in self._answers.values()) + min(promises)",
    ),
    "lease_of_one_half": Break(
        "pgraft.node.lease",
        "starts = [self._quorum_start(half) for half in halves if half]",
        "starts = [self._quorum_start(half) for half in list(halves)[:1] if half]",
        "tests/unit/node/test_node_promises.py::test_lease_end",
    ),
    "promises_not_kept": Break(
        "pgraft.node.quiet",
        "return message.context != CAMPAIGN_TRANSFER",
        "return False",
        "tests/unit/node/test_node_promises.py",
    ),
    "every_campaign_a_transfer": Break(
        "pgraft.raft.election",
        'context = CAMPAIGN_TRANSFER if campaign is Campaign.TRANSFER else b""',
        "context = CAMPAIGN_TRANSFER",
        "tests/paper/test_paper_6_membership.py::"
        "test_6_a_node_that_was_removed_cannot_disturb_those_who_hear_from_a_leader",
    ),
    "transfer_never_given_up": Break(
        "pgraft.raft.raft",
        "            r.abort_leader_transfer()",
        "            pass",
        "tests/paper/test_paper_dissertation.py::test_3_10_no_proposals_while_a_transfer_is_under_way_and_it_ends_after_an_election_timeout",
    ),
    "probe_never_resumed": Break("pgraft.raft.leader", "    progress.flow_paused = False\n", ""),
    # Traps that need one exact order of events, which a test gives
    "campaigning_with_an_unapplied_change": Break(
        "pgraft.raft.election",
        " or has_unapplied_conf_changes(r):",
        ":",
        "tests/paper/test_paper_traps.py::test_trap_campaigning_with_a_committed_but_unapplied_membership_change",
    ),
    "pre_candidate_shows_a_leader": Break(
        "pgraft.raft.raft",
        "        self.lead = NO_NODE\n        self.state = PRE_CANDIDATE",
        "        self.state = PRE_CANDIDATE",
        "tests/paper/test_paper_traps.py::test_trap_a_pre_candidate_that_still_shows_a_leader",
    ),
    "transfer_to_a_demoted_node": Break(
        "pgraft.raft.membership",
        "    if r.lead_transferee != NO_NODE and",
        "    if False and",
        "tests/paper/test_paper_traps.py::test_trap_transfer_stuck_after_its_target_is_demoted",
    ),
    "snapshot_without_oneself": Break(
        "pgraft.raft.membership",
        "    if r.id not in conf_state.voters + conf_state.learners + conf_state.voters_outgoing:",
        "    if False:",
        "tests/paper/test_paper_traps.py::test_trap_a_snapshot_without_the_node_itself_in_its_configuration",
    ),
    "commit_on_disk_beyond_the_log": Break(
        "pgraft.raft.raft",
        "            log.committed <= hard_state.commit <= log.last_index(),",
        "            True,",
        "tests/paper/test_paper_traps.py::test_trap_a_commit_index_on_disk_beyond_the_log_on_disk",
    ),
    "lower_terms_not_answered": Break(
        "pgraft.raft.election",
        "    if (r.check_quorum or r.pre_vote) and (kind is MSG_HEARTBEAT or kind is MSG_APP):",
        "    if False:",
        "tests/paper/test_paper_traps.py::test_trap_pre_vote_with_check_quorum_deadlocks",
    ),
    # The order of a turn
    "clock_before_records": Break(
        "pgraft.node.turn",
        "    inputs.records = executor.read_records()\n"
        "    yield Part.RECORDS\n"
        "    now = executor.clock_ns()\n"
        "    yield Part.CLOCK\n",
        "    now = executor.clock_ns()\n"
        "    yield Part.CLOCK\n"
        "    inputs.records = executor.read_records()\n"
        "    yield Part.RECORDS\n",
    ),
    "promises_sent_before_they_are_durable": Break(
        "pgraft.node.turn",
        "    if outputs.hard_state is not None:\n",
        "    if outputs.late:\n        executor.send(outputs.late)\n        outputs.late = []\n"
        "    if outputs.hard_state is not None:\n",
    ),
    "acknowledgements_sent_early": Break(
        "pgraft.node.node",
        "            if early and message.type in BEFORE_SYNC:",
        "            if not promises:",
    ),
    "status_shown_behind_what_others_hear": Break(
        "pgraft.node.turn",
        "    executor.publish(outputs)\n    yield Part.PUBLISH\n    if outputs.late:\n"
        "        executor.send(outputs.late)\n        yield Part.LATE\n",
        "    if outputs.late:\n        executor.send(outputs.late)\n        yield Part.LATE\n"
        "    executor.publish(outputs)\n    yield Part.PUBLISH\n",
    ),
    "answers_before_the_write": Break(
        "pgraft.node.turn",
        "    if outputs.early:\n        executor.send",
        "    if outputs.answers:\n        executor.answer(outputs.answers)\n        outputs.answers = []\n"
        "    if outputs.early:\n        executor.send",
    ),
    "lease_ended_behind_the_hand_over": Break(
        "pgraft.node.turn",
        "    if outputs.lease_end_ns is not None:\n"
        "        executor.show_lease(outputs.lease_end_ns)\n"
        "        yield Part.LEASE\n",
        "    if outputs.late:\n        executor.send(outputs.late)\n        outputs.late = []\n"
        "        yield Part.LATE\n"
        "    if outputs.lease_end_ns is not None:\n"
        "        executor.show_lease(outputs.lease_end_ns)\n"
        "        yield Part.LEASE\n",
    ),
    "more_not_asked_for": Break(
        "pgraft.node.core",
        "        return alone and bool(taken.entries) and raft.state is StateType.StateLeader",
        "        return False",
    ),
    "commit_of_a_removal_not_written": Break(
        "pgraft.node.node",
        "        self.core.persist_commit(outputs)\n        text =",
        "        text =",
        "tests/unit/node/test_node_promises.py::test_a_removal_is_on_disk_before_anyone_hears_of_it",
    ),
    "forwarded_twice": Break(
        "pgraft.node.desk",
        "        gone = self._forwarded.take_where(",
        "        for command in self._forwarded.take_where(lambda *_: bool(leader)):\n"
        "            self._ask_again(command)\n"
        "        gone = self._forwarded.take_where(",
    ),
    "restarted_without_silence": Break(
        "pgraft.node.boot",
        "    quiet = Quiet(now + longest * 1_000_000 if may_have_promised else now)",
        "    quiet = Quiet(now)",
        "tests/unit/node/test_node_promises.py::test_a_restarted_node_gives_no_vote_for_an_election_timeout",
    ),
    # Storage
    "no_sync_of_a_batch": Break(
        "pgraft.storage.entry_log",
        "        if sync:\n            files.sync_data(self._fd)\n",
        "        if sync:\n",
    ),
    "torn_batches_not_seen": Break(
        "pgraft.storage.recovery",
        "            if crc32(view[pos + CRC_FROM : stop], salt) != crc:\n",
        "            if False:\n",
    ),
    "file_names_not_synced": Break(
        "pgraft.storage.files",
        "    rename(temporary(path), path)\n    sync_dir(path.parent)",
        "    rename(temporary(path), path)",
    ),
    "hard_state_lost_in_a_new_file": Break(
        "pgraft.storage.entry_log",
        "header = self._next_header(self.index.last + 1, self.hard_state, 0)",
        "header = self._next_header(self.index.last + 1, HardState(), 0)",
        "tests/unit/storage/test_storage_crash.py::test_every_crash_point_leaves_an_allowed_state",
    ),
    "truncation_comes_back_after_restart": Break(
        "pgraft.storage.recovery",
        "        index.add(sequence, offset, first, count, term, bool(flags & CONF_CHANGE))",
        "        if first > index.last:\n"
        "            index.add(sequence, offset, first, count, term, bool(flags & CONF_CHANGE))",
    ),
    "old_batches_not_written_again_after_a_failed_sync": Break(
        "pgraft.storage.entry_log", "        if start < file.end:\n", "        if False:\n"
    ),
    "snapshot_put_in_place_unsynced": Break(
        "pgraft.storage.files",
        "        write_at(fd, data, 0)\n        sync_file(fd)",
        "        write_at(fd, data, 0)",
    ),
    "compaction_one_too_far": Break(
        "pgraft.storage.store",
        "self._log.index.drop_before(place.index + 1)",
        "self._log.index.drop_before(place.index + 2)",
    ),
}


class _Loader(SourceFileLoader):
    """Compiles a module with one place changed."""

    def __init__(self, fullname: str, path: str, change: Break) -> None:
        super().__init__(fullname, path)
        self._change = change

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode()
        if source.count(self._change.was) != 1:
            raise ImportError(
                f"{self._change.was!r} stands {source.count(self._change.was)} times in {self.path}"
            )
        changed = source.replace(self._change.was, self._change.becomes)
        return compile(changed, self.path, "exec")


class _Finder(MetaPathFinder):
    def __init__(self, change: Break) -> None:
        self._change = change

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._change.module:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self._change)
        return spec


def install(name: str) -> None:
    """Break what `name` says, before it is imported. Raises KeyError, RuntimeError."""
    change = BREAKS[name]
    if change.module in sys.modules:
        raise RuntimeError(f"{change.module} is imported already")
    sys.meta_path.insert(0, _Finder(change))
