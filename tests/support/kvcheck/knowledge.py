"""What is known of the keys of a store, and what one request does to it.

A state is knowledge, not only values: a write whose revision nobody told stands at some revision between
two bounds, and a read that tells the revision narrows them. Revisions grow strictly from write to write,
with gaps (writes to other keys).
"""

from __future__ import annotations

from typing import NamedTuple

from tests.support.kvcheck.history import Action, Compare, Delete, Drop, Get, Put, Seen, Target

ENDLESS = 2**62


class Bounds(NamedTuple):
    """A revision that lies from `low` to `high`, both included."""

    low: int
    high: int

    @property
    def exact(self) -> bool:
        return self.low == self.high

    def __str__(self) -> str:
        if self.exact:
            return str(self.low)
        return f"{self.low} or later" if self.high == ENDLESS else f"{self.low} to {self.high}"


NOTHING = Bounds(0, 0)


class Cell(NamedTuple):
    """One key; value None: absent."""

    value: str | None = None
    mod: Bounds = NOTHING
    create: Bounds = NOTHING
    version: int = 0
    lease: int = 0

    def __str__(self) -> str:
        return "absent" if self.value is None else f"{self.value!r} at revision {self.mod}"


class Store(NamedTuple):
    """Cells in the order of the model's keys; every further write gets a revision above `floor`."""

    cells: tuple[Cell, ...]
    floor: int = 0


class Frame(NamedTuple):
    """What stays the same for a partition: where each key's cell is, and what revisions are taken.

    `taken` holds the revisions that are known to be of one certain write. `counts`: whether create_revision
    and version are kept (without, fewer states differ).
    """

    place: dict[str, int]
    taken: frozenset[int]
    counts: bool


class Turn:
    """One request while it runs. `revision` is the told one."""

    def __init__(self, frame: Frame, state: Store, revision: int | None) -> None:
        self.frame = frame
        self.cells = list(state.cells)
        self.floor = state.floor
        self.revision = revision
        self.own = Bounds(self.floor + 1, ENDLESS) if revision is None else Bounds(revision, revision)
        self.wrote = False

    def compare(self, compares: tuple[Compare, ...], holds: bool) -> bool:
        """Whether all may hold, or one may not. What holds narrows the bounds."""
        if holds:
            return all(self._holds(one) for one in compares)
        return any(self._may_fail(one) for one in compares)

    def _holds(self, compare: Compare) -> bool:
        place = self.frame.place[compare.key]
        cell = self.cells[place]
        if not isinstance(compare.operand, int):
            return _compare_values(cell.value, compare)
        low, high = bounds = _bounds(cell, compare.target)
        match compare.sign:
            case "=":
                return self._narrow(place, compare.target, Bounds(compare.operand, compare.operand))
            case "<":
                return self._narrow(place, compare.target, Bounds(low, min(high, compare.operand - 1)))
            case ">":
                return self._narrow(place, compare.target, Bounds(max(low, compare.operand + 1), high))
        return bounds != (compare.operand, compare.operand)

    def _may_fail(self, compare: Compare) -> bool:
        cell = self.cells[self.frame.place[compare.key]]
        operand = compare.operand
        if not isinstance(operand, int):
            return not _compare_values(cell.value, compare)
        low, high = bounds = _bounds(cell, compare.target)
        match compare.sign:
            case "=":
                return bounds != (operand, operand)
            case "<":
                return high >= operand
            case ">":
                return low <= operand
        return low <= operand <= high

    def act(self, action: Action, told: Seen | bool | None) -> bool:
        """Do it; whether that agrees with what was told."""
        place = self.frame.place[action.key]
        cell = self.cells[place]
        match action:
            case Get():
                return not isinstance(told, Seen) or self._see(place, told)
            case Put():
                self._put(place, cell, action)
            case Delete():
                if isinstance(told, bool) and told != (cell.value is not None):
                    return False
                self._remove(place)
            case Drop() if cell.lease == action.lease:
                self._remove(place)
        return True

    def _put(self, place: int, cell: Cell, action: Put) -> None:
        self.wrote = True
        if not self.frame.counts:
            self.cells[place] = Cell(action.value, self.own, lease=action.lease)
        else:
            create = self.own if cell.value is None else cell.create
            self.cells[place] = Cell(action.value, self.own, create, cell.version + 1, action.lease)

    def _remove(self, place: int) -> None:
        self.wrote = self.wrote or self.cells[place].value is not None
        self.cells[place] = Cell()

    def _see(self, place: int, seen: Seen) -> bool:
        cell = self.cells[place]
        if seen.present != (cell.value is not None):
            return False
        if not seen.present:
            return True
        if seen.value is not None and seen.value != cell.value:
            return False
        told = (
            (Target.MOD, seen.mod_revision),
            (Target.CREATE, seen.create_revision),
            (Target.VERSION, seen.version),
        )
        return all(
            number is None or self._narrow(place, target, Bounds(number, number)) for target, number in told
        )

    def _narrow(self, place: int, target: Target, to: Bounds) -> bool:
        """Keep that a number of a key lies within `to`; False where it cannot."""
        cell = self.cells[place]
        old = _bounds(cell, target)
        new = Bounds(max(old.low, to.low), min(old.high, to.high))
        if new.low > new.high:
            return False
        if new == old:
            return True
        if new.exact and new.low in self.frame.taken:
            return False
        if cell.create == cell.mod:
            cell = cell._replace(mod=new, create=new)  # the first version: both are one revision
        elif target is Target.MOD:
            cell = cell._replace(mod=new)
        else:
            cell = cell._replace(create=new)
        self.cells[place] = cell
        return True

    def end(self) -> Store | None:
        """The store behind the request; None where its revision does not fit."""
        if self.revision is None:
            return Store(tuple(self.cells), self.floor + self.wrote)
        if self.revision < self.floor + self.wrote:
            return None
        if not self._cap(self.revision - self.wrote):
            return None
        return Store(tuple(self.cells), self.revision)

    def _cap(self, high: int) -> bool:
        """Open revisions of earlier writes are at most `high`."""
        for place, cell in enumerate(self.cells):
            if not cell.mod.exact:
                mod, create = (Bounds(low, min(top, high)) for low, top in (cell.mod, cell.create))
                if mod.low > mod.high:
                    return False
                self.cells[place] = cell._replace(mod=mod, create=create)
        return True


def _bounds(cell: Cell, target: Target) -> Bounds:
    if target is Target.VERSION:
        return Bounds(cell.version, cell.version)
    return cell.mod if target is Target.MOD else cell.create


def _compare_values(value: str | None, compare: Compare) -> bool:
    """As etcd: a comparison with the value of an absent key fails, whatever its sign."""
    if value is None:
        return False
    other = str(compare.operand)
    return {"=": value == other, "!=": value != other, "<": value < other, ">": value > other}[compare.sign]


def allows_more(one: Store, other: Store) -> bool:
    """Whether whatever may follow `other` may follow `one`, too."""
    return one.floor <= other.floor and all(
        (a.value, a.version, a.lease) == (b.value, b.version, b.lease)
        and a.mod.low <= b.mod.low <= b.mod.high <= a.mod.high
        and a.create.low <= b.create.low <= b.create.high <= a.create.high
        for a, b in zip(one.cells, other.cells, strict=True)
    )
