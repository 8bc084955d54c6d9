"""The schemas of the tools' arguments and results. Money is exact decimal text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mcpmeter.pricing import ModelPrice, plain_usd
from mcpmeter.usage import UsageReport, UsageRow


class ChatMessage(BaseModel):
    """A message of OpenAI's chat completions; other fields are passed on."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(description="system, developer, user, assistant or tool.")]
    content: Annotated[
        str | list[dict[str, Any]] | None, Field(description="The text, or a list of content parts.")
    ] = None


class TokenUsage(BaseModel):
    """Tokens of one call."""

    prompt_tokens: Annotated[int, Field(description="Tokens of the prompt.")]
    completion_tokens: Annotated[int, Field(description="Tokens of the response.")]
    source: Annotated[
        Literal["reported", "estimated", "partial", "missing"],
        Field(description="Whether the provider reported these numbers or the relay estimated them."),
    ]


class Cost(BaseModel):
    """Cost of one call."""

    usd: Annotated[str | None, Field(description="US dollars as exact decimal text; null when no price is known.")]
    source: Annotated[
        Literal["reported", "listed", "unpriced"],
        Field(description="reported by the provider, from a dated price list, or unpriced: unknown, not free."),
    ]


class ChatResponse(BaseModel):
    """A model's response with its usage and cost."""

    content: Annotated[str, Field(description="The text of the response.")]
    model: Annotated[str, Field(description="The model of the response, as its provider names it.")]
    finish_reason: Annotated[str, Field(description="Why the response ended: stop, length, …")]
    usage: TokenUsage
    cost: Cost
    call_id: Annotated[str, Field(description="The call's id in the ledger.")]


class ModelInfo(BaseModel):
    """An available model. Prices are US dollars per million tokens as decimal text; null: no price is known."""

    id: Annotated[str, Field(description="The name to use in calls.")]
    provider: Annotated[str, Field(description="The provider that serves it.")]
    prompt_usd_per_mtok: Annotated[str | None, Field(description="US dollars per million prompt tokens.")]
    completion_usd_per_mtok: Annotated[str | None, Field(description="US dollars per million completion tokens.")]
    recommended_for: Annotated[str, Field(description="What it is good at.")]

    @classmethod
    def of(cls, provider: str, price: ModelPrice) -> ModelInfo:
        """A model from the price book."""
        prompt, completion = price.prompt_usd_per_mtok, price.completion_usd_per_mtok
        return cls(
            id=price.id,
            provider=provider,
            prompt_usd_per_mtok=None if prompt is None else plain_usd(prompt),
            completion_usd_per_mtok=None if completion is None else plain_usd(completion),
            recommended_for=price.recommended_for,
        )


class ModelList(BaseModel):
    """The available models."""

    models: list[ModelInfo]


class CostEstimate(BaseModel):
    """The cost of a call at current prices."""

    model: Annotated[str, Field(description="The model as its provider names it.")]
    provider: Annotated[str, Field(description="The provider that would serve it.")]
    prompt_tokens: int
    completion_tokens: int
    priced: Annotated[bool, Field(description="Whether a price is known. If not, the cost is unknown, not zero.")]
    usd: Annotated[str | None, Field(description="US dollars as exact decimal text; null when not priced.")]
    price_list: Annotated[str, Field(description="The price list and its date; empty when not priced.")]


class UsageGroup(BaseModel):
    """The usage of one group."""

    group: Annotated[str, Field(description="The team, model, provider, key or day; several are joined with ' / '.")]
    groups: Annotated[dict[str, str], Field(description="The group's value for each grouping.")]
    calls: Annotated[int, Field(description="Settled calls.")]
    open_calls: Annotated[int, Field(description="Calls that are not settled yet; no sum includes them.")]
    prompt_tokens: int
    completion_tokens: int
    usd: Annotated[str, Field(description="Cost of the priced calls in US dollars as exact decimal text.")]
    unpriced_calls: Annotated[int, Field(description="Calls without a known price; usd excludes them.")]
    unpriced_items: Annotated[int, Field(description="Items without a known price, in calls with one and without.")]
    fallback_usd: Annotated[
        str, Field(description="The amount that budgets count for unpriced calls and items; usd excludes it.")
    ]
    estimated_calls: Annotated[int, Field(description="Calls whose tokens the relay estimated.")]
    partial_calls: Annotated[int, Field(description="Interrupted calls; estimated from the delivered part.")]
    missing_calls: Annotated[int, Field(description="Calls whose tokens are unknown.")]

    @classmethod
    def of(cls, by: Sequence[str], row: UsageRow) -> UsageGroup:
        """A row of the report."""
        groups = {name: str(getattr(row, name)) for name in by}
        return cls(
            group=" / ".join(groups.values()),
            groups=groups,
            calls=row.calls,
            open_calls=row.open_calls,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            usd=row.cost_usd,
            unpriced_calls=row.unpriced_calls,
            unpriced_items=row.unpriced_items,
            fallback_usd=row.fallback_cost_usd,
            estimated_calls=row.estimated_calls,
            partial_calls=row.partial_calls,
            missing_calls=row.missing_calls,
        )


class UsageSummary(BaseModel):
    """The usage in a period, from the ledger."""

    by: str
    since: datetime
    until: datetime
    time_zone: Annotated[str, Field(description="The time zone of days and months.")]
    team: Annotated[str | None, Field(description="The team of the report; null: all teams.")]
    rows: list[UsageGroup]
    total_usd: Annotated[str, Field(description="Sum of usd over all groups.")]
    left_out: Annotated[int, Field(description="Omitted groups; total_usd includes them.")]

    @classmethod
    def of(cls, report: UsageReport) -> UsageSummary:
        """The report as a tool result."""
        return cls(
            by=" / ".join(report.by),
            since=datetime.fromisoformat(report.since or ""),
            until=datetime.fromisoformat(report.until or ""),
            time_zone=report.time_zone,
            team=report.team,
            rows=[UsageGroup.of(report.by, row) for row in report.rows],
            total_usd=report.total.cost_usd,
            left_out=report.left_out,
        )
