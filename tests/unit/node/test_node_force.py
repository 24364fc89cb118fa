"""A new cluster by force: what it keeps, whom it bars, and what is left when it is interrupted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pgraft.node import force
from pgraft.node.force import force_new_cluster, survey
from pgraft.shm.layout import Outcome
from pgraft.storage import Peers, StorageError, Store, load_identity, load_peers, lock_data_dir
from tests.support.node_sim import ELECTION_MS, Sim, SimNode, make_config
from tests.unit.node.test_node_membership_changes import add, learners, remove, voters

SEGMENT_BYTES = 4 << 20
STEPS = ["update_identity", "save_peers", "Store.append"]
"""The writes, in their order."""


def five_with_a_tail(sim: Sim) -> SimNode:
    """Five nodes, of which all die; one follower of theirs, whose commit index on disk is behind."""
    sim.form(5)
    leader = sim.wait_leader()
    sim.run(300)
    sim.wait(*(leader.replicate(b"%d" % number) for number in range(9)))
    sim.wait(leader.replicate(b"the last"))
    follower = sim.followers(leader)[0]
    assert sim.run(1000, lambda: follower.texts[-1:] == [b"the last"])
    for node in sim.nodes.values():
        node.kill()
    return follower


def forced(sim: Sim, node: SimNode) -> SimNode:
    """The node, made a cluster of its own and started under the new name."""
    data_dir = Path(node.config.data_dir)
    with lock_data_dir(data_dir):
        cluster_id = force_new_cluster(data_dir, SEGMENT_BYTES)
    node.config = make_config(data_dir, node.id, node.config.initial_cluster, cluster_id=cluster_id)
    node.start()
    return node


def interrupt(survivor: SimNode, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin to force it, and end before `step`. What is left is harmless, and can be forced."""
    data_dir = Path(survivor.config.data_dir)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt(step)

    monkeypatch.setattr(Store if step == "Store.append" else force, step.split(".")[-1], interrupted)
    with lock_data_dir(data_dir), pytest.raises(KeyboardInterrupt):
        force_new_cluster(data_dir, SEGMENT_BYTES)
    monkeypatch.undo()
    with lock_data_dir(data_dir):
        seen = survey(data_dir, SEGMENT_BYTES)
    # Never a sole voter under the old name: it would lead beside what is left of the others.
    assert not seen.is_alone
    assert seen.is_member
    assert (seen.cluster_id == "sim") == (step == "update_identity")


def test_the_survivor_leads_alone_with_all_that_was_in_its_log(sim: Sim) -> None:
    survivor = five_with_a_tail(sim)
    data_dir = Path(survivor.config.data_dir)
    with lock_data_dir(data_dir):
        seen = survey(data_dir, SEGMENT_BYTES)
    assert seen.commit_index < seen.last_index, "the last entry is not known to be committed"
    assert [node.node_id for node in seen.membership.nodes] == [1, 2, 3, 4, 5]
    old = load_identity(data_dir)
    forced(sim, survivor)
    assert sim.wait_leader_of([survivor]) is survivor
    assert voters(survivor) == (survivor.id,)
    assert survivor.texts == [*(b"%d" % number for number in range(9)), b"the last"]
    assert survivor.status.term > seen.term
    sim.wait(survivor.replicate(b"alone"))
    new = load_identity(data_dir)
    assert old is not None
    assert new is not None
    assert new.cluster_id.startswith("sim-forced-")
    assert new.member_id != old.member_id
    survivor.restart()
    assert sim.wait_leader_of([survivor]) is survivor
    assert survivor.texts[-1] == b"alone"


def test_new_nodes_join_under_new_ids_and_get_everything(sim: Sim) -> None:
    survivor = forced(sim, five_with_a_tail(sim))
    sim.wait_leader_of([survivor])
    for node_id in (6, 7):
        sim.join(node_id, cluster_id=survivor.config.cluster_id)
        ticket = add(survivor, node_id)
        sim.wait(ticket)
        assert ticket.outcome == Outcome.OK, ticket.text
    sim.wait(survivor.replicate(b"three again"))
    sim.run(300)
    for node_id in (6, 7):
        assert voters(sim.nodes[node_id]) == tuple(sorted((survivor.id, 6, 7)))
        assert sim.nodes[node_id].texts == survivor.texts
    survivor.kill()
    successor = sim.wait_leader_of([sim.nodes[6], sim.nodes[7]])
    sim.wait(successor.replicate(b"without the survivor"))


def test_old_ids_stay_barred_for_every_disk(sim: Sim) -> None:
    survivor = five_with_a_tail(sim)
    data_dir = Path(survivor.config.data_dir)
    # One that was never met: nothing is known of its disk.
    known = load_peers(data_dir).member_ids
    absent = next(iter(known))
    met = {node: member for node, member in known.items() if node != absent}
    force.save_peers(data_dir, Peers(met))
    forced(sim, survivor)
    sim.wait_leader_of([survivor])
    others = {1, 2, 3, 4, 5} - {survivor.id}
    assert set(survivor.members.removed) == others
    pinned = load_peers(data_dir).member_ids
    assert set(pinned) == others
    assert pinned[absent] not in known.values()


def test_a_copy_lives_where_it_was_forced(sim: Sim) -> None:
    """One that waited to catch up has nobody left to catch up with."""
    survivor = five_with_a_tail(sim)
    data_dir = Path(survivor.config.data_dir)
    found = load_identity(data_dir)
    assert found is not None
    assert found.place is not None
    elsewhere = msgspec.structs.replace(found.place, inode=1)
    copied = msgspec.structs.replace(found, place=elsewhere, incarnation=3, catching_up=True)
    force.update_identity(data_dir, copied)
    forced(sim, survivor)
    assert sim.wait_leader_of([survivor]) is survivor
    new = load_identity(data_dir)
    assert new is not None
    assert (new.place, new.incarnation, new.catching_up) == (found.place, 1, False)


def test_a_learner_can_be_forced_too(sim: Sim) -> None:
    sim.form(3)
    leader = sim.wait_leader()
    learner = sim.join(4)
    sim.run(300)
    ticket = add(leader, 4)
    assert sim.run(ELECTION_MS, lambda: learners(learner) == (4,))
    for node in sim.nodes.values():
        node.kill()
    assert ticket.outcome is None
    forced(sim, learner)
    assert sim.wait_leader_of([learner]) is learner
    assert (voters(learner), learners(learner)) == ((4,), ())


def with_a_removal_in_the_tail(sim: Sim, count: int, *, of_itself: bool) -> SimNode:
    """The leader of a cluster whose others are gone, with a removal at the end of its log that is not
    committed: of the last other one, or its own, which its successor has sent it."""
    sim.form(count)
    leader = sim.wait_leader()
    sim.run(300)
    survivor = sim.followers(leader)[0] if of_itself else leader
    stopped = survivor.live.core.raft.raft_log.committed
    # The entries arrive, and no word of their commit.
    sim.drop = lambda sender, to, envelope: sender == survivor.id
    remove(leader, survivor.id if of_itself else sim.followers(leader)[0].id)
    assert sim.run(ELECTION_MS // 2, lambda: survivor.live.core.store.last_index() > stopped)
    assert survivor.live.core.raft.raft_log.committed == stopped
    for node in sim.nodes.values():
        node.kill()
    return survivor


@pytest.mark.parametrize("of_itself", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_a_removal_that_is_not_committed_is_no_reason_to_refuse(
    sim: Sim, count: int, of_itself: bool
) -> None:
    survivor = with_a_removal_in_the_tail(sim, count, of_itself=of_itself)
    data_dir = Path(survivor.config.data_dir)
    everybody = tuple(range(1, count + 1))
    with lock_data_dir(data_dir):
        seen = survey(data_dir, SEGMENT_BYTES)
    assert seen.is_member
    assert not seen.is_alone, "a start would wait for the others"
    assert tuple(node.node_id for node in seen.members) == everybody
    place = next(node for node in seen.members if node.node_id == survivor.id)
    others = set(everybody) - {survivor.id}
    forced(sim, survivor)
    assert sim.wait_leader_of([survivor]) is survivor
    assert (voters(survivor), learners(survivor)) == ((survivor.id,), ())
    membership = survivor.live.core.membership_log.current
    assert [(node.address, node.port) for node in membership.nodes] == [(place.address, place.port)]
    assert set(membership.removed) == set(load_peers(data_dir).member_ids) == others
    sim.wait(survivor.replicate(b"alone"))
    survivor.kill()
    with lock_data_dir(data_dir):
        assert survey(data_dir, SEGMENT_BYTES).is_alone


@pytest.mark.parametrize("of_itself", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_with_a_removal_in_the_tail_it_can_be_interrupted_anywhere(
    sim: Sim, step: str, of_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    survivor = with_a_removal_in_the_tail(sim, 2, of_itself=of_itself)
    interrupt(survivor, step, monkeypatch)
    forced(sim, survivor)
    assert sim.wait_leader_of([survivor]) is survivor
    assert (voters(survivor), learners(survivor)) == ((survivor.id,), ())


def test_two_that_are_forced_become_two_clusters(sim: Sim) -> None:
    first = five_with_a_tail(sim)
    names = set()
    for node in sim.nodes.values():
        if node is not first:
            data_dir = Path(node.config.data_dir)
            with lock_data_dir(data_dir):
                names.add(force_new_cluster(data_dir, SEGMENT_BYTES))
    assert len(names) == 4


@pytest.mark.parametrize("step", STEPS)
def test_wherever_it_is_interrupted_no_node_of_the_old_cluster_follows_it(
    sim: Sim, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    survivor = five_with_a_tail(sim)
    interrupt(survivor, step, monkeypatch)
    forced(sim, survivor)
    assert sim.wait_leader_of([survivor]) is survivor
    assert voters(survivor) == (survivor.id,)


def test_a_directory_without_a_node_is_no_survivor(tmp_path: Path) -> None:
    data_dir = tmp_path / "none"
    with lock_data_dir(data_dir), pytest.raises(StorageError, match="no Raft state of a node"):
        survey(data_dir, SEGMENT_BYTES)
