"""What stands between the nodes: the sum of all network faults that stand at a time.

Faults overlap. Each brings its share and takes it away again; what is cut by any is cut, what is lost or
damaged by several happens as often as the worst of them says.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping

import msgspec

from tests.soak.netns import Network
from tests.soak.proxy import Faults, Pair, Proxy


class Share(msgspec.Struct, frozen=True):
    """What one fault brings, by link (from, to). `links` lead both ways of a link through the proxy."""

    cut: frozenset[Pair] = frozenset()
    loss: Mapping[Pair, int] = {}
    links: Mapping[Pair, Faults] = {}


NOTHING = Share()


class Weather:
    """Puts shares in place, and takes them away. Safe from any thread."""

    def __init__(self, network: Network, relay: Proxy) -> None:
        self.network = network
        self._relay = relay
        self._lock = threading.Lock()
        self._shares: dict[object, Share] = {}
        self.is_whole_for_most = True
        """Whether nothing stands between the nodes of some majority."""

    def put(self, whose: object, share: Share) -> None:
        """This fault's share, from now on."""
        with self._lock:
            self._shares[whose] = share
            self._apply()

    def take(self, whose: object) -> None:
        """The fault is over."""
        with self._lock:
            self._shares.pop(whose, None)
            self._apply()

    def clear(self) -> None:
        """All are over."""
        with self._lock:
            self._shares.clear()
            self._apply()

    def reset(self, pairs: Iterable[Pair]) -> None:
        """Reset the connections of these links that go through the proxy now."""
        with self._lock:
            self._relay.reset(*pairs)

    def report(self) -> dict[str, int]:
        """Packets and bytes that the faults have met so far."""
        with self._lock:
            counts, packets = self._relay.counts(), self.network.dropped()
        return {
            "packets cut": packets["cut"],
            "packets lost": packets["lost"],
            "connections through the proxy": counts.connections,
            "chunks delayed": counts.delayed,
            "chunks stalled": counts.stalled,
            "small pieces": counts.pieces,
            "chunks damaged": counts.damaged,
            "connections reset": counts.resets,
        }

    def _apply(self) -> None:
        links = merged(self._shares.values())
        proxied = {pair for a, b in links for pair in ((a, b), (b, a))}
        before = self.network.proxied
        self._relay.links({pair: links.get(pair, Faults()) for pair in proxied | before})
        self.network.cut = {pair for share in self._shares.values() for pair in share.cut}
        self.network.loss = {}
        for share in self._shares.values():
            for pair, percent in share.loss.items():
                self.network.loss[pair] = max(percent, self.network.loss.get(pair, 0))
        self.network.proxied = proxied
        self.network.apply()
        self.is_whole_for_most = has_whole_majority(self.network.count, self._shares.values())
        # What was made through the proxy would stay there; made again, it takes the straight way.
        self._relay.reset(*(before - proxied))


def merged(shares: Iterable[Share]) -> dict[Pair, Faults]:
    """The proxy's part of all shares: of each link, the worst of each kind."""
    links: dict[Pair, Faults] = {}
    for share in shares:
        for pair, new in share.links.items():
            old = links.get(pair, Faults())
            pieces = [faults.piece_bytes for faults in (old, new) if faults.piece_bytes]
            links[pair] = Faults(
                delay_ms=max(old.delay_ms, new.delay_ms),
                stalled=old.stalled or new.stalled,
                piece_bytes=min(pieces, default=0),
                damaged_percent=max(old.damaged_percent, new.damaged_percent),
                refused=old.refused or new.refused,
            )
    return links


def has_whole_majority(count: int, shares: Iterable[Share]) -> bool:
    """Whether more than half of the nodes have no share of anything between them."""
    touched = {frozenset(pair) for share in shares for pair in (*share.cut, *share.loss, *share.links)}
    majorities = itertools.combinations(range(1, count + 1), count // 2 + 1)
    return any(
        all(frozenset(pair) not in touched for pair in itertools.combinations(some, 2)) for some in majorities
    )
