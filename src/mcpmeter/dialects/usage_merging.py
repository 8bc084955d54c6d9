"""Usage that a stream reports more than once."""

from __future__ import annotations

from collections.abc import Iterable

from mcpmeter.items import ITEMS
from mcpmeter.records import STANDARD, Usage, UsageItem, plain_items


def merged(before: Usage, now: Usage) -> Usage:
    """The greater counts of two reports of one call: cumulative counts do not fall, and a later zero erases none.

    Each side is taken from one report as a whole, so that its parts still add up.
    """
    if before == now:
        return now
    prompt = max(now, before, key=_prompt_rank)
    completion = max(now, before, key=_completion_rank)
    items: tuple[UsageItem, ...] = ()
    if before.items or now.items:
        items = (
            *(item for item in items_of(prompt) if _side(item) == "prompt"),
            *(item for item in items_of(completion) if _side(item) == "completion"),
            *_greatest(item for usage in (before, now) for item in usage.items if _side(item) == "beside"),
        )
    audio = sum(item.quantity for item in items if item.item.endswith("_audio"))
    return Usage(
        prompt_tokens=prompt.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        cached_read_tokens=prompt.cached_read_tokens,
        cache_write_tokens=prompt.cache_write_tokens,
        reasoning_tokens=completion.reasoning_tokens,
        audio_tokens=audio,
        source=now.source,
        items=items,
        unknown=_greatest((*before.unknown, *now.unknown)),
        conditions=before.conditions if now.conditions == STANDARD else now.conditions,
    )


def _prompt_rank(usage: Usage) -> tuple[int, ...]:
    return usage.prompt_tokens, usage.cached_read_tokens + usage.cache_write_tokens, _parts(usage, "prompt")


def _completion_rank(usage: Usage) -> tuple[int, ...]:
    return usage.completion_tokens, usage.reasoning_tokens, _parts(usage, "completion")


def _parts(usage: Usage, side: str) -> int:
    return sum(_side(item) == side for item in usage.items)


def items_of(usage: Usage) -> tuple[UsageItem, ...]:
    """The disjoint items of a usage, also of one whose counts say it all."""
    return usage.items or plain_items(usage)


def _side(item: UsageItem) -> str:
    known = ITEMS.get(item.item)
    return known.side if known else "beside"


def _greatest(items: Iterable[UsageItem]) -> tuple[UsageItem, ...]:
    """The greatest quantity of each item."""
    found: dict[tuple[str, str], UsageItem] = {}
    for item in items:
        key = (item.item, item.model)
        if key not in found or item.quantity > found[key].quantity:
            found[key] = item
    return tuple(found.values())
