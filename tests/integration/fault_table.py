"""A row of the fault table, and how it is tried: the real service, the fault proxy, the simulator behind it.

A twin of proxy and simulator is asked the same directly, so that what a client got is compared byte for byte.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
import msgspec
import pytest
from pydantic import SecretStr
from tests.integration.speakers import ANTHROPIC, GEMINI, OPENAI, Speaker

from mcpmeter.config import ProviderSettings
from mcpmeter.ledger.rows import ROW_COLUMNS, SELECT_ROWS_SQL
from mcpmeter.ledger.sqlite.connection import open_for_reading
from mcpmeter.records import LedgerRow
from mcpmeter.simulator import FaultProxy, Simulator, WireFault

SEED = 1
UPSTREAM_KEY = "sk-upstream-credential-0123456789"
REFUSE = "refuse"
"""The one fault of a connection that is made by not listening."""

BROKE, TIMED_OUT = ("upstream_error", "upstream"), ("upstream_timeout", "upstream")
CALLER, LIMITED = ("validation_error", "client"), ("upstream_rate_limited", "upstream")
UNREACHABLE = ("upstream_unreachable", "upstream")
_numbers = itertools.count(1)

Moved = Mapping[str, Mapping[tuple[str, ...], float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault, and all that follows from it."""

    speaker: Speaker
    fault: str = ""
    """Of the simulator."""
    wire: str = ""
    """Of the connection."""

    # The client
    sees: Literal["all", "ours", "cut"] = "all"
    """Every byte of the provider's; an error of ours alone; its events up to the fault, then an error of ours."""
    status: int = 200
    delivered: bool = True
    """Whether anything went to the client before a stream was cut."""

    # The ledger
    outcome: str = "ok"
    error: str = ""
    """The error's id, which is told where the client sees one of ours."""
    tokens: str = "reported"
    """Where the tokens come from; empty where the provider cannot have worked for the call."""
    upstream_status: int = 200

    # The counters: requests and attempts by one always, tokens and cost as the ledger has them, and
    counted: tuple[str, str] | None = None
    """mcp_errors_total, by type and side."""
    missing: str = ""
    """mcp_usage_missing_total, by reason."""
    attempt: str = "ok"
    """mcp_upstream_attempts_total, by outcome."""
    empty: int = 0
    """mcp_empty_completions_total."""

    number: int = field(default_factory=lambda: next(_numbers))
    """Makes the request of each row another one, so that the twin draws the same."""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.speaker.name, self.fault, self.wire))) or "nothing"

    @property
    def model(self) -> str:
        # Nothing more is sent for a model that was limited until its time has come.
        return f"limited-{self.number}" if "429" in self.fault else self.speaker.model

    @property
    def body(self) -> dict[str, Any]:
        length = f"completion_tokens={40 + self.number}"
        return self.speaker.body(f"{self.fault},{length}" if self.fault else length, self.model)


@dataclass
class Bench:
    """What rows are tried on."""

    relay: Any
    simulator: Simulator
    proxy: FaultProxy
    twin: FaultProxy

    async def try_row(self, row: Row) -> Any:
        """Ask, and hold everything against the row; returns the ledger's row."""
        before = counters(self.relay)
        reply = await self._ask(row)
        await self.relay.until_idle()
        kept = row_of(self.relay, reply.headers["x-mcpmeter-call-id"])
        await self._check_client(row, reply, kept)
        check_ledger(row, kept)
        self._check_tokens(row, reply, kept)
        moved = {name: rose for name in before if (rose := risen(before[name], counters(self.relay)[name]))}
        check_counters(row, kept, moved)
        return kept

    async def _ask(self, row: Row) -> Any:
        if row.wire == REFUSE:
            await self.proxy.refuse()
        else:
            self.proxy.fault = WireFault.parse(row.wire)
        try:
            return await self.relay.ask(row.body, row.speaker.url(row.model))
        finally:
            if row.wire == REFUSE:
                await self.proxy.listen()

    async def _check_client(self, row: Row, reply: Any, kept: Any) -> None:
        assert reply.status == row.status, reply.body[:500]
        assert UPSTREAM_KEY not in f"{reply.headers}{reply.body[:100_000]!r}"
        assert reply.headers["x-mcpmeter-provider"] == row.speaker.provider
        assert reply.headers["x-mcpmeter-attempts"] == "1"
        if row.sees == "all":
            sent, status, headers = await self._sent(row)
            assert (plain(reply.body), reply.status) == (plain(sent), status)
            for name in ("content-type", "retry-after"):
                assert reply.headers.get(name) == headers.get(name)
            return
        told = row.speaker.last_error(reply.body) if row.sees == "cut" else row.speaker.error(reply.json)
        assert (told.code, told.call_id) == (row.error, kept.id)
        assert told.message.endswith(".")
        passed = before_the_error(reply.body) if row.sees == "cut" else b""
        if passed and "stall" not in row.name:
            sent, _, _ = await self._sent(row)
            assert sent.startswith(passed)
        assert bool(passed) == (row.sees == "cut" and row.delivered)

    def _check_tokens(self, row: Row, reply: Any, kept: Any) -> None:
        """As the provider did where it told them; near that, and never zero, where they are an estimate."""
        if row.sees == "cut" and row.delivered:
            delivered = len(row.speaker.text(reply.body)) / 4
            assert kept.completion_tokens == pytest.approx(delivered, rel=0.2, abs=3)
            assert kept.prompt_tokens > 0
        if row.outcome != "ok":
            return
        (call,) = [call for call in self.simulator.billing_log.calls() if call.request_id == kept.upstream_request_id]
        if "usage=zero" in row.fault:
            assert (kept.prompt_tokens, kept.completion_tokens, kept.cost_nanousd) == (0, 0, 0)
        elif row.tokens == "reported":
            assert (kept.prompt_tokens, kept.completion_tokens) == (call.prompt_tokens, call.completion_tokens)
        else:
            assert kept.completion_tokens == pytest.approx(call.completion_tokens, rel=0.2, abs=3)
            assert kept.prompt_tokens == pytest.approx(call.prompt_tokens, rel=0.2, abs=3)

    async def _sent(self, row: Row) -> tuple[bytes, int, Mapping[str, str]]:
        """What the provider sends a client that asks it directly, as far as it comes."""
        self.twin.fault = WireFault.parse(row.wire)
        body = json.dumps(row.body).encode()
        headers = {"authorization": f"Bearer {UPSTREAM_KEY}", "x-goog-api-key": UPSTREAM_KEY}
        received = b""
        url = self.twin.url + row.speaker.upstream_url(row.model)
        async with self.relay.http.stream("POST", url, content=body, headers=headers) as answer:
            try:
                async for piece in answer.aiter_raw():
                    received += piece
            except httpx2.TransportError:
                assert row.sees == "cut"
            if answer.headers.get("content-encoding") == "gzip":
                received = gzip.decompress(received)
            return received, answer.status_code, answer.headers


def row_of(relay: Any, call_id: str) -> LedgerRow:
    """The one row of a call, as another process would read it."""
    db = open_for_reading(relay.ledger)
    try:
        (found,) = db.execute(f"{SELECT_ROWS_SQL} WHERE id = ?", (call_id,)).fetchall()
    finally:
        db.close()
    return msgspec.convert(dict(zip(ROW_COLUMNS, found, strict=True)), LedgerRow, strict=False)


def before_the_error(body: bytes) -> bytes:
    """A stream up to the error event that we put at its end."""
    for mark in (b"event: error\n", b"data: "):
        before, found, after = body.rpartition(mark)
        if found and b"call_id" in after:
            return before
    raise AssertionError(body[-500:])


def plain(body: bytes) -> bytes:
    """Anthropic's and our own ids of requests differ from call to call."""
    start = body.find(b'"request_id":"req_')
    return body if start < 0 else body[:start] + body[start + 55 :]


def check_ledger(row: Row, kept: Any) -> None:
    assert (kept.state, kept.status, kept.outcome, kept.error_id) == (
        "settled",
        str(row.status),
        row.outcome,
        row.error,
    )
    assert (kept.endpoint, kept.provider, kept.model, kept.stream) == (
        row.speaker.endpoint,
        row.speaker.provider,
        row.model,
        row.speaker.streams,
    )
    assert (kept.token_source, kept.error_type) == (row.tokens, row.counted[0] if row.counted else "")
    assert kept.upstream_status == row.upstream_status
    if not row.tokens:
        assert (kept.prompt_tokens, kept.completion_tokens, kept.cost_nanousd) == (0, 0, 0)


def check_counters(row: Row, kept: Any, moved: Moved) -> None:
    """These, by so much, and no others."""
    expected = {
        "mcp_requests_total": {(row.speaker.endpoint, "POST", str(row.status)): 1},
        "mcp_errors_total": {row.counted: 1} if row.counted else {},
        "mcp_usage_missing_total": {(row.speaker.provider, row.missing): 1} if row.missing else {},
        "mcp_upstream_attempts_total": {(row.speaker.provider, row.attempt): 1},
        "mcp_empty_completions_total": {(row.model,): 1} if row.empty else {},
    }
    for name, rose in expected.items():
        assert dict(moved.get(name, {})) == rose, name
    tokens = moved.get("mcp_tokens_total", {})
    assert sum(tokens.values()) == kept.prompt_tokens + kept.completion_tokens
    assert {row.tokens} >= {source for labels in tokens for source in labels if source in SOURCES}
    assert sum(moved.get("mcp_cost_usd_total", {}).values()) == kept.cost_nanousd
    reasons = sum(moved.get("mcp_finish_reasons_total", {}).values())
    assert reasons == (1 if kept.finish_reason else 0)
    assert moved.keys() <= {*expected, "mcp_tokens_total", "mcp_cost_usd_total", "mcp_finish_reasons_total"}


SOURCES = {"reported", "estimated", "partial"}


def counters(relay: Any) -> Moved:
    """Every counter's children, straight from the recorder."""
    families = relay.service.recorder.families
    return {
        name: {labels: cell.value for labels, cell in family.cells.items()}
        for name, family in families.items()
        if family.metric.type == "counter"
    }


def risen(before: Mapping[tuple[str, ...], float], after: Mapping[tuple[str, ...], float]) -> dict[Any, float]:
    return {labels: value - before.get(labels, 0) for labels, value in after.items() if value != before.get(labels, 0)}


@asynccontextmanager
async def bench(start_relay: Any, rows: Iterable[Row], **changes: Any) -> AsyncIterator[Bench]:
    """The service with each vendor's own provider, all behind one fault proxy; and the twin."""
    key = SecretStr(UPSTREAM_KEY)
    async with (
        Simulator(seed=SEED, key=UPSTREAM_KEY) as simulator,
        Simulator(seed=SEED, key=UPSTREAM_KEY) as other,
        FaultProxy(simulator.url) as proxy,
        FaultProxy(other.url) as twin,
    ):
        bases = {OPENAI: "/v1", ANTHROPIC: "/v1", GEMINI: "/v1beta"}
        relay = await start_relay(upstream=proxy.base_url, **changes)
        providers = tuple(
            ProviderSettings(name=name, base_url=proxy.url + base, api_key=key, models=_models(name, rows))
            for name, base in bases.items()
        )
        settings = relay.settings.model_copy(update={"providers": providers})
        relay.service._load = lambda: settings
        await relay.service.reload()
        yield Bench(relay, simulator, proxy, twin)


def _models(provider: str, rows: Iterable[Row]) -> tuple[str, ...]:
    """Announced, so that each is a label's value of its own."""
    return tuple(sorted({row.model for row in rows if row.speaker.provider == provider}))


def table(rows: Any) -> Any:
    """A test for each row."""
    return pytest.mark.parametrize("row", list(rows), ids=lambda row: row.name)
