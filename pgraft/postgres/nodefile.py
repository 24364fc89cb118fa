"""run/node.json: the configuration that a start leaves for the node's processes."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pgraft import ownfile
from pgraft.postgres.settings import NodeConfig

NODE_FILE_BYTES_MAX = 4 * 1024 * 1024
"""With 64 members in it, it has a few thousand bytes."""


class ConfigUnreadable(Exception):
    """There is no such file, it is not ours, or it says nothing to us; the text names it."""


def read_config(data_dir: Path) -> NodeConfig:
    """The configuration of the last start of the node with this Raft directory. Raises ConfigUnreadable."""
    path = data_dir / "run" / "node.json"
    try:
        return msgspec.json.decode(ownfile.read_own(path, NODE_FILE_BYTES_MAX), type=NodeConfig)
    except OSError as error:
        raise ConfigUnreadable(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigUnreadable(f"{path} is not a node's configuration: {error}") from error
