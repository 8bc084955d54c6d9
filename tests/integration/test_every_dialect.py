"""All dialects: clients that disconnect, requests refused before they are sent, credentials."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from tests.integration.speakers import (
    ANTHROPIC,
    BATCH_EMBED,
    CHAT,
    COUNTS,
    EMBED,
    EMBEDDINGS,
    EVERY,
    GEMINI,
    OPENAI,
    STREAMS,
    Generate,
    Messages,
    Speaker,
    by_name,
)

from mcpmeter.config import ProviderSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPSTREAM_KEY = "sk-upstream-credential-0123456789"
CLIENT_KEY = f"mk_{secrets.token_urlsafe(36)}"
MEGABYTE = 1024 * 1024


async def with_providers(relay: Any, url: str) -> Any:
    """The relay with each vendor's provider, all at this address."""
    key = SecretStr(UPSTREAM_KEY)
    bases = {OPENAI: "/v1", ANTHROPIC: "/v1", GEMINI: "/v1beta"}
    providers = tuple(ProviderSettings(name=name, base_url=url + base, api_key=key) for name, base in bases.items())
    settings = relay.settings.model_copy(update={"providers": providers})
    relay.service._load = lambda: settings
    await relay.service.reload()
    return relay


async def simulator_relay(start_module_relay: Any, **changes: Any) -> Any:
    relay = await start_module_relay(**changes)
    return await with_providers(relay, relay.simulator.url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def before_raw(start_module_relay, raw_upstream) -> Any:
    """A relay that requires a key, before an upstream that keeps every byte it receives."""
    relay = await start_module_relay(upstream=raw_upstream.url, keys={"search": CLIENT_KEY})
    return await with_providers(relay, raw_upstream.url.removesuffix("/v1"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay) -> Any:
    return await simulator_relay(start_module_relay, relay={"max_answer_bytes": MEGABYTE})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(start_module_relay) -> Any:
    """A relay that requires a key."""
    return await simulator_relay(start_module_relay, keys={"search": CLIENT_KEY}, server={"max_body_bytes": 2048})


async def send(relay: Any, speaker: Speaker, simulate: str = "", model: str = "", **more: Any) -> Any:
    name = model or speaker.model
    return await relay.ask(speaker.body(simulate, name), speaker.url(name), **more)


def counters(relay: Any) -> dict[str, dict[tuple[str, ...], float]]:
    """The relevant counters, read from the recorder."""
    names = ("mcp_requests_total", "mcp_errors_total", "mcp_usage_missing_total", "mcp_tokens_total")
    families = relay.service.recorder.families
    return {name: {labels: cell.value for labels, cell in families[name].cells.items()} for name in names}


def increase(before: Any, after: Any, name: str) -> dict[tuple[str, ...], float]:
    old = before[name]
    return {labels: value - old.get(labels, 0) for labels, value in after[name].items() if value != old.get(labels, 0)}


# Clients that disconnect ---------------------------------------------------------------------------------------------


def request_of(speaker: Speaker, simulate: str, model: str = "") -> bytes:
    name = model or speaker.model
    body = json.dumps(speaker.body(simulate, name)).encode()
    head = f"POST {speaker.url(name)} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_a_disconnect_before_the_response_charges_the_prompt(relay, speaker):
    before, cancelled = counters(relay), relay.simulator.billing_log.totals.cancelled
    _, writer = await asyncio.open_connection(*relay.address)
    writer.write(request_of(speaker, "stall=headers"))
    await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 1)
    writer.transport.abort()
    await relay.simulator.billing_log.wait_until(lambda log: log.totals.cancelled == cancelled + 1)
    await relay.until_idle()
    row = relay.rows()[-1]
    source = "" if speaker in COUNTS else "partial"
    assert (row.status, row.outcome, row.error_id, row.token_source) == ("499", "partial", "caller_gone", source)
    assert (row.prompt_tokens > 0, row.completion_tokens) == (speaker not in COUNTS, 0)
    assert increase(before, counters(relay), "mcp_errors_total") == {("client_disconnected", "client"): 1}


@pytest.mark.parametrize("speaker", STREAMS, **by_name)
async def test_a_disconnect_within_a_stream_charges_what_was_delivered(relay, speaker):
    before, cancelled = counters(relay), relay.simulator.billing_log.totals.cancelled
    reader, writer = await asyncio.open_connection(*relay.address, limit=2**16)
    writer.write(request_of(speaker, "stall=body,after_tokens=20"))
    got = b""
    async with asyncio.timeout(120):
        while len(speaker.text(got)) < 20 * 4:
            got += await reader.read(65536)
    writer.transport.abort()
    await relay.simulator.billing_log.wait_until(lambda log: log.totals.cancelled == cancelled + 1)
    await relay.until_idle()
    row, call = relay.rows()[-1], list(relay.simulator.billing_log.calls())[-1]
    assert (row.status, row.outcome, row.error_id, row.token_source) == ("499", "partial", "caller_gone", "partial")
    assert call.delivered_tokens == 20
    assert row.completion_tokens == pytest.approx(20, abs=2)
    assert increase(before, counters(relay), "mcp_usage_missing_total") == {(speaker.provider, "client_gone"): 1}


# Refused requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_a_request_without_a_key_is_refused_and_not_sent(keyed, speaker):
    calls = keyed.simulator.billing_log.totals.calls
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"x-goog-api-key": "wrong"}):
        reply = await send(keyed, speaker, headers=headers)
        error = speaker.error(reply.json)
        assert (reply.status, error.code) == (401, "not_authenticated")
        assert error.call_id == reply.headers["x-mcpmeter-call-id"]
        assert "wrong" not in error.message
        assert reply.headers["www-authenticate"] == "Bearer"
    assert keyed.simulator.billing_log.totals.calls == calls
    assert keyed.rows() == [] or {row.team for row in keyed.rows()} == {"search"}


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_a_body_that_is_too_large_is_refused(keyed, speaker):
    body = speaker.body("", speaker.model) | {"padding": "x" * 4096}
    headers = {"authorization": f"Bearer {CLIENT_KEY}"}
    reply = await keyed.ask(body, speaker.url(speaker.model), headers=headers)
    assert (reply.status, speaker.error(reply.json).code) == (413, "body_too_large")


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_another_verb_is_refused(relay, speaker):
    before = counters(relay)
    reply = await relay.ask(path=speaker.url(speaker.model), method="GET")
    assert (reply.status, speaker.error(reply.json).code) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    assert increase(before, counters(relay), "mcp_requests_total") == {(speaker.endpoint, "GET", "405"): 1}


@pytest.mark.parametrize("speaker", EVERY, **by_name)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"a":' * 300], ids=repr)
async def test_an_invalid_body_is_refused_and_not_sent(relay, speaker, body):
    calls = relay.simulator.billing_log.totals.calls
    reply = await relay.ask(body, speaker.url(speaker.model))
    assert (reply.status, speaker.error(reply.json).code) == (400, "invalid_request")
    assert relay.simulator.billing_log.totals.calls == calls


@pytest.mark.parametrize("version", ["v1", "v1beta"])
@pytest.mark.parametrize("action", ["computeTokens", "batchGenerateContent", "predict", "generatecontent", ""])
async def test_an_unknown_gemini_action_is_not_found(relay, version, action):
    before = counters(relay)
    reply = await relay.ask({"contents": []}, f"/{version}/models/gemini-2.5-flash:{action}")
    assert (reply.status, reply.json["error"]["code"]) == (404, 404)
    assert Generate().error(reply.json).code == "route_not_found"
    assert reply.json["error"]["status"] == "NOT_FOUND"
    # A client's text never becomes a label.
    assert {labels[0] for labels in increase(before, counters(relay), "mcp_requests_total")} == {"other"}


async def test_an_unknown_anthropic_path_is_not_found(relay):
    reply = await relay.ask({}, "/v1/messages/batches")
    assert (reply.status, reply.json["error"]["type"]) == (404, "not_found_error")
    assert Messages().error(reply.json).code == "route_not_found"


# Credentials ---------------------------------------------------------------------------------------------------------

KEY_PLACES = {
    "bearer": ({"authorization": f"Bearer {CLIENT_KEY}"}, ""),
    "x-api-key": ({"x-api-key": CLIENT_KEY}, ""),
    "x-goog-api-key": ({"x-goog-api-key": CLIENT_KEY}, ""),
    "?key=": ({}, f"key={CLIENT_KEY}"),
}


async def respond_400(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond with an error; the tests look at what was sent."""
    body = b'{"error":{"message":"no","type":"invalid_request_error"}}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    await writer.drain()


SPEAKERS_AND_KEYS = [
    pytest.param(speaker, place, id=f"{speaker.name} {place}")
    for speaker in EVERY
    for place in KEY_PLACES
    if speaker.provider == GEMINI or place != "?key="  # only Google's clients send a key in the query
]


@pytest.mark.parametrize(("speaker", "place"), SPEAKERS_AND_KEYS)
async def test_the_clients_key_is_never_sent_upstream(before_raw, raw_upstream, speaker, place):
    raw_upstream.play(respond_400)
    headers, query = KEY_PLACES[place]
    url = speaker.url(speaker.model)
    url += f"{'&' if '?' in url else '?'}{query}" if query else ""
    reply = await before_raw.ask(speaker.body("", speaker.model), url, headers=headers)
    assert reply.status == 400
    (sent,) = raw_upstream.requests
    assert CLIENT_KEY.encode() not in sent
    assert sent.count(UPSTREAM_KEY.encode()) == 1
    assert UPSTREAM_KEY not in f"{reply.headers}{reply.body!r}"
    (row,) = [row for row in before_raw.rows() if row.id == reply.headers["x-mcpmeter-call-id"]]
    assert (row.team, row.key_id != "") == ("search", True)
    assert CLIENT_KEY not in repr(row)


def responding(status: str, body: bytes, *headers: str) -> Any:
    """A provider that responds with a whole body."""
    lines = (f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers)

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return respond


KEYED = {"authorization": f"Bearer {CLIENT_KEY}"}


@pytest.mark.parametrize("speaker", EVERY, **by_name)
@pytest.mark.parametrize("status", ["400 Bad Request", "404 No", "422 No", "429 Later", "500 Fault"])
async def test_an_error_that_shows_the_relays_key_keeps_its_status_only(before_raw, raw_upstream, speaker, status):
    shown = UPSTREAM_KEY if status < "404" else f"{UPSTREAM_KEY[:9]}****{UPSTREAM_KEY[-4:]}"
    error = {"message": f"Incorrect API key provided: {shown}", "type": "their_type", "status": "THEIRS"}
    headers = (f"X-Echo: Bearer {UPSTREAM_KEY}", f"X-Request-Id: {shown}", "X-Correlation-Id: 7")
    raw_upstream.play(responding(status, json.dumps({"error": error}).encode(), *headers))
    reply = await before_raw.ask(speaker.body("", speaker.model), speaker.url(speaker.model), headers=KEYED)
    assert reply.status == int(status[:3])
    seen = f"{reply.headers}{reply.body!r}"
    assert shown not in seen
    assert UPSTREAM_KEY not in seen
    assert "withheld" in seen
    assert "their_type" in seen or "THEIRS" in seen, "programs match on a provider's own words"
    assert reply.headers["x-mcpmeter-provider"] == speaker.provider
    assert reply.headers["x-correlation-id"] == "7"


@pytest.mark.parametrize("speaker", STREAMS, **by_name)
async def test_a_streams_error_that_shows_a_key_is_replaced(before_raw, raw_upstream, speaker):
    error = {"type": "error", "error": {"type": "x", "message": f"bad key {UPSTREAM_KEY[:6]}...{UPSTREAM_KEY[-4:]}"}}
    event = b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + event)
        await writer.drain()
        writer.close()

    raw_upstream.play(respond)
    reply = await before_raw.ask(speaker.body("", speaker.model), speaker.url(speaker.model), headers=KEYED)
    assert reply.status == 200
    assert UPSTREAM_KEY[-4:] not in reply.body.decode()
    assert b"withheld" in reply.body
    assert b"upstream_fault" in reply.body


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_a_header_that_repeats_the_relays_key_does_not_pass(before_raw, raw_upstream, speaker):
    body = b'{"error":{"message":"no"}}'
    raw_upstream.play(responding("400 No", body, f"OpenAI-Echo: Bearer {UPSTREAM_KEY}", "OpenAI-Version: 1"))
    reply = await before_raw.ask(speaker.body("", speaker.model), speaker.url(speaker.model), headers=KEYED)
    assert (reply.status, reply.body, reply.headers["openai-version"]) == (400, body, "1")
    assert UPSTREAM_KEY not in f"{reply.headers}"


@pytest.mark.parametrize(
    "speaker", [speaker for speaker in EVERY if speaker.provider == GEMINI and not speaker.streams], **by_name
)
async def test_googles_400_for_a_bad_key_is_a_refused_account(before_raw, raw_upstream, speaker):
    """It is about the relay's key, so the client can do nothing about it."""
    reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
    error = {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT", "details": [reason]}
    raw_upstream.play(responding("400 Bad Request", json.dumps({"error": error}).encode()))
    reply = await before_raw.ask(speaker.body("", speaker.model), speaker.url(speaker.model), headers=KEYED)
    assert (reply.status, speaker.error(reply.json).code) == (502, "upstream_refused_account")


@pytest.mark.parametrize("speaker", STREAMS, **by_name)
async def test_a_stream_whose_key_was_revoked_ends_in_an_error_of_its_dialect(keyed, speaker):
    asking = asyncio.create_task(send(keyed, speaker, "stall=body,after_tokens=5", headers=KEYED))
    pipeline = keyed.service.pipeline
    await keyed.until(lambda: any(call.stream and call.stream.tee.chunks > 4 for call in pipeline.active_calls))
    assert pipeline.end_streams(lambda _: True) == 0
    assert pipeline.end_streams(lambda _: False) == 1
    reply = await asking
    assert reply.status == 200
    assert b"not_authenticated" in reply.body.strip().splitlines()[-1]
    await keyed.until_idle()
    assert keyed.rows()[-1].outcome == "partial"


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_a_fault_of_ours_is_settled_and_names_the_provider(relay, speaker, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    calls = relay.service.pipeline
    monkeypatch.setattr("mcpmeter.relay.call.RelayedCall._forward_error", broken)
    reply = await send(relay, speaker, "status=422")
    assert calls.active_calls == set()
    assert (reply.status, speaker.error(reply.json).code) == (500, "internal_error")
    assert "a fault of ours" not in f"{reply.body!r}"
    assert (reply.headers["x-mcpmeter-provider"], reply.headers["x-mcpmeter-attempts"]) == (speaker.provider, "1")
    (row,) = [row for row in relay.rows() if row.id == reply.headers["x-mcpmeter-call-id"]]
    assert (row.state, row.outcome, row.error_id) == ("settled", "error", "internal_error")


async def test_a_call_whose_estimate_fails_is_settled_by_its_row(relay, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("mcpmeter.relay.result.usage_of_failure", broken)
    before = {row.id for row in relay.rows()}
    assert (await send(relay, CHAT, "body=html")).status == 500
    (row,) = [row for row in relay.rows() if row.id not in before]
    assert (row.state, row.outcome, row.error_id) == ("settled", "error", "upstream_answered_garbage")
    assert (row.token_source, row.prompt_tokens) == ("partial", row.prompt_tokens_estimate)


NEVER_STREAM = (EMBEDDINGS, EMBED, BATCH_EMBED, *COUNTS)
ERROR_EVENT = {OPENAI: (b'data: {"', b"}\n\n"), ANTHROPIC: (b'event: error\ndata: {"', b"}\n\n")}
ERROR_EVENT[GEMINI] = (b'data: {"', b"}\r\n\r\n")


@pytest.mark.parametrize("speaker", NEVER_STREAM, **by_name)
async def test_a_stream_in_a_dialect_without_streams_counts_as_broken(before_raw, raw_upstream, speaker):
    whole = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":7}}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    raw_upstream.play(head + whole + b'data: {"us')
    reply = await before_raw.ask(speaker.body("", speaker.model), speaker.url(speaker.model), headers=KEYED)
    begin, end = ERROR_EVENT[speaker.provider]
    assert (reply.status, reply.body.startswith(whole + begin), reply.body.endswith(end)) == (200, True, True)
    assert speaker.last_error(reply.body).code == "upstream_broke"
    (row,) = [row for row in before_raw.rows() if row.id == reply.headers["x-mcpmeter-call-id"]]
    assert (row.outcome, row.error_id, row.completion_tokens) == ("partial", "upstream_broke", 0)
    is_free = speaker in COUNTS
    assert (row.token_source, row.prompt_tokens > 0) == ("" if is_free else "partial", not is_free)
