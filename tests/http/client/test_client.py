"""A request from the URL to the response's body."""

from __future__ import annotations

import contextlib
import gzip
import os
import resource
import socket

import pytest
from tests.http.client.responses import CHUNKED, OK, SHORT
from tests.http.client.scripted_server import (
    BODY,
    HEADERS,
    LIMIT,
    MEGABYTE,
    Peer,
    Provider,
    call,
    fault_of,
    responding,
    silent,
    slots_taken,
    until,
)

from mcpmeter.errors import (
    InvalidUpstreamResponse,
    Overloaded,
    UpstreamDisconnected,
    UpstreamResponseTooLarge,
    UpstreamUnreachable,
)
from mcpmeter.http.client import MAX_TARGETS


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_request_adds_host_and_length_only(network, host):
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(SHORT)

    provider = await network.provider(script, host=host)
    provider.url += "?api-version=2026-01-01&x=%2F y|é"
    assert await call(network.client(), provider) == (200, b"hello")
    named = f"[{host}]" if ":" in host else host
    assert requests == [
        b"POST /v1/chat?api-version=2026-01-01&x=%2F%20y%7C%C3%A9 HTTP/1.1\r\n"
        b"host: " + f"{named}:{provider.port}".encode() + b"\r\n"
        b"content-type: application/json\r\nauthorization: Bearer sk-1\r\ncontent-length: 13\r\n\r\n" + BODY
    ]


async def test_cached_targets_are_bounded(network):
    provider = await network.provider(SHORT)
    client = network.client()
    for name in (*map(str, range(MAX_TARGETS + 5)), "m" * 10_000):
        target = Provider(silent(), url=f"{provider.url}/{name}")
        assert await call(client, target) == (200, b"hello")
        assert len(client._targets) <= MAX_TARGETS
        assert sum(map(len, client._targets)) < MAX_TARGETS * 100
    assert len(provider.peers) == 1


async def test_a_large_body_is_sent_whole(network):
    sizes: list[int] = []

    async def script(peer: Peer) -> None:
        sizes.append(len(await peer.request()))
        await peer.send(SHORT)

    provider = await network.provider(script)
    response = await network.client().post("acme", provider.url, HEADERS, b"x" * 8 * MEGABYTE)
    assert await response.read(LIMIT) == b"hello"
    response.finish()
    assert 8 * MEGABYTE < sizes[0] < 8 * MEGABYTE + 300


@pytest.mark.parametrize("framing", [OK + b"Content-Length: 1000\r\n\r\n", CHUNKED + b"3e8\r\n", OK + b"\r\n"])
async def test_a_response_over_the_limit_is_refused(network, framing):
    ending = b"\r\n0\r\n\r\n" if framing.startswith(CHUNKED) else b""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(framing + b"x" * 1000 + ending)

    provider = await network.provider(script)
    client = network.client()
    assert await call(client, provider, 1000) == (200, b"x" * 1000)
    await until(lambda: slots_taken(client) == 0)
    with pytest.raises(UpstreamResponseTooLarge, match="999 bytes"):
        await call(client, provider, 999)


def gzipped(body: bytes) -> bytes:
    return OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def test_a_gzip_response_is_read_within_the_limit(network):
    provider = await network.provider(
        responding(gzipped(gzip.compress(b"x" * 1000)), gzipped(gzip.compress(b"x" * 1001)), ends=True)
    )
    client = network.client()
    assert await call(client, provider, 1000) == (200, b"x" * 1000)
    with pytest.raises(UpstreamResponseTooLarge):
        await call(client, provider, 1000)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (gzip.compress(b"hello")[:-1], UpstreamDisconnected),
        (gzip.compress(b"hello") + b"junk", InvalidUpstreamResponse),
        (gzip.compress(b"") * 60_000, UpstreamResponseTooLarge),
    ],
    ids=["cut short", "junk after it", "much that is nothing"],
)
async def test_a_damaged_gzip_response_is_an_error(network, body, error):
    assert type(await fault_of(network, await network.provider(gzipped(body)))) is error


async def test_without_a_file_descriptor_the_service_is_overloaded(network):
    provider = await network.provider(silent())
    highest = max(map(int, os.listdir("/proc/self/fd")))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        with contextlib.suppress(OSError):
            while True:
                held.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(Overloaded, match="no file descriptor"):
            await call(network.client(), provider)


async def test_a_refused_connection_is_unreachable(network):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        provider = Provider(silent(), url=f"http://127.0.0.1:{taken.getsockname()[1]}/")
        fault = await fault_of(network, provider)
    assert type(fault) is UpstreamUnreachable
    assert "(connection refused)" in fault.message


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example"])
async def test_an_invalid_host_name_is_unreachable(network, host):
    fault = await fault_of(network, Provider(silent(), url=f"http://{host}/"))
    assert type(fault) is UpstreamUnreachable
    assert "name does not resolve" in fault.message
