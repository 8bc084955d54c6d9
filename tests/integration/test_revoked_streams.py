"""A revoked, expired or removed key ends its running streams within a second, and its MCP sessions too."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr
from tests.acting import BY
from tests.integration.conftest import Relay, Reply, StartRelay

from mcpmeter.access.keys import KeyLimits, new_key, rotated
from mcpmeter.config import KeySettings
from mcpmeter.ledger.queries.keys import add_key, revoke_key, rotate_key

STALLED = "stall=body,after_tokens=5"
LIMIT_S = 1.0
ADMIN, ADMIN_KEY = new_key("ops", "platform", 1, KeyLimits(role="admin"))
SECRET, KEY = new_key("notebook", "research", 1)

End = Callable[[Relay], Awaitable[Any]]


async def keyed(start_relay: StartRelay, **changes: Any) -> Relay:
    relay = await start_relay(**changes)
    for key in (ADMIN_KEY, KEY):
        add_key(relay.ledger, key, BY)
    await relay.until(lambda: len(relay.service.pipeline.runtime.keys.keys) >= 2)
    return relay


async def streaming(relay: Relay, path: str, body: dict[str, Any], *, key: str = SECRET) -> asyncio.Task[Reply]:
    """A stream that has delivered five tokens and then waits for ever."""
    send = relay.ask({**body, "metadata": {"simulate": STALLED}}, path, headers={"authorization": f"Bearer {key}"})
    task = asyncio.get_running_loop().create_task(send)
    calls = relay.service.pipeline.active_calls
    await relay.until(lambda: any(call.stream and call.stream.tee.chunks > 5 for call in calls))
    return task


CHAT = "/v1/chat/completions", {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}], "stream": True}


async def over_the_api(relay: Relay) -> None:
    headers = {"authorization": f"Bearer {ADMIN}", "content-type": "application/json"}
    assert (await relay.ask({"id": KEY.id}, "/api/keys/revoke", headers=headers)).status == 200


async def by_a_command(relay: Relay) -> None:
    await asyncio.to_thread(revoke_key, relay.ledger, KEY.id, time.time_ns(), BY)


@pytest.mark.parametrize("end", [over_the_api, by_a_command])
async def test_a_revoked_key_ends_its_streams_within_a_second(start_relay, end):
    relay = await keyed(start_relay)
    stream = await streaming(relay, *CHAT)
    other = await streaming(relay, *CHAT, key=ADMIN)
    before = relay.counts()
    await end(relay)
    began = time.monotonic()
    reply = await stream
    assert time.monotonic() - began < LIMIT_S
    assert reply.status == 200
    assert json.loads(reply.events[-1])["error"]["code"] == "not_authenticated"
    assert not other.done(), "another key's stream runs on"
    await relay.until(lambda: relay.service._store.open_rows == 1)
    row = next(row for row in relay.rows() if row.key_id == KEY.id)
    assert (row.state, row.outcome, row.error_type, row.token_source) == ("settled", "partial", "auth_error", "partial")
    assert row.completion_tokens == pytest.approx(5, abs=1)
    assert row.cost_nanousd > 0
    assert ("holysheep", "key_ended") in (await relay_counts(relay, before, "mcp_usage_missing_total"))
    other.cancel()


async def relay_counts(relay: Relay, before: Any, name: str) -> dict[tuple[str, ...], float]:
    return relay.counts().since(before, name)


async def test_an_expired_key_ends_its_streams(start_relay):
    relay = await start_relay()
    soon = msgspec.structs.replace(KEY, expires_at_ns=time.time_ns() + 1_500_000_000)
    add_key(relay.ledger, soon, BY)
    await relay.until(lambda: not relay.service.pipeline.runtime.keys.empty)
    stream = await streaming(relay, *CHAT)
    reply = await stream
    late_ns = time.time_ns() - (soon.expires_at_ns or 0)
    assert 0 < late_ns < LIMIT_S * 10**9
    assert json.loads(reply.events[-1])["error"]["code"] == "not_authenticated"


async def test_a_key_removed_from_the_configuration_ends_its_streams(start_relay):
    keys = tuple(KeySettings(name=name, team="t", secret=SecretStr(s)) for name, s in (("a", ADMIN), ("b", SECRET)))
    relay = await start_relay(keys=keys)
    stream = await streaming(relay, *CHAT)
    relay.service._load = lambda: relay.settings.model_copy(update={"keys": keys[:1]})
    began = time.monotonic()
    await relay.service.reload()
    assert json.loads((await stream).events[-1])["error"]["code"] == "not_authenticated"
    assert time.monotonic() - began < LIMIT_S


async def test_a_rotation_and_a_call_without_a_stream_go_on(start_relay):
    relay = await keyed(start_relay)
    stream = await streaming(relay, *CHAT)
    await asyncio.to_thread(rotate_key, relay.ledger, KEY.id, lambda key: rotated(key, time.time_ns())[1], BY)
    old = relay.service.pipeline.runtime.keys
    await relay.until(lambda: relay.service.pipeline.runtime.keys is not old)
    assert not stream.done()
    stream.cancel()

    whole = relay.chat("stall=headers,stall_seconds=1", key=ADMIN)
    answer = asyncio.get_running_loop().create_task(whole)
    await relay.until(lambda: any(not call.request.stream for call in relay.service.pipeline.active_calls))
    revoke_key(relay.ledger, ADMIN_KEY.id, time.time_ns(), BY)
    reply = await answer
    assert (reply.status, relay.rows()[-1].token_source) == (200, "reported")


async def test_the_setting_lets_streams_run_to_their_end(start_relay):
    relay = await keyed(start_relay, server={"end_revoked_streams": False})
    stream = await streaming(relay, *CHAT)
    await over_the_api(relay)
    await relay.service._end_streams_of_ended_keys()
    await asyncio.sleep(0)
    assert not stream.done()
    assert (await relay.chat(key=SECRET)).status == 401
    stream.cancel()


async def test_mcp_streams_and_sessions_of_the_key_end(start_relay):
    relay = await keyed(start_relay)
    headers = {
        "authorization": f"Bearer {SECRET}",
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
    }
    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": client}
    session = (await relay.ask(hello, "/mcp", headers=headers)).headers["mcp-session-id"]
    listening = {**headers, "mcp-session-id": session, "mcp-protocol-version": "2025-06-18"}
    async with relay.http.stream("GET", relay.url + "/mcp", headers=listening) as answer:
        assert answer.status_code == 200
        await over_the_api(relay)
        async with asyncio.timeout(LIMIT_S):
            assert [part async for part in answer.aiter_raw()] == []
    assert relay.service._mcp._sessions._server_instances == {}
    assert (await relay.ask(hello, "/mcp", headers=headers)).status == 401
