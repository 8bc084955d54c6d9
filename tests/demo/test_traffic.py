"""The traffic, with the simulator in the place of the relay."""

import asyncio

from starlette.requests import Request
from starlette.responses import PlainTextResponse

from mcpmeter.demo.traffic import EMBEDDINGS, MIX, steady
from mcpmeter.simulator import Simulator
from mcpmeter.simulator.server import serving


async def run_until(log, holds, base_url, **options):
    stop = asyncio.Event()
    keys = {"search": "sk-search", "docs": None}
    traffic = asyncio.create_task(
        steady(base_url, keys, models=["gpt-4.1", "deepseek-v3.2"], stop=stop, seed=1, **options)
    )
    await log.wait_until(holds)
    stop.set()
    return await traffic


async def test_the_mix_has_every_kind_and_consistent_counts():
    async with Simulator(seed=1) as sim:
        counts = await run_until(
            sim.billing_log, lambda log: log.totals.calls >= 150 and log.totals.cancelled, sim.url, per_second=200
        )
        totals = sim.billing_log.totals
    assert set(counts.by_kind) == {kind.name for kind in MIX}
    assert set(counts.by_team) == {"search", "docs"}
    assert sum(counts.by_kind.values()) == counts.sent
    ended = counts.ok + counts.refused + counts.failed + counts.disconnected + counts.broken + counts.unreachable
    assert 0 <= counts.sent - ended <= 32
    assert min(counts.ok, counts.refused, counts.failed, counts.broken) > 0
    assert totals.cancelled >= counts.disconnected > 0


async def test_embedding_models_add_embeddings_to_the_mix():
    async with Simulator(seed=1) as sim:
        counts = await run_until(
            sim.billing_log,
            lambda log: "openai_embeddings" in log.totals_by_dialect,
            sim.url,
            per_second=200,
            embedding_models=["text-embedding-3-small"],
        )
        embedded = {call.model for call in sim.billing_log.calls() if call.dialect == "openai_embeddings"}
        chatted = {call.model for call in sim.billing_log.calls() if call.dialect == "openai_chat"}
    assert embedded == {"text-embedding-3-small"}
    assert chatted <= {"gpt-4.1", "deepseek-v3.2"}
    assert counts.by_kind[EMBEDDINGS.name] >= 1


async def test_each_team_sends_its_key():
    seen = set()
    all_seen = asyncio.Event()

    async def respond(scope, receive, send):
        request = Request(scope)
        seen.add((request.url.path, request.headers.get("authorization")))
        if len(seen) == 4:
            all_seen.set()
        await PlainTextResponse("{}")(scope, receive, send)

    async with serving(respond) as url:
        await steady(url, {"a": "sk-a", "b": None}, models=["m"], per_second=500, stop=all_seen, seed=3)
    paths = ("/v1/chat/completions", "/mcp/chat")
    assert seen == {(path, key) for path in paths for key in ("Bearer sk-a", None)}


async def test_an_unreachable_target_is_counted():
    async with Simulator() as sim:
        url = sim.url
    stop = asyncio.Event()
    traffic = asyncio.create_task(steady(url, {"a": None}, models=["m"], per_second=500, stop=stop))
    asyncio.get_running_loop().call_later(2, stop.set)
    counts = await traffic
    assert counts.unreachable > 0
    assert counts.ok == 0


async def test_stop_cancels_requests_in_flight():
    async with Simulator() as sim:
        sim.plan = type(sim.plan)(first_byte=type(sim.plan.first_byte).fixed(60_000))
        counts = await run_until(sim.billing_log, lambda log: log.open_calls >= 5, sim.url, per_second=500)
        await sim.billing_log.wait_until(lambda log: log.open_calls == 0)
    assert counts.sent >= 5
