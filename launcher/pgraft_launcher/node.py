"""One node on this machine: its directories, its PostgreSQL, its settings."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import msgspec

from pgraft.inspector.target import InspectError, open_target
from pgraft.postgres import binaries, conffile, config, postmaster, reader
from pgraft.postgres.binaries import Installation
from pgraft.postgres.errors import PostgresError
from pgraft.postgres.parse import parse_setting
from pgraft.postgres.process import ProcessRef
from pgraft.postgres.reader import Reader
from pgraft.postgres.settings import BY_NAME, NodeConfig
from pgraft.shm import segment as segments
from pgraft_launcher import rundir
from pgraft_launcher.errors import EXIT_NO_DATA_DIR, LaunchError
from pgraft_launcher.pages import Pages
from pgraft_launcher.policy import Part
from pgraft_launcher.rundir import Record

_QUOTED = re.compile(r'"([^"]*)"')


class Node:
    """Where a node lives. `config_dir` is -D, `pgdata` the data itself: on Debian these differ."""

    def __init__(self, installation: Installation, config_dir: Path, pgdata: str, data_dir: str) -> None:
        self.installation = installation
        self.config_dir = config_dir
        self.pgdata = pgdata
        self.data_dir = data_dir

    def record(self) -> Record | None:
        """What the last supervisor left."""
        return rundir.load(self.data_dir)

    def postmaster(self) -> ProcessRef | None:
        """The postmaster, if it lives."""
        return postmaster.find_postmaster(self.pgdata)

    def segment_name(self) -> str:
        """The segment that is this node's, if there is one.

        Not what run/segment says: that file may be lost, or have come with a copy of another node.
        """
        return segments.segment_name(Path(self.data_dir))

    def living(self) -> dict[Part, ProcessRef]:
        """The processes of this node that live, whoever started them.

        The segment's header knows first; the record knows, too, when the segment was taken away.
        """
        record = self.record()
        found = record.living() if record else {}
        with contextlib.suppress(OSError, ValueError):
            found |= Pages(self.segment_name()).living()
        running = self.postmaster()
        if running is not None:
            found[Part.POSTMASTER] = running
        return found

    def supervisor(self) -> ProcessRef | None:
        """The supervisor, if it lives. The segment knows it, too, when the record was lost or damaged."""
        record = self.record()
        found = record.living_supervisor() if record else None
        if found is None:
            with contextlib.suppress(OSError, ValueError):
                found = Pages(self.segment_name()).living_supervisor()
        return found

    def config(self) -> NodeConfig | None:
        """The configuration of the last start."""
        try:
            return msgspec.json.decode(
                Path(rundir.path(self.data_dir, "node.json")).read_bytes(), type=NodeConfig
            )
        except (OSError, msgspec.DecodeError):
            return None


def named_directory(given: str | None) -> Path:
    """-D, or PGDATA."""
    text = given or os.environ.get("PGDATA")
    if not text:
        raise LaunchError("no data directory given", hint="use -D DIR or set PGDATA")
    return Path(os.path.abspath(text))


def check_data_directory(path: Path) -> None:
    """LaunchError where there is no data (or configuration) directory of PostgreSQL."""
    try:
        names = os.listdir(path)
    except PermissionError as error:
        raise LaunchError(
            f"data directory {path} cannot be read: {error.strerror}",
            hint="run this as its owner, or as root",
            code=EXIT_NO_DATA_DIR,
        ) from error
    except OSError as error:
        raise LaunchError(
            f"data directory {path}: {error.strerror}",
            hint="pgraft-launch init makes one",
            code=EXIT_NO_DATA_DIR,
        ) from error
    if "PG_VERSION" not in names and "postgresql.conf" not in names:
        raise LaunchError(
            f"{path} is not a data directory of PostgreSQL",
            hint="pgraft-launch init makes one",
            code=EXIT_NO_DATA_DIR,
        )


def last_start(pgdata: Path) -> tuple[Path | None, list[str]]:
    """-D and the other options of the last start, from postmaster.opts, as pg_ctl restart takes them."""
    try:
        text = (pgdata / "postmaster.opts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None, []
    words = _QUOTED.findall(text)
    if words[:1] == ["-D"] and len(words) > 1:
        return Path(words[1]), words[2:]
    return None, words


def find(
    config_dir: Path, pg_config: str | None, options: list[str] | None = None, *, may_be_broken: bool = False
) -> tuple[Node, Reader]:
    """The node in this directory, and a reader of its settings with these options.

    Without options, those of the last start count. `may_be_broken`: a configuration that cannot be
    read is no error, as for pg_ctl stop and status.
    """
    guess = reader.guess_data_directory(config_dir)
    major = binaries.data_dir_version(guess)
    if major is None:
        raise LaunchError(
            f"{guess} is not a data directory of PostgreSQL that can be read",
            hint="pgraft-launch init makes one",
            code=EXIT_NO_DATA_DIR,
        )
    told = conffile.read_notes(config_dir).get("bindir")
    installation = binaries.find(pg_config, major=major, remembered=Path(told) if told else None)
    if options is None:
        started_with, options = last_start(guess)
        if started_with is not None and not (config_dir / "postgresql.conf").exists():
            config_dir = started_with  # -D names the data, the configuration is elsewhere
    settings = Reader(installation, config_dir, options)
    try:
        pgdata = settings.read("data_directory")
    except PostgresError:
        if not may_be_broken:
            raise
        pgdata = str(guess)
        return Node(installation, config_dir, pgdata, _last_data_dir(pgdata)), settings
    return Node(installation, config_dir, pgdata, _data_dir(settings, pgdata)), settings


def _last_data_dir(pgdata: str) -> str:
    """pgraft.data_dir as the segment of this data directory tells; else where it is by default."""
    try:
        segment = open_target(pgdata, None)
    except InspectError:
        return f"{pgdata}.pgraft"
    found, of = segment.text("data_dir"), segment.text("pgdata")
    segment.close()
    return found if os.path.realpath(of) == os.path.realpath(pgdata) else f"{pgdata}.pgraft"


def _data_dir(settings: Reader, pgdata: str) -> str:
    name = "pgraft.data_dir"
    try:
        text = settings.read(name)
    except PostgresError:
        text = ""  # data_directory was read just before: this one is only not set
    return config.data_dir_of({name: parse_setting(BY_NAME[name], text)}, pgdata)
