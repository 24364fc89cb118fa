"""Which machine gets an entry, exactly once; and that membership fits the protocol."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import pgraft.statemachine
from pgraft.node.membership import Membership, from_snapshot
from pgraft.raft.errors import InvariantViolation
from pgraft.raft.types import ConfChange, ConfState, Snapshot
from pgraft.statemachine import commands as c
from pgraft.statemachine.codec import encode_command
from pgraft.statemachine.errors import UnknownEntryKind
from pgraft.statemachine.registry import KEY_VALUE, MACHINE_KINDS, StateMachines, is_known_kind
from pgraft.statemachine.restore import StateMachinesRestorer
from pgraft.statemachine.results import PutDone

PUT = b"\x02" + encode_command(c.Put(b"k", b"v", 10**6))


def test_the_kind_byte_says_whose_an_entry_is() -> None:
    machines = StateMachines()
    assert machines.apply(3, b"") is None
    assert machines.apply(4, b"\x01text") is None
    assert machines.apply(6, PUT) == PutDone(1)
    assert machines.applied_index == machines.key_value.applied_index == 6
    assert machines.machine(KEY_VALUE) is machines.key_value


def test_an_entry_is_applied_once() -> None:
    machines = StateMachines()
    machines.apply(5, PUT)
    for data in (PUT, b"", b"\x01text"):
        for index in (5, 4):
            with pytest.raises(InvariantViolation, match=f"entry {index} applied behind entry 5"):
                machines.apply(index, data)
    assert machines.key_value.revision == 1


def test_a_kind_of_a_newer_release_is_not_passed_over() -> None:
    machines = StateMachines()
    machines.apply(5, PUT)
    with pytest.raises(
        UnknownEntryKind, match=r"index 6 has kind 0x7f, .* a newer release wrote it"
    ) as caught:
        machines.apply(6, b"\x7fdata")
    assert (caught.value.index, caught.value.kind, machines.applied_index) == (6, 0x7F, 5)
    assert [is_known_kind(data) for data in (b"", b"\x01", PUT, b"\x7f")] == [True, True, True, False]


def test_the_key_value_store_is_what_it_is_called() -> None:
    machines = StateMachines(machines={KEY_VALUE: MembershipMachine(0, Membership())})
    with pytest.raises(InvariantViolation, match="the machine key_value is a MembershipMachine"):
        _ = machines.key_value


# --- membership as a machine: how the replica will wire it (README.md) --------------------------


class MembershipMachine:
    """The membership that `pgraft.node.membership` computes, in the shape of a machine."""

    def __init__(self, applied_index: int, membership: Membership) -> None:
        self.applied_index = applied_index
        self.membership = membership

    def apply(self, index: int, data: bytes) -> Membership:
        """`data`: the change, and the configuration that the core made of it."""
        change, conf_state = msgspec.msgpack.decode(data, type=tuple[ConfChange, ConfState])
        self.applied_index = index
        self.membership = self.membership.apply(change, conf_state)
        return self.membership

    def snapshot(self) -> Iterator[bytes]:
        return iter([msgspec.msgpack.encode(self.membership.to_snapshot(self.applied_index, 0))])


class MembershipRestorer:
    """From the pieces of its section."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, piece: bytes) -> None:
        self._data += piece

    def finish(self) -> MembershipMachine:
        snapshot = msgspec.msgpack.decode(self._data, type=Snapshot)
        return MembershipMachine(snapshot.metadata.index, from_snapshot(snapshot))


class MembershipKind:
    """For the registry."""

    format_version = 1

    def empty(self) -> MembershipMachine:
        return MembershipMachine(0, Membership())

    def restorer(self, format_version: int) -> MembershipRestorer:
        assert format_version == 1
        return MembershipRestorer()


def test_membership_fits_the_protocol() -> None:
    kinds = {"membership": MembershipKind(), **MACHINE_KINDS}
    machines = StateMachines(kinds)
    machines.apply(1, PUT)
    change = (ConfChange(0, 2, b""), ConfState((1, 2)))
    machines.apply_to("membership", 2, msgspec.msgpack.encode(change))
    with pytest.raises(InvariantViolation, match="entry 2 applied behind entry 2"):
        machines.apply_to("membership", 2, msgspec.msgpack.encode(change))
    restorer = StateMachinesRestorer(kinds)
    for chunk in machines.snapshot():
        restorer.feed(chunk)
    copy = restorer.finish()
    found = copy.machine("membership")
    assert isinstance(found, MembershipMachine)
    assert found.membership.conf_state == ConfState((1, 2))
    assert (copy.applied_index, copy.key_value.applied_index, found.applied_index) == (2, 1, 2)
    assert list(copy.snapshot()) == list(machines.snapshot())


# --- the room itself -----------------------------------------------------------------------------

FOLDER = Path(pgraft.statemachine.__file__).parent
PURE = frozenset(
    [
        "__future__",
        "bisect",
        "collections.abc",
        "enum",
        "heapq",
        "itertools",
        "msgspec",
        "struct",
        "typing",
        "zlib",
        "pgraft.raft.errors",
    ]
)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_module_imports_nothing_that_has_a_clock_or_does_io(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "pgraft.statemachine":
                names = [f"pgraft.statemachine.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            assert name in PURE or name.startswith("pgraft.statemachine."), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_module_holds_records_or_logic(path: Path) -> None:
    tree = ast.parse(path.read_text())
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    records = [node for node in classes if any("Struct" in ast.unparse(base) for base in node.bases)]
    if records:
        functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert functions == [], f"{path.name} holds records and functions"


def test_sets_and_dicts_of_this_process_do_not_show() -> None:
    """The same commands under two hash seeds give the same snapshot, byte for byte."""
    code = (
        "import zlib\n"
        "from tests.support.naive_kv import Commands\n"
        "from pgraft.statemachine.codec import encode_command\n"
        "from pgraft.statemachine.key_value import KeyValueMachine\n"
        "source, machine = Commands(3), KeyValueMachine()\n"
        "for n in range(1, 4000): machine.apply(n, encode_command(source.next()))\n"
        "print(zlib.crc32(b''.join(machine.snapshot())))\n"
    )
    root = FOLDER.parent.parent
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1
