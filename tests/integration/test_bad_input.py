"""Bad requests get a 4xx in OpenAI's shape with an id and a sentence, counted once, and break no scrape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT_BYTES = 4096
SECRET = "swordfish-in-a-body"
CHAT, GUIDE = "/v1/chat/completions", "/mcp/chat"
MESSAGES = b'"messages":[{"role":"user","content":"swordfish-in-a-body"}]'
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
GOOD = b'{"model":"gpt-4.1",%s}' % MESSAGES


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay) -> Any:
    """One service for the module: a refusal leaves it unchanged."""
    return await start_module_relay(server={"max_body_bytes": LIMIT_BYTES})


@dataclass
class Refusal:
    """The response to a bad request."""

    status: int
    message: str
    headers: Any


async def refused(relay: Any, ask: Any, status: int, *, endpoint: str, error_type: str = "validation_error") -> Refusal:
    """Send a bad request and check what holds for all of them."""
    before, rows = relay.counts(), len(relay.rows())
    upstream_calls = relay.simulator.billing_log.totals.calls + relay.simulator.billing_log.refused
    reply = await ask
    after = await relay.scrape()

    assert reply.status == status, reply.body[:300]
    error = reply.error
    assert set(error) == {"message", "type", "param", "code", "call_id"}
    assert error["call_id"] == reply.headers["x-mcpmeter-call-id"]
    assert error["message"].endswith((".", "!"))
    assert SECRET not in error["message"]
    risen = {
        labels: rise for labels, rise in after.since(before, "mcp_requests_total").items() if labels[0] != "/metrics"
    }
    assert [(labels[0], labels[2], rise) for labels, rise in risen.items()] == [(endpoint, str(status), 1)]
    assert after.since(before, "mcp_errors_total") == {(error_type, "client"): 1}
    assert after.of("mcp_active_requests") == 0
    assert len(relay.rows()) == rows
    assert relay.simulator.billing_log.totals.calls + relay.simulator.billing_log.refused == upstream_calls
    return Refusal(status, error["message"], reply.headers)


BODIES = {
    "empty": b"",
    "not JSON": b"Hello",
    "half a JSON": GOOD[:-1],
    "two objects": GOOD + GOOD,
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "no messages": b'{"model":"m"}',
    "messages empty": b'{"model":"m","messages":[]}',
    "messages null": b'{"model":"m","messages":null}',
    "messages a text": b'{"model":"m","messages":"swordfish-in-a-body"}',
    "messages of texts": b'{"model":"m","messages":["swordfish-in-a-body"]}',
    "content a number": b'{"model":"m","messages":[{"role":"user","content":7}]}',
    "model a number": b'{"model":7,%s}' % MESSAGES,
    "model a list": b'{"model":["m"],%s}' % MESSAGES,
    "model empty": b'{"model":"",%s}' % MESSAGES,
    "model of control characters": b'{"model":"a\\r\\nb",%s}' % MESSAGES,
    "model too long": b'{"model":"%s",%s}' % (b"m" * 300, MESSAGES),
    "model twice": b'{"model":"a","model":"b",%s}' % MESSAGES,
    "stream a text": b'{"model":"m","stream":"true",%s}' % MESSAGES,
    "lone surrogate in a message": b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    "lone surrogate in the model": b'{"model":"\\udfff",%s}' % MESSAGES,
    "lone surrogate in an unread field": b'{"model":"m","user":"\\ud800 swordfish-in-a-body",%s}' % MESSAGES,
    "lone surrogate in a key": b'{"model":"m","\\ud800":1,%s}' % MESSAGES,
    "surrogate as bytes": b'{"model":"m\xed\xa0\x80",%s}' % MESSAGES,
    "NUL escaped": b'{"model":"m","user":"\\u0000",%s}' % MESSAGES,
    "NUL in the model": b'{"model":"m\\u0000",%s}' % MESSAGES,
    "NUL as a byte": b'{"model":"m","user":"\0",%s}' % MESSAGES,
    "not UTF-8": b'{"model":"m","user":"\xff\xfe",%s}' % MESSAGES,
    "UTF-16": GOOD.decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
}


@pytest.mark.parametrize("path", [CHAT, GUIDE])
@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_no_chat_is_refused(relay, name, path):
    await refused(relay, relay.ask(BODIES[name], path), 400, endpoint=path)


async def test_a_missing_model_is_refused_on_v1_only(relay):
    body = b"{%s}" % MESSAGES
    await refused(relay, relay.ask(body, CHAT), 400, endpoint=CHAT)
    answer = await relay.ask(body, GUIDE)
    assert (answer.status, answer.json["model"]) == (200, "deepseek-v3.2")
    assert relay.rows()[-1].model == "deepseek-v3.2"


@pytest.mark.parametrize("path", [CHAT, GUIDE])
async def test_a_body_over_the_limit_is_refused_by_its_length(relay, path):
    await refused(relay, relay.ask(b" " * (LIMIT_BYTES + 1), path), 413, endpoint=path)


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 1024


@pytest.mark.parametrize("path", [CHAT, GUIDE])
async def test_a_chunked_body_over_the_limit_is_refused(relay, path):
    # Far more than any buffer on the way: a service that stopped reading would reset its caller.
    await refused(relay, relay.ask(chunks(8 * 1024), path), 413, endpoint=path)


async def test_a_body_of_exactly_the_limit_is_read(relay):
    body = GOOD + b" " * (LIMIT_BYTES - len(GOOD))
    assert (await relay.ask(body)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "endpoint"),
    [
        ("POST", "/v1/chat", 404, "other"),
        ("GET", "/v2/swordfish-in-a-body", 404, "other"),
        ("GET", "/%00%ff%ed%a0%80", 404, "other"),
        ("GET", "/v1//models", 404, "other"),
        ("POST", "/v1/chat/completions/", 404, "other"),
        ("GET", CHAT, 405, CHAT),
        ("DELETE", GUIDE, 405, GUIDE),
        ("POST", "/metrics", 405, "/metrics"),
        ("PUT", "/v1/models", 405, "/v1/models"),
        ("PROPFIND", CHAT, 405, CHAT),
        ("OPTIONS", CHAT, 405, CHAT),
    ],
)
async def test_an_unknown_route_or_verb_is_refused(relay, method, path, status, endpoint):
    refusal = await refused_raw(relay, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n".encode(), status, endpoint)
    assert ("allow" in refusal.headers) == (status == 405)


async def refused_raw(
    relay: Any, head: bytes, status: int, endpoint: str, error_type: str = "validation_error"
) -> Refusal:
    request = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD
    if endpoint == "/metrics":
        # A scrape of the helper's own would be counted on the same route.
        before = relay.counts()
        reply = await relay.raw(request)
        assert (reply.status, reply.error["code"]) == (status, "method_not_allowed")
        assert (await relay.scrape()).since(before, "mcp_errors_total") == {(error_type, "client"): 1}
        return Refusal(status, reply.error["message"], reply.headers)
    return await refused(relay, relay.raw(request), status, endpoint=endpoint, error_type=error_type)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/chat/completions HTTP/1.0\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: evil.example\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost.evil.example:8000\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost.evil.example\r\n",
    ],
)
async def test_a_foreign_or_missing_host_or_origin_is_refused(relay, head):
    await refused_raw(relay, head, 403, CHAT, "auth_error")


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:80", "[::1]:9"])
async def test_the_names_of_this_machine_are_served(relay, host):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    reply = await relay.raw(f"{head}Content-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD)
    assert reply.status == 200


async def test_an_http_1_0_client_that_names_its_host_is_served(relay):
    head = b"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(GOOD)
    reply = await relay.raw(head + GOOD)
    assert (reply.status, reply.json["object"]) == (200, "chat.completion")


async def test_100_continue_is_sent_to_a_client_that_expects_it(relay):
    reader, writer = await asyncio.open_connection(*relay.address)
    head = POST + b"Connection: close\r\nExpect: 100-continue\r\n"
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(GOOD))
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 120) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(GOOD)
    assert (await asyncio.wait_for(reader.read(-1), 120)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_an_upgrade_to_http_2_is_ignored_and_the_body_read(relay):
    """`java.net.http.HttpClient` sends this with each first POST; the body may come later, or wait for a 100."""
    proposal = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    reader, writer = await asyncio.open_connection(*relay.address)
    for expect in (b"", b"Expect: 100-continue\r\n"):
        writer.write(POST + proposal + expect + b"Content-Length: %d\r\n\r\n" % len(GOOD))
        if expect:
            assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 120) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(GOOD)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        assert json.loads(await asyncio.wait_for(reader.readexactly(length), 120))["object"] == "chat.completion"
    writer.close()


async def test_100_continue_is_not_sent_for_a_body_over_the_limit(relay):
    head = POST + b"Connection: close\r\nExpect: 100-continue\r\n"
    request = relay.raw(head + b"Content-Length: %d\r\n\r\n" % (LIMIT_BYTES + 1))
    await refused(relay, request, 413, endpoint=CHAT)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        POST + b"Content-Length: -5\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"FROBNICATE /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: [::1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    ],
)
async def test_invalid_http_is_refused(relay, request_bytes):
    reply = await relay.raw(request_bytes)
    assert reply.status == 400
    assert (await relay.chat()).status == 200
    await relay.until_idle()


async def test_odd_headers_are_no_faults(relay):
    lines = (
        b"Authorization: Bearer \xff\xfe\0".replace(b"\0", b""),
        b"Authorization: Digest \xe9",
        b"traceparent: 00-zz-" + b"f" * 16 + b"-01",
        b"traceparent: 00-" + b"0" * 32 + b"-" + b"f" * 16 + b"-01",
        b"User-Agent: swordfish-in-a-body",
        b"X-Huge: " + b"h" * 60_000,
        b"Accept-Encoding: gzip;q=bad, \xff",
        b"Content-Type: application/\xff",
    )
    for line in lines:
        head = POST + b"Connection: close\r\n" + line + b"\r\n"
        reply = await relay.raw(head + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD)
        assert reply.status == 200, line[:40]


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=abc",
        "application/openmetrics-text; version=1.0.0; escaping=bad",
        "application/openmetrics-text; version=\u00e9\u00ff",
        "application/openmetrics-text; version=9.9.9; escaping=underscores",
        "text/plain; version=abc",
        "text/plain; version=1.0.0; escaping=\u00ff",
        ",,;;==,q=,;q=abc",
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
        "swordfish-in-a-body",
        "*/*;" * 2000,
    ],
)
async def test_any_accept_header_gets_metrics_that_parse(relay, accept):
    head = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: {accept}\r\n\r\n"
    reply = await relay.raw(head.encode("latin-1"))
    assert reply.status == 200
    assert SECRET.encode() not in reply.body
    assert reply.headers["content-type"].isascii()
    assert (await relay.scrape()).of("mcp_active_requests") == 0


async def test_no_body_or_header_is_logged_or_stored(relay, everything_logged):
    for body in (*BODIES.values(), GOOD):
        await relay.ask(body, headers={"authorization": f"Bearer {SECRET}", "x-request-id": SECRET})
    metrics = await relay.ask(path="/metrics", method="GET")
    files = [file.read_bytes() for file in relay.ledger.parent.iterdir() if file.name.startswith(relay.ledger.name)]
    assert SECRET not in everything_logged.text
    assert all(SECRET.encode() not in kept for kept in (metrics.body, *files))


text = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
fields = st.dictionaries(
    st.sampled_from(["model", "messages", "stream", "stream_options", "n", "tools"]) | text, values, max_size=5
)
shaped = fields.map(lambda value: json.dumps(value).encode())
mutated = st.tuples(st.integers(0, len(GOOD)), st.binary(max_size=4)).map(
    lambda cut: GOOD[: cut[0]] + cut[1] + GOOD[cut[0] :]
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(body=st.binary(max_size=300) | shaped | mutated, path=st.sampled_from([CHAT, GUIDE]))
async def test_any_body_gets_a_response_and_leaves_nothing_open(relay, body, path):
    requests = relay.service.recorder.families["mcp_requests_total"].cells
    before = sum(cell.value for cell in requests.values())
    reply = await relay.ask(body, path)
    assert reply.status in (200, 400), reply.body
    if reply.status == 400:
        assert reply.json["error"]["message"]
    assert sum(cell.value for cell in requests.values()) == before + 1
    await relay.until_idle()


async def test_clients_cannot_create_series(relay):
    await relay.scrape_openmetrics()
    scrape = await relay.scrape()
    known = {"gpt-4.1", "claude-sonnet-4.5", "gemini-2.5-flash", "deepseek-v3.2", "other"}
    models = {dict(labels)["model"] for name, labels in scrape.counts if name == "mcp_tokens_total"}
    assert models <= known
    assert all(row.state == "settled" for row in relay.rows())
