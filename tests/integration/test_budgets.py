"""Budgets through the real service: reserved, refused, settled and given back, on every endpoint."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import httpx2
import mcp
import pytest
from pydantic import SecretStr
from tests.acting import BY

from mcpmeter.config import AttributionSettings, BudgetSettings, KeySettings, ProviderSettings
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.records import TopUp
from mcpmeter.service import Service, bind
from mcpmeter.service.run import running
from mcpmeter.simulator import Simulator

USD = 10**9
CHAT_BODY = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}
SECRET = "pk-7Rq2vX9bLw4TnZ8mKs1HdJ6yCf3Ga5Ue"
OTHER = "pk-Zt5mWq8RcN2vYb7LxKd4JhGf9SaPe3Uo"
KEYS = (
    KeySettings(name="backend", team="search", project="web", secret=SecretStr(SECRET)),
    KeySettings(name="bot", team="support", secret=SecretStr(OTHER)),
)


@pytest.fixture
def new_place(place_of_either_engine):
    return place_of_either_engine


def tight(**changes: Any) -> BudgetSettings:
    """Room for one call of 100 completion tokens of gpt-4.1: about $0.001 plus the prompt."""
    return BudgetSettings(**{"name": "tight", "limit_usd": Decimal("0.002"), **changes})


def budget(limit_usd: str, **more: object) -> tuple[BudgetSettings, ...]:
    return (BudgetSettings(**{"name": "monthly", "limit_usd": Decimal(limit_usd), **more}),)


async def chat(relay: Any, **more: Any) -> Any:
    return await relay.chat("completion_tokens=100", max_tokens=100, **more)


def balances(relay) -> dict[str, tuple[int, int]]:
    """(spent, reserved) by balance, read as another process would."""
    with open_reader(relay.ledger) as reader:
        rows = reader.rows("SELECT balance, spent, reserved FROM balances")
        return {balance: (spent, reserved) for balance, spent, reserved in rows}


async def test_a_call_beyond_the_budget_is_402_and_says_why(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    assert (await chat(relay)).status == 200
    refused = await chat(relay)
    assert refused.status == 402
    assert refused.error["code"] == "budget_exhausted"
    assert "The budget 'tight' has $0.000" in refused.error["message"]
    assert "It resets at 20" in refused.error["message"]
    scrape = relay.counts()
    assert scrape.of("mcp_budget_refusals_total", budget="tight") == 1
    assert scrape.of("mcp_errors_total", error_type="budget_exceeded", side="client") == 1
    assert len(relay.rows()) == 1  # the refused one has no row, and never went upstream
    assert len(list(relay.simulator.billing_log.calls())) == 1


async def test_a_budget_that_only_warns_lets_calls_through(start_relay) -> None:
    relay = await start_relay(budgets=(tight(hard=False),))
    assert [(await chat(relay)).status for _ in range(4)] == [200] * 4
    await relay.service.budgets.refresh()
    (status,) = relay.service.budgets.status()
    assert status.left_nanousd < 0
    assert relay.counts().of("mcp_budget_spent_usd", budget="tight") > 0.004


async def test_spending_survives_a_restart(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    assert (await chat(relay)).status == 200
    await relay.end()
    service = Service(lambda: relay.settings)
    async with running(service, bind("127.0.0.1", 0)) as relay.url, httpx2.AsyncClient(verify=False) as relay.http:
        (status,) = service.budgets.status()
        assert status.spent_nanousd == sum(row.cost_nanousd for row in relay.rows()) > 0
        assert (await chat(relay)).status == 402


async def test_a_reload_changes_the_limit_and_keeps_the_spending(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    assert [(await chat(relay)).status for _ in range(2)] == [200, 402]
    raised = relay.settings.model_copy(update={"budgets": (tight(limit_usd=Decimal("0.004")),)})
    relay.service._load = lambda: raised
    assert (await relay.ask(path="/-/reload")).status == 200
    assert relay.counts().of("mcp_budget_limit_usd", budget="tight") == 0.004
    assert [(await chat(relay)).status for _ in range(3)] == [200, 200, 402]


async def test_a_top_up_lets_calls_in_again(start_relay) -> None:
    relay = await start_relay(budgets=(tight(period="once", start="2026-01-01"),))
    assert [(await chat(relay)).status for _ in range(2)] == [200, 402]
    ((budget, _),) = relay.service.pipeline.runtime.limits.budgets.current(0)
    await relay.service._store.top_up(
        TopUp(id="top_1", balance=budget.balance, amount_nanousd=USD // 500, at_ns=1), budget="b", by=BY
    )
    assert (await chat(relay)).status == 200


async def test_an_unpriced_model_uses_the_fallback_price(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    assert (await chat(relay, model="nobody-prices-this")).status == 200
    await relay.service.budgets.refresh()
    (status,) = relay.service.budgets.status()
    (row,) = relay.rows()
    assert (row.cost_nanousd, row.fallback_cost_nanousd) == (0, status.spent_nanousd)
    assert status.spent_nanousd == row.prompt_tokens * 3_000 + row.completion_tokens * 15_000
    scrape = relay.counts()
    assert scrape.of("mcp_budget_fallback_priced_total", provider="holysheep") == 1
    assert scrape.of("mcp_unpriced_requests_total", provider="holysheep", reason="unknown_model") == 1
    assert (await chat(relay, model="nobody-prices-this")).status == 402


async def test_a_running_call_reserves_its_upper_bound(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    stalled = asyncio.create_task(relay.chat("stall=headers,stall_seconds=30", max_tokens=100))
    await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 1)
    await relay.service.budgets.refresh()
    (status,) = relay.service.budgets.status()
    assert status.reserved_nanousd >= 1_000_000
    assert (await chat(relay)).status == 402
    stalled.cancel()
    await asyncio.wait([stalled])
    await relay.until_idle()
    await relay.service.budgets.refresh()
    assert relay.service.budgets.status()[0].reserved_nanousd == 0


async def test_the_project_header_selects_the_budget(start_relay) -> None:
    relay = await start_relay(
        attribution=AttributionSettings(values=("web", "mobile")), budgets=(tight(project="web"),)
    )

    async def call(project: str) -> int:
        body = {**CHAT_BODY, "max_tokens": 100, "metadata": {"simulate": "completion_tokens=100"}}
        return int((await relay.ask(body, headers={"X-Mcpmeter-Project": project})).status)

    assert [await call(project) for project in ("web", "web", "mobile", "mobile", "desk")] == [200, 402, 200, 200, 403]
    assert [row.project for row in relay.rows()] == ["web", "mobile", "mobile"]


async def test_the_api_shows_a_caller_only_its_own_budgets(start_relay) -> None:
    keys = {"search": "mk_q7Zk2vXw9LtRbN4mJcHs8dPfYg3eUaT5", "support": "mk_aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY"}
    budgets = (tight(name="search", team="search"), tight(name="support", team="support"), tight(name="all"))
    relay = await start_relay(keys=keys, budgets=budgets)
    for team, secret in keys.items():
        answer = await relay.ask(path="/api/budgets", method="GET", headers={"authorization": f"Bearer {secret}"})
        assert [budget["name"] for budget in answer.json["budgets"]] == [team]
    assert (await relay.ask(path="/api/budgets", method="GET")).status == 401


async def test_the_true_cost_is_spent_and_the_rest_released(start_relay):
    relay = await start_relay(budgets=budget("1"))
    assert (await relay.chat(max_tokens=500)).status == 200
    (row,) = relay.rows()
    assert row.reserved_nanousd > row.cost_nanousd > 0
    assert list(balances(relay).values()) == [(row.cost_nanousd, 0)]


@pytest.mark.parametrize("stream", [False, True])
async def test_100_concurrent_calls_cannot_pass_the_last_cent(start_relay, stream):
    relay = await start_relay(budgets=budget("0.01"))
    answers = await asyncio.gather(*(relay.chat(max_tokens=100, stream=stream) for _ in range(100)))
    await relay.until_idle()
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 402}
    ((spent, reserved),) = balances(relay).values()
    assert spent == sum(row.cost_nanousd for row in relay.rows()) <= 10_000_000
    assert reserved == 0


@pytest.mark.parametrize("simulate", ["status=503", "reset=headers"])
async def test_a_call_that_fails_upstream_releases_its_reservation(start_relay, simulate):
    relay = await start_relay(budgets=budget("1"))
    answer = await relay.chat(simulate, max_tokens=500)
    assert answer.status >= 500
    (row,) = relay.rows()
    assert list(balances(relay).values()) == [(row.cost_nanousd, 0)]


async def test_an_unreachable_provider_costs_nothing(start_relay):
    relay = await start_relay(upstream="http://127.0.0.1:9/v1", budgets=budget("1"))
    assert (await relay.chat(max_tokens=500)).status == 502
    assert list(balances(relay).values()) == [(0, 0)]


@pytest.mark.parametrize(
    ("scope", "refused"),
    [
        ({"team": "search"}, [402, 200]),
        ({"project": "web"}, [402, 200]),
        ({"key": "bot"}, [200, 402]),
        ({"model": "gpt-4.1"}, [402, 402]),
        ({"model": "deepseek-v3.2"}, [200, 200]),
        ({"team": "search", "model": "deepseek-v3.2"}, [200, 200]),
    ],
)
async def test_a_budget_limits_only_calls_in_its_scope(start_relay, scope, refused):
    relay = await start_relay(keys=KEYS, budgets=budget("0.000001", **scope))
    answers = [await relay.chat(key=secret, max_tokens=50) for secret in (SECRET, OTHER)]
    assert [answer.status for answer in answers] == refused


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/mcp/chat", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}),
        ("/v1/responses", {"model": "gpt-4.1", "input": "Hello", "max_output_tokens": 50}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "Hello"}),
        ("/v1/messages", {"model": "gpt-4.1", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1beta/models/gpt-4.1:generateContent", {"contents": [{"parts": [{"text": "Hello"}]}]}),
    ],
)
async def test_no_endpoint_bypasses_the_budget(start_relay, path, body):
    async with Simulator(seed=1) as simulator:
        others = tuple(
            ProviderSettings(name=name, base_url=simulator.base_url, api_key=SecretStr("any"))
            for name in ("openai", "anthropic", "gemini")
        )
        relay = await start_relay(budgets=budget("0"), upstream=simulator.base_url, extra_providers=others)
        answer = await relay.ask(body, path)
        assert answer.status == 402, answer.body
        assert relay.rows() == []


async def test_the_mcp_tool_names_the_budget_in_its_error(start_relay):
    relay = await start_relay(budgets=budget("0"))
    async with mcp.Client(f"{relay.url}/mcp") as client:
        result = await client.call_tool("chat", {"messages": [{"role": "user", "content": "Hello"}]})
    assert result.is_error
    assert "'monthly'" in str(result.content)


async def test_counting_tokens_needs_no_budget(start_relay):
    relay = await start_relay(budgets=budget("0"))
    answer = await relay.ask(
        {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}, "/v1/messages/count_tokens"
    )
    assert answer.status != 402


async def test_a_disconnected_client_pays_for_what_was_delivered(start_relay):
    relay = await start_relay(budgets=budget("1"))
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 5000}
    async with relay.http.stream("POST", f"{relay.url}/v1/chat/completions", json=body) as answer:
        await anext(answer.aiter_raw())
    await relay.until_idle()
    (row,) = relay.rows()
    assert list(balances(relay).values()) == [(row.cost_nanousd, 0)]


async def test_a_new_budget_counts_earlier_calls(start_relay):
    relay = await start_relay()
    for _ in range(3):
        assert (await relay.chat(max_tokens=50)).status == 200
    spent = sum(row.cost_nanousd for row in relay.rows())
    limit = Decimal(spent).scaleb(-9)
    relay.service._load = lambda: relay.settings.model_copy(update={"budgets": budget(f"{limit:f}")})
    await relay.service.reload()
    refused = await relay.chat(max_tokens=50)
    assert refused.status == 402
    assert "nothing left" in refused.error["message"]
