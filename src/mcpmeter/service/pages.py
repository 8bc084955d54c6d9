"""Pages of the service itself: health, readiness, metrics, models and the index."""

from __future__ import annotations

import asyncio
import gzip
import hmac
import html
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from mcpmeter.catalog import service as rows
from mcpmeter.errors import BodyTooLarge, ConfigInvalid, InvalidRequest, NotAuthenticated
from mcpmeter.http.exchange import HttpExchange
from mcpmeter.ledger.pending import PendingSettlements
from mcpmeter.ledger.store import Store
from mcpmeter.metrics.collector import Exposition
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.records import Actor
from mcpmeter.relay.pipeline import Pipeline
from mcpmeter.service.admin import RequireAdmin
from mcpmeter.service.app import Page
from mcpmeter.service.label_sets import OfferedModels

MIN_COMPRESSED_BYTES: Final = 2048
_numbers = msgspec.json.Encoder(decimal_format="number")


class MetricsPage:
    """`/metrics`. The numbers are copied here and rendered in a thread, so that a scrape never delays a stream."""

    def __init__(
        self,
        recorder: Recorder,
        exposition: Exposition,
        *,
        store: Store,
        pending: PendingSettlements,
        quota: QuotaTracker,
        token: str | None,
    ) -> None:
        self._recorder = recorder
        self._pending = pending
        self._quota = quota
        self._exposition = exposition
        self._store = store
        self._token = token
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="mcpmeter-metrics")

    async def __call__(self, exchange: HttpExchange) -> Page:
        if self._token is not None and not hmac.compare_digest((exchange.secret or "").encode(), self._token.encode()):
            raise NotAuthenticated("/metrics requires its bearer token.", hint="Send metrics.bearer_token.")
        self._quota.publish(time.time_ns())
        self._recorder.set(rows.LEDGER_OPEN_ROWS, self._store.open_rows)
        self._recorder.set(rows.LEDGER_HEALTHY, int(self._store.healthy))
        self._recorder.set(rows.SETTLEMENTS_PENDING, len(self._pending))
        # The scrape itself is not an active request: an idle service shows 0.
        self._recorder.end_request()
        try:
            render = self._exposition.prepare(exchange.headers.get(b"accept", b"").decode("latin-1"))
        finally:
            self._recorder.begin_request()
        compress = b"gzip" in exchange.headers.get(b"accept-encoding", b"")
        body, content_type, is_compressed = await asyncio.get_running_loop().run_in_executor(
            self._threads, _rendered, render, compress
        )
        headers = ((b"content-encoding", b"gzip"),) if is_compressed else ()
        return Page(body, content_type, headers=(*headers, (b"vary", b"accept, accept-encoding")))


def _rendered(render: Callable[[], tuple[bytes, str]], compress: bool) -> tuple[bytes, str, bool]:
    body, content_type = render()
    if compress and len(body) >= MIN_COMPRESSED_BYTES:
        return gzip.compress(body, 1), content_type, True
    return body, content_type, False


async def health(exchange: HttpExchange) -> Page:
    """The guide's liveness response."""
    return Page(msgspec.json.encode({"status": "healthy", "timestamp": time.time()}))


async def healthy(exchange: HttpExchange) -> Page:
    """Prometheus's liveness response."""
    return Page(b"mcpmeter is healthy.\n", "text/plain; charset=utf-8")


class ReadyPage:
    """`/-/ready`: 503 while the ledger is not writable, known costs are not written, or the service drains."""

    def __init__(self, store: Store, pending: PendingSettlements, pipeline: Pipeline) -> None:
        self._store = store
        self._pending = pending
        self._pipeline = pipeline

    async def __call__(self, exchange: HttpExchange) -> Page:
        if self._pipeline.draining:
            return _not_ready("it is stopping")
        if not self._store.healthy:
            return _not_ready("the ledger cannot be written")
        if self._pending.unwritten:
            return _not_ready("settled calls wait to be written")
        return Page(b"mcpmeter is ready.\n", "text/plain; charset=utf-8")


def _not_ready(reason: str) -> Page:
    return Page(f"mcpmeter is not ready: {reason}.\n".encode(), "text/plain; charset=utf-8", 503)


class ReloadPage:
    """`POST /-/reload`, for admins."""

    def __init__(self, reload: Callable[[Actor], Awaitable[None]], admin: RequireAdmin) -> None:
        self._reload = reload
        self._admin = admin

    async def __call__(self, exchange: HttpExchange) -> Page:
        try:
            await exchange.read_body(0)
        except BodyTooLarge:
            raise InvalidRequest("This request takes no body.", hint="Send it empty: curl -X POST.") from None
        admin = self._admin(exchange)
        try:
            await self._reload(admin)
        except ConfigInvalid as fault:
            return Page(f"Not reloaded, the old configuration stays: {fault}\n".encode(), "text/plain", 400)
        return Page(b"Reloaded.\n", "text/plain; charset=utf-8")


class ModelPages:
    """The models on offer, in OpenAI's shape and in the guide's."""

    def __init__(self, pipeline: Pipeline, models: Callable[[], OfferedModels]) -> None:
        self._pipeline = pipeline
        self._models = models

    async def openai(self, exchange: HttpExchange) -> Page:
        """`GET /v1/models`."""
        self._pipeline.runtime.identify(exchange.secret)
        data = [
            {"id": price.id, "object": "model", "created": 0, "owned_by": provider}
            for provider, price in self._models()
        ]
        return Page(msgspec.json.encode({"object": "list", "data": data}))

    async def guide(self, exchange: HttpExchange) -> Page:
        """`GET /mcp/models`."""
        self._pipeline.runtime.identify(exchange.secret)
        models = [
            {
                "id": price.id,
                "provider": provider,
                "pricing_per_1m_tokens": {
                    "prompt": price.prompt_usd_per_mtok,
                    "completion": price.completion_usd_per_mtok,
                    "blended": price.blended_usd_per_mtok,
                },
                "recommended_for": price.recommended_for,
            }
            for provider, price in self._models()
        ]
        return Page(_numbers.encode({"models": models}))


class IndexPage:
    """`GET /`: a plain page of links."""

    def __init__(self, version: str, links: list[tuple[str, str]]) -> None:
        rows_ = "".join(
            f'<li><a href="{html.escape(path)}"><code>{html.escape(path)}</code></a> {html.escape(what)}</li>'
            for path, what in links
        )
        self._body = (
            "<!doctype html><html lang=en><meta charset=utf-8><title>mcpmeter</title>"
            f"<h1>mcpmeter {html.escape(version)}</h1>"
            "<p>The meter on MCP servers and on the LLM calls behind them. This service is running.</p>"
            f"<ul>{rows_}</ul>"
            "<p>Point an OpenAI SDK at <code>/v1</code> of this address, an MCP client at <code>/mcp</code>, "
            "and Prometheus at <code>/metrics</code>.</p></html>"
        ).encode()

    async def __call__(self, exchange: HttpExchange) -> Page:
        policy = (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'")
        return Page(self._body, "text/html; charset=utf-8", headers=(policy, (b"x-content-type-options", b"nosniff")))
