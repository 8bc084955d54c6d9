"""The tools: `chat` runs the same pipeline as every HTTP route; the others only read."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import anyio
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel, Field

from mcpmeter.errors import InvalidRequest, MeterError, ServiceFault, SetupError
from mcpmeter.http.exchange import secret_of
from mcpmeter.instrument.operation import Operation, current_operation
from mcpmeter.ledger.queries.selection import Grouping
from mcpmeter.mcp_server.schemas import (
    ChatMessage,
    ChatResponse,
    Cost,
    CostEstimate,
    ModelInfo,
    ModelList,
    TokenUsage,
    UsageSummary,
)
from mcpmeter.mcp_server.tool_exchange import ResponseText, ToolExchange, clean
from mcpmeter.meter import new_call_id
from mcpmeter.pricing import PriceBook, nanousd_to_usd, plain_usd
from mcpmeter.records import Settlement, Usage
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline
from mcpmeter.usage import Span, UsageQuery, UsageReport, span_of
from mcpmeter.usage import time_zone as named_zone
from mcpmeter.usage.periods import unix_ns

log = logging.getLogger("mcpmeter")

MAX_TOKENS: Final = 10**12
MAX_ROWS: Final = 1000

QueryUsage = Callable[[UsageQuery], Awaitable[UsageReport]]
"""Queries the ledger, off the event loop."""

ToolContext = Context[Any, Any]


class Tools:
    """The tools of the server. A refusal is a result with `isError`, its message and an id."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        service: EndpointConfig,
        list_models: Callable[[], list[ModelInfo]],
        price_book: Callable[[], PriceBook],
        usage_report: QueryUsage,
    ) -> None:
        self._pipeline = pipeline
        self._service = service
        self._models = list_models
        self._price_book = price_book
        self._query_usage = usage_report

    async def chat(
        self,
        ctx: ToolContext,
        *,
        messages: Annotated[list[ChatMessage], Field(description="The chat so far, oldest first.")],
        model: Annotated[
            str | None, Field(description="A name from list_models; by default the relay's default model.")
        ] = None,
        max_tokens: Annotated[int | None, Field(description="Maximum completion tokens.", ge=1)] = None,
        temperature: Annotated[float | None, Field(description="0 to 2; lower is more predictable.")] = None,
        stream: Annotated[
            bool, Field(description="Report progress with each part of the text; otherwise only the whole text.")
        ] = True,
    ) -> Annotated[CallToolResult, ChatResponse]:
        """Ask a language model. The call is metered, priced and settled like any other of the relay."""
        body = {
            "model": model,
            "messages": [message.model_dump(exclude_unset=True) for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": stream,
        }
        operation = current_operation()
        exchange = ToolExchange(
            json.dumps({name: value for name, value in body.items() if value is not None}).encode(),
            secret=_secret(ctx),
            parent_id=operation.call_id if operation else "",
            trace_id=operation.trace_id if operation else "",
            on_text=_Progress(ctx).report,
        )
        if operation is not None:
            operation.on_disconnect(exchange.disconnect)
        settlement = await self._run(exchange)
        return _chat_result(exchange.response, settlement, operation)

    async def _run(self, exchange: ToolExchange) -> Settlement:
        """Run the pipeline in its own task, so that a cancelled tool call still settles, as partial."""
        task = asyncio.create_task(self._pipeline.run(exchange, self._service))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            exchange.disconnect()
            # anyio cancels every further await; only its own shield prevents that.
            with anyio.CancelScope(shield=True):
                await asyncio.wait((task,))
            if not task.cancelled() and (fault := task.exception()) is not None:
                log.error("a cancelled chat call could not be settled (%s)", type(fault).__name__)
            raise

    async def list_models(self, ctx: ToolContext) -> Annotated[CallToolResult, ModelList]:
        """List the available models, their prices per million tokens and their strengths."""
        try:
            self._team(ctx)
        except MeterError as error:
            return _refused(error)
        return _result(ModelList(models=self._models()))

    async def estimate_cost(
        self,
        ctx: ToolContext,
        *,
        model: Annotated[str, Field(description="A name from list_models.", min_length=1, max_length=256)],
        prompt_tokens: Annotated[int, Field(description="Tokens of the prompt.", ge=0, le=MAX_TOKENS)],
        completion_tokens: Annotated[int, Field(description="Tokens of the response.", ge=0, le=MAX_TOKENS)],
    ) -> Annotated[CallToolResult, CostEstimate]:
        """Estimate the cost of a call at current prices. A model without a known price is unpriced, never free."""
        try:
            self._team(ctx)
            routed = self._pipeline.runtime.plan(model, "chat").first
        except MeterError as error:
            return _refused(error)
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, source="estimated")
        provider = routed.upstream.provider.name
        charge = self._price_book().charge(provider, routed.model, usage, time.time_ns())
        priced = charge.source != "unpriced"
        estimate = CostEstimate(
            model=clean(routed.model),
            provider=provider,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            priced=priced,
            usd=_usd(charge.nanousd) if priced else None,
            price_list=charge.price_list,
        )
        return _result(estimate)

    async def usage_report(
        self,
        ctx: ToolContext,
        *,
        by: Annotated[Grouping | list[Grouping], Field(description="One or several groupings.")] = "model",
        since: Annotated[
            datetime | None, Field(description="Start (ISO 8601, UTC by default); by default the start of this month.")
        ] = None,
        until: Annotated[datetime | None, Field(description="End; by default now.")] = None,
        month: Annotated[str | None, Field(description="A month such as 2026-11, instead of since and until.")] = None,
        time_zone: Annotated[
            str, Field(description="The time zone of days and months, such as Europe/Berlin.")
        ] = "UTC",
    ) -> Annotated[CallToolResult, UsageSummary]:
        """Report usage and cost from the ledger: of the caller's team, or of all teams if no keys exist."""
        try:
            team = self._team(ctx)
            groupings = (by,) if isinstance(by, str) else tuple(dict.fromkeys(by))
            span = _span(since, until, month, time_zone)
            query = UsageQuery(by=groupings, span=span, zone=time_zone, team=team, limit=MAX_ROWS)
            report = await self._report(query)
        except MeterError as error:
            return _refused(error)
        return _result(UsageSummary.of(report))

    async def _report(self, query: UsageQuery) -> UsageReport:
        try:
            return await self._query_usage(query)
        except SetupError as fault:
            # Its message names files of the server, which a client must not learn.
            log.error("usage_report cannot read the ledger: %s", fault)
            raise ServiceFault("The ledger cannot be read now.", hint="The reason is in the service's log.") from None

    def _team(self, ctx: ToolContext) -> str | None:
        """The caller's team; None for all teams: for an admin, and for every caller if no keys exist."""
        runtime = self._pipeline.runtime
        caller = runtime.identify(_secret(ctx))
        return None if caller.is_admin else caller.team


class _Progress:
    """Reports each part of the text. Progress is the number of characters: the protocol requires it to increase."""

    def __init__(self, ctx: ToolContext) -> None:
        self._ctx = ctx
        self._characters = 0

    async def report(self, text: str) -> None:
        self._characters += len(text)
        await self._ctx.report_progress(self._characters, None, text)


def _secret(ctx: ToolContext) -> str | None:
    request = ctx.request_context.request
    return secret_of(dict(request.scope["headers"])) if request is not None else None


def _chat_result(response: ResponseText, settlement: Settlement, operation: Operation | None) -> CallToolResult:
    text = response.finish()
    if settlement.error_type:
        if operation is not None:
            operation.blame(settlement.error_type, settlement.error_side)
        message = response.error_message or f"The call failed: {settlement.error_id or settlement.error_type}."
        return _failed(message, settlement.call.id)
    usage, charge = settlement.usage or Usage(), settlement.charge
    priced = charge is not None and charge.source != "unpriced"
    return _result(
        ChatResponse(
            content=text,
            model=clean(settlement.response_model or (settlement.call.llm.model if settlement.call.llm else "")),
            finish_reason=clean(settlement.finish_reason),
            usage=TokenUsage(
                prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens, source=usage.source
            ),
            cost=Cost(
                usd=_usd(charge.nanousd) if charge is not None and priced else None,
                source=charge.source if charge is not None else "unpriced",
            ),
            call_id=settlement.call.id,
        )
    )


def _result(value: BaseModel) -> CallToolResult:
    """A structured result, repeated as text for clients that read only text."""
    return CallToolResult(
        content=[TextContent(type="text", text=value.model_dump_json())],
        structured_content=value.model_dump(mode="json"),
    )


def _refused(error: MeterError) -> CallToolResult:
    operation = current_operation()
    if operation is not None:
        operation.blame(error.error_type, error.side)
    return _failed(str(error), operation.call_id if operation is not None else new_call_id())


def _failed(message: str, call_id: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=f"{message} ({call_id})")], is_error=True)


def _usd(nanousd: int) -> str:
    return plain_usd(nanousd_to_usd(nanousd))


def _span(since: datetime | None, until: datetime | None, month: str | None, zone: str) -> Span:
    if month:
        return span_of(
            month=month,
            since=since.isoformat() if since else "",
            until=until.isoformat() if until else "",
            zone=named_zone(zone),
            now_ns=time.time_ns(),
        )
    now = datetime.now(named_zone(zone))
    start = _aware(since) if since else now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = _aware(until) if until else now
    if start >= end:
        raise InvalidRequest("'since' is not before 'until'.", hint="Give a 'since' in the past and a later 'until'.")
    return Span(unix_ns(start), unix_ns(end))


def _aware(instant: datetime) -> datetime:
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant
