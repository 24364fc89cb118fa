"""The supervisor's decisions: events and time in, actions out."""

from __future__ import annotations

import signal

import pytest

from pgraft.shm.layout import Yields
from pgraft_launcher import policy
from pgraft_launcher.policy import (
    AwaitBackends,
    End,
    Finish,
    GivenUp,
    Kill,
    KillBackends,
    Life,
    Part,
    Policy,
    Say,
    Spawn,
    Started,
    StartFailed,
    StopMode,
    Yield,
)

NONE: frozenset[Part] = frozenset()
ALL = frozenset(Part)


def deeds(actions: list[policy.Action]) -> list[policy.Action]:
    """Everything but the words for the log."""
    return [action for action in actions if not isinstance(action, Say)]


def begun() -> Policy:
    """A fresh node whose processes have all been spawned."""
    node = Policy()
    node.begin(0.0, NONE)
    node.backends_gone(0.0)
    return node


def running() -> Policy:
    """A node that has started."""
    node = begun()
    for part in Part:
        node.ready(part)
    return node


def test_a_start_spawns_the_runtime_at_once_and_postgres_when_nothing_old_is_left() -> None:
    node = Policy()
    assert node.begin(0.0, NONE) == [Spawn(Part.WORKER), Spawn(Part.NETWORK), AwaitBackends()]
    assert node.backends_gone(0.0) == [Spawn(Part.POSTMASTER)]


def test_started_is_said_once_when_all_three_are_ready() -> None:
    node = begun()
    assert node.ready(Part.WORKER) == []
    assert node.ready(Part.POSTMASTER) == []
    assert node.ready(Part.NETWORK) == [Started()]
    node.exited(Part.WORKER, End.FAILED, "died", 1.0)
    assert node.ready(Part.WORKER) == []


@pytest.mark.parametrize("part", [Part.WORKER, Part.NETWORK])
def test_a_dead_runtime_process_is_spawned_first_and_talked_about_later(part: Part) -> None:
    actions = running().exited(part, End.FAILED, "was killed by SIGKILL", 5.0)
    assert actions[0] == Spawn(part)
    assert isinstance(actions[1], Say)


def test_pauses_grow_and_then_the_part_is_given_up_loudly() -> None:
    node = running()
    now, pauses = 0.0, []
    for _ in range(policy.FAILURES_MAX):
        node.exited(Part.WORKER, End.FAILED, "died", now)
        if node.life(Part.WORKER) is Life.PAUSED:
            due = node.next_deadline()
            assert due is not None
            assert deeds(node.tick(due - 0.001)) == []
            pauses.append(due - now)
            now = due
            assert deeds(node.tick(now)) == [Spawn(Part.WORKER)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.05)
    assert now < policy.FAILURE_WINDOW_S
    actions = node.exited(Part.WORKER, End.FAILED, "died", now)
    assert any(isinstance(action, Say) and action.level == "ERROR" for action in actions)
    assert [type(action) for action in deeds(actions)] == [GivenUp]
    assert node.life(Part.WORKER) is Life.GIVEN_UP
    assert node.next_deadline() is None


def test_failures_outside_the_window_are_forgotten() -> None:
    node = running()
    for round_no in range(3 * policy.FAILURES_MAX):
        now = round_no * (policy.FAILURE_WINDOW_S + 1)
        assert Spawn(Part.NETWORK) in node.exited(Part.NETWORK, End.FAILED, "died", now)


def test_exit_code_three_is_not_tried_again_and_the_rest_goes_on() -> None:
    node = running()
    actions = deeds(node.exited(Part.NETWORK, End.PERMANENT, "ended with exit code 3", 1.0))
    assert [type(action) for action in actions] == [GivenUp]
    assert node.tick(1000.0) == []


def test_exit_code_three_during_the_start_ends_it_and_stops_everything() -> None:
    node = begun()
    actions = deeds(node.exited(Part.WORKER, End.PERMANENT, "ended with exit code 3", 1.0))
    assert isinstance(actions[1], StartFailed)
    assert actions[1].is_stopping
    assert actions[2] == Kill(Part.POSTMASTER, signal.SIGINT)
    assert deeds(node.exited(Part.POSTMASTER, End.ORDERLY, "", 2.0)) == [Kill(Part.NETWORK, signal.SIGTERM)]
    assert node.exited(Part.NETWORK, End.FAILED, "", 2.0) == [Finish(1)]


def test_a_worker_that_merely_crashes_during_the_start_is_started_again() -> None:
    assert Spawn(Part.WORKER) in begun().exited(Part.WORKER, End.FAILED, "died", 0.5)


def test_postgres_that_cannot_start_ends_the_start() -> None:
    node = begun()
    actions = deeds(node.exited(Part.POSTMASTER, End.FAILED, "ended with exit code 1", 1.0))
    assert any(isinstance(action, StartFailed) and action.is_stopping for action in actions)
    assert actions[-1] == Kill(Part.WORKER, signal.SIGTERM)
    node.exited(Part.WORKER, End.FAILED, "", 1.0)
    assert node.exited(Part.NETWORK, End.FAILED, "", 1.0) == [Finish(1)]


def test_a_crashed_postmaster_waits_for_its_backends_and_the_runtime_goes_on() -> None:
    node = running()
    actions = deeds(node.exited(Part.POSTMASTER, End.FAILED, "was killed by SIGKILL", 10.0))
    assert actions == [AwaitBackends()]
    assert node.life(Part.WORKER) is Life.READY
    assert node.backends_gone(10.5) == [Spawn(Part.POSTMASTER)]


def test_backends_that_stay_are_pressed_with_growing_force() -> None:
    node = running()
    node.exited(Part.POSTMASTER, End.FAILED, "was killed by SIGKILL", 10.0)
    grace = policy.BACKENDS_GRACE_S
    assert node.next_deadline() == 10.0 + grace
    assert node.tick(10.0 + grace - 0.1) == []
    assert deeds(node.tick(10.0 + grace)) == [KillBackends(signal.SIGQUIT)]
    assert deeds(node.tick(10.0 + 2 * grace))[-1] == KillBackends(signal.SIGKILL)
    assert node.backends_gone(31.0) == [Spawn(Part.POSTMASTER)]


def test_a_postmaster_that_keeps_crashing_is_paused_after_its_backends_went() -> None:
    node = running()
    for _ in range(3):
        node.exited(Part.POSTMASTER, End.FAILED, "died", 1.0)
    assert node.backends_gone(1.0) == []
    assert node.life(Part.POSTMASTER) is Life.PAUSED
    assert deeds(node.tick(1.11)) == [Spawn(Part.POSTMASTER)]


def test_an_orderly_end_of_postgres_ends_the_node_in_order() -> None:
    node = running()
    assert deeds(node.exited(Part.POSTMASTER, End.ORDERLY, "", 1.0)) == [Kill(Part.WORKER, signal.SIGTERM)]
    assert deeds(node.exited(Part.WORKER, End.FAILED, "", 1.1)) == [Kill(Part.NETWORK, signal.SIGTERM)]
    assert node.exited(Part.NETWORK, End.FAILED, "", 1.2) == [Finish(0)]


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        (StopMode.SMART, signal.SIGTERM),
        (StopMode.FAST, signal.SIGINT),
        (StopMode.IMMEDIATE, signal.SIGQUIT),
    ],
)
def test_a_stop_begins_with_postgres(mode: StopMode, number: signal.Signals) -> None:
    node = running()
    assert deeds(node.stop(mode, 1.0)) == [Kill(Part.POSTMASTER, number)]
    assert deeds(node.stop(mode, 1.0)) == []


def test_a_stronger_stop_replaces_a_weaker_one_only() -> None:
    node = running()
    node.stop(StopMode.FAST, 1.0)
    assert node.stop(StopMode.SMART, 1.1) == []
    assert deeds(node.stop(StopMode.IMMEDIATE, 1.2)) == [Kill(Part.POSTMASTER, signal.SIGQUIT)]


def test_sessions_of_a_smart_stop_keep_a_worker() -> None:
    node = running()
    node.stop(StopMode.SMART, 1.0)
    assert Spawn(Part.WORKER) in node.exited(Part.WORKER, End.FAILED, "died", 1.5)


def test_a_worker_that_ends_during_a_fast_stop_is_not_replaced() -> None:
    node = running()
    node.stop(StopMode.FAST, 1.0)
    assert deeds(node.exited(Part.WORKER, End.FAILED, "died", 1.5)) == []
    assert deeds(node.exited(Part.POSTMASTER, End.ORDERLY, "", 2.0)) == [Kill(Part.NETWORK, signal.SIGTERM)]


def test_what_does_not_end_is_killed_after_its_grace() -> None:
    node = running()
    node.exited(Part.POSTMASTER, End.ORDERLY, "", 1.0)
    assert node.next_deadline() == 1.0 + policy.STOP_GRACE_S
    assert deeds(node.tick(1.0 + policy.STOP_GRACE_S)) == [Kill(Part.WORKER, signal.SIGKILL)]


def test_a_stop_while_a_part_is_paused_or_draining_ends_too() -> None:
    node = running()
    node.exited(Part.POSTMASTER, End.FAILED, "died", 1.0)
    node.exited(Part.NETWORK, End.FAILED, "died", 1.0)
    node.exited(Part.NETWORK, End.FAILED, "died", 1.0)
    assert node.life(Part.NETWORK) is Life.PAUSED
    assert deeds(node.stop(StopMode.FAST, 1.01)) == [Kill(Part.WORKER, signal.SIGTERM)]
    assert node.exited(Part.WORKER, End.FAILED, "", 1.02) == [Finish(0)]
    assert node.tick(100.0) == []


def test_a_take_over_starts_only_what_is_missing() -> None:
    node = Policy()
    actions = node.begin(0.0, frozenset({Part.WORKER, Part.POSTMASTER}))
    assert actions == [Spawn(Part.NETWORK)]
    for part in (Part.WORKER, Part.NETWORK):
        assert node.ready(part) == []
    assert node.ready(Part.POSTMASTER) == [Started()]


def test_a_failure_during_a_take_over_stops_nothing() -> None:
    node = Policy()
    node.begin(0.0, frozenset({Part.POSTMASTER, Part.NETWORK}))
    actions = deeds(node.exited(Part.WORKER, End.PERMANENT, "ended with exit code 3", 1.0))
    assert [type(action) for action in actions] == [GivenUp, StartFailed]
    assert not any(isinstance(action, StartFailed) and action.is_stopping for action in actions)


def test_a_worker_that_reports_an_error_fails_the_start_but_leaves_postgres_alone() -> None:
    node = begun()
    actions = deeds(node.broken(Part.WORKER, "disk error"))
    assert actions == [StartFailed(Part.WORKER, "disk error", False)]
    assert node.life(Part.POSTMASTER) is Life.RUNNING


def test_stopping_what_a_dead_supervisor_left_starts_nothing() -> None:
    node = Policy()
    actions = deeds(node.begin_stop(0.0, frozenset({Part.WORKER, Part.NETWORK}), StopMode.FAST))
    assert actions == [Kill(Part.WORKER, signal.SIGTERM)]
    node.exited(Part.WORKER, End.FAILED, "", 0.1)
    assert node.exited(Part.NETWORK, End.FAILED, "", 0.2) == [Finish(0)]


def test_a_stop_while_starting_is_reported_to_whoever_waits() -> None:
    actions = deeds(begun().stop(StopMode.FAST, 0.5))
    assert isinstance(actions[0], StartFailed)
    assert actions[1] == Kill(Part.POSTMASTER, signal.SIGINT)


@pytest.mark.parametrize(
    ("mode", "number"), [(StopMode.SMART, signal.SIGTERM), (StopMode.FAST, signal.SIGINT)]
)
def test_a_leader_hands_over_before_its_postgres_stops(mode: StopMode, number: signal.Signals) -> None:
    node = running()
    assert deeds(node.stop(mode, 1.0, leads=True)) == [Yield(Yields.STOPPING)]
    assert node.is_handing_over
    assert node.tick(1.0 + policy.HAND_OVER_S - 0.01) == []
    assert node.handed_over() == [Kill(Part.POSTMASTER, number)]
    assert node.handed_over() == []


def test_a_hand_over_that_takes_too_long_holds_no_stop_up() -> None:
    node = running()
    node.stop(StopMode.FAST, 1.0, leads=True)
    assert node.next_deadline() == 1.0 + policy.HAND_OVER_S
    assert deeds(node.tick(1.0 + policy.HAND_OVER_S)) == [Kill(Part.POSTMASTER, signal.SIGINT)]
    assert not node.is_handing_over


def test_an_immediate_stop_hands_nothing_over() -> None:
    node = running()
    assert deeds(node.stop(StopMode.IMMEDIATE, 1.0, leads=True)) == [Kill(Part.POSTMASTER, signal.SIGQUIT)]
    node = running()
    node.stop(StopMode.SMART, 1.0, leads=True)
    assert deeds(node.stop(StopMode.FAST, 1.1, leads=True)) == []
    assert deeds(node.stop(StopMode.IMMEDIATE, 1.2)) == [Kill(Part.POSTMASTER, signal.SIGQUIT)]
    assert node.tick(5.0) == []


def test_a_worker_that_dies_while_it_hands_over_does_not_hold_the_stop_up() -> None:
    node = running()
    node.stop(StopMode.FAST, 1.0, leads=True)
    assert deeds(node.exited(Part.WORKER, End.FAILED, "died", 1.1)) == [Kill(Part.POSTMASTER, signal.SIGINT)]
    assert deeds(node.exited(Part.POSTMASTER, End.ORDERLY, "", 2.0)) == [Kill(Part.NETWORK, signal.SIGTERM)]


def test_postgres_that_ends_by_itself_meanwhile_is_not_signalled_any_more() -> None:
    node = running()
    node.stop(StopMode.SMART, 1.0, leads=True)
    assert deeds(node.exited(Part.POSTMASTER, End.ORDERLY, "", 1.1)) == [Kill(Part.WORKER, signal.SIGTERM)]
    assert node.handed_over() == []


def test_a_node_whose_postgres_keeps_failing_does_not_lead_until_it_serves_again() -> None:
    node = running()
    for number in range(policy.POSTMASTER_FAILURES_MAX):
        actions = deeds(node.exited(Part.POSTMASTER, End.FAILED, "died", 1.0 + number))
        yields = Yield(Yields.NOT_SERVING) in actions
        assert yields == (number == policy.POSTMASTER_FAILURES_MAX - 1)
        node.backends_gone(1.5 + number)
    node.tick(10.0)
    assert node.ready(Part.POSTMASTER) == [Yield(Yields.NO)]
    # Once more within the window: at once.
    assert Yield(Yields.NOT_SERVING) in node.exited(Part.POSTMASTER, End.FAILED, "died", 11.0)


def test_a_node_whose_postgres_does_not_come_back_does_not_lead() -> None:
    node = running()
    node.exited(Part.POSTMASTER, End.FAILED, "died", 1.0)
    node.backends_gone(1.1)
    assert Yield(Yields.NOT_SERVING) not in node.tick(policy.POSTMASTER_AWAY_S)
    assert node.tick(1.0 + policy.POSTMASTER_AWAY_S) == [Yield(Yields.NOT_SERVING)]
    node = running()
    node.exited(Part.POSTMASTER, End.FAILED, "died", 1.0)
    node.backends_gone(1.1)
    assert node.ready(Part.POSTMASTER) == []
    assert node.next_deadline() is None


def test_a_new_supervisor_goes_on_with_what_the_worker_was_told() -> None:
    node = Policy(Yields.NOT_SERVING)
    node.begin(0.0, frozenset({Part.WORKER, Part.NETWORK}))
    node.backends_gone(0.1)
    assert node.ready(Part.POSTMASTER) == [Yield(Yields.NO)]
