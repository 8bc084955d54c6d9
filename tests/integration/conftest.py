"""The real service on a free port, before the simulator or before a server that says whatever a test wants."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import uvloop
from prometheus_client.metrics_core import Metric as PrometheusFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pydantic import SecretStr

from mcpmeter.config import (
    KeySettings,
    LedgerSettings,
    ProviderSettings,
    RelaySettings,
    ServerSettings,
    Settings,
    TimeoutSettings,
)
from mcpmeter.ledger.location import Location, location_of
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.ledger.rows import SELECT_ROWS_SQL, row_of
from mcpmeter.metrics.collector import to_family
from mcpmeter.records import LedgerRow
from mcpmeter.service import Service, bind, running
from mcpmeter.simulator import Simulator

pytest.register_assert_rewrite("tests.integration.fault_table", "tests.integration.speakers")

UPSTREAM_KEY = "sk-upstream-credential-0123456789"
MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the service runs on."""
    return {"uvloop": uvloop.new_event_loop}


Counts = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Scrape:
    """One reading of `/metrics`, parsed by the library's own strict parser."""

    counts: Counts

    def of(self, name: str, **labels: str) -> float:
        """The sum of a sample over the series that have these labels."""
        wanted = set(labels.items())
        return sum(value for (sample, having), value in self.counts.items() if sample == name and wanted <= having)

    def since(self, before: Scrape, name: str) -> dict[tuple[str, ...], float]:
        """Which series of a sample rose, by their label values in the order of the labels' names, and how far."""
        rose = {}
        for (sample, labels), value in self.counts.items():
            if sample == name and value != before.counts.get((sample, labels), 0):
                rose[tuple(text for _, text in sorted(labels))] = value - before.counts.get((sample, labels), 0)
        return rose


@dataclass(frozen=True)
class Reply:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, which has to be all that there is."""
        (name,) = self.json
        assert name == "error"
        return self.json["error"]

    @property
    def events(self) -> list[bytes]:
        return [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n") if event]


@dataclass
class Relay:
    """A running service and its surroundings."""

    url: str
    service: Service
    ledger: Location
    http: httpx2.AsyncClient
    simulator: Simulator | None = None
    settings: Settings = field(default_factory=Settings)
    end: Callable[[], Awaitable[None]] | None = None
    """End the service as its process would after draining, by the task that started it."""

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    async def ask(
        self, body: Any = b"", path: str = CHAT, *, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request by a well-behaved client; a dict goes as JSON."""
        data = body if isinstance(body, bytes) or hasattr(body, "__aiter__") else json.dumps(body).encode()
        sent = {name: value.encode() for name, value in (headers or {}).items()}
        async with self.http.stream(method, self.url + path, content=data, headers=sent) as answer:
            received = b"".join([piece async for piece in answer.aiter_raw()])
            return Reply(answer.status_code, httpx2.Headers(answer.headers.raw, encoding="utf-8"), received)

    async def chat(self, simulate: str = "", *, path: str = CHAT, key: str | None = None, **more: Any) -> Reply:
        """A small chat; `simulate` asks the simulator for a fault."""
        headers = {"authorization": f"Bearer {key}"} if key else None
        return await self.ask(chat_body(simulate, **more), path, headers=headers)

    async def raw(self, request: bytes, *, rest: bytes = b"") -> Reply:
        """Send bytes as they are and read to the end of the connection; `rest` goes after the head."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(request)
            if rest:
                writer.write(rest)
            received = await asyncio.wait_for(reader.read(-1), 120)
        finally:
            writer.transport.abort()
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return Reply(int(lines[0].split(" ")[1]) if lines[0] else 0, headers, body)

    async def scrape(self) -> Scrape:
        """Read and parse `/metrics`."""
        answer = await self.ask(path="/metrics", method="GET")
        assert answer.status == 200
        return Scrape(_counts(parse_text(answer.body.decode())))

    def counts(self) -> Scrape:
        """The same figures without a request, to compare a later scrape with."""
        return Scrape(_counts(map(to_family, self.service.recorder.snapshot())))

    async def scrape_openmetrics(self) -> str:
        """Read `/metrics` as OpenMetrics, once its strict parser has read it too."""
        answer = await self.ask(path="/metrics", method="GET", headers={"accept": OPENMETRICS})
        assert answer.status == 200
        text = answer.body.decode()
        assert Scrape(_counts(parse_openmetrics(text))).counts
        return text

    def rows(self) -> list[LedgerRow]:
        """All rows of the ledger, oldest first, as another process would read them."""
        with open_reader(self.ledger) as reader:
            return [row_of(row) for row in reader.rows(f"{SELECT_ROWS_SQL} ORDER BY started_at_ns, id")]

    async def until(self, holds: Callable[[], bool], *, seconds: float = 120.0) -> None:
        """Wait for something that has no event of its own to await."""
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.005)

    async def until_idle(self) -> None:
        """Wait until no request is being answered, no row is open and no settlement waits."""
        active = self.service.recorder.families["mcp_active_requests"].cells
        service = self.service
        await self.until(lambda: active[()].value == 0 and service._store.open_rows == 0 and not len(service.pending))


def _counts(families: Iterable[PrometheusFamily]) -> Counts:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def chat_body(simulate: str = "", **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "gpt-4.1", "messages": MESSAGES, **more}
    if simulate:
        body["metadata"] = {"simulate": simulate}
    return body


def make_settings(ledger: Location, upstream: str, **changes: Any) -> Settings:
    """Settings in code, as the demo makes them; waits are short."""
    times = {"first_byte_seconds": 60.0, "idle_seconds": 60.0, **changes.pop("timeouts", {})}
    relay = {"timeouts": TimeoutSettings(**times), **changes.pop("relay", {})}
    keys = changes.pop("keys", {})
    return Settings(
        server=ServerSettings(**{"drain_seconds": 5.0, **changes.pop("server", {})}),
        ledger=changes.pop("ledger_settings", LedgerSettings()).at(ledger),
        relay=RelaySettings(**relay),
        providers=(
            ProviderSettings(name="holysheep", base_url=upstream, api_key=SecretStr(UPSTREAM_KEY)),
            *changes.pop("extra_providers", ()),
        ),
        keys=keys if isinstance(keys, tuple) else tuple(_key(team, secret) for team, secret in keys.items()),
        **changes,
    )


def _key(team: str, secret: str) -> KeySettings:
    return KeySettings(name=f"{team}-key", team=team, secret=SecretStr(secret))


def http_client() -> httpx2.AsyncClient:
    """Adds no headers a provider's response depends on; loads no certificates, which takes 30 ms."""
    http = httpx2.AsyncClient(timeout=120, limits=httpx2.Limits(), trust_env=False, verify=False)
    for name in ("accept-encoding", "user-agent"):
        del http.headers[name]
    return http


@asynccontextmanager
async def relay_before(upstream: str, ledger: Location, **changes: Any) -> AsyncIterator[Relay]:
    """The service relaying to `upstream`. At its end nothing is under way and every row is settled."""
    settings = make_settings(ledger, upstream, **changes)
    service = Service(lambda: settings)
    async with http_client() as http, running(service, bind("127.0.0.1", 0)) as url:
        yield Relay(url, service, ledger, http, settings=settings)


StartRelay = Callable[..., Awaitable[Relay]]


class Kept:
    """A context that lives in a task of its own: what a service opens has to be closed by the task that opened it."""

    def __init__(self, context: AbstractAsyncContextManager[Any]) -> None:
        self._context = context
        self._done = asyncio.Event()
        self._entered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        try:
            async with self._context as value:
                self._entered.set_result(value)
                await self._done.wait()
        except BaseException as fault:
            if not self._entered.done():
                self._entered.set_exception(fault)
                return
            raise

    async def value(self) -> Any:
        return await self._entered

    async def close(self) -> None:
        self._done.set()
        await self._task


@asynccontextmanager
async def starting_relays(new_place: Callable[[], Location]) -> AsyncIterator[StartRelay]:
    async with AsyncExitStack() as stack:

        async def start(*, upstream: str | None = None, simulator: Simulator | None = None, **changes: Any) -> Relay:
            if upstream is None:
                simulator = simulator or Simulator(seed=1, key=UPSTREAM_KEY)
                await simulator.start()
                stack.push_async_callback(simulator.close)
                upstream = simulator.base_url
            kept = Kept(relay_before(upstream, new_place(), **changes))
            stack.push_async_callback(kept.close)
            relay: Relay = await kept.value()
            relay.simulator, relay.end = simulator, kept.close
            return relay

        yield start


def _files_in(folder: Path) -> Callable[[], Location]:
    numbers = itertools.count(1)
    return lambda: folder / str(next(numbers)) / "ledger.db"


@pytest.fixture
def new_place(tmp_path: Path) -> Callable[[], Location]:
    """Where each relay of a test has its ledger: files, unless a module of tests says otherwise."""
    return _files_in(tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def place_of_either_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Location]:
    """For a module that runs on both: its `new_place`, for one relay a test."""
    if request.param == "sqlite":
        return _files_in(tmp_path)
    return lambda: location_of(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def start_relay(new_place: Callable[[], Location]) -> AsyncIterator[StartRelay]:
    """Start a relay with settings of the test's own, before the simulator unless `upstream` names an address."""
    async with starting_relays(new_place) as start:
        yield start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def start_module_relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StartRelay]:
    """The same for a relay that serves a whole module of tests."""
    async with starting_relays(_files_in(tmp_path_factory.mktemp("relay"))) as start:
        yield start


@pytest.fixture
async def relay(start_relay: StartRelay) -> Relay:
    """The service before the simulator, without keys."""
    return await start_relay()


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawUpstream:
    """An upstream below any HTTP library: it keeps what it was sent and then does what `play` was given."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[bytes] = []
        self.left = asyncio.Event()
        """Set when the relay has closed a connection."""
        self._script: Script = _saying(b"")

    def play(self, script: Script | bytes) -> None:
        """Do this from now on; bytes are sent and the connection then closed."""
        self._script = _saying(script) if isinstance(script, bytes) else script
        self.requests.clear()
        self.left.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next(int(line[15:]) for line in lines if line.startswith(b"content-length"))
                self.requests.append(head + await reader.readexactly(length))
                await self._script(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def raw_upstream() -> AsyncIterator[RawUpstream]:
    """One raw upstream for a module of tests."""
    upstream = RawUpstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield upstream
    server.close()


def _saying(data: bytes) -> Script:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return say


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All logs at DEBUG, but for those of the test's own client."""
    for client in ("httpx2", "httpcore2"):
        caplog.set_level(logging.WARNING, logger=client)
    caplog.set_level(logging.DEBUG)  # last, since each call sets the level of the handler too
    return caplog


@pytest.fixture
async def client_of() -> AsyncIterator[Callable[[str, Service], Relay]]:
    """A client of a service that a test has started by itself."""
    async with http_client() as http:
        yield lambda url, service: Relay(url, service, service.ledger_path, http)
