"""What Gemini bills beside tokens: Google Search and Maps, as the grounding of a response shows them.

Up to Gemini 2.5 a prompt that searches is billed once, from 3 on each distinct query that is not empty; a prompt that
Maps grounds is billed once. Text that a search retrieves is not billed as input, so the tokens of tool results are free
if a search is the only tool that ran. Pages of `urlContext` and results of code are billed as input.
https://ai.google.dev/gemini-api/docs/google-search#pricing, https://ai.google.dev/gemini-api/docs/pricing

`usageMetadata.billedToolCalls`, where a response has it, is Google's own count of the calls that it bills.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec

from mcpmeter.dialects import json_body
from mcpmeter.dialects.usage_fields import unknown_items, whole
from mcpmeter.records import UsageItem

MAX_QUERIES: Final = 1024
MAX_QUERY_LENGTH: Final = 256

_MAJOR_VERSION: Final = re.compile(r"gemini-(\d{1,3})")
_SEARCHES: Final = ("GOOGLE_SEARCH", "GOOGLE_SEARCH_RETRIEVAL", "ENTERPRISE_WEB_SEARCH")
_MAPS: Final = ("GOOGLE_MAPS",)


class Grounding(NamedTuple):
    """The grounding of one or more events; parts may repeat in a stream, so they are sets."""

    searches: frozenset[str] = frozenset()
    retrievals: frozenset[str] = frozenset()
    """Queries to the caller's own data (Vertex AI Search), at a price that the response does not hold."""
    has_maps: bool = False
    has_other_tools: bool = False
    """Tools whose results are billed as input."""

    def joined(self, other: Grounding) -> Grounding:
        """Both."""
        return Grounding(
            frozenset(islice(self.searches | other.searches, MAX_QUERIES)),
            frozenset(islice(self.retrievals | other.retrievals, MAX_QUERIES)),
            self.has_maps or other.has_maps,
            self.has_other_tools or other.has_other_tools,
        )


NO_GROUNDING: Final = Grounding()


def grounding_of(metadata: Iterable[msgspec.Raw], *, has_other_tools: bool) -> Grounding:
    """What the `groundingMetadata` of an event's candidates shows."""
    searches: set[str] = set()
    retrievals: set[str] = set()
    has_maps = False
    for raw in metadata:
        fields = json_body.value_of(bytes(raw))
        searches |= _queries(fields, "webSearchQueries")
        searches |= {f"image: {query}" for query in _queries(fields, "imageSearchQueries")}
        retrievals |= _queries(fields, "retrievalQueries")
        has_maps = has_maps or any(map(_is_place, json_body.dicts_in(json_body.under(fields, "groundingChunks"))))
    return Grounding(frozenset(searches), frozenset(retrievals), has_maps, has_other_tools)


def billed_items(
    grounding: Grounding, counts: Mapping[str, Any], model: str
) -> tuple[tuple[UsageItem, ...], tuple[UsageItem, ...]]:
    """(what is billed, what is unknown). `counts` is the usage object, or empty."""
    calls = _billed_calls(counts.get("billedToolCalls"))
    searches = _sum_of(calls, _SEARCHES) or len(grounding.searches)
    places = _sum_of(calls, _MAPS) or int(grounding.has_maps)
    is_by_query = _is_billed_by_query(model)
    items = {
        "web_search": searches if is_by_query else 0,
        "grounded_prompt": 0 if is_by_query else min(searches, 1),
        "maps_search": places if is_by_query else min(places, 1),
    }
    strange = {f"billedToolCalls[{tool}]": number for tool, number in calls.items() if tool not in (*_SEARCHES, *_MAPS)}
    strange["groundingMetadata.retrievalQueries"] = len(grounding.retrievals)
    return tuple(UsageItem(name, number) for name, number in items.items() if number), unknown_items(strange)


def are_tools_billed(grounding: Grounding, counts: Mapping[str, Any]) -> bool:
    """Whether tokens of tool results are billed as input; text that a search retrieves is not."""
    has_searched = grounding.searches or _sum_of(_billed_calls(counts.get("billedToolCalls")), _SEARCHES)
    return grounding.has_other_tools or not has_searched


def _is_billed_by_query(model: str) -> bool:
    """True for a model of unknown generation too: the newer rule."""
    found = _MAJOR_VERSION.search(model)
    return found is None or int(found.group(1)) > 2


def _queries(metadata: Any, name: str) -> set[str]:
    listed = json_body.under(metadata, name)
    texts = (text for text in listed if isinstance(text, str)) if isinstance(listed, list) else iter(())
    return {text[:MAX_QUERY_LENGTH] for text in islice(texts, MAX_QUERIES) if text.strip()}


def _is_place(chunk: Mapping[str, Any]) -> bool:
    return bool(chunk.get("maps"))


def _billed_calls(listed: Any) -> dict[str, int]:
    calls: dict[str, int] = {}
    for entry in islice(json_body.dicts_in(listed), MAX_QUERIES):
        tool = json_body.cleaned(str(entry.get("tool", ""))).upper()
        calls[tool] = calls.get(tool, 0) + (whole(entry.get("successfulToolCallCount")) or 0)
    return calls


def _sum_of(calls: Mapping[str, int], tools: Iterable[str]) -> int:
    return sum(calls.get(tool, 0) for tool in tools)
