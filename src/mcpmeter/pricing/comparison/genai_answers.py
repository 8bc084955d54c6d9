"""Run as a script beside a genai-prices: reads a question as JSON, and prints that package's prices as JSON.

It imports nothing of mcpmeter, which may not be importable there.
"""

import json
import sys
from datetime import datetime
from decimal import Decimal
from typing import Any

_ITEMS = {
    "input_mtok": "prompt",
    "input_audio_mtok": "prompt_audio",
    "input_image_mtok": "prompt_image",
    "input_video_mtok": "prompt_video",
    "output_mtok": "completion",
    "output_reasoning_mtok": "reasoning",
    "output_audio_mtok": "completion_audio",
    "output_image_mtok": "completion_image",
    "output_video_mtok": "completion_video",
    "output_citation_mtok": "citation",
    "cache_read_mtok": "cached_read",
    "cache_audio_read_mtok": "cached_read_audio",
    "cache_image_read_mtok": "cached_read_image",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "requests_kcount": "request",
    "web_searches_kcount": "web_search",
    "storage_searches_kcount": "file_search",
    "input_document_kpages": "page",
}
_CONTEXTS = {
    "": None,
    "tier=flex": {"service_tier": "flex"},
    "tier=priority": {"service_tier": "priority"},
    "batch": {"processing": "batch"},
    "speed=fast": {"speed": "fast"},
}


def _prices(prices: Any, condition: str) -> list[tuple[str, str, int, str]]:
    rows = []
    for key, item in _ITEMS.items():
        if condition and not key.endswith("_mtok"):
            continue  # no condition changes a fee
        price = getattr(prices, key, None)
        if isinstance(price, Decimal):
            rows.append((condition, item, 0, str(price)))
        elif price is not None:
            rows.append((condition, item, 0, str(price.base)))
            rows += [(condition, item, tier.start, str(tier.price)) for tier in price.tiers]
    return rows


def _rows(model: Any, at: datetime) -> list[tuple[str, str, int, str]]:
    rows = _prices(model.get_prices(at), "")
    for condition, context in _CONTEXTS.items():
        variants = [variant for variant in model.price_variants or () if variant.when == context]
        if any(variant.constraint is None or variant.constraint.active(at) for variant in variants):
            rows += _prices(model.get_prices(at, context), condition)
    return rows


def main() -> None:
    """Answers one question: providers with the names of their models, and an instant."""
    sys.path.insert(0, sys.argv[1])
    from genai_prices.data import providers  # noqa: PLC0415 (it lies below the path of the argument)

    question = json.load(sys.stdin)
    at, known = datetime.fromisoformat(question["at"]), {provider.id: provider for provider in providers}
    answer: dict[str, dict[str, Any]] = {}
    for ours, wanted in question["providers"].items():
        provider = known.get(wanted["id"])
        answer[ours] = {}
        for name in wanted["names"] if provider else ():
            model = provider.find_model(name, all_providers=providers) if provider else None
            if model is not None and (rows := _rows(model, at)):
                answer[ours][name] = {"prices": rows, "deprecated": bool(model.deprecated)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
