"""The form `processes`: kill -9 and SIGSTOP of every part, of backends, and of whole nodes."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from pgraft.postgres.process import ProcessRef, identify
from tests.soak import clients
from tests.soak.field import PARTS, Field, send
from tests.soak.form import Fault, Form, Struck
from tests.support.pgcluster import Failed, Node

FREEZE_MIN, FREEZE_MAX = 1.1, 4.5
"""Election timeouts: longer than one. Others may take two to take over, and should have led for a while."""
WITHOUT_SUPERVISOR_S = 2.0
DOWN_S = 2.0
START_WAIT_S = 90
RING_WAIT_S = 3.0
"""How long to try to stop a backend that holds the ring's lock."""
RING_PAUSE_S = 0.004
RING_ENTRY_CHARACTERS = 400_000
RING_CLIENT = -2


class KillPart(Fault):
    """kill -9 of one part of a node; the supervisor starts it again."""

    weight = 4

    def __init__(self, part: str) -> None:
        self.part = part
        self.kind = f"kill {part}"

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node = field.choose(chance)
        ref = field.part(node, self.part)
        if ref is None or not send(ref, signal.SIGKILL):
            return None
        return Struck(f"{self.part} of {node.name}")


class KillSupervisor(Fault):
    """kill -9 of the supervisor; a while later `pgraft-launch start` takes over."""

    kind = "kill supervisor"
    weight = 3

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, lasts_s = field.choose(chance), chance.uniform(0, WITHOUT_SUPERVISOR_S)
        if not field.claim((node.name, "supervisor")):
            return None
        ref = field.part(node, "supervisor")
        if ref is None or not send(ref, signal.SIGKILL):
            field.release((node.name, "supervisor"))
            return None

        def mend() -> None:
            try:
                start(node)
            finally:
                field.release((node.name, "supervisor"))

        return Struck(f"supervisor of {node.name}", lasts_s, mend)


class KillNode(Fault):
    """kill -9 of all parts of a node at once; it is started again."""

    kind = "kill node"
    weight = 1

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, lasts_s = field.choose(chance), chance.uniform(0, DOWN_S)
        if not field.claim((node.name, "supervisor")):
            return None
        refs = [field.part(node, part) for part in PARTS]
        for ref in [*refs, *field.backends(node)]:
            if ref is not None:
                send(ref, signal.SIGKILL)

        def mend() -> None:
            try:
                start(node)
            finally:
                field.release((node.name, "supervisor"))

        return Struck(node.name, lasts_s, mend)


class FreezePart(Fault):
    """SIGSTOP of one part for longer than the election timeout, then SIGCONT."""

    weight = 3

    def __init__(self, part: str) -> None:
        self.part = part
        self.kind = f"freeze {part}"

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node = field.choose(chance)
        lasts_s = chance.uniform(FREEZE_MIN, FREEZE_MAX) * field.election_timeout_s
        return freeze(field, field.part(node, self.part), f"{self.part} of {node.name}", lasts_s)


class FreezeBackend(Fault):
    """SIGSTOP of one session's backend."""

    kind = "freeze backend"
    weight = 2

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, which = field.choose(chance), chance.random()
        lasts_s = chance.uniform(FREEZE_MIN, FREEZE_MAX) * field.election_timeout_s
        return freeze(field, pick(field.backends(node), which), f"a backend of {node.name}", lasts_s)


class SignalBackend(Fault):
    """A signal to one session's backend. After a kill -9 PostgreSQL ends all others and recovers; SIGTERM is
    what pg_terminate_backend() sends."""

    def __init__(self, kind: str, number: signal.Signals, weight: int) -> None:
        self.kind = kind
        self.weight = weight
        self._number = number

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, which = field.choose(chance), chance.random()
        ref = pick(field.backends(node), which)
        if ref is None or not send(ref, self._number):
            return None
        return Struck(f"a backend of {node.name}")


class KillInRing(Fault):
    """kill -9 of a backend that holds the lock of the command ring, in the middle of its write.

    A session sends the largest entries, again and again, and its backend is stopped at whatever moment; if
    it holds the lock then, it is killed, else it goes on.
    """

    kind = "kill backend in a ring write"
    weight = 2

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, key = field.choose(chance), f"ring.{chance.randrange(10**12)}"
        try:
            session = node.connect()
        except psycopg.OperationalError:
            return None
        with session:
            ref = identify(session.info.backend_pid)
            over = threading.Event()
            sender = threading.Thread(target=self._send, args=(field, node, session, key, over), daemon=True)
            sender.start()
            hit = ref is not None and self._hit(field, node, ref, chance)
            over.set()
            sender.join()
        return Struck(f"a backend of {node.name}") if hit else None

    def _hit(self, field: Field, node: Node, ref: ProcessRef, chance: random.Random) -> bool:
        pauses = random.Random(chance.random())
        end = time.monotonic() + RING_WAIT_S
        while time.monotonic() < end and send(ref, signal.SIGSTOP):
            field.await_stopped(ref)
            if field.watch.ring_owner(node.node_id) == ref.pid:
                return send(ref, signal.SIGKILL)
            send(ref, signal.SIGCONT)
            time.sleep(pauses.uniform(0, RING_PAUSE_S))
        return False

    def _send(
        self, field: Field, node: Node, session: psycopg.Connection[Any], key: str, over: threading.Event
    ) -> None:
        with contextlib.suppress(psycopg.OperationalError):
            session.execute("SET pgraft.forward_proposals = on")
        number = 0
        while not session.closed and not over.is_set():
            number += 1
            command = clients.send(session, RING_CLIENT, node, f"{key}.{number}", RING_ENTRY_CHARACTERS)
            field.history.commands.append(command)


def pick(refs: Sequence[ProcessRef], which: float) -> ProcessRef | None:
    """One of them; `which` is in [0, 1)."""
    return refs[int(which * len(refs))] if refs else None


def freeze(field: Field, ref: ProcessRef | None, what: str, lasts_s: float) -> Struck | None:
    """Stop this process; the mending lets it go on."""
    if ref is None or not field.claim(ref):
        return None
    if not send(ref, signal.SIGSTOP):
        field.release(ref)
        return None

    def mend() -> None:
        send(ref, signal.SIGCONT)
        field.release(ref)

    return Struck(what, lasts_s, mend)


def start(node: Node, command: str = "start") -> None:
    """`pgraft-launch start`, as somebody does who sees that the node is not looked after. Raises Failed."""
    end = time.monotonic() + START_WAIT_S
    while True:
        done = node.launch(command, "-l", str(node.log), ok=False)
        if done.returncode == 0:
            return
        if time.monotonic() > end:
            raise Failed(f"{command} of {node.name}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")


class Processes(Form):
    """Nodes on loopback, and kills and freezes."""

    name = "processes"

    def faults(self) -> Sequence[Fault]:
        """See Form."""
        parts = ("worker", "network", "postmaster")
        return (
            *map(KillPart, parts),
            KillSupervisor(),
            KillNode(),
            SignalBackend("kill backend", signal.SIGKILL, weight=2),
            KillInRing(),
            SignalBackend("terminate backend", signal.SIGTERM, weight=1),
            *map(FreezePart, PARTS),
            FreezeBackend(),
        )

    def calm(self, field: Field) -> None:
        """A node whose supervisor went down with what it looked after is started again."""
        for node in field.nodes:
            if field.part(node, "supervisor") is None:
                start(node)
