"""Steady mixed traffic to a relay, for demos and long runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, NamedTuple

import httpx2
import msgspec

MAX_IN_FLIGHT = 32
REQUEST_TIMEOUT_SECONDS = 60.0
BYTES_BEFORE_DISCONNECT = 2000
TOPICS = ("the tides", "a birthday", "unit tests", "sourdough", "the moon", "a bug report", "old maps", "tea")


class Kind(NamedTuple):
    """One kind of request in the mix."""

    name: str
    weight: int
    stream: bool = False
    simulate: str = ""
    disconnects: bool = False
    broken: bool = False
    embeds: bool = False


MIX = (
    Kind("json", 40),
    Kind("stream", 30, stream=True, simulate="chunks_per_second=lognormal:60,0.3"),
    Kind("slow", 6, simulate="latency_ms=uniform:1500-4000"),
    Kind("disconnect", 5, stream=True, simulate="completion_tokens=400,chunks_per_second=40", disconnects=True),
    Kind("bad", 6, broken=True),
    Kind("unavailable", 5, simulate="status=503"),
    Kind("limited", 5, simulate="status=429,retry_after=1"),
    Kind("cut", 3, stream=True, simulate="reset=body,after_tokens=10"),
)
EMBEDDINGS = Kind("embeddings", 10, embeds=True)
"""Part of the mix if there are embedding models."""


class TrafficCounts(msgspec.Struct, kw_only=True):
    """The clients' results. `disconnected` counts deliberate disconnects, `broken` incomplete responses."""

    sent: int = 0
    ok: int = 0
    refused: int = 0
    """Responses with status 400 to 499."""
    failed: int = 0
    """Responses with status 500 and above."""
    disconnected: int = 0
    broken: int = 0
    unreachable: int = 0
    """No connection, or no response within a minute."""
    by_kind: dict[str, int] = {}
    by_team: dict[str, int] = {}


async def steady(
    base_url: str,
    keys: Mapping[str, str | None],
    *,
    models: Sequence[str],
    embedding_models: Sequence[str] = (),
    per_second: float = 4.0,
    stop: asyncio.Event,
    seed: int = 0,
) -> TrafficCounts:
    """Send mixed chat requests, and embeddings if there are `embedding_models`, to `base_url` until `stop` is set.

    `keys` maps each team to its secret; None sends no Authorization. Requests beyond 32 in flight are skipped. Errors
    of the target are counted, not raised. Requests in flight at the end are cancelled.
    """
    random = Random(seed)  # noqa: S311 (a repeatable mix)
    counts = TrafficCounts()
    mix = (*MIX, EMBEDDINGS) if embedding_models else MIX
    running: set[asyncio.Task[None]] = set()
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(timeout=REQUEST_TIMEOUT_SECONDS, limits=limits, trust_env=False) as http:
        while not await _stopped_within(stop, random.expovariate(per_second)):
            if len(running) < MAX_IN_FLIGHT:
                client = _Client(http, base_url.rstrip("/"), counts)
                team = random.choice(list(keys))
                kind = _pick(random, mix)
                model = random.choice(embedding_models if kind.embeds else models)
                task = asyncio.create_task(client.send(team, keys[team], model, kind, random.random()))
                running.add(task)
                task.add_done_callback(running.discard)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return counts


class _Client(NamedTuple):
    http: httpx2.AsyncClient
    base_url: str
    counts: TrafficCounts

    async def send(self, team: str, secret: str | None, model: str, kind: Kind, sample: float) -> None:
        counts = self.counts
        counts.sent += 1
        counts.by_kind[kind.name] = counts.by_kind.get(kind.name, 0) + 1
        counts.by_team[team] = counts.by_team.get(team, 0) + 1
        url = self.base_url + _path(kind, sample)
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        with self._counting_failures():
            async with (
                asyncio.timeout(REQUEST_TIMEOUT_SECONDS),
                self.http.stream("POST", url, json=_body(kind, model, sample), headers=headers) as response,
            ):
                await self._read(response, kind)

    async def _read(self, response: httpx2.Response, kind: Kind) -> None:
        if response.status_code >= 400:
            await response.aread()
            self.counts.failed += response.status_code >= 500
            self.counts.refused += response.status_code < 500
            return
        received = 0
        async for data in response.aiter_bytes():
            received += len(data)
            if kind.disconnects and received >= BYTES_BEFORE_DISCONNECT:
                self.counts.disconnected += 1
                return
        self.counts.ok += 1

    @contextmanager
    def _counting_failures(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.ConnectError, httpx2.TimeoutException, TimeoutError):
            self.counts.unreachable += 1
        except (httpx2.HTTPError, OSError, ValueError):
            self.counts.broken += 1


def _pick(random: Random, mix: Sequence[Kind]) -> Kind:
    return random.choices(mix, weights=[kind.weight for kind in mix])[0]


def _path(kind: Kind, sample: float) -> str:
    if kind.embeds:
        return "/v1/embeddings"
    return "/mcp/chat" if sample < 1 / 4 else "/v1/chat/completions"


def _body(kind: Kind, model: str, sample: float) -> dict[str, Any]:
    topic = TOPICS[int(sample * 997) % len(TOPICS)]
    if kind.embeds:
        return {"model": model, "input": [f"Notes about {topic}.", f"More about {topic}."], "dimensions": 64}
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": f"Tell me about {topic}."}]}
    if kind.broken:
        body["messages"] = []
    if kind.stream:
        body["stream"] = True
    if kind.simulate:
        body["metadata"] = {"simulate": kind.simulate}
    return body


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await stop.wait()
    except TimeoutError:
        return False
