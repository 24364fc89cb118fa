"""One soak: a cluster, clients, faults from a seed, and the checks."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec
import psycopg

from tests.soak import health
from tests.soak.checker import check
from tests.soak.clients import Auditor, Client, Reader, Writer, read_log, send_one
from tests.soak.field import PARTS, Field
from tests.soak.form import Form
from tests.soak.history import History, Result
from tests.soak.report import Report
from tests.soak.striker import Striker
from tests.soak.watch import Watch
from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Failed, Node, eventually

HEALED_WAIT_S = 90
"""After the faults end: all parts of all nodes there, and agreed on a leader."""
CLIENT_WAIT_S = 60
PROGRESS_S = 10


class Plan(NamedTuple):
    """What to run."""

    seconds: float
    seed: int
    nodes: int = 3
    writers: int = 4
    write_pause_s: float = 0.01
    read_pause_s: float = 0.04
    audit_pause_s: float = 5.0
    calm_s: float = 15.0
    """Load without faults, before and after: what is held then is compared."""
    election_timeout_ms: int = 1000
    major: int = 18


class Soak:
    """One run. `say` gets lines of progress."""

    def __init__(self, form: Form, plan: Plan, home: Path, say: Callable[[str], None]) -> None:
        self._form = form
        self._plan = plan
        self._say = say
        self._home = home
        self._striker = Striker(form, plan.seed)
        self._over = threading.Event()
        self._clients: list[Client] = []
        self._violations: list[str] = []
        self.history = History()

    def run(self, cluster: Cluster, watch: Watch) -> Report:
        """On a running cluster, which is stopped at the end: faults for as long as planned, then checks."""
        field = Field(cluster, watch, self.history, self._plan.election_timeout_ms)
        self._clients = self._make_clients(field)
        for client in self._clients:
            client.start()
        try:
            report = self._under_load(field)
        finally:
            self._over.set()
        self._end_clients()
        self._agree(field)
        self._finish(field, report)
        watch.close()
        self._violations += health.check_stopped(cluster)
        report.violations = self._violations
        return report

    def _make_clients(self, field: Field) -> list[Client]:
        plan, history, over = self._plan, self.history, self._over
        clients: list[Client] = [
            Writer(field, history, number, plan.seed, plan.write_pause_s, over)
            for number in range(plan.writers)
        ]
        clients += [Reader(field, history, node, plan.read_pause_s, over) for node in field.nodes]
        clients.append(Auditor(field, history, plan.seed, plan.audit_pause_s, over))
        return clients

    # --- under load ---------------------------------------------------------------------------------------

    def _under_load(self, field: Field) -> Report:
        plan = self._plan
        time.sleep(plan.calm_s)  # a steady state is a time, not an event
        at_start = health.survey(field)
        entries_before = len(self.history.commands)
        started = time.monotonic()
        self._strike_all(field, started + plan.seconds)
        report = Report(form=self._form.name, seed=plan.seed, nodes=plan.nodes)
        report.seconds = time.monotonic() - started
        self._striker.mend_all(field)
        if self._heal(field):
            told = len(self.history.commands)
            time.sleep(plan.calm_s)
            if not any(one.result is Result.OK for one in self.history.commands[told:]):
                self._violations.append(f"no entry was acknowledged in {plan.calm_s} s after the faults")
            grown = len(self.history.commands) - entries_before
            at_end, wrong = health.compare(field, at_start, grown)
            self._violations += wrong
            report.held = {part: f"{held}; at the end {at_end[part]}" for part, held in at_start.items()}
        return report

    def _strike_all(self, field: Field, end: float) -> None:
        shown = time.monotonic()
        for _ in self._striker.strikes(field, end):
            self._look(field)
            if self._violations or self._striker.failures:
                return
            if time.monotonic() - shown >= PROGRESS_S:
                shown = time.monotonic()
                self._progress(field, end - shown)

    def _look(self, field: Field) -> None:
        self._violations += [f"two leases at a time: {text}" for text in field.watch.double]
        for client in self._clients:
            if client.failure is not None:
                self._violations.append(f"{client.name} failed: {client.failure!r}")

    def _progress(self, field: Field, left_s: float) -> None:
        told = Counter(command.result for command in list(self.history.commands))
        without_s = max(field.watch.longest_gap_s, field.watch.without_s())
        self._say(
            f"{left_s:6.0f} s left: {sum(self._striker.struck.values())} faults (last: {self._striker.last}),"
            f" {told[Result.OK]} acknowledged, {told[Result.UNKNOWN]} unknown, {told[Result.ERROR]} refused,"
            f" leader {field.watch.leader}, longest without one {without_s:.2f} s"
        )

    def _heal(self, field: Field) -> bool:
        """No more faults: the cluster is whole within a bounded time, under load."""

        def is_whole() -> bool:
            pages = [node.status() for node in field.nodes]
            agreed = len({(page["leader"], page["term"]) for page in pages}) == 1 and pages[0]["leader"]
            there = all(field.part(node, part) for node in field.nodes for part in PARTS)
            return bool(agreed and there and all(page["state"] == "running" for page in pages))

        try:
            eventually(is_whole, "the cluster to be whole again", HEALED_WAIT_S)
            for node in field.nodes:
                eventually(lambda node=node: _answers(node), f"{node.name} to answer", HEALED_WAIT_S)  # type: ignore[misc]
        except Failed as error:
            self._violations.append(f"after the faults: {error}; {[node.status() for node in field.nodes]}")
            return False
        return True

    # --- the end ------------------------------------------------------------------------------------------

    def _end_clients(self) -> None:
        for client in self._clients:
            client.join(CLIENT_WAIT_S)
            if client.is_alive():
                self._violations.append(f"{client.name} is still waiting after {CLIENT_WAIT_S} s")
            elif client.failure is not None:
                self._violations.append(f"{client.name} failed: {client.failure!r}")

    def _agree(self, field: Field) -> None:
        """All logs end with the same entry."""
        try:
            leader = field.cluster.wait_agreed(timeout=HEALED_WAIT_S)
            self.history.commands.append(send_one(leader, f"{self._plan.seed}.end"))
            field.cluster.wait_agreed(timeout=HEALED_WAIT_S)
        except Failed as error:
            self._violations.append(f"after the load: {error}; {[node.status() for node in field.nodes]}")

    def _finish(self, field: Field, report: Report) -> None:
        self._violations += health.check_running(field)
        self._say("reading the logs")
        with ThreadPoolExecutor(len(field.nodes)) as pool:
            for entries in pool.map(read_log, field.nodes):
                self.history.entries += entries
        self.history.lives += field.watch.lives
        self.history.save(self._home / "history.jsonl")
        self._violations += [str(violation) for violation in check(self.history)]
        self._look(field)
        self._violations += self._striker.failures
        self._fill(field, report)

    def _fill(self, field: Field, report: Report) -> None:
        history = self.history
        told = Counter(command.result for command in history.commands)
        there = {entry.key for entry in history.entries}
        unknown = [one for one in history.commands if one.result is Result.UNKNOWN]
        report.faults = dict(sorted(self._striker.struck.items()))
        report.missed = dict(sorted(self._striker.missed.items()))
        report.acknowledged, report.refused = told[Result.OK], told[Result.ERROR]
        report.unknown, report.unknown_in_log = len(unknown), sum(one.key in there for one in unknown)
        report.readings = len(history.readings)
        report.entries = max((entry.index for entry in history.entries), default=0)
        report.elections = len({one.term for one in history.readings if one.is_leader})
        report.gaps = field.watch.gaps
        report.longest_without_leader_s = field.watch.longest_gap_s
        report.own = self._form.report()


def _answers(node: Node) -> bool:
    """Whether PostgreSQL takes a session."""
    with contextlib.suppress(psycopg.OperationalError):
        return node.sql("SELECT 1") == [(1,)]
    return False


def soak(form: Form, plan: Plan, template: Path | None = None, say: Callable[[str], None] = print) -> Report:
    """Run it all; the folder of a failing run stays, and the report names it."""
    home = Path(tempfile.mkdtemp(prefix="pgraft-soak-", dir="/var/tmp"))
    home.chmod(0o755)
    report: Report | None = None
    try:
        with form.open(plan.nodes, plan.seed, home), _cluster(form, plan, template) as cluster:
            watch = Watch(cluster.nodes)
            try:
                eventually(lambda: watch.leader, "a lease")
                report = Soak(form, plan, home, say).run(cluster, watch)
            finally:
                watch.close()
                if report is None or report.violations:
                    _keep(cluster, home)
            (home / "report.json").write_bytes(msgspec.json.encode(report))
    finally:
        if report is not None and not report.violations:
            shutil.rmtree(home, ignore_errors=True)
        else:
            say(f"what is left of the run is in {home}; to repeat: {repeat(form, plan)}")
    report.directory = str(home) if report.violations else ""
    return report


def repeat(form: Form, plan: Plan) -> str:
    """The command that runs the same again."""
    return f"make soak FORM={form.name} SEED={plan.seed} NODES={plan.nodes} MINUTES={plan.seconds / 60:g}"


@contextlib.contextmanager
def _cluster(form: Form, plan: Plan, template: Path | None) -> Iterator[Cluster]:
    made = Path(tempfile.mkdtemp(prefix="pgraft-template-", dir="/var/tmp"))
    made.chmod(0o755)
    settings = {
        "election_timeout": str(plan.election_timeout_ms),
        "heartbeat_interval": str(plan.election_timeout_ms // 10),
        "log_keep_entries": "100000000",
    } | form.settings()
    try:
        template = template or pgcluster.make_template(plan.major, made)
        with pgcluster.cluster(template, 0, major=plan.major, place=form.place) as cluster:
            cluster.settings |= {f"pgraft.{name}": value for name, value in settings.items()}
            cluster.up(plan.nodes, form.prepare)
            yield cluster
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _keep(cluster: Cluster, home: Path) -> None:
    """Logs and Raft state of every node; PostgreSQL's own data is of no interest."""
    names = [node.name for node in cluster.nodes]
    for path in cluster.root.iterdir():
        if path.name not in names and path.is_dir():
            shutil.copytree(path, home / path.name, ignore=_sockets)
        elif path.is_file():
            shutil.copy(path, home / path.name)


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]
