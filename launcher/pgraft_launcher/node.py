"""One node on this machine: its directories, its PostgreSQL, its settings."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pgraft.postgres import binaries, conffile, config, postmaster, process, reader
from pgraft.postgres.binaries import Installation
from pgraft.postgres.errors import PostgresError
from pgraft.postgres.nodefile import ConfigUnreadable, read_config
from pgraft.postgres.parse import parse_setting
from pgraft.postgres.process import ProcessRef
from pgraft.postgres.reader import Reader
from pgraft.postgres.settings import BY_NAME, NodeConfig
from pgraft.shm import place
from pgraft.shm.place import Header
from pgraft_launcher import claims, rundir
from pgraft_launcher.claims import Claim
from pgraft_launcher.errors import EXIT_NO_DATA_DIR, LaunchError
from pgraft_launcher.policy import Part
from pgraft_launcher.rundir import Record

_QUOTED = re.compile(r'"([^"]*)"')


class Node:
    """Where a node lives. `config_dir` is -D, `pgdata` the data itself: on Debian these differ.

    `data_dir` is the Raft directory of the node that runs, `configured_data_dir` the one that the settings
    name by now; they differ after ALTER SYSTEM SET pgraft.data_dir, until a restart.
    """

    def __init__(
        self,
        installation: Installation,
        config_dir: Path,
        pgdata: str,
        data_dir: str,
        configured_data_dir: str | None = None,
    ) -> None:
        self.installation = installation
        self.config_dir = config_dir
        self.pgdata = pgdata
        self.data_dir = data_dir
        self.configured_data_dir = configured_data_dir or data_dir

    def as_configured(self) -> Node:
        """The node that the next start makes."""
        return Node(self.installation, self.config_dir, self.pgdata, self.configured_data_dir)

    def record(self) -> Record | None:
        """What the last supervisor of this node left."""
        record = rundir.load(self.data_dir)
        return record if record is not None and record.claim().is_of(self.pgdata) else None

    def postmaster(self) -> ProcessRef | None:
        """The postmaster, if it lives."""
        return postmaster.find_postmaster(self.pgdata)

    def segment(self) -> Header | None:
        """The segment that is this node's, if there is one. The segment of a node whose Raft directory or
        PostgreSQL data directory was copied is not."""
        header = place.find_of_data_dir(self.data_dir)
        return header if header is not None and _claim_of(header).is_of(self.pgdata) else None

    def segment_name(self) -> str:
        """Its name; empty when there is none."""
        header = self.segment()
        return header.name if header else ""

    def _claims(self) -> list[Claim]:
        """What is said of processes, checked or not: by the record, and by the segment.

        The segment's header knows first; the record knows, too, when the segment was taken away.
        """
        record, header = rundir.load(self.data_dir), place.find_of_data_dir(self.data_dir)
        return [*([record.claim()] if record else []), *([_claim_of(header)] if header else [])]

    def _own_claims(self) -> list[Claim]:
        return [claim for claim in self._claims() if claim.is_of(self.pgdata)]

    def living(self) -> dict[Part, ProcessRef]:
        """The processes of this node that live, whoever started them."""
        found: dict[Part, ProcessRef] = {}
        for claim in self._own_claims():
            found |= claim.living()
        running = self.postmaster()
        if running is not None:
            found[Part.POSTMASTER] = running
        return found

    def supervisor(self) -> ProcessRef | None:
        """The supervisor, if it lives. The segment knows it, too, when the record was lost or damaged."""
        return next((ref for claim in self._own_claims() if (ref := claim.living_supervisor())), None)

    def open_supervisor(self) -> int | None:
        """A pidfd of the supervisor, to signal it by; None when it does not live."""
        return next((fd for claim in self._own_claims() if (fd := claim.open_supervisor()) is not None), None)

    def open_part(self, part: Part) -> int | None:
        """A pidfd of this part's process, likewise."""
        running = self.postmaster() if part is Part.POSTMASTER else None
        found = place.place_of(self.pgdata)
        if running is not None and found is not None:
            return process.open_pidfd(running, process.runs_in(postmaster.EXECUTABLE, *found))
        return next((fd for claim in self._own_claims() if (fd := claim.open(part)) is not None), None)

    def refuse_other(self) -> None:
        """LaunchError when the Raft directory is in use by the node of another PostgreSQL data directory."""
        text = self.other()
        if text:
            raise LaunchError(
                text,
                hint=f"a copy needs a pgraft.data_dir of its own: set it in {self.config_dir}",
            )

    def other(self) -> str:
        """Which other node lives in this Raft directory, in a sentence; empty when there is none.

        So it is with a copy of a PostgreSQL data directory whose settings name the Raft directory: they name
        that of the original. Where the other one does not live, its data directory was moved here.
        """
        for claim in self._claims():
            if claim.is_of(self.pgdata):
                continue
            supervisor, living = claim.living_supervisor(), claim.living()
            ref = supervisor or next(iter(living.values()), None)
            if ref is not None:
                return (
                    f"pgraft.data_dir {self.data_dir} is in use by the node of another PostgreSQL data"
                    f" directory, {claim.pgdata} (PID {ref.pid}), and not by one of {self.pgdata}"
                )
        return ""

    def config(self) -> NodeConfig | None:
        """The configuration of the last start of this node."""
        try:
            found = read_config(Path(self.data_dir))
        except ConfigUnreadable:
            return None
        return None if self.other() else found


def _claim_of(header: Header) -> Claim:
    return claims.of_header(header.words, header.text("data_dir"), header.text("pgdata"))


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
    configured = _data_dir(settings, pgdata)
    running = _running_data_dir(pgdata) or configured
    if place.place_of(running) == place.place_of(configured):
        running = configured  # by the name that the settings have for it
    return Node(installation, config_dir, pgdata, running, configured), settings


def _running_data_dir(pgdata: str) -> str:
    """pgraft.data_dir of the node that runs in this data directory; empty when none does.

    The settings may name another one by now.
    """
    for header in place.find_of_pgdata(pgdata):
        claim = _claim_of(header)
        is_there = place.place_of(claim.data_dir) == place.data_dir_of(header.words)
        if not header.words["retired"] and is_there and (claim.living_supervisor() or claim.living()):
            return claim.data_dir
    return ""


def _last_data_dir(pgdata: str) -> str:
    """pgraft.data_dir as the newest segment of this data directory tells; else where it is by default."""
    newest = next(iter(place.find_of_pgdata(pgdata)), None)
    return newest.text("data_dir") if newest else f"{pgdata}.pgraft"


def _data_dir(settings: Reader, pgdata: str) -> str:
    name = "pgraft.data_dir"
    try:
        text = settings.read(name)
    except PostgresError:
        text = ""  # data_directory was read just before: this one is only not set
    return config.data_dir_of({name: parse_setting(BY_NAME[name], text)}, pgdata)
