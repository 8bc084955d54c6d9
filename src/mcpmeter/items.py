"""What providers bill by: the names of billable items, the unit of each, and the part of the cost that it belongs to.

A call's items are disjoint: a cached token is a `cached_read` and not also a `prompt`. Tokens of the prompt's items add
up to its prompt tokens, those of the completion's items to its completion tokens; units that are no tokens stand beside
them.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal, NamedTuple

Side = Literal["prompt", "completion", "beside"]
"""The total that an item's tokens are counted in; `beside` for units that are no tokens."""

Component = Literal["prompt", "completion", "cached_read", "cache_write", "tool_fee", "other"]
"""The value of the label `component` of `mcp_cost_component_usd_total`."""


class Item(NamedTuple):
    """A billable item."""

    side: Side
    component: Component
    unit: str = "token"
    like: str = ""
    """The item whose price applies where a list has none for this one; empty for none."""
    is_free: bool = False
    """Counted, and never billed: its price is 0 in every list."""


_TOKENS: Final = {
    "prompt": Item("prompt", "prompt"),
    "prompt_audio": Item("prompt", "prompt", like="prompt"),
    "prompt_image": Item("prompt", "prompt", like="prompt"),
    "prompt_video": Item("prompt", "prompt", like="prompt"),
    "prompt_tool": Item("prompt", "prompt", like="prompt"),
    "prompt_unbilled": Item("prompt", "prompt", is_free=True),
    "cached_read": Item("prompt", "cached_read", like="prompt"),
    "cached_read_implicit": Item("prompt", "cached_read", like="cached_read"),
    "cached_read_audio": Item("prompt", "cached_read", like="cached_read"),
    "cached_read_image": Item("prompt", "cached_read", like="cached_read"),
    "cached_read_video": Item("prompt", "cached_read", like="cached_read"),
    "cache_write": Item("prompt", "cache_write", like="prompt"),
    "cache_write_5m": Item("prompt", "cache_write", like="cache_write"),
    "cache_write_30m": Item("prompt", "cache_write", like="cache_write"),
    "cache_write_1h": Item("prompt", "cache_write"),
    "cache_write_12h": Item("prompt", "cache_write"),
    "completion": Item("completion", "completion"),
    "completion_audio": Item("completion", "completion", like="completion"),
    "completion_image": Item("completion", "completion", like="completion"),
    "completion_video": Item("completion", "completion", like="completion"),
    "completion_unbilled": Item("completion", "completion", is_free=True),
    "reasoning": Item("completion", "completion", like="completion"),
    "citation": Item("beside", "other"),
}
_UNITS: Final = {
    "request": Item("beside", "other", "request"),
    "request_low": Item("beside", "other", "request", like="request"),
    "request_medium": Item("beside", "other", "request", like="request"),
    "web_search": Item("beside", "tool_fee", "search"),
    "web_search_preview": Item("beside", "tool_fee", "search", like="web_search"),
    "social_search": Item("beside", "tool_fee", "search"),
    "maps_search": Item("beside", "tool_fee", "search"),
    "grounded_prompt": Item("beside", "tool_fee", "prompt"),
    "file_search": Item("beside", "tool_fee", "search"),
    "code_session": Item("beside", "tool_fee", "session"),
    "code_execution": Item("beside", "tool_fee", "execution"),
    "web_fetch": Item("beside", "tool_fee", "fetch"),
    "rerank_search": Item("beside", "tool_fee", "search"),
    "image": Item("beside", "other", "image"),
    "page": Item("beside", "other", "page"),
    "character": Item("beside", "other", "character"),
    "prompt_audio_ms": Item("beside", "prompt", "millisecond"),
    "completion_audio_ms": Item("beside", "completion", "millisecond"),
    "provider_fee": Item("beside", "other", "charge"),
}
ITEMS: Final = MappingProxyType({**_TOKENS, **_UNITS})
"""Every item that a price list can have a price for."""

TOTALS: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
"""Names of counts that are no items, for the aliases of a provider's fields."""

FREE: Final = "free"
"""What an alias names a field that is never billed."""


def is_alias_target(name: str) -> bool:
    """Whether a provider's own field can stand for it: an item, a total, or `free`."""
    return name in ITEMS or name in TOTALS or name == FREE


def component_of(item: str) -> Component:
    """The part of the cost that an item belongs to; `other` for a name that is not known."""
    known = ITEMS.get(item)
    return known.component if known else "other"
