"""Joins what a response reports in several places to one usage: the usage object, the output, headers, the request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from mcpmeter.dialects.base import ResponseInfo
from mcpmeter.dialects.usage_fields import MAX_UNKNOWN, MORE
from mcpmeter.dialects.usage_merging import items_of
from mcpmeter.items import ITEMS
from mcpmeter.records import STANDARD, Conditions, TokenSource, Usage, UsageItem

CHEAPER: Final = frozenset({"flex", "scale", "provisioned"})
"""Tiers below the standard price: a client's word alone lowers no bill, since the provider may not have served them."""


def joined(usage: Usage, info: ResponseInfo, requested: Conditions, in_headers: Conditions) -> Usage:
    """The usage with what else the response reports (`info`), and the conditions of the request and of the headers."""
    return replace(
        usage,
        items=_items(usage, info.items),
        unknown=_bounded((*usage.unknown, *_new(info.unknown, usage.unknown))),
        conditions=_conditions(usage, info, requested, in_headers),
    )


def with_completion(counted: Usage, completion_tokens: int, source: TokenSource) -> Usage:
    """A usage that a stream did not complete, with the completion that was delivered.

    The prompt keeps its parts and the conditions of its price.
    """
    if completion_tokens == counted.completion_tokens:
        return replace(counted, source=source)
    items = counted.items
    if items:
        kept = tuple(item for item in items if item.item not in ITEMS or ITEMS[item.item].side != "completion")
        items = (*kept, UsageItem("completion", completion_tokens)) if completion_tokens else kept
    return replace(
        counted,
        completion_tokens=completion_tokens,
        reasoning_tokens=min(counted.reasoning_tokens, completion_tokens),
        items=items,
        source=source,
    )


def _items(usage: Usage, more: tuple[UsageItem, ...]) -> tuple[UsageItem, ...]:
    """All items. What the usage object reports is not counted again because the output shows it too."""
    if not more:
        return usage.items
    items = items_of(usage)
    return (*items, *_new(more, items))


def _new(more: Iterable[UsageItem], known: Iterable[UsageItem]) -> list[UsageItem]:
    names = {(entry.item, entry.model) for entry in known}
    return [entry for entry in more if (entry.item, entry.model) not in names]


def _bounded(unknown: tuple[UsageItem, ...]) -> tuple[UsageItem, ...]:
    if len(unknown) <= MAX_UNKNOWN:
        return unknown
    kept = [entry for entry in unknown if entry.item != MORE][:MAX_UNKNOWN]
    return (*kept, UsageItem(MORE, len(unknown) - len(kept)))


def _conditions(usage: Usage, info: ResponseInfo, requested: Conditions, in_headers: Conditions) -> Conditions:
    """What the response reports, in its body and then in its headers. The completion window and batches are only in the
    request; so is the tier of a response that reports none, or broke off before."""
    found = [info.conditions, usage.conditions, in_headers]
    tiers = [one.tier for one in found]
    if usage.source != "reported":
        found.append(requested)
    if (usage.source != "reported" or info.lacks_tier) and requested.tier not in CHEAPER:
        tiers.append(requested.tier)
    joint = Conditions(
        tier=_first(tiers),
        speed=_first(one.speed for one in found),
        region=_first(one.region for one in found),
        completion_window=_first(one.completion_window for one in (*found, requested)),
        batch=requested.batch or any(one.batch for one in found),
    )
    return STANDARD if joint == STANDARD else joint


def _first(values: Iterable[str]) -> str:
    return next(filter(None, values), "")
