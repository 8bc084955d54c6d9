"""Usage objects in OpenAI's shape that are more than plain: every published field, and what the counts add up to.

Providers disagree on what a total includes. What is beside it is decided by `total_tokens` and by names, never by
guess; what no field explains is an unknown item. Sources are in docs/dialects.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from mcpmeter.dialects.usage_fields import FREE, MONEY, PART, Field, Reading, Table, count, read, text, unknown_items
from mcpmeter.items import ITEMS
from mcpmeter.records import STANDARD, Conditions, Usage, UsageItem

PROMPT_DETAILS: Final = tuple(f"{name}_details." for name in ("prompt_tokens", "input_tokens", "prompt_token"))
COMPLETION_DETAILS: Final = tuple(f"{name}_details." for name in ("completion_tokens", "output_tokens"))
BARE: Final = frozenset(("prompt_tokens", "completion_tokens", "total_tokens"))
BILLED: Final = BARE - {"total_tokens"}
MODALITIES: Final = ("audio", "image", "video")
LIFETIMES: Final = ("5m", "30m", "1h", "12h")
PLAIN_ITEMS: Final = frozenset(("prompt", "cached_read", "cache_write", "completion", "reasoning"))
"""Items that a row's counts tell already."""
SECOND_NAMES: Final = MappingProxyType(
    {
        "reasoning": "other_reasoning",
        "cached_read": "anthropic_read",
        "cache_write": "anthropic_write",
        **{f"prompt_{kind}": f"cached_read_{kind}" for kind in MODALITIES},
    }
)
"""Counts that are read in an item's place."""

REQUESTS: Final = MappingProxyType({"low": "request_low", "medium": "request_medium"})
"""Perplexity's fee for a request, by the size of its search context; the largest has the list's price of a request."""

PRICED_AS_STANDARD: Final = frozenset(
    ("", "default", "auto", "standard", "on_demand", "global", "not_available", "none", "null")
)
TIER_ALIASES: Final = MappingProxyType({"fast": "priority"})
"""OpenAI serves `fast` as `priority` and says so: https://developers.openai.com/api/docs/guides/fast-mode"""

_WRITES: Final = {
    "cache_write_tokens": count("cache_write"),
    "cache_creation_tokens": count("cache_write"),  # LiteLLM's mirror
    "cache_creation_input_tokens": count("cache_write"),
    "cache_creation.cache_creation_input_tokens": count("cache_write"),
    **{
        f"{place}{name}": count(f"cache_write_{lifetime}")
        for place in ("", "cache_creation.", "cache_creation_token_details.", "cache_write_tokens_details.")
        for lifetime in LIFETIMES
        for name in (
            f"ephemeral_{lifetime}_input_tokens",
            f"ephemeral_{lifetime}_tokens",
            f"ttl_{lifetime}_tokens",
            f"ttl_{lifetime}",
        )
    },
    **{f"cache_write_tokens.ttl_{lifetime}": count(f"cache_write_{lifetime}") for lifetime in LIFETIMES},
}
_IN_PROMPT: Final = {
    **_WRITES,
    "cached_tokens": count("cached_read"),
    "cache_read_input_tokens": count("cached_read"),
    "cached_tokens_details.text_tokens": PART,
    **{f"{kind}_tokens": count(f"prompt_{kind}") for kind in MODALITIES},
    **{f"cached_tokens_details.{kind}_tokens": count(f"cached_read_{kind}") for kind in MODALITIES},
    "text_tokens": PART,
    "cache_type": text("cache_type"),  # DashScope
    "cache_creation.cache_type": text("cache_type"),
    "web_search_requests": count("web_search"),  # LiteLLM
}
_IN_COMPLETION: Final = {
    **{f"{kind}_tokens": count(f"completion_{kind}") for kind in MODALITIES},
    "reasoning_tokens": count("reasoning"),
    "text_tokens": PART,
    "accepted_prediction_tokens": PART,
    "rejected_prediction_tokens": PART,  # billed as completion, and counted in it
}
_TOP: Final = {
    "prompt_tokens": count("prompt_tokens"),
    "input_tokens": count("prompt_tokens"),
    "completion_tokens": count("completion_tokens"),
    "output_tokens": count("completion_tokens"),
    "total_tokens": count("total_tokens"),
    "prompt_cache_hit_tokens": count("cached_read"),  # DeepSeek
    "prompt_cache_miss_tokens": PART,
    "num_cached_tokens": count("cached_read"),  # Mistral
    "cached_tokens": count("cached_read"),  # Moonshot
    "prompt_audio_seconds": count("prompt_audio_ms", 1000),  # Mistral: sound that `prompt_tokens` excludes
    **_WRITES,
    "cache_read_input_tokens": count("anthropic_read"),
    "cache_creation_input_tokens": count("anthropic_write"),
    "reasoning_tokens": count("other_reasoning"),
    # Perplexity
    "citation_tokens": count("citation"),
    "num_search_queries": count("web_search"),
    "search_context_size": text("search_context_size"),
    "tool_calls_details.web_search.invocation": count("web_search"),
    "tool_calls_details.search_web.invocation": count("web_search"),
    "tool_calls_details.fetch_url.invocation": count("web_fetch"),
    # OpenRouter, and LiteLLM in front of Anthropic. The two counts of all tool calls include the searches.
    **{
        f"{place}.{name}": field
        for place in ("server_tool_use", "server_tool_use_details")
        for name, field in {
            "web_search_requests": count("web_search"),
            "tool_calls_requested": PART,
            "tool_calls_executed": PART,
            "web_fetch_requests": FREE,
            "tool_search_requests": FREE,
        }.items()
    },
    "cost": MONEY,
    "cost_details": MONEY,
    "is_byok": MONEY,
    "estimated_cost": MONEY,
    "market_cost": MONEY,  # Vercel's gateway, which repeats the cost
    "gateway_cost": MONEY,
    "currency": MONEY,
    "service_tier": text("tier"),
    "speed": text("speed"),
    "inference_geo": text("region"),
    # xAI
    "cost_in_usd_ticks": MONEY,
    "num_server_side_tools_used": PART,
    "server_side_tool_usage_details.web_search_calls": count("web_search"),
    "server_side_tool_usage_details.x_search_calls": count("social_search"),
    "server_side_tool_usage_details.code_interpreter_calls": count("code_execution"),
    "server_side_tool_usage_details.file_search_calls": count("file_search"),
    "server_side_tool_usage_details.mcp_calls": FREE,
    "context_details": FREE,
    # DashScope
    "plugins.search.count": count("web_search"),
    "plugins.search.strategy": FREE,
    # Durations and rates: Groq, SambaNova, Azure
    **dict.fromkeys(("queue_time", "prompt_time", "completion_time", "total_time"), FREE),
    **dict.fromkeys(("dram_cached_tokens", "sram_cached_tokens"), FREE),
    **dict.fromkeys(("start_time", "end_time", "time_to_first_token", "total_latency", "is_last_response"), FREE),
    **dict.fromkeys(("completion_tokens_per_sec", "total_tokens_per_sec", "acceptance_rate"), FREE),
    **dict.fromkeys(("completion_tokens_after_first_per_sec", "completion_tokens_after_first_per_sec_first_ten"), FREE),
    **dict.fromkeys(("latency_checkpoint", "stop_reason"), FREE),
}
_ALL: Final = {
    **_TOP,
    **{place + name: field for place in PROMPT_DETAILS for name, field in _IN_PROMPT.items()},
    **{place + name: field for place in COMPLETION_DETAILS for name, field in _IN_COMPLETION.items()},
}


def _again(field: Field) -> Field:
    """A field of DashScope's `x_details`, which repeats the usage and adds only the cache writes."""
    return field if field.name.startswith("cache_") or field.role == "text" else PART


TABLE: Final[Table] = MappingProxyType(
    {
        **_ALL,
        **{f"x_details[].{path}": _again(field) for path, field in _ALL.items()},
        "x_details[].x_billing_type": FREE,
    }
)
"""The published fields of all providers that speak a dialect of OpenAI's."""


def usage_of(value: Any, table: Table = TABLE, *, has_completion: bool = True) -> tuple[Usage | None, bool]:
    """(usage, whether it is invalid) of a parsed usage object. `has_completion`: False for embeddings."""
    reading = read(value, table)
    counts = reading.counts
    prompt, completion, total = map(counts.get, ("prompt_tokens", "completion_tokens", "total_tokens"))
    if not has_completion:
        prompt, completion = (total if prompt is None else prompt), 0
    if prompt is None or (completion is None and total is None) or not BILLED.isdisjoint(reading.invalid):
        return None, True
    if completion is None:
        completion = max(0, (total or 0) - prompt)
    composition = _Composition(reading, prompt, completion, has_completion=has_completion)
    composition.settle(total)
    return composition.usage(), False


class _Composition:
    """Decides what the totals include, and splits them into disjoint items."""

    def __init__(self, reading: Reading, prompt: int, completion: int, *, has_completion: bool) -> None:
        self._reading = reading
        self._counts = reading.counts
        self._has_completion = has_completion
        self._prompt = prompt
        self._completion = completion
        self._cached = max(map(self._count, ("cached_read", "anthropic_read")))
        self._written = max(
            *map(self._count, ("cache_write", "anthropic_write")),
            sum(self._count(f"cache_write_{lifetime}") for lifetime in LIFETIMES),
        )
        self._reasoning = max(map(self._count, ("reasoning", "other_reasoning")))
        self._unknown: dict[str, int] = {item.item: item.quantity for item in reading.unknown}
        self._items: dict[str, int] = {}
        if not has_completion and self._count("completion_tokens"):
            self._unknown[reading.paths["completion_tokens"]] = self._count("completion_tokens")

    def _count(self, name: str) -> int:
        return self._counts.get(name, 0)

    # What the totals include -----------------------------------------------------------------------------------------

    def settle(self, total: int | None) -> None:
        """Move counts that stand beside the prompt or the completion into it."""
        caches, beyond = self._cached + self._written, (total or 0) - self._prompt - self._completion
        has_anthropics = bool(self._count("anthropic_read") or self._count("anthropic_write"))
        added_reasoning = 0
        if beyond > 0:
            inside_prompt, added_reasoning = self._explained(beyond)
            self._prompt += inside_prompt
            self._completion += added_reasoning
            if not inside_prompt and not added_reasoning:
                self._explain_otherwise(beyond)
        elif has_anthropics and (not total or caches > self._prompt):
            # Anthropic counts them beside the prompt. Relays that count them inside it say so by a total.
            self._prompt += caches
        beside = self._count("other_reasoning")
        if not added_reasoning and beside and (self._is_perplexity() or beside > self._completion):
            self._completion += beside

    def _explained(self, beyond: int) -> tuple[int, int]:
        """(caches, reasoning) that add up to what the total holds beyond the others; zeros if none do."""
        reads, writes, reasoning = self._cached, self._written, self._reasoning
        ways = [(caches, extra) for extra in (0, reasoning) for caches in (reads + writes, reads, writes, 0)]
        fitting = [way for way in ways if sum(way) == beyond]
        # Caches larger than the prompt cannot be inside it; otherwise reasoning alone is the likelier.
        fitting.sort(key=lambda way: way[0] == 0 if reads + writes > self._prompt else way[0] > 0)
        return fitting[0] if fitting else (0, 0)

    def _explain_otherwise(self, beyond: int) -> None:
        others = {*self._unknown.values(), self._count("citation")}
        if beyond in others or self._count("prompt_audio_ms"):
            return  # counted under its own name
        details = {path for name, path in self._reading.paths.items() if name not in BARE}
        if self._has_completion and details <= {"prompt_tokens_details.cached_tokens"} and not self._unknown:
            # Google counts thoughts nowhere else, and bills them as completion:
            # https://ai.google.dev/gemini-api/docs/openai
            self._completion += beyond
            return
        self._unknown["total_tokens"] = beyond

    def _is_perplexity(self) -> bool:
        """Its reasoning and citations are billed beside prompt and completion: https://docs.perplexity.ai/guides/pricing"""
        is_searching = self._reading.paths.get("web_search") == "num_search_queries"
        return is_searching or bool(self._count("citation")) or "search_context_size" in self._reading.texts

    # Disjoint items --------------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """The usage; without items if they say no more than its counts."""
        self._split_prompt()
        self._split_completion()
        self._add_units()
        items, reading = self._items, self._reading
        parts_unknown = reading.unknown_below(*PROMPT_DETAILS, *COMPLETION_DETAILS)
        is_plain = not parts_unknown and items.keys() <= PLAIN_ITEMS
        return Usage(
            prompt_tokens=self._prompt,
            completion_tokens=self._completion,
            cached_read_tokens=_sum(items, "cached_read"),
            cache_write_tokens=_sum(items, "cache_write"),
            reasoning_tokens=items.get("reasoning", 0),
            audio_tokens=sum(items.get(name, 0) for name in ("prompt_audio", "cached_read_audio", "completion_audio")),
            source="reported",
            items=() if is_plain else tuple(UsageItem(name, number) for name, number in items.items()),
            unknown=unknown_items(self._unknown),
            conditions=conditions_of(reading.texts),
        )

    def _split_prompt(self) -> None:
        pools = {"prompt": self._prompt}
        for kind in MODALITIES:
            # A cached sound may be counted as cached only.
            reported = max(self._count(f"prompt_{kind}"), self._count(f"cached_read_{kind}"))
            pools[f"prompt_{kind}"] = self._take(pools, "prompt", reported, f"prompt_{kind}")
        for name in ("prompt_tool", "cached_read_implicit"):
            pools[name] = self._take(pools, "prompt", self._count(name), name)
        implicit = self._reading.texts.get("cache_type") == "implicit"
        left = self._cached
        for kind in MODALITIES:
            left -= self._move(pools, f"prompt_{kind}", self._count(f"cached_read_{kind}"), f"cached_read_{kind}")
        left -= self._move(pools, "prompt", left, "cached_read_implicit" if implicit else "cached_read")
        for kind in MODALITIES:
            left -= self._move(pools, f"prompt_{kind}", left, f"cached_read_{kind}")
        self._exceeding("cached_read", left)
        self._split_writes(pools)
        pools["prompt"] -= min(pools["prompt"], self._reading.unknown_below(*PROMPT_DETAILS))
        self._keep(pools)

    def _split_writes(self, pools: dict[str, int]) -> None:
        by_lifetime = {f"cache_write_{lifetime}": self._count(f"cache_write_{lifetime}") for lifetime in LIFETIMES}
        others = self._written - sum(by_lifetime.values())
        for name, quantity in {**by_lifetime, "cache_write": others}.items():
            left = quantity
            for pool in ("prompt", *(f"prompt_{kind}" for kind in MODALITIES)):
                left -= self._move(pools, pool, left, name)
            self._exceeding(name, left)

    def _split_completion(self) -> None:
        pools = {"completion": self._completion}
        for name in ("completion_audio", "completion_image", "completion_video", "reasoning"):
            reported = self._reasoning if name == "reasoning" else self._count(name)
            pools[name] = self._take(pools, "completion", reported, name)
        pools["completion"] -= min(pools["completion"], self._reading.unknown_below(*COMPLETION_DETAILS))
        self._keep(pools)

    def _add_units(self) -> None:
        for name, quantity in self._counts.items():
            if quantity and name in ITEMS and ITEMS[name].side == "beside":
                self._items[name] = quantity
        size = self._reading.texts.get("search_context_size")
        if size is not None:
            self._items[REQUESTS.get(size, "request")] = 1

    def _take(self, pools: dict[str, int], pool: str, quantity: int, name: str) -> int:
        taken = min(quantity, pools[pool])
        pools[pool] -= taken
        self._exceeding(name, quantity - taken)
        return taken

    def _move(self, pools: dict[str, int], pool: str, quantity: int, name: str) -> int:
        moved = min(max(0, quantity), pools[pool])
        pools[pool] -= moved
        self._add(name, moved)
        return moved

    def _keep(self, pools: Mapping[str, int]) -> None:
        for name, quantity in pools.items():
            self._add(name, quantity)

    def _add(self, name: str, quantity: int) -> None:
        if quantity:
            self._items[name] = self._items.get(name, 0) + quantity

    def _exceeding(self, name: str, quantity: int) -> None:
        """What a detail says beyond its total: the total is billed, and the rest is nothing known."""
        if quantity > 0:
            reported = max(name, SECOND_NAMES.get(name, name), key=self._count)
            self._unknown[self._reading.paths.get(reported, name)] = quantity


def conditions_of(texts: Mapping[str, str]) -> Conditions:
    """The conditions that a usage object states."""
    if texts.keys().isdisjoint(("tier", "speed", "region")):
        return STANDARD
    tier, speed, region = (condition(texts.get(name, "")) for name in ("tier", "speed", "region"))
    return Conditions(tier=TIER_ALIASES.get(tier, tier), speed=speed, region=region)


def condition(written: str) -> str:
    """A condition as the price tables name it; empty for the standard price."""
    name = written.strip().lower()
    return "" if name in PRICED_AS_STANDARD else name


def _sum(items: Mapping[str, int], start: str) -> int:
    return sum(quantity for name, quantity in items.items() if name.startswith(start))
