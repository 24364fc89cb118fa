"""Whole nodes whose committed entries differ, as two leaders of one term leave them: who finds it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pgraft.node import checksums
from pgraft.node.boot import open_durable_state, open_identity, refuse_diverged
from pgraft.node.divergence import Diverged
from pgraft.node.envelope import Envelope, NodeStatus, decode, encode
from pgraft.raft.types import Entry, HardState, Message, MessageType
from pgraft.storage import Store, lock_data_dir, open_store, write_mark
from pgraft.transport.records import HURRY, PeerHello, RecordKind, pack, prefix
from tests.support.node_sim import ELECTION_MS, Sim, SimNode

M = MessageType
TERM = 3
FIRST = 2
"""Behind the snapshot that all nodes of the initial cluster start from."""


def entries(texts: list[bytes], terms: list[int] | None = None) -> list[Entry]:
    terms = terms or [TERM] * len(texts)
    return [
        Entry(term, index, 0, b"\x01" + text)
        for index, (text, term) in enumerate(zip(texts, terms, strict=True), FIRST)
    ]


def with_log(node: SimNode, log: list[Entry], committed: int) -> None:
    """What a node has on disk before it starts, as its worker would have left it."""
    with lock_data_dir(Path(node.config.data_dir)):
        identity = open_identity(node.config)
        store = open_durable_state(node.config, identity, lambda: None)
        store.append(HardState(log[-1].term, 0, committed), log)
        store.close()


def three(sim: Sim, here: list[Entry], there: list[Entry], committed: int, **other: object) -> list[SimNode]:
    """Nodes 1 and 2 have the log `there`, node 3 has the log `here`."""
    nodes = [sim.add(node_id, (1, 2, 3), start=False, **other) for node_id in (1, 2, 3)]
    for node in nodes:
        with_log(node, here if node.id == 3 else there, committed)
    sim.diverged = True
    for node in nodes:
        node.start()
    return nodes


def leaves(sim: Sim, ms: float = 30_000) -> str:
    """Until a node finds that its log has diverged: what it says."""
    with pytest.raises(Diverged) as found:
        sim.run(ms)
    assert "pgraft_remove_node" in found.value.hint
    return str(found.value)


def texts(count: int, **odd: bytes) -> list[bytes]:
    return [odd.get(f"at{index}", b"text %d" % index) for index in range(FIRST, FIRST + count)]


def test_other_data_at_the_same_index_and_term(sim: Sim) -> None:
    nodes = three(sim, entries(texts(8, at5=b"mine")), entries(texts(8)), committed=9)
    text = leaves(sim)
    assert text.startswith("entry 5, which is committed, is another one here than on node "), text
    assert {node.id for node in nodes if node.live.audit.suspects} <= {3} or "node 3" in text


@pytest.mark.parametrize("count", [5, 2500])
def test_it_is_found_in_the_whole_kept_log_on_the_first_leader(sim: Sim, count: int) -> None:
    three(sim, entries(texts(count, at5=b"mine")), entries(texts(count)), committed=count + 1)
    assert leaves(sim).startswith("entry 5, "), "in the newest block, and in one that is read again"


def test_other_terms_at_the_same_index(sim: Sim) -> None:
    """Node 3 took over and had its entries committed; the others did the same in another term."""
    here = entries(texts(6), [2, 2, 2, 3, 3, 3])
    there = entries(texts(6), [2, 2, 2, 4, 4, 4])
    three(sim, here, there, committed=7)
    assert leaves(sim).startswith("entry 5, ")


def test_a_mismatch_of_terms_is_seen_in_the_first_append(sim: Sim) -> None:
    """By nodes that know no checksums as well."""
    here = entries(texts(6), [2, 2, 2, 3, 3, 3])
    there = entries(texts(6), [2, 2, 2, 4, 4, 4])
    three(sim, here, there, committed=7)
    sim.drop = without_digests(sim)
    # Where nobody looks, the two probe each other without end: that costs the test a minute for ten seconds.
    text = leaves(sim, 4 * ELECTION_MS)
    assert text.startswith("one of the entries 2 to 7, which is committed,"), text
    assert "its term is 3 here, 4 there" in text or "its term is 4 here, 3 there" in text


def without_digests(sim: Sim) -> Callable[[int, int, bytes], bool]:
    """Peers of a version that knows no checksums: what they send has nothing of the kind."""

    def drop(sender: int, to: int, body: bytes) -> bool:
        envelope = decode(body)
        if envelope.digest is None:
            return False
        fields = msgspec.structs.astuple(envelope)
        at = Envelope.__struct_fields__.index("digest")
        older = msgspec.msgpack.encode(fields[:at])
        sim.nodes[to].inbox.append(prefix(RecordKind.MESSAGE, sender) + HURRY + older)
        return True

    return drop


def test_a_newer_entry_that_differs_is_found_with_the_next_heartbeat(sim: Sim) -> None:
    """They run already, and are equal; then one log is made another one."""
    sim.form(3)
    leader = sim.wait_leader()
    sim.wait(*(leader.replicate(b"%d" % number) for number in range(5)))
    sim.run(300)
    follower = sim.followers(leader)[0]
    last = follower.status.commit_index
    follower.kill()
    store_of(follower, lambda store: replaced(store, last))
    sim.diverged = True
    follower.start()
    assert leaves(sim, 5 * ELECTION_MS).startswith(f"entry {last}, ")


def store_of(node: SimNode, change: Callable[[Store], None]) -> None:
    with lock_data_dir(Path(node.config.data_dir)):
        store = open_store(Path(node.config.data_dir), segment_bytes=node.config.log_segment_bytes)
        change(store)
        store.close()


def replaced(store: Store, index: int) -> None:
    """Another entry of the same index and term, which no running node would write."""
    state = store.hard_state
    (old,) = store.entries(index, index + 1, 1 << 30)
    store._hard_state = HardState(state.term, state.vote, index - 1)
    store.append(HardState(state.term, state.vote, index), [Entry(old.term, index, 0, b"\x01other")])


def test_what_is_left_of_the_others_goes_on(sim: Sim) -> None:
    """The follower that differs is out; its leader and the third node commit."""
    nodes = three(sim, entries(texts(8, at5=b"mine")), entries(texts(8)), committed=9)
    with pytest.raises(Diverged):
        sim.run(30_000)
    odd = next(node for node in nodes if node.live.audit.suspects or node.id == 3)
    if not odd.live.desk.leads:
        odd.kill()
        sim.run(3 * ELECTION_MS)
        others = [node for node in nodes if node is not odd]
        leader = sim.wait_leader_of(others)
        ticket = leader.replicate(b"on")
        sim.wait(ticket)


def test_a_node_that_has_left_stays_out_after_a_restart(sim: Sim) -> None:
    node = sim.add(1, (1,))
    refuse_diverged(node.config)
    write_mark(Path(node.config.data_dir), "entry 5 differs")
    with pytest.raises(Diverged, match="entry 5 differs") as found:
        refuse_diverged(node.config)
    assert str(Path(node.config.data_dir) / "diverged") in found.value.hint


# --- who may say so ----------------------------------------------------------------------------------------


def say(to: SimNode, sender: int, message: Message, **more: object) -> None:
    message.from_, message.to = sender, to.id
    envelope = Envelope(sender, message.term, NodeStatus(sender, 1, message.term), [message], **more)  # type: ignore[arg-type]
    to.inbox.append(prefix(RecordKind.MESSAGE, sender) + HURRY + encode(envelope))


def forged(term: int, node: SimNode) -> Message:
    """An append behind a committed entry of a term that it does not have."""
    last = node.status.commit_index
    return Message(type=M.MsgApp, term=term, index=last, log_term=term, commit=last)


@pytest.mark.parametrize(
    "who", ["a stranger in a higher term", "another member in the same term", "an old leader"]
)
def test_one_word_of_anybody_else_ends_nobodys_part(sim: Sim, who: str) -> None:
    sim.form(3)
    sim.hostile = True
    leader = sim.wait_leader()
    sim.wait(leader.replicate(b"x"))
    sim.run(300)
    node, other = sim.followers(leader)
    term = leader.status.term
    match who:
        case "a stranger in a higher term":
            node.inbox.append(pack(RecordKind.PEER_HELLO, 9, PeerHello(99, "10.9.9.9", 1, 1)))
            say(node, 9, forged(term + 1, node))
        case "another member in the same term":
            say(node, other.id, forged(term, node))
        case _:
            say(node, other.id, forged(term - 1, node))
    sim.run(5 * ELECTION_MS)
    leader = sim.wait_leader()
    ticket = leader.replicate(b"goes on")
    sim.wait(ticket)


# --- no false alarm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_no_history_of_true_nodes_looks_like_a_divergence(
    sim: Sim, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snapshots, compaction, restarts, tails that are cut off, newcomers, and peers of the version before:
    the simulation itself fails when a node suspects anything (node_sim.py)."""
    monkeypatch.setattr(checksums, "BLOCK", 16)
    chance = random.Random(seed)
    small = {"log_keep_entries": 40, "log_keep_bytes": 0, "snapshot_threshold": 10}
    sim.form(3, **small)
    if seed % 4 == 0:
        sim.drop = without_digests(sim)
    sim.wait_leader()
    for _ in range(25):
        running = [node for node in sim.nodes.values() if node.node is not None]
        match chance.randrange(8):
            case 0:
                chance.choice(running).restart()
            case 1:
                sim.isolate(chance.choice(running).id)
            case 2:
                sim.heal()
            case 3 if len(sim.nodes) < 5:
                sim.heal()
                new = sim.join(len(sim.nodes) + 1, **small)
                leader = sim.wait_leader(30_000)
                leader.command(2, b"127.0.0.1", arg1=new.id, arg2=7000 + new.id)
            case _:
                for node in running:
                    for number in range(chance.randrange(30)):
                        node.replicate(b"%d" % number * chance.randrange(1, 40))
        sim.run(chance.randrange(20, 1500))
    sim.heal()
    leader = sim.wait_leader(60_000)
    sim.run(5_000)
    ticket = leader.replicate(b"end")
    sim.run(20_000, lambda: ticket.final is not None)
