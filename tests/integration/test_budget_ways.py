"""Concurrent calls at the end of a hard budget, by every way of asking that docs/budgets.md has a row for."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from tests.acting import BY
from tests.integration.budget_ways import ASSUMED, REFUSED, USES, WAYS, Way, answer_to, request_of

from mcpmeter.config import BudgetSettings, ProviderSettings
from mcpmeter.config.relay import RetrySettings, RouteSettings
from mcpmeter.ledger.queries.budget_history import add_top_up
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.records import TopUp

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLS = 12
ROUNDS_IN_FULL = 10
"""For each way: more than four hundred."""
AMPLE = 1000 * 10**9
KEY = SecretStr("sk-another-credential-0123456789")


class Biller:
    """An upstream that bills each call as dear as its way of asking allows."""

    def __init__(self) -> None:
        self.url = ""
        self.failing: set[str] = set()
        """Models that answer 503."""
        self._random = Random(7)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                (length,) = re.findall(rb"(?i)content-length: *(\d+)", head)
                body = await reader.readexactly(int(length))
                await asyncio.sleep(self._random.uniform(0, 0.004))
                writer.write(self._answer(body))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, body: bytes) -> bytes:
        (name,) = re.findall(rb"way:([^;]+);", body)
        if any(b'"%s"' % model.encode() in body for model in self.failing):
            return b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
        answer = answer_to({**WAYS, **REFUSED, **ROUTED}[name.decode()], len(body))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
        return head + answer


ROUTED = {
    "routed": Way(
        "/v1/chat/completions",
        {"model": "smart", "max_tokens": 64, "messages": [{"role": "user", "content": "TEXT"}]},
    )
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def biller() -> AsyncIterator[Biller]:
    upstream = Biller()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield upstream
    server.close()


def providers(biller: Biller) -> tuple[ProviderSettings, ...]:
    addresses = {"openai": "/v1", "anthropic": "/v1", "gemini": "/v1beta"}
    return tuple(
        ProviderSettings(name=name, base_url=biller.url + path, api_key=KEY) for name, path in addresses.items()
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay: Any, biller: Biller) -> Any:
    budget = BudgetSettings.model_validate({"name": "credit", "period": "once", "start": "2020-01-01", "limit_usd": 0})
    return await start_module_relay(
        upstream=f"{biller.url}/v1",
        extra_providers=providers(biller),
        budgets=(budget,),
        relay={"assumed_completion_tokens": ASSUMED, "assumed_tool_uses": USES},
    )


class Credit:
    """The prepaid budget of a relay."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        (self._budget,) = relay.service.pipeline.runtime.limits.budgets

    def left(self) -> tuple[int, int]:
        """What is left, and what is reserved."""
        with open_reader(self._relay.ledger) as reader:
            rows = list(reader.rows("SELECT credit - spent, reserved FROM balances"))
        return rows[0] if rows else (0, 0)

    async def fill_up(self, nanousd: int) -> None:
        amount = nanousd - self.left()[0]
        record = TopUp(
            id=f"top_{secrets.token_hex(6)}",
            balance=self._budget.balance,
            amount_nanousd=amount,
            at_ns=time.time_ns(),
        )
        await asyncio.to_thread(add_top_up, self._relay.ledger, record, budget="credit", by=BY)


async def ask(relay: Any, name: str, way: Way) -> int:
    return (await relay.ask(request_of(way, name), way.path)).status


def rows_after(relay: Any, known: set[str]) -> list[Any]:
    found = [row for row in relay.rows() if row.id not in known]
    known |= {row.id for row in found}
    return found


def taken(row: Any) -> int:
    return int(row.cost_nanousd + row.fallback_cost_nanousd)


@pytest.mark.trial
async def test_no_way_of_asking_overspends_beyond_its_bound(relay: Any, trials: Any) -> None:
    credit, random, known = Credit(relay), Random(3), set[str]()
    statuses: Counter[int] = Counter()
    overspent, beyond_bound, reserved = 0, 0, 0
    for name, way in WAYS.items():
        await credit.fill_up(AMPLE)
        assert await ask(relay, name, way) == 200, name
        await relay.until_idle()
        (one,) = rows_after(relay, known)
        assert not way.is_bounded or taken(one) <= one.reserved_nanousd, name
        for _ in range(ROUNDS_IN_FULL if trials.full else 1):
            await credit.fill_up(int(one.reserved_nanousd * random.uniform(1, 4)))
            statuses.update(await asyncio.gather(*(ask(relay, name, way) for _ in range(CALLS))))
            await relay.until_idle()
            rows = rows_after(relay, known)
            bound = sum(max(taken(row) - row.reserved_nanousd, 0) for row in rows)
            assert not way.is_bounded or bound == 0, name
            left, kept = credit.left()
            overspent = max(overspent, -left)
            beyond_bound += max(-left - bound, 0)
            reserved += kept
    trials.record(
        "Budgets by every way of asking",
        f"Rounds of {CALLS} concurrent calls at a prepaid budget with room for one to four of them, for each way of "
        "asking: limits under several names, choices, pictures, prompts by reference, tools of the provider, tiers. "
        "The upstream bills as much as each way allows.",
        {
            "ways": len(WAYS),
            "rounds": len(WAYS) * (ROUNDS_IN_FULL if trials.full else 1),
            "admitted": statuses[200],
            "refused by 402": statuses[402],
            "overspent beyond the documented bound, nano-dollars": beyond_bound,
            "overspent by calls without a limit, nano-dollars, maximum": overspent,
            "still reserved after the rounds, nano-dollars": reserved,
        },
    )
    assert set(statuses) == {200, 402}
    assert (beyond_bound, reserved) == (0, 0)


@pytest.mark.parametrize("name", REFUSED)
async def test_a_limit_that_bounds_nothing_is_400_under_a_hard_budget(relay: Any, name: str) -> None:
    before = len(relay.rows())
    reply = await relay.ask(request_of(REFUSED[name], name), REFUSED[name].path)
    assert reply.status == 400
    assert b"whole number" in reply.body
    assert len(relay.rows()) == before


async def test_a_budget_that_warns_lets_such_a_limit_pass(start_module_relay: Any, biller: Biller) -> None:
    budget = BudgetSettings.model_validate({"name": "soft", "limit_usd": 1, "hard": False})
    relay = await start_module_relay(upstream=f"{biller.url}/v1", extra_providers=providers(biller), budgets=(budget,))
    assert {await ask(relay, name, way) for name, way in REFUSED.items()} == {200}


# Routes of two models -------------------------------------------------------------------------------------------------

CHEAP, DEAR = "gpt-4.1-mini", "gpt-4.1"


async def two_models(start: Any, biller: Biller, mode: str, **limits: Any) -> Any:
    route = RouteSettings.model_validate(
        {
            "models": ["smart"],
            "mode": mode,
            "upstreams": [{"name": "openai", "model": CHEAP}, {"name": "holysheep", "model": DEAR}],
        }
    )
    models = {"cheap": CHEAP, "dear": DEAR}
    budgets = [
        BudgetSettings.model_validate({"name": name, "model": models[name], "limit_usd": limit})
        for name, limit in limits.items()
    ]
    everything = BudgetSettings.model_validate({"name": "all", "limit_usd": 1000})
    return await start(
        upstream=f"{biller.url}/v1",
        extra_providers=providers(biller),
        routes=(route,),
        budgets=(*budgets, everything),
        relay={"retries": RetrySettings(base_ms=1, cap_ms=1, budget_ratio=1)},
    )


def spent_by_budget(relay: Any) -> dict[str, int]:
    budgets = {budget.balance: budget.name for budget in relay.service.pipeline.runtime.limits.budgets}
    with open_reader(relay.ledger) as reader:
        rows = list(reader.rows("SELECT balance, spent, reserved FROM balances"))
    assert not any(reserved for _, _, reserved in rows)
    return {budgets[balance]: spent for balance, spent, _ in rows}


@pytest.mark.parametrize("mode", ["weighted", "ordered"])
async def test_a_models_budget_equals_its_rows(start_module_relay: Any, biller: Biller, mode: str) -> None:
    relay = await two_models(start_module_relay, biller, mode, cheap=1000, dear=1000)
    biller.failing = {CHEAP} if mode == "ordered" else set()
    try:
        statuses = Counter(await asyncio.gather(*(ask(relay, "routed", ROUTED["routed"]) for _ in range(40))))
        await relay.until_idle()
    finally:
        biller.failing = set()
    assert set(statuses) <= {200, 503}
    rows = relay.rows()
    by_model = {name: sum(taken(row) for row in rows if row.model == name) for name in (CHEAP, DEAR)}
    assert by_model[DEAR] > 0
    assert (by_model[CHEAP] > 0) == (mode == "weighted")
    spent = spent_by_budget(relay)
    assert spent == {"cheap": by_model[CHEAP], "dear": by_model[DEAR], "all": sum(by_model.values())}


async def test_a_model_whose_budget_is_full_gets_no_call(start_module_relay: Any, biller: Biller) -> None:
    relay = await two_models(start_module_relay, biller, "weighted", dear="0.0000001")
    assert {await ask(relay, "routed", ROUTED["routed"]) for _ in range(12)} == {200}
    await relay.until_idle()
    assert {row.model for row in relay.rows()} == {CHEAP}
    assert spent_by_budget(relay)["dear"] == 0


async def test_no_failover_goes_to_a_model_whose_budget_is_full(start_module_relay: Any, biller: Biller) -> None:
    relay = await two_models(start_module_relay, biller, "ordered", dear="0.0000001")
    biller.failing = {CHEAP}
    try:
        assert await ask(relay, "routed", ROUTED["routed"]) == 503
    finally:
        biller.failing = set()
    assert {row.model for row in relay.rows()} == {CHEAP}


async def test_a_route_all_of_whose_budgets_are_full_is_402(start_module_relay: Any, biller: Biller) -> None:
    relay = await two_models(start_module_relay, biller, "weighted", cheap="0.0000001", dear="0.0000001")
    reply = await relay.ask(request_of(ROUTED["routed"], "routed"), ROUTED["routed"].path)
    assert reply.status == 402
    assert relay.rows() == []
