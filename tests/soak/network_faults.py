"""The faults of the soak's network form: partitions and loss by the router, the rest by its proxy."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tests.soak.form import Fault, Struck
from tests.soak.proxy import Faults, Pair
from tests.soak.weather import NOTHING, Share, Weather

if TYPE_CHECKING:
    from tests.soak.field import Field

LASTS_TIMEOUTS = (0.3, 6.0)
"""A fault lasts from less than an election timeout to several."""
FLAP_TIMEOUTS = (0.1, 1.2)
RESETS_TIMEOUTS = (0.05, 0.6)
LOSS_PERCENT = (3, 30)
DELAY_TIMEOUTS = (0.01, 0.2)
"""One way; a round trip of a heartbeat stays below an election timeout."""
PIECE_BYTES = (1, 40)
DAMAGED_PERCENT = (1, 15)
LEADER_WAIT_TIMEOUTS = 20
LEADER_WAIT_S_MIN = 20.0
"""With nothing in the way there is a leader again by then; far beyond what it takes, machines are busy."""
LOOK_S = 0.005


class Leadership:
    """How long there was no leader, though nothing stood between the nodes of some majority.

    Counted from when the majority was whole, or from when the leader's lease ended, whichever was later.
    """

    def __init__(self, weather: Weather) -> None:
        self._weather = weather
        self._field: Field | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leadership", daemon=True)
        self._lock = threading.Lock()
        self.worst_s = 0.0

    def watch(self, field: Field) -> None:
        """Begin, unless it has begun."""
        with self._lock:
            if self._field is None:
                self._field = field
                self._thread.start()

    def check(self, field: Field) -> None:
        """Raises AssertionError when it took longer than any machine explains."""
        at_most = max(LEADER_WAIT_S_MIN, LEADER_WAIT_TIMEOUTS * field.election_timeout_s)
        if self.worst_s > at_most:
            raise AssertionError(f"no leader for {self.worst_s:.1f} s, while a majority was undisturbed")

    def _run(self) -> None:
        since = time.monotonic()
        while not self._over.wait(LOOK_S):
            now = time.monotonic()
            if self._field is None or self._field.watch.leader or not self._weather.is_whole_for_most:
                since = now
            self.worst_s = max(self.worst_s, now - since)

    def close(self) -> None:
        """Watch no more."""
        self._over.set()
        if self._field is not None:
            self._thread.join()


class Repeated:
    """Does something again and again, at random moments, until stopped."""

    def __init__(self, act: Callable[[], None], chance: random.Random, pause_s: tuple[float, float]) -> None:
        self._act, self._chance, self._pause_s = act, chance, pause_s
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.wait(self._chance.uniform(*self._pause_s)):
                self._act()
        except BaseException as error:  # noqa: BLE001 - handed to whoever stops it
            self._failure = error

    def stop(self) -> None:
        """No more of it; raises what it raised."""
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure


class NetworkFault(Fault):
    """Brings a share that stands until it is mended."""

    def __init__(self, weather: Weather, leadership: Leadership) -> None:
        self.weather = weather
        self._leadership = leadership

    def share(self, field: Field, chance: random.Random) -> Share:
        """What it does to which links."""
        raise NotImplementedError

    def strike(self, field: Field, chance: random.Random) -> Struck:
        """Put the share in place."""
        self._leadership.watch(field)
        share = self.share(field, chance)
        lasts_s = _timeouts(field, chance, LASTS_TIMEOUTS)
        own_chance = random.Random(chance.getrandbits(32))
        whose = object()
        self.weather.put(whose, share)
        repeated = self.repeat(field, whose, share, own_chance)

        def mend() -> None:
            try:
                if repeated is not None:
                    repeated.stop()
            finally:
                self.weather.take(whose)
            self._leadership.check(field)

        return Struck(_text(share), lasts_s, mend)

    def repeat(self, field: Field, whose: object, share: Share, chance: random.Random) -> Repeated | None:
        """What is done again and again while it stands."""
        return None


# --- by the router ----------------------------------------------------------------------------------------


class Halves(NetworkFault):
    """Two sides, as equal as they can be; the leader is on either."""

    kind = "partition: halves"
    weight = 3

    def share(self, field: Field, chance: random.Random) -> Share:
        """Nothing crosses the line."""
        ids = list(self.weather.network.ids)
        return Share(cut=frozenset(self.weather.network.between(set(chance.sample(ids, len(ids) // 2)))))


class CutOff(NetworkFault):
    """One node by itself."""

    kind = "partition: one node cut off"
    weight = 3

    def share(self, field: Field, chance: random.Random) -> Share:
        """Nothing to or from it."""
        return Share(cut=frozenset(self.weather.network.between({field.choose(chance).node_id})))


class Apart(NetworkFault):
    """Every node by itself."""

    kind = "partition: all apart"

    def share(self, field: Field, chance: random.Random) -> Share:
        """Nothing at all."""
        return Share(cut=frozenset(_all(self.weather)))


class OneWay(NetworkFault):
    """A node that is not heard, or hears nothing, of some others or all."""

    kind = "partition: one-way"
    weight = 3

    def share(self, field: Field, chance: random.Random) -> Share:
        """Packets go in the other direction only."""
        node_id = field.choose(chance).node_id
        others = [other for other in self.weather.network.ids if other != node_id]
        some = chance.sample(others, chance.randint(1, len(others)))
        hears = chance.randrange(2)
        return Share(cut=frozenset((node_id, other) if hears else (other, node_id) for other in some))


class Flapping(NetworkFault):
    """A cut that comes and goes."""

    kind = "partition: flapping"
    weight = 3

    def share(self, field: Field, chance: random.Random) -> Share:
        """One node, or half of them."""
        network = self.weather.network
        node_id, whole_half = field.choose(chance).node_id, chance.randrange(2)
        half = set(chance.sample(list(network.ids), len(network.ids) // 2))
        return Share(cut=frozenset(network.between(half if whole_half else {node_id})))

    def repeat(self, field: Field, whose: object, share: Share, chance: random.Random) -> Repeated | None:
        """Away and there again."""
        stands = [True]

        def flap() -> None:
            stands[0] = not stands[0]
            self.weather.put(whose, share if stands[0] else NOTHING)

        return Repeated(flap, chance, _scaled(field, FLAP_TIMEOUTS))


class Loss(NetworkFault):
    """Packets are lost by chance, on all links or on those of one node."""

    kind = "loss"
    weight = 3

    def share(self, field: Field, chance: random.Random) -> Share:
        """The same percentage both ways."""
        percent = chance.randint(*LOSS_PERCENT)
        return Share(loss=dict.fromkeys(_links(self.weather, field, chance), percent))


# --- by the proxy -----------------------------------------------------------------------------------------


class Delay(NetworkFault):
    """Each direction of each link has a delay of its own."""

    kind = "delay"
    weight = 2

    def share(self, field: Field, chance: random.Random) -> Share:
        """Up to a fifth of an election timeout one way."""
        links = _links(self.weather, field, chance)
        return Share(
            links={pair: Faults(delay_ms=1000 * _timeouts(field, chance, DELAY_TIMEOUTS)) for pair in links}
        )


class Stall(NetworkFault):
    """Connections that stand, and move nothing."""

    kind = "stall"
    weight = 2

    def share(self, field: Field, chance: random.Random) -> Share:
        """One direction of each link, or both."""
        links, both = _links(self.weather, field, chance), chance.randrange(2)
        stalled = Faults(stalled=True)
        return Share(links={pair: stalled if both or pair[0] < pair[1] else Faults() for pair in links})


class Resets(NetworkFault):
    """Connections are reset again and again."""

    kind = "reset"
    weight = 2

    def share(self, field: Field, chance: random.Random) -> Share:
        """The links that it strikes."""
        return Share(links=dict.fromkeys(_links(self.weather, field, chance), Faults()))

    def repeat(self, field: Field, whose: object, share: Share, chance: random.Random) -> Repeated | None:
        """One connection at a time."""
        pairs = sorted(share.links)
        return Repeated(
            lambda: self.weather.reset([chance.choice(pairs)]), chance, _scaled(field, RESETS_TIMEOUTS)
        )


class Pieces(NetworkFault):
    """Frames come in pieces of a few bytes."""

    kind = "small pieces"
    weight = 2

    def share(self, field: Field, chance: random.Random) -> Share:
        """One size for all."""
        pieces = Faults(piece_bytes=chance.randint(*PIECE_BYTES))
        return Share(links=dict.fromkeys(_links(self.weather, field, chance), pieces))


class Damage(NetworkFault):
    """Bits are flipped on the way, behind TCP's own checksum."""

    kind = "damaged bytes"
    weight = 2

    def share(self, field: Field, chance: random.Random) -> Share:
        """In so many chunks in a hundred."""
        damaged = Faults(damaged_percent=chance.randint(*DAMAGED_PERCENT))
        return Share(links=dict.fromkeys(_links(self.weather, field, chance), damaged))


KINDS: tuple[type[NetworkFault], ...] = (
    Halves,
    CutOff,
    Apart,
    OneWay,
    Flapping,
    Loss,
    Delay,
    Stall,
    Resets,
    Pieces,
    Damage,
)


def _all(weather: Weather) -> list[Pair]:
    ids = weather.network.ids
    return [(a, b) for a in ids for b in ids if a != b]


def _links(weather: Weather, field: Field, chance: random.Random) -> list[Pair]:
    """All links, or those of one node, both ways."""
    node_id, everywhere = field.choose(chance).node_id, chance.randrange(2)
    return _all(weather) if everywhere else sorted(weather.network.between({node_id}))


def _scaled(field: Field, timeouts: tuple[float, float]) -> tuple[float, float]:
    return timeouts[0] * field.election_timeout_s, timeouts[1] * field.election_timeout_s


def _timeouts(field: Field, chance: random.Random, timeouts: tuple[float, float]) -> float:
    return chance.uniform(*_scaled(field, timeouts))


def _text(share: Share) -> str:
    pairs: Iterable[Pair] = share.cut or share.loss or share.links
    return " ".join(f"{a}>{b}" for a, b in sorted(pairs))
