"""One call as commands and the API show it: its row, and its charge line by line."""

from __future__ import annotations

from typing import Any

import msgspec

from mcpmeter.items import ITEMS, Component, component_of
from mcpmeter.ledger.charges import KeptCharge
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.totals import find_call, find_charge
from mcpmeter.money import usd_text
from mcpmeter.records import ChargeLine, LedgerRow, UsageItem
from mcpmeter.usage.periods import utc_text

_SAME: tuple[str, ...] = (
    "id", "state", "endpoint", "method", "team", "project", "key_id", "parent_id", "trace_id", "provider", "model",
    "response_model", "operation", "stream", "status", "outcome", "error_type", "error_id", "finish_reason",
    "prompt_tokens", "completion_tokens", "cached_read_tokens", "cache_write_tokens", "reasoning_tokens",
    "audio_tokens", "token_source", "cost_source", "price_list", "upstream_status", "upstream_request_id",
)  # fmt: skip


class ShownLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a charge."""

    item: str
    component: Component
    quantity: int
    unit: str
    """Empty for an item that no table knows."""
    unit_price: str
    cost_usd: str | None
    """Null: no price is known, which is not free."""
    price_list: str
    source: str
    model: str
    """Of the line, if it is billed at another model than the call's."""


class ShownCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of the ledger. The lines add up to its cost; a call of plain prompt and completion has none."""

    id: str
    state: str
    started_at: str | None
    ended_at: str | None
    duration_ms: int
    endpoint: str
    method: str
    team: str
    project: str
    key_id: str
    parent_id: str
    trace_id: str
    provider: str
    model: str
    response_model: str
    operation: str
    stream: bool
    status: str
    outcome: str
    error_type: str
    error_id: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    audio_tokens: int
    token_source: str
    cost_usd: str | None
    """Null for an unpriced or open call."""
    cost_source: str
    price_list: str
    reported_cost_usd: str | None
    """What the provider reported, if it did."""
    fallback_cost_usd: str
    """What budgets count for it, or for its unpriced items, at the fallback price; not a cost."""
    conditions: dict[str, str | bool]
    """What its price depends on beside model, date and size: tier, speed, region, completion_window, batch."""
    lines: list[ShownLine]
    unpriced_items: list[ShownLine]
    """What the provider reported and no table knows."""
    upstream_status: int
    upstream_request_id: str


def call_view(ledger: Location, call_id: str) -> ShownCall | None:
    """The call with this id; None if the ledger has none, or has only its sums. Raises `LedgerNotUsable`."""
    row = find_call(ledger, call_id)
    return None if row is None else _shown(row, find_charge(ledger, call_id) or KeptCharge())


def _shown(row: LedgerRow, charge: KeptCharge) -> ShownCall:
    same: dict[str, Any] = {name: getattr(row, name) for name in _SAME}
    is_priced = row.cost_source in ("reported", "listed")
    reported = row.reported_cost_nanousd
    return ShownCall(
        **same,
        started_at=utc_text(row.started_at_ns),
        ended_at=utc_text(row.ended_at_ns),
        duration_ms=row.duration_ns // 1_000_000,
        cost_usd=usd_text(row.cost_nanousd) if is_priced else None,
        reported_cost_usd=None if reported is None else usd_text(reported),
        fallback_cost_usd=usd_text(row.fallback_cost_nanousd + charge.fallback_nanousd),
        conditions={name: value for name, value in msgspec.structs.asdict(charge.conditions).items() if value},
        lines=[_line(line) for line in charge.lines],
        unpriced_items=[_line(_unpriced(item)) for item in charge.unknown],
    )


def _unpriced(item: UsageItem) -> ChargeLine:
    return ChargeLine(item.item, item.quantity, None, model=item.model)


def _line(line: ChargeLine) -> ShownLine:
    known = ITEMS.get(line.item)
    return ShownLine(
        item=line.item,
        component=component_of(line.item),
        quantity=line.quantity,
        unit=known.unit if known else "",
        unit_price=line.unit_price,
        cost_usd=None if line.nanousd is None else usd_text(line.nanousd),
        price_list=line.price_list,
        source=line.source,
        model=line.model,
    )
