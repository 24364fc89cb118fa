"""pgraft-launch: the words and flags of pg_ctl, for a whole node."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pgraft import __version__, privileges
from pgraft.postgres import binaries, reader
from pgraft.postgres.errors import PostgresError
from pgraft.privileges import PrivilegeError
from pgraft_launcher import adopt, as_root, demo, extension, force, init, node, prepare, start, stop
from pgraft_launcher.arguments import seconds
from pgraft_launcher.errors import EXIT_FAILED, EXIT_NO_DATA_DIR, EXIT_NOT_RUNNING, LaunchError
from pgraft_launcher.policy import StopMode
from pgraft_launcher.progress import Progress
from pgraft_launcher.status import NodeStatus

TIMEOUT_DEFAULT_S = 60

_DESCRIPTION = """\
Starts, stops and looks at pgraft nodes: PostgreSQL with a Raft worker and a network process beside it.
It is used as pg_ctl is, with the same flags and exit codes."""

_EPILOG = """\
a cluster on this machine, to try it:
  pgraft-launch demo up

a node of a real one (the same --initial-cluster on each; then CREATE EXTENSION pgraft in psql):
  pgraft-launch init -D /srv/pg/node1 --name node1 \\
      --initial-cluster node1=10.0.1.11:7001,node2=10.0.1.12:7001,node3=10.0.1.13:7001
  pgraft-launch start -D /srv/pg/node1 -l /srv/pg/node1.log

exit codes: 0 done; 1 failed, or wrong usage; status: 3 PostgreSQL is not running, 4 no data directory.
'COMMAND --help' tells about a command."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every error of this program."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_FAILED, f"{_PROGRAM}: error: {message} (try {self.prog} --help)\n")


_PROGRAM = "pgraft-launch"


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-D",
        "--pgdata",
        metavar="DIR",
        help="PostgreSQL's data (or configuration) directory; default: PGDATA",
    )
    parser.add_argument("-s", "--silent", action="store_true", help="print only errors")
    parser.add_argument("--pg-config", metavar="PATH", help="pg_config of the PostgreSQL to use")
    parser.add_argument(
        "--user", metavar="NAME", help="run by root: act as this user; default: the data directory's owner"
    )


def _waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-w", "--wait", action="store_true", default=True, help="wait until done (default)")
    parser.add_argument("-W", "--no-wait", dest="wait", action="store_false", help="do not wait")
    parser.add_argument(
        "-t",
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        # A text: only argparse, at a command that waits, looks at what it is.
        default=os.environ.get("PGCTLTIMEOUT", str(TIMEOUT_DEFAULT_S)),
        help=f"how long to wait (default: PGCTLTIMEOUT, or {TIMEOUT_DEFAULT_S})",
    )


def _starting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-l",
        "--log",
        metavar="FILE",
        type=os.path.abspath,  # now: who gives up root's rights may leave root's folder
        help="append the log of all processes to FILE (default: DIR.log, beside the data directory)",
    )
    _options_flag(parser)


def _options_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--options",
        metavar="OPTIONS",
        action="append",
        help='options for postgres, as -o "-c work_mem=64MB"; they count for pgraft\'s settings, too',
    )


def _stopping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--mode",
        metavar="MODE",
        type=_mode,
        default=StopMode.FAST,
        help="smart (wait for sessions to end), fast (disconnect them, the default), immediate (as a crash)",
    )


def _mode(text: str) -> StopMode:
    for mode in StopMode:
        if text and mode.value.startswith(text.lower()):
            return mode
    raise argparse.ArgumentTypeError(f"'{text}' is not smart, fast or immediate")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = _Parser(
        prog=_PROGRAM,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"{_PROGRAM} (pgraft) {__version__}")
    commands: argparse._SubParsersAction[argparse.ArgumentParser] = parser.add_subparsers(
        metavar="COMMAND", required=True, parser_class=_Parser
    )
    init.add_command(commands)
    for name, text, run, groups in (
        (
            "start",
            "start a node, or take over what a dead supervisor has left",
            _start,
            (_starting, _waiting),
        ),
        ("stop", "stop PostgreSQL, Raft worker and network process", _stop, (_stopping, _waiting)),
        ("restart", "stop, then start", _restart, (_stopping, _starting, _waiting)),
        ("reload", "read configuration files and certificates again", _reload, ()),
        ("status", "show a node (exit code 3 when PostgreSQL is not running)", _status, (_json,)),
        ("run", "start a node in the foreground, logging to stderr", _run, (_options_flag,)),
    ):
        command = commands.add_parser(name, help=text, description=_LONG.get(name, text))
        command.set_defaults(run=run)
        _common(command)
        for group in groups:
            group(command)
    force.add_command(commands, _common, _settle)
    adopt.add_command(commands, _common, _settle)
    extension.add_command(commands, _install_extension)
    demo.add_command(commands)
    return parser


_LONG = {
    "start": "Start PostgreSQL, Raft worker and network process under a supervisor, and wait until PostgreSQL"
    " accepts connections and the worker runs. Where a supervisor died and the others live, it takes"
    " them over without restarting anything.",
    "stop": "Stop the node: PostgreSQL first (-m as pg_ctl's), then Raft worker and network process."
    " A leader hands leadership over before that, but not with -m immediate.",
    "status": "Show a node. Exit code 0: PostgreSQL runs, 3: it does not, 4: no accessible data directory."
    " With --json an object; its data_dir is PostgreSQL's data directory, the one that -D names, and"
    " raft_data_dir that of the Raft state.",
    "run": "Start a node in the foreground, for systemd and containers: logs go to stderr; SIGTERM and SIGINT"
    " stop it in fast mode, SIGQUIT in immediate mode, SIGHUP reloads.",
}


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


# --- commands -------------------------------------------------------------------------------------------


def _settle(args: argparse.Namespace) -> Path:
    """Who we are and which directory it is about: before anything else."""
    directory = node.named_directory(args.pgdata)
    as_root.settle(directory, args.user)
    node.check_data_directory(directory)
    return directory


def _start(args: argparse.Namespace) -> int:
    found, settings = node.find(_settle(args), args.pg_config, reader.split_options(args.options or []))
    start.start(found, settings, _start_options(args))
    return 0


def _start_options(args: argparse.Namespace) -> start.StartOptions:
    progress = Progress(silent=args.silent)
    return start.StartOptions(log=args.log, wait=args.wait, timeout_s=args.timeout, progress=progress)


def _run(args: argparse.Namespace) -> int:
    found, settings = node.find(_settle(args), args.pg_config, reader.split_options(args.options or []))
    start.run(found, settings, Progress(silent=args.silent))
    return EXIT_FAILED


def _stop(args: argparse.Namespace) -> int:
    found, _ = node.find(_settle(args), args.pg_config, may_be_broken=True)
    progress = Progress(silent=args.silent)
    stop.stop(
        found, stop.StopOptions(mode=args.mode, wait=args.wait, timeout_s=args.timeout, progress=progress)
    )
    return 0


def _restart(args: argparse.Namespace) -> int:
    directory = _settle(args)
    found, settings = node.find(directory, args.pg_config)
    if args.options is not None:
        found, settings = node.find(directory, args.pg_config, reader.split_options(args.options))
    prepare.check_place(found.as_configured().data_dir)  # before it is stopped: it could not be started again
    progress = Progress(silent=args.silent)
    record = found.record()
    log = args.log or (record.plan.log if record else None) or None
    if stop.is_running(found):
        stop.stop(
            found, stop.StopOptions(mode=args.mode, wait=True, timeout_s=args.timeout, progress=progress)
        )
    else:
        progress.say("the node is not running, starting it anyway")
    start.start(
        found.as_configured(),
        settings,
        start.StartOptions(log=log, wait=args.wait, timeout_s=args.timeout, progress=progress),
    )
    return 0


def _reload(args: argparse.Namespace) -> int:
    found, _ = node.find(_settle(args), args.pg_config, may_be_broken=True)
    stop.reload(found, Progress(silent=args.silent))
    return 0


def _install_extension(args: argparse.Namespace) -> int:
    named = args.pg_config or os.environ.get("PG_CONFIG")
    if named and privileges.is_root():
        as_root.settle_for_program(Path(binaries.locate(named)))
    # As root it stays root where only root could have changed that PostgreSQL: it writes there, and
    # starts no server. One that nobody named is passed over when others could have.
    extension.install(extension.Target(binaries.find(named)), Progress(silent=args.silent))
    return 0


def _status(args: argparse.Namespace) -> int:
    seen = NodeStatus(*node.find(_settle(args), args.pg_config, may_be_broken=True))
    if args.json:
        print(json.dumps(seen.as_dict(), indent=2))
    elif not args.silent:
        print("\n".join(seen.lines()))
    return 0 if seen.is_running else EXIT_NOT_RUNNING


# --- main -------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors are one line on stderr."""
    args = build_parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
    try:
        run: Callable[[argparse.Namespace], int] = args.run
        return run(args)
    except LaunchError as error:
        _complain(error.message, error.hint)
        return EXIT_FAILED if error.code == EXIT_NO_DATA_DIR and not _tells_state(args) else error.code
    except (PostgresError, PrivilegeError) as error:
        _complain(error.message, error.hint)
        return EXIT_FAILED
    except KeyboardInterrupt:
        _complain("interrupted", "")
        return 130
    except BrokenPipeError:
        return EXIT_FAILED
    except OSError as error:
        _complain(f"{error.filename or _PROGRAM}: {error.strerror or error}", _os_hint(error))
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001  the last resort: a line and a place to look, no traceback
        _complain(f"{type(error).__name__}: {error}", f"a bug in pgraft-launch; details in {_keep_details()}")
        return EXIT_FAILED


def _tells_state(args: argparse.Namespace) -> bool:
    """Whether it is a `status`: as pg_ctl's, only that tells by its code that there is no data directory."""
    return args.run in (_status, demo.status)


def _os_hint(error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return "run this as the owner of the data directory, or as root"
        case errno.ENOSPC | errno.EDQUOT:
            return "free space on its file system"
        case _:
            return ""


def _joined(argv: list[str]) -> list[str]:
    """`-o -F` as `-o-F`: getopt takes the next word whatever it looks like, argparse does not."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "-o":
            words[-1] += word
        elif words and words[-1] in ("--options", "--initdb-options"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _complain(message: str, hint: str) -> None:
    # In it may stand what another user wrote into a file, and this is root's terminal perhaps.
    line = f"{' '.join(message.splitlines())} ({hint})" if hint else " ".join(message.splitlines())
    shown = "".join(char if char.isprintable() else "?" for char in line)
    print(f"{_PROGRAM}: error: {shown}", file=sys.stderr)


def _keep_details() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="pgraft-launch-", suffix=".log", delete=False) as file:
        traceback.print_exc(file=file)
        return file.name


if __name__ == "__main__":
    sys.exit(main())
