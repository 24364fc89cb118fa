"""`pgraft-inspect`: arguments, errors in one line, exit codes (0 shown, 1 nothing to show, 2 usage)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import msgspec

from pgraft import __version__
from pgraft.inspector import rights
from pgraft.inspector.page import rings_page, show_page
from pgraft.inspector.picture import take_picture
from pgraft.inspector.rings import take_rings
from pgraft.inspector.target import InspectError, open_target
from pgraft.inspector.watch import watch
from pgraft.shm.place import SegmentError
from pgraft.shm.segment import Segment

INTERVAL_S_MIN, INTERVAL_S_MAX = 0.05, 3600.0
_EPILOG = """\
The node is named by its PostgreSQL data directory (-D DIR, or PGDATA), by its pgraft.data_dir, or
by the name of its segment. With none of them, the only segment of this machine is shown.
Nothing is ever written, and no process is asked: a node that has died is shown as it was last.

examples:
  pgraft-inspect show -D /var/lib/postgresql/18/main
  pgraft-inspect watch -D . --interval 0.5
  pgraft-inspect json -D . | jq '.members[] | {node_id, state}'
  pgraft-inspect rings pgraft.1000.0123456789abcdef

exit status: 0 shown; 1 there is nothing to show; 2 wrong arguments.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as every other error."""
        self.exit(2, f"pgraft-inspect: {message}; see pgraft-inspect --help\n")


def _interval(text: str) -> float:
    value = float(text)
    if not INTERVAL_S_MIN <= value <= INTERVAL_S_MAX:
        raise argparse.ArgumentTypeError(f"must be {INTERVAL_S_MIN} to {INTERVAL_S_MAX:.0f} seconds")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pgraft-inspect",
        description="Look at a pgraft node through its shared memory segment, without touching it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"pgraft-inspect (pgraft) {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="show|watch|json|rings")
    for name, help_text in (
        ("show", "a page for people"),
        ("watch", "the same, live; q ends it"),
        ("json", "everything, for programs; the fields are documented in pgraft/inspector/README.md"),
        ("rings", "what waits in the rings and in the result slots"),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.add_argument("-D", "--pgdata", metavar="DIR", help="PostgreSQL data directory of the node")
        command.add_argument("segment", nargs="?", help="name of a segment, or a pgraft.data_dir")
        if name == "watch":
            command.add_argument(
                "-i", "--interval", type=_interval, default=1.0, metavar="SECONDS", help="default 1"
            )
            command.add_argument(
                "-n", "--count", type=_count, metavar="N", help="end after N pages (default: never)"
            )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        rights.settle(arguments.pgdata, arguments.segment)
        _run(arguments)
        sys.stdout.flush()
    except (InspectError, SegmentError) as error:
        print(f"pgraft-inspect: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of a pipe has seen enough; keep the interpreter's last flush quiet, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"pgraft-inspect: cannot write: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _run(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "show":
            sys.stdout.write(_look(arguments, _show))
        case "watch":
            _look(arguments, _show)  # what cannot be shown at all is an error, not an empty screen
            watch(lambda: _look_again(arguments), arguments.interval, arguments.count)
        case "json":
            sys.stdout.write(_look(arguments, _json))
        case _:
            sys.stdout.write(_look(arguments, lambda segment: rings_page(take_rings(segment))))


def _look(arguments: argparse.Namespace, draw: Callable[[Segment], str]) -> str:
    segment = open_target(arguments.pgdata, arguments.segment)
    try:
        return draw(segment)
    finally:
        segment.close()


def _look_again(arguments: argparse.Namespace) -> str:
    """The page, mapped anew each time: a restarted node has another segment, a stopped one has none."""
    try:
        return _look(arguments, _show)
    except (InspectError, SegmentError) as error:
        return f"{error}\n"


def _show(segment: Segment) -> str:
    return show_page(take_picture(segment))


def _json(segment: Segment) -> str:
    document = msgspec.to_builtins(take_picture(segment))
    document["waiting"] = msgspec.to_builtins(take_rings(segment))
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
