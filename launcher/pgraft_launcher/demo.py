"""`demo up`, `demo status`, `demo down`: a whole cluster on this machine, on loopback."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from pgraft.postgres import binaries
from pgraft_launcher import certificates, extension, privileges
from pgraft_launcher.arguments import seconds
from pgraft_launcher.cluster import NODES_MAX, Cluster
from pgraft_launcher.errors import EXIT_NO_DATA_DIR, EXIT_NOT_RUNNING, LaunchError
from pgraft_launcher.progress import Progress

NODES_DEFAULT = 3
TIMEOUT_DEFAULT_S = 60


def _name(args: argparse.Namespace) -> str:
    """Whose demo it is: root's belongs to --user, or to the owner of its directory."""
    if args.user:
        return privileges.user_named(args.user).pw_name
    if not privileges.is_root():
        return pwd.getpwuid(os.geteuid()).pw_name
    owner = privileges.owner_of(Path(args.dir)) if args.dir else None
    return owner.pw_name if owner else privileges.demo_user()


def _directory(args: argparse.Namespace, user: str) -> Path:
    if args.dir:
        return Path(os.path.abspath(args.dir))
    state = os.environ.get("XDG_STATE_HOME")
    if state and os.path.isabs(state) and not privileges.is_root():
        return Path(state, "pgraft-demo")
    return Path(f"/tmp/pgraft-demo-{user}")


def _settle(args: argparse.Namespace) -> tuple[Path, str]:
    """The demo's directory and its user. The directory lies in /tmp perhaps: it must be the user's."""
    user = _name(args)
    directory = _directory(args, user)
    if args.user and not privileges.is_root():
        privileges.settle(directory, args.user)
    if directory.is_symlink() or (
        directory.exists() and directory.stat().st_uid != pwd.getpwnam(user).pw_uid
    ):
        raise LaunchError(f"{directory} does not belong to {user}", hint="name another with --dir")
    return directory, user


def _up(args: argparse.Namespace) -> int:
    progress = Progress(silent=args.silent)
    directory, user = _settle(args)
    if args.tls:
        certificates.require()
    if privileges.is_root():
        privileges.check_reach(pwd.getpwnam(user), directory)
    installation = binaries.find(args.pg_config)
    # While we still are root: PostgreSQL's own folders, and those above the demo, may be root's.
    extension.ensure(installation, progress)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(
            f"cannot create {directory}: {error.strerror}", hint="name another with --dir"
        ) from error
    if privileges.is_root():
        account = pwd.getpwnam(user)
        os.chown(directory, account.pw_uid, account.pw_gid)
        privileges.become(account)
    cluster = Cluster.load(directory) or Cluster.make(directory, args.nodes, installation, has_tls=args.tls)
    if args.tls and not cluster.has_tls:
        raise LaunchError(
            f"the demo in {directory} was made without TLS",
            hint=f"pgraft-launch demo down --dir {shlex.quote(str(directory))}, or name another with --dir",
        )
    if len(cluster.members) != args.nodes and args.nodes_given:
        raise LaunchError(
            f"the demo in {directory} has {len(cluster.members)} nodes",
            hint=f"pgraft-launch demo down --dir {shlex.quote(str(directory))}, or name another with --dir",
        )
    cluster.up(progress, args.timeout)
    here = "" if args.dir is None and not args.user else f" --dir {shlex.quote(str(directory))}"
    program = _program()
    progress.say(f"\nlook at it: {program} demo status{here}\nend it:     {program} demo down{here}")
    return 0


def _program() -> str:
    """This program as one can type it: `make demo` has it in a virtual environment that is in no PATH."""
    name = "pgraft-launch"
    own, known = Path(sys.executable).with_name(name), shutil.which(name)
    if not own.exists() or (known and os.path.samefile(known, own)):
        return name
    return shlex.quote(str(own))


def _existing(args: argparse.Namespace) -> tuple[Cluster, str]:
    directory, user = _settle(args)
    cluster = Cluster.load(directory)
    if cluster is None:
        raise LaunchError(
            f"there is no demo in {directory}", hint="pgraft-launch demo up makes one", code=EXIT_NO_DATA_DIR
        )
    return cluster, user


def status(args: argparse.Namespace) -> int:
    cluster, user = _existing(args)
    if privileges.is_root():
        privileges.become(pwd.getpwnam(user))
    seen = cluster.statuses()
    if args.json:
        print(json.dumps([status.as_dict() for status in seen], indent=2))
    else:
        print("\n".join(line for status in seen for line in status.lines()))
    return 0 if all(status.is_running for status in seen) else EXIT_NOT_RUNNING


def _down(args: argparse.Namespace) -> int:
    cluster, user = _existing(args)
    progress = Progress(silent=args.silent)
    if privileges.is_root():
        # Processes are stopped as their user; root comes back for a folder that lies in one of its own.
        _as_user(user, lambda: cluster.stop(progress, args.timeout))
    else:
        cluster.stop(progress, args.timeout)
    if args.keep:
        progress.say(f"stopped; the data stays in {cluster.directory}")
        return 0
    cluster.remove()
    progress.say(f"{cluster.directory} removed")
    return 0


def _as_user(user: str, action: Callable[[], None]) -> None:
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status):
            raise LaunchError("the demo could not be stopped")
        return
    code = 1
    try:
        privileges.become(pwd.getpwnam(user))
        action()
        code = 0
    except LaunchError as error:
        print(f"pgraft-launch: error: {error.message}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(code)


# --- command line ---------------------------------------------------------------------------------------


class _Nodes(argparse.Action):
    """--nodes N, and that it was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option: str | None = None,
    ) -> None:
        namespace.nodes = values
        namespace.nodes_given = True


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`demo` on the command line."""
    text = "a whole cluster on this machine, on loopback, to try pgraft"
    parser = commands.add_parser("demo", help=text, description=f"{text[0].upper()}{text[1:]}.")
    verbs: argparse._SubParsersAction[argparse.ArgumentParser] = parser.add_subparsers(
        metavar="up|status|down", required=True, parser_class=type(parser)
    )
    _add_up(verbs)
    show = verbs.add_parser("status", help="show every node", description="Show every node of the demo.")
    show.add_argument("--json", action="store_true", help="print a JSON array, an object for each node")
    show.set_defaults(run=status)
    down = verbs.add_parser(
        "down", help="stop every node and remove the data", description="Stop every node and remove the data."
    )
    down.add_argument("--keep", action="store_true", help="keep the data, for another demo up")
    down.set_defaults(run=_down)
    for verb in verbs.choices.values():
        verb.add_argument(
            "--dir",
            help="where the demo lives; default: XDG_STATE_HOME/pgraft-demo, or /tmp/pgraft-demo-USER",
        )
        verb.add_argument(
            "--user",
            help="run by root: whose processes they are; default: the directory's owner, else postgres",
        )
        verb.add_argument("-s", "--silent", action="store_true", help="print only errors")
        verb.add_argument(
            "-t",
            "--timeout",
            metavar="SECONDS",
            type=seconds,
            default=TIMEOUT_DEFAULT_S,
            help=f"how long each step may take; default: {TIMEOUT_DEFAULT_S}",
        )


def _add_up(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    up = verbs.add_parser(
        "up",
        help="make and start the cluster",
        description="Make the nodes (or start again those that are there), wait until they agree on a leader,"
        " create the extension in database postgres on each, and replicate an entry.",
    )
    up.add_argument(
        "--nodes",
        metavar="N",
        type=int,
        choices=range(1, NODES_MAX + 1),
        default=NODES_DEFAULT,
        action=_Nodes,
        help=f"how many nodes, at most {NODES_MAX}; default: {NODES_DEFAULT}",
    )
    up.add_argument(
        "--tls",
        action="store_true",
        help="mutual TLS between the nodes, with an authority and certificates made in DIR/tls",
    )
    up.add_argument("--pg-config", metavar="PATH", help="pg_config of the PostgreSQL to use")
    up.set_defaults(run=_up, nodes_given=False)
