"""Upstreams that label streams wrongly, refuse what the relay adds, or say in the body what a status leaves open."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from mcpmeter.config import ProviderSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

USAGE = {"prompt_tokens": 1200, "completion_tokens": 30, "total_tokens": 1230}


def event(choices: Any, **fields: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c", "model": "local-llama", "choices": choices, **fields}).encode() + b"\n\n"


TEXT = event([{"index": 0, "delta": {"content": "ok"}, "finish_reason": None}])
STOP = event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
COUNT = event([], usage=USAGE)
DONE = b"data: [DONE]\n\n"
STREAM = TEXT + STOP + COUNT + DONE
WHOLE = json.dumps(
    {"model": "local-llama", "choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}], "usage": USAGE}
).encode()


def http(body: bytes, *headers: str, status: int = 200, kind: str | None = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, *([f"Content-Type: {kind}"] if kind else []), "", ""]).encode() + body


def refusal(status: int, /, **error: Any) -> bytes:
    return http(json.dumps({"error": error}).encode(), status=status)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay, raw_upstream) -> Any:
    def local(name: str, **more: Any) -> ProviderSettings:
        return ProviderSettings(
            **{"name": name, "type": "generic", "base_url": raw_upstream.url, "models": (f"{name}-*",), **more}
        )

    return await start_module_relay(
        upstream=raw_upstream.url,
        relay={"disconnects": {"drain_seconds": 30, "drain_bytes": 65_536, "max_drains": 1}},
        extra_providers=(
            local("local"),
            local("drained", on_disconnect="drain"),
            local("strict", asks_stream_usage=False),
            local("credits", cost_in_body=False),
            local("fussy"),
            local("packed"),
            local("router", type="openrouter", api_keys=(SecretStr("k-1"), SecretStr("k-2"))),
            local("google", type="gemini", api_key=SecretStr("k-3")),
        ),
    )


async def outcome_of(relay: Any, model: str = "local-llama", **more: Any) -> tuple[Any, Any]:
    reply = await relay.chat(model=model, **more)
    await relay.until_idle()
    return reply, relay.rows()[-1]


def counts_of(row: Any) -> tuple[Any, ...]:
    return row.outcome, row.token_source, row.prompt_tokens, row.completion_tokens


REPORTED = ("ok", "reported", 1200, 30)


class TestLabels:
    @pytest.mark.parametrize("kind", ["application/json", "text/plain; charset=utf-8", None])
    @pytest.mark.parametrize("start", [b"", b": hello\n\n", b"\xef\xbb\xbf", b"\n\n"])
    async def test_a_stream_is_known_by_its_bytes(self, relay, raw_upstream, kind, start):
        raw_upstream.play(http(start + STREAM, kind=kind))
        reply, row = await outcome_of(relay, stream=True)
        assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream")
        assert reply.body == start.removeprefix(b"\xef\xbb\xbf") + TEXT + STOP + DONE
        assert (counts_of(row), row.chunks) == (REPORTED, 2 + start.count(b"data"))

    async def test_an_unlabelled_stream_is_not_held_back(self, relay, raw_upstream):
        goes_on = asyncio.Event()

        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(STREAM))
            for part in (b"da", TEXT[2:]):
                writer.write(part)
                await writer.drain()
            await goes_on.wait()
            writer.write(STREAM[len(TEXT) :])

        raw_upstream.play(respond)
        body = json.dumps({"model": "local-llama", "stream": True, "messages": [{"role": "user", "content": "Hi"}]})
        reader, writer = await asyncio.open_connection(*relay.address)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + body).encode())
        await asyncio.wait_for(reader.readuntil(TEXT), 10)
        goes_on.set()
        await asyncio.wait_for(reader.readuntil(DONE), 10)
        writer.close()
        await relay.until_idle()

    @pytest.mark.parametrize("length", [1, 7, len(WHOLE)])
    async def test_json_labelled_as_a_stream_is_json(self, relay, raw_upstream, length):
        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(WHOLE), length):
                part = WHOLE[at : at + length]
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            writer.write(b"0\r\n\r\n")

        raw_upstream.play(respond)
        reply, row = await outcome_of(relay, stream=True)
        assert (reply.headers["content-type"], reply.body) == ("application/json", WHOLE)
        assert counts_of(row) == REPORTED

    @pytest.mark.parametrize("encoding", ["identity", "gzip"])
    async def test_json_behind_blanks_is_json(self, relay, raw_upstream, encoding):
        parts = [b"\n", b"  \r\n", WHOLE]
        packed = zlib.compressobj(wbits=31)
        flushed = [packed.compress(part) + packed.flush(zlib.Z_SYNC_FLUSH) for part in parts]

        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: {encoding}\r\n\r\n"
            writer.write(head.encode())
            for part in flushed if encoding == "gzip" else parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(packed.flush() if encoding == "gzip" else b"")
            writer.close()

        raw_upstream.play(respond)
        reply, row = await outcome_of(relay, stream=True)
        assert (reply.headers["content-type"], reply.body) == ("application/json", b"".join(parts))
        assert counts_of(row) == REPORTED

    @pytest.mark.parametrize(
        ("before", "after", "kind"),
        [
            (b": KEEP-ALIVE\n\n", b"", "application/json"),
            (b"", b"\n\ndata: [DONE]\n\n", "application/json"),
            (b"", b"\n\ndata: [DONE]\n\n", "text/event-stream"),
        ],
    )
    async def test_json_with_events_around_it_is_json(self, relay, raw_upstream, before, after, kind):
        raw_upstream.play(http(before + WHOLE + after, kind=kind))
        reply, row = await outcome_of(relay)
        assert (reply.headers["content-type"], reply.body) == ("application/json", WHOLE)
        assert counts_of(row) == REPORTED

    async def test_a_compressed_unlabelled_stream_keeps_what_was_asked(self, relay, raw_upstream):
        raw_upstream.play(http(gzip.compress(STREAM), "Content-Encoding: gzip"))
        reply, row = await outcome_of(relay, stream=True)
        assert (reply.headers["content-type"], reply.body) == ("text/event-stream", TEXT + STOP + DONE)
        assert counts_of(row) == REPORTED

    async def test_a_stream_that_was_not_requested_is_metered(self, relay, raw_upstream):
        raw_upstream.play(http(STREAM))
        reply, row = await outcome_of(relay)
        assert (reply.headers["content-type"], reply.body) == ("text/event-stream", STREAM)
        assert counts_of(row) == REPORTED

    @pytest.mark.parametrize("body", [b"<html>", b"dat", b"", b" " * 600])
    async def test_other_bodies_stay_unreadable(self, relay, raw_upstream, body):
        raw_upstream.play(http(body, kind="text/plain"))
        reply, row = await outcome_of(relay, stream=True)
        assert (reply.status, row.error_id) == (502, "upstream_answered_garbage")


class TestStreamOptions:
    REFUSAL = refusal(400, message="Unrecognized request argument supplied: stream_options")

    async def refuse_options(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.REFUSAL if b"stream_options" in self.upstream.requests[-1] else http(TEXT + STOP + DONE))
        writer.close()

    async def test_a_refusal_is_remembered(self, relay, raw_upstream, caplog):
        self.upstream = raw_upstream
        raw_upstream.play(self.refuse_options)
        before = relay.counts()
        replies = [await outcome_of(relay, "fussy-llama", stream=True) for _ in range(3)]
        assert [(reply.status, row.outcome) for reply, row in replies] == [(200, "ok")] * 3
        assert [b"stream_options" in request for request in raw_upstream.requests] == [True, False, False, False]
        assert caplog.text.count("fussy refuses stream_options") == 1
        attempts = (await relay.scrape()).since(before, "mcp_upstream_attempts_total")
        assert attempts == {("ok", "fussy"): 3}

    async def test_a_compressed_refusal_is_read(self, relay, raw_upstream):
        body = gzip.compress(self.REFUSAL.partition(b"\r\n\r\n")[2])

        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            refused = http(body, "Content-Encoding: gzip", status=400)
            writer.write(refused if b"stream_options" in raw_upstream.requests[-1] else http(TEXT + STOP + DONE))
            writer.close()

        raw_upstream.play(respond)
        reply, row = await outcome_of(relay, "packed-llama", stream=True)
        assert (reply.status, row.outcome, len(raw_upstream.requests)) == (200, "ok", 2)

    async def test_what_the_client_added_is_its_own(self, relay, raw_upstream):
        self.upstream = raw_upstream
        raw_upstream.play(self.refuse_options)
        reply, _ = await outcome_of(relay, stream=True, stream_options={"include_usage": True})
        assert (reply.status, len(raw_upstream.requests)) == (400, 1)

    async def test_an_error_that_repeats_the_prompt_is_not_remembered(self, relay, raw_upstream):
        raw_upstream.play(self.REFUSAL)
        reply, _ = await outcome_of(relay, stream=True)
        assert (reply.status, reply.body) == (400, self.REFUSAL.partition(b"\r\n\r\n")[2])
        raw_upstream.play(http(STREAM, kind="text/event-stream"))
        reply, _ = await outcome_of(relay, stream=True)
        assert b"stream_options" in raw_upstream.requests[-1]

    async def test_a_setting_leaves_it_out(self, relay, raw_upstream):
        raw_upstream.play(http(STREAM, kind="text/event-stream"))
        reply, row = await outcome_of(relay, "strict-llama", stream=True)
        assert b"stream_options" not in raw_upstream.requests[-1]
        assert (reply.body, counts_of(row)) == (STREAM, REPORTED)


class TestErrors:
    async def test_a_flagged_prompt_keeps_its_body(self, relay, raw_upstream):
        body = refusal(403, message="flagged", code=403, metadata={"flagged_input": "x", "reasons": ["y"]})
        raw_upstream.play(body)
        reply, row = await outcome_of(relay, "router-llama")
        assert (reply.status, reply.body) == (403, body.partition(b"\r\n\r\n")[2])
        assert (row.error_id, len(raw_upstream.requests)) == ("invalid_request", 1)

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (403, {"message": "Key limit exceeded (monthly limit). Manage it", "code": 403}),
            (403, {"message": "Workspace monthly budget of $5.00 exceeded. Contact", "code": 403}),
            (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
        ],
    )
    async def test_an_exhausted_account_is_the_operators(self, relay, raw_upstream, status, error):
        raw_upstream.play(refusal(status, **error))
        before = relay.counts()
        reply, row = await outcome_of(relay, "router-llama")
        assert (reply.status, row.error_id) == (502, "upstream_refused_account")
        assert len(raw_upstream.requests) == 2  # both keys
        attempts = (await relay.scrape()).since(before, "mcp_upstream_attempts_total")
        assert attempts == {("refused", "router"): 2}

    async def test_a_disabled_tool_is_configuration(self, relay, raw_upstream):
        raw_upstream.play(refusal(403, message="Server tool web_search is disabled for this workspace", code=403))
        reply, _ = await outcome_of(relay, "router-llama")
        assert (reply.status, len(raw_upstream.requests)) == (502, 1)
        assert "has to enable it at the provider" in reply.error["message"]

    async def test_a_page_of_the_edge_is_the_upstreams_fault(self, relay, raw_upstream):
        raw_upstream.play(http(b"<!DOCTYPE html><title>Just a moment...</title>", status=403, kind="text/html"))
        before = relay.counts()
        reply, row = await outcome_of(relay)
        assert (reply.status, row.error_id) == (502, "upstream_fault")
        attempts = (await relay.scrape()).since(before, "mcp_upstream_attempts_total")
        assert attempts == {("server_error", "local"): 1}

    async def test_a_wait_in_the_body_counts_as_retry_after(self, relay, raw_upstream):
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}
        raw_upstream.play(refusal(429, status="RESOURCE_EXHAUSTED", details=[info]))
        replies = [(await outcome_of(relay, "google-llama"))[0] for _ in range(3)]
        assert [reply.status for reply in replies] == [429] * 3
        assert replies[0].headers["retry-after"] == "35"
        assert 30 <= int(replies[2].headers["retry-after"]) <= 35
        assert len(raw_upstream.requests) == 1

    async def test_a_body_that_does_not_end_holds_no_retry_up(self, relay, raw_upstream):
        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(raw_upstream.requests) == 1:
                writer.write(b"HTTP/1.1 429 X\r\nContent-Length: 100\r\n\r\n{")
                await reader.read()
            writer.write(http(WHOLE))

        raw_upstream.play(respond)
        reply, row = await asyncio.wait_for(outcome_of(relay, "router-llama"), 20)
        assert (reply.status, counts_of(row)) == (200, REPORTED)


class TestCosts:
    WITH_COST = WHOLE.replace(b'"total_tokens": 1230', b'"total_tokens": 1230, "cost": 0.0042')

    @pytest.mark.parametrize(
        ("model", "body", "headers", "nanousd"),
        [
            ("local-llama", WITH_COST, (), 4_200_000),
            ("local-llama", WHOLE, ("x-litellm-response-cost: 1.5e-05",), 15_000),
            ("local-llama", WITH_COST, ("x-litellm-response-cost: 0.0",), 4_200_000),
            ("credits-llama", WITH_COST, (), None),
        ],
    )
    async def test_a_cost_in_dollars_is_read(self, relay, raw_upstream, model, body, headers, nanousd):
        raw_upstream.play(http(body, *headers))
        _, row = await outcome_of(relay, model)
        assert (row.reported_cost_nanousd, counts_of(row)) == (nanousd, REPORTED)

    @pytest.mark.parametrize(("header", "nanousd"), [("0.0", None), ("1.5e-05", 15_000)])
    async def test_a_zero_in_the_header_of_a_stream_is_no_cost(self, relay, raw_upstream, header, nanousd):
        raw_upstream.play(http(STREAM, f"x-litellm-response-cost: {header}", kind="text/event-stream"))
        _, row = await outcome_of(relay, "local-llama", stream=True)
        assert (row.reported_cost_nanousd, counts_of(row)) == (nanousd, REPORTED)


class TestDisconnects:
    """`on_disconnect: drain` reads on for the provider's own count."""

    def respond(self, rest: asyncio.Event, *parts: bytes, kind: bytes = b"text/event-stream") -> Any:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % kind)
            for part in parts:
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
                await rest.wait()
            writer.write(b"0\r\n\r\n")

        return script

    async def send(self, relay: Any, model: str, **more: Any) -> Any:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}).encode()
        reader, writer = await asyncio.open_connection(*relay.address)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        return reader, writer

    async def leave(self, relay: Any, writer: asyncio.StreamWriter) -> None:
        (call,) = [call for call in relay.service.pipeline.active_calls if call.drain is None]
        writer.transport.abort()
        await relay.until(lambda: call.drain is not None or call not in relay.service.pipeline.active_calls)

    @pytest.mark.parametrize(
        ("model", "policy", "counts"),
        [
            ("drained-llama", "drain", ("partial", "reported", 1200, 30)),
            ("local-llama", "cancel", ("partial", "partial", 9, 1)),
        ],
    )
    async def test_the_policy_decides_which_count_is_charged(self, relay, raw_upstream, model, policy, counts):
        rest, before = asyncio.Event(), relay.counts()
        raw_upstream.play(self.respond(rest, TEXT, STOP + COUNT + DONE))
        reader, writer = await self.send(relay, model, stream=True)
        await asyncio.wait_for(reader.readuntil(TEXT), 10)
        await self.leave(relay, writer)
        rest.set()
        await relay.until_idle()
        row, scrape = relay.rows()[-1], await relay.scrape()
        assert (row.status, row.error_id, row.outcome) == ("499", "caller_gone", "partial")
        assert counts_of(row)[:2] == counts[:2]
        assert (row.prompt_tokens == 1200) is (counts[2] == 1200)
        assert scrape.since(before, "mcp_client_disconnects_total") == {(policy, model.partition("-")[0]): 1}
        assert scrape.since(before, "mcp_errors_total") == {("client_disconnected", "client"): 1}

    async def test_json_is_drained_too_from_before_its_headers(self, relay, raw_upstream):
        rest = asyncio.Event()

        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await rest.wait()
            writer.write(http(WHOLE))

        raw_upstream.play(respond)
        _, writer = await self.send(relay, "drained-llama")
        await relay.until(lambda: len(raw_upstream.requests) == 1)
        await self.leave(relay, writer)
        rest.set()
        await relay.until_idle()
        row = relay.rows()[-1]
        assert (row.status, counts_of(row)) == ("499", ("partial", "reported", 1200, 30))

    async def test_after_a_disconnect_nothing_is_retried(self, relay, raw_upstream):
        rest = asyncio.Event()

        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await rest.wait()
            writer.close()

        raw_upstream.play(respond)
        _, writer = await self.send(relay, "drained-llama")
        await relay.until(lambda: len(raw_upstream.requests) == 1)
        await self.leave(relay, writer)
        rest.set()
        await relay.until_idle()
        assert len(raw_upstream.requests) == 1
        assert relay.rows()[-1].outcome in ("partial", "error")

    async def test_a_drain_ends_at_its_bytes(self, relay, raw_upstream):
        rest = asyncio.Event()
        raw_upstream.play(self.respond(rest, TEXT, *[TEXT * 100] * 40))
        reader, writer = await self.send(relay, "drained-llama", stream=True)
        await asyncio.wait_for(reader.readuntil(TEXT), 10)
        await self.leave(relay, writer)
        rest.set()
        await relay.until_idle()
        row = relay.rows()[-1]
        assert (row.status, row.outcome, row.token_source) == ("499", "partial", "partial")

    async def test_drains_above_their_number_are_cancelled(self, relay, raw_upstream):
        rest, before = asyncio.Event(), relay.counts()
        raw_upstream.play(self.respond(rest, TEXT, STOP + COUNT + DONE))
        for _ in range(2):
            reader, writer = await self.send(relay, "drained-llama", stream=True)
            await asyncio.wait_for(reader.readuntil(TEXT), 10)
            await self.leave(relay, writer)
        rest.set()
        await relay.until_idle()
        counted = (await relay.scrape()).since(before, "mcp_client_disconnects_total")
        assert counted == {("drain", "drained"): 1, ("cancel", "drained"): 1}

    async def test_a_client_that_left_unread_is_drained(self, relay, raw_upstream):
        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for _ in range(3000):
                writer.write(TEXT * 100)
                await writer.drain()
            writer.write(STOP + COUNT + DONE)
            writer.close()

        raw_upstream.play(respond)
        _, writer = await self.send(relay, "drained-llama", stream=True)
        writer.transport.pause_reading()
        calls = relay.service.pipeline.active_calls
        await relay.until(lambda: any(call.stream and call.stream.tee.total_bytes > 10_000 for call in calls))
        await self.leave(relay, writer)
        await relay.until_idle()
        assert relay.rows()[-1].status == "499"
