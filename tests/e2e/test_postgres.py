"""The ledger on PostgreSQL: services and the database itself are killed under load; replicas share one budget."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import httpx2
import psycopg
import pytest
from tests.e2e.killing import CLIENTS, MIXED, PACE, Answered, Load, changed_by_restart, duplicates_of, missing_of

from mcpmeter.ledger.queries.reader import open_reader

ANSWERS_BEFORE_A_KILL = (20, 150)
BUDGET = "budgets: [{name: whole, limit_usd: 1000000, period: month}]\n"


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    """Wait for a condition in another process."""
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.05)


async def ready(address: str) -> bool:
    async with httpx2.AsyncClient(verify=False) as http:
        return (await http.get(f"{address}/-/ready")).status_code == 200


def none_open(stand: Any) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return all(row["state"] == "settled" for row in await asyncio.to_thread(stand.rows))

    return holds


def faults_of(stand: Any, answered: list[Answered]) -> dict[str, int]:
    """Faults, counted: in the ledger, and between it, the clients, the provider's billing log and the budget."""
    rows = stand.rows()
    with open_reader(stand.ledger) as reader:
        [(spent, reserved)] = reader.rows("SELECT sum(spent), sum(reserved) FROM balances WHERE unit = 'nanousd'")
    kept = sum(row["cost_nanousd"] + row["fallback_cost_nanousd"] for row in rows)
    return {
        "answered calls missing from the ledger, or with other tokens": missing_of(answered, rows),
        "duplicates": duplicates_of(rows),
        "calls of the provider's billing log without a row": max(0, stand.billing_log()["totals"]["calls"] - len(rows)),
        "rows open at the end": sum(row["state"] == "open" for row in rows),
        "nano-dollars between the budget's month and the sum of its rows": abs(spent - kept),
        "nano-dollars still reserved": reserved,
    }


async def test_the_command_serves_checks_and_reports_on_postgresql(stand, run, postgres_url):
    stand.ledger = postgres_url
    stand.start_simulator("--seed", 4)
    stand.configure(extra=BUDGET)
    env = {"UPSTREAM_KEY": "sk-simulated-upstream"}
    checked = await asyncio.to_thread(run, "check", "--config", stand.config, env=env)
    assert (checked.code, postgres_url.rpartition("@")[2] in checked.stdout) == (0, True)
    await asyncio.to_thread(stand.start_relay)
    load = Load(lambda: stand.address, Random(3))
    running = asyncio.create_task(load.run())
    await load.until(lambda: len(load.answered) >= 30)
    load.stopping = True
    await running
    [total] = await asyncio.to_thread(stand.report, "outcome")
    assert (total["outcome"], total["calls"]) == ("ok", len(load.answered))
    assert total["completion_tokens"] == sum(call.completion_tokens for call in load.answered)
    assert set((await asyncio.to_thread(faults_of, stand, load.answered)).values()) == {0}

    made = await asyncio.to_thread(run, "keys", "create", "--name", "n", "--team", "t", "--ledger", postgres_url)
    assert made.code == 0
    await until(lambda: answers_401(stand.address))  # with a key in the ledger, calls need one
    checked = await asyncio.to_thread(run, "check", "--config", stand.config, env=env)
    assert "n (t, ledger)" in checked.stdout
    finished = await asyncio.to_thread(stand.relay.end)
    output = "".join((finished.stdout, finished.stderr, checked.stdout, checked.stderr, made.stdout, made.stderr))
    assert postgres_url.split(":")[2].partition("@")[0] not in output


async def answers_401(address: str) -> bool:
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Count."}]}
    async with httpx2.AsyncClient(verify=False) as http:
        return (await http.post(f"{address}/v1/chat/completions", json=body)).status_code == 401


@pytest.mark.trial
async def test_no_answered_call_is_lost_when_the_service_is_killed(stand, trials, postgres_url):
    stand.ledger = postgres_url
    stand.start_simulator("--seed", 5, *PACE)
    stand.configure(extra=BUDGET)
    random = Random(31)
    answered: list[Answered] = []
    cut = recovered = unequal = 0
    seconds_to_restart: list[float] = []
    rounds = 50 if trials.full else 2
    await asyncio.to_thread(stand.start_relay)
    for _ in range(rounds):
        load = Load(lambda: stand.address, random, MIXED)
        running = asyncio.create_task(load.run())
        aim = random.randrange(*ANSWERS_BEFORE_A_KILL)
        await load.until(lambda load=load, aim=aim: len(load.answered) >= aim)
        load.stopping = True
        assert (await asyncio.to_thread(stand.relay.end, signal.SIGKILL)).code == -signal.SIGKILL
        await running
        answered += load.answered
        cut += load.cut
        before = await asyncio.to_thread(stand.rows)
        began = time.monotonic()
        await asyncio.to_thread(stand.start_relay)
        seconds_to_restart.append(time.monotonic() - began)
        await until(none_open(stand))
        unequal += changed_by_restart(before, await asyncio.to_thread(stand.rows))
        recovered += sum(row["state"] == "open" for row in before)

    faults = await asyncio.to_thread(faults_of, stand, answered)
    trials.record(
        "kill -9 of the service on PostgreSQL",
        f"The ledger is on PostgreSQL, with one budget; {CLIENTS} clients call: JSON, streams, embeddings, "
        "tools at /mcp. After each restart settled rows have to be unchanged, and open ones recovered once the killed "
        "service's lease of two seconds has expired.",
        {
            "kills": rounds,
            "answered calls": len(answered),
            "calls cut off by a kill": cut,
            "rows left open by a kill, and recovered": recovered,
            "settled rows that a restart changed": unequal,
            **faults,
            "seconds to restart, maximum": max(seconds_to_restart),
        },
    )
    assert set(faults.values()) == {0}, faults
    assert unequal == 0
    assert recovered > 0, "no kill hit an open call: the load is too small to prove anything"
    assert (await asyncio.to_thread(stand.relay.end)).code == 0


@pytest.mark.trial
async def test_no_answered_call_is_lost_when_the_database_is_killed(stand, trials, postgres_to_kill):
    stand.ledger = postgres_to_kill.new_database()
    stand.start_simulator("--seed", 6, *PACE)
    stand.configure(extra=BUDGET)
    random = Random(37)
    rounds = 20 if trials.full else 2
    await asyncio.to_thread(stand.start_relay)
    load = Load(lambda: stand.address, random)
    running = asyncio.create_task(load.run())
    seconds_to_ready: list[float] = []
    for _ in range(rounds):
        aim = len(load.answered) + random.randrange(*ANSWERS_BEFORE_A_KILL)
        await load.until(lambda aim=aim: len(load.answered) >= aim)
        refused = load.refused.total()
        await asyncio.to_thread(postgres_to_kill.stop, signal.SIGKILL)
        # While the database is down, calls are refused and the service is not ready.
        await load.until(lambda refused=refused: load.refused.total() >= refused + CLIENTS)
        assert not await ready(stand.address)
        await asyncio.to_thread(postgres_to_kill.start)
        began = time.monotonic()
        await until(lambda: ready(stand.address))
        seconds_to_ready.append(time.monotonic() - began)
    aim = len(load.answered) + CLIENTS
    await load.until(lambda: len(load.answered) >= aim)
    load.stopping = True
    await running
    await until(none_open(stand))

    faults = await asyncio.to_thread(faults_of, stand, load.answered)
    trials.record(
        "kill -9 of PostgreSQL",
        f"The server's main process is killed, and with it all others, while {CLIENTS} clients call; it recovers from "
        "its log, and the service continues without a restart. Meanwhile calls are refused with 503 before they are "
        "sent; those in flight fail.",
        {
            "kills": rounds,
            "answered calls": len(load.answered),
            "calls refused while it was down": load.refused[503],
            "responses other than 200 and 503": load.refused.total() - load.refused[503],
            "calls cut off": load.cut,
            **faults,
            "seconds until the service is ready again, maximum": max(seconds_to_ready),
        },
    )
    assert set(faults.values()) == {0}, faults
    assert load.refused.keys() == {503}
    assert (await asyncio.to_thread(stand.relay.end)).code == 0


HANG_SECONDS = (2.5, 6.0)


@pytest.mark.trial
async def test_no_call_is_lost_or_doubled_when_the_database_hangs(stand, trials, postgres_to_kill):
    stand.ledger = postgres_to_kill.new_database()
    stand.start_simulator("--seed", 8, *PACE)
    stand.configure(extra=BUDGET)
    random = Random(41)
    rounds = 20 if trials.full else 2
    await asyncio.to_thread(stand.start_relay)
    load = Load(lambda: stand.address, random)
    running = asyncio.create_task(load.run())
    to_notice, to_ready, to_refuse = [0.0], [0.0], [0.0]
    for number in range(rounds):
        aim = len(load.answered) + random.randrange(*ANSWERS_BEFORE_A_KILL)
        await load.until(lambda aim=aim: len(load.answered) >= aim)
        if number % 2:
            await _hang_of_one_backend(stand, postgres_to_kill, random)
            continue
        began = time.monotonic()
        postgres_to_kill.freeze()
        thaw_at = began + random.uniform(*HANG_SECONDS)
        await until(lambda: not_ready(stand.address))
        to_notice.append(time.monotonic() - began)
        while time.monotonic() < thaw_at:
            asked = time.monotonic()
            assert not await ready(stand.address)
            assert not await answers(stand.address)
            to_refuse.append(time.monotonic() - asked)
            await asyncio.sleep(0.05)
        began = time.monotonic()
        postgres_to_kill.thaw()
        await until(lambda: ready(stand.address))
        to_ready.append(time.monotonic() - began)
    aim = len(load.answered) + CLIENTS
    await load.until(lambda: len(load.answered) >= aim)
    load.stopping = True
    await running
    await until(none_open(stand))

    faults = await asyncio.to_thread(faults_of, stand, load.answered)
    trials.record(
        "PostgreSQL hangs",
        f"All of the server's processes are stopped for {HANG_SECONDS[0]} to {HANG_SECONDS[1]} seconds (SIGSTOP) while "
        f"{CLIENTS} clients call, and every second time only one backend of the service: connections stay, and nothing "
        "is answered.",
        {
            "hangs": rounds,
            "answered calls": len(load.answered),
            "calls refused while it hung": load.refused[503],
            "responses other than 200 and 503": load.refused.total() - load.refused[503],
            "calls cut off": load.cut,
            **faults,
            "seconds until /-/ready is 503, maximum": max(to_notice),
            "seconds to refuse a call after that, maximum": max(to_refuse),
            "seconds until the service is ready again, maximum": max(to_ready),
        },
    )
    assert set(faults.values()) == {0}, faults
    assert load.refused.keys() <= {503}
    assert (await asyncio.to_thread(stand.relay.end)).code == 0


async def _hang_of_one_backend(stand: Any, server: Any, random: Random) -> None:
    with psycopg.connect(stand.ledger, autocommit=True) as db:
        pids = db.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'mcpmeter' AND pid <> pg_backend_pid()"
        ).fetchall()
    [pid] = random.choice(pids)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(HANG_SECONDS[0])
    server.thaw()
    await until(lambda: ready(stand.address))


async def not_ready(address: str) -> bool:
    return not await ready(address)


async def answers(address: str) -> bool:
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Count."}]}
    async with httpx2.AsyncClient(verify=False) as http:
        return (await http.post(f"{address}/v1/chat/completions", json=body)).status_code == 200


@pytest.mark.trial
async def test_three_replicas_never_exceed_a_shared_budget(stand, trials, postgres_url):
    stand.ledger = postgres_url
    stand.start_simulator("--seed", 7)
    rounds, calls = (200 if trials.full else 3), 100
    # Each round has its own model and budget, which holds three of the hundred calls.
    models = [f"round-{number}" for number in range(rounds)]
    price = "pricing: {fallback: {prompt_usd_per_mtok: 1, completion_usd_per_mtok: 1}}\n"
    budgets = "".join(
        f"  - {{name: {model}, model: {model}, limit_usd: 0.000350, period: month}}\n" for model in models
    )
    stand.configure(extra=f"{price}budgets:\n{budgets}")
    addresses = []
    for _ in range(3):
        await asyncio.to_thread(stand.start_relay)
        addresses.append(stand.address)
    statuses: Counter[int] = Counter()
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=120, limits=limits, verify=False) as http:

        async def call(number: int, model: str) -> int:
            body = {"model": model, "max_tokens": 90, "messages": [{"role": "user", "content": "Count."}]}
            url = f"{addresses[number % 3]}/v1/chat/completions"
            return (await http.post(url, json=body)).status_code

        for model in models:
            statuses.update(await asyncio.gather(*(call(number, model) for number in range(calls))))
    with open_reader(stand.ledger) as reader:
        spent = list(reader.rows("SELECT spent, reserved FROM balances"))
    overspent = [max(0, amount - 350_000) for amount, _ in spent]
    trials.record(
        "three replicas, one budget",
        f"{calls} concurrent calls to three services on one PostgreSQL, under a budget that holds a few of them.",
        {
            "rounds": rounds,
            "calls answered": statuses[200],
            "calls refused with 402": statuses[402],
            "responses of any other status": statuses.total() - statuses[200] - statuses[402],
            "overspent, nano-dollars, all rounds together": sum(overspent),
            "nano-dollars still reserved": sum(reserved for _, reserved in spent),
        },
    )
    assert statuses.keys() == {200, 402}
    assert len(spent) == rounds
    assert sum(overspent) == 0
    assert sum(reserved for _, reserved in spent) == 0
    assert statuses[200] >= rounds
