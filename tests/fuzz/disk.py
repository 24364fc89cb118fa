"""What stands on disk at the start: log files, snapshots, identity and peers."""

from __future__ import annotations

import atexit
import os
import shutil
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path

import msgspec

from pgraft.node.core import replay_membership
from pgraft.node.membership import ChangeContext, Membership, MembershipError, Node, encode_context
from pgraft.raft.codec import encode_conf_change
from pgraft.raft.types import ConfChange, ConfState, Entry, HardState
from pgraft.storage import Identity, StorageError, format, identity, open_store, snapshots
from pgraft.storage.format import (
    CONF_CHANGE,
    CRC_FROM,
    LAST_OF_BATCH,
    RECORD_HEADER_BYTES,
    SegmentHeader,
    pack_segment_header,
)
from pgraft.storage.log_file import file_name
from tests.fuzz.target import U64_MAX, Taker, Target, noise

DIRECTORY_VARIABLE = "PGRAFT_FUZZ_DIRECTORY"
SEGMENT_BYTES = 64 * 1024
MARK, SALT = 0x11223344, 0x55667788
_RECORD = struct.Struct("<IIIIIIQQQQQQQ")


@cache
def directory() -> Path:
    """A data directory in memory, made once; every input empties it first. Given by a guided run, which
    removes it: libFuzzer ends its process without a farewell."""
    given = os.environ.get(DIRECTORY_VARIABLE)
    if given:
        return Path(given)
    made = Path(tempfile.mkdtemp(prefix="pgraft-fuzz-", dir="/dev/shm"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def emptied() -> Path:
    """The directory of the log, empty."""
    raft = directory() / "raft"
    shutil.rmtree(raft, ignore_errors=True)
    raft.mkdir(mode=0o700)
    return raft


# --- log files --------------------------------------------------------------------------------------------


class Writer:
    """Where a well-formed log would go on: what an input may depart from."""

    def __init__(self) -> None:
        self.sequence = 1
        self.next_index = 1
        self.batch = 1
        self.term = 1
        self.commit = 0


def entries(taker: Taker, at: Writer) -> bytes:
    """A payload, and how many entries a good one has."""
    if taker.chance(12):
        return taker.bytes(taker.byte())
    found = []
    for number in range(taker.byte() % 4):
        entry = Entry(at.term, at.next_index + number, 0, b"\x01" + taker.bytes(taker.byte() % 5))
        if taker.chance(4):
            node_id = taker.near(2, 3)
            context = taker.choice((b"", encode_context(ChangeContext("h", 1)), taker.bytes(6)))
            change = ConfChange(taker.near(0, 1, 2, 3), node_id, context)
            entry = encode_conf_change(change)
            entry.term, entry.index = at.term, at.next_index + number
            if taker.chance(8):
                entry.data = taker.bytes(taker.byte() % 9)
        if taker.chance(24):
            entry.index, entry.term, entry.type = taker.number(), taker.number(), taker.byte()
        found.append(entry)
    return msgspec.msgpack.encode(found)


def record(taker: Taker, at: Writer) -> bytes:
    """One record with its checksum right, and perhaps something else wrong."""
    payload = entries(taker, at)
    try:
        count = len(format.decode_entries(payload))
    except msgspec.DecodeError:
        count = 1
    whole = not taker.chance(6)
    flags = LAST_OF_BATCH if whole else 0
    if taker.chance(2):
        flags |= CONF_CHANGE
    first = at.next_index if count else 0
    fields = [len(payload), count, flags, 0, at.batch, max(0, at.batch - 1), first, at.term if count else 0]
    fields += [at.term, 0, min(at.commit, at.next_index - 1)]
    if taker.chance(8):
        name = taker.below(len(fields))
        fields[name] = word(taker, fields[name]) & (0xFFFFFFFF if name < 4 else U64_MAX)
    body = _RECORD.pack(MARK, 0, *fields)[CRC_FROM:]
    crc = zlib.crc32(payload, zlib.crc32(body, SALT))
    at.next_index += count
    at.batch += whole
    at.commit = taker.choice((at.commit, at.next_index - 1, at.next_index - 1))
    at.term += taker.chance(5)
    made = bytearray(struct.pack("<II", MARK, crc) + body + payload)
    if taker.chance(12):
        made[taker.below(len(made))] ^= 1 << taker.below(8)
    return bytes(made)


def word(taker: Taker, value: int) -> int:
    """A number that departs from `value`, and fits 64 bits."""
    return taker.near(value) & U64_MAX


def write_file(raft: Path, taker: Taker, at: Writer) -> None:
    """One log file."""
    header = SegmentHeader(
        mark=MARK,
        salt=SALT,
        sequence=at.sequence,
        first_index=word(taker, at.next_index) if taker.chance(8) else at.next_index,
        first_batch=word(taker, at.batch) if taker.chance(8) else at.batch,
        hard_state=HardState(at.term, 0, word(taker, at.commit) if taker.chance(8) else at.commit),
        reset_index=word(taker, at.next_index - 1) if taker.chance(6) else 0,
    )
    data = bytearray(pack_segment_header(header))
    if taker.chance(16):
        data = bytearray(taker.bytes(taker.byte()))
    for _ in range(taker.byte() % 8):
        data += record(taker, at)
    data += bytes(taker.choice((0, 0, 7, RECORD_HEADER_BYTES, 4096)))
    if taker.chance(10):
        del data[taker.below(len(data) + 1) :]
    (raft / file_name(header)).write_bytes(data)
    at.sequence = word(taker, at.sequence + 1) if taker.chance(10) else at.sequence + 1


def write_snapshot(raft: Path, taker: Taker, at: Writer) -> None:
    """A snapshot before the log; the log goes on behind it."""
    index = taker.byte() % 5 + 1
    nodes = (Node(1, "a", 1), Node(2, "b", 2))
    made = Membership(nodes, (), ConfState(voters=(1, 2))).to_snapshot(index, at.term)
    if taker.chance(3):
        made = msgspec.structs.replace(made, data=taker.bytes(9))
    snapshots.write_snapshot(raft, made, word(taker, 1))
    at.next_index, at.commit = index + 1, index


def logs(data: bytes) -> None:
    """The start takes the log or refuses it by name; what it takes reads back, and can be gone on with."""
    taker = Taker(data)
    raft = emptied()
    at = Writer()
    if taker.chance(2):
        write_snapshot(raft, taker, at)
    for _ in range(taker.byte() % 3 + 1):
        write_file(raft, taker, at)
    try:
        store = open_store(directory(), segment_bytes=SEGMENT_BYTES)
    except StorageError:
        return
    try:
        first, last = store.first_index(), store.last_index()
        state = store.hard_state
        if not (first - 1 <= last and state.commit <= last):
            raise AssertionError(f"entries {first} to {last}, commit {state.commit}")
        read = []
        try:
            replay_membership(store)
            if last >= first:
                read = store.entries(first, last + 1, 2**62)
        except (StorageError, MembershipError):
            return
        if [entry.index for entry in read] != list(range(first, last + 1)):
            raise AssertionError(f"entries {first} to {last} read back as {[e.index for e in read]}")
        if last >= U64_MAX or state.term >= U64_MAX:
            return
        term = max([state.term, *(entry.term for entry in read)])
        store.append(HardState(term, 0, state.commit), [Entry(term, last + 1, 0, b"\x01more")])
    finally:
        store.close()
    again = open_store(directory(), segment_bytes=SEGMENT_BYTES)
    try:
        found = again.entries(first, last + 2, 2**62)
        if found[:-1] != read or found[-1].data != b"\x01more":
            raise AssertionError("what was appended behind a recovered log does not read back")
    finally:
        again.close()


# --- snapshots and texts ----------------------------------------------------------------------------------


def snapshot_files(data: bytes) -> None:
    """A snapshot is taken as what it says or refused by name."""
    taker = Taker(data)
    raft = emptied()
    payload = taker.bytes(taker.below(600))
    if taker.chance(2):
        nodes = tuple(Node(taker.near(1, 2, 3), taker.text(), taker.near(1)) for _ in range(taker.byte() % 4))
        state = ConfState(tuple(taker.near(1, 2) for _ in range(taker.byte() % 4)))
        inner = msgspec.msgpack.encode([nodes, [taker.number()]])
        payload = msgspec.msgpack.encode([[state, taker.near(3), taker.near(1)], inner])
    head = snapshots._HEAD.pack(snapshots.MAGIC, 1, len(payload), word(taker, 1), 3, 1)
    whole = bytearray(head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload)
    if taker.chance(4):
        whole[taker.below(len(whole))] ^= 1 << taker.below(8)
    if taker.chance(4):
        del whole[taker.below(len(whole)) :]
    (raft / f"snap-{3:016x}-{1:016x}.pgs").write_bytes(whole)
    try:
        stored = snapshots.load_newest(raft)
    except StorageError:
        return
    if stored is None or (stored.snapshot.metadata.index, stored.snapshot.metadata.term) != (3, 1):
        raise AssertionError(f"{stored} instead of the snapshot at 3")


def texts(data: bytes) -> None:
    """Identity and peers are taken as what they say, within their ranges, or refused by name."""
    taker = Taker(data)
    kind = taker.choice(("identity", "peers"))
    fields: dict[str, object] = {"member_ids": {"2": 5, str(taker.near(3)): taker.near(7)}}
    fields["incarnations"] = {"2": taker.near(1)}
    if kind == "identity":
        fields = {"cluster_id": "c", "node_id": 1, "member_id": 5, "initial_members": "", "formed": True}
        place = {"machine": "m", "boot": "b", "device": 2049, "inode": 12, "generation": 3}
        fields |= {"election_timeout_ms": 1000, "format_version": 1}
        fields |= {"place": place | {"file_system": {"fsid": "ab"}}, "incarnation": 2, "catching_up": True}
    if taker.chance(2):
        name = taker.choice(tuple(fields))
        fields[name] = taker.choice((taker.number(), -5, taker.text(), None, {}, 2**70))
    body = taker.rest() if taker.chance(3) else msgspec.json.encode(fields) + b"\n"
    line = f"pgraft {kind} 1 crc32={zlib.crc32(body):08x}\n".encode()
    if taker.chance(4):
        line = taker.bytes(40)
    (directory() / kind).write_bytes(line + body)
    try:
        if kind == "peers":
            for node_id, member_id in identity.load_peers(directory()).member_ids.items():
                if not (0 < node_id <= U64_MAX and 0 < member_id <= U64_MAX):
                    raise AssertionError(f"peer {node_id} with member id {member_id}")
            return
        found = identity.load_identity(directory())
    except StorageError:
        return
    finally:
        os.unlink(directory() / kind)
    if not isinstance(found, Identity) or not 0 < found.member_id <= U64_MAX:
        raise AssertionError(f"identity {found}")


TARGETS = (
    Target("logs", logs, noise(8, 200), 1024),
    Target("snapshots", snapshot_files, noise(6, 100), 1024),
    Target("texts", texts, noise(6, 60), 1024),
)
