"""Failover through the real service: where a call goes, what it costs there, and what is never sent twice."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from mcpmeter.config import (
    LedgerSettings,
    ProviderSettings,
    RelaySettings,
    ServerSettings,
    Settings,
    TimeoutSettings,
    load,
)
from mcpmeter.config.relay import CircuitSettings, RetrySettings, RouteSettings
from mcpmeter.routing.retries import FLOOR
from mcpmeter.service import Service, bind, running
from mcpmeter.simulator import Fault, Plan, Simulator

A, B, C = "holysheep", "openai", "groq"
"""Three providers; the first two have different prices for the same model."""

KEY = "sk-upstream-credential-0123456789"
MODEL = "gpt-4.1"
NANOUSD_PER_TOKEN = {A: (2500, 10_000), B: (2000, 8000)}
HOW_TO = Path(__file__).parents[2] / "docs" / "failover.md"
Serve = Callable[..., AbstractAsyncContextManager[Any]]


def provider(name: str, base_url: str, **more: Any) -> ProviderSettings:
    keys = {} if "api_keys" in more else {"api_key": SecretStr(KEY)}
    return ProviderSettings(name=name, base_url=base_url, **keys, **more)


def settings_for(ledger: Path, *providers: ProviderSettings, **more: Any) -> Settings:
    """One route over all providers in order unless `routes` is given; short timeouts."""
    names = tuple(entry.name for entry in providers)
    routes = more.pop("routes", (RouteSettings(models=("*",), upstreams=names, mode=more.pop("mode", "ordered")),))
    timeouts = TimeoutSettings(**{"first_byte_seconds": 5.0, "idle_seconds": 5.0, **more.pop("timeouts", {})})
    relay = RelaySettings(
        timeouts=timeouts,
        retries=RetrySettings(**more.pop("retries", {})),
        circuit=CircuitSettings(**more.pop("circuit", {})),
    )
    server = ServerSettings(drain_seconds=5.0)
    return Settings(
        server=server, ledger=LedgerSettings(path=ledger), relay=relay, providers=providers, routes=routes, **more
    )


@pytest.fixture
def serve(tmp_path: Path, client_of: Callable[[str, Service], Any]) -> Serve:
    """Starts the service with these providers and one route over all of them; yields its client."""

    @asynccontextmanager
    async def started(*providers: ProviderSettings, **more: Any) -> AsyncIterator[Any]:
        settings = settings_for(tmp_path / "ledger.db", *providers, **more)
        service = Service(lambda: settings)
        async with running(service, bind("127.0.0.1", 0)) as url:
            yield client_of(url, service)

    return started


@pytest.fixture
async def sims() -> AsyncIterator[dict[str, Simulator]]:
    """A simulator for each of the three names."""
    made = {name: Simulator(seed=seed, key=KEY) for seed, name in enumerate((A, B, C))}
    await asyncio.gather(*(sim.start() for sim in made.values()))
    yield made
    await asyncio.gather(*(sim.close() for sim in made.values()))


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A bound address without a listener."""
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


def always(fault: str) -> Plan:
    return Plan(faults=(Fault.parse(fault),))


def before_both(sims: dict[str, Simulator], **first: Any) -> list[ProviderSettings]:
    return [provider(A, sims[A].base_url, **first), provider(B, sims[B].base_url)]


def went(reply: Any) -> tuple[str, str]:
    return reply.headers["x-mcpmeter-provider"], reply.headers["x-mcpmeter-attempts"]


async def gauges(relay: Any, name: str) -> tuple[float, float]:
    """(up, circuit open) of a provider."""
    scrape = await relay.scrape()
    return scrape.of("mcp_upstream_up", provider=name), scrape.of("mcp_upstream_circuit_open", provider=name)


FAILS_OVER = {
    "status=503": "server_error",
    "status=529": "server_error",
    "reset=headers": "broken",
    "status=429": "rate_limited",
    "status=429,retry_after=30": "rate_limited",
    "status=401": "refused",
    "unreachable": "unreachable",
}


@pytest.mark.parametrize(
    ("fault", "stream"), [*((fault, False) for fault in FAILS_OVER), ("status=503", True), ("reset=headers", True)]
)
async def test_a_failure_before_the_first_byte_fails_over(serve, sims, nowhere, fault, stream):
    first = sims[A].base_url
    if fault == "unreachable":
        first = nowhere
    else:
        sims[A].plan = always(fault)
    async with serve(provider(A, first), provider(B, sims[B].base_url)) as relay:
        before = relay.counts()
        reply = await relay.chat(stream=stream)
        await relay.until_idle()
        after = await relay.scrape()
    (row,), (call,) = relay.rows(), sims[B].billing_log.calls()

    assert (reply.status, went(reply)) == (200, (B, "2"))
    assert (row.state, row.outcome, row.provider, row.model) == ("settled", "ok", B, MODEL)
    assert row.upstream_request_id == call.request_id
    assert (row.token_source, row.prompt_tokens, row.completion_tokens) == (
        "reported",
        call.prompt_tokens,
        call.completion_tokens,
    )
    prompt_price, completion_price = NANOUSD_PER_TOKEN[B]
    assert row.cost_nanousd == prompt_price * call.prompt_tokens + completion_price * call.completion_tokens
    assert sims[A].billing_log.totals.calls == (0 if fault == "unreachable" else 1)
    assert sims[A].billing_log.totals.prompt_tokens == 0

    tokens = after.since(before, "mcp_tokens_total")
    assert sum(tokens.values()) == call.prompt_tokens + call.completion_tokens
    assert {labels[1] for labels in tokens} == {B}
    assert after.of("mcp_cost_usd_total", provider=A) == 0
    assert after.since(before, "mcp_errors_total") == {}
    assert after.since(before, "mcp_upstream_retries_total") == {(A, FAILS_OVER[fault]): 1}
    assert after.since(before, "mcp_upstream_attempts_total") == {(FAILS_OVER[fault], A): 1, ("ok", B): 1}


@pytest.mark.parametrize("status", [400, 403, 422, 501])
async def test_a_fault_of_the_request_does_not_fail_over(serve, sims, status):
    sims[A].plan = always(f"status={status}")
    async with serve(*before_both(sims)) as relay:
        reply = await relay.chat()
        await relay.until_idle()
    assert (reply.status, went(reply)) == (502 if status == 403 else status, (A, "1"))
    assert sims[B].billing_log.totals.calls == 0
    (row,) = relay.rows()
    assert (row.provider, row.outcome, row.upstream_status) == (A, "error", status)


@pytest.mark.parametrize("fault", ["reset=body", "reset=chunk"])
async def test_nothing_is_retried_after_the_first_byte(serve, sims, fault):
    sims[A].plan = always(fault)
    async with serve(*before_both(sims)) as relay:
        reply = await relay.chat(stream=True)
        await relay.until_idle()
        scrape = await relay.scrape()
    assert (reply.status, went(reply)) == (200, (A, "1"))
    assert json.loads(reply.events[-1])["error"]["code"] == "upstream_broke"
    assert sims[B].billing_log.totals.calls == 0
    assert scrape.of("mcp_upstream_retries_total") == 0
    (row,) = relay.rows()
    assert (row.provider, row.outcome, row.token_source) == (A, "partial", "partial")


async def test_a_response_that_breaks_in_its_body_is_not_retried(serve, sims):
    """The provider has worked and will bill."""
    sims[A].plan = always("reset=body")
    async with serve(*before_both(sims)) as relay:
        reply = await relay.chat()
        await relay.until_idle()
    assert (reply.status, reply.error["code"]) == (502, "upstream_broke")
    assert went(reply) == (A, "1")
    assert sims[B].billing_log.totals.calls == 0


async def test_a_call_that_fails_everywhere_names_the_last_provider(serve, sims):
    sims[A].plan = always("status=503")
    sims[B].plan = always("reset=headers")
    async with serve(*before_both(sims)) as relay:
        reply = await relay.chat()
        await relay.until_idle()
    assert (reply.status, reply.error["code"], went(reply)) == (502, "upstream_broke", (B, "2"))
    (row,) = relay.rows()
    assert (row.state, row.provider, row.outcome, row.error_id) == ("settled", B, "error", "upstream_broke")


async def test_weights_share_the_calls(serve, sims):
    """200 calls at 3 to 1: 150 expected, 6 the standard deviation, five of them on either side."""
    calls, providers = 200, [provider(A, sims[A].base_url, weight=3), provider(B, sims[B].base_url)]
    async with serve(*providers, mode="weighted") as relay:
        replies = [await relay.chat() for _ in range(calls)]
        await relay.until_idle()
        scrape = await relay.scrape()
    served = Counter(reply.headers["x-mcpmeter-provider"] for reply in replies)
    assert 120 <= served[A] <= 180
    assert {reply.headers["x-mcpmeter-attempts"] for reply in replies} == {"1"}
    rows = relay.rows()
    for name in (A, B):
        billed = sims[name].billing_log.totals
        mine = [row for row in rows if row.provider == name]
        assert served[name] == billed.calls == len(mine)
        assert sum(row.completion_tokens for row in mine) == billed.completion_tokens
        assert scrape.of("mcp_tokens_total", provider=name) == billed.prompt_tokens + billed.completion_tokens
        prompt_price, completion_price = NANOUSD_PER_TOKEN[name]
        cost = prompt_price * billed.prompt_tokens + completion_price * billed.completion_tokens
        assert sum(row.cost_nanousd for row in mine) == cost


# Models and names --------------------------------------------------------------------------------------------------


async def test_each_provider_gets_its_own_name_for_the_model(serve, sims):
    route = {
        "models": ("house",),
        "upstreams": ({"name": A, "model": MODEL}, {"name": B, "model": "gpt-4.1-mini"}),
    }
    sims[A].plan = always("status=503")
    async with serve(*before_both(sims), routes=(RouteSettings.model_validate(route),)) as relay:
        reply = await relay.chat(model="house", stream=True)
        await relay.until_idle()
    assert [call.model for sim in (sims[A], sims[B]) for call in sim.billing_log.calls()] == [MODEL, "gpt-4.1-mini"]
    (row,) = relay.rows()
    assert (reply.status, row.provider, row.model, row.token_source) == (200, B, "gpt-4.1-mini", "reported")
    assert row.cost_nanousd == 400 * row.prompt_tokens + 1600 * row.completion_tokens


async def test_an_alias_of_one_provider_does_not_fail_over(serve, sims):
    sims[B].plan = always("status=503")
    async with serve(*before_both(sims), aliases={"smart": f"{B}/{MODEL}"}) as relay:
        failed = await relay.chat(model="smart")
        sims[B].plan = Plan()
        good = await relay.chat(model="smart")
        await relay.until_idle()
    assert [(failed.status, *went(failed)), (good.status, *went(good))] == [(503, B, "1"), (200, B, "1")]
    assert sims[A].billing_log.totals.calls == 0
    assert {call.model for call in sims[B].billing_log.calls()} == {MODEL}
    assert [(row.provider, row.model) for row in relay.rows()] == [(B, MODEL)] * 2


# Keys --------------------------------------------------------------------------------------------------------------

KEYS = ("sk-first-key-000000000000", "sk-second-key-00000000000", "sk-third-key-000000000000")
OK = b'{"id":"x","model":"gpt-4.1","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},\
"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}'


class Account:
    """An upstream whose responses depend on the key, without an HTTP library."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.statuses: dict[str, int] = {}
        self.headers = b""
        self.body = b'{"error":{"message":"no"}}'

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
                self._answer(re.search(rb"authorization: bearer (\S+)", head)[1].decode(), writer)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    def _answer(self, key: str, writer: asyncio.StreamWriter) -> None:
        self.asked.append(key)
        status = self.statuses.get(key, 200)
        body, more = (OK, b"") if status == 200 else (self.body, self.headers)
        head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
        writer.write(head % (status, more, len(body)) + body)

    @property
    def provider(self) -> ProviderSettings:
        return provider(A, self.url, api_keys=tuple(SecretStr(key) for key in KEYS))


@pytest.fixture
async def account() -> AsyncIterator[Account]:
    upstream = Account()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield upstream
    server.close()


async def test_calls_rotate_over_a_providers_keys(serve, account):
    async with serve(account.provider) as relay:
        for _ in range(6):
            assert (await relay.chat()).status == 200
    assert account.asked == [*KEYS, *KEYS]


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [(401, b"", "refused"), (402, b"", "refused"), (429, b"Retry-After: 60\r\n", "rate_limited")],
)
async def test_a_refused_or_limited_key_is_skipped(serve, account, status, headers, reason):
    account.statuses, account.headers = {KEYS[1]: status}, headers
    async with serve(account.provider) as relay:
        replies = [await relay.chat() for _ in range(7)]
        await relay.until_idle()
        scrape = await relay.scrape()
        text = await relay.scrape_openmetrics()
    assert [reply.status for reply in replies] == [200] * 7
    assert [reply.headers["x-mcpmeter-attempts"] for reply in replies] == ["1", "2", "1", "1", "1", "1", "1"]
    assert account.asked.count(KEYS[1]) == 1
    assert set(account.asked[3:]) == {KEYS[0], KEYS[2]}
    assert (scrape.of("mcp_upstream_up", provider=A), scrape.of("mcp_upstream_circuit_open", provider=A)) == (1, 0)
    assert scrape.of("mcp_upstream_retries_total", provider=A, reason=reason) == 1
    assert not any(key in text for key in KEYS)
    assert [row.outcome for row in relay.rows()] == ["ok"] * 7


GOOGLES_REFUSAL = b'{"error":{"code":400,"details":[{"reason":"API_KEY_INVALID"}],"message":"API key not valid."}}'


async def test_a_400_that_refuses_the_key_skips_the_key(serve, account):
    """Google's status for an invalid key. The caller gets the other key's response and nothing of the refusal."""
    account.statuses, account.body = {KEYS[1]: 400}, GOOGLES_REFUSAL
    async with serve(provider("gemini", account.url, api_keys=tuple(SecretStr(key) for key in KEYS))) as relay:
        replies = [await relay.chat() for _ in range(7)]
        await relay.until_idle()
        scrape = await relay.scrape()
    assert {(reply.status, reply.body) for reply in replies} == {(200, OK)}
    assert account.asked.count(KEYS[1]) == 1
    assert scrape.of("mcp_upstream_circuit_open", provider="gemini") == 0
    assert [row.completion_tokens for row in relay.rows()] == [1] * 7


async def test_any_other_400_is_handed_to_the_caller(serve, account):
    account.statuses, account.body = {KEYS[1]: 400}, b'{"error":{"code":400}}'
    async with serve(provider("gemini", account.url, api_keys=tuple(SecretStr(key) for key in KEYS[:2]))) as relay:
        replies = [await relay.chat() for _ in range(6)]
    assert [(reply.status, reply.body) for reply in replies] == [(200, OK), (400, account.body)] * 3


async def test_400s_that_refuse_all_keys_are_a_refused_account(serve, account):
    account.statuses, account.body = dict.fromkeys(KEYS, 400), GOOGLES_REFUSAL
    async with serve(provider("gemini", account.url, api_keys=tuple(SecretStr(key) for key in KEYS))) as relay:
        reply = await relay.chat()
        assert (reply.status, reply.error["code"], went(reply)) == (502, "upstream_refused_account", ("gemini", "3"))
        assert await gauges(relay, "gemini") == (0, 0)


async def test_a_provider_refusing_all_keys_is_down_until_one_works(serve, account):
    account.statuses = dict.fromkeys(KEYS, 401)
    async with serve(account.provider) as relay:
        reply = await relay.chat()
        assert (reply.status, reply.error["code"], went(reply)) == (502, "upstream_refused_account", (A, "3"))
        assert await gauges(relay, A) == (0, 0)
        account.statuses = {}
        assert (await relay.chat()).status == 200
        assert await gauges(relay, A) == (1, 0)


# Circuits ----------------------------------------------------------------------------------------------------------


async def test_a_circuit_opens_and_one_probe_closes_it(serve, sims):
    sims[A].plan = always("status=503")
    async with serve(*before_both(sims), circuit={"failures": 3, "open_seconds": 0.5}) as relay:
        assert await gauges(relay, A) == (1, 0)
        for _ in range(3):
            assert went(await relay.chat()) == (B, "2")
        opened = time.monotonic()
        assert await gauges(relay, A) == (0, 1)
        skipped = await relay.chat()
        if time.monotonic() - opened < 0.4:  # else the machine was so slow that this may have been the probe
            assert (went(skipped), sims[A].billing_log.totals.calls) == ((B, "1"), 3)
            assert [row for row in relay.rows() if row.upstream_request_id][-1].provider == B
        sims[A].plan = Plan()
        while went(await relay.chat()) != (A, "1"):
            assert time.monotonic() - opened < 120, "the circuit was never tried again"
            assert await gauges(relay, A) == (0, 1)
        assert await gauges(relay, A) == (1, 0)
        assert went(await relay.chat()) == (A, "1")
        await relay.until_idle()
    assert [row.provider for row in relay.rows()[:3]] == [B] * 3


async def test_a_reload_keeps_circuits_and_waits(serve, sims):
    sims[A].plan = always("status=503")
    async with serve(*before_both(sims), circuit={"failures": 1, "open_seconds": 60}) as relay:
        await relay.chat()
        await relay.service.reload()
        assert await gauges(relay, A) == (0, 1)
        sims[A].plan = Plan()
        assert went(await relay.chat()) == (B, "1")
        sims[B].plan = always("status=429,retry_after=60")
        limited = await relay.chat()
        assert (limited.status, limited.headers["retry-after"]) == (429, "60")
        await relay.service.reload()
        calls = sims[B].billing_log.totals.calls
        # B must wait, so the call goes against A's open circuit instead of failing.
        assert went(await relay.chat()) == (A, "1")
        assert sims[B].billing_log.totals.calls == calls


# Storms and Retry-After --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["status=503", "status=429", "reset=headers"])
async def test_retries_add_at_most_a_fifth_to_a_storm(serve, sims, fault):
    requests, at_once = 240, asyncio.Semaphore(16)
    for sim in sims.values():
        sim.plan = always(fault)

    async def one(relay: Any) -> int:
        async with at_once:
            return (await relay.chat()).status

    async with serve(*(provider(name, sim.base_url) for name, sim in sims.items())) as relay:
        statuses = Counter(await asyncio.gather(*(one(relay) for _ in range(requests))))
        await relay.until_idle()
        scrape = await relay.scrape()
    attempts = sum(sim.billing_log.totals.calls for sim in sims.values())
    assert requests <= attempts <= requests + max(FLOOR, requests * 0.2)
    assert scrape.of("mcp_upstream_attempts_total") == attempts
    assert scrape.of("mcp_upstream_retries_total") == attempts - requests
    assert 200 not in statuses
    rows = relay.rows()
    assert len(rows) == requests
    assert {(row.state, row.outcome) for row in rows} == {("settled", "error")}
    if fault != "reset=headers":  # an upstream that reset the connection may have worked
        assert sum(row.prompt_tokens + row.cost_nanousd for row in rows) == 0
    assert (scrape.of("mcp_active_requests"), scrape.of("mcp_ledger_open_rows")) == (0, 0)


async def test_nothing_is_sent_before_a_retry_after_has_passed(serve, sims):
    sims[A].plan = always("status=429,retry_after=1")
    async with serve(provider(A, sims[A].base_url)) as relay:
        limited = await relay.chat()
        since = time.monotonic()
        assert (limited.status, limited.headers["retry-after"]) == (429, "1")
        sims[A].plan = Plan()
        refused = await asyncio.gather(*(relay.chat() for _ in range(20)))
        if time.monotonic() - since < 0.9:
            assert {(reply.status, reply.error["code"]) for reply in refused} == {(429, "upstream_rate_limited")}
            assert {reply.headers["retry-after"] for reply in refused} == {"1"}
            assert "x-mcpmeter-provider" not in refused[0].headers, "nothing was sent"
            assert sims[A].billing_log.totals.calls == 1
        assert (await relay.chat(model="deepseek-v3.2")).status == 200
        while (await relay.chat()).status != 200:
            assert time.monotonic() - since < 120
        assert time.monotonic() - since >= 0.95
        await relay.until_idle()
    calls = [call for call in sims[A].billing_log.calls() if call.model == MODEL]
    assert [call.outcome for call in calls] == ["fault", "complete"]
    refused_rows = [row for row in relay.rows() if row.status == "429"]
    assert {row.state for row in refused_rows} == {"settled"}
    assert sum(row.prompt_tokens for row in refused_rows) == 0


# Disconnects and timeouts ---------------------------------------------------------------------------------


async def leave(relay: Any, until: Callable[[], bool], **chat: Any) -> None:
    """Send a call, and reset the connection once `until` holds."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **chat}).encode()
    _, writer = await asyncio.open_connection(*relay.address)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
    writer.write(body)
    await relay.until(until)
    writer.transport.abort()


async def test_a_disconnect_during_a_retry_cancels_it(serve, sims):
    sims[A].plan = always("status=503")
    sims[B].plan = always("stall=headers")
    async with serve(*before_both(sims)) as relay:
        await leave(relay, lambda: sims[B].billing_log.open_calls == 1)
        await sims[B].billing_log.wait_until(lambda log: log.totals.cancelled == 1)
        await relay.until_idle()
        scrape = await relay.scrape()
    (row,) = relay.rows()
    assert (row.state, row.status, row.outcome, row.provider) == ("settled", "499", "partial", B)
    assert scrape.of("mcp_upstream_attempts_total", provider=B, outcome="abandoned") == 1
    assert nothing_is_left(relay)


async def test_a_disconnect_during_a_wait_sends_nothing_more(serve, sims):
    sims[A].plan = always("status=429,retry_after=3")
    async with serve(provider(A, sims[A].base_url), retries={"same_place": True}) as relay:
        await leave(relay, lambda: sims[A].billing_log.totals.calls == 1)
        await relay.until_idle()
        scrape = await relay.scrape()
        assert nothing_is_left(relay)
    (row,) = relay.rows()
    assert (row.state, row.status, row.outcome, row.error_id) == ("settled", "499", "partial", "caller_gone")
    assert sims[A].billing_log.totals.calls == 1
    assert scrape.of("mcp_upstream_retries_total") == 0


def nothing_is_left(relay: Any) -> bool:
    """No call is in flight, and no task of one remains."""
    names = ("CancelOnDisconnect", "RelayedCall", "Pipeline")
    running_now = {task.get_coro().__qualname__ for task in asyncio.all_tasks() if task.get_coro() is not None}
    return not relay.service.pipeline.active_calls and not any(name.startswith(names) for name in running_now)


TIMES = {
    "first_byte_seconds": ("stall=headers", False, "sent nothing in time"),
    "idle_seconds": ("stall=body", True, "sent nothing between"),
    "total_seconds": ("drip_bytes_per_second=200", False, "did not end its response in time"),
}


@pytest.mark.parametrize("which", TIMES)
async def test_each_providers_timeout_has_its_own_error(serve, sims, which):
    fault, stream, message = TIMES[which]
    own = {which: 0.15}
    if which == "total_seconds":
        own |= dict.fromkeys(("connect_seconds", "first_byte_seconds", "idle_seconds"), 0.15)
    sims[A].plan = always(fault)
    async with serve(*before_both(sims, timeouts=own)) as relay:
        reply = await relay.chat(stream=stream, model=f"{A}/{MODEL}")
        good = await relay.chat(model=f"{B}/{MODEL}")
        await relay.until_idle()
    error = json.loads(reply.events[-1])["error"] if stream else reply.error
    assert (error["code"], good.status) == ("upstream_timed_out", 200)
    assert reply.status == (200 if stream else 504)
    assert message in error["message"]
    row = relay.rows()[0]
    assert (row.provider, row.error_type, row.token_source) == (A, "upstream_timeout", "partial")


async def test_a_provider_too_slow_to_connect_is_skipped(serve, sims):
    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(stay_silent, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{silent.sockets[0].getsockname()[1]}/v1"  # its TLS handshake never completes
    providers = [provider(A, url, timeouts={"connect_seconds": 0.15}), provider(B, sims[B].base_url)]
    async with serve(*providers) as relay:
        forced = await relay.chat(model=f"{A}/{MODEL}")
        assert (forced.status, forced.error["code"]) == (502, "upstream_unreachable")
        assert went(await relay.chat()) == (B, "2")
    silent.close()


@pytest.mark.parametrize("after_timeout", [False, True])
async def test_a_missing_first_byte_is_retried_only_if_configured(serve, sims, after_timeout):
    """The provider may still be working, and bill for both."""
    sims[A].plan = always("stall=headers")
    providers = before_both(sims, timeouts={"first_byte_seconds": 0.15})
    async with serve(*providers, retries={"after_timeout": after_timeout}) as relay:
        reply = await relay.chat()
    assert reply.status == (200 if after_timeout else 504)
    assert sims[B].billing_log.totals.calls == int(after_timeout)
    assert sims[A].billing_log.totals.calls + sims[A].billing_log.open_calls == 1


# The how-to --------------------------------------------------------------------------------------------------------


async def test_the_configuration_of_the_guide_does_what_it_says(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL)
    environment = {}
    for name in set(re.findall(r"\$\{(\w+)\}", text)):
        environment[name] = f"sk-{name.lower()}-0123456789"
    path = tmp_path / "mcpmeter.yaml"
    path.write_text(text, encoding="utf-8")
    settings = load(path, environment)
    assert [entry.name for entry in settings.providers] == [
        entry["name"] for entry in yaml.safe_load(text)["providers"]
    ]
    routing = settings.routing(settings.upstreams())
    plans = {
        name: routing.plan(name) for name in ("gpt-4.1", "claude-sonnet-4.5", "house-large", "fast", "deepseek-v3.2")
    }
    found = {name: (plan.mode, [(r.upstream.name, r.model) for r in plan.routes]) for name, plan in plans.items()}
    assert found == {
        "gpt-4.1": ("ordered", [("openai", "gpt-4.1"), ("holysheep", "gpt-4.1")]),
        "claude-sonnet-4.5": ("weighted", [("anthropic", "claude-sonnet-4-5"), ("holysheep", "claude-sonnet-4.5")]),
        "house-large": ("ordered", [("local", "llama-3.3-70b"), ("openai", "gpt-4.1")]),
        "fast": ("ordered", [("gemini", "gemini-2.5-flash")]),
        "deepseek-v3.2": ("ordered", [("holysheep", "deepseek-v3.2")]),
    }
    assert len(routing.plan("gpt-4.1").first.upstream.credentials) == 2
