"""What goes into one step of a replica, and what comes out of it. turn.py has who does what with them."""

from __future__ import annotations

import msgspec

from pgraft.log import Level
from pgraft.node.commands import Answer, Command
from pgraft.node.envelope import Envelope
from pgraft.raft.types import Entry, HardState, Snapshot
from pgraft.shm.blocks import MemberRow, Status
from pgraft.shm.layout import Yields
from pgraft.storage import Identity

NETWORK_PROCESS = 0
"""Among the peers of `Inputs.unsent`: a record for the network process itself found no room."""
LOG_LINES_MAX = 1000
"""Of one step; a peer may say up to that many things in one that are worth a line."""


class Inputs(msgspec.Struct):
    """What has come since the last step. An executor may use one object again and again.

    `records` as they stood on the network process's ring, and read before the clock was; `commands` of
    sessions; `unsent` the peers whose envelopes of the last step found no room (NETWORK_PROCESS among
    them); `yields` whether this node had better not lead; `network_epoch` changes when a network process
    starts.
    """

    records: list[bytes] = []
    commands: list[Command] = []
    unsent: list[int] = []
    yields: Yields = Yields.NO
    network_epoch: int = 0


class Sending(msgspec.Struct, frozen=True, gc=False):
    """One envelope for one peer. `hurry`: its receiver is to be woken for it."""

    to: int
    hurry: bool
    envelope: Envelope


class LogLine(msgspec.Struct, frozen=True, gc=False):
    """One message for the server log."""

    level: Level
    message: str
    detail: str = ""
    hint: str = ""


class LogLines:
    """Collects the log lines of a step."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []

    def __call__(self, level: Level, message: str, *, detail: str = "", hint: str = "") -> None:
        """Have one message written at the end of this step."""
        if len(self.lines) < LOG_LINES_MAX:
            self.lines.append(LogLine(level, message, detail, hint))

    def take(self) -> list[LogLine]:
        """All that was collected since the last call."""
        lines, self.lines = self.lines, []
        return lines


class MembersBlock(msgspec.Struct, frozen=True):
    """What the members block shows: rows in id order, and removed ids."""

    rows: tuple[MemberRow, ...]
    removed: tuple[int, ...]


class Shown(msgspec.Struct, frozen=True):
    """Words of the segment that tell how the replica is. `removed` and `barred` say why, or are empty."""

    elections: int = 0
    refused: int = 0
    malformed: int = 0
    absurd: int = 0
    debug: bool = False
    has_yielded: bool = False
    is_member: bool = False
    removed: str = ""
    barred: str = ""


class Outputs(msgspec.Struct):
    """What one step wants done, in the order of the fields (see turn.py). One object per replica, filled
    anew by each step."""

    identity: Identity | None = None
    """Durable before anything else: who this node is, as changed."""
    peers: dict[int, int] | None = None
    """Durable before anything else: member ids by node id."""
    lease_end_ns: int | None = None
    """At once: 0 ends the lease, before the message leaves that lets another lead; or a later end."""
    network: list[bytes] = []
    """Records for the network process itself, before the first envelope."""
    early: list[Sending] = []
    """Leave before the sync, since they promise nothing: a leader's appends and heartbeats."""
    snapshot: Snapshot | None = None
    """To install, with `hard_state`."""
    hard_state: HardState | None = None
    """Not None: to be written and synced, with `entries`, in one batch."""
    entries: list[Entry] = []
    members: MembersBlock | None = None
    status: Status | None = None
    """The status block; the executor fills in `log_bytes`, which the store knows."""
    rows_changed: bool = False
    """Whether the rows of `status` are new, and not only its head."""
    lease_begin_ns: int | None = None
    """The first lease of a term, after the status block that shows this node as its leader."""
    shown: Shown = Shown()
    late: list[Sending] = []
    """Leave after the sync: whatever promises something. And after the status block: whoever hears of a
    commit elsewhere, and then reads under this node's lease, finds it there."""
    compact: Snapshot | None = None
    """Takes the place of the entries up to it."""
    answers: list[tuple[Command, Answer]] = []
    """Last: a session that was answered finds a status block that covers its answer."""
    log: list[LogLine] = []
    more: bool = False
    """Whether a further step is due at once."""
    deadline_ns: int = 0
    """When a step is due though nothing comes."""
    gathers_until_ns: int = 0
    """Until when further commands of sessions had better wait for the batch that is on its way."""

    def clear(self) -> None:
        """Before a step."""
        self.identity = self.peers = self.lease_end_ns = self.snapshot = self.hard_state = None
        self.compact = self.members = self.status = self.lease_begin_ns = None
        self.rows_changed = False
        # New lists where the old ones hold something: an executor may still have those.
        if self.network:
            self.network = []
        if self.early:
            self.early = []
        if self.entries:
            self.entries = []
        if self.late:
            self.late = []
        if self.answers:
            self.answers = []
        if self.log:
            self.log = []

    @property
    def persists(self) -> bool:
        """Whether something goes into the entry log."""
        return self.hard_state is not None
