"""Background responses end to end: followed until their usage is known, and served to the team that made them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import SecretStr
from tests.integration.conftest import UPSTREAM_KEY, Relay

from mcpmeter.config import KeySettings, ProviderSettings
from mcpmeter.config.relay import BackgroundSettings
from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.objects import PENDING_IDS_SQL
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.simulator import Simulator
from mcpmeter.simulator.latency import Latency

RESPONSES = "/v1/responses"
ONE = "/v1/responses/{response_id}"
KEYS = {team: hashlib.sha256(team.encode()).hexdigest() for team in ("alpha", "beta")}
QUICK = {"background": BackgroundSettings(first_poll_seconds=0.02, max_poll_seconds=0.05)}
PATIENT = {"background": BackgroundSettings(first_poll_seconds=600, max_poll_seconds=600)}

Start = Callable[..., Awaitable[Relay]]


@pytest.fixture
def new_place(place_of_either_engine):
    """One ledger for all relays of a test."""
    place = place_of_either_engine()
    return lambda: place


@pytest.fixture
async def start(start_relay) -> AsyncIterator[Start]:
    """Start a relay before the test's simulator as `openai`, with a budget over everything."""
    running: list[Simulator] = []

    async def begin(*, milliseconds: float = 200, **changes: Any) -> Relay:
        latency = Latency.fixed(milliseconds)
        if not running:
            running.append(Simulator(seed=1, key=UPSTREAM_KEY, background=latency))
            await running[0].start()
        simulator = running[0]
        upstream = ProviderSettings(name="openai", base_url=simulator.base_url, api_key=SecretStr(UPSTREAM_KEY))
        budgets = ({"name": "all", "limit_usd": 1000},)
        more = {"extra_providers": (upstream,), "budgets": budgets, "relay": QUICK, **changes}
        relay: Relay = await start_relay(upstream=simulator.base_url, **more)
        relay.simulator = simulator
        return relay

    yield begin
    for simulator in running:
        await simulator.close()


def client(relay: Relay, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{relay.url}/v1", api_key=key, max_retries=0)


def body(**more: Any) -> dict[str, Any]:
    wanted = {"model": "openai/gpt-4.1", "input": "Count to ten.", "background": True, "max_output_tokens": 500}
    return {**wanted, **more}


async def reserved_and_spent(relay: Relay) -> tuple[int, int]:
    """Of the budget, in nano-dollars."""
    await relay.service.budgets.refresh()
    scrape = relay.counts()
    names = ("mcp_budget_reserved_usd", "mcp_budget_spent_usd")
    reserved, spent = (round(scrape.of(name, budget="all") * 10**9) for name in names)
    return reserved, spent


async def until_settled(relay: Relay, count: int = 1) -> None:
    """The rows are settled and no object is pending."""

    def holds() -> bool:
        with open_reader(relay.ledger) as reader:
            pending = list(reader.rows(PENDING_IDS_SQL))
        return not pending and sum(row.state == "settled" for row in relay.rows()) >= count

    await relay.until(holds, seconds=30)


async def test_a_background_response_is_settled_by_its_usage(start):
    relay = await start(milliseconds=600_000)
    async with client(relay) as sdk:
        made = await sdk.responses.create(**body())
        assert made.status == "queued"
        (open_row,) = relay.rows()
        assert open_row.state == "open"
        assert await reserved_and_spent(relay) == (open_row.reserved_nanousd, 0)
        assert (await relay.scrape()).of("mcp_background_calls") == 1
        relay.simulator.background.complete_all()
        await until_settled(relay)
        done = await sdk.responses.retrieve(made.id)
    (row,) = relay.rows()
    assert (row.outcome, row.token_source, row.cost_source) == ("ok", "reported", "listed")
    assert (row.prompt_tokens, row.completion_tokens) == (done.usage.input_tokens, done.usage.output_tokens)
    assert await reserved_and_spent(relay) == (0, row.cost_nanousd)
    scrape = await relay.scrape()
    assert scrape.of("mcp_background_calls") == 0
    assert scrape.of("mcp_requests_total", endpoint=RESPONSES) == 1
    assert scrape.of("mcp_requests_total", endpoint=ONE, status="200") == 1
    assert scrape.of("mcp_tokens_total") == row.prompt_tokens + row.completion_tokens


async def test_the_client_that_polls_settles_the_call(start):
    relay = await start(relay=PATIENT)
    async with client(relay) as sdk:
        made = await sdk.responses.create(**body())
        async with asyncio.timeout(30):
            while (done := await sdk.responses.retrieve(made.id)).status != "completed":
                await asyncio.sleep(0.01)
    (row,) = relay.rows()
    assert (row.state, row.completion_tokens) == ("settled", done.usage.output_tokens)


async def test_clients_and_the_follower_settle_a_call_once(start):
    relay = await start(milliseconds=100)
    async with client(relay) as sdk:
        made = await sdk.responses.create(**body())

        async def poll() -> None:
            while (await sdk.responses.retrieve(made.id)).status != "completed":
                pass

        async with asyncio.timeout(30):
            await asyncio.gather(*(poll() for _ in range(8)))
        await until_settled(relay)
    (row,) = relay.rows()
    assert (await relay.scrape()).of("mcp_tokens_total") == row.prompt_tokens + row.completion_tokens
    assert await reserved_and_spent(relay) == (0, row.cost_nanousd)


async def test_a_cancelled_response_is_settled(start):
    relay = await start(milliseconds=60_000)
    async with client(relay) as sdk:
        made = await sdk.responses.create(**body())
        cancelled = await sdk.responses.cancel(made.id)
    assert cancelled.status == "cancelled"
    await until_settled(relay)
    (row,) = relay.rows()
    assert (row.finish_reason, row.token_source, row.completion_tokens) == ("cancelled", "estimated", 0)
    assert await reserved_and_spent(relay) == (0, row.cost_nanousd)


async def test_another_team_gets_the_404_of_an_unknown_id(start):
    relay = await start(keys=KEYS, relay=PATIENT)
    async with client(relay, KEYS["alpha"]) as sdk:
        made = await sdk.responses.create(**body())
    answers = []
    for object_id in (made.id, "resp_unknown", "resp_" + "x" * 4000, "%00", "é"):
        for path, method in ((object_id, "GET"), (object_id, "DELETE"), (f"{object_id}/cancel", "POST")):
            headers = {"authorization": f"Bearer {KEYS['beta']}"}
            reply = await relay.ask(path=f"{RESPONSES}/{path}", method=method, headers=headers)
            answers.append((reply.status, {**reply.error, "call_id": ""}))
    assert {status for status, _ in answers} == {404}
    assert all(error == answers[0][1] for _, error in answers)
    assert relay.simulator.background.requests == 0
    unknown = await relay.ask(path=f"{RESPONSES}/{made.id}", method="GET")
    assert unknown.status == 401
    async with client(relay, KEYS["alpha"]) as sdk:
        assert (await sdk.responses.retrieve(made.id)).id == made.id


async def test_a_rotated_key_of_the_team_retrieves_a_response(start):
    relay = await start(keys={"alpha": KEYS["alpha"]})
    async with client(relay, KEYS["alpha"]) as sdk:
        made = await sdk.responses.create(**body())
    rotated = relay.settings.model_copy(update={"keys": (another_key("alpha", KEYS["beta"]),)})
    relay.service._load = lambda: rotated
    await relay.service.reload()
    async with client(relay, KEYS["beta"]) as sdk:
        assert (await sdk.responses.retrieve(made.id)).id == made.id


async def test_a_forgotten_response_is_settled_at_its_reservation(start):
    relay = await start(milliseconds=60_000)
    async with client(relay) as sdk:
        made = await sdk.responses.create(**body())
        (open_row,) = relay.rows()
        relay.simulator.background.forget_all()
        await until_settled(relay)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(made.id)
    (row,) = relay.rows()
    assert (row.outcome, row.error_id, row.token_source) == ("error", "background_lost", "estimated")
    assert row.completion_tokens == 500
    assert 0 < row.cost_nanousd <= open_row.reserved_nanousd
    assert await reserved_and_spent(relay) == (0, open_row.reserved_nanousd)
    assert verify(relay.ledger).wrong == []
    missing = (await relay.scrape()).of("mcp_usage_missing_total", reason="background_lost")
    assert missing == 1


@pytest.mark.parametrize("provider", ["works on", "is away"])
async def test_a_response_that_does_not_end_in_time_is_given_up(start, provider):
    options = BackgroundSettings(first_poll_seconds=0.02, max_poll_seconds=0.05, give_up_seconds=0.3)
    relay = await start(milliseconds=60_000, relay={"background": options})
    async with client(relay) as sdk:
        await sdk.responses.create(**body())
    if provider == "is away":
        await relay.simulator.close()
    await until_settled(relay)
    (row,) = relay.rows()
    assert row.error_id == "background_lost"


async def test_a_streamed_response_is_followed_after_a_disconnect(start):
    relay = await start(milliseconds=600_000)
    async with client(relay) as sdk:
        stream = await sdk.responses.create(**body(stream=True))
        first = await anext(aiter(stream))
        await stream.close()
        await relay.until(lambda: relay.counts().of("mcp_background_calls") == 1)
        relay.simulator.background.complete_all()
        await until_settled(relay)
        done = await sdk.responses.retrieve(first.response.id)
        events = [event.sequence_number async for event in await resumed(sdk, done.id, 3)]
    (row,) = relay.rows()
    assert (row.outcome, row.token_source) == ("ok", "reported")
    assert row.completion_tokens == done.usage.output_tokens
    assert events == list(range(4, events[-1] + 1))


async def test_a_complete_stream_is_settled_before_its_end(start):
    relay = await start(relay=PATIENT)
    async with client(relay) as sdk:
        events = [event async for event in await sdk.responses.create(**body(stream=True))]
        (row,) = relay.rows()
        assert (row.state, row.token_source) == ("settled", "reported")
        assert (await sdk.responses.retrieve(events[-1].response.id)).status == "completed"


async def test_a_resumed_stream_settles_the_call(start):
    relay = await start(milliseconds=300, relay=PATIENT)
    async with client(relay) as sdk:
        made = await sdk.responses.create(**body())
        events = [event async for event in await resumed(sdk, made.id, 0)]
    (row,) = relay.rows()
    assert (row.state, row.completion_tokens) == ("settled", events[-1].response.usage.output_tokens)


async def test_a_deleted_response_is_billed_by_what_it_had(start):
    relay = await start(milliseconds=50, relay=PATIENT)
    async with client(relay) as sdk:
        made = await sdk.responses.create(**body())
        await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 0)
        await sdk.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(made.id)
    (row,) = relay.rows()
    assert (row.state, row.token_source) == ("settled", "reported")


async def test_requests_for_responses_have_their_own_rate_limit(start):
    key = another_key("alpha", KEYS["alpha"], requests_per_minute=3)
    relay = await start(keys=(key,), relay=PATIENT)
    async with client(relay, KEYS["alpha"]) as sdk:
        made = await sdk.responses.create(**body())
        asked = [sdk.responses.retrieve(made.id) for _ in range(8)]  # two more than fit around the turn of a minute
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, openai.RateLimitError) for answer in answers) >= 2


async def test_more_background_calls_than_allowed_are_refused(start):
    relay = await start(milliseconds=60_000, relay={"background": BackgroundSettings(max_calls=1)})
    async with client(relay) as sdk:
        made = await sdk.responses.create(**body())
        with pytest.raises(openai.InternalServerError, match="pending"):
            await sdk.responses.create(**body())
        await sdk.responses.cancel(made.id)
        assert (await sdk.responses.create(**body())).status == "queued"


async def test_a_restart_follows_pending_responses_on(start):
    relay = await start(milliseconds=600_000, relay=PATIENT)
    async with client(relay) as sdk:
        made = await sdk.responses.create(**body())
    await relay.end()
    (row,) = relay.rows()
    assert row.state == "open"
    relay = await start()
    assert relay.service.recovered == 0
    assert verify(relay.ledger).wrong == []
    relay.simulator.background.complete_all()
    await until_settled(relay)
    async with client(relay) as sdk:
        done = await sdk.responses.retrieve(made.id)
    (row,) = relay.rows()
    assert (row.token_source, row.completion_tokens) == ("reported", done.usage.output_tokens)
    assert await reserved_and_spent(relay) == (0, row.cost_nanousd)


async def test_a_replica_settles_what_another_one_follows(start, new_place):
    if isinstance(new_place(), Path):
        pytest.skip("replicas share PostgreSQL only")
    first = await start(milliseconds=300, relay=PATIENT)
    second = await start(relay=PATIENT)
    async with client(first) as at_first, client(second) as at_second:
        made = await at_first.responses.create(**body())
        async with asyncio.timeout(30):
            while (await at_second.responses.retrieve(made.id)).status != "completed":
                await asyncio.sleep(0.01)
        await at_first.responses.retrieve(made.id)
    (row,) = first.rows()
    tokens = [relay.counts().of("mcp_tokens_total") for relay in (first, second)]
    assert tokens == [0, row.prompt_tokens + row.completion_tokens]
    assert first.counts().of("mcp_background_calls") == 0


@pytest.mark.trial
async def test_a_hundred_background_calls_are_settled_once_each(start, trials):
    relay = await start(milliseconds=150)
    for _ in range(10 if trials.full else 1):
        before = len(relay.rows())
        async with client(relay) as sdk:
            texts = (f"Count to {before + number}." for number in range(100))
            await asyncio.gather(*(sdk.responses.create(**body(input=text)) for text in texts))
        await until_settled(relay, before + 100)
    rows, totals = relay.rows(), relay.simulator.billing_log.totals
    assert {row.token_source for row in rows} == {"reported"}
    assert sum(row.prompt_tokens for row in rows) == totals.prompt_tokens
    assert sum(row.completion_tokens for row in rows) == totals.completion_tokens
    assert await reserved_and_spent(relay) == (0, sum(row.cost_nanousd for row in rows))


def another_key(team: str, secret: str, **limits: Any) -> KeySettings:
    return KeySettings(name=f"{team}-other-key", team=team, secret=SecretStr(secret), **limits)


async def resumed(sdk: openai.AsyncOpenAI, object_id: str, after: int) -> Any:
    return await sdk.responses.retrieve(object_id, stream=True, starting_after=after)
