"""One soak: a cluster, clients, faults from a seed, and the checks."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.soak.checker import check
from tests.soak.clients import Auditor, Client, Reader, Writer, read_log, send_one
from tests.soak.field import Field
from tests.soak.form import Fault, Form, Struck
from tests.soak.history import History, Result
from tests.soak.watch import Watch
from tests.support import pgcluster
from tests.support.pgcluster import Cluster, Failed, eventually

HEALED_WAIT_S = 90
"""After the faults end: all nodes up and agreed."""
MEND_WAIT_S = 150
CLIENT_WAIT_S = 60
PROGRESS_S = 10
SHOWN_MAX = 20


class Plan(NamedTuple):
    """What to run."""

    seconds: float
    seed: int
    nodes: int = 3
    writers: int = 4
    write_pause_s: float = 0.01
    read_pause_s: float = 0.04
    audit_pause_s: float = 5.0
    election_timeout_ms: int = 1000
    major: int = 18


class Report(msgspec.Struct):
    """What came of it."""

    form: str
    seed: int
    nodes: int
    seconds: float = 0
    faults: dict[str, int] = {}
    missed: dict[str, int] = {}
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_in_log: int = 0
    readings: int = 0
    entries: int = 0
    terms: int = 0
    elections: int = 0
    gaps: int = 0
    longest_without_leader_s: float = 0
    own: dict[str, int | float | str] = {}
    violations: list[str] = []
    directory: str = ""

    def text(self) -> str:
        """For people."""
        lines = [
            f"form {self.form}, seed {self.seed}, {self.nodes} nodes, {self.seconds:.0f} s of faults",
            f"  faults: {sum(self.faults.values())} ({_counts(self.faults)})",
            f"  not possible at their moment: {_counts(self.missed) or 'none'}",
            f"  entries acknowledged {self.acknowledged}, refused {self.refused}, unknown {self.unknown}"
            f" ({self.unknown_in_log} of them in the log); {self.entries} indexes; {self.readings} readings",
            f"  {self.terms} terms, {self.elections} with a leader; {self.gaps} times without a leader,"
            f" the longest {self.longest_without_leader_s:.2f} s",
        ]
        lines += [f"  {name}: {value}" for name, value in self.own.items()]
        lines += [f"VIOLATION {text}" for text in self.violations[:SHOWN_MAX]]
        lines.append(f"{len(self.violations)} violations")
        return "\n".join(lines)


class Soak:
    """One run. `say` gets lines of progress."""

    def __init__(self, form: Form, plan: Plan, home: Path, say: Callable[[str], None] = print) -> None:
        self._form = form
        self._plan = plan
        self._say = say
        self._home = home
        self._over = threading.Event()
        self._mends: list[threading.Timer] = []
        self._struck: Counter[str] = Counter()
        self._missed: Counter[str] = Counter()
        self._violations: list[str] = []
        self._last = ""
        self.history = History()

    def run(self, field: Field) -> Report:
        """On a running cluster: faults for as long as planned, then the checks."""
        clients = self._clients(field)
        started = time.monotonic()
        first_term = _term(field)
        for client in clients:
            client.start()
        try:
            self._strike_all(field, started + self._plan.seconds, clients)
            seconds = time.monotonic() - started
            self._mend_all(field)
        finally:
            self._over.set()
        self._end(clients)
        self._heal(field)
        report = self._report(field, seconds)
        report.terms = _term(field) - first_term
        return report

    def _clients(self, field: Field) -> list[Client]:
        plan, history, over = self._plan, self.history, self._over
        clients: list[Client] = [
            Writer(field, history, number, plan.seed, plan.write_pause_s, over)
            for number in range(plan.writers)
        ]
        clients += [Reader(field, history, node, plan.read_pause_s, over) for node in field.nodes]
        clients.append(Auditor(field, history, plan.seed, plan.audit_pause_s, over))
        return clients

    # --- faults -------------------------------------------------------------------------------------------

    def _strike_all(self, field: Field, end: float, clients: list[Client]) -> None:
        faults = list(self._form.faults())
        weights = [fault.weight for fault in faults]
        number, shown = 0, time.monotonic()
        while not self._violations:
            # A generator for each fault: what one draws does not move the others.
            chance = random.Random(f"{self._plan.seed}/{number}")
            number += 1
            wait_until = time.monotonic() + chance.uniform(*self._form.pause_s)
            if wait_until > end:
                return
            time.sleep(max(0.0, wait_until - time.monotonic()))
            self._strike(chance.choices(faults, weights)[0], field, chance)
            self._look(field, clients)
            if time.monotonic() - shown >= PROGRESS_S:
                shown = time.monotonic()
                self._progress(field, end - shown)

    def _strike(self, fault: Fault, field: Field, chance: random.Random) -> None:
        struck = fault.strike(field, chance)
        if struck is None:
            self._missed[fault.kind] += 1
            return
        self._struck[fault.kind] += 1
        self._last = f"{fault.kind}: {struck.what}"
        timer = threading.Timer(struck.lasts_s, self._mend, (fault, struck))
        timer.daemon = True
        self._mends = [one for one in self._mends if one.is_alive()] + [timer]
        timer.start()

    def _mend(self, fault: Fault, struck: Struck) -> None:
        try:
            struck.mend()
        except BaseException as error:  # noqa: BLE001 - becomes a violation
            self._violations.append(f"mending {fault.kind} ({struck.what}): {error}")

    def _look(self, field: Field, clients: list[Client]) -> None:
        self._violations += [f"two leases at a time: {text}" for text in field.watch.double]
        for client in clients:
            if client.failure is not None:
                self._violations.append(f"{client.name} failed: {client.failure!r}")

    def _mend_all(self, field: Field) -> None:
        end = time.monotonic() + MEND_WAIT_S
        for timer in self._mends:
            timer.join(max(0.0, end - time.monotonic()))
            if timer.is_alive():
                self._violations.append(f"a fault was not mended within {MEND_WAIT_S} s")
        self._form.calm(field)

    def _end(self, clients: list[Client]) -> None:
        for client in clients:
            client.join(CLIENT_WAIT_S)
            if client.is_alive():
                self._violations.append(f"{client.name} is still waiting after {CLIENT_WAIT_S} s")
            elif client.failure is not None:
                self._violations.append(f"{client.name} failed: {client.failure!r}")

    def _heal(self, field: Field) -> None:
        """No more faults: the cluster agrees within a bounded time, and its logs can be read."""
        try:
            field.cluster.wait_agreed(timeout=HEALED_WAIT_S)
            self.history.commands.append(send_one(field.cluster.wait_leader(), f"{self._plan.seed}.end"))
            field.cluster.wait_agreed(timeout=HEALED_WAIT_S)
        except Failed as error:
            self._violations.append(f"after the faults: {error}")

    # --- the end ------------------------------------------------------------------------------------------

    def _progress(self, field: Field, left_s: float) -> None:
        told = Counter(command.result for command in list(self.history.commands))
        self._say(
            f"{left_s:6.0f} s left: {sum(self._struck.values())} faults (last: {self._last}),"
            f" {told[Result.OK]} acknowledged, {told[Result.UNKNOWN]} unknown,"
            f" {told[Result.ERROR]} refused, leader {field.watch.leader}, longest without one"
            f" {max(field.watch.longest_gap_s, field.watch.without_s()):.2f} s"
        )

    def _read_logs(self, field: Field) -> None:
        for node in field.nodes:
            self._say(f"reading the log of {node.name}")
            self.history.entries += read_log(node)

    def _report(self, field: Field, seconds: float) -> Report:
        self._say("reading the logs")
        self._read_logs(field)
        self.history.save(self._home / "history.jsonl")
        self._violations += [str(violation) for violation in check(self.history)]
        told = Counter(command.result for command in self.history.commands)
        there = {entry.key for entry in self.history.entries}
        unknown = [one for one in self.history.commands if one.result is Result.UNKNOWN]
        return Report(
            form=self._form.name,
            seed=self._plan.seed,
            nodes=self._plan.nodes,
            seconds=seconds,
            faults=dict(sorted(self._struck.items())),
            missed=dict(sorted(self._missed.items())),
            acknowledged=told[Result.OK],
            refused=told[Result.ERROR],
            unknown=len(unknown),
            unknown_in_log=sum(one.key in there for one in unknown),
            readings=len(self.history.readings),
            entries=max((entry.index for entry in self.history.entries), default=0),
            elections=len({one.term for one in self.history.readings if one.is_leader}),
            gaps=field.watch.gaps,
            longest_without_leader_s=field.watch.longest_gap_s,
            own=self._form.report(),
            violations=self._violations,
        )


def soak(form: Form, plan: Plan, template: Path | None = None, say: Callable[[str], None] = print) -> Report:
    """Run it all; the folder of a failing run stays, and the report names it."""
    home = Path(tempfile.mkdtemp(prefix="pgraft-soak-", dir="/var/tmp"))
    home.chmod(0o755)
    failed = True
    try:
        with form.open(plan.nodes, plan.seed, home), _cluster(form, plan, template, home) as cluster:
            watch = Watch(cluster.nodes)
            try:
                eventually(lambda: watch.leader, "a lease")
                report = Soak(form, plan, home, say).run(Field(cluster, watch, plan.election_timeout_ms))
            finally:
                watch.close()
            failed = bool(report.violations)
            if failed:
                shutil.copytree(cluster.root, home / "cluster", ignore=_sockets)
    finally:
        if not failed:
            shutil.rmtree(home, ignore_errors=True)
        else:
            say(f"what is left of the run is in {home}; to repeat: {repeat(form, plan)}")
    if failed:
        report.directory = str(home)
    return report


def repeat(form: Form, plan: Plan) -> str:
    """The command that runs the same again."""
    return f"make soak FORM={form.name} SEED={plan.seed} NODES={plan.nodes} MINUTES={plan.seconds / 60:g}"


@contextlib.contextmanager
def _cluster(form: Form, plan: Plan, template: Path | None, home: Path) -> Iterator[Cluster]:
    made = Path(tempfile.mkdtemp(prefix="pgraft-template-", dir="/var/tmp"))
    made.chmod(0o755)
    settings = {
        "election_timeout": str(plan.election_timeout_ms),
        "heartbeat_interval": str(plan.election_timeout_ms // 10),
        "log_keep_entries": "100000000",
    } | form.settings()
    try:
        template = template or pgcluster.make_template(plan.major, made)
        with pgcluster.cluster(template, 0, major=plan.major, place=form.place, **settings) as cluster:
            cluster.up(plan.nodes, form.prepare)
            yield cluster
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]


def _term(field: Field) -> int:
    return max(int(node.status()["term"]) for node in field.nodes)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())
