"""`force-new-cluster`: what is left when a majority of a cluster is gone for good."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pgraft.postgres import conffile
from pgraft.postgres.errors import PostgresError
from pgraft.postgres.parse import parse_bool
from pgraft.postgres.reader import Reader
from pgraft.postgres.settings import BY_NAME
from pgraft_launcher import node, prepare, rundir, stop
from pgraft_launcher.certificates import node_uri
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.node import Node
from pgraft_launcher.progress import Progress

if TYPE_CHECKING:
    from pgraft.node.force import Survivor

FLAG = "--accept-data-loss"
_CLUSTER_ID = "pgraft.cluster_id"
_SSL_ENABLED = "pgraft.ssl_enabled"
_MIB = 1024 * 1024


def force(found: Node, settings: Reader, *, accepted: bool, progress: Progress) -> None:
    """Make the stopped node a cluster of its own. LaunchError when it runs, or without `accepted`."""
    from pgraft.node.membership import MembershipError  # heavy, and every other command does without
    from pgraft.storage import StorageError, lock_data_dir

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
            _force(data_dir, _segment_bytes(found), found, settings, accepted, progress)
    except StorageError as error:
        raise LaunchError(str(error), hint=error.hint) from error
    except MembershipError as error:
        raise LaunchError(
            f"{data_dir}: {error}", hint="take another survivor; this one could not start"
        ) from error
    finally:
        os.close(lock)


def _force(
    data_dir: Path, segment_bytes: int, found: Node, settings: Reader, accepted: bool, progress: Progress
) -> None:
    from pgraft.node.force import force_new_cluster, survey

    survivor = survey(data_dir, segment_bytes)
    for line in _describe(survivor):
        progress.say(line)
    if survivor.is_alone:
        # Nothing to force; but one that was interrupted may have left the old name in the configuration.
        _configure(found, settings, survivor.cluster_id, progress)
        for line in _certificates(settings, survivor.cluster_id, survivor.node_id):
            progress.say(line)
        progress.say(f"node {survivor.node_id} is the only member already: start it with pgraft-launch start")
        return
    if not survivor.is_member:
        raise LaunchError(
            f"node {survivor.node_id} is not a member of its cluster any more",
            hint="use a node that is; this one's log ends where it was removed",
        )
    if not accepted:
        raise LaunchError(
            "nothing was changed: entries that only the lost nodes had would be lost",
            hint=f"look at every survivor, take the one whose log has the highest last term and index, and"
            f" run this there, and only there, with {FLAG}",
        )
    cluster_id = force_new_cluster(data_dir, segment_bytes)
    progress.say(f'node {survivor.node_id} is now a cluster of its own, "{cluster_id}"')
    _configure(found, settings, cluster_id, progress)
    for line in _what_next(survivor, cluster_id, settings):
        progress.say(line)


def _segment_bytes(found: Node) -> int:
    config = found.config()
    if config is not None:
        return config.log_segment_bytes
    return int(BY_NAME["pgraft.log_segment_size"].default) * _MIB


def _describe(survivor: Survivor) -> list[str]:
    members = ", ".join(f"{n.node_id} ({n.address}:{n.port})" for n in survivor.members)
    open_ = survivor.last_index - survivor.commit_index
    tail = f"; whether its last {open_} were committed it does not know" if open_ else ""
    lines = [
        f'node {survivor.node_id} of cluster "{survivor.cluster_id}", members {members or "unknown"}',
        f"its last entry is {survivor.last_index} of term {survivor.last_term}{tail}",
    ]
    if survivor.is_member and survivor.membership.get(survivor.node_id) is None:
        lines.append("its own removal is among them: if that was committed, the others went on without it")
    return lines


def _what_next(survivor: Survivor, cluster_id: str, settings: Reader) -> list[str]:
    old = ", ".join(str(n.node_id) for n in survivor.members if n.node_id != survivor.node_id)
    return [
        f"all entries up to {survivor.last_index} count as committed; what only the lost nodes had is lost",
        *_certificates(settings, cluster_id, survivor.node_id),
        "next: pgraft-launch start; then make new nodes with"
        f" --cluster-id {cluster_id} --initial-cluster-state existing, and add them with pgraft_add_node()",
        f"new nodes need new ids ({old} stay barred), and whatever is left of the old ones an empty"
        " pgraft.data_dir",
    ]


def _certificates(settings: Reader, cluster_id: str, node_id: int) -> list[str]:
    """What TLS asks for before the start: a certificate that names the node by its URI names its cluster."""
    if not parse_bool(_read(settings, _SSL_ENABLED)):
        return []
    return [
        "TLS: before the start, a certificate that names the new cluster instead of the old one:"
        f" URI:{node_uri(cluster_id, node_id)}, signed by your authority; or, where init --make-certs made"
        f" them, by the same init command again with --cluster-id {cluster_id} and another --make-certs DIR"
    ]


def _configure(found: Node, settings: Reader, cluster_id: str, progress: Progress) -> None:
    """Put the cluster's new name into postgresql.conf, and see whether it counts there."""
    path = found.config_dir / "postgresql.conf"
    by_hand = f"set {_CLUSTER_ID} = {conffile.quote(cluster_id)} where it is set now, before the start"
    try:
        if _read(settings, _CLUSTER_ID) == cluster_id:
            return
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        conffile.replace_file(path, conffile.with_setting(text, _CLUSTER_ID, cluster_id))
    except OSError as error:
        progress.say(f"{path} cannot be written ({error.strerror}): {by_hand}")
        return
    if _read(settings, _CLUSTER_ID) == cluster_id:
        progress.say(f"{_CLUSTER_ID} set in {path}")
    else:
        progress.say(f"another file or option than {path} rules: {by_hand}")


def _read(settings: Reader, name: str) -> str:
    try:
        return settings.read(name)
    except PostgresError:
        return str(BY_NAME[name].default)  # not set at all


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    common: Callable[[argparse.ArgumentParser], None],
    settle: Callable[[argparse.Namespace], Path],
) -> None:
    """`force-new-cluster` on the command line."""
    parser = commands.add_parser(
        "force-new-cluster",
        help="when a majority is gone for good: make one stopped node a cluster of its own",
        description="When a majority of the cluster's nodes is gone for good, the others accept nothing any"
        " more. This makes ONE of them, stopped, a new cluster of one node, with another cluster id, so that"
        " nothing that is left of the old cluster can mix with it. Entries that were acknowledged by lost"
        " nodes and are not in this node's log are lost. Look at all survivors first (without the flag it"
        " shows and changes nothing) and take the one with the highest last term, then the highest index."
        " PostgreSQL's own data stay as they are.",
    )
    common(parser)
    parser.add_argument(FLAG, dest="accepted", action="store_true", help="do it")

    def run(args: argparse.Namespace) -> int:
        found, settings = node.find(settle(args), args.pg_config, may_be_broken=True)
        force(found, settings, accepted=args.accepted, progress=Progress(silent=args.silent))
        return 0

    parser.set_defaults(run=run)
