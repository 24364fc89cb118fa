"""Copies of a Raft directory: none starts; one that is adopted votes when it has caught up; no other does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pgraft.node.adopt import adopt
from pgraft.node.quiet import Quiet
from pgraft.raft.types import Message, MessageType
from pgraft.shm.layout import CommandKind, Outcome
from pgraft.storage import (
    Identity,
    OtherPlace,
    StorageError,
    load_identity,
    load_peers,
    lock_data_dir,
    update_identity,
)
from pgraft.transport.records import (
    PeerHello,
    RecordKind,
    WorkerStart,
    pack,
    unpack_prefix,
    unpack_refused_start,
)
from tests.support.node_sim import ELECTION_MS, Sim, SimNode
from tests.unit.node.test_node_promises import ask_vote, feed, heartbeat

LONG_MS = 15 * ELECTION_MS
ENTRIES = [b"%d" % number for number in range(10)]
STATE = ("identity", "peers", "raft")
OLD_START = WorkerStart(5, 1, 1)
REFUSE = RecordKind.REFUSE_START


def directory(node: SimNode) -> Path:
    return Path(node.config.data_dir)


def identity_of(node: SimNode) -> Identity:
    found = load_identity(directory(node))
    assert found is not None
    return found


def back_up(node: SimNode) -> Path:
    """A copy of the node's directory as it is now."""
    backup = directory(node).with_name(f"backup{node.id}")
    shutil.copytree(directory(node), backup, ignore=shutil.ignore_patterns("*.bell"))
    return backup


def restore(node: SimNode, backup: Path) -> None:
    """Put the copy where the killed node's directory was, which is gone."""
    here = directory(node)
    here.rename(here.with_name(f"original{node.id}"))
    shutil.copytree(backup, here)
    shutil.copytree(
        here.with_name(f"original{node.id}") / "run", here / "run", dirs_exist_ok=True, copy_function=_pipe
    )


def _pipe(source: str, to: str) -> None:
    if Path(source).is_fifo() and not os.path.exists(to):
        os.mkfifo(to, 0o600)


def set_back(node: SimNode, backup: Path) -> None:
    """The killed node's files become those of the copy, in their place: as a machine's snapshot does."""
    here = directory(node)
    for name in STATE:
        path = here / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        (shutil.copytree if (backup / name).is_dir() else shutil.copy)(backup / name, path)


def adopted(node: SimNode, *, complete: bool = False) -> Identity:
    with lock_data_dir(directory(node)):
        return adopt(directory(node), complete=complete).identity


def replicate_all(sim: Sim, leader: SimNode) -> None:
    tickets = [leader.replicate(text) for text in ENTRIES]
    sim.wait(*tickets)
    assert {ticket.outcome for ticket in tickets} == {Outcome.OK}


def lead(sim: Sim, *nodes: SimNode) -> bool:
    """Whether one of these comes to lead, in many election timeouts."""
    return sim.run(LONG_MS, lambda: any(node.lease_valid for node in nodes))


def three(sim: Sim) -> tuple[SimNode, SimNode, SimNode, Path]:
    """A leader, a follower with all ENTRIES, one that has none of them and is cut off; and an older copy of
    the follower's directory."""
    sim.form(3)
    leader = sim.wait_leader()
    sim.run(300)
    follower, lagging = sim.followers(leader)
    backup = back_up(follower)
    sim.isolate(lagging.id)
    replicate_all(sim, leader)
    assert sim.run(2000, lambda: follower.texts == ENTRIES)
    return leader, follower, lagging, backup


# --- where it starts ------------------------------------------------------------------------------------


def test_a_copy_does_not_start_and_is_left_as_it_is(sim: Sim) -> None:
    _leader, follower, _, backup = three(sim)
    follower.kill()
    restore(follower, backup)
    files = {
        path: path.read_bytes() for name in STATE for path in (directory(follower) / name,) if path.is_file()
    }
    with pytest.raises(OtherPlace, match="by which it is recognised, is another one"):
        follower.start()
    assert {path: path.read_bytes() for path in files} == files


def test_a_directory_of_the_release_before_is_taken_over(sim: Sim) -> None:
    _leader, follower, _, _ = three(sim)
    follower.kill()
    stored = identity_of(follower)
    update_identity(directory(follower), msgspec.structs.replace(stored, place=None))
    follower.start()
    assert identity_of(follower).place == stored.place
    assert not follower.live.catching_up


def test_a_renumbered_disk_is_brought_up_to_date(sim: Sim) -> None:
    _leader, follower, _, _ = three(sim)
    follower.kill()
    stored = identity_of(follower)
    assert stored.place is not None
    before = msgspec.structs.replace(stored.place, boot="the one before", device=stored.place.device + 256)
    update_identity(directory(follower), msgspec.structs.replace(stored, place=before))
    if not stored.place.file_system:
        pytest.skip("this file system has no name that outlives a boot")
    follower.start()
    assert identity_of(follower).place == stored.place


# --- adopting -------------------------------------------------------------------------------------------


def test_what_adopting_writes(sim: Sim) -> None:
    _leader, follower, _, backup = three(sim)
    follower.kill()
    before = identity_of(follower)
    with lock_data_dir(directory(follower)):
        done = adopt(directory(follower), complete=False)
    assert (done.why, done.changed, done.identity) == ("", False, before)
    restore(follower, backup)
    now = adopted(follower)
    assert (now.incarnation, now.catching_up) == (2, True)
    assert now.member_id == before.member_id
    assert identity_of(follower) == now
    assert adopted(follower) == now, "once more is nothing more"
    complete = adopted(follower, complete=True)
    assert (complete.incarnation, complete.catching_up) == (2, False)


def test_one_without_a_place_is_adopted_by_the_word(sim: Sim) -> None:
    _leader, follower, _, _ = three(sim)
    follower.kill()
    update_identity(directory(follower), msgspec.structs.replace(identity_of(follower), place=None))
    assert adopted(follower).incarnation == 2


def test_there_must_be_something_to_adopt(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with lock_data_dir(tmp_path), pytest.raises(StorageError, match="no Raft state of a node here"):
        adopt(tmp_path, complete=True)


CALLS = ("write_at", "sync_file", "rename", "sync_dir")
KILLED = """
import os, signal, sys
from pathlib import Path
from pgraft.node.adopt import adopt
from pgraft.storage import files, lock_data_dir
data_dir, name, when = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
real = getattr(files, name)
def call(*args):
    if when == "after":
        real(*args)
    os.kill(os.getpid(), signal.SIGKILL)
with lock_data_dir(data_dir):
    setattr(files, name, call)
    adopt(data_dir, complete=False)
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CALLS)
def test_killed_in_the_middle_it_is_adopted_or_it_is_not(sim: Sim, name: str, when: str) -> None:
    sim.form(1)
    node = sim.nodes[1]
    sim.wait_leader()
    backup = back_up(node)
    node.kill()
    restore(node, backup)
    old = identity_of(node)
    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-c", KILLED, str(directory(node)), name, when]
    ended = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": root})
    assert ended.returncode == -signal.SIGKILL
    found = identity_of(node)
    if found == old:
        assert (CALLS.index(name), when) <= (CALLS.index("rename"), "before")
        with pytest.raises(OtherPlace):
            node.start()
        assert node._lock is not None
        node._lock.release()
        assert adopted(node, complete=True).incarnation == 2
    else:
        assert (found.incarnation, found.catching_up) == (2, True)
        assert adopted(node, complete=True).incarnation == 2
    node.start()
    assert sim.wait_leader() is node


# --- what an adopted one may do -------------------------------------------------------------------------


def test_an_adopted_older_copy_elects_nobody_who_lacks_what_it_had(sim: Sim) -> None:
    leader, follower, lagging, backup = three(sim)
    leader.kill()
    follower.kill()
    restore(follower, backup)
    adopted(follower)
    sim.heal()
    follower.start()
    assert not lead(sim, follower, lagging), "a leader without the entries"
    assert follower.live.catching_up
    leader.start()
    after = sim.wait_leader(LONG_MS)
    assert after is leader
    sim.wait(after.replicate(b"more"))
    nodes = [leader, follower, lagging]
    assert sim.run(LONG_MS, lambda: all(node.texts == [*ENTRIES, b"more"] for node in nodes))
    assert sim.run(LONG_MS, lambda: not follower.live.catching_up)


def test_it_votes_again_when_it_has_caught_up(sim: Sim) -> None:
    leader, follower, lagging, backup = three(sim)
    follower.kill()
    restore(follower, backup)
    adopted(follower)
    follower.start()
    sim.heal()
    assert sim.run(LONG_MS, lambda: not follower.live.catching_up)
    assert follower.texts == ENTRIES
    assert not identity_of(follower).catching_up
    assert sim.leaders() == [leader]
    sim.run(500)
    leader.kill()
    assert sim.wait_leader_of([follower, lagging], LONG_MS)
    follower.restart()
    assert not follower.live.catching_up


def test_at_first_it_hears_nobody(sim: Sim) -> None:
    """A leader of a term that it has forgotten about could live on its answers."""
    leader, follower, _, backup = three(sim)
    follower.kill()
    restore(follower, backup)
    adopted(follower)
    follower.start()
    last = follower.live.raft.raft_log.last_index()
    sim.run(2.5 * ELECTION_MS)
    assert follower.live.raft.lead == 0
    assert follower.live.raft.raft_log.last_index() == last
    assert leader.live.raft.trk.progress[follower.id].match < last, "what the original acknowledged counts"


@pytest.mark.parametrize("transfer", [False, True])
def test_it_gives_no_vote_and_takes_no_leadership_over(sim: Sim, transfer: bool) -> None:
    leader, follower, lagging, backup = three(sim)
    follower.kill()
    restore(follower, backup)
    adopted(follower)
    sim.isolate(follower.id)
    follower.start()
    sim.run(4 * ELECTION_MS)
    term = follower.live.raft.term
    if transfer:
        follower.live.raft.become_follower(term, leader.id)
        ask = Message(type=MessageType.MsgTimeoutNow, to=follower.id, from_=leader.id, term=term)
        follower.live._step(leader.id, ask)
        follower.turn()
        assert follower.live.raft.term == term
    else:
        assert not ask_vote(follower, lagging, term + 1)


@pytest.mark.parametrize("kind", [MessageType.MsgVote, MessageType.MsgPreVote, MessageType.MsgTimeoutNow])
def test_the_gate(kind: MessageType) -> None:
    forced = Message(type=kind, to=1, from_=2, term=9, context=b"CampaignTransfer")
    append = Message(type=MessageType.MsgApp, to=1, from_=2, term=9)
    gate = Quiet(10, catching_up=True, deaf_until_ns=20)
    assert gate.drops(append, 19)
    assert not gate.drops(append, 20)
    for now in (0, 20, 10**18):
        assert gate.holds(now)
        assert gate.drops(forced, now)
    gate.catching_up = False
    assert not gate.drops(forced, 15)
    assert not gate.drops(append, 15)
    assert not gate.holds(15)


@pytest.mark.parametrize("count", [1, 2])
def test_one_of_one_or_two_waits_for_the_word_that_it_is_complete(sim: Sim, count: int) -> None:
    sim.form(count)
    leader = sim.wait_leader()
    sim.run(300)
    replicate_all(sim, leader)
    leader.kill()
    moved = back_up(leader)
    restore(leader, moved)
    adopted(leader)
    leader.start()
    sim.run(ELECTION_MS)
    assert not lead(sim, *sim.nodes.values()), "by itself it cannot know"
    leader.kill()
    assert adopted(leader, complete=True).incarnation == 2
    leader.start()
    after = sim.wait_leader(LONG_MS)
    sim.wait(after.replicate(b"more"))
    assert after.texts == [*ENTRIES, b"more"]


# --- what the others remember ---------------------------------------------------------------------------


def test_a_higher_incarnation_is_written_down_and_told_to_all(sim: Sim) -> None:
    leader, follower, other, backup = three(sim)
    sim.heal()
    sim.cut(follower.id, other.id)
    assert sim.run(2000, lambda: other.texts == ENTRIES)
    follower.kill()
    restore(follower, backup)
    adopted(follower)
    follower.start()
    sim.run(500)
    assert load_peers(directory(leader)).incarnations == {follower.id: 2}
    # It never met the newcomer; the leader's table tells, once the leader has heard it.
    assert sim.run(LONG_MS, lambda: load_peers(directory(other)).incarnations == {follower.id: 2})
    assert {row.node_id: row.incarnation for row in other.members.members}[follower.id] == 2
    other.restart()
    assert other.live.roster.incarnation_of(follower.id) == 2


def old_hello(node: SimNode, incarnation: int) -> bytes:
    identity = identity_of(node)
    return pack(
        RecordKind.PEER_HELLO,
        node.id,
        PeerHello(identity.member_id, "127.0.0.1", 7000 + node.id, 1, incarnation, OLD_START),
    )


def test_messages_of_an_older_copy_do_not_count(sim: Sim) -> None:
    """Whatever the network process lets in: and one hello cannot bar a member for ever."""
    _leader, follower, other, _ = three(sim)
    sim.heal()
    sim.run(300)
    judge = other
    judge.inbox.append(old_hello(follower, 2))
    judge.turn()
    assert load_peers(directory(judge)).incarnations == {follower.id: 2}
    judge.inbox.append(old_hello(follower, 1))
    judge.turn()
    rejected = judge.live.rejected
    assert not ask_vote(judge, follower, judge.live.raft.term + 1)
    assert judge.live.rejected == rejected + 1
    judge.inbox.append(old_hello(follower, 2 + 1024 + 1))
    judge.turn()
    assert load_peers(directory(judge)).incarnations == {follower.id: 2}
    judge.inbox.append(old_hello(follower, 2 + 1024))
    judge.turn()
    assert load_peers(directory(judge)).incarnations == {follower.id: 1026}


def test_an_original_that_wakes_up_hears_why_and_takes_no_part(sim: Sim) -> None:
    leader, follower, other, backup = three(sim)
    sim.heal()
    assert sim.run(2000, lambda: other.texts == ENTRIES)
    follower.kill()
    restore(follower, backup)
    adopted(follower)
    follower.start()
    assert sim.run(LONG_MS, lambda: not follower.live.catching_up)
    assert sim.run(LONG_MS, lambda: load_peers(directory(other)).incarnations == {follower.id: 2})
    follower.kill()
    # The original comes back, on its own directory.
    here = directory(follower)
    here.rename(here.with_name("copy"))
    here.with_name(f"original{follower.id}").rename(here)
    follower.start()
    assert sim.run(LONG_MS, lambda: "this one is an older copy" in follower.live.barred)
    assert "as incarnation 2" in follower.live.barred
    leader.kill()
    assert not lead(sim, follower, other), "its vote was taken"
    assert not ask_vote(follower, other, follower.live.raft.term + 1)


# --- a log that comes back shorter ----------------------------------------------------------------------


def test_a_shorter_log_is_refused_by_the_leader(sim: Sim) -> None:
    leader, follower, lagging, backup = three(sim)
    follower.kill()
    set_back(follower, backup)
    follower.start()
    assert sim.run(LONG_MS, lambda: bool(follower.live.barred))
    assert "had acknowledged everything up to" in follower.live.barred
    # Neither its vote nor its answers count.
    ticket = leader.replicate(b"nobody is left")
    sim.wait(ticket)
    assert ticket.outcome != Outcome.OK
    assert not lead(sim, *sim.nodes.values())
    sim.heal()
    after = sim.wait_leader(LONG_MS)
    assert after is leader
    assert sim.run(LONG_MS, lambda: lagging.texts[: len(ENTRIES)] == ENTRIES)
    assert follower.live.barred
    follower.restart()
    assert sim.run(LONG_MS, lambda: bool(follower.live.barred)), "its next start is judged in the same way"


def test_messages_of_a_refused_start_do_not_count(sim: Sim) -> None:
    """Before the network process has heard of it, and when it lets that one in again."""
    leader, follower, _, _ = three(sim)
    for _ in range(2):
        leader.inbox.append(old_hello(follower, 1))
        leader.turn()
        told = [record for record in leader.reader.read(1 << 30) if unpack_prefix(record)[0] == REFUSE]
        assert [unpack_prefix(record)[1] for record in told] == [follower.id]
        assert unpack_refused_start(told[0]).start_id == OLD_START.start_id
        rejected = leader.live.rejected
        feed(leader, follower, heartbeat(follower, leader))
        assert leader.live.rejected == rejected + 1


def test_a_leader_of_before_refuses_what_it_knew_to_be_committed(sim: Sim) -> None:
    leader, follower, lagging, backup = three(sim)
    sim.heal()
    assert sim.run(2000, lambda: lagging.texts == ENTRIES)
    sim.run(300)
    ticket = leader.command(CommandKind.TRANSFER_LEADER, arg1=lagging.id)
    sim.wait(ticket)
    assert sim.wait_leader_of([lagging]) is lagging
    follower.kill()
    set_back(follower, backup)
    follower.start()
    assert sim.run(LONG_MS, lambda: f"refused by node {leader.id}" in follower.live.barred)


def test_honest_restarts_are_let_in(sim: Sim) -> None:
    """In any order, with elections in between, and entries that are cut off."""
    sim.form(3)
    leader = sim.wait_leader()
    for round_ in range(6):
        cut_off = leader
        sim.isolate(cut_off.id)
        for number in range(5):
            cut_off.replicate(b"never %d %d" % (round_, number))
        leader = sim.wait_leader_of(sim.followers(cut_off), LONG_MS)
        sim.wait(leader.replicate(b"%d" % round_))
        sim.heal()
        cut_off.restart()
        sim.run(700)
        for node in list(sim.nodes.values()):
            node.restart()
            sim.run(400)
        leader = sim.wait_leader(LONG_MS)
    assert sim.run(LONG_MS, lambda: all(len(node.texts) == 6 for node in sim.nodes.values()))
    assert not any(node.live.barred for node in sim.nodes.values())
    assert not sim._refused_starts
