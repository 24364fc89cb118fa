"""What clients did and were told, what readers saw, and what the log held afterwards.

    Command   one pgraft_replicate_entry: when it was sent, when it was answered, and how
    Reading   one look at a node through SQL
    Entry     one index of one node's log, read back
    Life      a node that died whole and came back

Times are CLOCK_BOOTTIME nanoseconds of the machine that the clients run on. A history is kept as lines
of JSON (`save`, `load`), so that a failing run can be checked again.
"""

from __future__ import annotations

import enum
import hashlib
from pathlib import Path

import msgspec
import psycopg

DEFINITE = {"55000", "22023", "22021", "54000"}
"""SQLSTATEs by which pgraft says that nothing was written. Not 57014 and 57P01, with or without the CONTEXT
line: PostgreSQL may be interrupted after the outcome has come and before it is sent on."""


class Result(enum.Enum):
    """What a client was told. ERROR: nothing was written. UNKNOWN: nobody said."""

    OK = "ok"
    ERROR = "error"
    UNKNOWN = "unknown"


class Command(msgspec.Struct, tag="command"):
    """One entry that a client wanted in the log."""

    client: int
    key: str
    digest: str
    node_id: int
    sent_ns: int
    told_ns: int
    result: Result
    said: str = ""


class Reading(msgspec.Struct, tag="reading"):
    """One row of READ. Zero stands for "not known", as the functions have it."""

    node_id: int
    asked_ns: int
    told_ns: int
    term: int
    is_leader: bool
    leader: int
    term_after: int
    commit_index: int


READ = (
    "SELECT pgraft_get_term(), pgraft_is_leader(), pgraft_get_leader(), pgraft_get_term(), s.commit_index"
    " FROM pgraft_log_get_stats() s"
)
"""The target list is evaluated in order: a leader between two equal terms is the leader of that term."""


class Entry(msgspec.Struct, tag="entry"):
    """One index of a node's log; key and digest are empty where it carries no user data.

    `final` is false for one that was read during the run.
    """

    node_id: int
    index: int
    key: str
    digest: str
    final: bool = True


class Life(msgspec.Struct, tag="life"):
    """A node got a new segment at some moment in between: the whole of it had died."""

    node_id: int
    last_ns: int
    first_ns: int


class History:
    """All of a run. Appending is safe from any thread."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.readings: list[Reading] = []
        self.entries: list[Entry] = []
        self.lives: list[Life] = []

    def save(self, path: Path) -> None:
        """One JSON object a line."""
        encode = msgspec.json.Encoder().encode
        with path.open("wb") as file:
            for item in (*self.commands, *self.readings, *self.entries, *self.lives):
                file.write(encode(item) + b"\n")

    @classmethod
    def load(cls, path: Path) -> History:
        """What `save` wrote."""
        history = cls()
        decoder = msgspec.json.Decoder(Command | Reading | Entry | Life)
        with path.open("rb") as file:
            for line in file:
                match decoder.decode(line):
                    case Command() as command:
                        history.commands.append(command)
                    case Reading() as reading:
                        history.readings.append(reading)
                    case Entry() as entry:
                        history.entries.append(entry)
                    case Life() as life:
                        history.lives.append(life)
        return history


def make_text(key: str, size: int) -> str:
    """A text of about `size` characters that begins with its key; some of them are not ASCII."""
    filler = hashlib.blake2b(key.encode()).hexdigest() + "äß→"
    return f"{key}|" + (filler * (size // len(filler) + 1))[:size]


def key_of(text: str | None) -> str:
    """The key that `make_text` put in front; the whole text where there is none."""
    return "" if text is None else text.split("|", 1)[0]


def digest_of(text: str | None) -> str:
    """Tells a text from every other; empty for none."""
    return "" if text is None else hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def result_of(error: psycopg.Error) -> Result:
    """What this error says of the command that met it."""
    return Result.ERROR if error.sqlstate in DEFINITE else Result.UNKNOWN


def describe(error: psycopg.Error) -> str:
    """SQLSTATE and the first line."""
    lines = str(error).splitlines()
    return f"{error.sqlstate or 'connection'}: {lines[0] if lines else type(error).__name__}"
