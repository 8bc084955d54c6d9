"""URLs and request headers."""

from __future__ import annotations

import pytest
from tests.http.client.responses import SHORT
from tests.http.client.scripted_server import BODY, HEADERS, Peer

from mcpmeter.errors import ServiceFault
from mcpmeter.http.client import MAX_CACHED_HEADERS_LENGTH, Target


@pytest.mark.parametrize(
    ("url", "origin", "host"),
    [
        ("https://api.example/v1", ("api.example", 443, True), "api.example"),
        ("http://API.example:8080", ("api.example", 8080, False), "api.example:8080"),
        ("http://bücher.example/", ("xn--bcher-kva.example", 80, False), "xn--bcher-kva.example"),
        ("https://[::1]:8443/v1", ("::1", 8443, True), "[::1]:8443"),
        ("http://[fd00::2]/v1", ("fd00::2", 80, False), "[fd00::2]"),
    ],
)
def test_a_url_gives_origin_and_host_header(url, origin, host):
    target = Target.of(url)
    assert tuple(target.origin) == origin
    assert f"\r\nhost: {host}\r\n" in target.first_lines


@pytest.mark.parametrize("host", ["straße.example", "ｇoogle.example", "ü" * 70 + ".example", "ü..example"])
async def test_an_ambiguous_host_gets_no_key(network, host):
    with pytest.raises(ServiceFault, match="xn--"):
        await network.client().post("acme", f"http://{host}/", HEADERS, BODY)


@pytest.mark.parametrize("evil", ["k\r\nx: 1", "k\r\n", "k\n", "k\r", "k\0", "\r\n\r\nGET / HTTP/1.1", "k→", "k\ud800"])
async def test_a_key_cannot_add_to_the_request(network, evil):
    provider = await network.provider(SHORT)
    with pytest.raises(ServiceFault, match="A header for the provider holds") as raised:
        await network.client().post("acme", provider.url, {"authorization": f"Bearer sk-{evil}"}, BODY)
    assert "sk-" not in str(raised.value)
    assert provider.peers == []


async def test_cached_headers_follow_the_headers_of_each_call(network):
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            requests.append(await peer.request())
            await peer.send(SHORT)

    provider = await network.provider(script)
    client = network.client()
    headers = {"authorization": "Bearer sk-1"}
    for key in ("sk-1", "sk-1", "sk-2", "sk-1"):
        headers["authorization"] = f"Bearer {key}"
        response = await client.post("acme", provider.url, headers, BODY)
        response.finish()
        assert f"\r\nauthorization: Bearer {key}\r\n".encode() in requests[-1]
        assert "sk-" not in repr(client._targets)
    long = {"x-long": "x" * MAX_CACHED_HEADERS_LENGTH}
    (await client.post("acme", provider.url, long, BODY)).finish()
    assert b"\r\nx-long: xxx" in requests[-1]
    assert b"authorization" not in requests[-1]
    assert all(len(target._written) <= MAX_CACHED_HEADERS_LENGTH for target in client._targets.values())
