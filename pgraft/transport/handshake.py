"""The handshake, sans-IO: what two nodes tell each other first, and who is refused.

    connecting side                      accepting side
    HELLO    who I am, whom I expect ->
                                      <- WELCOME  who I am        (or REFUSED: code, text, hint)
    (REFUSED when the welcome is from someone else ->)
    MESSAGE ...                       ->

Payloads are msgpack maps, so that a later version can add fields. Nothing here is secret and
nothing proves anything: without TLS the handshake protects against mistakes, not against attackers.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from pgraft.hosts import is_host
from pgraft.ranges import (
    INCARNATION_JUMP_MAX,
    INCARNATION_MAX,
    INDEX_MAX,
    MEMBER_ID_MAX,
    NODE_ID_MAX,
    PORT_MAX,
    TERM_MAX,
)
from pgraft.transport.framing import (
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    RemoteViolation,
    ViolationKind,
)
from pgraft.transport.limits import LOG_TEXT_CHARS_MAX
from pgraft.transport.records import NetIdentity, Refusal, RefusalCode, WorkerStart

U64_MAX = 2**64 - 1


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The connecting side's word: who it is, whom it expects, how it was started."""

    protocol_version: int
    min_version: int
    cluster_id: str
    node_id: int
    member_id: int
    instance_id: int
    expected_receiver: int
    initial_state: str
    initial_members: str
    formed: bool
    address: str
    port: int
    incarnation: int = 1
    start: WorkerStart = WorkerStart()


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The accepting side's word. protocol_version: the one that both speak from here on."""

    protocol_version: int
    cluster_id: str
    node_id: int
    member_id: int
    instance_id: int
    address: str
    port: int
    incarnation: int = 1
    start: WorkerStart = WorkerStart()


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Why the other side is not let in; node_id is the refuser's, 0 while it does not know itself."""

    code: int
    text: str
    hint: str = ""
    node_id: int = 0


class Local(msgspec.Struct, frozen=True, kw_only=True):
    """This node, as it presents itself: its identity, its address, and this start's instance id."""

    identity: NetIdentity
    instance_id: int
    address: str
    port: int

    def hello(self, expected_receiver: int) -> Hello:
        """The first word to the node that should be `expected_receiver`."""
        identity = self.identity
        return Hello(
            protocol_version=PROTOCOL_VERSION,
            min_version=PROTOCOL_VERSION_MIN,
            cluster_id=identity.cluster_id,
            node_id=identity.node_id,
            member_id=identity.member_id,
            instance_id=self.instance_id,
            expected_receiver=expected_receiver,
            initial_state=identity.initial_state,
            initial_members=identity.initial_members,
            formed=identity.formed,
            address=self.address,
            port=self.port,
            incarnation=identity.incarnation,
            start=identity.start,
        )

    def welcome(self, version: int) -> Welcome:
        """The answer to a hello that passed."""
        return Welcome(
            protocol_version=version,
            cluster_id=self.identity.cluster_id,
            node_id=self.identity.node_id,
            member_id=self.identity.member_id,
            instance_id=self.instance_id,
            address=self.address,
            port=self.port,
            incarnation=self.identity.incarnation,
            start=self.identity.start,
        )


class Remembered(msgspec.Struct, frozen=True):
    """What this node knows of a peer's id: its member id (0: not known), whether it was removed, its newest
    incarnation, and the start of its worker that is refused (0: none), with the reason."""

    member_id: int = 0
    removed: bool = False
    incarnation: int = 1
    refused_start: int = 0
    refusal: Refusal | None = None


NOT_READY = Refusal(RefusalCode.NOT_READY, "the raft worker of this node is not up yet")

_Word = TypeVar("_Word", Hello, Welcome, Refused)
_encode = msgspec.msgpack.Encoder().encode
_hello = msgspec.msgpack.Decoder(Hello)
_welcome = msgspec.msgpack.Decoder(Welcome)
_refused = msgspec.msgpack.Decoder(Refused)


def encode(word: Hello | Welcome | Refused) -> bytes:
    """The payload of its frame."""
    return _encode(word)


def decode_hello(payload: memoryview) -> Hello:
    """Raises RemoteViolation unless every field is there and in range."""
    hello = _decode(_hello, payload)
    _check_ids(hello.node_id, hello.member_id, hello.instance_id)
    _check_state(hello.incarnation, hello.start)
    _check_range("expected_receiver", hello.expected_receiver, 1, NODE_ID_MAX)
    _check_range("port", hello.port, 1, PORT_MAX)
    _check_range("min_version", hello.min_version, 1, hello.protocol_version)
    _check_host(hello.address)
    return hello


def decode_welcome(payload: memoryview) -> Welcome:
    """Raises RemoteViolation unless every field is there and in range."""
    welcome = _decode(_welcome, payload)
    _check_ids(welcome.node_id, welcome.member_id, welcome.instance_id)
    _check_state(welcome.incarnation, welcome.start)
    _check_range("port", welcome.port, 1, PORT_MAX)
    _check_host(welcome.address)
    return welcome


def decode_refused(payload: memoryview) -> Refused:
    """Raises RemoteViolation unless every field is there and in range."""
    refused = _decode(_refused, payload)
    _check_range("node_id", refused.node_id, 0, NODE_ID_MAX)
    _check_range("code", refused.code, 0, U64_MAX)
    return refused


def _decode(decoder: msgspec.msgpack.Decoder[_Word], payload: memoryview) -> _Word:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteViolation(ViolationKind.HANDSHAKE, str(error)) from error


def _check_ids(node_id: int, member_id: int, instance_id: int) -> None:
    _check_range("node_id", node_id, 1, NODE_ID_MAX)
    _check_range("member_id", member_id, 1, MEMBER_ID_MAX)
    _check_range("instance_id", instance_id, 1, U64_MAX)


def _check_state(incarnation: int, start: WorkerStart) -> None:
    _check_range("incarnation", incarnation, 1, INCARNATION_MAX)
    _check_range("start_id", start.start_id, 0, U64_MAX)
    _check_range("term", start.term, 0, TERM_MAX)
    _check_range("last_index", start.last_index, 0, INDEX_MAX)


def _check_host(address: str) -> None:
    if not is_host(address):
        raise RemoteViolation(ViolationKind.HANDSHAKE, f'address "{printable(address)}" is no host')


def _check_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise RemoteViolation(ViolationKind.HANDSHAKE, f"{field} {value} is not within {low} .. {high}")


def agreed_version(hello: Hello) -> int:
    """The newest version that both speak, 0 when there is none. A sender whose own version is further
    than one away is not believed that it speaks ours: releases that far apart were never tried together."""
    if abs(hello.protocol_version - PROTOCOL_VERSION) > 1:
        return 0
    version = min(PROTOCOL_VERSION, hello.protocol_version)
    return version if version >= max(PROTOCOL_VERSION_MIN, hello.min_version) else 0


def judge_hello(hello: Hello, local: Local, remembered: Remembered) -> Refusal | None:
    """Whether the node that says `hello` is let in: None, or why not, addressed to it."""
    return (
        _judge_version(hello)
        or _judge_cluster(hello.cluster_id, hello.node_id, local)
        or _judge_receiver(hello, local)
        or _judge_memory(hello.node_id, hello.member_id, remembered)
        or judge_state(hello.node_id, hello.incarnation, hello.start, remembered)
        or _judge_initial(hello, local)
    )


def judge_welcome(
    welcome: Welcome, local: Local, expected_node_id: int, remembered: Remembered
) -> Refusal | None:
    """Whether the node that answers is the one that was meant: None, or why not, addressed to it."""
    if not PROTOCOL_VERSION_MIN <= welcome.protocol_version <= PROTOCOL_VERSION:
        return _version_refusal(f"it answered in protocol version {welcome.protocol_version}")
    refusal = _judge_cluster(welcome.cluster_id, welcome.node_id, local)
    if refusal is not None:
        return refusal
    if welcome.node_id != expected_node_id:
        return Refusal(
            RefusalCode.WRONG_RECEIVER,
            f"node {local.identity.node_id} connected to node {expected_node_id}, but node"
            f" {welcome.node_id} answered",
            "Correct the address of one of them: each member needs an address and port of its own.",
        )
    return _judge_memory(welcome.node_id, welcome.member_id, remembered) or judge_state(
        welcome.node_id, welcome.incarnation, welcome.start, remembered
    )


def _judge_version(hello: Hello) -> Refusal | None:
    if agreed_version(hello):
        return None
    return _version_refusal(
        f"node {hello.node_id} speaks protocol versions {hello.min_version} to {hello.protocol_version}"
    )


def _version_refusal(what: str) -> Refusal:
    return Refusal(
        RefusalCode.PROTOCOL_VERSION,
        f"{what}, this node {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}",
        "Upgrade the older of the two: pgraft releases work together with the one before and the one after.",
    )


def _judge_cluster(cluster_id: str, node_id: int, local: Local) -> Refusal | None:
    own = local.identity.cluster_id
    if cluster_id == own:
        return None
    return Refusal(
        RefusalCode.OTHER_CLUSTER,
        f'node {node_id} belongs to cluster "{printable(cluster_id)}", this is a node of cluster "{own}"',
        "Set the same pgraft.cluster_id on every node, or correct the addresses if the clusters are two.",
    )


def _judge_receiver(hello: Hello, local: Local) -> Refusal | None:
    own = local.identity.node_id
    if hello.node_id == own:
        return _self_refusal(hello, local)
    if hello.expected_receiver != own:
        return Refusal(
            RefusalCode.WRONG_RECEIVER,
            f"node {hello.node_id} wants node {hello.expected_receiver}, but this is node {own}",
            f"Correct the address of node {hello.expected_receiver}:"
            " each member needs an address and port of its own.",
        )
    return None


def _self_refusal(hello: Hello, local: Local) -> Refusal:
    own = local.identity.node_id
    if hello.instance_id == local.instance_id:
        text = f"the address of node {hello.expected_receiver} leads back to node {own} itself"
        hint = "Each member needs an address and port of its own."
    else:
        text = f"the sender claims to be node {own}, which is the node that it connected to"
        hint = "Two nodes have the same id: give each its own pgraft.name or pgraft.node_id, and its own"
        hint += " pgraft.data_dir."
    return Refusal(RefusalCode.SELF, text, hint)


def _judge_memory(node_id: int, member_id: int, remembered: Remembered) -> Refusal | None:
    if remembered.removed:
        return removed_refusal(node_id)
    if remembered.member_id in (0, member_id):
        return None
    return Refusal(
        RefusalCode.MEMBER_ID_CHANGED,
        f"node {node_id} comes with member id {member_id:016x}, but it is known as"
        f" {remembered.member_id:016x}: its pgraft.data_dir was emptied or replaced, and its votes with it",
        f"Remove it with pgraft_remove_node({node_id}) and add it under a new node id.",
    )


def judge_state(node_id: int, incarnation: int, start: WorkerStart, remembered: Remembered) -> Refusal | None:
    """Whether what this member comes with is the newest state of it: also of one that was let in before."""
    if incarnation < remembered.incarnation:
        return superseded_refusal(node_id, incarnation, remembered.incarnation)
    if incarnation > remembered.incarnation + INCARNATION_JUMP_MAX:
        return Refusal(
            RefusalCode.INCARNATION_JUMP,
            f"node {node_id} comes as incarnation {incarnation}, and is known as incarnation"
            f" {remembered.incarnation}: more than {INCARNATION_JUMP_MAX} at once are not believed",
            f"Its identity file is damaged. Remove it with pgraft_remove_node({node_id}) and add it under a"
            " new node id.",
        )
    if start.start_id and start.start_id == remembered.refused_start:
        return remembered.refusal
    return None


def _judge_initial(hello: Hello, local: Local) -> Refusal | None:
    """Lists count at the first start only: compared while one of the two has not formed its cluster yet."""
    own = local.identity
    if own.formed and hello.formed:
        return None
    if own.initial_state != "new" or hello.initial_state != "new":
        return None
    if own.initial_members == hello.initial_members:
        return None
    return Refusal(
        RefusalCode.INITIAL_CLUSTER_DIFFERS,
        f'node {hello.node_id} was started with pgraft.initial_cluster "{printable(hello.initial_members)}",'
        f' node {own.node_id} with "{own.initial_members}"',
        "Set the same list on every node; a node that joins a running cluster needs"
        " pgraft.initial_cluster_state = existing.",
    )


def removed_refusal(node_id: int) -> Refusal:
    """A node that is no member any more."""
    return Refusal(
        RefusalCode.REMOVED,
        f"node {node_id} was removed from the cluster",
        "Stop it; to use it again, add it with pgraft_add_node() on the leader.",
    )


def superseded_refusal(node_id: int, incarnation: int, newest: int) -> Refusal:
    """An older copy: the directory was adopted elsewhere since."""
    return Refusal(
        RefusalCode.SUPERSEDED,
        f"node {node_id} comes as incarnation {incarnation}, and its pgraft.data_dir was adopted in another"
        f" place since, as incarnation {newest}: this one is an older copy",
        "Stop this copy for good, and remove its pgraft.data_dir. If it is the one that is to go on: stop the"
        f" other one, remove node {node_id} with pgraft_remove_node({node_id}), and add it under a new node"
        " id.",
    )


def duplicate_refusal(node_id: int, first_at: str, second_at: str) -> Refusal:
    """A second live instance of a node: its machine was cloned, or its data directory is used twice."""
    return Refusal(
        RefusalCode.DUPLICATE,
        f"node {node_id} at {second_at} is the second one that runs with this identity; the first at"
        f" {first_at} is alive",
        "One node has one pgraft.data_dir: stop the copy, empty its pgraft.data_dir and add it under a new"
        " node id. Where the first one is to go for good and the second to stay: stop the first.",
    )


def printable(text: str) -> str:
    """A peer's text for a message or the log: one line, no control characters, bounded."""
    cut = text if len(text) <= LOG_TEXT_CHARS_MAX else text[:LOG_TEXT_CHARS_MAX] + "..."
    return "".join(char if char.isprintable() else "?" for char in cut)
