"""The fault proxy before the simulator: what a client's socket sees of each fault; the books see a client's leaving."""

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
class Seen:
    """All that came before the connection ended, and how it did."""

    received: bytes
    was_reset: bool

    @property
    def head(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[0]

    @property
    def chunks(self) -> list[bytes]:
        """The chunks of a body in the chunked encoding, which has to be whole."""
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


async def ask(proxy, **more) -> Seen:
    reader, writer = await connect(proxy, **more)
    received, was_reset = b"", False
    try:
        async with asyncio.timeout(10):
            while piece := await reader.read(65536):
                received += piece
    except ConnectionError:
        was_reset = True
    writer.close()
    return Seen(received, was_reset)


def without_what_differs(seen: Seen) -> list[bytes]:
    return [line for line in seen.received.split(b"\r\n") if not line.lower().startswith((b"date:", b"connection:"))]


@pytest.mark.parametrize("stream", [False, True])
async def test_without_a_fault_the_answers_bytes_pass(stream):
    async with Simulator(seed=1) as first, Simulator(seed=1) as second, FaultProxy(second.url) as proxy:
        direct, through = FaultProxy(first.url), await ask(proxy, stream=stream)
        async with direct:
            assert without_what_differs(await ask(direct, stream=stream)) == without_what_differs(through)
        assert (through.was_reset, proxy.connections) == (False, 1)
        assert [call.outcome for call in second.billing_log.calls()] == ["complete"]


STAGES = {
    "accept": lambda seen: seen.received == b"",
    "headers": lambda seen: seen.received == b"",
    "head": lambda seen: seen.received.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\n\r\n" not in seen.received,
    "body,after_bytes=9": lambda seen: seen.received.endswith((b'{"id":"ch', b'\r\n\r\n9\r\ndata: {"i\r\n')),
    "chunk,after_bytes=9": lambda seen: b"20000\r\n" in seen.received and b"\r\n0\r\n" not in seen.received,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_connection_breaks_where_it_is_asked_to(stage, how, stream):
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault.parse(f"{how}={stage}")) as proxy:
        seen = await ask(proxy, stream=stream)
        assert STAGES[stage](seen), seen
        assert seen.was_reset == (how == "reset")
        await sim.billing_log.wait_until(lambda log: log.open_calls == 0)


@pytest.mark.parametrize("stage", STAGES)
async def test_a_stall_lasts_until_the_client_leaves_and_the_upstream_sees_that(stage):
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
        async with asyncio.timeout(5):
            while proxy._serving:
                await asyncio.wait(proxy._serving)


async def test_a_refused_connection_is_refused_and_the_port_comes_back():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url) as proxy:
        url = proxy.url
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connect(proxy)
        await proxy.listen()
        assert (proxy.url, (await ask(proxy)).received[:15]) == (url, b"HTTP/1.1 200 OK")


async def test_a_fault_of_the_first_connections_is_over_after_them_and_begins_anew_when_it_is_set():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url) as proxy:
        for _ in range(2):
            proxy.fault = WireFault.parse("reset=headers,first=2")
            assert [(await ask(proxy)).was_reset for _ in range(3)] == [True, True, False]


async def test_chunks_are_as_small_as_asked_and_say_the_same():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault(chunk_bytes=7)) as proxy:
        chunks = (await ask(proxy)).chunks
    assert {len(chunk) for chunk in chunks[:-1]} == {7}
    assert json.loads(b"".join(chunks))["usage"]


@pytest.mark.parametrize(
    ("newlines", "endings"),
    [("crlf", {b"\r\n\r\n"}), ("cr", {b"\r\r"}), ("mixed", {b"\n\n", b"\r\n\r\n", b"\r\r"})],
)
async def test_lines_end_as_asked_and_no_two_kinds_meet_in_one_event(newlines, endings):
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault(newlines=newlines)) as proxy:
        events = (await ask(proxy, stream=True)).chunks
    found = {event[len(event.rstrip(b"\r\n")) :] for event in events}
    assert found == endings
    assert events[-1].startswith(b"data: [DONE]")


async def test_a_line_is_as_long_as_asked_and_still_json():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault(line_mb=3)) as proxy:
        seen = await ask(proxy)
    body = json.loads(b"".join(seen.chunks))
    assert (len(body.pop("padding")), body["object"]) == (3 * MEGABYTE, "chat.completion")
    assert b"Content-Length" not in seen.head


async def test_a_gzip_bomb_is_small_on_the_wire_and_large_behind_it():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault(gzip_bomb_mb=8)) as proxy:
        seen = await ask(proxy)
    packed = b"".join(seen.chunks)
    assert b"Content-Encoding: gzip" in seen.head
    assert len(packed) < 64 * 1024
    assert gzip.decompress(packed) == b" " * 8 * MEGABYTE
    assert zlib.decompressobj(31).decompress(packed, 10) == b" " * 10


async def test_a_drip_passes_whole():
    async with Simulator(seed=1) as sim, FaultProxy(sim.url, WireFault(drip_bytes_per_second=20_000)) as proxy:
        seen = await ask(proxy)
    assert json.loads(seen.received.partition(b"\r\n\r\n")[2])["usage"]


async def test_closing_breaks_off_what_is_under_way():
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
def test_a_fault_that_makes_no_sense_is_refused(text, words):
    with pytest.raises(ConfigInvalid) as refused:
        WireFault.parse(text)
    assert words in str(refused.value)


@pytest.mark.parametrize("upstream", ["", "https://127.0.0.1:1", "http://127.0.0.1", "127.0.0.1:80"])
def test_an_upstream_that_it_cannot_speak_to_is_refused(upstream):
    with pytest.raises(ConfigInvalid, match="needs an upstream"):
        FaultProxy(upstream)
