"""Gemini's usage beyond the plain counts: modalities, tool results, tiers.

Tokens of tool results stand outside `promptTokenCount`, thoughts outside `candidatesTokenCount`, and cached tokens
inside the prompt. Some older models count thoughts among the candidates, or tool results in the prompt; the total shows
which. https://ai.google.dev/api/generate-content#UsageMetadata

A document is billed as images, an unspecified modality as text. Modalities without a share of their own in the details
of the cache come from the prompt's text first.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from mcpmeter.dialects import json_body
from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.dialects.usage_fields import FREE, Reading, count, parsed, read, text, unknown_items
from mcpmeter.records import STANDARD, Conditions, TokenSource, Usage, UsageItem

_TOTALS: Final = MappingProxyType(
    {
        "promptTokenCount": "prompt",
        "toolUsePromptTokenCount": "tool",
        "candidatesTokenCount": "candidates",
        "responseTokenCount": "candidates",
        "thoughtsTokenCount": "thoughts",
        "totalTokenCount": "total",
        "cachedContentTokenCount": "cached",
    }
)
_REQUIRED: Final = frozenset(_TOTALS.values()) - {"cached"}
_DETAILS: Final = MappingProxyType(
    {
        "promptTokensDetails": "prompt",
        "toolUsePromptTokensDetails": "tool",
        "candidatesTokensDetails": "candidates",
        "responseTokensDetails": "candidates",
        "cacheTokensDetails": "cached",
    }
)
_MODALITIES: Final = MappingProxyType(
    {"": "", "MODALITY_UNSPECIFIED": "", "TEXT": "", "AUDIO": "audio", "IMAGE": "image", "DOCUMENT": "image"}
    | {"VIDEO": "video"}
)
_MEDIA: Final = ("audio", "image", "video")
_PLAIN: Final = frozenset(("prompt", "cached_read", "completion", "reasoning"))
_TABLE: Final = MappingProxyType(
    {
        **{field: count(name) for field, name in _TOTALS.items()},
        **{
            f"{field}[{written}].tokenCount": count(f"{side}.{modality}")
            for field, side in _DETAILS.items()
            for modality in _MODALITIES
            for written in (modality, modality.lower())
        },
        "trafficType": text("traffic"),
        "serviceTier": text("tier"),
        "service_tier": text("tier"),
        # Read by `gemini_grounding`.
        "billedToolCalls[].tool": FREE,
        "billedToolCalls[].successfulToolCallCount": FREE,
    }
)

NAMES: Final = MappingProxyType(
    {
        "prompt_tokens": "promptTokenCount",
        "prompt_tool": "toolUsePromptTokenCount",
        "cached_read": "cachedContentTokenCount",
        "completion": "candidatesTokenCount",
        "reasoning": "thoughtsTokenCount",
        "total_tokens": "totalTokenCount",
    }
)
"""An item or a total to its field."""

MAX_TIER_LENGTH: Final = 64
_TIERS: Final = MappingProxyType(
    {
        **dict.fromkeys(("", "standard", "unspecified", "on_demand", "traffic_type_unspecified"), ""),
        "provisioned_throughput": "provisioned",
    }
)
"""Tiers and types of traffic by the names of ours."""

_Split = dict[str, int]
"""Tokens by modality; "" is text."""


def decoded(raw: msgspec.Raw) -> dict[str, Any] | None:
    """The fields of a usage object; None if it is none or one of its totals is invalid."""
    fields = parsed(raw)
    if not isinstance(fields, dict):
        return None
    reading = read(fields, _TABLE)
    is_counted = "prompt" in reading.counts
    # Vertex AI names the traffic's type in every event and counts only in the last.
    is_announced = not is_counted and fields.get("promptTokenCount") is None and not reading.counts.keys() & _REQUIRED
    return fields if (is_counted or is_announced) and not reading.invalid & _REQUIRED else None


def usage_of(fields: Mapping[str, Any], source: TokenSource, *, are_tools_billed: bool = True) -> Usage | None:
    """The usage of an object as `decoded` gives it; None if it counts nothing."""
    reading = read(fields, _TABLE)
    counts = reading.counts
    if "prompt" not in counts:
        return None
    prompt, tool, thoughts, candidates, rest = _totals(counts)
    cached = min(counts.get("cached", _sum_of(reading, "cached")), prompt)
    heard, kept = _without_cached(reading, prompt, cached)
    results = _split(reading, "tool", tool) if are_tools_billed else {}
    written = _split(reading, "candidates", candidates)
    quantities = {
        "prompt": heard[""],
        "prompt_tool": results.get("", 0),
        "prompt_unbilled": 0 if are_tools_billed else max(0, tool - _unknown(reading, "tool")),
        **{f"prompt_{medium}": heard[medium] + results.get(medium, 0) for medium in _MEDIA},
        "cached_read": kept[""],
        **{f"cached_read_{medium}": kept[medium] for medium in _MEDIA},
        "completion": written[""],
        **{f"completion_{medium}": written[medium] for medium in _MEDIA},
        "reasoning": thoughts,
    }
    items = tuple(UsageItem(name, quantity) for name, quantity in quantities.items() if quantity)
    is_plain = sum(item.quantity for item in items if item.item in _PLAIN) == prompt + tool + candidates + thoughts
    strange = {item.item: item.quantity for item in reading.unknown}
    return Usage(
        prompt_tokens=prompt + tool,
        completion_tokens=candidates + thoughts,
        cached_read_tokens=cached,
        reasoning_tokens=thoughts,
        audio_tokens=quantities["prompt_audio"] + quantities["cached_read_audio"] + quantities["completion_audio"],
        source=source,
        items=() if is_plain else items,
        unknown=unknown_items(strange | {"totalTokenCount": rest}),
        conditions=conditions_of(reading.texts.get("traffic", ""), reading.texts.get("tier", "")),
    )


def conditions_of(*tiers: str) -> Conditions:
    """Of a response that names its tier or its type of traffic; the first that is not standard counts."""
    for written in tiers:
        name = written.strip().lower().removeprefix("service_tier_")
        tier = _TIERS.get(name, name.removeprefix("on_demand_"))
        if tier:
            return Conditions(tier=json_body.cleaned(tier)[:MAX_TIER_LENGTH])
    return STANDARD


def _totals(counts: Mapping[str, int]) -> tuple[int, int, int, int, int]:
    """(prompt, tool results, thoughts, candidates, what the total leaves unexplained); all disjoint."""
    prompt, tool, thoughts = counts["prompt"], counts.get("tool", 0), counts.get("thoughts", 0)
    total = counts.get("total", 0)
    candidates = counts.get("candidates")
    if candidates is None:  # Google leaves zeros out, and some relays leave out all but the total
        candidates = min(MAX_TOKENS, max(0, total - prompt - tool - thoughts))
    elif thoughts and total == prompt + tool + candidates and candidates >= thoughts:
        candidates -= thoughts
    elif tool and total == prompt + thoughts + candidates and prompt >= tool:
        prompt -= tool
    return prompt, tool, thoughts, candidates, max(0, total - prompt - tool - thoughts - candidates)


def _without_cached(reading: Reading, prompt: int, cached: int) -> tuple[_Split, _Split]:
    """(the prompt without what was cached, what was cached)."""
    unknown = max(0, _unknown(reading, "cached") - _unknown(reading, "prompt"))
    heard = _split(reading, "prompt", max(0, prompt - unknown))
    kept = _split(reading, "cached", cached)
    if not _sum_of(reading, "cached"):
        # No details: text first, then what else the prompt holds.
        kept = _taken(heard, kept[""])
    left = dict(heard)
    missing = 0
    for modality, quantity in kept.items():
        taken = min(quantity, left[modality])
        left[modality] -= taken
        missing += quantity - taken
    for modality, quantity in _taken(left, missing).items():
        left[modality] -= quantity
    return left, kept


def _taken(available: _Split, quantity: int) -> _Split:
    """A quantity by modality, from text first."""
    taken: _Split = {}
    for modality in ("", *_MEDIA):
        taken[modality] = min(quantity, available[modality])
        quantity -= taken[modality]
    return taken


def _split(reading: Reading, side: str, total: int) -> _Split:
    """A total by modality. What the details leave out is text; what they count beyond the total is left out."""
    left = max(0, total - _unknown(reading, side))
    split: _Split = {"": 0}
    for medium in _MEDIA:
        split[medium] = min(left, _sum_of(reading, side, medium))
        left -= split[medium]
    split[""] = left
    return split


def _sum_of(reading: Reading, side: str, kind: str | None = None) -> int:
    """The details' tokens of a kind, or of all kinds that are known."""
    return sum(
        reading.counts.get(f"{side}.{modality}", 0)
        for modality, known in _MODALITIES.items()
        if kind is None or known == kind
    )


def _unknown(reading: Reading, side: str) -> int:
    """Tokens of a modality that no table knows; they are unknown items, so no other item has them."""
    fields = tuple(f"{field}[" for field, part in _DETAILS.items() if part == side)
    return sum(
        number
        for path, number in reading.unknown_counts.items()
        if path.startswith(fields) and path.endswith(".tokenCount")
    )
