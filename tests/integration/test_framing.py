"""Requests as clients frame them: repeated headers, compressed bodies, bodies over the limit."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import zlib
from typing import Any

import pytest
import pytest_asyncio
from tests.integration.speakers import EVERY, by_name
from tests.integration.test_every_dialect import CLIENT_KEY, responding, with_providers

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT_BYTES = 1_000_000
KEY = b"authorization: Bearer %s\r\n" % CLIENT_KEY.encode()
INVALID = b'{"error":{"message":"no"}}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay, raw_upstream) -> Any:
    settings = {"server": {"max_body_bytes": LIMIT_BYTES}, "keys": {"search": CLIENT_KEY}}
    relay = await start_module_relay(upstream=raw_upstream.url, **settings)
    raw_upstream.play(responding("400 Bad Request", INVALID))
    return await with_providers(relay, raw_upstream.url.removesuffix("/v1"))


def request_of(path: str, lines: bytes, body: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n" % (
        path.encode(),
        len(body),
    )
    return head + lines + b"\r\n" + body


def messages(text: str) -> bytes:
    body = {"model": "claude-sonnet-4.5", "max_tokens": 9, "messages": [{"role": "user", "content": text}]}
    return json.dumps(body).encode()


# Repeated headers -----------------------------------------------------------------------------------------------------


async def test_repeated_list_headers_reach_the_provider_as_one(relay, raw_upstream):
    lines = b"anthropic-beta: compact\r\nANTHROPIC-BETA:  thinking , files \t\r\nanthropic-beta:\r\n"
    raw_upstream.requests.clear()
    assert (await relay.raw(request_of("/v1/messages", KEY + lines, messages("Hi")))).status == 400
    (sent,) = raw_upstream.requests
    assert [line for line in sent.split(b"\r\n") if b"beta" in line] == [b"anthropic-beta: compact, thinking , files"]


@pytest.mark.parametrize("speaker", EVERY, **by_name)
async def test_a_repeated_key_is_refused_in_the_dialects_shape(relay, raw_upstream, speaker):
    raw_upstream.requests.clear()
    body = json.dumps(speaker.body("", speaker.model)).encode()
    before = relay.counts()
    reply = await relay.raw(request_of(speaker.url(speaker.model), KEY + b"Authorization: Bearer other\r\n", body))
    error = speaker.error(reply.json)
    assert (reply.status, error.code) == (400, "invalid_request")
    assert "authorization is repeated" in error.message
    errors = (await relay.scrape()).since(before, "mcp_errors_total")
    assert (errors, raw_upstream.requests) == ({("validation_error", "client"): 1}, [])


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("/v1/messages", b"x-api-key: a\r\nX-API-Key: a\r\n"),
        ("/v1/messages", KEY + b"content-type: application/json\r\ncontent-type: text/plain\r\n"),
        ("/v1/messages", KEY + b"anthropic-version: 2023-06-01\r\nanthropic-version: 2023-06-01\r\n"),
        ("/mcp", KEY + b"mcp-session-id: a\r\nmcp-session-id: b\r\n"),
        ("/health", b"origin: http://localhost\r\norigin: http://evil.example\r\n"),
    ],
)
async def test_a_repeated_single_value_is_refused(relay, path, lines):
    assert (await relay.raw(request_of(path, lines, messages("Hi")))).status == 400


# Compressed bodies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        (b"gzip", gzip.compress),
        (b"X-GZIP", lambda body: gzip.compress(body[:9]) + gzip.compress(body[9:])),
        (b"deflate \t", zlib.compress),
        (b"identity", bytes),
        (b"", bytes),
    ],
)
async def test_a_compressed_body_reaches_the_provider_plain(relay, raw_upstream, encoding, packed):
    raw_upstream.requests.clear()
    body = messages("Hi" * 100_000)
    lines = KEY + b"content-encoding: %b\r\n" % encoding
    assert (await relay.raw(request_of("/v1/messages", lines, packed(body)))).status == 400
    (sent,) = raw_upstream.requests
    assert sent.endswith(b"\r\n\r\n" + body)
    assert b"content-encoding" not in sent


GZIP = b"content-encoding: gzip\r\n"
PACKED = gzip.compress(messages("Hi"), mtime=0)
UNREADABLE = {
    "zstd": (b"content-encoding: zstd\r\n", b"(\xb5/\xfd", 415),
    "two codings": (b"content-encoding: gzip, gzip\r\n", PACKED, 415),
    "two headers": (GZIP + GZIP, PACKED, 415),
    "plain": (GZIP, messages("Hi"), 400),
    "truncated": (GZIP, PACKED[:-4], 400),
    "more behind it": (GZIP, PACKED + b"more", 400),
    "nothing": (b"content-encoding: deflate\r\n", b"", 400),
    "a byte over the limit": (GZIP, gzip.compress(b"\0" * (LIMIT_BYTES + 1)), 413),
    "far over the limit": (GZIP, zlib.compress(b"\0" * 200_000_000), 413),
    "many empty members": (GZIP, gzip.compress(b"", mtime=0) * 40_000, 400),
}
CODES = {415: "unsupported_content_encoding", 400: "invalid_request", 413: "body_too_large"}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_body_that_cannot_be_decompressed_is_refused(relay, raw_upstream, name):
    lines, body, status = UNREADABLE[name]
    raw_upstream.requests.clear()
    reply = await relay.raw(request_of("/v1/chat/completions", KEY + lines, body))
    assert (reply.status, reply.error["code"]) == (status, CODES[status])
    assert reply.headers.get("accept-encoding") == ("gzip, deflate" if status == 415 else None)
    assert raw_upstream.requests == []


async def test_mcp_messages_are_taken_plain_only(relay):
    reply = await relay.raw(request_of("/mcp", KEY + b"content-encoding: gzip\r\n", gzip.compress(b"{}")))
    assert (reply.status, reply.headers["accept-encoding"]) == (415, "identity")


# Bodies over the limit ------------------------------------------------------------------------------------------------

CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"


def sent_and_then_read(address: tuple[str, int], sent: bytes) -> bytes:
    """As most clients do: read only after all is sent."""
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("megabytes", [2, 60])
@pytest.mark.parametrize("framing", ["HTTP/1.1", "HTTP/1.0", "chunked"])
@pytest.mark.parametrize(
    "lines", [b"", b"connection: close\r\n", b"connection: keep-alive\r\n", b"expect: 100-continue\r\n"]
)
async def test_a_client_that_sends_all_first_reads_its_413(relay, megabytes, framing, lines):
    size = megabytes * 1_000_000
    head = b"POST /v1/chat/completions HTTP/1.%d\r\nhost: localhost\r\n" % (framing != "HTTP/1.0") + KEY + lines
    if framing == "chunked":
        sent = head + b"transfer-encoding: chunked\r\n\r\n" + CHUNK * (size // 65536) + b"0\r\n\r\n"
    else:
        sent = head + b"content-length: %d\r\n\r\n" % size + b"x" * size
    received = await asyncio.to_thread(sent_and_then_read, relay.address, sent)
    received = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in received
