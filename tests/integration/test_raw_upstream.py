"""Providers that violate HTTP, or use it against the relay or its clients."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from contextlib import closing
from socket import socket
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from mcpmeter.config import ProviderSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEGABYTE = 1024 * 1024
ANSWER = b'{"id":"1","model":"m","choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}],"usage":%s}'
WHOLE = ANSWER % b'{"prompt_tokens":3,"completion_tokens":2}'
CHUNK = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"Hi there"},"finish_reason":null}]}\n\n'
COUNTED = CHUNK.replace(b"}]}\n", b'}],"usage":{"prompt_tokens":30,"completion_tokens":1,"total_tokens":31}}\n')
LAST = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


def http(body: bytes, *headers: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> bytes:
    lines = (
        b"HTTP/1.1 " + status,
        b"Content-Type: " + kind,
        b"Content-Length: %d" % len(body),
        b"Connection: close",
        *headers,
    )
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def until_closed(body: bytes, *headers: bytes, kind: bytes = b"text/event-stream") -> bytes:
    """A response that ends with its connection, as in HTTP/1.0: it cannot be distinguished from a broken one."""
    return (
        b"\r\n".join((b"HTTP/1.1 200 OK", b"Content-Type: " + kind, b"Connection: close", *headers))
        + b"\r\n\r\n"
        + body
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay, raw_upstream) -> Any:
    return await start_module_relay(upstream=raw_upstream.url, relay={"max_answer_bytes": MEGABYTE})


async def outcome_of(relay: Any, *, stream: bool = False, **more: Any) -> tuple[Any, Any]:
    old = {row.id for row in relay.rows()}
    before = relay.counts()
    reply = await relay.chat(stream=stream, **more)
    await relay.until_idle()
    (row,) = [row for row in relay.rows() if row.id not in old]
    after = await relay.scrape()
    assert row.state == "settled"
    assert after.since(before, "mcp_requests_total")["/v1/chat/completions", "POST", row.status] == 1
    assert (after.of("mcp_active_requests"), after.of("mcp_ledger_open_rows")) == (0, 0)
    return reply, row


INVALID = {
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "upstream_answered_garbage"),
    "a TLS alert": (b"\x15\x03\x01\x00\x02\x02\x28", "upstream_answered_garbage"),
    "nothing": (b"", "upstream_broke"),
    "half of the headers": (b"HTTP/1.1 200 OK\r\nContent-Type: app", "upstream_broke"),
    "a status of letters": (b"HTTP/1.1 OK OK\r\n\r\n", "upstream_answered_garbage"),
    "a status above 599": (http(WHOLE, status=b"999 No"), "upstream_fault"),
    "an endless header": (b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 200_000 + b"\r\n\r\n", "upstream_answered_garbage"),
    "two lengths": (http(WHOLE, b"Content-Length: 7"), "upstream_answered_garbage"),
    "a chunk without a size": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + WHOLE,
        "upstream_answered_garbage",
    ),
    "an encoding that was not requested": (http(WHOLE, b"Content-Encoding: br"), "upstream_answered_garbage"),
    "gzip that is not gzip": (http(WHOLE, b"Content-Encoding: gzip"), "upstream_answered_garbage"),
    "gzip cut short": (http(gzip.compress(WHOLE)[:-9], b"Content-Encoding: gzip"), "upstream_broke"),
    "a response without choices": (http(b'{"object":"error","message":"no"}'), "upstream_answered_garbage"),
    "a list": (http(b"[]"), "upstream_answered_garbage"),
    "a million levels": (http(b"[" * 1_000_000), "upstream_answered_garbage"),
    "NaN alone": (http(b"NaN"), "upstream_answered_garbage"),
    "an empty stream": (until_closed(b""), "upstream_answered_garbage"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", INVALID)
async def test_an_invalid_response_becomes_a_502(relay, raw_upstream, name, stream):
    answer, code = INVALID[name]
    raw_upstream.play(answer)
    reply, row = await outcome_of(relay, stream=stream)
    assert (reply.status, reply.error["code"], row.error_id, row.outcome) == (502, code, code, "error")
    assert reply.error["message"].startswith("holysheep ")
    assert len(raw_upstream.requests) == 1


@pytest.mark.parametrize("usage", [b"NaN", b'{"prompt_tokens":NaN,"completion_tokens":1}', b"1e400", b'"3"', b"[]"])
async def test_a_response_with_invalid_usage_passes_estimated(relay, raw_upstream, usage):
    raw_upstream.play(http(ANSWER % usage))
    reply, row = await outcome_of(relay)
    assert (reply.status, reply.body, row.outcome, row.token_source) == (200, ANSWER % usage, "ok", "estimated")
    assert row.completion_tokens == 1


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b"data: [DONE]", b""])
async def test_a_stream_may_end_with_its_connection_after_a_finish_reason(relay, raw_upstream, end):
    raw_upstream.play(until_closed(CHUNK + LAST + end))
    reply, row = await outcome_of(relay, stream=True)
    assert (reply.body, row.outcome, row.token_source) == (CHUNK + LAST + end, "ok", "estimated")


@pytest.mark.parametrize(("begun", "source", "tokens"), [(CHUNK, "partial", 2), (COUNTED, "reported", 1)])
@pytest.mark.parametrize("rest", [b"", b'data: {"id":"1","choi'])
async def test_a_stream_that_stops_in_the_middle_is_partial(relay, raw_upstream, begun, source, tokens, rest):
    raw_upstream.play(until_closed(begun + rest))
    reply, row = await outcome_of(relay, stream=True)
    assert reply.body.startswith(begun + b'data: {"error":')
    assert (row.outcome, row.token_source, row.error_id, row.completion_tokens) == (
        "partial",
        source,
        "upstream_broke",
        tokens,
    )


async def test_a_gzip_bomb_is_stopped_at_the_limit(relay, raw_upstream):
    bomb = gzip.compress(b" " * (200 * MEGABYTE), 9)
    raw_upstream.play(http(bomb, b"Content-Encoding: gzip"))
    tracemalloc.start()
    try:
        reply, row = await outcome_of(relay)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (reply.status, row.error_id) == (502, "upstream_answer_too_large")
    assert peak_bytes < 40 * MEGABYTE


async def test_a_json_response_to_a_streaming_request_passes(relay, raw_upstream):
    raw_upstream.play(http(WHOLE))
    reply, row = await outcome_of(relay, stream=True)
    assert (reply.body, row.token_source, row.completion_tokens) == (WHOLE, "reported", 2)


# fmt: off
PASSED = {
    "retries": ("retry-after", "retry-after-ms", "x-should-retry"),
    "request ids": (
        "x-request-id", "request-id", "x-generation-id", "cf-ray", "apim-request-id", "x-ms-request-id",
        "mistral-correlation-id", "x-ds-trace-id", "x-amzn-requestid", "x-cloud-trace-context",
    ),
    "rate limits": (
        "x-ratelimit-limit-requests", "x-ratelimit-tokens-query-cost", "x-rate-limit-reset", "x-tokenlimit-remaining",
        "ratelimit", "ratelimit-policy", "ratelimit-reset",
        "anthropic-ratelimit-unified-5h-utilization", "anthropic-priority-input-tokens-limit",
    ),
    "served by": (
        "openai-processing-ms", "openai-version", "openai-organization", "openai-model", "anthropic-organization-id",
        "anthropic-workspace-id", "x-gemini-service-tier", "server-timing", "x-ms-region",
        "x-ms-served-model", "azureml-model-session",
    ),
    "costs": ("x-cost-usd", "x-litellm-response-cost"),
    "deprecation": ("deprecation", "sunset", "warning"),
}
DROPPED = {
    "commands to a proxy": (
        "x-accel-redirect", "x-accel-buffering", "x-accel-expires", "x-accel-limit-rate", "x-accel-charset",
        "x-sendfile", "x-lighttpd-send-file", "surrogate-control", "x-envoy-immediate-health-check-fail",
    ),
    "commands to a browser": (
        "set-cookie", "set-cookie2", "clear-site-data", "refresh", "location", "content-location", "link", "alt-svc",
        "access-control-allow-origin", "strict-transport-security", "www-authenticate", "authentication-info",
        "service-worker-allowed", "content-security-policy", "report-to", "nel", "sourcemap", "content-disposition",
    ),
    "caching": ("cache-control", "expires", "etag", "vary", "age", "pragma"),
    "addresses for direct use": ("x-goog-upload-url", "x-litellm-model-api-base", "operation-location"),
    "the relay's own": ("x-mcpmeter-project", "server", "via"),
    "unknown": ("x-private", "x-ratelimited", "openai", "xopenai-version"),
    "other providers' own": ("x-groq-region", "fireworks-prompt-tokens", "x-amzn-bedrock-invocation-latency"),
}
# fmt: on


@pytest.mark.parametrize("kind", PASSED)
async def test_headers_that_clients_read_pass(relay, raw_upstream, kind):
    raw_upstream.play(http(WHOLE, *(name.title().encode() + b": 1" for name in PASSED[kind])))
    reply, _ = await outcome_of(relay)
    assert {name: reply.headers.get(name) for name in PASSED[kind]} == dict.fromkeys(PASSED[kind], "1")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", DROPPED)
async def test_all_other_headers_do_not_pass(relay, raw_upstream, kind, stream):
    headers = [name.title().encode() + b": forged" for name in DROPPED[kind]]
    body, form = (CHUNK + LAST + b"data: [DONE]\n\n", b"text/event-stream") if stream else (WHOLE, b"application/json")
    raw_upstream.play(http(body, *headers, kind=form))
    reply, _ = await outcome_of(relay, stream=stream)
    assert reply.status == 200
    assert reply.headers["content-type"] == form.decode()
    assert [name for name, value in reply.headers.items() if "forged" in value] == []


async def test_hop_by_hop_and_forged_headers_do_not_pass(relay, raw_upstream):
    raw_upstream.play(
        http(
            WHOLE,
            b"Connection: openai-version",
            b"OpenAI-Version: 1",
            b"X-McpMeter-Call-Id: call_forged",
            b"X-RateLimit-Limit: one",
            b"X-RateLimit-Limit: two",
            b"OpenAI-Region: Z\xc3\xbcrich",
            b"OpenAI-Broken: \xff\xfe",
            b"X-Request-Id: \xff\xfe",
            b"X-Cost-USD: -1e999",
        )
    )
    reply, row = await outcome_of(relay)
    assert "openai-version" not in reply.headers
    assert reply.headers["x-mcpmeter-call-id"] == row.id
    assert (reply.headers["x-ratelimit-limit"], reply.headers["openai-region"]) == ("one, two", "Zürich")
    assert (row.outcome, row.upstream_request_id, row.reported_cost_nanousd) == ("ok", "", None)


@pytest.mark.parametrize("cost", ["NaN", "inf", "1e400", "-1", "99999999999999999999", "0.1.2", "\u0661"])
async def test_an_invalid_reported_cost_is_ignored(relay, raw_upstream, cost):
    raw_upstream.play(http(WHOLE, b"X-Cost-USD: " + cost.encode()))
    _, row = await outcome_of(relay)
    assert (row.reported_cost_nanousd, row.cost_source, row.outcome) == (None, "listed", "ok")


async def test_a_reported_cost_is_kept_to_the_nano_dollar(relay, raw_upstream):
    raw_upstream.play(http(WHOLE, b"X-Cost-USD: 0.000000123"))
    _, row = await outcome_of(relay)
    assert (row.reported_cost_nanousd, row.cost_nanousd, row.cost_source) == (123, 123, "reported")


@pytest.mark.parametrize("text", [b"\\ud800", b"a\\u0000b", b"\\n\\r", b"m" * 5000])
async def test_unusual_texts_pass_and_still_make_a_row(relay, raw_upstream, text):
    body = b'{"choices":[{"message":{"content":"%s"},"finish_reason":"%s"}],"model":"%s","usage":%s}' % (
        text, text, text, b'{"prompt_tokens":3,"completion_tokens":2}',
    )  # fmt: skip
    raw_upstream.play(http(body))
    reply, row = await outcome_of(relay)
    assert (reply.body, row.completion_tokens, row.outcome) == (body, 2, "ok")
    assert row.response_model.isprintable()


async def test_a_redirect_is_never_followed(relay, raw_upstream):
    raw_upstream.play(
        http(b"", b"Location: " + raw_upstream.url.encode() + b"/elsewhere", status=b"308 Permanent Redirect")
    )
    reply, _ = await outcome_of(relay)
    assert (reply.status, len(raw_upstream.requests)) == (502, 1)
    assert "redirect" in reply.error["message"]


async def test_only_the_relays_own_headers_are_sent_upstream(relay, raw_upstream):
    raw_upstream.play(http(WHOLE))
    secret = "mk_the-callers-own"
    forwarded = {
        "authorization": f"Bearer {secret}",
        "x-api-key": secret,
        "cookie": f"a={secret}",
        "x-forwarded-for": "1.2.3.4",
        "openai-organization": secret,
        "accept-encoding": "gzip",
        "user-agent": secret,
        "te": "trailers",
    }
    body = b'{ "model":"gpt-4.1", "messages":[{"role":"user","content":"Hello"}],  "user":"u" }'
    await relay.ask(body, headers=forwarded)
    (request,) = raw_upstream.requests
    head, _, sent = request.partition(b"\r\n\r\n")
    names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
    assert names == {
        b"host",
        b"content-type",
        b"accept",
        b"accept-encoding",
        b"user-agent",
        b"authorization",
        b"content-length",
    }
    assert b"Accept-Encoding: identity" in head or b"accept-encoding: identity" in head
    assert b"Bearer sk-upstream-credential-0123456789" in head
    assert secret.encode() not in request
    assert sent == body


async def test_an_azure_deployment_has_its_own_path_query_and_key(start_module_relay, raw_upstream):
    raw_upstream.play(http(WHOLE))
    relay = await start_module_relay(upstream=raw_upstream.url)
    key = SecretStr("azures-own-key-0123456789")
    azure = ProviderSettings(
        name="azure", type="azure-deployments", base_url=raw_upstream.url.removesuffix("/v1"), api_key=key
    )
    settings = relay.settings.model_copy(update={"providers": (azure,)})
    relay.service._load = lambda: settings
    await relay.service.reload()
    reply, row = await outcome_of(relay, model="our-deployment")
    (request,) = raw_upstream.requests
    path = b"/openai/deployments/our-deployment/chat/completions?api-version=2024-10-21"
    assert request.startswith(b"POST " + path + b" HTTP/1.1\r\n")
    assert b"\r\napi-key: azures-own-key-0123456789\r\n" in request
    assert b"authorization" not in request.lower()
    assert (reply.body, row.provider, row.model) == (WHOLE, "azure", "our-deployment")


async def test_a_large_request_passes(relay, raw_upstream):
    raw_upstream.play(http(WHOLE))
    body = json.dumps({"model": "gpt-4.1", "messages": [{"role": "user", "content": "é" * 2 * MEGABYTE}]}).encode()
    assert (await relay.ask(body)).status == 413  # six bytes per escaped letter
    body = json.dumps({"model": "gpt-4.1", "messages": [{"role": "user", "content": "a" * 5 * MEGABYTE}]}).encode()
    assert (await relay.ask(body)).status == 200
    assert raw_upstream.requests[-1].endswith(body)


@pytest.mark.parametrize(
    ("host", "reason"), [("127.0.0.1", "connection refused"), ("no-such-host.invalid", "does not resolve")]
)
async def test_an_unreachable_provider_is_reported_with_the_reason(start_module_relay, host, reason):
    with closing(socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        relay = await start_module_relay(upstream=f"http://{host}:{taken.getsockname()[1]}/v1")
        for stream in (False, True):
            reply, row = await outcome_of(relay, stream=stream)
            assert (reply.status, reply.error["code"]) == (502, "upstream_unreachable")
            assert reason in reply.error["message"]
            assert host not in reply.error["message"]
            assert (row.error_type, row.token_source, row.upstream_status) == ("upstream_unreachable", "", 0)
    scrape = await relay.scrape()
    assert scrape.of("mcp_errors_total", error_type="upstream_unreachable", side="upstream") == 2


async def test_a_provider_cannot_make_a_series(relay):
    await relay.scrape_openmetrics()
    scrape = await relay.scrape()
    assert all("m" * 9 not in str(labels) for _, labels in scrape.counts)
