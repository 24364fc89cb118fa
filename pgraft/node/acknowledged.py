"""What each member acknowledged to this node while it led: by that its next start is judged.

A log that comes back shorter has lost what was promised: the disk lied, a file system was repaired, a machine
or a directory was set back to an older state. Three things can never be missing from an honest one:

* a term in which it acknowledged something: it wrote that term before;
* where it has entered no later term since, everything that it acknowledged: only a leader of a later term
  cuts entries;
* whatever it acknowledged and this node, as leader, committed: nobody ever cuts that.

Pure. In memory only: who has restarted itself knows nothing, and judges nobody.
"""

from __future__ import annotations

import msgspec

from pgraft.transport.records import PeerHello, Refusal, RefusalCode

STARTS_MAX = 16
"""Starts of one member that have passed: hellos of its older connections may still be told."""
MEMBERS_KEPT_MAX = 256


class _Member(msgspec.Struct):
    """Of one disk and incarnation: the newest term and index acknowledged, and what of it stays for ever."""

    member_id: int
    incarnation: int
    starts: list[int] = []
    term: int = 0
    index: int = 0
    secured: int = 0


class Acknowledged:
    """`begin` starts a term that this node leads; `heard` and `committed` are of that term."""

    def __init__(self) -> None:
        self._term = 0
        self._committed = 0
        self._members: dict[int, _Member] = {}

    def begin(self, term: int) -> None:
        """This node leads from now on."""
        for member in self._members.values():
            member.secured = self._secured(member)
        self._term, self._committed = term, 0

    def committed(self, index: int) -> None:
        """Everything up to `index` is committed, as this leader knows."""
        self._committed = max(self._committed, index)

    def heard(self, node_id: int, term: int, index: int) -> None:
        """A member acknowledged everything up to `index` to this leader of `term`."""
        member = self._members.get(node_id)
        if member is None or term != self._term:
            return
        if member.term != term:
            member.term, member.index = term, 0
        if index > member.index:
            member.index = index

    def _secured(self, member: _Member) -> int:
        if member.term != self._term:
            return member.secured
        return max(member.secured, min(member.index, self._committed))

    def is_another(self, node_id: int, hello: PeerHello) -> bool:
        """Whether it comes on another disk, or as another incarnation, than when it acknowledged
        something."""
        member = self._members.get(node_id)
        return member is not None and not _is_of(member, hello)

    def judge(self, node_id: int, hello: PeerHello) -> Refusal | None:
        """Whether the start that a member's hello tells of had everything; None when it had."""
        member = self._members.get(node_id)
        if member is None or not _is_of(member, hello):
            self._members.pop(node_id, None)
            if len(self._members) >= MEMBERS_KEPT_MAX:
                del self._members[next(iter(self._members))]
            member = self._members[node_id] = _Member(hello.member_id, hello.incarnation)
        start = hello.start
        if not start.start_id or start.start_id in member.starts:
            return None
        lost = self._lost(member, start.term, start.last_index)
        if lost:
            return _refusal(node_id, lost)
        member.starts = [*member.starts[-STARTS_MAX + 1 :], start.start_id]
        return None

    def _lost(self, member: _Member, term: int, last_index: int) -> str:
        """What is missing, empty when nothing is."""
        if term < member.term:
            return f"in term {term}, and had acknowledged entries in term {member.term}"
        needed = self._secured(member)
        if term == member.term:
            needed = max(needed, member.index)
        if last_index < needed:
            return f"with last index {last_index}, and had acknowledged everything up to {needed}"
        return ""


def _is_of(member: _Member, hello: PeerHello) -> bool:
    return (member.member_id, member.incarnation) == (hello.member_id, hello.incarnation)


def _refusal(node_id: int, lost: str) -> Refusal:
    return Refusal(
        RefusalCode.SHORTER_LOG,
        f"node {node_id} comes back {lost}: its pgraft.data_dir was set back to an older state, or its disk"
        " has lost what was durable",
        f"Check its disk. Remove it with pgraft_remove_node({node_id}), empty its pgraft.data_dir, and add it"
        " under a new node id.",
    )
