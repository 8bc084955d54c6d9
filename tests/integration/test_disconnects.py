"""Clients that disconnect or do not read: the provider stops, what was delivered is charged, nothing leaks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEAD = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay) -> Any:
    return await start_module_relay()


async def connected(relay: Any, body: bytes, path: bytes = b"/v1/chat/completions") -> Any:
    reader, writer = await asyncio.open_connection(*relay.address, limit=2**16)
    writer.write(HEAD % (path, len(body)) + body)
    return reader, writer


def chat(simulate: str = "", **more: Any) -> bytes:
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}], **more}
    return json.dumps({**body, "metadata": {"simulate": simulate}}).encode()


async def after_disconnect(relay: Any, before: Any) -> Any:
    """Return the one new row; check what holds for every disconnect."""
    await relay.until_idle()
    await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 0)
    scrape = await relay.scrape()
    assert scrape.since(before, "mcp_errors_total") == {("client_disconnected", "client"): 1}
    assert sum(scrape.since(before, "mcp_requests_total").values()) == 1
    return relay.rows()[-1]


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/mcp/chat"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_while_waiting_cancels_and_costs_the_prompt(relay, stream, path):
    before, cancelled = relay.counts(), relay.simulator.billing_log.totals.cancelled
    _, writer = await connected(relay, chat("stall=headers", stream=stream), path)
    await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 1)
    writer.close()
    await relay.simulator.billing_log.wait_until(lambda log: log.totals.cancelled == cancelled + 1)
    row = await after_disconnect(relay, before)
    assert (row.status, row.outcome, row.error_id, row.token_source) == ("499", "partial", "caller_gone", "partial")
    assert (row.prompt_tokens > 0, row.completion_tokens) == (True, 0)


async def test_a_disconnect_mid_stream_costs_what_was_delivered(relay):
    before, cancelled = relay.counts(), relay.simulator.billing_log.totals.cancelled
    reader, writer = await connected(relay, chat("stall=body,after_tokens=20", stream=True))
    received = b""
    while received.count(b'"content":"') < 21:  # the first event's is empty
        received += await asyncio.wait_for(reader.read(65536), 120)
    writer.close()
    await relay.simulator.billing_log.wait_until(lambda log: log.totals.cancelled == cancelled + 1)
    row = await after_disconnect(relay, before)
    assert (row.status, row.outcome, row.error_id, row.token_source) == ("499", "partial", "caller_gone", "partial")
    call = list(relay.simulator.billing_log.calls())[-1]
    assert call.delivered_tokens == 20
    assert row.completion_tokens == pytest.approx(20, abs=2)
    assert row.cost_nanousd > 0


async def test_usage_read_before_a_disconnect_is_reported(start_module_relay, raw_upstream):
    usage = b'data: {"choices":[{"delta":{"content":"Hi"}}],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\n'

    async def respond_and_wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%s\r\n" % (len(usage), usage))
        await reader.read()

    relay = await start_module_relay(upstream=raw_upstream.url)
    raw_upstream.play(respond_and_wait)
    reader, writer = await connected(relay, chat(stream=True))
    await asyncio.wait_for(reader.readuntil(usage), 5)
    writer.close()
    await relay.until_idle()
    (row,) = relay.rows()
    assert (row.outcome, row.token_source, row.prompt_tokens, row.completion_tokens) == ("partial", "reported", 7, 5)


async def test_a_disconnect_during_upload_reaches_no_provider(relay):
    before, rows = relay.counts(), len(relay.rows())
    calls = relay.simulator.billing_log.totals.calls
    _, writer = await asyncio.open_connection(*relay.address)
    writer.write(HEAD % (b"/v1/chat/completions", 10_000) + chat())
    active = relay.service.recorder.families["mcp_active_requests"].cells
    await relay.until(lambda: active[()].value == 1)
    writer.close()
    await after_disconnect(relay, before)
    assert (len(relay.rows()), relay.simulator.billing_log.totals.calls) == (rows, calls)


async def test_a_reset_is_a_disconnect_too(relay):
    before = relay.counts()
    _, writer = await connected(relay, chat("stall=body", stream=True))
    await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 1)
    writer.transport.abort()
    assert (await after_disconnect(relay, before)).error_id == "caller_gone"


async def test_disconnects_leave_later_calls_alone(relay):
    for _ in range(20):
        _, writer = await connected(relay, chat("latency_ms=1", stream=True))
        writer.close()
    await relay.until_idle()
    answers = [await relay.chat(stream=stream) for stream in (True, False) for _ in range(5)]
    assert {answer.status for answer in answers} == {200}
    assert all(answer.body.endswith((b"data: [DONE]\n\n", b"}")) for answer in answers)


async def test_a_client_that_does_not_read_pauses_the_provider(relay):
    _, writer = await connected(relay, chat("huge_mb=64", stream=True))
    writer.transport.pause_reading()
    await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 1)
    (call,) = await active_calls(relay)
    seen = -1
    while seen != call.stream.tee.total_bytes:  # until every buffer is full
        seen = call.stream.tee.total_bytes
        await asyncio.sleep(0.2)
    assert 0 < seen < 16 * 1024 * 1024  # what the sockets' own buffers hold, of 64 MB and their frames
    assert relay.simulator.billing_log.open_calls == 1
    assert len(call.stream.tee._held) < 1024 * 1024
    writer.transport.abort()
    await relay.until_idle()
    await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 0)


async def active_calls(relay: Any) -> Any:
    pipeline = relay.service.pipeline
    await relay.until(lambda: any(call.stream is not None for call in pipeline.active_calls))
    return pipeline.active_calls


async def test_a_slow_reader_is_not_a_silent_provider(start_module_relay):
    relay = await start_module_relay(timeouts={"idle_seconds": 0.1, "first_byte_seconds": 5})
    reader, writer = await connected(relay, chat("huge_mb=16", stream=True))
    writer.transport.pause_reading()
    (call,) = await active_calls(relay)
    await asyncio.sleep(0.5)  # five times the provider's idle timeout
    assert call in relay.service.pipeline.active_calls
    writer.transport.resume_reading()
    while not (await asyncio.wait_for(reader.read(2**20), 120)).endswith(b"0\r\n\r\n"):
        pass
    await relay.until_idle()
    (row,) = relay.rows()
    assert (row.outcome, row.token_source) == ("ok", "reported")
    writer.close()


async def test_a_client_that_never_reads_counts_as_disconnected(start_module_relay):
    relay = await start_module_relay(server={"timeouts": {"response_seconds": 0.2}})
    _, writer = await connected(relay, chat("huge_mb=64", stream=True))
    writer.transport.pause_reading()
    await relay.until(lambda: bool(relay.rows()) and relay.rows()[0].state == "settled")
    (row,) = relay.rows()
    assert (row.outcome, row.error_id) == ("partial", "caller_gone")
    writer.transport.abort()
    await relay.until_idle()


async def test_a_disconnect_with_a_pipelined_request_cancels(relay):
    before, cancelled = relay.counts(), relay.simulator.billing_log.totals.cancelled
    body = chat("stall=body,after_tokens=20", stream=True)
    reader, writer = await connected(relay, body)
    writer.write(HEAD % (b"/v1/chat/completions", len(body)) + body)
    await asyncio.wait_for(reader.readuntil(b'"content":"'), 5)
    writer.close()
    await relay.simulator.billing_log.wait_until(lambda log: log.totals.cancelled == cancelled + 1)
    assert (await after_disconnect(relay, before)).error_id == "caller_gone"
