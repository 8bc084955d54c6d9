"""The wall clock of the running service jumps by an hour, a day, ten years: nothing but dates changes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from random import Random
from typing import Any, NamedTuple

import httpx2
import pytest
from tests.e2e.watching import CLOCK, Clock, at_rest

HOUR, DAY = 3600.0, 86_400.0
JUMPS = (HOUR, -HOUR, DAY, -DAY, -3650 * DAY)
CALLS, CALLS_IN_FULL = 120, 4_000
AT_ONCE = 16
SECONDS_BETWEEN_JUMPS = 0.02
SECONDS_FOR_A_CALL = 120.0
STALL_SECONDS = 0.2
MESSAGES = [{"role": "user", "content": "Count."}]
ROOM_FOR_ONE_CALL = "{name: tight, team: support, period: day, limit_usd: 0.002, time_zone: UTC}"


class Answered(NamedTuple):
    """One call as its client saw it."""

    id: str
    status: int
    seconds: float
    stalled: bool


def begin(stand: Any, start: Any, team_keys: Any, clock: Clock) -> None:
    stand.start_simulator("--completion-tokens", "uniform:1-8", "--latency-ms", "uniform:0-30")
    stand.configure(keys=team_keys, extra=f"budgets: [{ROOM_FOR_ONE_CALL}]\n")
    stand.relay = start(
        "serve",
        "--config",
        stand.config,
        env={"UPSTREAM_KEY": "sk-simulated-upstream", "CLOCK_FILE": str(clock.file)},
        through=(sys.executable, "-c", CLOCK),
    )
    stand.address = stand.relay.says(r"OpenAI SDKs +(http://\S+)/v1")[1]


async def call(http: httpx2.AsyncClient, secret: str, simulate: str = "", **more: Any) -> Answered:
    asked = {
        "model": "gpt-4.1",
        "messages": [{"role": "user", "content": "Count."}],
        "metadata": {"simulate": simulate},
    }
    began = time.monotonic()
    answer = await http.post(
        "/v1/chat/completions", content=json.dumps(asked | more), headers={"authorization": f"Bearer {secret}"}
    )
    seconds = time.monotonic() - began
    return Answered(answer.headers.get("x-mcpmeter-call-id", ""), answer.status_code, seconds, "stall" in simulate)


async def calls_while_it_jumps(address: str, secret: str, clock: Clock, count: int, random: Random) -> list[Answered]:
    answered: list[Answered] = []
    todo = iter(range(count))
    limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx2.AsyncClient(base_url=address, timeout=SECONDS_FOR_A_CALL, limits=limits, verify=False) as http:

        async def work() -> None:
            for number in todo:
                simulate = f"stall=headers,stall_seconds={STALL_SECONDS}" if number % 4 == 0 else ""
                answered.append(await call(http, secret, simulate, stream=number % 2 == 1))

        async def jump() -> None:
            while True:
                clock.set(random.choice((0, *JUMPS)))
                await asyncio.sleep(SECONDS_BETWEEN_JUMPS)

        jumping = asyncio.create_task(jump())
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        jumping.cancel()
    clock.set(0)
    return answered


async def statuses(address: str, secret: str, count: int) -> list[int]:
    async with httpx2.AsyncClient(base_url=address, timeout=SECONDS_FOR_A_CALL, verify=False) as http:
        simulate = "completion_tokens=100"
        return [(await call(http, secret, simulate, max_tokens=100)).status for _ in range(count)]


@pytest.mark.trial
@pytest.mark.timeout(1200)
async def test_calls_settle_once_and_with_their_true_duration_while_the_clock_jumps(
    stand, start, trials, team_keys, tmp_path
):
    clock = Clock(tmp_path / "clock")
    begin(stand, start, team_keys, clock)
    count = CALLS_IN_FULL if trials.full else CALLS
    answered = await calls_while_it_jumps(stand.address, team_keys["search"], clock, count, Random(5))
    left = await at_rest(
        lambda: (stand.total("mcp_active_requests"), stand.total("mcp_ledger_open_rows")), lambda seen: not any(seen)
    )
    rows = {row["id"]: row for row in stand.rows()}
    duration = {identity: row["duration_ns"] / 1e9 for identity, row in rows.items()}
    wrong = [one for one in answered if not is_true(duration.get(one.id, -1), one)]
    starts = sorted(row["started_at_ns"] for row in rows.values())
    trials.record(
        "Clock jumps",
        "The wall clock of the running service jumps every 20 ms, by an hour and a day in both directions and by ten "
        "years back, while calls and streams run. A duration is wrong if it is longer than the call took for its "
        "client, or shorter than the provider's stall.",
        {
            "calls": count,
            "rows, each with an id of its own": len(rows),
            "years between the first and the last start in the ledger": (starts[-1] - starts[0]) / 1e9 / DAY / 365,
            "calls that were not answered with 200": sum(one.status != 200 for one in answered),
            "wrong durations": len(wrong),
            "mcp_active_requests at the end": int(left[0]),
            "mcp_ledger_open_rows at the end": int(left[1]),
        },
    )
    assert Counter(one.status for one in answered) == {200: count}
    assert rows.keys() == {one.id for one in answered}
    assert {row["state"] for row in rows.values()} == {"settled"}
    assert starts[-1] - starts[0] > 3000 * DAY * 1e9
    assert wrong == []
    assert left == (0, 0)
    assert (stand.relay.end().code, stand.relay.process.returncode) == (0, 0)


def is_true(seconds: float, answered: Answered) -> bool:
    """Whether a row's duration can be the call's."""
    return (STALL_SECONDS if answered.stalled else 0) <= seconds <= answered.seconds


@pytest.mark.trial
async def test_budget_periods_and_expiry_follow_the_clock_of_the_running_service(
    stand, start, run, team_keys, tmp_path
):
    clock = Clock(tmp_path / "clock")
    begin(stand, start, team_keys, clock)
    created = run("keys", "create", "--name", "brief", "--team", "search", "--expires", "30m", "--ledger", stand.ledger)
    brief, room = created.stdout.strip(), team_keys["support"]
    await at_rest(lambda: asyncio.run(statuses(stand.address, brief, 1)), lambda seen: seen == [200])

    assert await statuses(stand.address, room, 2) == [200, 402]
    for jump, found in ((DAY, [200, 402]), (0, [402]), (-DAY, [200, 402]), (-3650 * DAY, [200, 402]), (0, [402])):
        clock.set(jump)
        assert (jump, await statuses(stand.address, room, len(found))) == (jump, found)
    for jump, status in ((HOUR, 401), (0, 200), (DAY, 401), (-3650 * DAY, 200), (0, 200)):
        clock.set(jump)
        assert (jump, await statuses(stand.address, brief, 1)) == (jump, [status])
