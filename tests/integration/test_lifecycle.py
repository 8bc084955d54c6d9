"""Draining, stopping, reloading and new keys, while calls run."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.acting import BY

from mcpmeter.access.keys import new_key
from mcpmeter.config import load
from mcpmeter.errors import ConfigInvalid
from mcpmeter.ledger.queries.keys import add_key, revoke_key
from mcpmeter.service import Service, bind, running
from mcpmeter.simulator import Simulator

SLOW = "chunks_per_second=100,completion_tokens=30"


async def ready(relay: Any) -> int:
    return (await relay.ask(path="/-/ready", method="GET")).status


async def started_stream(relay: Any, simulate: str) -> asyncio.Task[Any]:
    """A stream that has given its first bytes."""
    task = asyncio.get_running_loop().create_task(relay.chat(simulate, stream=True))
    await relay.until(
        lambda: any(call.stream and call.stream.first_chunk_ns for call in relay.service.pipeline.active_calls)
    )
    return task


async def test_draining_lets_a_stream_finish_and_takes_nothing_new(relay):
    assert await ready(relay) == 200
    stream = await started_stream(relay, SLOW)
    draining = asyncio.get_running_loop().create_task(relay.service.drain())
    await relay.until(lambda: relay.service.pipeline.draining)

    assert await ready(relay) == 503
    for path in ("/v1/chat/completions", "/mcp/chat"):
        refused = await relay.chat(path=path)
        assert (refused.status, refused.error["code"]) == (503, "draining")
    assert (await relay.ask(path="/metrics", method="GET")).status == 200
    assert not draining.done()

    reply = await stream
    await draining
    assert reply.events[-1] == b"[DONE]"
    (row,) = relay.rows()
    assert (row.outcome, row.token_source, row.completion_tokens) == ("ok", "reported", 30)


async def test_an_upload_that_ends_after_draining_began_reaches_no_provider(relay):
    body = json.dumps({"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}).encode()
    reader, writer = await asyncio.open_connection(*relay.address)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
    writer.write(body[:10])
    active = relay.service.recorder.families["mcp_active_requests"].cells
    await relay.until(lambda: active[()].value == 1)
    await relay.service.drain()
    writer.write(body[10:])
    assert (await asyncio.wait_for(reader.readline(), 120)).startswith(b"HTTP/1.1 503 ")
    assert relay.simulator.billing_log.totals.calls == 0
    writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_what_still_runs_past_the_deadline_is_cut_told_and_charged(start_relay, stream):
    relay = await start_relay(server={"drain_seconds": 0.05})
    running_call = asyncio.get_running_loop().create_task(relay.chat("stall=body,after_tokens=5", stream=stream))
    await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 1)
    if stream:
        await relay.until(
            lambda: any(call.stream and call.stream.tee.chunks > 5 for call in relay.service.pipeline.active_calls)
        )
    await relay.service.drain()
    assert not running_call.done()
    ending = asyncio.get_running_loop().create_task(relay.end())

    reply = await running_call
    await ending
    error = json.loads(reply.events[-1])["error"] if stream else reply.error
    assert (reply.status, error["code"]) == (200 if stream else 503, "draining")
    (row,) = relay.rows()
    assert (row.state, row.outcome, row.token_source, row.error_id) == ("settled", "partial", "partial", "draining")
    assert row.completion_tokens == (pytest.approx(5, abs=1) if stream else 0)
    await relay.simulator.billing_log.wait_until(lambda log: log.totals.cancelled == 1)
    families = relay.service.recorder.families
    assert families["mcp_usage_missing_total"].cells["holysheep", "service_stopped"].value == 1
    assert families["mcp_active_requests"].cells[()].value == 0


async def test_ending_the_service_settles_what_runs_and_leaves_no_row_open(start_relay, tmp_path):
    async with Simulator(seed=1) as simulator:
        relay = await start_relay(upstream=simulator.base_url)
        call = asyncio.get_running_loop().create_task(relay.chat("stall=headers"))
        await simulator.billing_log.wait_until(lambda log: log.open_calls == 1)
        await relay.end()
        assert (await call).status == 503
    assert [row.state for row in relay.rows()] == ["settled"]


# Reload ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Write the configuration of a service in a folder of its own."""
    path = tmp_path / "mcpmeter.yaml"

    def write(upstream: str, *, name: str = "first", more: str = "", ledger: str = "{path: ledger.db}") -> Path:
        path.write_text(
            f"ledger: {ledger}\n{more}\n"
            f"providers:\n- {{name: {name}, type: generic, base_url: '{upstream}', api_key: k-0123456789abcdef}}\n"
        )
        return path

    return write


@pytest.fixture
async def configured(config, start_relay):
    """Run a service from a file; its reload reads the file again."""
    tasks: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

    async def start(upstream: str, **options: Any) -> tuple[Service, str]:
        path = config(upstream, **options)
        service = Service(lambda: load(path, {}))
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        done = asyncio.Event()

        async def live() -> None:
            async with running(service, bind("127.0.0.1", 0)) as url:
                address.set_result(url)
                await done.wait()

        tasks.append((done, asyncio.get_running_loop().create_task(live())))
        return service, await address

    yield start
    for done, task in tasks:
        done.set()
        await task


async def test_a_reload_drops_no_stream_and_sends_the_next_call_to_the_new_provider(configured, config, client_of):
    async with Simulator(seed=1) as first, Simulator(seed=2) as second:
        service, url = await configured(first.base_url)
        client = client_of(url, service)
        stream = await started_stream(client, "chunks_per_second=20,completion_tokens=80")
        config(second.base_url, name="second")
        reply = await client.ask(path="/-/reload")
        assert (reply.status, reply.body) == (200, b"Reloaded.\n")

        assert (await client.chat()).status == 200
        assert second.billing_log.totals.calls == 1
        assert not stream.done()
        assert (await stream).events[-1] == b"[DONE]"
        assert [(row.provider, row.outcome) for row in client.rows()] == [("first", "ok"), ("second", "ok")]
        scrape = await client.scrape()
        assert scrape.of("mcp_tokens_total", provider="first") > 0
        assert scrape.of("mcp_tokens_total", provider="second") > 0
        assert scrape.of("mcp_label_overflow_total", label="provider") == 0


async def test_a_reload_charges_the_next_call_at_the_new_prices(configured, config, client_of):
    async with Simulator(seed=1) as simulator:
        service, url = await configured(simulator.base_url)
        client = client_of(url, service)
        assert (await client.chat()).status == 200
        path = config(simulator.base_url)
        path.write_text(path.read_text().replace("type: generic", "type: generic, price_list: holysheep"))
        assert (await client.ask(path="/-/reload")).status == 200
        assert (await client.chat()).status == 200
        assert [row.cost_source for row in client.rows()] == ["unpriced", "listed"]


async def test_a_bad_file_is_refused_and_the_old_configuration_goes_on(configured, config, client_of):
    async with Simulator(seed=1) as simulator:
        service, url = await configured(simulator.base_url)
        client = client_of(url, service)
        before = client.counts()
        path = config(simulator.base_url, more="relya: {}")
        reply = await client.ask(path="/-/reload")
        assert reply.status == 400
        assert b"relya" in reply.body
        with pytest.raises(ConfigInvalid):
            await service.reload()
        after = await client.scrape()
        stamp = "mcpmeter_config_last_reload_success_timestamp_seconds"
        assert after.of("mcpmeter_config_last_reload_successful") == 0
        assert after.of(stamp) == before.of(stamp) > time.time() - 100
        assert (await client.chat()).status == 200

        path.write_text(path.read_text().replace("relya: {}", ""))
        assert (await client.ask(path="/-/reload")).status == 200
        assert (await client.scrape()).of("mcpmeter_config_last_reload_successful") == 1


@pytest.mark.parametrize(
    ("given", "flushes"), [("{path: ledger.db}", 2), ("{path: ledger.db, synchronous: normal}", 1)]
)
async def test_the_ledger_is_flushed_as_configured(configured, given, flushes):
    async with Simulator(seed=1) as simulator:
        service, _ = await configured(simulator.base_url, ledger=given)
        assert await service._store._run(lambda db: db.pragma("synchronous")) == flushes


async def test_a_reload_says_that_another_ledger_takes_effect_at_the_next_start(configured, config, client_of, caplog):
    async with Simulator(seed=1) as simulator:
        service, url = await configured(simulator.base_url)
        config(simulator.base_url, ledger="{path: ledger.db, synchronous: normal}")
        assert (await client_of(url, service).ask(path="/-/reload")).status == 200
        assert "ledger has changed; that takes effect at the next start" in caplog.text
        assert await service._store._run(lambda db: db.pragma("synchronous")) == 2


async def test_a_file_that_cannot_be_read_at_all_is_refused_in_the_same_way(configured, config, client_of):
    async with Simulator(seed=1) as simulator:
        service, url = await configured(simulator.base_url)
        client = client_of(url, service)
        config(simulator.base_url).unlink()
        assert (await client.ask(path="/-/reload")).status == 400
        assert (await client.chat()).status == 200


async def test_a_reload_takes_an_empty_post_only(relay):
    assert (await relay.ask(path="/-/reload", method="GET")).status == 405
    assert (await relay.ask(path="/-/reload")).status == 200

    async def chunks():
        yield b"x"

    for body in (b"x", b"{}", chunks()):
        reply = await relay.ask(body, "/-/reload", headers={"content-type": "application/json"})
        assert (reply.status, reply.error["code"]) == (400, "invalid_request")


# Keys -----------------------------------------------------------------------------------------------------------------


async def test_a_key_made_while_the_service_runs_counts_within_seconds_and_a_revoked_one_no_more(relay):
    assert (await relay.chat()).status == 200
    secret, key = new_key("notebook", "research", time.time_ns())
    add_key(relay.ledger, key, BY)  # what `mcpmeter keys create` does, on a connection of its own
    keys = relay.service.pipeline
    await relay.until(lambda: not keys.runtime.keys.empty, seconds=5)

    assert (await relay.chat()).status == 401
    assert (await relay.chat(key=secret)).status == 200
    assert [(row.team, row.key_id) for row in relay.rows()] == [("default", ""), ("research", key.id)]
    assert (await relay.scrape()).of("mcp_tokens_total", team="research", source="reported") > 0

    revoke_key(relay.ledger, key.id, time.time_ns(), BY)
    async with asyncio.timeout(120):
        while (await relay.chat(key=secret)).status != 401:
            await asyncio.sleep(0.05)


async def test_a_configured_key_and_its_team_are_known_and_no_other(start_relay):
    secret, _ = new_key("backend", "search", 0)
    relay = await start_relay(keys={"search": secret})
    assert (await relay.chat(key=secret)).status == 200
    for wrong in (secret[:-1], secret + "x", secret.upper(), "x", "\u00e9"):
        assert (await relay.chat(key=wrong)).status == 401
    assert (await relay.chat()).status == 401
    assert [row.team for row in relay.rows()] == ["search"]


async def test_health_says_that_it_lives(relay):
    reply = await relay.ask(path="/health", method="GET")
    assert reply.json["status"] == "healthy"
    assert abs(reply.json["timestamp"] - time.time()) < 60
    assert (await relay.ask(path="/-/healthy", method="GET")).status == 200
    head = await relay.ask(path="/health", method="HEAD")
    assert (head.status, head.body) == (200, b"")
