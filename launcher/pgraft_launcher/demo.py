"""`demo up`, `demo status`, `demo down`: a whole cluster on this machine, on loopback."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shlex
import shutil
import stat
import sys
from importlib.util import find_spec
from pathlib import Path

from pgraft import privileges
from pgraft.postgres import binaries
from pgraft.postgres.binaries import Installation
from pgraft_launcher import accounts, as_root, certificates, extension
from pgraft_launcher.arguments import seconds
from pgraft_launcher.cluster import NODES_MAX, Cluster
from pgraft_launcher.errors import EXIT_NO_DATA_DIR, EXIT_NOT_RUNNING, LaunchError
from pgraft_launcher.progress import Progress

NODES_DEFAULT = 3
TIMEOUT_DEFAULT_S = 60


def _place(args: argparse.Namespace) -> tuple[Path, pwd.struct_passwd]:
    """Where the demo is, and whose: root's belongs to --user, or to the owner of its directory."""
    named = Path(os.path.abspath(args.dir)) if args.dir else None
    if not privileges.is_root():
        accounts.refuse_user(args.user)
        return named or _default_directory(), pwd.getpwuid(os.geteuid())
    if args.user:
        user = accounts.user_named(args.user)
    else:
        user = (accounts.owner(named) if named else None) or accounts.demo_user()
    return named or Path(f"/tmp/pgraft-demo-{user.pw_name}"), user


def _default_directory() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    if state and os.path.isabs(state):
        return Path(state, "pgraft-demo")
    return Path(f"/tmp/pgraft-demo-{pwd.getpwuid(os.geteuid()).pw_name}")


def _check_own(directory: Path) -> None:
    """The directory lies in /tmp perhaps, where anybody makes one: it must be ours alone."""
    accounts.check_reach(directory)
    try:
        found = os.lstat(directory)
    except FileNotFoundError:
        return
    user = pwd.getpwuid(os.geteuid()).pw_name
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
        raise LaunchError(f"{directory} does not belong to {user}", hint="name another with --dir")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise LaunchError(f"others than {user} can write into {directory}", hint=f"chmod go-w {directory}")


def _up(args: argparse.Namespace) -> int:
    progress = Progress(silent=args.silent)
    directory, user = _place(args)
    has_tls = _wants_tls(args)
    if privileges.is_root():
        bindir = as_root.ask(user, lambda: str(_look(args, directory)[1].bindir))
        as_root.install_extension(Path(bindir), progress)
        as_root.provide(directory, user)
        as_root.become(user)
    found, installation = _look(args, directory)
    extension.ensure(installation, progress)
    _make_directory(directory)
    cluster = found or Cluster.make(directory, args.nodes, installation, has_tls=has_tls)
    cluster.up(progress, args.timeout)
    here = "" if args.dir is None and not args.user else f" --dir {shlex.quote(str(directory))}"
    program = _program()
    progress.say(f"\nlook at it: {program} demo status{here}\nend it:     {program} demo down{here}")
    return 0


def _wants_tls(args: argparse.Namespace) -> bool:
    """Of a new demo: as asked for, else where certificates can be made."""
    if args.tls:
        certificates.require()
    return find_spec("cryptography") is not None if args.tls is None else bool(args.tls)


def _look(args: argparse.Namespace, directory: Path) -> tuple[Cluster | None, Installation]:
    """The demo that is there, where there is one that fits, and its PostgreSQL, or that of a new one."""
    _check_own(directory)
    found = Cluster.load(directory)
    if found is None:
        return None, binaries.find(args.pg_config)
    _check_fits(found, args)
    return found, found.installation


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(
            f"cannot create {directory}: {error.strerror}", hint="name another with --dir"
        ) from error
    _check_own(directory)  # in /tmp another may have been quicker


def _check_fits(cluster: Cluster, args: argparse.Namespace) -> None:
    """Whether the demo that is there is the one that is asked for."""
    why = ""
    if not cluster.is_closed:
        why = "was made by an older pgraft, and lets every user of this machine in"
    elif args.tls is not None and args.tls != cluster.has_tls:
        why = f"was made with{'' if cluster.has_tls else 'out'} TLS"
    elif len(cluster.members) != args.nodes and args.nodes_given:
        why = f"has {len(cluster.members)} nodes"
    if why:
        where = shlex.quote(str(cluster.directory))
        raise LaunchError(
            f"the demo in {cluster.directory} {why}",
            hint=f"pgraft-launch demo down --dir {where}, or name another with --dir",
        )


def _program() -> str:
    """This program as one can type it: `make demo` has it in a virtual environment that is in no PATH."""
    name = "pgraft-launch"
    own, known = Path(sys.executable).with_name(name), shutil.which(name)
    if not own.exists() or (known and os.path.samefile(known, own)):
        return name
    return shlex.quote(str(own))


def _existing(directory: Path) -> Cluster:
    """The demo that is there. Only once root is given up: its files are the user's."""
    _check_own(directory)
    cluster = Cluster.load(directory)
    if cluster is None:
        raise LaunchError(
            f"there is no demo in {directory}", hint="pgraft-launch demo up makes one", code=EXIT_NO_DATA_DIR
        )
    return cluster


def status(args: argparse.Namespace) -> int:
    directory, user = _place(args)
    if privileges.is_root():
        as_root.become(user)
    seen = _existing(directory).statuses()
    if args.json:
        print(json.dumps([status.as_dict() for status in seen], indent=2))
    else:
        print("\n".join(line for status in seen for line in status.lines()))
    return 0 if all(status.is_running for status in seen) else EXIT_NOT_RUNNING


def _down(args: argparse.Namespace) -> int:
    directory, user = _place(args)
    progress = Progress(silent=args.silent)
    if privileges.is_root():
        as_root.ask(user, lambda: _end(args, directory, progress))
        if not args.keep:
            as_root.take_away(directory, user)
    else:
        _end(args, directory, progress)
    if args.keep:
        progress.say(f"stopped; the data stays in {directory}")
    elif os.path.lexists(directory):
        progress.say(f"all that was in {directory} is removed, the empty directory is not")
    else:
        progress.say(f"{directory} removed")
    return 0


def _end(args: argparse.Namespace, directory: Path, progress: Progress) -> None:
    """Stop every node and remove what the demo's user can remove."""
    cluster = _existing(directory)
    cluster.stop(progress, args.timeout)
    if not args.keep:
        cluster.remove()


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
        action=argparse.BooleanOptionalAction,
        help="mutual TLS between the nodes, with an authority and certificates made in DIR/tls; default:"
        " where the Python package cryptography is installed",
    )
    up.add_argument("--pg-config", metavar="PATH", help="pg_config of the PostgreSQL to use")
    up.set_defaults(run=_up, nodes_given=False)
