"""The bound on memory: what is given up, what waits, what is refused."""

from __future__ import annotations

import asyncio

import pytest
from tests.http.fakes import Transport, cycle_on

from mcpmeter.errors import Overloaded
from mcpmeter.http.memory import Hold, MemoryBudget

BOUND = 1600
"""The shares: 400 of uploads, 100 of unread responses, 100 of responses that are read."""


def held(budget: MemoryBudget, size: int, share: str, evicted: list[str], name: str) -> Hold:
    hold = Hold()
    budget.make_evictable(hold, getattr(budget, share), lambda: evicted.append(name))
    budget.grow(hold, size)
    return hold


def test_the_longest_held_upload_is_evicted_above_its_share() -> None:
    reached: list[int] = []
    evicted: list[str] = []
    budget = MemoryBudget(BOUND, lambda: reached.append(1))
    holds = [held(budget, 150, "uploads", evicted, name) for name in "abc"]
    assert (evicted, budget.uploads.held_bytes, len(reached)) == (["a"], 300, 1)
    assert not budget.keep(holds[0])
    for hold in holds:
        budget.release(hold)
    assert (budget.uploads.held_bytes, budget.kept_bytes) == (0, 0)


def test_complete_uploads_are_kept_up_to_the_bound() -> None:
    evicted: list[str] = []
    budget = MemoryBudget(BOUND)
    for number in range(4):
        assert budget.keep(held(budget, 400, "uploads", evicted, str(number)))
    assert not budget.keep(held(budget, 1, "uploads", evicted, "last"))
    assert budget.kept_bytes == BOUND


def test_kept_requests_take_the_room_of_unread_responses() -> None:
    evicted: list[str] = []
    budget = MemoryBudget(BOUND)
    held(budget, 90, "unread", evicted, "unread")
    budget.grow(Hold(), BOUND - 50)
    assert (evicted, budget.unread.held_bytes) == (["unread"], 0)


async def test_one_response_in_excess_is_read_at_a_time() -> None:
    budget = MemoryBudget(BOUND)
    first, second, third = Hold(), Hold(), Hold()
    await budget.read(first, 90)
    await budget.read(second, 500)  # in excess
    waiting = asyncio.ensure_future(budget.read(third, 20))
    await budget.read(second, 500)
    assert not waiting.done()
    budget.release_response(second)
    await waiting
    assert (budget.response_bytes, third.size) == (110, 20)
    budget.release_response(first)
    budget.release_response(third)
    assert (budget.response_bytes, budget.kept_bytes) == (0, 0)


async def test_a_cancelled_wait_lets_the_next_response_read_on() -> None:
    budget = MemoryBudget(BOUND)
    first, second, third = Hold(), Hold(), Hold()
    await budget.read(first, 100)
    await budget.read(first, 1)  # now in excess
    waits = [asyncio.ensure_future(budget.read(hold, 10)) for hold in (second, third)]
    await asyncio.sleep(0)
    waits[0].cancel()
    budget.release_response(first)
    await waits[1]
    assert budget.response_bytes == 10


def test_a_decompressed_body_counts_until_its_request_ends() -> None:
    memory = MemoryBudget(1_000_000)
    cycle = cycle_on(Transport())
    cycle.memory = memory
    cycle.keep_inflated(600_000)
    assert memory.kept_bytes == 600_000
    other = cycle_on(Transport())
    other.memory = memory
    with pytest.raises(Overloaded):
        other.keep_inflated(600_000)
    cycle.release()
    assert memory.kept_bytes == 0
