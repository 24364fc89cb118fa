"""One real node driven through the command line, for the tests of pgraft-launch."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pgraft.postgres import postmaster, process
from pgraft.postgres.process import ProcessRef
from pgraft.shm import place
from tests.support.pgcluster import as_server_user, bindir, free_port, pg_config, server_user
from tests.unit.launcher.launcher_standins import environment

COMMAND_TIMEOUT_S = 120
LAUNCH = (sys.executable, "-P", "-m", "pgraft_launcher")


def launch(*words: str, cwd: str = "/", **env: str) -> subprocess.CompletedProcess[str]:
    """Run pgraft-launch to its end."""
    return subprocess.run(
        [*LAUNCH, *words],
        env=environment() | env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


class OneNode:
    """A folder of the server's user, with a node in it."""

    def __init__(self, major: int = 18) -> None:
        self.major = major
        self.root = Path(tempfile.mkdtemp(prefix="pgraft-l-", dir="/tmp"))
        user = server_user()
        if user:
            account = pwd.getpwnam(user)
            os.chown(self.root, account.pw_uid, account.pw_gid)
        self.pgdata = self.root / "data"
        self.raft_dir = self.root / "data.pgraft"
        self.pg_port = free_port()
        self.raft_port = free_port()
        self._strangers: list[subprocess.Popen[bytes]] = []

    def init(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`init` with all that a node needs."""
        listed = f"only=127.0.0.1:{self.raft_port}"
        settings = [f"unix_socket_directories={self.root}", "listen_addresses=", "fsync=off"]
        sets = [word for setting in settings for word in ("--set", setting)]
        where = ["--pg-config", pg_config(self.major), "--pg-port", str(self.pg_port)]
        name = ["--name", "only", "--initial-cluster", listed]
        return launch("init", "-D", str(self.pgdata), *name, *where, "-o", "--no-sync", *sets, *words)

    def do(self, command: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Another command for this node."""
        return launch(command, "-D", str(self.pgdata), *words, **env)

    def argv(self, command: str) -> list[str]:
        """The command line of that."""
        return [*LAUNCH, command, "-D", str(self.pgdata)]

    def status(self) -> dict[str, Any]:
        """`status --json`."""
        found: dict[str, Any] = json.loads(self.do("status", "--json").stdout)
        return found

    def sql(self, statement: str) -> str:
        """One statement, by the dsn that status gives."""
        program = bindir(self.major) / "psql"
        argv = as_server_user(
            str(program), "-X", "-A", "-t", "-q", "-d", self.status()["dsn"], "-c", statement
        )
        return subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/").stdout.strip()

    def pg_ctl(self, *words: str) -> None:
        """PostgreSQL's own command."""
        argv = as_server_user(str(bindir(self.major) / "pg_ctl"), "-D", str(self.pgdata), "-s", *words)
        subprocess.run(argv, check=True, cwd="/", stdout=subprocess.DEVNULL)

    def refs(self) -> list[ProcessRef]:
        """Every process of the node that lives."""
        found = set(postmaster.find_backends(str(self.pgdata)))
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                ref = process.identify(int(entry.name))
                if ref and b"-m" in words and os.fsencode(self.raft_dir) in words:
                    found.add(ref)
        return sorted(found)

    def segment(self) -> Path:
        """The file of the segment that the node has, or would have."""
        try:
            name = (self.raft_dir / "run" / "segment").read_text().strip()
        except OSError:
            name = ""
        return place.SHM_DIR / (name or "pgraft.has-no-segment-name")

    def segments(self) -> list[str]:
        """Names of all segments that this node has, or left behind."""
        of_path = place.name_stem(self.raft_dir).rpartition(".")[2]
        return sorted(path.name for path in place.SHM_DIR.glob(f"{place.NAME_PREFIX}*.{of_path}*"))

    def socket_lock(self) -> Path:
        """The lock file of PostgreSQL's socket."""
        return self.root / f".s.PGSQL.{self.pg_port}.lock"

    def kill_all(self) -> None:
        """kill -9 of everything, at once."""
        refs = self.refs()
        for ref in refs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(ref.pid, signal.SIGKILL)
        for ref in refs:
            process.wait_ended(ref, 10)

    def stranger(self, program: str = "") -> int:
        """The pid of a process of the server's user that is no PostgreSQL, and lives until `destroy`."""
        code = f"{program}\nprint(flush=True)\ninput()"
        account = pwd.getpwuid(self.root.stat().st_uid)
        # The group, too, or the server's user may not look at the process.
        groups: dict[str, Any] = {"group": account.pw_gid, "extra_groups": []} if server_user() else {}
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            user=account.pw_uid,
            **groups,
            cwd="/",
        )
        assert child.stdout is not None
        child.stdout.readline()
        self._strangers.append(child)
        return child.pid

    def destroy(self) -> None:
        """Leave nothing."""
        self.kill_all()
        for child in self._strangers:
            child.kill()
            child.communicate()
        for name in self.segments():
            (place.SHM_DIR / name).unlink()
        shutil.rmtree(self.root)
