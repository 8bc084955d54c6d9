"""Weighted routes: first attempts and retries are shared by weight."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal
from random import Random

from tests.routing.world import World, plan, upstream

from mcpmeter.routing.attempts import Send
from mcpmeter.routing.circuit_breaker import CircuitOptions
from mcpmeter.routing.retries import RetryOptions
from mcpmeter.routing.routes import Upstream

CALLS = 20_000


def shares(world: World, *upstreams: Upstream) -> dict[str, float]:
    plans = plan(*upstreams, mode="weighted")
    first: Counter[str] = Counter()
    for _ in range(CALLS):
        with world.failover.begin(plans, 60) as attempts:
            step = attempts.next()
            assert isinstance(step, Send)
            first[step.candidate.upstream.name] += 1
            attempts.answered(200, {})
    return {name: n / CALLS for name, n in first.items()}


def within_four_sigma(share: float, expected: float) -> bool:
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / CALLS)


def test_each_upstream_gets_its_share() -> None:
    weighted = [upstream("x", weight=1), upstream("y", weight=2), upstream("z", weight=7)]
    found = shares(World(random=Random(1).random), *weighted)
    for name, expected in (("x", 0.1), ("y", 0.2), ("z", 0.7)):
        assert within_four_sigma(found[name], expected)


def test_an_open_circuits_share_goes_to_the_others() -> None:
    world = World(RetryOptions(max_attempts=1), CircuitOptions(failures=1), Random(4).random)
    z = upstream("z", weight=7)
    world.call([z], 503)
    found = shares(world, upstream("x", weight=1), upstream("y", weight=2), z)
    assert set(found) == {"x", "y"}
    assert within_four_sigma(found["x"], 1 / 3)


def test_a_retry_is_drawn_by_the_weights_of_the_others() -> None:
    world = World(RetryOptions(budget_ratio=Decimal(1)), CircuitOptions(failures=10**6), Random(5).random)
    upstreams = plan(upstream("x", weight=1), upstream("y", weight=3), upstream("z", weight=6), mode="weighted")
    second: Counter[str] = Counter()
    for _ in range(CALLS):
        attempts = world.failover.begin(upstreams, 60)
        step = attempts.next()
        assert isinstance(step, Send)
        if step.candidate.upstream.name == "z" and attempts.answered(503, {}):
            again = attempts.next()
            assert isinstance(again, Send)
            second[again.candidate.upstream.name] += 1
        attempts.close()
    assert set(second) == {"x", "y"}
    share, n = second["x"] / second.total(), second.total()
    assert n > 10_000
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)
