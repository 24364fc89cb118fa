"""Commands and results as bytes."""

from __future__ import annotations

from typing import Final

import msgspec

from pgraft.statemachine.commands import Command
from pgraft.statemachine.limits import COMMAND_BYTES_MAX
from pgraft.statemachine.results import Result

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be: the second for a text that is not UTF-8,
the third for too many lists in lists."""

_encode: Final = msgspec.msgpack.Encoder().encode
_command_decoder: Final[msgspec.msgpack.Decoder[Command]] = msgspec.msgpack.Decoder(Command)
_result_decoder: Final[msgspec.msgpack.Decoder[Result]] = msgspec.msgpack.Decoder(Result)


def encode_command(command: Command) -> bytes:
    """Bytes for behind the kind byte. Whoever proposes it has asked `validation.validate` first."""
    return _encode(command)


def decode_command(data: bytes) -> Command | None:
    """The command, or None when these bytes are none: what None means is the same on every node, so the
    reason that msgspec gives, which may differ from one version of it to another, is left out."""
    if len(data) > COMMAND_BYTES_MAX:
        return None
    try:
        return _command_decoder.decode(data)
    except UNREADABLE:
        return None


def encode_result(result: Result) -> bytes:
    """Bytes for the node of the session that asked."""
    return _encode(result)


def decode_result(data: bytes) -> Result:
    """The result. Raises ValueError for bytes that are none."""
    try:
        return _result_decoder.decode(data)
    except UNREADABLE as error:
        raise ValueError(f"the result of a key-value command cannot be read: {error}") from error
