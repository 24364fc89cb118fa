"""The replicated state machine of the simulation: a checksum of everything, and each client's last command.

A client's command is `c<client>:<number>`; commands that a client sent twice count once, by the number.
"""

from __future__ import annotations

import zlib

import msgspec

from pgraft.raft import Entry

State = tuple[int, ...]
"""The checksum, then for each client the number of its last command and the index that it first had."""


class Machine:
    """State after what has been applied, and, for snapshots, after each entry since the last one."""

    def __init__(self, clients: int) -> None:
        self.state: State = (0,) + (0, 0) * clients
        self._past: dict[int, State] = {}

    def apply(self, entry: Entry) -> bytes | None:
        """Apply an entry of user data; the command in it, if a client's."""
        data = entry.data
        state = self.state
        checksum = zlib.crc32(data, state[0])
        if not data.startswith(b"c"):
            self.state = (checksum, *state[1:])
            return None
        client, number = _parse(data)
        place = 1 + 2 * client
        if number > state[place]:
            state = (*state[:place], number, entry.index, *state[place + 2 :])
        self.state = (checksum, *state[1:])
        return data

    def first_index(self, name: bytes) -> int:
        """Where a command first stood, 0 when a later one of its client is there already."""
        client, number = _parse(name)
        place = 1 + 2 * client
        return self.state[place + 1] if self.state[place] == number else 0

    def remember(self, index: int) -> None:
        """The present state is that after the entry at `index`."""
        self._past[index] = self.state

    def encode(self) -> bytes:
        """The present state for a snapshot."""
        return msgspec.msgpack.encode(self.state)

    def encode_at(self, index: int) -> bytes:
        """The state after the entry at `index`, which was remembered."""
        return msgspec.msgpack.encode(self._past[index])

    def load(self, data: bytes) -> None:
        """Take over a snapshot's state."""
        self._past = {}
        if data:
            self.state = msgspec.msgpack.decode(data, type=State)

    def forget_before(self, index: int) -> None:
        """A snapshot at `index` was made."""
        self._past = {at: state for at, state in self._past.items() if at >= index}


def _parse(name: bytes) -> tuple[int, int]:
    client, number = name[1:].split(b":")[:2]
    return int(client), int(number)
