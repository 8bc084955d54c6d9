"""The same over TLS."""

from __future__ import annotations

import pytest
from tests.http.client.responses import CHUNKED, HALF, OK, PARTS, SHORT
from tests.http.client.scripted_server import Peer, call, fault_of, responding, slots_taken, until

from mcpmeter.errors import InvalidUpstreamResponse, UpstreamDisconnected, UpstreamUnreachable


async def test_a_tls_connection_is_reused(network, certificates):
    provider = await network.provider(CHUNKED + PARTS + b"\r\n", tls=certificates.server())
    client = network.client(tls=certificates.trust)
    for _ in range(3):
        assert await call(client, provider) == (200, b"hello world")
    assert len(provider.peers) == 1


async def test_tls_responses_end_and_break_as_plain_ones(network, certificates):
    context = certificates.server()
    client = network.client(tls=certificates.trust)
    assert await call(client, await network.provider(responding(OK + b"\r\nall", ends=True), tls=context)) == (
        200,
        b"all",
    )
    with pytest.raises(UpstreamDisconnected):
        await call(client, await network.provider(responding(HALF, ends=True), tls=context))
    with pytest.raises(InvalidUpstreamResponse):
        await call(client, await network.provider(b"SSH-2.0-OpenSSH_9.2\r\n", tls=context))
    await until(lambda: slots_taken(client) == 0)


@pytest.mark.parametrize(
    ("host", "days", "is_trusted", "message"),
    [
        ("other.example", 10, True, "TLS failed: Hostname mismatch"),
        ("localhost", -1, True, "TLS failed: certificate has expired"),
        ("localhost", 10, False, "TLS failed: "),
    ],
    ids=["another host's", "expired", "of an authority unknown"],
)
async def test_an_invalid_certificate_gets_no_request(network, certificates, host, days, is_trusted, message):
    provider = await network.provider(SHORT, tls=certificates.server(host, days=days))
    client = network.client(tls=certificates.trust if is_trusted else None)
    with pytest.raises(UpstreamUnreachable, match=message):
        await call(client, provider)
    assert slots_taken(client) == 0
    await until(lambda: not network.sockets())


@pytest.mark.parametrize("wire", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"])
async def test_a_server_without_tls_is_unreachable(network, certificates, wire):
    async def script(peer: Peer) -> None:
        await peer.send(wire)
        await peer.until_closed()

    provider = await network.provider(script)
    provider.url = provider.url.replace("http:", "https:")
    client = network.client(tls=certificates.trust)
    fault = await fault_of(network, provider, client)
    assert type(fault) is UpstreamUnreachable
    assert "(TLS failed" in fault.message


@pytest.mark.parametrize("is_closed", [True, False])
async def test_a_handshake_that_does_not_end_is_unreachable(network, certificates, is_closed):
    async def script(peer: Peer) -> None:
        if not is_closed:
            await peer.until_closed()

    provider = await network.provider(script)
    provider.url = provider.url.replace("http:", "https:")
    client = network.client(tls=certificates.trust, connect_seconds=0.2)
    assert type(await fault_of(network, provider, client)) is UpstreamUnreachable
