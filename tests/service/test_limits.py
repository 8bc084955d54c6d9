"""Depth, keys and time: bounds that need a service of their own settings."""

from __future__ import annotations

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


async def test_a_known_key_is_asked_for_and_a_wrong_one_is_refused_alike_on_every_route(start_relay):
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
async def test_a_slow_upload_is_given_up_and_its_connection_closed(start_relay, monkeypatch, path, where, type_):
    monkeypatch.setattr("mcpmeter.relay.exchange.SECONDS_FOR_THE_BODY", 0.05)
    relay = await start_relay()
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
    assert relay.simulator.books.totals.calls == 0


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
async def test_heads_without_an_end_and_what_is_no_http_are_refused_and_counted(start_relay, sent, status, code):
    relay = await start_relay()
    before = relay.counts()
    reply = await relay.raw(sent)
    assert (reply.status, reply.error["code"]) == (status, code)
    after = await relay.scrape()
    assert after.since(before, "mcp_requests_total")["other", "other", str(status)] == 1
    assert after.since(before, "mcp_errors_total") == {("validation_error", "client"): 1}


async def test_long_but_bounded_heads_and_many_requests_on_one_connection_are_answered(start_relay):
    relay = await start_relay()
    one = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 30_000 + b"\r\n\r\n"
    last = one.replace(b"host:", b"connection: close\r\nhost:")
    reply = await relay.raw(one * 5 + last)
    assert reply.status == 200
    assert reply.body.count(b'"healthy"') == 6 or reply.body.count(b"HTTP/1.1 200") == 5
