"""Which Host, Origin and Sec-Fetch-Site each listener accepts, and what the admin listener serves."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from tests.integration.conftest import CHAT, Kept, Relay, chat_body, http_client, make_settings

from mcpmeter.config import AdminSettings, MetricsSettings
from mcpmeter.errors import NotAllowed
from mcpmeter.service import Service, bind, running
from mcpmeter.service.app import HEALTH_PATHS, HostGuard
from mcpmeter.simulator import Simulator

TOKEN = secrets.token_hex(32)
NAVIGATION = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def accepts(guard: HostGuard, path: str = "/api/usage", *, method: str = "GET", **headers: str) -> bool:
    sent = {"host": "localhost:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items()],
    }
    try:
        guard.check(scope)
    except NotAllowed:
        return False
    return True


LOOPBACK = HostGuard(["localhost", "127.0.0.1", "::1"])
OPEN = HostGuard(
    ["localhost"],
    ["meter.example.com", "meter", "10.0.0.9", "other.example.com:8443", "web.example.com:443"],
    ["https://chat.example.com", "app://obsidian.md", "http://dev.example.com:3000"],
)


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        ("meter.example.com", True),
        ("METER.example.com:9999", True),
        ("meter.example.com.", True),
        ("10.0.0.9:8000", True),
        ("other.example.com:8443", True),
        ("other.example.com:8000", False),
        ("other.example.com", False),
        ("web.example.com", True),
        ("localhost", True),
        ("10.0.0.8", False),
        ("evil.meter.example.com", False),
        ("meter.example.com.evil.example", False),
        ("meter.example.com@evil.example", False),
        ("evil.example#meter.example.com", False),
        ("meter.example.com:80:80", False),
        ("meter.example.com, evil.example", False),
        ("", False),
    ],
)
def test_a_host_is_served_if_it_is_listed(host: str, accepted: bool) -> None:
    for _ in range(2):  # the second time from what the guard remembers
        assert accepts(OPEN, host=host) is accepted
        assert accepts(OPEN, CHAT, method="POST", host=host) is accepted
    assert all(accepts(OPEN, path, host=host) for path in HEALTH_PATHS)


@pytest.mark.parametrize(
    ("host", "origin", "own"),
    [
        ("localhost:8000", "http://localhost:8000", True),
        ("LOCALHOST:8000", "http://localhost:8000", True),
        ("localhost:80", "http://localhost", True),
        ("localhost", "http://localhost:80", True),
        ("localhost:8000", "http://localhost", False),
        ("localhost:8000", "http://localhost:3000", False),
        ("localhost:8000", "http://127.0.0.1:8000", False),
        ("localhost:8000", "https://localhost:8000", False),
        ("localhost", "https://localhost", False),
        ("meter.example.com", "http://meter.example.com", True),
        ("meter.example.com", "https://meter.example.com", True),
        ("meter.example.com:443", "https://meter.example.com", True),
        ("meter.example.com:8000", "https://meter.example.com", False),
        ("meter.example.com:8000", "https://meter.example.com:8000", False),
        ("meter.example.com", "https://meter.example.com:8443", False),
        ("meter.example.com", "http://other.example.com:8443", False),
        ("meter.example.com", "null", False),
        ("meter.example.com", "http://meter.example.com/", False),
        ("meter.example.com", "app://meter.example.com", False),
        ("meter.example.com", "", False),
    ],
)
def test_an_own_origin_is_of_one_scheme_host_and_port(host: str, origin: str, own: bool) -> None:
    for method, path in (("GET", "/"), ("GET", "/api/usage"), ("POST", "/api/keys"), ("GET", "/metrics")):
        assert accepts(OPEN, path, method=method, host=host, origin=origin) is own
    for path in (CHAT, "/v1beta/models/m:generateContent", "/mcp", "/mcp/chat", "/unknown"):
        assert not accepts(OPEN, path, method="POST", host=host, origin=origin)


def test_a_rebound_name_is_refused_with_its_own_origin() -> None:
    for path in ("/", "/metrics", "/-/reload", "/api/keys", CHAT, "/health"):
        assert not accepts(OPEN, path, host="evil.example", origin="http://evil.example")


@pytest.mark.parametrize("path", ["/", "/api/usage", "/metrics", CHAT, "/mcp", "/v1/models"])
def test_a_listed_origin_may_call_everything(path: str) -> None:
    for origin in ("https://chat.example.com", "HTTPS://Chat.Example.com:443", "app://obsidian.md"):
        assert accepts(OPEN, path, method="POST", origin=origin, sec_fetch_site="cross-site")
    for origin in ("http://chat.example.com", "https://chat.example.com:3000", "http://dev.example.com", "app://other"):
        assert not accepts(OPEN, path, method="POST", origin=origin)
    assert not accepts(OPEN, path, method="POST", origin="https://chat.example.com", host="evil.example")


@pytest.mark.parametrize("path", ["/", "/api/usage", "/metrics", CHAT, "/mcp", "/health"])
@pytest.mark.parametrize(
    ("site", "accepted"),
    [("none", True), ("same-origin", True), ("same-site", False), ("cross-site", False), ("", False), ("new", False)],
)
def test_a_page_of_another_site_is_refused_without_an_origin(path: str, site: str, accepted: bool) -> None:
    for mode in ("no-cors", "cors", "websocket"):
        assert accepts(LOOPBACK, path, sec_fetch_site=site, sec_fetch_mode=mode) is accepted


def test_a_link_of_another_site_opens_the_first_page_and_metrics() -> None:
    navigation = {name.replace("-", "_"): value for name, value in NAVIGATION.items()}
    assert [
        path
        for path in ("/", "/metrics", "/api/usage", "/api/keys", "/v1/models", "/mcp", "/-/reload")
        if accepts(LOOPBACK, path, **navigation)
    ] == ["/", "/metrics"]
    assert not accepts(LOOPBACK, "/", method="POST", **navigation)
    assert not accepts(LOOPBACK, "/", **{**navigation, "sec_fetch_dest": "iframe"})
    assert not accepts(LOOPBACK, "/", **navigation, origin="https://evil.example")


# The running service


async def test_a_page_of_another_local_port_spends_nothing_and_makes_no_key(relay: Relay) -> None:
    page = {"origin": "http://localhost:3000", "content-type": "text/plain", "sec-fetch-site": "same-site"}
    for path, body in (
        (CHAT, chat_body()),
        ("/api/keys", {"name": "x", "team": "x", "role": "admin"}),
        ("/-/reload", b""),
    ):
        reply = await relay.ask(body, path, headers=page)
        assert (reply.status, reply.error["code"]) == (403, "not_allowed")
    assert (await relay.chat()).status == 200, "no key was made"
    assert len(relay.rows()) == 1


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/jsonp", 415),
        ("text/plain; application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
        (None, 415),
    ],
)
async def test_a_write_with_a_body_takes_json_only(relay: Relay, content_type: str | None, status: int) -> None:
    body = {"name": "first", "team": "platform", "role": "admin"}
    headers = {} if content_type is None else {"content-type": content_type}
    reply = await relay.ask(body, "/api/keys", headers=headers)
    assert reply.status == status
    if status == 415:
        assert reply.error["code"] == "unsupported_media_type"

        async def chunks() -> AsyncIterator[bytes]:
            yield json.dumps(body).encode()

        assert (await relay.ask(chunks(), "/api/keys", headers=headers)).status == 415
        assert relay.service.pipeline.runtime.keys.empty


async def test_a_write_without_its_body_is_invalid_as_before(relay: Relay) -> None:
    reply = await relay.ask(b"", "/api/keys")
    assert (reply.status, reply.error["message"].partition(".")[0]) == (400, "The body is not JSON")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_relay_route_takes_every_content_type(relay: Relay, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert (await relay.ask(chat_body(), headers=headers)).status == 200


async def test_there_is_no_cors_and_no_preflight(start_relay: Callable[..., Awaitable[Relay]]) -> None:
    relay = await start_relay(server={"allowed_origins": ("https://chat.example.com",)})
    for origin, status in (("https://chat.example.com", 405), ("https://evil.example", 403)):
        preflight = {"origin": origin, "access-control-request-method": "POST"}
        reply = await relay.ask(method="OPTIONS", headers=preflight)
        assert reply.status == status
        assert not [name for name in reply.headers if name.startswith("access-control")]


Listening = Callable[..., Awaitable[Service]]


@pytest.fixture
async def listen(tmp_path: Path) -> AsyncIterator[Listening]:
    """Start a service on every address, or with further listeners; keeps its URL as `url`."""
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(Simulator(seed=1))

        async def start(host: str = "127.0.0.1", **changes: Any) -> Service:
            settings = make_settings(tmp_path / "ledger.db", simulator.base_url, **changes)
            service = Service(lambda: settings)
            kept = Kept(running(service, bind(host, 0)))
            stack.push_async_callback(kept.close)
            url = await kept.value()
            service.addresses["server"] = url.replace("0.0.0.0", "127.0.0.1")
            return service

        yield start


async def statuses(service: Service, section: str, *requests: tuple[str, str], **headers: str) -> list[int]:
    url = service.addresses[section].replace("0.0.0.0", "127.0.0.1")
    async with http_client() as http:
        return [(await http.request(verb, url + path, headers=headers)).status_code for verb, path in requests]


WIDE = {"host": "0.0.0.0", "allowed_hosts": ("meter.example.com",)}
KEYS = {"search": secrets.token_hex(32)}


async def test_a_wide_bind_serves_listed_hosts_health_and_metrics_by_token(listen: Listening) -> None:
    service = await listen("0.0.0.0", server=WIDE, keys=KEYS, metrics=MetricsSettings(bearer_token=SecretStr(TOKEN)))
    paths = [("GET", path) for path in ("/health", "/-/healthy", "/-/ready", "/metrics", "/", "/v1/models")]
    bearer = f"Bearer {TOKEN}"
    found = {
        host: await statuses(service, "server", *paths, host=host, authorization=bearer)
        for host in ("meter.example.com", "127.0.0.1:8000", "10.1.2.3:8000", "evil.example")
    }
    listed, foreign = [200, 200, 200, 200, 200, 401], [200, 200, 200, 200, 403, 403]
    assert found == {
        "meter.example.com": listed,
        "127.0.0.1:8000": listed,
        "10.1.2.3:8000": foreign,
        "evil.example": foreign,
    }
    assert await statuses(service, "server", ("GET", "/metrics"), host="10.1.2.3") == [401]
    assert await statuses(service, "server", ("GET", "/metrics"), authorization=f"Bearer {KEYS['search']}") == [401]


async def test_public_metrics_still_need_a_listed_host(listen: Listening) -> None:
    service = await listen("0.0.0.0", server=WIDE, keys=KEYS, metrics=MetricsSettings(public=True))
    for host, status in (("meter.example.com", 200), ("10.1.2.3:8000", 403), ("evil.example", 403)):
        assert await statuses(service, "server", ("GET", "/metrics"), host=host) == [status]


async def test_a_metrics_listener_follows_the_same_rules(listen: Listening) -> None:
    metrics = MetricsSettings(host="0.0.0.0", port=0, bearer_token=SecretStr(TOKEN))
    service = await listen(server={"allowed_hosts": ("meter",)}, metrics=metrics)
    scrape = ("GET", "/metrics")
    bearer = f"Bearer {TOKEN}"
    assert await statuses(service, "metrics", scrape, host="10.1.2.3", authorization=bearer) == [200]
    assert await statuses(service, "metrics", scrape, host="10.1.2.3") == [401]
    assert await statuses(service, "metrics", scrape, authorization=bearer, origin="http://localhost:3000") == [403]
    assert await statuses(service, "metrics", scrape, authorization=bearer, **{"sec-fetch-site": "cross-site"}) == [403]
    assert await statuses(service, "metrics", ("GET", "/"), host="10.1.2.3") == [403]


async def test_the_admin_listener_alone_serves_metrics_reload_and_keys(listen: Listening) -> None:
    service = await listen(server={"admin": AdminSettings(port=0)})
    moved = [("GET", "/metrics"), ("POST", "/-/reload"), ("GET", "/api/keys"), ("POST", "/api/keys/rotate")]
    health = [("GET", path) for path in sorted(HEALTH_PATHS)]
    assert await statuses(service, "server.admin", *moved, *health) == [200, 200, 200, 400, 200, 200, 200]
    assert await statuses(service, "server", *moved, *health) == [404, 404, 404, 404, 200, 200, 200]
    calls = [("GET", "/v1/models"), ("GET", "/mcp/models"), ("GET", "/api/usage"), ("GET", "/")]
    assert await statuses(service, "server", *calls) == [200] * 4
    assert await statuses(service, "server.admin", *calls) == [404] * 4
    assert await statuses(service, "server.admin", *moved[:3], host="evil.example") == [403] * 3
    assert await statuses(service, "server.admin", *moved[:3], origin="http://localhost:3000") == [403] * 3
    async with http_client() as http:
        index = (await http.get(service.addresses["server"])).text
    assert "/metrics</code></a>" not in index
    assert "/api/keys" not in index


async def test_a_metrics_listener_keeps_metrics_beside_an_admin_listener(listen: Listening) -> None:
    service = await listen(server={"admin": AdminSettings(port=0)}, metrics=MetricsSettings(port=0))
    found = {
        section: await statuses(service, section, ("GET", "/metrics"), ("GET", "/api/keys"), ("GET", "/v1/models"))
        for section in ("server", "server.admin", "metrics")
    }
    assert found == {"server": [404, 404, 200], "server.admin": [404, 200, 404], "metrics": [200, 404, 404]}
    await asyncio.wait_for(service.reload(), 10)
