"""Disconnects are detected while the simulator stalls, waits and streams."""

import time

import pytest

from mcpmeter.simulator import Latency, Simulator


@pytest.mark.parametrize(
    ("simulate", "stream"),
    [
        ("stall=headers", False),
        ("stall=body", False),
        ("stall=body", True),
        ("latency_ms=60000", True),
        ("chunks_per_second=20,completion_tokens=5000", True),
        ("drip_bytes_per_second=100", False),
        ("huge_mb=64", False),
        ("huge_mb=64", True),
    ],
)
@pytest.mark.parametrize("abort", [False, True])
async def test_a_disconnect_is_billed_as_cancelled(sim, open_connection, simulate, stream, abort):
    reader, writer = await open_connection(sim, simulate, stream=stream)
    silent = "headers" in simulate or "latency" in simulate
    if silent:
        await sim.billing_log.wait_until(lambda log: log.open_calls == 1)
    else:
        await reader.readuntil(b"\r\n\r\n")
        await reader.read(100)
    disconnected_at_ns = time.monotonic_ns()
    if abort:
        writer.transport.abort()
    else:
        writer.close()
    await sim.billing_log.wait_until(lambda log: log.totals.cancelled == 1)
    (call,) = sim.billing_log.calls()
    assert call.outcome == "cancelled"
    assert call.cancelled_at_ns is not None
    assert call.cancelled_at_ns >= disconnected_at_ns
    if silent:
        assert call.prompt_tokens == call.completion_tokens == 0
    else:
        assert call.prompt_tokens == 6
    assert sim.billing_log.open_calls == 0


async def test_a_cancelled_stream_is_billed_for_delivered_tokens(sim, open_connection):
    reader, writer = await open_connection(sim, "stall=body,after_tokens=5,completion_tokens=50", stream=True)
    for _ in range(6):  # the opening chunk and five tokens
        await reader.readuntil(b'"usage":null}\n\n')
    writer.close()
    await sim.billing_log.wait_until(lambda log: log.totals.cancelled == 1)
    (call,) = sim.billing_log.calls()
    assert (call.completion_tokens, call.delivered_tokens) == (5, 5)


async def test_a_cancelled_whole_response_is_billed_completely(sim, open_connection):
    reader, writer = await open_connection(sim, "stall=body,completion_tokens=50")
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await sim.billing_log.wait_until(lambda log: log.totals.cancelled == 1)
    (call,) = sim.billing_log.calls()
    assert (call.completion_tokens, call.delivered_tokens) == (50, 0)


async def test_closing_the_simulator_does_not_count_as_cancelled(open_connection):
    async with Simulator(first_byte=Latency.fixed(60_000)) as sim:
        _, writer = await open_connection(sim, "")
        await sim.billing_log.wait_until(lambda log: log.open_calls == 1)
    await sim.billing_log.wait_until(lambda log: log.totals.fault == 1)
    assert sim.billing_log.totals.cancelled == 0
    writer.close()


async def test_disconnects_log_nothing(sim, open_connection, caplog):
    for simulate in ("huge_mb=64", "chunks_per_second=1000,completion_tokens=5000"):
        reader, writer = await open_connection(sim, simulate, stream=True)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
    await sim.billing_log.wait_until(lambda log: log.totals.cancelled == 2)
    # asyncio warns of parts that are written before it reports the loss of the connection.
    assert [record for record in caplog.records if record.name != "asyncio"] == []
