"""The corpus of hostile framing, directly and behind nginx and HAProxy as the recipes in examples/ configure them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.http.server.corpus import AFTER, corpus
from tests.http.server.serving import Keeper, Request, listening

from mcpmeter.demo.stack import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"
SIDE_BY_SIDE = 256
QUIET_SECONDS = 1.0
"""After this long without a byte a connection has said all: proxies keep it open for more requests."""

CASES = corpus()


@dataclass
class Proxy:
    """A running proxy and its log."""

    port: int
    log: Path
    line: re.Pattern[str]
    """A line of the log; `id` and, unless the proxy answered by itself, `forwarded`."""

    def forwarded_ids(self) -> list[str]:
        found = map(self.line.search, self.log.read_text().splitlines())
        return [match["id"] for match in found if match and match["forwarded"]]


def configured(name: str, target: Path, changes: dict[str, str]) -> str:
    """A recipe with the addresses and files of a test; all else is as users copy it."""
    text = (EXAMPLES / name).read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    target.write_text(text)
    return str(target)


async def logged_ids(proxy: Proxy, count: int) -> list[str]:
    """What the proxy logged as forwarded: it writes a line after the response, so the last ones may be yet to come."""
    deadline = time.monotonic() + 20
    while len(found := proxy.forwarded_ids()) < count and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return found


@asynccontextmanager
async def running(command: Sequence[str], port: int, output: Path) -> AsyncIterator[None]:
    if shutil.which(command[0], path="/usr/sbin:/usr/bin:/bin") is None:
        pytest.fail(f"no {command[0]} here; run: make test")
    with output.open("wb") as written:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=written, stderr=written, env={"PATH": "/usr/sbin:/usr/bin:/bin"}
        )
    try:
        deadline = time.monotonic() + 20
        while not await answers(port):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            await asyncio.sleep(0.02)
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


async def answers(port: int) -> bool:
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False


@asynccontextmanager
async def nginx(service_port: int, folder: Path) -> AsyncIterator[Proxy]:
    port = free_port()
    changes = {
        "listen 8080;": f"listen 127.0.0.1:{port};",
        "127.0.0.1:8000": f"127.0.0.1:{service_port}",
        "/var/log/nginx/": f"{folder}/",
        "/run/nginx.pid": f"{folder}/nginx.pid",
    }
    path = configured("nginx.conf", folder / "nginx.conf", changes)
    line = re.compile(r"^\S+ (?P<id>[0-9a-f]{32}) \S+ \d+ (?P<forwarded>\d+)?")
    async with running(["nginx", "-c", path, "-g", "daemon off;"], port, folder / "output"):
        yield Proxy(port, folder / "mcpmeter.log", line)


@asynccontextmanager
async def haproxy(service_port: int, folder: Path) -> AsyncIterator[Proxy]:
    port = free_port()
    changes = {"bind :8080": f"bind 127.0.0.1:{port}", "127.0.0.1:8000": f"127.0.0.1:{service_port}"}
    path = configured("haproxy.cfg", folder / "haproxy.cfg", changes)
    line = re.compile(r"(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) \S+ -?\d+ (?:(?P<forwarded>mcpmeter)|\S+) ")
    async with running(["haproxy", "-f", path], port, folder / "output"):
        yield Proxy(port, folder / "output", line)


@dataclass
class Seen:
    """What the service was given, by the number of the case."""

    keeper: Keeper = field(default_factory=Keeper)

    def of(self, number: int) -> list[tuple[str, bytes]]:
        mark = f"/v1/t-{number:04}"
        return [(request.path, request.body) for request in self.keeper.requests if mark in request.path]


def numbered(sent: bytes, number: int) -> bytes:
    return sent.replace(b"/v1/t-0000", b"/v1/t-%04d" % number)


async def send_all(port: int) -> None:
    """Each case on a connection of its own, with its number, so that what arrives can be told apart."""
    slots = asyncio.Semaphore(SIDE_BY_SIDE)

    async def send(number: int, sent: bytes) -> None:
        async with slots:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(numbered(sent, number))
            with suppress(TimeoutError, OSError):
                while await asyncio.wait_for(reader.read(65536), QUIET_SECONDS):
                    pass
            writer.close()

    # AFTER is part of what is sent: whether it arrives as a request is what smuggling is about.
    await asyncio.gather(*(send(number, case.sent + AFTER) for number, case in enumerate(CASES)))


def are_one_reading(ours: list[tuple[str, bytes]], others: list[tuple[str, bytes]]) -> bool:
    """Whether two readings of the same bytes agree: one of the two may have refused requests of the other."""
    fewer, more = sorted((ours, others), key=len)
    rest = iter(more)
    return all(request in rest for request in fewer)  # in this order


@pytest.mark.trial
async def test_what_a_proxy_saw_as_one_request_is_one_for_us(trials: Any, tmp_path: Path) -> None:
    direct = Seen()
    async with listening(direct.keeper) as port:
        await send_all(port)
    wrong = [
        case.name
        for number, case in enumerate(CASES)
        if b"/v1/t-" in case.sent  # one target is `*`
        and (
            [body for path, body in direct.of(number) if not path.endswith("/after")]
            != [numbered(body, number) for body in case.bodies]
            or any(path.endswith("/after") for path, _ in direct.of(number)) != case.goes_on
        )
    ]
    figures: dict[str, object] = {
        "requests tried": len(CASES),
        "served or refused otherwise than RFC 9112 asks": len(wrong),
    }
    disagreements: list[str] = []
    for start in (nginx, haproxy):
        folder = tmp_path / start.__name__
        folder.mkdir()
        behind = Seen()
        async with listening(behind.keeper) as port, start(port, folder) as proxy:
            await send_all(proxy.port)
            ids = [request.headers[b"x-request-id"].decode() for request in behind.keeper.requests]
            arrived = len(ids) + len(behind.keeper.refusals)
            forwarded = await logged_ids(proxy, arrived)
        found = [f"not forwarded: {one}" for one in set(ids) - set(forwarded)]
        found += [f"{len(ids)} requests, {len(set(ids))} ids"] * (len(ids) != len(set(ids)))
        found += [f"{len(forwarded)} forwarded, {arrived} arrived"] * (len(forwarded) != arrived)
        found += [
            f"{case.name}: {direct.of(number)} directly, {behind.of(number)} behind {start.__name__}"
            for number, case in enumerate(CASES)
            if not are_one_reading(direct.of(number), behind.of(number))
        ]
        figures[f"requests that {start.__name__} forwarded"] = len(forwarded)
        figures[f"of them refused by us behind {start.__name__}"] = len(behind.keeper.refusals)
        figures[f"disagreements with {start.__name__}"] = len(found)
        disagreements += found
    trials.record(
        "Corpus of hostile framing",
        "Lengths, codings, both at once, chunks and their extensions, line ends, folded lines, names, values, hosts, "
        "targets, versions, upgrades, trailers and pipelines, each on a connection of its own and followed by one more "
        "request: directly, and behind nginx and HAProxy as the recipes of docs/reverse-proxy.md configure them. They "
        "agree if every request that a proxy forwarded arrived as one request with its id, and if path and body are "
        "those that we read directly.",
        figures,
    )
    assert wrong == []
    assert disagreements == []


HIDDEN = re.compile(r"/metrics|/-/.*|/api.*")
SPELLINGS = (
    *("/metrics", "/-/reload", "/-/healthy", "/api/keys", "//metrics", "/%2d/reload", "/%2D%2Freload", "/%6detrics"),
    *(
        "/v1/../metrics",
        "/v1/%2e%2e/-/reload",
        "/v1/..%2f-/reload",
        "/mcp/../-/reload",
        "/./-/reload",
        "/v1/./../metrics",
    ),
    *(
        "/metrics?/v1/",
        "/metrics;/v1/",
        "http://a.example/metrics",
        "http://a.example/-/reload?/v1/x",
        "/METRICS",
        "/-/reload/",
    ),
)
SPOOFED = (
    *(
        b"X-Forwarded-For: 10.0.0.1",
        b"x-forwarded-host: evil.example",
        b"X-Forwarded-Proto: https",
        b"X-Real-IP: 10.0.0.1",
    ),
    *(
        b"Forwarded: for=10.0.0.1",
        b"X-Request-Id: mine",
        b"Proxy-Authorization: Basic eDp5",
        b"TE: trailers",
        b"Keep-Alive: 9",
    ),
    *(
        b"Connection: Upgrade, keep-alive",
        b"Upgrade: h2c",
        b"X_Api_Key: a",
        b"Anthropic-Beta: one",
        b"Anthropic-Beta: two",
    ),
)


@dataclass
class Streams(Keeper):
    """Sends one event, and the last only when a test has read the first."""

    first_is_read: asyncio.Event = field(default_factory=asyncio.Event)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests.append(Request(scope["path"], dict(scope["headers"]), b""))
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"x-accel-redirect", b"/x"),
            (b"x-accel-buffering", b"yes"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: first\n\n", "more_body": True})
        await self.first_is_read.wait()
        await send({"type": "http.response.body", "body": b"data: last\n\n"})


@pytest.mark.parametrize("start", [nginx, haproxy])
async def test_no_spelling_of_a_path_reaches_what_stays_inside(start: Any, tmp_path: Path) -> None:
    keeper = Keeper()
    async with listening(keeper) as port, start(port, tmp_path) as proxy:
        for spelling in (*SPELLINGS, "/health", "/v1/models", "/mcp"):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"GET %b HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n" % spelling.encode())
            await asyncio.wait_for(reader.read(), 10)
            writer.close()
    arrived = [request.path for request in keeper.requests]
    assert [path for path in arrived if HIDDEN.fullmatch(path)] == []
    assert arrived[-3:] == ["/health", "/v1/models", "/mcp"]


@pytest.mark.parametrize("start", [nginx, haproxy])
async def test_a_stream_passes_at_once_and_no_header_is_spoofed(start: Any, tmp_path: Path) -> None:
    keeper = Streams()
    async with listening(keeper) as port, start(port, tmp_path) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET /v1/t HTTP/1.1\r\nHost: a.example\r\n" + b"\r\n".join(SPOOFED) + b"\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"first\n\n"), 10)
        keeper.first_is_read.set()
        await asyncio.wait_for(reader.readuntil(b"last\n\n"), 10)
        writer.close()
    assert b"x-accel" not in head.lower()
    (request,) = keeper.requests
    headers = request.headers
    assert len(headers.pop(b"x-request-id")) >= 32
    assert headers.pop(b"x-real-ip", b"127.0.0.1") == b"127.0.0.1"
    headers.pop(b"connection", None)
    assert headers == {
        b"host": b"a.example",
        b"x-forwarded-for": b"127.0.0.1",
        b"x-forwarded-host": b"a.example",
        b"x-forwarded-proto": b"http",
        b"anthropic-beta": b"one, two",
    }
