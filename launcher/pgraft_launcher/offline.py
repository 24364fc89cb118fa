"""Work on the Raft state of a node that does not run: nobody starts it meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgraft_launcher import prepare, rundir, stop
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.node import Node


@contextmanager
def held(found: Node) -> Iterator[Path]:
    """The node's Raft directory, under the supervisor's lock and its own.

    LaunchError where the node runs, where there is no directory, and for a StorageError in the block.
    """
    from pgraft.storage import StorageError, lock_data_dir  # heavy, and most commands do without

    found.refuse_other()
    if stop.is_running(found):
        raise LaunchError(f"the node in {found.config_dir} is running", hint="pgraft-launch stop it first")
    data_dir = Path(found.data_dir)
    if not data_dir.is_dir():
        raise LaunchError(f"there is no Raft state in {data_dir}", hint="pgraft.data_dir says where it is")
    prepare.make_run_dir(found.data_dir)
    lock = rundir.take_lock(found.data_dir)
    if lock is None:
        raise LaunchError("another command is starting or stopping the node", hint="try again")
    try:
        with lock_data_dir(data_dir):
            yield data_dir
    except StorageError as error:
        raise LaunchError(str(error), hint=error.hint) from error
    finally:
        os.close(lock)
