"""A new cluster by force: what it keeps, whom it bars, and what is left when it is interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgraft.node import force
from pgraft.node.force import force_new_cluster, survey
from pgraft.shm.layout import Outcome
from pgraft.storage import StorageError, load_identity, load_peers, lock_data_dir
from tests.support.node_sim import ELECTION_MS, Sim, SimNode, make_config
from tests.unit.node.test_node_membership_changes import add, learners, voters

SEGMENT_BYTES = 4 << 20


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
    known = load_peers(data_dir)
    absent = next(iter(known))
    force.save_peers(data_dir, {node: member for node, member in known.items() if node != absent})
    forced(sim, survivor)
    sim.wait_leader_of([survivor])
    others = {1, 2, 3, 4, 5} - {survivor.id}
    assert set(survivor.members.removed) == others
    pinned = load_peers(data_dir)
    assert set(pinned) == others
    assert pinned[absent] not in known.values()


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


def test_two_that_are_forced_become_two_clusters(sim: Sim) -> None:
    first = five_with_a_tail(sim)
    names = set()
    for node in sim.nodes.values():
        if node is not first:
            data_dir = Path(node.config.data_dir)
            with lock_data_dir(data_dir):
                names.add(force_new_cluster(data_dir, SEGMENT_BYTES))
    assert len(names) == 4


@pytest.mark.parametrize("step", ["update_identity", "save_peers", "open_store.append"])
def test_wherever_it_is_interrupted_no_node_of_the_old_cluster_follows_it(
    sim: Sim, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    survivor = five_with_a_tail(sim)
    data_dir = Path(survivor.config.data_dir)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt(step)

    if step == "open_store.append":
        monkeypatch.setattr("pgraft.storage.store.Store.append", interrupted)
    else:
        monkeypatch.setattr(force, step, interrupted)
    with lock_data_dir(data_dir), pytest.raises(KeyboardInterrupt):
        force_new_cluster(data_dir, SEGMENT_BYTES)
    monkeypatch.undo()
    with lock_data_dir(data_dir):
        seen = survey(data_dir, SEGMENT_BYTES)
    # Never a sole voter under the old name: it would lead beside what is left of the others.
    assert not (seen.is_alone and seen.cluster_id == "sim")
    forced(sim, survivor)
    assert sim.wait_leader_of([survivor]) is survivor
    assert voters(survivor) == (survivor.id,)


def test_a_directory_without_a_node_is_no_survivor(tmp_path: Path) -> None:
    data_dir = tmp_path / "none"
    with lock_data_dir(data_dir), pytest.raises(StorageError, match="no Raft state of a node"):
        survey(data_dir, SEGMENT_BYTES)
