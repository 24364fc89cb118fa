"""The soak's network form: its faults do what they say, and a short run of it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.soak.field import Field
from tests.soak.history import History
from tests.soak.netns import network, why_not
from tests.soak.network import Network
from tests.soak.network_faults import KINDS, Leadership, NetworkFault
from tests.soak.places import router_plan
from tests.soak.proxy import Faults, proxy
from tests.soak.run import Plan, soak
from tests.soak.weather import Share, Weather, has_whole_majority, merged

SHORT_S = 10.0
SHORT_SEED = 51
"""Of its first eight faults each is of another kind."""
KINDS_MIN = 4
"""On a machine so busy that it strikes a few times only."""


class FakeNetwork:
    """Takes what the weather puts on it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.ids = range(1, count + 1)
        self.cut: set[tuple[int, int]] = set()
        self.loss: dict[tuple[int, int], int] = {}
        self.proxied: set[tuple[int, int]] = set()

    def between(self, some: set[int]) -> set[tuple[int, int]]:
        return {(a, b) for a in self.ids for b in self.ids if (a in some) != (b in some)}

    def apply(self) -> None:
        return


class FakeProxy:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.faults: dict[tuple[int, int], Faults] = {}
        self.was_reset: list[tuple[int, int]] = []

    def links(self, faults: dict[tuple[int, int], Faults]) -> None:
        self.faults |= faults

    def reset(self, *pairs: tuple[int, int]) -> None:
        self.was_reset += pairs


@pytest.fixture
def parts() -> tuple[FakeNetwork, FakeProxy, Weather]:
    net, relay = FakeNetwork(5), FakeProxy()
    return net, relay, Weather(cast(Any, net), cast(Any, relay))


def _field() -> Field:
    nodes = [SimpleNamespace(node_id=node_id) for node_id in range(1, 6)]
    watch = SimpleNamespace(leader=2)
    return Field(cast(Any, SimpleNamespace(nodes=nodes)), cast(Any, watch), History(), 500)


def test_faults_overlap_and_each_takes_away_its_own(parts: tuple[FakeNetwork, FakeProxy, Weather]) -> None:
    net, _, weather = parts
    weather.put("a", Share(cut=frozenset({(1, 2), (2, 1)}), loss={(3, 4): 10}))
    weather.put("b", Share(cut=frozenset({(1, 2)}), loss={(3, 4): 20}))
    assert (net.cut, net.loss) == ({(1, 2), (2, 1)}, {(3, 4): 20})
    weather.take("b")
    assert (net.cut, net.loss) == ({(1, 2), (2, 1)}, {(3, 4): 10})
    weather.take("a")
    assert (net.cut, net.loss) == (set(), {})


def test_links_go_through_the_proxy_while_a_fault_needs_it(
    parts: tuple[FakeNetwork, FakeProxy, Weather],
) -> None:
    net, relay, weather = parts
    weather.put("a", Share(links={(1, 2): Faults(delay_ms=5)}))
    weather.put("b", Share(links={(1, 2): Faults(stalled=True)}))
    assert net.proxied == {(1, 2), (2, 1)}
    assert relay.faults == {(1, 2): Faults(delay_ms=5, stalled=True), (2, 1): Faults()}
    weather.take("b")
    assert relay.faults[(1, 2)] == Faults(delay_ms=5)
    assert not relay.was_reset
    weather.clear()
    assert net.proxied == set()
    assert relay.faults[(1, 2)] == Faults()
    assert sorted(relay.was_reset) == [(1, 2), (2, 1)]


def test_of_two_shares_the_worse_counts() -> None:
    one = Share(links={(1, 2): Faults(delay_ms=9, piece_bytes=4)})
    other = Share(links={(1, 2): Faults(delay_ms=3, piece_bytes=7, damaged_percent=2)})
    for shares in ([one, other], [other, one]):
        assert merged(shares) == {(1, 2): Faults(delay_ms=9, piece_bytes=4, damaged_percent=2)}
    assert merged([one, Share(links={(1, 2): Faults()})])[(1, 2)].piece_bytes == 4


@pytest.mark.parametrize(
    ("pairs", "whole"),
    [
        ([], True),
        ([(1, 2)], True),
        ([(1, 2), (3, 4)], True),
        ([(1, 2), (3, 4), (1, 5)], True),
        ([(1, 2), (2, 3), (3, 4), (4, 5), (5, 1)], False),
        ([(a, b) for a in range(1, 6) for b in range(1, 6) if a < b and (a <= 2) != (b <= 2)], True),
    ],
)
def test_when_a_majority_is_whole(pairs: list[tuple[int, int]], whole: bool) -> None:
    assert has_whole_majority(5, [Share(cut=frozenset(pairs))]) is whole
    assert has_whole_majority(5, [Share(loss=dict.fromkeys(pairs, 5))]) is whole


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_the_same_whoever_leads(
    kind: type[NetworkFault], parts: tuple[FakeNetwork, FakeProxy, Weather]
) -> None:
    weather = parts[2]
    fault = kind(weather, Leadership(weather))
    field, left = _field(), set()
    for leader in (0, 2, 5):
        cast(Any, field.watch).leader = leader
        chance = random.Random(11)
        fault.share(field, chance)
        left.add(chance.random())
    assert len(left) == 1
    for seed in range(50):
        share = fault.share(field, random.Random(seed))
        touched = {*share.cut, *share.loss, *share.links}
        assert touched
        assert all(a != b and a in range(1, 6) and b in range(1, 6) for a, b in touched)


def test_the_kinds_differ() -> None:
    assert len({kind.kind for kind in KINDS}) == len(KINDS)
    assert Counter(kind.kind.split(":")[0] for kind in KINDS)["partition"] == 5


def test_weather_on_a_real_network() -> None:
    if reason := why_not():
        pytest.skip(reason)
    with network(3) as net, proxy(router_plan(net, 1), net.router.prefix) as relay:
        weather = Weather(net, relay)
        weather.put("a", Share(cut=frozenset({(1, 2)}), loss={(2, 3): 7}, links={(1, 3): Faults(delay_ms=1)}))
        rules = net.router.run("nft", "list", "table", "ip", "pgraft")
        assert f'ip saddr {net.address(1)} ip daddr {net.address(2)} counter name "cut" drop' in rules
        assert "numgen random mod 100 < 7" in rules
        assert rules.count("redirect to :7000") == 2
        assert not weather.is_whole_for_most or net.count == 3
        weather.clear()
        rules = net.router.run("nft", "list", "table", "ip", "pgraft")
        assert "drop" not in rules.replace("policy accept", "")
        assert weather.report()["packets cut"] == 0


@pytest.mark.cluster
def test_a_bad_network_for_a_while(template: Path) -> None:
    form = Network()
    if reason := form.why_not():
        pytest.skip(reason)
    form.pause_s = (0.2, 0.7)
    plan = Plan(seconds=SHORT_S, seed=SHORT_SEED, calm_s=1, audit_pause_s=1, election_timeout_ms=500)
    report = soak(form, plan, template)
    assert report.violations == [], report.text()
    assert report.entries > 0
    assert len(report.faults) >= KINDS_MIN
    assert int(report.own["packets cut"]) > 0
    assert int(report.own["connections through the proxy"]) > 0


@pytest.mark.slow
def test_a_bad_network_for_longer(template: Path) -> None:
    form = Network()
    if reason := form.why_not():
        pytest.skip(reason)
    report = soak(form, Plan(seconds=300, seed=1, nodes=5), template)
    assert report.violations == [], report.text()
