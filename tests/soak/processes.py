"""The form `processes`: kill -9 and SIGSTOP of every part, of backends, and of whole nodes."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence

from pgraft.postgres.process import ProcessRef
from tests.soak.field import PARTS, Field, send
from tests.soak.form import Fault, Form, Struck
from tests.support.pgcluster import Failed, Node

FREEZE_MIN, FREEZE_MAX = 1.1, 3.0
"""Election timeouts: longer than one, so that others take over."""
WITHOUT_SUPERVISOR_S = 2.0
DOWN_S = 2.0
START_WAIT_S = 90
RING_WAIT_S = 0.5
"""How long to wait for a backend to hold the ring's lock."""


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


class KillBackend(Fault):
    """kill -9 of one session's backend: PostgreSQL ends all others and recovers."""

    kind = "kill backend"
    weight = 2

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node, which = field.choose(chance), chance.random()
        ref = pick(field.backends(node), which)
        if ref is None or not send(ref, signal.SIGKILL):
            return None
        return Struck(f"a backend of {node.name}")


class KillInRing(Fault):
    """kill -9 of a backend that holds the lock of the command ring, in the middle of its write.

    It is stopped when it is seen to hold the lock, and killed if it still does then.
    """

    kind = "kill backend in a ring write"
    weight = 2

    def strike(self, field: Field, chance: random.Random) -> Struck | None:
        """See Fault."""
        node = field.choose(chance)
        end = time.monotonic() + RING_WAIT_S
        while time.monotonic() < end:
            ref = field.ring_owner(node)
            if ref is None or not send(ref, signal.SIGSTOP):
                continue
            field.await_stopped(ref)
            if field.ring_owner(node) == ref:
                send(ref, signal.SIGKILL)
                return Struck(f"a backend of {node.name}")
            send(ref, signal.SIGCONT)
        return None


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


def start(node: Node) -> None:
    """`pgraft-launch start`, as somebody does who sees that the node is not looked after. Raises Failed."""
    end = time.monotonic() + START_WAIT_S
    while True:
        done = node.start(ok=False)
        if done.returncode == 0:
            return
        if time.monotonic() > end:
            raise Failed(f"start of {node.name}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")


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
            KillBackend(),
            KillInRing(),
            *map(FreezePart, PARTS),
            FreezeBackend(),
        )

    def calm(self, field: Field) -> None:
        """A node whose supervisor went down with what it looked after is started again."""
        for node in field.nodes:
            if field.part(node, "supervisor") is None:
                start(node)
