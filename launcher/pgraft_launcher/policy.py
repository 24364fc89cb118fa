"""What the supervisor does on which event. Pure: events and the time go in, actions come out.

The three parts of a node are PostgreSQL (its postmaster), the Raft worker and the network process.
The rules, from SPEC section 4, "Each part may die alone":

- worker or network process dead: started again at once, with growing pauses when it keeps dying;
  after FAILURES_MAX of them within FAILURE_WINDOW_S it is given up, loudly;
- exit code 3 of one of them is an error that trying again cannot cure: given up at once;
- postmaster crashed: the others go on, and it is started again once its backends are gone;
- postmaster stopped in an orderly way, by whomever: the node stops;
- anything of this during the node's first start: the start fails and everything is stopped.

A stop goes postmaster, worker, network process: sessions end first, so that nobody waits in vain. Before
that a leader hands leadership over, so that the cluster is not without one while PostgreSQL stops. The same
is asked of it when PostgreSQL is down and does not come back: it could lead, but nobody could ask it to.

What comes next (the role of PostgreSQL decided by consensus) belongs here as well.
"""

from __future__ import annotations

import enum
import signal
from typing import NamedTuple, assert_never

from pgraft.log import Level
from pgraft.shm.layout import Yields

RESTART_PAUSES_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 8.0)
"""Before the first, second, ... restart within the window; the last one holds from there on."""
FAILURE_WINDOW_S = 60.0
FAILURES_MAX = 10
"""Failures within the window that are answered by a restart; one more and the part is given up."""
BACKENDS_GRACE_S = 10.0
"""How long backends of a dead postmaster may take to end by themselves; then SIGQUIT, then SIGKILL."""
STOP_GRACE_S = 5.0
"""How long worker and network process may take to end; then SIGKILL."""
HAND_OVER_S = 1.0
"""How long a stop waits for the leader to have handed leadership over; then it goes on."""
POSTMASTER_FAILURES_MAX = 3
"""Failures of PostgreSQL within the window after which its node does not lead until it serves again."""
POSTMASTER_AWAY_S = 15.0
"""How long PostgreSQL may take to come back before the same."""
EXIT_PERMANENT = 3
"""Exit code of a worker or network process that must not be started again as things are."""


class Part(enum.Enum):
    """A process that the supervisor keeps."""

    POSTMASTER = "postmaster"
    WORKER = "worker"
    NETWORK = "network"


TITLES = {Part.POSTMASTER: "PostgreSQL", Part.WORKER: "Raft worker", Part.NETWORK: "network process"}
_RUNTIME = (Part.WORKER, Part.NETWORK)


class StopMode(enum.Enum):
    """pg_ctl's modes, in rising order of force."""

    SMART = "smart"
    FAST = "fast"
    IMMEDIATE = "immediate"


STOP_SIGNALS = {
    StopMode.SMART: signal.SIGTERM,
    StopMode.FAST: signal.SIGINT,
    StopMode.IMMEDIATE: signal.SIGQUIT,
}
_FORCE = tuple(StopMode)


class Life(enum.Enum):
    """Where a part stands."""

    DOWN = "down"
    PAUSED = "paused"  # dead, to be started again at `retry_at`
    DRAINING = "draining"  # postmaster dead, its backends not all gone
    RUNNING = "running"
    READY = "ready"  # running and able to serve
    GIVEN_UP = "given up"


class End(enum.Enum):
    """How a process ended, as far as the policy cares."""

    ORDERLY = "orderly"  # a postmaster that was asked to stop
    FAILED = "failed"
    PERMANENT = "permanent"


class Spawn(NamedTuple):
    """Start this part's process."""

    part: Part


class Kill(NamedTuple):
    """Send a signal to this part's process."""

    part: Part
    signal: signal.Signals


class AwaitBackends(NamedTuple):
    """Tell `backends_gone` as soon as no process of the dead postmaster is left."""


class KillBackends(NamedTuple):
    """Send a signal to what is left of the dead postmaster's backends."""

    signal: signal.Signals


class Yield(NamedTuple):
    """Tell the worker whether this node had better not lead."""

    yields: Yields


class Say(NamedTuple):
    """A line for the log."""

    level: Level
    text: str


class Started(NamedTuple):
    """The node serves: whoever waits for the start can go."""


class StartFailed(NamedTuple):
    """The start did not succeed, because of this part."""

    part: Part
    text: str
    is_stopping: bool


class GivenUp(NamedTuple):
    """This part is not started again; for `status` to show."""

    part: Part
    text: str


class Finish(NamedTuple):
    """Everything is down: clean up and leave with this code."""

    code: int


Action = Spawn | Kill | AwaitBackends | KillBackends | Yield | Say | Started | StartFailed | GivenUp | Finish


class _State:
    """One part's life, its recent failures and its timers (monotonic seconds)."""

    __slots__ = ("failures", "kill_at", "life", "retry_at")

    def __init__(self) -> None:
        self.life = Life.DOWN
        self.failures: list[float] = []
        self.retry_at = 0.0
        self.kill_at: float | None = None

    @property
    def is_alive(self) -> bool:
        return self.life in (Life.RUNNING, Life.READY)


class Policy:
    """The supervisor's decisions. An event comes with the time where that matters, and returns the actions,
    in order."""

    def __init__(self, yields: Yields = Yields.NO) -> None:
        self._yields = yields
        self._away_by: float | None = None
        self._hand_over_by: float | None = None
        self._parts = {part: _State() for part in Part}
        self._starting = True
        self._adopted = False
        self._stopping: StopMode | None = None
        self._exit_code = 0
        self._backends_at = 0.0
        self._backends_signal = signal.SIGQUIT
        self._finished = False

    # --- what others may ask ----------------------------------------------------------------------

    def life(self, part: Part) -> Life:
        """Where the part stands."""
        return self._parts[part].life

    @property
    def is_stopping(self) -> bool:
        """Whether the node is on its way down."""
        return self._stopping is not None

    def next_deadline(self) -> float | None:
        """When `tick` has something to do; None: nothing is due."""
        due = [state.retry_at for state in self._parts.values() if state.life is Life.PAUSED]
        due += [state.kill_at for state in self._parts.values() if state.kill_at is not None]
        if self._parts[Part.POSTMASTER].life is Life.DRAINING:
            due.append(self._backends_at)
        due += [at for at in (self._hand_over_by, self._away_by) if at is not None]
        return min(due, default=None)

    @property
    def is_handing_over(self) -> bool:
        """Whether a stop waits for `handed_over`."""
        return self._hand_over_by is not None

    def awaits_ready(self) -> list[Part]:
        """Parts that run and have not been seen ready."""
        return [part for part, state in self._parts.items() if state.life is Life.RUNNING]

    # --- events -------------------------------------------------------------------------------------

    def begin(self, now: float, adopted: frozenset[Part]) -> list[Action]:
        """Start the node; `adopted` parts live already, left by a supervisor that died."""
        self._adopted = bool(adopted)
        actions: list[Action] = []
        for part in (*_RUNTIME, Part.POSTMASTER):
            if part in adopted:
                self._parts[part].life = Life.RUNNING
            elif part is Part.POSTMASTER:
                actions += self._drain(now)
            else:
                actions += self._spawn(part)
        return actions

    def begin_stop(
        self, now: float, adopted: frozenset[Part], mode: StopMode, *, leads: bool = False
    ) -> list[Action]:
        """Stop a node whose supervisor died, without starting anything."""
        self._starting = False
        for part in adopted:
            self._parts[part].life = Life.READY
        return self.stop(mode, now, leads=leads)

    def ready(self, part: Part) -> list[Action]:
        """A running part serves now."""
        if self._parts[part].life is not Life.RUNNING:
            return []
        self._parts[part].life = Life.READY
        actions = self._serves_again() if part is Part.POSTMASTER else []
        if not self._starting or any(state.life is not Life.READY for state in self._parts.values()):
            return actions
        self._starting = False
        return [*actions, Started()]

    def exited(self, part: Part, end: End, how: str, now: float) -> list[Action]:
        """A part's process is gone; `how` says in words how it ended."""
        state = self._parts[part]
        state.life, state.kill_at = Life.DOWN, None
        if part is not Part.NETWORK and self._hand_over_by is not None:
            # Who was to hand over is gone, or what was to end has ended.
            return [*self.handed_over(), *self._ended(part, end, how, now)]
        return self._ended(part, end, how, now)

    def _ended(self, part: Part, end: End, how: str, now: float) -> list[Action]:
        if self._is_ending(part):
            return self._advance_stop(now)
        match end:
            case End.ORDERLY:
                return self._orderly(part, how, now)
            case End.PERMANENT:
                return self._permanent(part, how, now)
            case End.FAILED:
                return self._failed(part, how, now)
            case _:
                assert_never(end)

    def broken(self, part: Part, text: str) -> list[Action]:
        """A part runs but says that it cannot do its work: the start fails, and the node is left as it is.

        PostgreSQL is not harmed by it, and whoever repairs it wants to see it.
        """
        self._parts[part].life = Life.READY
        said = Say("ERROR", f"{TITLES[part]} reports an error: {text}")
        if not self._starting:
            return [said]
        self._starting = False
        return [said, StartFailed(part, text, False)]

    def backends_gone(self, now: float) -> list[Action]:
        """Nothing of the dead postmaster is left."""
        state = self._parts[Part.POSTMASTER]
        if state.life is not Life.DRAINING:
            return []
        if state.retry_at > now:
            state.life = Life.PAUSED
            return []
        return self._spawn(Part.POSTMASTER)

    def stop(self, mode: StopMode, now: float, *, leads: bool = False) -> list[Action]:
        """Stop the node; asked again, a stronger mode takes the place of a weaker one. `leads`: whether it
        holds the lease, which it then hands over first, but not in a hurry (immediate)."""
        if self._stopping is not None and _FORCE.index(mode) <= _FORCE.index(self._stopping):
            return []
        self._stopping, self._away_by = mode, None
        actions: list[Action] = [Say("LOG", f"received a request to stop the node, mode {mode.value}")]
        if self._starting:
            self._starting = False
            actions.append(StartFailed(Part.POSTMASTER, "the node was stopped while it was starting", True))
        if self._hand_over_by is not None and mode is not StopMode.IMMEDIATE:
            return actions
        if not self._parts[Part.POSTMASTER].is_alive:
            return actions + self._advance_stop(now)
        if leads and self._parts[Part.WORKER].is_alive and mode is not StopMode.IMMEDIATE:
            self._hand_over_by = now + HAND_OVER_S
            return [*actions, *self._yield(Yields.STOPPING)]
        self._hand_over_by = None
        return [*actions, Kill(Part.POSTMASTER, STOP_SIGNALS[mode])]

    def handed_over(self) -> list[Action]:
        """This node leads no more, or nobody can take over: the stop goes on."""
        if self._hand_over_by is None or self._stopping is None:
            return []
        self._hand_over_by = None
        if self._parts[Part.POSTMASTER].is_alive:
            return [Kill(Part.POSTMASTER, STOP_SIGNALS[self._stopping])]
        return []

    def tick(self, now: float) -> list[Action]:
        """Whatever has come due."""
        actions = self._tick_hand_over(now)
        for part, state in self._parts.items():
            if state.life is Life.PAUSED and state.retry_at <= now:
                # The backends were awaited before the pause began; new ones cannot have come.
                actions += self._spawn(part)
            if state.kill_at is not None and state.kill_at <= now:
                state.kill_at = now + STOP_GRACE_S
                actions.append(Say("WARNING", f"{TITLES[part]} does not end, killing it"))
                actions.append(Kill(part, signal.SIGKILL))
        if self._parts[Part.POSTMASTER].life is Life.DRAINING and self._backends_at <= now:
            actions += self._press_backends(now)
        return actions

    def _tick_hand_over(self, now: float) -> list[Action]:
        if self._away_by is not None and self._away_by <= now:
            self._away_by = None
            return self._yield(Yields.NOT_SERVING)
        if self._hand_over_by is not None and self._hand_over_by <= now:
            said = Say("WARNING", f"leadership was not handed over within {HAND_OVER_S:g} s, stopping anyway")
            return [said, *self.handed_over()]
        return []

    # --- whether this node should lead --------------------------------------------------------------

    def _yield(self, yields: Yields) -> list[Action]:
        if yields == self._yields or self._yields == Yields.STOPPING:
            return []
        self._yields = yields
        return [Yield(yields)]

    def _away(self, now: float) -> None:
        """PostgreSQL is down: it has some time to come back."""
        if self._away_by is None and self._yields == Yields.NO and not self._starting:
            self._away_by = now + POSTMASTER_AWAY_S

    def _serves_again(self) -> list[Action]:
        self._away_by = None
        return self._yield(Yields.NO)

    # --- starting and restarting ---------------------------------------------------------------------

    def _spawn(self, part: Part) -> list[Action]:
        self._parts[part].life = Life.RUNNING
        return [Spawn(part)]

    def _drain(self, now: float) -> list[Action]:
        """Before a postmaster starts, what an earlier one left behind must have gone."""
        self._parts[Part.POSTMASTER].life = Life.DRAINING
        self._backends_at = now + BACKENDS_GRACE_S
        self._backends_signal = signal.SIGQUIT
        return [AwaitBackends()]

    def _press_backends(self, now: float) -> list[Action]:
        sent = self._backends_signal
        self._backends_at = now + BACKENDS_GRACE_S
        self._backends_signal = signal.SIGKILL
        text = f"backends of the dead postmaster are still there, sending them {sent.name}"
        return [Say("WARNING", text), KillBackends(sent)]

    def _orderly(self, part: Part, how: str, now: float) -> list[Action]:
        if part is not Part.POSTMASTER:
            return self._failed(part, how, now)
        actions: list[Action] = [Say("LOG", "PostgreSQL was shut down, stopping the node")]
        if self._starting:
            self._starting = False
            self._exit_code = 1
            actions.append(StartFailed(part, f"{TITLES[part]} {how} while it was starting", True))
        self._stopping = StopMode.FAST
        return actions + self._advance_stop(now)

    def _permanent(self, part: Part, how: str, now: float) -> list[Action]:
        text = f"{TITLES[part]} {how}: it reports an error that a restart cannot cure"
        return self._give_up(part, text, now)

    def _failed(self, part: Part, how: str, now: float) -> list[Action]:
        text = f"{TITLES[part]} {how}"
        if part is Part.POSTMASTER and self._fails_start():
            return self._give_up(part, text, now)
        state = self._parts[part]
        state.failures = [at for at in state.failures if at > now - FAILURE_WINDOW_S]
        state.failures.append(now)
        count = len(state.failures)
        if count > FAILURES_MAX:
            return self._give_up(part, f"{text}, {count} times within {FAILURE_WINDOW_S:.0f} s", now)
        pause = RESTART_PAUSES_S[min(count, len(RESTART_PAUSES_S)) - 1]
        after = f" in {pause:g} s" if pause else ""
        said = Say("WARNING", f"{text}; starting it again{after} ({count} of {FAILURES_MAX})")
        state.retry_at = now + pause
        if part is Part.POSTMASTER:
            self._away(now)
            fails_often = count >= POSTMASTER_FAILURES_MAX and not self._starting
            yielded = self._yield(Yields.NOT_SERVING) if fails_often else []
            return [said, *yielded, *self._drain(now)]
        if pause:
            state.life = Life.PAUSED
            return [said]
        # First the new process, then the line about it: the lease runs.
        return [*self._spawn(part), said]

    def _fails_start(self) -> bool:
        """Whether a failure ends the start: yes, unless we took over a node that runs in part."""
        return self._starting and not self._adopted

    def _give_up(self, part: Part, text: str, now: float) -> list[Action]:
        self._parts[part].life = Life.GIVEN_UP
        actions: list[Action] = [Say("ERROR", f"{text}; giving it up"), GivenUp(part, text)]
        if not self._starting:
            return actions + (self._yield(Yields.NOT_SERVING) if part is Part.POSTMASTER else [])
        fails = self._fails_start()
        actions.append(StartFailed(part, text, fails))
        self._starting = False
        if fails:
            self._exit_code = 1
            self._stopping = StopMode.FAST
            if self._parts[Part.POSTMASTER].is_alive:
                actions.append(Kill(Part.POSTMASTER, STOP_SIGNALS[StopMode.FAST]))
            else:
                actions += self._advance_stop(now)
        return actions

    # --- stopping --------------------------------------------------------------------------------------

    def _is_ending(self, part: Part) -> bool:
        """Whether the end of this part is what a stop wants, and not a failure.

        In a smart stop sessions go on until they leave by themselves, and need worker and network.
        """
        if self._stopping is None:
            return False
        return not (
            self._stopping is StopMode.SMART
            and part is not Part.POSTMASTER
            and self._parts[Part.POSTMASTER].is_alive
        )

    def _advance_stop(self, now: float) -> list[Action]:
        """The next step of a stop: one part after the other, each once."""
        for part in (Part.POSTMASTER, *_RUNTIME):
            state = self._parts[part]
            if state.is_alive:
                if part is Part.POSTMASTER or state.kill_at is not None:
                    return []
                state.kill_at = now + STOP_GRACE_S
                return [Kill(part, signal.SIGTERM)]
            state.life = Life.DOWN
        if self._finished:
            return []
        self._finished = True
        return [Finish(self._exit_code)]
