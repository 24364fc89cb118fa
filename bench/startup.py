"""Start of a node with many entries in its log: a cluster of one, filled while it is stopped."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from bench.cluster import Node, environment, launch, start_node, wait_for
from bench.etcd import free_ports
from bench.samples import BenchError

STARTS = 3
RUNNING_WAIT_S = 30
FILL_WAIT_S = 600


def measure(root: Path, entries: int, pg_config: str | None, owner: int) -> dict[str, float]:
    """Seconds of `pgraft-launch start`, the worst of a few: with an empty log, then with a full one.

    `entries` are of 100 bytes. `owner` is the uid that the node runs as when this is run by root.
    """
    pgdata = root / "solo"
    _init(pgdata, pg_config, owner)
    try:
        empty = [_start_and_stop(pgdata, 0) for _ in range(STARTS)]
        _fill(pgdata, entries, owner)
        full = [_start_and_stop(pgdata, entries) for _ in range(STARTS)]
    finally:
        _stop_if_running(pgdata)
    return {"entries": float(entries), "empty": max(empty), "full": max(full)}


def _init(pgdata: Path, pg_config: str | None, owner: int) -> None:
    raft_port, pg_port = free_ports(2)
    arguments = ["-D", str(pgdata), "--name", "solo", "--initial-cluster", f"solo=127.0.0.1:{raft_port}"]
    arguments += ["--pg-port", str(pg_port)]
    if pg_config:
        arguments += ["--pg-config", pg_config]
    if os.geteuid() == 0:
        arguments += ["--user", pwd.getpwuid(owner).pw_name]
    launch("init", *arguments)


def _start_and_stop(pgdata: Path, entries: int) -> float:
    begun = time.monotonic()
    start_node(str(pgdata))
    took = time.monotonic() - begun
    node = _node(pgdata)
    if node.state != "running":
        raise BenchError(f"pgraft-launch start came back with the worker in state {node.state}")

    def all_there() -> bool | None:
        return True if (_node(pgdata).commit_index or 0) >= entries else None

    wait_for(f"{entries} committed entries after the start", RUNNING_WAIT_S, all_there)
    launch("stop", "-D", str(pgdata), "-m", "fast")
    return took


def _stop_if_running(pgdata: Path) -> None:
    if _node(pgdata).pids.get("supervisor"):
        launch("stop", "-D", str(pgdata), "-m", "immediate")


def _node(pgdata: Path) -> Node:
    return msgspec.convert(_status(pgdata), Node)


def _status(pgdata: Path) -> dict[str, object]:
    # Exit status 3 says "not running", as pg_ctl's: the object is printed all the same.
    printed = launch("status", "-D", str(pgdata), "--json", accept=(0, 3))
    status = json.loads(printed)
    if not isinstance(status, dict):
        raise BenchError("pgraft-launch status --json printed no object")
    return status


def _fill(pgdata: Path, entries: int, owner: int) -> None:
    raft_dir = str(_status(pgdata)["raft_data_dir"])
    # By standard input: the node's user may not be allowed to read this source tree.
    script = Path(__file__).with_name("fill.py").read_text()
    command = [sys.executable, "-", raft_dir, str(entries)]
    identity = {"user": owner, "group": pwd.getpwuid(owner).pw_gid} if os.geteuid() == 0 else {}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        input=script,
        cwd="/",
        env=environment(),
        timeout=FILL_WAIT_S,
        check=False,
        **identity,  # type: ignore[call-overload]
    )
    if done.returncode != 0:
        raise BenchError(f"cannot fill {raft_dir}: {done.stderr.strip().splitlines()[-1:]}")
