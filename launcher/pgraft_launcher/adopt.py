"""`adopt`: the Raft state was moved or restored, and its original is gone for good."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pgraft_launcher import node, offline
from pgraft_launcher.node import Node
from pgraft_launcher.progress import Progress

if TYPE_CHECKING:
    from pgraft.node.adopt import Adoption

FLAG = "--complete"


def adopt(found: Node, *, complete: bool, progress: Progress) -> None:
    """Let the stopped node live where its Raft directory is. LaunchError when it runs."""
    from pgraft.node.adopt import adopt as adopt_directory

    with offline.held(found) as data_dir:
        done = adopt_directory(data_dir, complete=complete)
    for line in _what_it_means(data_dir, done):
        progress.say(line)


def _what_it_means(data_dir: Path, done: Adoption) -> list[str]:
    identity = done.identity
    who = f'node {identity.node_id} of cluster "{identity.cluster_id}"'
    if not done.why:
        if done.changed:
            return [f"{who} counts as complete now, and gives its vote as soon as it is started"]
        lines = [f"there is nothing to adopt: {who} is where it belongs, in {data_dir}"]
        return [*lines, _waiting(identity.node_id)] if identity.catching_up else lines
    return [
        f"{who} lives in {data_dir} now, as incarnation {identity.incarnation} ({done.why})",
        f"every peer that hears of it refuses older incarnations of node {identity.node_id} from then on, for"
        " good: the original must never be started again",
        _waiting(identity.node_id)
        if identity.catching_up
        else f"it counts as complete: what it acknowledged and voted for is in {data_dir}, by your word",
        "next: pgraft-launch start; where its address is another one, pgraft_update_node() on the leader",
    ]


def _waiting(node_id: int) -> str:
    return (
        f"node {node_id} gives no vote until it has caught up with a leader. Where none can be elected"
        " without it (one node of one or two, or when all are moved at once), and it was stopped before its"
        f" directory was moved, so that nothing is missing: pgraft-launch adopt {FLAG}"
    )


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    common: Callable[[argparse.ArgumentParser], None],
    settle: Callable[[argparse.Namespace], Path],
) -> None:
    """`adopt` on the command line."""
    parser = commands.add_parser(
        "adopt",
        help="the Raft state was moved or restored, and its original is gone for good",
        description="A node starts on its Raft state (pgraft.data_dir) only where that was left: on the same"
        " machine, the same file system, as the same files. A copy of it would vote twice. When the directory"
        " was moved to another disk or machine, or came out of a backup, and its original is gone for good,"
        " this makes it the only one: its incarnation number grows, and peers refuse the original from then"
        " on, also where it wakes up later. The node must be stopped. Since the directory may be an older"
        " copy, the node gives no vote until it has caught up with a leader. Does nothing to a directory that"
        " is in its place. PostgreSQL's own data stay as they are.",
    )
    common(parser)
    parser.add_argument(
        FLAG,
        dest="complete",
        action="store_true",
        help="nothing is missing: it was stopped, and then its directory was moved; it may vote at once",
    )

    def run(args: argparse.Namespace) -> int:
        found, _ = node.find(settle(args), args.pg_config)
        adopt(found, complete=args.complete, progress=Progress(silent=args.silent))
        return 0

    parser.set_defaults(run=run)
