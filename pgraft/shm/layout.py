"""The segment, laid out in one place. `header.py` writes sql/pgraft_shm.h from this module.

Everything is made of aligned little-endian 8-byte words, and a few fixed byte strings (a length
word, then room for the bytes). One writer per word: the page or block a word stands in says who.

    0         HEADER    written by the supervisor at start (pids: whenever they change)
    4096      WORKER    written by the raft worker only
    8192      NETWORK   written by the network process only
    12288     STATUS    two checksummed copies, written by the worker; WORKER.status_selector picks
    ...       MEMBERS   two checksummed copies, written by the worker; WORKER.members_selector picks
    ...       COMMAND   lock, head (written by backends) and the ring's bytes
    ...       SLOTS     one result slot after another: a backend half and a worker half
    ...       INBOUND   ring bytes, network process -> worker
    ...       OUTBOUND  ring bytes, worker -> network process

Offsets of everything behind STATUS stand in HEADER, since sizes come from the settings.
All times in the segment are CLOCK_BOOTTIME nanoseconds.
"""

from __future__ import annotations

import enum

MAGIC = 0x4754_4641_5247_5041  # "APGRAFTG" as bytes on disk: never a plausible zeroed or foreign page
LAYOUT_VERSION = 3
PAGE_BYTES = 4096
WORD_BYTES = 8

MEMBERS_MAX = 64
"""Members (voters and learners) that one cluster can have."""
REMOVED_MAX = 1024
"""Removed node ids that the segment can show; storage keeps the same bound."""
ADDRESS_BYTES_MAX = 256
"""Bytes of a member's address, without its port."""
SLOT_PAYLOAD_BYTES = 16 * 1024
"""Bytes that one answer to a backend can carry; longer texts come in pieces of this size."""
PIECE_BYTES_MAX = 4 * 1024
"""Bytes of user data in one record of the command ring; longer data is sent in pieces."""
COMMAND_RING_BYTES_MIN = 16 * 1024
PEER_RING_BYTES = 4 * 1024 * 1024
"""Bytes of the inbound and of the outbound ring; a record is at most half of it."""
RECORD_HEADER_BYTES = 16
"""Before each ring record: u64 stamp (its own position), u32 payload length, u32 crc32 of the payload."""
RECORD_ALIGN = 16
LOCK_BYTES = 64
"""Room for a robust, process-shared pthread mutex."""


def _number(names: str) -> dict[str, int]:
    return {name: i for i, name in enumerate(names.split())}


# --- pages of words: name -> word number within the page --------------------------------------

HEADER_WORDS = _number(
    "magic layout_version segment_bytes epoch retired created_boot_ns created_wall_ns node_id"
    " supervisor_pid supervisor_start worker_pid worker_start network_pid network_start"
    " postmaster_pid postmaster_start fence election_timeout_ms heartbeat_interval_ms"
    " status_offset status_copy_bytes members_offset members_copy_bytes"
    " command_offset command_ring_bytes slots_offset slot_count slot_bytes"
    " inbound_offset inbound_bytes outbound_offset outbound_bytes max_entry_bytes yields"
    " pgdata_device pgdata_inode data_dir_device data_dir_inode"
)
"""The last four say which directories the segment was made for, whatever they are called by now."""
HEADER_TEXTS = {  # name -> (offset of the length word within the page, bytes of room behind it)
    "version": (1024, 56),
    "node_name": (1088, 120),
    "cluster_id": (1216, 120),
    "data_dir": (1344, 1272),
    "pgdata": (2624, 1272),
}
WORKER_PAGE = PAGE_BYTES
WORKER_WORDS = _number(
    "lease_end_ns state epoch beat_ns status_selector status_generation members_selector"
    " members_generation debug sleeping command_tail inbound_tail outbound_head"
    " started_boot_ns elections commands_taken commands_answered messages_dropped messages_refused"
    " ring_damage fsyncs fsync_ns_total fsync_ns_max joined ready yielded messages_malformed"
    " messages_absurd catching_up"
)
WORKER_TEXTS = {"error": (1024, 1016)}
NETWORK_PAGE = 2 * PAGE_BYTES
NETWORK_WORDS = _number(
    "epoch beat_ns sleeping outbound_tail inbound_head started_boot_ns frames_in frames_out bytes_in"
    " bytes_out refused malformed dropped connects connections members_generation_seen ring_damage"
    " pending crowded_out timed_out"
)
"""What came in and was not taken: `refused` handshakes got a reason, `malformed` connections broke the
protocol, `crowded_out` ones made room for newer ones, `timed_out` ones said no hello in time, or did not end
a frame. `pending` ones have not finished their handshake. In WORKER: `messages_malformed` could not be read,
`messages_absurd` could not be true (node/door.py), `messages_refused` came from or went to somebody else."""
STATUS_OFFSET = 3 * PAGE_BYTES

# --- checksummed blocks: the first word is crc32 of bytes [8, used_bytes) ----------------------

STATUS_WORDS = _number(
    "crc used_bytes generation role leader_id term vote commit_index last_index applied first_index"
    " log_bytes published_boot_ns voters_reachable voters_needed leader_port row_count"
)
STATUS_ROWS_OFFSET = 256
STATUS_ROW_WORDS = _number(
    "node_id role term commit_index last_index heard_boot_ns match_index next_index is_replicating"
    " is_learner is_self"
)
STATUS_ROW_BYTES = 128
STATUS_COPY_BYTES = 3 * PAGE_BYTES

MEMBERS_WORDS = _number("crc used_bytes generation member_count removed_count")
MEMBERS_ROWS_OFFSET = 64
MEMBER_ROW_WORDS = _number("node_id port is_learner is_leaving member_id address_bytes incarnation")
MEMBER_ADDRESS_OFFSET = 64  # within a row: the address, address_bytes long
MEMBER_ROW_BYTES = MEMBER_ADDRESS_OFFSET + ADDRESS_BYTES_MAX
MEMBERS_REMOVED_OFFSET = MEMBERS_ROWS_OFFSET + MEMBERS_MAX * MEMBER_ROW_BYTES  # removed ids, a word each
MEMBERS_COPY_BYTES = 8 * PAGE_BYTES

# --- the command region: a page of words, then the ring's bytes -------------------------------

COMMAND_LOCK_OFFSET = 0  # LOCK_BYTES, touched by C only, initialised by the supervisor
COMMAND_WORDS = {"head": 8}  # written under the lock by backends; the tail is WORKER.command_tail
COMMAND_RING_OFFSET = PAGE_BYTES  # of the ring's first byte within the command region

COMMAND_RECORD_WORDS = _number(
    "kind slot request_no flags total_bytes piece_offset timeout_ms arg1 arg2 backend_pid spare1 spare2"
)
COMMAND_RECORD_BYTES = len(COMMAND_RECORD_WORDS) * WORD_BYTES  # then the piece of data

# --- result slots ----------------------------------------------------------------------------------

SLOT_BACKEND_WORDS = _number("owner request_no submitted_pos state want_space")
SLOT_WORKER_WORDS = {
    name: 8 + number
    for name, number in _number("crc answer_no answered_no outcome value1 value2 payload_bytes spare").items()
}
"""crc is crc32 of the words answer_no..payload_bytes and of the payload. answer_no grows by one with
every answer written to the slot; answered_no is the request_no that it answers, and only a final
outcome ends the wait (PROGRESS does not)."""
SLOT_PAYLOAD_OFFSET = 128
SLOT_BYTES = SLOT_PAYLOAD_OFFSET + SLOT_PAYLOAD_BYTES


class WorkerState(enum.IntEnum):
    """WORKER.state, as pgraft_get_worker_state() names them."""

    STOPPED = 0
    INITIALIZING = 1
    RUNNING = 2
    ERROR = 3


class Yields(enum.IntEnum):
    """HEADER.yields: whether this node had better not lead, by the supervisor, who knows of PostgreSQL.

    The worker then hands leadership over, and WORKER.yielded says that it does not lead or that nobody can
    take over.
    """

    NO = 0
    STOPPING = 1  # the node is being stopped: whoever can take over should
    NOT_SERVING = 2  # PostgreSQL is down and does not come back: one whose PostgreSQL serves should lead


class Role(enum.IntEnum):
    """Roles in the status block; UNKNOWN for a member that has never been heard."""

    UNKNOWN = 0
    FOLLOWER = 1
    PRE_CANDIDATE = 2
    CANDIDATE = 3
    LEADER = 4
    LEARNER = 5


class Sleep(enum.IntEnum):
    """WORKER.sleeping: whether the worker must be woken, and by whom.

    FOR_PEERS is the short time after an append in which the answers of peers are due: what sessions
    send meanwhile makes one batch with what follows, so they need not ring.
    """

    AWAKE = 0
    FOR_ANYONE = 1
    FOR_PEERS = 2


class CommandKind(enum.IntEnum):
    """What a backend asks of the worker."""

    REPLICATE = 1
    ADD_NODE = 2  # arg1 node id, arg2 port, data address
    REMOVE_NODE = 3  # arg1 node id
    GET_ENTRY = 4  # arg1 index, arg2 byte offset of the piece wanted
    INIT = 5
    SET_DEBUG = 6  # arg1 0 or 1
    TRANSFER_LEADER = 7  # arg1 node id, 0: the best one
    READ_BARRIER = 8
    TAKE_SNAPSHOT = 9
    UPDATE_NODE = 10  # arg1 node id, arg2 port, data address


class CommandFlag(enum.IntFlag):
    """COMMAND_RECORD flags."""

    FORWARD = 1  # pgraft.forward_proposals was on in the session


class SlotState(enum.IntEnum):
    """SLOT state, written by the backend: submitted_pos holds only in SUBMITTED."""

    FREE = 0
    PREPARING = 1
    SUBMITTED = 2


class Outcome(enum.IntEnum):
    """How a command ended. Error outcomes carry payload "message\\0detail\\0hint" in UTF-8."""

    NONE = 0
    OK = 1  # value1: index of the entry where one was written
    PROGRESS = 2  # payload: text for a NOTICE; the wait goes on
    NULL_ENTRY = 3
    DATA = 4  # value1: total bytes of the text; payload: the piece
    ERROR_STATE = 5  # definite, SQLSTATE 55000: not the leader, no leader, not running, timed out undone
    ERROR_ARGUMENT = 6  # definite, SQLSTATE 22023: the arguments are wrong
    ERROR_UNKNOWN = 7  # SQLSTATE 40003: may or may not have been committed
    ERROR_INTERNAL = 8  # definite, SQLSTATE XX000


def align(value: int, to: int) -> int:
    """Round `value` up to a multiple of `to`."""
    return (value + to - 1) // to * to
