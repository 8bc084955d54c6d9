"""LiteLLM's price map, read from the JSON file in its package."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from mcpmeter.errors import SetupError
from mcpmeter.items import ITEMS
from mcpmeter.pricing.comparison.price_map import MapModel, PriceKey, PriceMap, find_package

NAME: Final = "litellm"
_MEMBER: Final = "litellm/model_prices_and_context_window_backup.json"
_OPTION: Final = "--litellm"
_MILLION: Final = 10**6
_THOUSAND: Final = 10**3

PROVIDERS: Final = MappingProxyType(
    {
        "openai": ("openai", "text-completion-openai"),
        "anthropic": ("anthropic",),
        "gemini": ("gemini",),
        "deepseek": ("deepseek",),
        "groq": ("groq",),
        "mistral": ("mistral", "codestral"),
        "openrouter": ("openrouter",),
        "together": ("together_ai",),
        "xai": ("xai",),
        "perplexity": ("perplexity",),
        "dashscope": ("dashscope",),
        "azure-openai": ("azure",),
    }
)
"""Our provider: the values of `litellm_provider` that mean it."""

_PER_TOKEN: Final = MappingProxyType(
    {
        "input_cost_per_token": "prompt",
        "input_cost_per_audio_token": "prompt_audio",
        "input_cost_per_image_token": "prompt_image",
        "input_cost_per_video_token": "prompt_video",
        "output_cost_per_token": "completion",
        "output_cost_per_reasoning_token": "reasoning",
        "output_cost_per_audio_token": "completion_audio",
        "output_cost_per_image_token": "completion_image",
        "output_cost_per_video_token": "completion_video",
        "cache_read_input_token_cost": "cached_read",
        "cache_read_input_audio_token_cost": "cached_read_audio",
        "cache_read_input_image_token_cost": "cached_read_image",
        "cache_creation_input_token_cost": "cache_write",
        "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
        "cache_creation_input_token_cost_above_12hr": "cache_write_12h",
        "citation_cost_per_token": "citation",
    }
)
_PER_UNIT: Final = MappingProxyType(
    {
        "input_cost_per_request": "request",
        "search_context_cost_per_query": "web_search",
        "google_maps_grounding_cost_per_query": "maps_search",
        "ocr_cost_per_page": "page",
    }
)
_CONDITIONS: Final = MappingProxyType(
    {"": "", "flex": "tier=flex", "priority": "tier=priority", "ultrafast": "tier=ultrafast", "batches": "batch"}
)
_FIELD: Final = re.compile(
    r"(?P<base>[a-z0-9_]+?)(?:_above_(?P<above>[0-9]+)k_tokens)?(?:_(?P<tier>flex|priority|ultrafast|batches))?"
)
_MULTIPLIERS: Final = MappingProxyType(
    {"regional_processing_uplift_multiplier_us": "region=us", "regional_processing_uplift_multiplier_eu": "region=eu"}
)
_SPECIFIC: Final = MappingProxyType({"us": "region=us", "fast": "speed=fast"})
_WINDOW: Final = re.compile(r"(?P<from>[0-9]{2}:[0-9]{2})-(?P<to>[0-9]{2}:[0-9]{2})")


def read_litellm(given: Path | None, at: datetime) -> PriceMap:
    """The map at an instant (aware), from an installed LiteLLM, its folder or the JSON file. Raises SetupError."""
    package = find_package(given, NAME, _MEMBER, _OPTION)
    try:
        # Decimal, since a price must never become a binary fraction.
        raw = json.loads(package.path.read_bytes(), parse_float=Decimal)
        entries = {name: entry for name, entry in raw.items() if isinstance(entry, dict)}
    except (OSError, ValueError, AttributeError, RecursionError):
        raise SetupError(f"{package.path} is not LiteLLM's price map.", hint=f"Check {_OPTION}.") from None
    providers = {ours: dict(_models(entries, theirs, at)) for ours, theirs in PROVIDERS.items()}
    return PriceMap(NAME, package.version, providers)


def _models(
    entries: Mapping[str, dict[str, Any]], providers: tuple[str, ...], at: datetime
) -> Iterator[tuple[str, MapModel]]:
    for name, entry in entries.items():
        if entry.get("litellm_provider") not in providers:
            continue
        prefix, _slash, rest = name.partition("/")
        prices = {key: amount for key, amount in _prices(entry, at).items() if amount}
        # Perplexity bills its search by the request, except where it bills citations.
        if "perplexity" in providers and PriceKey("web_search") in prices and PriceKey("citation") not in prices:
            prices[PriceKey("request")] = prices.pop(PriceKey("web_search"))
        if prices:
            yield (rest if prefix in providers else name), MapModel(prices, _is_deprecated(entry, at))


def _is_deprecated(entry: Mapping[str, Any], at: datetime) -> bool:
    """Whether its day of deprecation has come (UTC)."""
    day = entry.get("deprecation_date")
    return isinstance(day, str) and day <= at.astimezone(UTC).date().isoformat()


def _prices(entry: Mapping[str, Any], at: datetime) -> dict[PriceKey, Decimal]:
    prices = dict(_fields(entry))
    for tier in entry.get("tiered_pricing") or ():
        if isinstance(tier, dict) and isinstance(limits := tier.get("range"), list) and limits:
            prices |= {key._replace(above=int(limits[0])): amount for key, amount in _fields(tier)}
    cheaper = entry.get("off_peak_pricing")
    if isinstance(cheaper, dict) and _is_off_peak(cheaper, at):
        prices |= dict(_fields(cheaper))
    specific = entry.get("provider_specific_entry")
    named = [(condition, entry.get(field)) for field, condition in _MULTIPLIERS.items()]
    if isinstance(specific, dict):
        named += [(condition, specific.get(field)) for field, condition in _SPECIFIC.items()]
    standard = {key: amount for key, amount in prices.items() if not key.condition and _is_token(key.item)}
    for condition, value in named:
        if (times := _decimal(value)) is not None:
            prices |= {key._replace(condition=condition): amount * times for key, amount in standard.items()}
    return prices


def _fields(entry: Mapping[str, Any]) -> Iterator[tuple[PriceKey, Decimal]]:
    for field, value in entry.items():
        # A table is by size of the search context; the highest price bounds the others.
        sizes = [_decimal(each) for each in (value.values() if isinstance(value, dict) else [value])]
        amount = max((size for size in sizes if size is not None), default=None)
        found = _FIELD.fullmatch(field)
        if amount is None or found is None:
            continue
        base, above = found["base"], int(found["above"] or 0) * _THOUSAND
        condition = _CONDITIONS[found["tier"] or ""]
        if item := _PER_TOKEN.get(base):
            yield PriceKey(item, condition, above), amount * _MILLION
        elif item := _PER_UNIT.get(base):
            yield PriceKey(item, condition, above), amount * _THOUSAND


def _is_token(item: str) -> bool:
    return ITEMS[item].unit == "token"


def _decimal(value: object) -> Decimal | None:
    """A number, exactly; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        return None
    try:
        amount = Decimal(value)
    except InvalidOperation:
        return None
    return amount if amount.is_finite() else None


def _is_off_peak(pricing: Mapping[str, Any], at: datetime) -> bool:
    """Whether an instant lies in one of the windows, whose hours and weekdays (1: Monday) are in UTC."""
    windows = pricing.get("windows")
    utc = at.astimezone(UTC)
    for window in windows if isinstance(windows, list) else ():
        if not isinstance(window, dict) or utc.isoweekday() not in (window.get("weekdays") or range(1, 8)):
            continue
        hours = window.get("hours_utc")
        if any(_is_within(each, utc) for each in (hours if isinstance(hours, list) else [hours])):
            return True
    return False


def _is_within(hours: object, utc: datetime) -> bool:
    found = _WINDOW.fullmatch(hours) if isinstance(hours, str) else None
    if found is None:
        return False
    start, stop, now = found["from"], found["to"], f"{utc:%H:%M}"
    return start <= now < stop if start < stop else now >= start or now < stop
