"""Directives of the `interaction` files."""

from __future__ import annotations

from collections.abc import Callable

from pgraft.raft import (
    NO_LIMIT,
    ConfChange,
    ConfChangeTransition,
    ConfChangeV2,
    Config,
    ConfState,
    Message,
    MessageType,
    RaftError,
    ReadOnlyOption,
    Snapshot,
    SnapshotMetadata,
)
from pgraft.raft.describe import describe_message
from tests.conformance.changes import BadTokenError, describe_progress, parse_changes
from tests.conformance.datafile import Argument, Case
from tests.conformance.environment import (
    DirectiveError,
    Environment,
    HistoryStorage,
    LateRandom,
    Node,
    error_text,
)

ELECTION_TICK = 3
HEARTBEAT_TICK = 1
INFLIGHT_MSGS_DEFAULT = 2**31 - 1
QUIET_LEVEL = "none"
TRANSITIONS = {
    "auto": ConfChangeTransition.ConfChangeTransitionAuto,
    "implicit": ConfChangeTransition.ConfChangeTransitionJointImplicit,
    "explicit": ConfChangeTransition.ConfChangeTransitionJointExplicit,
}
READ_ONLY = {
    "safe": ReadOnlyOption.ReadOnlySafe,
    "lease-based": ReadOnlyOption.ReadOnlyLeaseBased,
}


class InteractionRunner:
    """A cluster that a file's directives drive, one after the other."""

    def __init__(self) -> None:
        self._environment = Environment()
        self._commands: dict[str, Callable[[Case], None]] = {
            "add-nodes": self._add_nodes,
            "campaign": lambda case: self._first(case).raw.campaign(),
            "compact": self._compact,
            "deliver-msgs": self._deliver,
            "forget-leader": lambda case: self._first(case).raw.forget_leader(),
            "log-level": self._log_level,
            "process-append-thread": lambda case: self._each(
                case, "processing append thread", self._environment.process_append_thread
            ),
            "process-apply-thread": lambda case: self._each(
                case, "processing apply thread", self._environment.process_apply_thread
            ),
            "process-ready": lambda case: self._each(case, "handling Ready", self._environment.process_ready),
            "propose": lambda case: self._first(case).raw.propose(case.arguments[1].key.encode()),
            "propose-conf-change": self._propose_conf_change,
            "raft-log": lambda case: self._environment.show_log(self._first(case)),
            "raft-state": lambda case: self._environment.show_states(),
            "report-unreachable": self._report_unreachable,
            "send-snapshot": self._send_snapshot,
            "set-randomized-election-timeout": lambda case: self._first(
                case
            ).raw.set_randomized_election_timeout(int(case.named()["timeout"].value)),
            "stabilize": self._stabilize,
            "status": self._status,
            "tick-election": lambda case: self._tick(case, self._first(case).config.election_tick),
            "tick-heartbeat": lambda case: self._tick(case, self._first(case).config.heartbeat_tick),
            "transfer-leadership": self._transfer_leadership,
        }

    def run(self, case: Case) -> str:
        """The output of one directive. Errors show even where output is turned off."""
        environment = self._environment
        try:
            if case.command not in self._commands:
                raise DirectiveError("unknown command")
            self._commands[case.command](case)
        except (DirectiveError, BadTokenError) as error:
            return environment.take_output() + str(error)
        except RaftError as error:
            return environment.take_output() + error_text(error)
        return environment.take_output()

    def _ids(self, case: Case) -> list[int]:
        return [int(key) for key in case.plain()]

    def _first(self, case: Case) -> Node:
        return self._environment.node(int(case.arguments[0].key))

    def _each(self, case: Case, title: str, action: Callable[[Node], None]) -> None:
        ids = self._ids(case)
        for id in ids:
            node = self._environment.node(id)
            if len(ids) == 1:
                action(node)
            else:
                self._environment.write(f"> {id} {title}\n")
                self._environment.indented(lambda node=node: action(node))  # type: ignore[misc]

    def _tick(self, case: Case, ticks: int) -> None:
        for _ in range(ticks):
            self._first(case).raw.tick()

    def _log_level(self, case: Case) -> None:
        self._environment.quiet = case.plain()[0].lower() == QUIET_LEVEL

    def _stabilize(self, case: Case) -> None:
        environment = self._environment
        quiet = environment.quiet
        level = case.named().get("log-level")
        if level is not None:
            environment.quiet = level.value.lower() == QUIET_LEVEL
        try:
            environment.stabilize(self._ids(case))
        finally:
            environment.quiet = quiet

    # Nodes

    def _add_nodes(self, case: Case) -> None:
        named = case.named()
        conf_state = ConfState(voters=_numbers(named.get("voters")), learners=_numbers(named.get("learners")))
        index = int(named["index"].value) if "index" in named else 0
        content = named["content"].value.encode() if "content" in named else b""
        snapshot = Snapshot(SnapshotMetadata(conf_state=conf_state, index=index), content)
        if snapshot != Snapshot():
            snapshot = Snapshot(SnapshotMetadata(conf_state=conf_state, index=index, term=1), content)
        for _ in range(int(case.arguments[0].key)):
            self._environment.add_node(lambda id, storage: _config(id, storage, named), snapshot)

    def _compact(self, case: Case) -> None:
        node = self._first(case)
        node.storage.compact(int(case.arguments[1].key))
        self._environment.show_log(node)

    def _status(self, case: Case) -> None:
        self._environment.write(describe_progress(self._first(case).raw.status().progress))

    def _report_unreachable(self, case: Case) -> None:
        node, peer = self._ids(case)
        self._environment.node(node).raw.report_unreachable(peer)

    def _transfer_leadership(self, case: Case) -> None:
        named = case.named()
        node = self._environment.node(int(named["from"].value))
        node.raw.transfer_leader(int(named["to"].value))

    def _propose_conf_change(self, case: Case) -> None:
        named = case.named()
        transition = named["transition"].value if "transition" in named else "auto"
        if transition not in TRANSITIONS:
            raise DirectiveError(f"unknown transition {transition}")
        changes = parse_changes(case.input)
        change: ConfChange | ConfChangeV2 = ConfChangeV2(TRANSITIONS[transition], tuple(changes))
        if "v1" in named and _flag(named["v1"]):
            if len(changes) != 1 or transition != "auto":
                raise DirectiveError("v1 conf change can only have one operation and no transition")
            change = ConfChange(changes[0].type, changes[0].node_id)
        self._first(case).raw.propose_conf_change(change)

    # Messages

    def _deliver(self, case: Case) -> None:
        named = case.named()
        kind = MessageType[named["type"].value] if "type" in named else None
        dropped = _numbers(named.get("drop"))
        receivers = self._ids(case)
        both = set(dropped) & set(receivers)
        if both:
            raise DirectiveError(f"can't both deliver and drop msgs to {min(both)}")
        count = sum(self._environment.deliver(id, kind) for id in receivers)
        count += sum(self._environment.deliver(id, kind, drop=True) for id in dropped)
        if not count:
            self._environment.write("no messages\n")

    def _send_snapshot(self, case: Case) -> None:
        sender, receiver = self._ids(case)
        node = self._environment.node(sender)
        m = Message(
            type=MessageType.MsgSnap,
            term=node.raw.basic_status().hard_state.term,
            from_=sender,
            to=receiver,
            snapshot=node.storage.snapshot(),
        )
        self._environment.messages.append(m)
        self._environment.write(describe_message(m))


def _numbers(argument: Argument | None) -> tuple[int, ...]:
    return () if argument is None else tuple(int(value) for value in argument.values)


def _flag(argument: Argument | None) -> bool:
    return argument is not None and argument.value in ("true", "t", "1")


def _config(id: int, storage: HistoryStorage, named: dict[str, Argument]) -> Config:
    def number(key: str, default: int) -> int:
        return int(named[key].value) if key in named else default

    return Config(
        id=id,
        election_tick=ELECTION_TICK,
        heartbeat_tick=HEARTBEAT_TICK,
        storage=storage,
        rng=LateRandom(id),
        max_size_per_msg=NO_LIMIT,
        max_inflight_msgs=number("inflight", INFLIGHT_MSGS_DEFAULT),
        max_committed_size_per_ready=number("max-committed-size-per-ready", 0),
        async_storage_writes=_flag(named.get("async-storage-writes")),
        pre_vote=_flag(named.get("prevote")),
        check_quorum=_flag(named.get("checkquorum")),
        disable_conf_change_validation=_flag(named.get("disable-conf-change-validation")),
        step_down_on_removal=_flag(named.get("step-down-on-removal")),
        read_only_option=READ_ONLY[named["read-only"].value if "read-only" in named else "safe"],
    )
