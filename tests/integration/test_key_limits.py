"""A key's limits through the real service: models, rates, expiry, its project."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from mcpmeter.access.callers import Attribution
from mcpmeter.config import KeySettings

SECRET = "pk-7Rq2vX9bLw4TnZ8mKs1HdJ6yCf3Ga5Ue"


@pytest.fixture
def new_place(place_of_either_engine):
    return place_of_either_engine


def key(secret: str = SECRET, **limits: object) -> tuple[KeySettings, ...]:
    return (KeySettings(name="backend", team="search", secret=SecretStr(secret), **limits),)


async def test_an_unlisted_model_is_refused_before_it_is_sent(start_relay):
    relay = await start_relay(keys=key(models=("deepseek-*",)))
    refused = await relay.chat(key=SECRET)
    assert (refused.status, refused.error["code"]) == (403, "not_allowed")
    assert "deepseek-*" in refused.error["message"]
    assert (await relay.chat(key=SECRET, model="deepseek-v3.2")).status == 200
    assert [row.model for row in relay.rows()] == ["deepseek-v3.2"]


async def test_two_requests_a_minute_then_429_with_retry_after(start_relay):
    relay = await start_relay(keys=key(requests_per_minute=2))
    answers = await asyncio.gather(*(relay.chat(key=SECRET) for _ in range(6)))
    statuses = [answer.status for answer in answers]
    # The minute of the clock may turn in the middle, and then another two are let in.
    assert statuses.count(200) in (2, 3, 4)
    assert set(statuses) == {200, 429}
    refused = next(answer for answer in answers if answer.status == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.error["code"] == "rate_limited"
    assert "2 requests a minute" in refused.error["message"]
    scrape = await relay.scrape()
    assert scrape.of("mcp_errors_total", error_type="rate_limited", side="client") == statuses.count(429)


async def test_tokens_a_minute_are_reserved_then_settled(start_relay):
    relay = await start_relay(keys=key(tokens_per_minute=1_000_000))
    assert (await relay.chat(key=SECRET, max_tokens=50)).status == 200
    (row,) = relay.rows()
    (reserved,) = [amount for _, _, unit, amount in json.loads(row.claims) if unit == "tokens"]
    assert reserved > 50
    assert row.prompt_tokens + row.completion_tokens < reserved


async def test_an_expired_key_is_refused(start_relay):
    yesterday = datetime.now(UTC) - timedelta(days=1)
    relay = await start_relay(keys=key(expires=yesterday))
    refused = await relay.chat(key=SECRET)
    assert (refused.status, refused.error["code"]) == (401, "not_authenticated")
    assert "expired" in refused.error["message"]


async def test_the_ledger_records_the_project(start_relay):
    relay = await start_relay(keys=key(project="web"))
    projects = Attribution(header="x-mcpmeter-project", values=("web", "mobile"))
    relay.service.pipeline.runtime = replace(relay.service.pipeline.runtime, attribution=projects)
    headers = {"authorization": f"Bearer {SECRET}"}
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}
    await relay.ask(body, headers=headers)
    await relay.ask(body, headers={**headers, "x-mcpmeter-project": "mobile"})
    refused = await relay.ask(body, headers={**headers, "x-mcpmeter-project": "invented"})
    assert refused.status == 403
    assert [row.project for row in relay.rows()] == ["web", "mobile"]
