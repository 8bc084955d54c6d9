"""A hundred concurrent calls at the last cent of a budget: it admits only as many as it can pay."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from random import Random
from typing import Any

import httpx2
import pytest
from tests.acting import BY

from mcpmeter.budgets.budget import Budget
from mcpmeter.budgets.period import Period
from mcpmeter.ledger.queries.budget_history import BudgetHistory, add_top_up, read_histories
from mcpmeter.records import Scope, TopUp

ROUNDS, ROUNDS_IN_FULL = 8, 200
CALLS = 100
CENT = 10**7
MAX_TOKENS = 100
BUDGET = "{name: credit, period: once, start: 2020-01-01, limit_usd: 0}"


class Race:
    """Rounds at a prepaid budget that has one cent left before each."""

    def __init__(self, stand: Any, random: Random) -> None:
        self._stand = stand
        self._random = random
        self._budget = Budget("credit", Scope(), 0, Period("once", start_ns=1_577_836_800 * 10**9))
        self.statuses: Counter[int] = Counter()
        self.overspent: list[int] = []
        self.left_reserved = 0

    def history(self) -> BudgetHistory:
        now_ns = time.time_ns()
        (found,) = read_histories(self._stand.ledger, [(self._budget.reservation(0, now_ns), now_ns)], now_ns)
        return found

    async def run(self, rounds: int, **more: Any) -> None:
        limits = httpx2.Limits(max_connections=CALLS, max_keepalive_connections=CALLS)
        async with httpx2.AsyncClient(timeout=120, limits=limits, verify=False) as http:
            for number in range(rounds):
                before = self.history().balance
                await asyncio.to_thread(self._fill_up, before.credit - before.spent, number)
                self.statuses.update(await asyncio.gather(*(self._call(http, more) for _ in range(CALLS))))
                after = self.history().balance
                self.overspent.append(max(after.spent - after.credit, 0))
                self.left_reserved += after.reserved

    def _fill_up(self, left: int, number: int) -> None:
        if left != CENT:
            record = TopUp(
                id=f"top_{secrets.token_hex(6)}",
                balance=self._budget.balance,
                amount_nanousd=CENT - left,
                at_ns=time.time_ns(),
                note=f"round {number}",
            )
            add_top_up(self._stand.ledger, record, budget="b", by=BY)

    async def _call(self, http: httpx2.AsyncClient, more: dict[str, Any]) -> int:
        body = {
            "model": self._random.choice(["gpt-4.1", "claude-sonnet-4.5", "a-model-without-a-price"]),
            "messages": [{"role": "user", "content": "Count."}],
            "stream": self._random.random() < 0.5,
            **more,
        }
        return (await http.post(f"{self._stand.address}/v1/chat/completions", json=body)).status_code


async def race(stand: Any, seed: int, rounds: int, *, extra: str = "", **more: Any) -> Race:
    stand.start_simulator("--completion-tokens", f"uniform:1-{2 * MAX_TOKENS}", "--latency-ms", "uniform:0-20")
    stand.configure(extra=f"budgets: [{BUDGET}]\n{extra}")
    stand.start_relay()
    running = Race(stand, Random(seed))
    await running.run(rounds, **more)
    return running


def counted(row: dict[str, Any]) -> int:
    return int(row["cost_nanousd"]) + int(row["fallback_cost_nanousd"])


@pytest.mark.trial
async def test_calls_with_max_tokens_never_overspend(stand: Any, trials: Any) -> None:
    running = await race(stand, 1, ROUNDS_IN_FULL if trials.full else ROUNDS, max_tokens=MAX_TOKENS)
    rows = stand.rows()
    history = running.history()
    trials.record(
        "Budgets at the last cent",
        "Rounds of a hundred concurrent calls on one service, with a cent left of a prepaid budget before each: three "
        "models, one of them without a price, JSON and streams, all with max_tokens, so that their maximum cost is "
        "known. The documented bound is 0.",
        {
            "rounds": len(running.overspent),
            "calls": sum(running.statuses.values()),
            "admitted": running.statuses[200],
            "refused by 402": running.statuses[402],
            "other responses": sum(running.statuses.values()) - running.statuses[200] - running.statuses[402],
            "rounds that overspent": sum(amount > 0 for amount in running.overspent),
            "overspent, nano-dollars, maximum": max(running.overspent),
            "calls that took more than they had reserved": sum(counted(row) > row["reserved_nanousd"] for row in rows),
            "balance minus the sum of its calls, nano-dollars": history.balance.spent - sum(map(counted, rows)),
            "still reserved after the rounds, nano-dollars": running.left_reserved,
        },
    )
    assert set(running.statuses) == {200, 402}
    assert max(running.overspent) == 0
    assert len(rows) == running.statuses[200]
    assert history.balance.spent == sum(map(counted, rows))
    assert running.left_reserved == 0


@pytest.mark.trial
async def test_calls_without_max_tokens_overspend_within_the_bound(stand: Any, trials: Any) -> None:
    rounds = ROUNDS_IN_FULL // 10 if trials.full else 2
    running = await race(stand, 2, rounds, extra=f"relay: {{assumed_completion_tokens: {MAX_TOKENS // 4}}}\n")
    rows = stand.rows()
    beyond = sum(max(counted(row) - row["reserved_nanousd"], 0) for row in rows)
    trials.record(
        "Budgets at the last cent, with completions longer than assumed",
        "The same without max_tokens: a call reserves for relay.assumed_completion_tokens, here an eighth of the "
        "longest completion. The documented bound is what the calls took beyond what they had reserved.",
        {
            "rounds": len(running.overspent),
            "admitted": running.statuses[200],
            "refused by 402": running.statuses[402],
            "overspent in one round, nano-dollars, maximum": max(running.overspent),
            "overspent in all rounds, nano-dollars": sum(running.overspent),
            "taken beyond what was reserved, nano-dollars (the bound)": beyond,
        },
    )
    assert set(running.statuses) == {200, 402}
    assert 0 < sum(running.overspent) <= beyond
    assert running.history().balance.spent == sum(map(counted, rows))
