"""The texts of answers, in one place, so that they stay of one voice."""

from __future__ import annotations

from pgraft.node.commands import UNKNOWN_DETAIL, UNKNOWN_HINT, Answer, error
from pgraft.node.membership import Node
from pgraft.shm.layout import Outcome

Voters = tuple[int, int, int]
"""(voters that can be reached, voters, voters needed), as Board.voters gives them."""


def voters_text(voters: Voters) -> str:
    """How many voters can be reached, and how many are needed."""
    reached, total, needed = voters
    return f"{reached} of {total} voters can be reached, {needed} are needed"


def not_leader(leader: Node | None, leader_id: int) -> Answer:
    """This node follows; the error names the leader."""
    where = f"node {leader_id}"
    if leader is not None and leader.address:
        where += f" at {leader.address}:{leader.port}"
    return error(
        Outcome.ERROR_STATE,
        "this node is not the leader",
        f"The leader is {where}.",
        f"Run the command on {where}, or set pgraft.forward_proposals = on.",
    )


def no_leader(voters: Voters) -> Answer:
    """Nobody leads, and an election's time has passed."""
    return error(
        Outcome.ERROR_STATE,
        f"the cluster has no leader: {voters_text(voters)}",
        "Nothing was written.",
        "Start or reconnect the missing nodes; pgraft_get_cluster_status() shows which.",
    )


def lost_leadership(voters: Voters) -> Answer:
    """The entry was appended here, and this node leads no more."""
    return error(
        Outcome.ERROR_UNKNOWN,
        f"leadership was lost before the outcome was known: {voters_text(voters)}",
        UNKNOWN_DETAIL,
        UNKNOWN_HINT,
    )


def timed_out(voters: Voters) -> Answer:
    """pgraft.proposal_timeout passed with the entry in the log, not committed."""
    return error(
        Outcome.ERROR_UNKNOWN,
        f"the command was not committed within its time: {voters_text(voters)}",
        UNKNOWN_DETAIL,
        UNKNOWN_HINT,
    )


def change_running() -> Answer:
    """Another membership change took all the time that this one had."""
    return error(
        Outcome.ERROR_STATE,
        "another membership change was still running",
        "Nothing was changed.",
        "Try again when it is over; pgraft_get_nodes() lists the members.",
    )


def not_confirmed(voters: Voters) -> Answer:
    """A read barrier whose time has passed."""
    return error(
        Outcome.ERROR_STATE,
        f"the leader could not be confirmed within the command's time: {voters_text(voters)}",
        "",
        "Try again.",
    )


def stopping() -> Answer:
    """The worker is being stopped with the command in flight."""
    return error(
        Outcome.ERROR_UNKNOWN,
        "the raft worker was stopped before the outcome of the command was known",
        UNKNOWN_DETAIL,
        UNKNOWN_HINT,
    )


def not_running(reason: str) -> Answer:
    """This node takes no part in consensus."""
    return error(
        Outcome.ERROR_STATE,
        f"this node takes no part in consensus: {reason}",
        "",
        "The server log has the details; pgraft-launch status shows the processes.",
    )


def not_started() -> Answer:
    """pgraft.autostart is off and pgraft_init() was not called yet."""
    return error(
        Outcome.ERROR_STATE,
        "this node has not joined consensus yet",
        "pgraft.autostart is off.",
        "SELECT pgraft_init() first.",
    )


def state(message: str, detail: str = "", hint: str = "") -> Answer:
    """A definite error: nothing was changed."""
    return error(Outcome.ERROR_STATE, message, detail, hint)


def argument(message: str, detail: str = "", hint: str = "") -> Answer:
    """The arguments are wrong."""
    return error(Outcome.ERROR_ARGUMENT, message, detail, hint)


def unknown(message: str) -> Answer:
    """The outcome cannot be known here."""
    return error(Outcome.ERROR_UNKNOWN, message, UNKNOWN_DETAIL, UNKNOWN_HINT)


OK = Answer(Outcome.OK)


def ok(index: int) -> Answer:
    """Done; `index` is the entry's."""
    return Answer(Outcome.OK, index)


def progress(text: str) -> Answer:
    """A NOTICE; the wait goes on."""
    return Answer(Outcome.PROGRESS, payload=text.encode())
