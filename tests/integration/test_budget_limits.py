"""Budgets through the real service: what is reserved, refused, settled and given back, on every way in and out."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import mcp
import pytest
from pydantic import SecretStr

from mcpmeter.config import BudgetSettings, KeySettings, ProviderSettings
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.simulator import Simulator

SECRET = "pk-7Rq2vX9bLw4TnZ8mKs1HdJ6yCf3Ga5Ue"
OTHER = "pk-Zt5mWq8RcN2vYb7LxKd4JhGf9SaPe3Uo"
KEYS = (
    KeySettings(name="backend", team="search", project="web", secret=SecretStr(SECRET)),
    KeySettings(name="bot", team="support", secret=SecretStr(OTHER)),
)


@pytest.fixture
def new_place(place_of_either_engine):
    return place_of_either_engine


def budget(limit_usd: str, **more: object) -> tuple[BudgetSettings, ...]:
    return (BudgetSettings(**{"name": "monthly", "limit_usd": Decimal(limit_usd), **more}),)


def balances(relay) -> dict[str, tuple[int, int]]:
    """(spent, reserved) by balance, as another process reads them."""
    with open_reader(relay.ledger) as reader:
        rows = reader.rows("SELECT balance, spent, reserved FROM balances")
        return {balance: (spent, reserved) for balance, spent, reserved in rows}


async def test_a_call_that_could_pass_the_budget_is_refused_with_its_name_and_when_it_resets(start_relay):
    relay = await start_relay(budgets=budget("0.000001"))
    refused = await relay.chat(max_tokens=50)
    assert (refused.status, refused.error["code"]) == (402, "budget_exhausted")
    message = refused.error["message"]
    assert "'monthly'" in message
    assert "$0.000001 left" in message
    assert "resets at" in message
    assert relay.rows() == []
    scrape = await relay.scrape()
    assert scrape.of("mcp_errors_total", error_type="budget_exceeded", side="client") == 1
    assert relay.simulator is not None


async def test_what_a_call_took_is_spent_and_the_rest_given_back(start_relay):
    relay = await start_relay(budgets=budget("1"))
    assert (await relay.chat(max_tokens=500)).status == 200
    (row,) = relay.rows()
    assert row.reserved_nanousd > row.cost_nanousd > 0
    assert list(balances(relay).values()) == [(row.cost_nanousd, 0)]


@pytest.mark.parametrize("stream", [False, True])
async def test_of_a_hundred_calls_at_the_last_cent_no_more_are_let_in_than_it_pays_for(start_relay, stream):
    relay = await start_relay(budgets=budget("0.01"))
    answers = await asyncio.gather(*(relay.chat(max_tokens=100, stream=stream) for _ in range(100)))
    await relay.until_idle()
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 402}
    ((spent, reserved),) = balances(relay).values()
    assert spent == sum(row.cost_nanousd for row in relay.rows()) <= 10_000_000
    assert reserved == 0


@pytest.mark.parametrize("simulate", ["status=503", "reset=headers"])
async def test_a_call_that_the_provider_fails_takes_nothing(start_relay, simulate):
    relay = await start_relay(budgets=budget("1"))
    answer = await relay.chat(simulate, max_tokens=500)
    assert answer.status >= 500
    (row,) = relay.rows()
    assert list(balances(relay).values()) == [(row.cost_nanousd, 0)]


async def test_an_unreachable_provider_takes_nothing(start_relay):
    relay = await start_relay(upstream="http://127.0.0.1:9/v1", budgets=budget("1"))
    assert (await relay.chat(max_tokens=500)).status == 502
    assert list(balances(relay).values()) == [(0, 0)]


async def test_a_model_without_a_price_counts_by_the_fallback_and_is_refused_by_it_too(start_relay):
    relay = await start_relay(budgets=budget("0.01"))
    assert (await relay.chat(model="nobody-knows-it", max_tokens=50)).status == 200
    (row,) = relay.rows()
    assert (row.cost_source, row.cost_nanousd) == ("unpriced", 0)
    assert row.fallback_cost_nanousd == row.prompt_tokens * 3_000 + row.completion_tokens * 15_000
    assert list(balances(relay).values()) == [(row.fallback_cost_nanousd, 0)]
    assert (await relay.chat(model="nobody-knows-it", max_tokens=5_000)).status == 402


async def test_a_budget_that_only_warns_lets_everything_through(start_relay):
    relay = await start_relay(budgets=budget("0.000001", hard=False))
    assert (await relay.chat(max_tokens=50)).status == 200
    ((spent, reserved),) = balances(relay).values()
    assert (spent > 1000, reserved) == (True, 0)


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
async def test_a_budget_is_about_the_calls_of_its_scope_and_no_others(start_relay, scope, refused):
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
async def test_no_way_in_passes_the_budget_by(start_relay, path, body):
    async with Simulator(seed=1) as simulator:
        others = tuple(
            ProviderSettings(name=name, base_url=simulator.base_url, api_key=SecretStr("any"))
            for name in ("openai", "anthropic", "gemini")
        )
        relay = await start_relay(budgets=budget("0"), upstream=simulator.base_url, extra_providers=others)
        answer = await relay.ask(body, path)
        assert answer.status == 402, answer.body
        assert relay.rows() == []


async def test_the_mcp_tool_is_told_of_the_budget_in_words(start_relay):
    relay = await start_relay(budgets=budget("0"))
    async with mcp.Client(f"{relay.url}/mcp") as client:
        result = await client.call_tool("chat", {"messages": [{"role": "user", "content": "Hello"}]})
    assert result.is_error
    assert "'monthly'" in str(result.content)


async def test_counting_tokens_is_free_even_when_nothing_is_left(start_relay):
    relay = await start_relay(budgets=budget("0"))
    answer = await relay.ask(
        {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}, "/v1/messages/count_tokens"
    )
    assert answer.status != 402


async def test_a_client_that_leaves_takes_what_was_delivered_and_gives_back_the_rest(start_relay):
    relay = await start_relay(budgets=budget("1"))
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 5000}
    async with relay.http.stream("POST", f"{relay.url}/v1/chat/completions", json=body) as answer:
        await anext(answer.aiter_raw())
    await relay.until_idle()
    (row,) = relay.rows()
    assert list(balances(relay).values()) == [(row.cost_nanousd, 0)]


async def test_what_was_spent_counts_after_a_restart_and_for_a_new_budget(start_relay):
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
