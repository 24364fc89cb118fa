"""The reference: three etcd members on loopback, loaded by h2load with gRPC puts.

A gRPC put is an HTTP/2 POST to /etcdserverpb.KV/Put whose body is one zero byte (not compressed),
the message's length in 4 bytes, big-endian, and the protobuf PutRequest. gRPC reports a failed call
with HTTP status 200 and a trailer that h2load does not look at, so each run is checked against the
store's revision, which grows by one with every put.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench.samples import BenchError, Request

MEMBERS = 3
START_WAIT_S = 30.0
STOP_WAIT_S = 10.0
HTTP_WAIT_S = 5.0
LOAD_EXTRA_WAIT_S = 60.0
KEY = b"pgraft-bench"
PUT_PATH = "/etcdserverpb.KV/Put"


def is_installed() -> bool:
    """Whether both the server and the load generator can be found."""
    return shutil.which("etcd") is not None and shutil.which("h2load") is not None


def version() -> str:
    """etcd's own version, as its first line of --version gives it."""
    done = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].partition(":")[2].strip() if done.stdout else "unknown"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def put_body(key: bytes, value: bytes) -> bytes:
    """The gRPC frame of PutRequest{key = 1, value = 2}."""
    message = b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(len(value)) + value
    return b"\x00" + len(message).to_bytes(4, "big") + message


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in taken]


class EtcdCluster:
    """Three members under `root`, started and stopped together; their data outlives a stop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)
        ports = free_ports(2 * MEMBERS)
        self.client_urls = [f"http://127.0.0.1:{port}" for port in ports[:MEMBERS]]
        self.peer_urls = [f"http://127.0.0.1:{port}" for port in ports[MEMBERS:]]
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all members and wait until they agree on a leader."""
        initial = ",".join(f"m{i}={url}" for i, url in enumerate(self.peer_urls))
        for i in range(MEMBERS):
            with (self.root / f"m{i}.log").open("ab") as log:
                self.processes.append(
                    subprocess.Popen(self._command(i, initial), stdout=log, stderr=log, cwd=self.root)
                )
        self._wait_for_leader()

    def _command(self, i: int, initial: str) -> list[str]:
        return [
            "etcd",
            f"--name=m{i}",
            f"--data-dir={self.root}/m{i}",
            f"--listen-client-urls={self.client_urls[i]}",
            f"--advertise-client-urls={self.client_urls[i]}",
            f"--listen-peer-urls={self.peer_urls[i]}",
            f"--initial-advertise-peer-urls={self.peer_urls[i]}",
            f"--initial-cluster={initial}",
            "--log-level=error",
        ]

    def _wait_for_leader(self) -> None:
        deadline = time.monotonic() + START_WAIT_S
        while time.monotonic() < deadline:
            for i, process in enumerate(self.processes):
                if process.poll() is not None:
                    raise BenchError(f"etcd member m{i} ended at its start: see {self.root}/m{i}.log")
            with contextlib.suppress(BenchError):
                self.leader_url()
                self.revision()
                return
            time.sleep(0.1)
        raise BenchError(f"etcd has no leader after {START_WAIT_S:.0f} s: see {self.root}/m0.log")

    def stop(self) -> None:
        """Stop all members; the data stays."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def leader_url(self) -> str:
        """The client URL of the leader, as all members see it."""
        statuses = [_call(url, "/v3/maintenance/status", {}) for url in self.client_urls]
        leaders = {str(status.get("leader", "0")) for status in statuses}
        leader = leaders.pop() if len(leaders) == 1 else "0"
        for url, status in zip(self.client_urls, statuses, strict=True):
            header = status["header"]
            if leader != "0" and isinstance(header, dict) and header["member_id"] == leader:
                return url
        raise BenchError("etcd's members do not agree on a leader")

    def revision(self) -> int:
        """The store's revision, read through consensus: it counts the puts."""
        answer = _call(self.client_urls[0], "/v3/kv/range", {"key": "AA=="})
        header = answer["header"]
        if not isinstance(header, dict):
            raise BenchError("etcd's answer to a range has no header")
        return int(header["revision"])

    def load(self, clients: int, seconds: float, warm_up_s: float, value_bytes: int) -> list[Request]:
        """Put `value_bytes` from `clients` clients at the leader, one request in flight each.

        Returns every request that ended, warm-up included, after checking that the puts are in the store.
        """
        body, log = self.root / "put.body", self.root / "h2load.log"
        body.write_bytes(put_body(KEY, b"x" * value_bytes))
        log.unlink(missing_ok=True)
        before = self.revision()
        command = [
            *("h2load", "-c", str(clients), "-m", "1", "-t", "1"),
            *("-D", f"{warm_up_s + seconds:.0f}", "-d", str(body), f"--log-file={log}"),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            self.leader_url() + PUT_PATH,
        ]
        wait_s = warm_up_s + seconds + LOAD_EXTRA_WAIT_S
        done = subprocess.run(command, capture_output=True, text=True, timeout=wait_s, check=False)
        if done.returncode != 0:
            raise BenchError(f"h2load failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
        requests = read_h2load_log(log)
        _check_stored(len(requests), self.revision() - before, clients)
        return requests


def _check_stored(requests: int, stored: int, clients: int) -> None:
    # h2load leaves up to one request a client unfinished at its end; those may be stored, too.
    if not requests <= stored <= requests + clients:
        raise BenchError(f"h2load counted {requests} puts, etcd's revision grew by {stored}")


def read_h2load_log(path: Path) -> list[Request]:
    """The requests with a 2xx status in h2load's --log-file: start (us), status, time taken (us)."""
    requests = []
    for line in path.read_text().splitlines():
        start, status, took = line.split("\t")[:3]
        if status.startswith("2"):
            requests.append(Request(end_us=int(start) + int(took), took_us=int(took)))
    return requests


def _call(url: str, path: str, body: dict[str, str]) -> dict[str, object]:
    """One call of etcd's JSON gateway."""
    request = urllib.request.Request(url + path, data=json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=HTTP_WAIT_S) as answer:
            decoded = json.load(answer)
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise BenchError(f"etcd does not answer at {url}{path}: {error}") from error
    if not isinstance(decoded, dict):
        raise BenchError(f"etcd's answer at {url}{path} is no object")
    return decoded


def file_system(path: Path) -> str:
    """Type and mount point of the file system that `path` lies on, as "ext4 on /"."""
    best = ("", "unknown")
    real = os.path.realpath(path)
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind = line.split()[:3]
        if (real + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best[0]):
            best = (mount, kind)
    return f"{best[1]} on {best[0]}"
