"""Limits that need a service with settings of their own: nesting, keys, time, headers."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from mcpmeter.access.keys import new_key

CHAT, GUIDE = "/v1/chat/completions", "/mcp/chat"
GOOD = b'{"model":"gpt-4.1","messages":[{"role":"user","content":"Hello"}]}'
KEY, _ = new_key("backend", "search", 0)


@pytest.mark.parametrize(
    "start", [b'{"model":"m","messages":[],"x":' + b"[" * 1_000_000, b'{"a":' * 1_000_000, b"[" * 1_000_000]
)
async def test_a_million_levels_of_nesting_are_refused(start_relay, start):
    relay = await start_relay()
    reply = await relay.ask(start)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert (await relay.chat()).status == 200


async def test_every_route_refuses_missing_and_wrong_keys_alike(start_relay):
    relay = await start_relay(keys={"search": KEY})
    for path, method in ((CHAT, "POST"), (GUIDE, "POST"), ("/v1/models", "GET"), ("/mcp/models", "GET")):
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic mk_x"}, {"x-api-key": "\u00ff"}):
            reply = await relay.ask(GOOD if method == "POST" else b"", path, method=method, headers=header)
            assert (reply.status, reply.error["code"]) == (401, "not_authenticated")
            assert reply.headers["www-authenticate"] == "Bearer"
    right = {"authorization": f"Bearer {KEY}"}
    assert (await relay.ask(GOOD, headers=right)).status == 200
    assert [row.team for row in relay.rows()] == ["search"]


@pytest.mark.parametrize(
    ("path", "where", "type_"),
    [
        ("/v1/chat/completions", ("error", "type"), "invalid_request_error"),
        ("/v1/messages", ("error", "type"), "invalid_request_error"),
        ("/v1beta/models/gemini-2.5-flash:generateContent", ("error", "status"), "DEADLINE_EXCEEDED"),
    ],
)
async def test_a_slow_upload_times_out_and_closes(start_relay, path, where, type_):
    relay = await start_relay(server={"timeouts": {"body_seconds": 0.05}})
    before = relay.counts()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n".encode()
    for start in (b"", b"{"):
        reply = await relay.raw(head, rest=start)  # which reads to the connection's end
        assert (reply.status, reply.json[where[0]][where[1]]) == (408, type_)
        assert b'"body_too_slow"' in reply.body
        assert b"did not arrive within" in reply.body
        assert reply.headers["connection"] == "close"
        assert reply.headers["x-mcpmeter-call-id"].encode() in reply.body
    await relay.until_idle()
    after = await relay.scrape()
    endpoint = path.replace("gemini-2.5-flash", "{model}")
    requests = after.since(before, "mcp_requests_total")
    assert requests[endpoint, "POST", "408"] == 2
    assert after.since(before, "mcp_errors_total") == {("validation_error", "client"): 2}
    assert relay.rows() == []
    assert relay.simulator.billing_log.totals.calls == 0


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 200_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-endless: " + b"a" * 500_000, 431, "headers_too_large"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 50_000, 431, "headers_too_large"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400, "invalid_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_request"),
        (b"BREW /coffee HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, "invalid_request"),
    ],
)
async def test_endless_headers_and_bad_http_are_refused_and_counted(start_relay, sent, status, code):
    relay = await start_relay()
    before = relay.counts()
    reply = await relay.raw(sent)
    assert (reply.status, reply.error["code"]) == (status, code)
    after = await relay.scrape()
    assert after.since(before, "mcp_requests_total")["other", "other", str(status)] == 1
    assert after.since(before, "mcp_errors_total") == {("validation_error", "client"): 1}


async def test_long_headers_on_a_pipelined_connection_are_served(start_relay):
    relay = await start_relay()
    one = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 30_000 + b"\r\n\r\n"
    last = one.replace(b"host:", b"connection: close\r\nhost:")
    reply = await relay.raw(one * 5 + last)
    assert reply.status == 200
    assert reply.body.count(b'"healthy"') == 6 or reply.body.count(b"HTTP/1.1 200") == 5


CHUNKED = b"POST %s HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n" % CHAT.encode()
IN_ONE_CHUNK = b"%x\r\n%b\r\n0\r\n" % (len(GOOD), GOOD)


async def test_trailers_are_no_headers(start_relay):
    relay = await start_relay(keys={"search": KEY})
    trailers = b"authorization: Bearer %s\r\n\r\n" % KEY.encode()
    assert (await relay.raw(CHUNKED + b"connection: close\r\n\r\n" + IN_ONE_CHUNK + trailers)).status == 401


async def test_bounded_trailers_and_many_tiny_chunks_are_read(start_relay):
    relay = await start_relay()
    tiny = b"".join(b"1;a=12345678\r\n%c\r\n" % byte for byte in b" " * 20_000) + IN_ONE_CHUNK
    trailers = b"x: %s\r\n\r\n" % (b"a" * 60_000)
    last = CHUNKED + b"connection: close\r\n\r\n" + tiny + trailers
    reply = await relay.raw(CHUNKED + b"\r\n" + tiny + trailers + last)
    assert (reply.status, reply.body.count(b"HTTP/1.1 200 OK")) == (200, 1)


FLOODS = {
    "a trailer's value": b"0\r\nx: " + b"a" * 500_000,
    "a trailer's name": b"0\r\n" + b"a" * 500_000,
    "trailers": b"0\r\n" + b"x: y\r\n" * 50_000,
    "trailers that end": b"0\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    "a chunk extension": b"1;a=" + b"a" * 500_000,
    "chunk extensions that outweigh their chunks": (b"1;" + b"a" * 1000 + b"\r\na\r\n") * 500,
}


@pytest.mark.parametrize(
    ("name", "path"), [*((name, CHAT) for name in FLOODS), ("trailers", "/v1/messages"), ("trailers", "/mcp")]
)
async def test_a_flood_of_trailers_or_chunk_extensions_is_refused(start_relay, name, path):
    relay = await start_relay()
    before = relay.counts()
    head = b"content-type: application/json\r\naccept: application/json, text/event-stream\r\n\r\n"
    reply = await relay.raw(CHUNKED.replace(CHAT.encode(), path.encode()) + head, rest=FLOODS[name])
    assert (reply.status, reply.headers["connection"]) == (431, "close")
    assert b"65536 bytes" in reply.body
    await relay.until_idle()
    after = await relay.scrape()
    risen = {labels: rise for labels, rise in after.since(before, "mcp_requests_total").items() if labels[2] != "200"}
    assert risen == {(path, "POST", "431"): 1}
    assert after.since(before, "mcp_errors_total") == {("validation_error", "client"): 1}


async def test_endless_trailers_after_the_response_close(start_relay):
    relay = await start_relay()
    reader, writer = await asyncio.open_connection(*relay.address)
    writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"}"), 120)).startswith(b"HTTP/1.1 200 OK")
    writer.write(FLOODS["a trailer's value"])
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 120) == b""
    writer.close()


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"1;\n"])
async def test_bad_chunk_framing_is_refused_and_counted_once(start_relay, chunk):
    relay = await start_relay()
    before = relay.counts()
    reply = await relay.raw(CHUNKED + b"\r\n", rest=chunk)
    assert (reply.status, reply.error["code"]) == (400, "invalid_request")
    await relay.until_idle()
    after = await relay.scrape()
    assert after.since(before, "mcp_errors_total") == {("validation_error", "client"): 1}


async def test_junk_behind_a_request_does_not_cost_its_response(start_relay):
    relay = await start_relay()
    before = relay.counts()
    body = b'{"model":"gpt-4.1","messages":[{"role":"user","content":"Hi"}],"metadata":{"simulate":"latency_ms=100"}}'
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(body))
    reply = await relay.raw(head + body + b"no HTTP\r\n\r\n")  # which reads to the connection's end
    assert (reply.status, reply.json["object"]) == (200, "chat.completion")
    requests = (await relay.scrape()).since(before, "mcp_requests_total")
    assert requests["other", "other", "400"] == requests[CHAT, "POST", "200"] == 1
