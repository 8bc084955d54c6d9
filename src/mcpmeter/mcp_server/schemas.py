"""What the tools take and give, as the schemas that clients and models read. Money is decimal text, exact."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mcpmeter.pricing import ModelPrice, plain_usd
from mcpmeter.usage import UsageReport
from mcpmeter.usage import UsageRow as Reported


class ChatMessage(BaseModel):
    """A message of a chat, as OpenAI's chat completions take it; fields that are not named here are passed on."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(description="system, developer, user, assistant or tool.")]
    content: Annotated[
        str | list[dict[str, Any]] | None, Field(description="The text, or a list of content parts.")
    ] = None


class TokenUsage(BaseModel):
    """Tokens of one call."""

    prompt_tokens: Annotated[int, Field(description="Tokens of the prompt.")]
    completion_tokens: Annotated[int, Field(description="Tokens of the answer.")]
    source: Annotated[
        Literal["reported", "estimated", "partial", "missing"],
        Field(description="Whether the provider reported these numbers or the relay estimated them."),
    ]


class Cost(BaseModel):
    """Cost of one call."""

    usd: Annotated[str | None, Field(description="US dollars as decimal text, exact; null when no price is known.")]
    source: Annotated[
        Literal["reported", "listed", "unpriced"],
        Field(description="reported by the provider, from a dated price list, or unpriced: not known, not free."),
    ]


class ChatAnswer(BaseModel):
    """A model's answer, with what it used and cost."""

    content: Annotated[str, Field(description="The answer's text.")]
    model: Annotated[str, Field(description="The model that answered, as its provider names it.")]
    finish_reason: Annotated[str, Field(description="Why the answer ended: stop, length, …")]
    usage: TokenUsage
    cost: Cost
    call_id: Annotated[str, Field(description="The call's id in the ledger.")]


class ModelInfo(BaseModel):
    """A model on offer. Prices are US dollars per million tokens as decimal text; null: no price is known."""

    id: Annotated[str, Field(description="The name to call it by.")]
    provider: Annotated[str, Field(description="Who serves it.")]
    prompt_usd_per_mtok: Annotated[str | None, Field(description="US dollars per million prompt tokens.")]
    completion_usd_per_mtok: Annotated[str | None, Field(description="US dollars per million completion tokens.")]
    recommended_for: Annotated[str, Field(description="What it is good at.")]

    @classmethod
    def of(cls, provider: str, price: ModelPrice) -> ModelInfo:
        """A model as the price book knows it."""
        prompt, completion = price.prompt_usd_per_mtok, price.completion_usd_per_mtok
        return cls(
            id=price.id,
            provider=provider,
            prompt_usd_per_mtok=None if prompt is None else plain_usd(prompt),
            completion_usd_per_mtok=None if completion is None else plain_usd(completion),
            recommended_for=price.recommended_for,
        )


class ModelList(BaseModel):
    """The models on offer."""

    models: list[ModelInfo]


class CostEstimate(BaseModel):
    """What a call would cost by today's prices."""

    model: Annotated[str, Field(description="The model as its provider names it.")]
    provider: Annotated[str, Field(description="Who would serve it.")]
    prompt_tokens: int
    completion_tokens: int
    priced: Annotated[bool, Field(description="Whether a price is known. If not, the call is not free: nobody knows.")]
    usd: Annotated[str | None, Field(description="US dollars as decimal text, exact; null when not priced.")]
    price_list: Annotated[str, Field(description="The price list and its date; empty when not priced.")]


class UsageRow(BaseModel):
    """What one group used."""

    group: Annotated[str, Field(description="The team, model, provider, key or day; several are joined by ' / '.")]
    groups: Annotated[dict[str, str], Field(description="The same by the name of each grouping.")]
    calls: Annotated[int, Field(description="Settled calls.")]
    open_calls: Annotated[int, Field(description="Calls that are not settled yet; they are in no sum.")]
    prompt_tokens: int
    completion_tokens: int
    usd: Annotated[str, Field(description="Cost of the priced calls in US dollars as decimal text, exact.")]
    unpriced_calls: Annotated[int, Field(description="Calls that no price is known for; their cost is not in usd.")]
    fallback_usd: Annotated[str, Field(description="What budgets count the unpriced calls as; not in usd.")]
    estimated_calls: Annotated[int, Field(description="Calls whose tokens the relay estimated.")]
    partial_calls: Annotated[int, Field(description="Calls that broke off; estimated as far as they were delivered.")]
    missing_calls: Annotated[int, Field(description="Calls whose tokens nobody knows.")]

    @classmethod
    def of(cls, by: Sequence[str], row: Reported) -> UsageRow:
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
            fallback_usd=row.fallback_cost_usd,
            estimated_calls=row.estimated_calls,
            partial_calls=row.partial_calls,
            missing_calls=row.missing_calls,
        )


class UsageSummary(BaseModel):
    """What was used in a time, from the ledger."""

    by: str
    since: datetime
    until: datetime
    time_zone: Annotated[str, Field(description="Whose days are meant.")]
    team: Annotated[str | None, Field(description="The team it is of; null: all of them.")]
    rows: list[UsageRow]
    total_usd: Annotated[str, Field(description="Sum of usd over all groups.")]
    left_out: Annotated[int, Field(description="Groups that did not fit; total_usd holds them.")]

    @classmethod
    def of(cls, report: UsageReport) -> UsageSummary:
        """The report, as the tool answers it."""
        return cls(
            by=" / ".join(report.by),
            since=datetime.fromisoformat(report.since or ""),
            until=datetime.fromisoformat(report.until or ""),
            time_zone=report.time_zone,
            team=report.team,
            rows=[UsageRow.of(report.by, row) for row in report.rows],
            total_usd=report.total.cost_usd,
            left_out=report.left_out,
        )
