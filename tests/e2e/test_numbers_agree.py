"""One settlement, many views: the ledger, `/metrics`, a real Prometheus and the provider's own books say the same.

Everything runs as installed commands; the callers are the official OpenAI SDK, the MCP SDK's client and bare HTTP.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx2
import openai
import pytest
from mcp import Client
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

from mcpmeter.demo.stack import prometheus

PRICES_USD_PER_MTOK = {
    "gpt-4.1": (Decimal("2.50"), Decimal("10.00")),
    "claude-sonnet-4.5": (Decimal("3.00"), Decimal("15.00")),
    "gemini-2.5-flash": (Decimal("0.10"), Decimal("0.40")),
    "deepseek-v3.2": (Decimal("0.27"), Decimal("1.10")),
}
"""The published guide's list, prompt and completion."""

REPORTED_MODEL = "gemini-2.5-flash"
"""The simulator tells this one's cost in X-Cost-USD, where there is a header to tell it in."""

UNPRICED_MODEL = "llama-of-our-own"
MODELS = (*PRICES_USD_PER_MTOK, UNPRICED_MODEL)
DEFAULT_MODEL = "deepseek-v3.2"
REFUSED_STATUSES = (429, 503)
SECONDS_FOR_A_SCRAPE = 120
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Figures:
    """Sums of some calls; cost in nano-dollars."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nanousd: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost_nanousd + other.cost_nanousd,
        )


Totals = Mapping[tuple[str, str], Figures]
"""By team and model."""


@dataclass
class Log:
    """What the clients know: who asked for which upstream request, and how often each route was asked."""

    team_of: dict[str, str] = field(default_factory=dict)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(endpoint, status) to count."""
    mcp_calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(team, model) of tool calls, which show no upstream request id."""

    def answered(self, endpoint: str, team: str, status: int, headers: Mapping[str, str]) -> None:
        self.asked[endpoint, str(status)] += 1
        self.team_of[headers["x-request-id"]] = team


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def ask_sync(address: str, key: str, team: str, log: Log) -> None:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
        chats = client.chat.completions.with_raw_response
        for model in MODELS:
            raw = chats.create(model=model, messages=messages(f"sync {team}"))
            assert raw.parse().usage.completion_tokens > 0
            log.answered("/v1/chat/completions", team, raw.status_code, raw.headers)
            for options in ({}, {"stream_options": {"include_usage": True}}):
                raw = chats.create(model=model, messages=messages(f"stream {team}"), stream=True, **options)
                chunks = list(raw.parse())
                assert sum(chunk.usage is not None for chunk in chunks) == len(options)
                log.answered("/v1/chat/completions", team, raw.status_code, raw.headers)


async def ask_async(address: str, key: str, team: str, log: Log) -> None:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
        chats = client.chat.completions.with_raw_response

        async def whole(model: str, **options: Any) -> None:
            raw = await chats.create(model=model, **options)
            raw.parse()
            log.answered("/v1/chat/completions", team, raw.status_code, raw.headers)

        async def stream(model: str, **options: Any) -> None:
            raw = await chats.create(model=model, messages=messages(f"async stream {team}"), stream=True, **options)
            chunks = [chunk async for chunk in raw.parse()]
            assert sum(chunk.usage is not None for chunk in chunks) == len(options)
            log.answered("/v1/chat/completions", team, raw.status_code, raw.headers)

        async def refused(status: int) -> None:
            wish = {"simulate": f"status={status},retry_after=3"}
            with pytest.raises(openai.APIStatusError) as told:
                # A model of its own: nothing is sent for it until the time that the provider asks for has passed.
                await chats.create(model=f"limited-{status}-{team}", messages=messages("no"), metadata=wish)
            assert told.value.status_code == status
            log.answered("/v1/chat/completions", team, status, told.value.response.headers)

        await asyncio.gather(
            *(whole(model, messages=messages(f"async {team} {n}")) for model in MODELS for n in range(3)),
            *(whole("gpt-4.1", messages=messages("think"), reasoning_effort="high") for _ in range(2)),
            *(stream(model) for model in MODELS),
            *(stream(model, stream_options={"include_usage": True}) for model in MODELS),
            *(refused(status) for status in REFUSED_STATUSES),
        )


async def ask_the_guides_way(address: str, key: str, team: str, log: Log) -> None:
    """Bare POSTs to /mcp/chat: with and without a model, streamed, refused by us, by the provider and by nobody."""
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=120, verify=False) as http:

        async def post(body: Any, status: int) -> bytes:
            answer = await http.post(f"{address}/mcp/chat", json=body)
            assert answer.status_code == status, answer.content
            if "x-request-id" in answer.headers:
                log.answered("/mcp/chat", team, status, answer.headers)
            else:
                log.asked["/mcp/chat", str(status)] += 1
            return answer.content

        answer = json.loads(await post({"messages": messages("default")}, 200))
        assert answer["model"] == DEFAULT_MODEL
        content = await post({"messages": messages("default"), "stream": True}, 200)
        assert content.endswith(b"data: [DONE]\n\n")
        assert b'"usage":{' not in content
        for model in MODELS:
            await post({"model": model, "messages": messages("guide")}, 200)
        await post({"messages": []}, 400)
        # The provider refused these two, so that they have no id of an answer and cost nothing.
        await post({"messages": messages("no"), "metadata": {"simulate": "status=503"}}, 502)
        await post({"messages": messages("no"), "metadata": {"simulate": "status=401"}}, 502)


async def ask_by_mcp(address: str, key: str, team: str, log: Log, mode: str) -> None:
    async with (
        create_mcp_http_client(headers={"Authorization": f"Bearer {key}"}) as http,
        Client(streamable_http_client(f"{address}/mcp", http_client=http), mode=mode) as client,
    ):
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert {"chat", "list_models", "estimate_cost", "usage_report"} <= tools
        for model in MODELS:
            told: list[str] = []

            async def progress(done: float, total: float | None, message: str | None, told=told) -> None:
                told.append(message or "")

            arguments = {"model": model, "messages": messages(f"by mcp {mode}")}
            result = await client.call_tool("chat", arguments, progress_callback=progress)
            assert not result.is_error, result.content
            answer = result.structured_content
            assert "".join(told) == answer["content"]
            assert (answer["cost"]["usd"] is None) == (model == UNPRICED_MODEL)
            log.mcp_calls[team, model] += 1
        estimate = await client.call_tool(
            "estimate_cost", {"model": "gpt-4.1", "prompt_tokens": 1000, "completion_tokens": 10}
        )
        assert Decimal(estimate.structured_content["usd"]) == Decimal("0.0026")


def cost_nanousd(model: str, prompt_tokens: int, completion_tokens: int) -> int:
    """By the contract's prices, in Decimal; an unpriced model's cost is nowhere."""
    prompt, completion = PRICES_USD_PER_MTOK.get(model, (Decimal(0), Decimal(0)))
    nanousd = (prompt * prompt_tokens + completion * completion_tokens) * 1000
    assert nanousd == nanousd.to_integral_value()
    return int(nanousd)


def what_the_provider_billed(calls: Iterable[Mapping[str, Any]], team_of: Mapping[str, str]) -> Totals:
    totals: dict[tuple[str, str], Figures] = defaultdict(Figures)
    for call in calls:
        model, tokens = call["model"], (call["prompt_tokens"], call["completion_tokens"])
        totals[team_of[call["request_id"]], model] += Figures(*tokens, cost_nanousd(model, *tokens))
    return {group: figures for group, figures in totals.items() if figures != Figures()}


def what_the_ledger_says(rows: Iterable[Mapping[str, Any]]) -> Totals:
    found = {
        (row["team"], row["model"]): Figures(row["prompt_tokens"], row["completion_tokens"], row["cost_nanousd"])
        for row in rows
    }
    return {group: figures for group, figures in found.items() if figures != Figures()}


def as_labelled(totals: Totals) -> Totals:
    """A model that no list and no configuration names is `other` in every label."""
    labelled: dict[tuple[str, str], Figures] = defaultdict(Figures)
    for (team, model), figures in totals.items():
        labelled[team, "other" if model == UNPRICED_MODEL else model] += figures
    return labelled


def from_series(
    tokens: Iterable[tuple[Mapping[str, str], float]], costs: Iterable[tuple[Mapping[str, str], float]]
) -> Totals:
    totals: dict[tuple[str, str], Figures] = defaultdict(Figures)
    for labels, value in tokens:
        kind = f"{labels['token_type']}_tokens"
        totals[labels["team"], labels["model"]] += Figures(**{kind: int(value)})
    for labels, value in costs:
        nanousd = Decimal(repr(value)) * 10**9
        # A sum of doubles is off by far less than a nano-dollar.
        assert abs(nanousd - round(nanousd)) < Decimal("0.001")
        totals[labels["team"], labels["model"]] += Figures(cost_nanousd=round(nanousd))
    return {group: figures for group, figures in totals.items() if figures != Figures()}


class Query:
    """Asks a Prometheus."""

    def __init__(self, http: httpx2.AsyncClient, address: str) -> None:
        self._http = http
        self._address = address

    async def __call__(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        told = (await self._http.get(f"{self._address}/api/v1/query", params={"query": expression})).json()
        assert told["status"] == "success", told
        return [(series["metric"], float(series["value"][1])) for series in told["data"]["result"]]

    async def number(self, expression: str) -> float:
        found = await self(expression)
        return found[0][1] if found else 0.0

    async def until_scraped_after(self, unix_seconds: float) -> None:
        deadline = time.monotonic() + SECONDS_FOR_A_SCRAPE
        while await self.number("timestamp(mcp_active_requests)") <= unix_seconds:
            assert time.monotonic() < deadline, "Prometheus did not scrape"
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


@pytest.mark.usefixtures("prometheus_is_here")
async def test_ledger_metrics_prometheus_and_the_provider_agree_to_the_token_and_the_nano_dollar(
    stand, team_keys, tmp_path
):
    prompt, completion = PRICES_USD_PER_MTOK[REPORTED_MODEL]
    stand.start_simulator("--seed", 7, "--price", f"{REPORTED_MODEL}={prompt}/{completion}")
    stand.configure(keys=team_keys)
    stand.start_relay()
    log = Log()
    async with (
        prometheus(stand.address, tmp_path / "prometheus", scrape_interval="1s") as scraper,
        httpx2.AsyncClient(timeout=120, verify=False) as http,
    ):
        await asyncio.gather(
            *(asyncio.to_thread(ask_sync, stand.address, key, team, log) for team, key in team_keys.items()),
            *(ask_async(stand.address, key, team, log) for team, key in team_keys.items()),
            *(ask_the_guides_way(stand.address, key, team, log) for team, key in team_keys.items()),
            ask_by_mcp(stand.address, team_keys["search"], "search", log, "auto"),
            ask_by_mcp(stand.address, team_keys["support"], "support", log, "legacy"),
        )
        last_call_ended = time.time()

        rows = stand.rows()
        books = stand.billing_log(calls=10_000)
        check_row_by_row(rows, books["calls"], log)
        team_of = {row["upstream_request_id"]: row["team"] for row in rows if row["upstream_request_id"]}
        # What the provider refused and we mapped has no id in the client's hands, and was billed nothing.
        billed = what_the_provider_billed(
            [call for call in books["calls"] if call["prompt_tokens"] or call["completion_tokens"]], team_of
        )
        assert {team for team, _ in billed} == set(team_keys)
        assert {model for _, model in billed} == set(MODELS)

        assert what_the_ledger_says(stand.report("team", "model")) == billed

        samples = stand.samples()
        assert from_series(samples["mcp_tokens_total"], samples["mcp_cost_usd_total"]) == as_labelled(billed)

        ask = Query(http, scraper)
        await ask.until_scraped_after(last_call_ended)
        scraped = from_series(
            await ask("sum by (team, model, token_type) (mcp_tokens_total) > 0"),
            await ask("sum by (team, model) (mcp_cost_usd_total) > 0"),
        )
        assert scraped == as_labelled(billed)

        await check_counts(stand, ask, rows, log)
    finished = stand.relay.end()
    assert (finished.code, finished.faults) == (0, "")


def check_row_by_row(rows: list[dict[str, Any]], calls: list[dict[str, Any]], log: Log) -> None:
    """Each call of the provider's books is one row, settled, of the right team, with the same tokens and their cost."""
    assert len(rows) == len(calls)
    assert {row["state"] for row in rows} == {"settled"}
    row_of = {row["upstream_request_id"]: row for row in rows}
    assert len(row_of) == len(calls)
    mcp_calls: Counter[tuple[str, str]] = Counter()
    for call in calls:
        row, tokens = row_of[call["request_id"]], (call["prompt_tokens"], call["completion_tokens"])
        assert (row["model"], row["prompt_tokens"], row["completion_tokens"]) == (call["model"], *tokens)
        assert row["reasoning_tokens"] == call["reasoning_tokens"]
        assert row["cost_nanousd"] == cost_nanousd(call["model"], *tokens)
        if call["outcome"] == "complete":
            assert (row["outcome"], row["token_source"]) == ("ok", "reported")
            assert row["cost_source"] == expected_cost_source(row)
        if row["endpoint"] == "/mcp":
            mcp_calls[row["team"], row["model"]] += 1
        elif call["request_id"] in log.team_of:
            assert row["team"] == log.team_of[call["request_id"]]
    assert mcp_calls == log.mcp_calls


def expected_cost_source(row: Mapping[str, Any]) -> str:
    if row["model"] == UNPRICED_MODEL:
        return "unpriced"
    return "reported" if row["model"] == REPORTED_MODEL else "listed"


async def check_counts(stand: Any, ask: Query, rows: list[dict[str, Any]], log: Log) -> None:
    """Requests, errors and honesty counters: as the clients counted, as the ledger has them, as Prometheus says."""
    for (endpoint, status), count in log.asked.items():
        query = f'sum(mcp_requests_total{{endpoint="{endpoint}", method="POST", status="{status}"}})'
        assert await ask.number(query) == count, query
    unpriced = sum(row["cost_source"] == "unpriced" for row in rows)
    assert unpriced > 0
    assert await ask.number('sum(mcp_unpriced_requests_total{provider="holysheep"})') == unpriced
    reported = sum(row["reported_cost_nanousd"] or 0 for row in rows)
    assert reported > 0
    assert round(await ask.number("sum(mcp_provider_reported_cost_usd_total)") * 10**9) == reported
    assert await ask.number('sum(mcp_errors_total{side="upstream"})') == sum(
        row["error_type"].startswith("upstream") for row in rows
    )
    tool_calls = 'sum(mcp_requests_total{endpoint="/mcp", method="tools/call", status="ok"})'
    assert await ask.number(tool_calls) == log.mcp_calls.total() + 2  # and an estimate each
    for gauge in ("mcp_active_requests", "mcp_ledger_open_rows"):
        assert await ask.number(gauge) == 0
