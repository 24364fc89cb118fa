"""`init`: a data directory with pgraft's settings in it, and the extension in its PostgreSQL."""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
from pathlib import Path

from pgraft import privileges
from pgraft.postgres import binaries, conffile, config, reader
from pgraft.postgres.binaries import Installation
from pgraft.postgres.errors import PostgresError
from pgraft.postgres.reader import Reader
from pgraft.postgres.settings import NodeConfig
from pgraft_launcher import accounts, as_root, certificates, extension, node
from pgraft_launcher.errors import LaunchError
from pgraft_launcher.progress import Progress

INITDB_TIMEOUT_S = 300
_PRELOAD = "shared_preload_libraries"


class InitOptions:
    """What the command line asks of an init."""

    def __init__(
        self,
        *,
        directory: Path,
        settings: dict[str, str],
        pg_config: str | None = None,
        initdb_options: list[str] | None = None,
        user: str | None = None,
        progress: Progress | None = None,
        make_certs: Path | None = None,
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.make_certs = make_certs
        self.pg_config = pg_config
        self.initdb_options = initdb_options or []
        self.user = user
        self.progress = progress or Progress(silent=True)


def init(options: InitOptions) -> None:
    """Make, or complete, one node. What is there already stays; doing it twice changes nothing."""
    config = _check(options)
    directory = options.directory
    if privileges.is_root():
        _settle(options)
    else:
        accounts.refuse_user(options.user)
    _check_owner(directory)
    installation = _installation(options)
    extension.ensure(installation, options.progress)
    settings = options.settings | _make_certificates(options, config)
    superuser = _superuser(options.initdb_options)
    if binaries.data_dir_version(directory) is None:
        _initdb(installation, options)
    else:
        options.progress.say(f"{directory} is a data directory of PostgreSQL {installation.major} already")
        superuser = conffile.read_notes(directory).get("superuser", superuser)
    _write_settings(installation, directory, settings, superuser)
    options.progress.say(f"settings of pgraft written to {directory / 'postgresql.conf'}")


def _settle(options: InitOptions) -> None:
    """What only root can do, in places of root's; then root becomes the node's user."""
    user = accounts.choose(options.directory, options.user)
    # The user looks which PostgreSQL it is: that may be written in files of its own.
    bindir = as_root.ask(user, lambda: _look(options))
    as_root.install_extension(Path(bindir), options.progress)
    folders = [options.directory]
    if "pgraft.data_dir" not in options.settings:
        folders.append(Path(f"{options.directory}.pgraft"))
    if options.make_certs is not None:
        folders.append(options.make_certs)
    for folder in folders:
        as_root.provide(folder, user)
    as_root.become(user)


def _look(options: InitOptions) -> str:
    accounts.check_reach(options.directory)
    return str(_installation(options).bindir)


def _check_owner(directory: Path) -> None:
    """A directory that is there must be the user's who is to run PostgreSQL on it."""
    if not directory.exists() or directory.stat().st_uid == os.geteuid():
        return
    user = pwd.getpwuid(os.geteuid()).pw_name
    raise LaunchError(
        f"{directory} does not belong to {user}", hint=f"chown {user} {shlex.quote(str(directory))}"
    )


def _check(options: InitOptions) -> NodeConfig:
    """What start would refuse, refused now: nothing has been made yet."""
    settings = options.settings
    for name in settings:
        conffile.check_name(name)
    if options.make_certs is not None:
        certificates.require()
        for name in ("cert", "key", "ca"):
            if f"pgraft.ssl_{name}_file" in settings:
                raise LaunchError(f"--make-certs sets pgraft.ssl_{name}_file itself", hint="leave one out")
    values = config.parse_values(settings)
    data_dir = str(values["pgraft.data_dir"]) or "/pgraft"
    return config.build_config(values, {}, pgdata="/-", data_dir=data_dir, segment_name="-", stored=None)


def _make_certificates(options: InitOptions, config: NodeConfig) -> dict[str, str]:
    """Those of every node that the list tells of, so that the directory can go to the other machines."""
    directory = options.make_certs
    if directory is None:
        return {}
    ids = {config.node_id}
    if config.initial_cluster_state == "new":
        ids |= {member.node_id for member in config.initial_cluster}
    made = certificates.ensure(directory, config.cluster_id, sorted(ids))
    if made:
        names = ", ".join(certificates.files_of(directory, node_id).cert.name for node_id in made)
        options.progress.say(f"certificates for trials made in {directory}: {names}")
    return certificates.files_of(directory, config.node_id).settings()


def _installation(options: InitOptions) -> Installation:
    directory = options.directory
    major = binaries.data_dir_version(directory)
    if major is None and directory.exists():
        if not directory.is_dir():
            raise LaunchError(f"{directory} is not a directory")
        if os.access(directory, os.R_OK) and any(directory.iterdir()):
            raise LaunchError(
                f"{directory} is not empty, and no data directory of PostgreSQL",
                hint="give an empty directory, or one that does not exist yet",
            )
    told = conffile.read_notes(directory).get("bindir")
    return binaries.find(options.pg_config, major=major, remembered=Path(told) if told else None)


def _superuser(initdb_options: list[str]) -> str:
    """Whom initdb makes the superuser: -U, else whoever runs it."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-U", "--username")
    try:
        found, _ = parser.parse_known_args(initdb_options)
    except argparse.ArgumentError as error:
        raise LaunchError(f"initdb options: {error}") from error
    return found.username or pwd.getpwuid(os.geteuid()).pw_name


def _initdb(installation: Installation, options: InitOptions) -> None:
    options.progress.begin(f"creating {options.directory} with initdb (PostgreSQL {installation.version})")
    argv = [installation.program("initdb"), "-D", str(options.directory), *options.initdb_options]
    try:
        binaries.run(argv, timeout_s=INITDB_TIMEOUT_S)
    except PostgresError:
        options.progress.end("failed")
        raise
    options.progress.end("done")
    if not any(word.startswith(("-A", "--auth")) for word in options.initdb_options):
        options.progress.say(
            "note: initdb lets every local user connect as any role (trust); for more than a trial edit"
            " pg_hba.conf, or use -o '--auth-local=peer --auth-host=scram-sha-256'"
        )


def _write_settings(
    installation: Installation, directory: Path, given: dict[str, str], superuser: str
) -> None:
    path = directory / "postgresql.conf"
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        current = _preloaded(installation, directory, text)
        settings = {_PRELOAD: conffile.library_list(current)} | given
        notes = {"bindir": str(installation.bindir), "superuser": superuser}
        conffile.replace_file(path, conffile.with_block(text, settings, notes))
    except OSError as error:
        raise LaunchError(f"cannot write {path}: {error.strerror}") from error


def _preloaded(installation: Installation, directory: Path, text: str) -> str:
    """The user's own shared_preload_libraries: read without our block, which would hide it."""
    aside = directory / "postgresql.conf.pgraft-read"
    conffile.replace_file(aside, conffile.without_block(text))
    try:
        options = ["-c", f"config_file={aside}"]
        return Reader(installation, directory, options).read(_PRELOAD)
    finally:
        aside.unlink()


# --- command line ---------------------------------------------------------------------------------------


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`init` on the command line."""
    parser = commands.add_parser(
        "init",
        help="make a data directory for a node: initdb, pgraft's settings, the extension",
        description="Make a node: initdb where DIR is empty, pgraft's settings in a marked block at the end"
        " of"
        " postgresql.conf (done again, it replaces the block and nothing else), and the extension installed"
        " into that PostgreSQL. Then: pgraft-launch start -D DIR",
        epilog="The other way to name a node, without --initial-cluster: --set pgraft.node_id=1"
        " --set pgraft.address=10.0.1.11 --set pgraft.port=7001. A node that joins a running cluster sets"
        " these"
        " and --initial-cluster-state existing, lists some members, and waits for pgraft_add_node there.",
    )
    parser.add_argument("-D", "--pgdata", metavar="DIR", help="the data directory; default: PGDATA")
    parser.add_argument("--name", help="name of this node, one of those in --initial-cluster")
    parser.add_argument(
        "--initial-cluster", metavar="LIST", help="node1=host:port,node2=host:port; the same on every node"
    )
    parser.add_argument("--initial-cluster-state", choices=("new", "existing"), help="default: new")
    parser.add_argument("--cluster-id", metavar="TEXT", help="name of the cluster; default: pgraft")
    parser.add_argument("--pg-port", metavar="N", type=int, help="port of PostgreSQL; default: its own, 5432")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="any other setting; may be repeated"
    )
    parser.add_argument(
        "--make-certs",
        metavar="DIR",
        help="mutual TLS for a trial: make an authority and the nodes' certificates in DIR, where they are"
        " not there yet, and use them; copy DIR to the other machines",
    )
    parser.add_argument(
        "-o",
        "--initdb-options",
        metavar="OPTIONS",
        action="append",
        default=[],
        help="options for initdb, as -o '--auth-local=peer -k'",
    )
    parser.add_argument("--pg-config", metavar="PATH", help="pg_config of the PostgreSQL to use")
    parser.add_argument("--user", metavar="NAME", help="run by root: whose node it is to be")
    parser.add_argument("-s", "--silent", action="store_true", help="print only errors")
    parser.set_defaults(run=_run)


def _settings(args: argparse.Namespace) -> dict[str, str]:
    named = {
        "port": args.pg_port,
        "pgraft.name": args.name,
        "pgraft.initial_cluster": args.initial_cluster,
        "pgraft.initial_cluster_state": args.initial_cluster_state,
        "pgraft.cluster_id": args.cluster_id,
    }
    settings = {name: str(value) for name, value in named.items() if value is not None}
    for pair in args.set:
        name, equals, value = pair.partition("=")
        if not equals:
            raise LaunchError(f"--set {pair}: must be NAME=VALUE")
        settings[name.strip()] = value
    return settings


def _run(args: argparse.Namespace) -> int:
    directory = node.named_directory(args.pgdata)
    options = InitOptions(
        directory=directory,
        settings=_settings(args),
        pg_config=args.pg_config,
        initdb_options=reader.split_options(args.initdb_options),
        user=args.user,
        progress=Progress(silent=args.silent),
        make_certs=Path(os.path.abspath(args.make_certs)) if args.make_certs else None,
    )
    init(options)
    user = f" --user {args.user}" if args.user else ""
    where = shlex.quote(args.pgdata or str(directory))
    options.progress.say(f"node made; start it with: pgraft-launch start -D {where}{user}")
    return 0
