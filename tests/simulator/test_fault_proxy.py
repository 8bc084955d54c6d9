"""The fault proxy in front of the simulator: the effect of each fault on a client's socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from dataclasses import dataclass

import pytest

from mcpmeter.errors import ConfigInvalid
from mcpmeter.simulator import FaultProxy, Simulator, WireFault

MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class Received:
    """All bytes of one connection, and whether it was reset."""

    received: bytes
    was_reset: bool

    @property
    def headers(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[0]

    @property
    def chunks(self) -> list[bytes]:
        """The chunks of a complete chunked body."""
        rest, found = self.received.partition(b"\r\n\r\n")[2], []
        while True:
            size, _, rest = rest.partition(b"\r\n")
            found.append(rest[: int(size, 16)])
            assert rest[int(size, 16) :].startswith(b"\r\n")
            rest = rest[int(size, 16) + 2 :]
            if not found[-1]:
                assert rest == b""
                return found[:-1]


async def connect(proxy, *, stream=False, path="/v1/chat/completions"):
    body = json.dumps({"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}], "stream": stream})
    host, port = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    return reader, writer


async def post(proxy, **more) -> Received:
    reader, writer = await connect(proxy, **more)
    received, was_reset = b"", False
    try:
        async with asyncio.timeout(120):
            while piece := await reader.read(65536):
                received += piece
    except ConnectionError:
        was_reset = True
    writer.close()
    return Received(received, was_reset)


def without_varying_headers(got: Received) -> list[bytes]:
    return [line for line in got.received.split(b"\r\n") if not line.lower().startswith((b"date:", b"connection:"))]


@pytest.mark.parametrize("stream", [False, True])
async def test_without_a_fault_responses_pass_unchanged(stream):
    async with Simulator(seed=1) as first, Simulator(seed=1) as second, FaultProxy(second.url) as proxy:
        direct, through = FaultProxy(first.url), await post(proxy, stream=stream)
        async with direct:
            assert without_varying_headers(await post(direct, stream=stream)) == without_varying_headers(through)
        assert (through.was_reset, proxy.connections) == (False, 1)
        assert [call.outcome for call in second.billing_log.calls()] == ["complete"]


STAGES = {
    "accept": lambda got: got.received == b"",
    "headers": lambda got: got.received == b"",
    "head": lambda got: got.received.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\n\r\n" not in got.received,
    "body,after_bytes=9": lambda got: got.received.endswith((b'{"id":"ch', b'\r\n\r\n9\r\ndata: {"i\r\n')),
    "chunk,after_bytes=9": lambda got: b"20000\r\n" in got.received and b"\r\n0\r\n" not in got.received,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_connection_breaks_at_the_set_stage(stage, how, stream):
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault.parse(f"{how}={stage}")) as proxy:
        got = await post(proxy, stream=stream)
        assert STAGES[stage](got), got
        assert got.was_reset == (how == "reset")
        await sim.billing_log.wait_until(lambda log: log.open_calls == 0)


@pytest.mark.parametrize("stage", STAGES)
async def test_a_stall_ends_when_the_client_disconnects(stage):
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault.parse(f"stall={stage}")) as proxy:
        reader, writer = await connect(proxy)
        if stage == "accept":
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            assert sim.billing_log.totals.calls == 0
            return
        await sim.billing_log.wait_until(lambda log: log.totals.calls == 1)
        writer.transport.abort()
        async with asyncio.timeout(120):
            while proxy._serving:
                await asyncio.wait(proxy._serving)


async def test_refused_connections_work_again_after_listen():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url) as proxy:
        url = proxy.url
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connect(proxy)
        await proxy.listen()
        assert (proxy.url, (await post(proxy)).received[:15]) == (url, b"HTTP/1.1 200 OK")


async def test_first_counts_connections_since_the_fault_was_set():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url) as proxy:
        for _ in range(2):
            proxy.fault = WireFault.parse("reset=headers,first=2")
            assert [(await post(proxy)).was_reset for _ in range(3)] == [True, True, False]


async def test_chunks_have_the_set_size():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault(chunk_bytes=7)) as proxy:
        chunks = (await post(proxy)).chunks
    assert {len(chunk) for chunk in chunks[:-1]} == {7}
    assert json.loads(b"".join(chunks))["usage"]


@pytest.mark.parametrize(
    ("newlines", "endings"),
    [("crlf", {b"\r\n\r\n"}), ("cr", {b"\r\r"}), ("mixed", {b"\n\n", b"\r\n\r\n", b"\r\r"})],
)
async def test_each_event_has_one_kind_of_line_end(newlines, endings):
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault(newlines=newlines)) as proxy:
        events = (await post(proxy, stream=True)).chunks
    found = {event[len(event.rstrip(b"\r\n")) :] for event in events}
    assert found == endings
    assert events[-1].startswith(b"data: [DONE]")


async def test_a_long_line_stays_valid_json():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault(line_mb=3)) as proxy:
        got = await post(proxy)
    body = json.loads(b"".join(got.chunks))
    assert (len(body.pop("padding")), body["object"]) == (3 * MEGABYTE, "chat.completion")
    assert b"Content-Length" not in got.headers


async def test_a_gzip_bomb_is_small_until_decompressed():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault(gzip_bomb_mb=8)) as proxy:
        got = await post(proxy)
    packed = b"".join(got.chunks)
    assert b"Content-Encoding: gzip" in got.headers
    assert len(packed) < 64 * 1024
    assert gzip.decompress(packed) == b" " * 8 * MEGABYTE
    assert zlib.decompressobj(31).decompress(packed, 10) == b" " * 10


async def test_a_drip_arrives_complete():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault(drip_bytes_per_second=20_000)) as proxy:
        got = await post(proxy)
    assert json.loads(got.received.partition(b"\r\n\r\n")[2])["usage"]


async def test_close_aborts_connections_in_progress():
    async with Simulator(seed=1) as sim:
        async with FaultProxy(sim.url, WireFault(stall="headers")) as proxy:
            reader, writer = await connect(proxy)
            await sim.billing_log.wait_until(lambda log: log.totals.calls == 1)
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reset=nowhere", "nowhere"),
        ("reste=body", "reste"),
        ("reset=body,stall=body", "one of them"),
        ("after_bytes=-1", ">= 0"),
        ("line_mb=9999", "<= 1024"),
        ("drip_bytes_per_second=slow", "int"),
    ],
)
def test_invalid_faults_are_refused(text, words):
    with pytest.raises(ConfigInvalid) as refused:
        WireFault.parse(text)
    assert words in str(refused.value)


@pytest.mark.parametrize("upstream", ["", "https://127.0.0.1:1", "http://127.0.0.1", "127.0.0.1:80"])
def test_upstreams_other_than_http_host_port_are_refused(upstream):
    with pytest.raises(ConfigInvalid, match="needs an upstream"):
        FaultProxy(upstream)
