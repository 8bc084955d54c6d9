"""Joins what a response reports in several places to one usage: the usage object, the output, headers, the request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from mcpmeter.dialects.base import ResponseInfo
from mcpmeter.records import STANDARD, Conditions, Usage, UsageItem

MAX_UNKNOWN: Final = 32
MORE: Final = "more"
"""The unknown item that stands for all beyond `MAX_UNKNOWN`."""


def joined(usage: Usage, info: ResponseInfo, requested: Conditions, in_headers: Conditions) -> Usage:
    """The usage with what else the response reports (`info`), and the conditions of the request and of the headers."""
    return replace(
        usage,
        items=_items(usage, info.items),
        unknown=_bounded((*usage.unknown, *_new(info.unknown, usage.unknown))),
        conditions=_conditions(usage, info.conditions, requested, in_headers),
    )


def _items(usage: Usage, more: tuple[UsageItem, ...]) -> tuple[UsageItem, ...]:
    """All items. What the usage object reports is not counted again because the output shows it too."""
    if not more:
        return usage.items
    items = usage.items or _parts_of(usage)
    return (*items, *_new(more, items))


def _parts_of(usage: Usage) -> tuple[UsageItem, ...]:
    """The items of a usage whose counts say it all."""
    counts = {
        "prompt": usage.prompt_tokens - usage.cached_read_tokens - usage.cache_write_tokens,
        "cached_read": usage.cached_read_tokens,
        "cache_write": usage.cache_write_tokens,
        "completion": usage.completion_tokens - usage.reasoning_tokens,
        "reasoning": usage.reasoning_tokens,
    }
    return tuple(UsageItem(item, quantity) for item, quantity in counts.items() if quantity > 0)


def _new(more: Iterable[UsageItem], known: Iterable[UsageItem]) -> list[UsageItem]:
    names = {(entry.item, entry.model) for entry in known}
    return [entry for entry in more if (entry.item, entry.model) not in names]


def _bounded(unknown: tuple[UsageItem, ...]) -> tuple[UsageItem, ...]:
    if len(unknown) <= MAX_UNKNOWN:
        return unknown
    kept = [entry for entry in unknown if entry.item != MORE][:MAX_UNKNOWN]
    return (*kept, UsageItem(MORE, len(unknown) - len(kept)))


def _conditions(usage: Usage, served: Conditions, requested: Conditions, in_headers: Conditions) -> Conditions:
    """What the response reports, in its body and then in its headers. The completion window and batches are only in the
    request; so is the tier of a response that broke off before it reported one."""
    found = [served, usage.conditions, in_headers]
    if usage.source != "reported":
        found.append(requested)
    joint = Conditions(
        tier=_first(one.tier for one in found),
        speed=_first(one.speed for one in found),
        region=_first(one.region for one in found),
        completion_window=_first(one.completion_window for one in (*found, requested)),
        batch=requested.batch or any(one.batch for one in found),
    )
    return STANDARD if joint == STANDARD else joint


def _first(values: Iterable[str]) -> str:
    return next(filter(None, values), "")
