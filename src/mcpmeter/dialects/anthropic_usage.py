"""Anthropic's usage beyond the plain counts: times to live, iterations, server tools, conditions, refusals.

`iterations`, if the object has it, is the bill: one set of items per entry at the entry's own model, in order and not
added up, because a price band is that of one pass over a context. The top level is the sum of the entries that are
neither compaction nor advisor, or of fewer of them, so it is a check only: what it counts beyond them is unknown. It is
billed only if there is no such entry.
https://platform.claude.com/docs/en/build-with-claude/compaction-threshold#understanding-usage

An attempt that declined before any output is not billed, though its tokens are reported.
https://platform.claude.com/docs/en/build-with-claude/refusals-and-fallback

Tokens written to the cache that no time to live explains are written at the default one, 5 minutes. If the times to
live add up to more than `cache_creation_input_tokens`, each of them is billed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from mcpmeter.dialects import json_body
from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.dialects.usage_fields import FREE, Reading, count, parsed, read, text, unknown_items, whole
from mcpmeter.records import STANDARD, Conditions, TokenSource, Usage, UsageItem

MAX_ENTRIES: Final = 128
"""Iterations that are read; a response has some ten. The tokens of the others are unknown."""

_BILLED: Final = ("message", "compaction", "advisor_message", "fallback_message")
_BESIDE_THE_TOP: Final = ("compaction", "advisor_message")
_ATTEMPTS: Final = ("message", "fallback_message")
"""Entries that a safety classifier can decline."""

_MAX_DECLINED_TOKENS: Final = 1
"""Output of a refusal before any output, as some platforms count it."""

MAX_SUM: Final = 3 * MAX_TOKENS
"""Of a prompt or a completion: more is invalid, as a larger count is."""

_NO_REGION: Final = ("global", "not_available")
_FEES: Final = ("web_search", "code_execution")
_TTLS: Final = ("cache_write_5m", "cache_write_30m", "cache_write_1h", "cache_write_12h")
_PLAIN: Final = frozenset(("prompt", "cached_read", "cache_write", "cache_write_5m", "completion"))
_TOTALS: Final = {
    "input_tokens": "prompt",
    "cache_creation_input_tokens": "cache_write",
    "cache_read_input_tokens": "cached_read",
    "output_tokens": "completion",
}
_COUNTS: Final = {
    **{field: count(name) for field, name in _TOTALS.items()},
    **{f"cache_creation.ephemeral_{name[12:]}_input_tokens": count(name) for name in _TTLS},
    "output_tokens_details.thinking_tokens": count("reasoning"),
}
_TABLE: Final = MappingProxyType(
    {
        # DashScope's mirror of the cache reads; first, so that `NAMES` has Anthropic's own paths.
        "prompt_tokens_details.cached_tokens": count("cached_read"),
        **_COUNTS,
        "server_tool_use.web_search_requests": count("web_search"),
        "server_tool_use.code_execution_requests": count("code_execution"),
        "server_tool_use.web_fetch_requests": FREE,
        "server_tool_use.tool_search_requests": FREE,
        "service_tier": text("tier"),
        "speed": text("speed"),
        "inference_geo": text("region"),
        # The counts are those after the credit: cache writes that it turned into reads.
        "fallback_credit": FREE,
        "iterations": FREE,  # read one by one
    }
)
NAMES: Final = MappingProxyType(
    {field.name: path for path, field in _TABLE.items() if field.role == "count"}
    | {"completion_tokens": "output_tokens"}
)
"""An item, or the total that is one, to its path."""

_ENTRY_TABLE: Final = MappingProxyType(
    {
        f"iterations[{kind}]{path}": field
        for kind in ("", *_BILLED)
        for path, field in {**{f".{path}": field for path, field in _COUNTS.items()}, ".model": FREE}.items()
    }
)


class _Pass(NamedTuple):
    """One pass of one model."""

    items: tuple[UsageItem, ...] = ()
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    written: int = 0


def decoded(raw: msgspec.Raw) -> dict[str, Any] | None:
    """The fields of a usage object; None if it is none or a count at its top level is invalid."""
    fields = parsed(raw)
    if not isinstance(fields, dict) or read(fields, _COUNTS).invalid & set(_TOTALS.values()):
        return None
    names = ("input_tokens", "output_tokens", "iterations")
    return fields if any(fields.get(name) is not None for name in names) else None


def usage_of(fields: Mapping[str, Any], *, source: TokenSource, model: str, is_refusal: bool) -> Usage | None:
    """The usage of an object as `decoded` gives it; None while the prompt or the completion is missing.

    `model` is the call's own.
    """
    top = read(fields, _TABLE)
    listed = fields.get("iterations")
    entries = listed if isinstance(listed, list) else []
    passes, strange = _iterations(entries[:MAX_ENTRIES], model, is_refusal=is_refusal)
    _add(strange, {"iterations": sum(_sums(entries[MAX_ENTRIES:]).values())})
    if entries is not listed:
        _add(strange, _quantities(read({"iterations": listed}, {})))
    answered = [entry for entry in entries if json_body.under(entry, "type") not in _BESIDE_THE_TOP]
    if answered and passes:
        _add(strange, _excess(top, answered))
    elif passes or top.counts.keys() >= {"prompt", "completion"}:
        is_billed = not is_refusal or top.counts.get("completion", 0) > _MAX_DECLINED_TOKENS
        passes.append(_pass(top, "", is_billed=is_billed))
    else:
        return None
    _add(strange, _quantities(top))
    usage = Usage(
        prompt_tokens=sum(part.prompt for part in passes),
        completion_tokens=sum(part.completion for part in passes),
        cached_read_tokens=sum(part.cached for part in passes),
        cache_write_tokens=sum(part.written for part in passes),
        source=source,
        items=_items(passes, top),
        unknown=unknown_items(strange),
        conditions=_conditions(top.texts),
    )
    if max(usage.prompt_tokens, usage.completion_tokens) > MAX_SUM:
        return None
    return replace(usage, reasoning_tokens=min(top.counts.get("reasoning", 0), usage.completion_tokens))


def _iterations(entries: list[Any], model: str, *, is_refusal: bool) -> tuple[list[_Pass], dict[str, int]]:
    """(what is billed, what is unknown). Nothing is billed if no entry has a known type."""
    passes: list[_Pass] = []
    strange: dict[str, int] = {}
    kinds = [json_body.under(entry, "type") for entry in entries]
    last_attempt = max((index for index, kind in enumerate(kinds) if kind in _ATTEMPTS), default=0)
    served = max((index for index, kind in enumerate(kinds) if kind == "fallback_message"), default=0)
    # The response names the model that answered, which after a fallback is not the one that the call is priced by.
    others = {_model(entry) for kind, entry in zip(kinds, entries, strict=True) if kind != "advisor_message"}
    is_own = "fallback_message" not in kinds and others <= {"", model}
    for index, (kind, entry) in enumerate(zip(kinds, entries, strict=True)):
        reading = read({"iterations": [entry]}, _ENTRY_TABLE)
        _add(strange, _quantities(reading))
        if not isinstance(entry, dict) or (kind is not None and kind not in _BILLED):
            continue
        written = reading.counts.get("completion", 0)
        if is_refusal and index == last_attempt:
            is_billed = written > _MAX_DECLINED_TOKENS
        else:
            is_billed = written > 0 or kind not in _ATTEMPTS or not (is_refusal or index < served)
        name = _model(entry)
        passes.append(_pass(reading, "" if is_own and name == model else name, is_billed=is_billed))
    return passes, strange


def _model(entry: Any) -> str:
    name = json_body.under(entry, "model")
    return json_body.cleaned(name) if isinstance(name, str) else ""


def _pass(reading: Reading, model: str, *, is_billed: bool) -> _Pass:
    counts = reading.counts
    prompt, cached, completion = (counts.get(name, 0) for name in ("prompt", "cached_read", "completion"))
    ttls = {name: counts.get(name, 0) for name in _TTLS}
    rest = max(0, counts.get("cache_write", 0) - sum(ttls.values()))
    unknown = sum(number for path, number in reading.unknown_counts.items() if "cache_creation." in path)
    default = max(0, rest - unknown)
    written = rest + sum(ttls.values())
    quantities = {"prompt": prompt, "cached_read": cached, "cache_write": default, **ttls, "completion": completion}
    if not is_billed:
        quantities = {"prompt_unbilled": prompt + cached + written - rest + default, "completion_unbilled": completion}
    items = tuple(UsageItem(name, number, model) for name, number in quantities.items() if number)
    return _Pass(items, prompt + cached + written, completion, cached, written)


def _items(passes: list[_Pass], top: Reading) -> tuple[UsageItem, ...]:
    """All that is billed; empty if the counts alone say it."""
    items = tuple(item for part in passes for item in part.items)
    fees = tuple(UsageItem(name, top.counts[name]) for name in _FEES if top.counts.get(name))
    plain = sum(item.quantity for item in items if item.item in _PLAIN and not item.model)
    is_plain = len(passes) == 1 and not fees and plain == passes[0].prompt + passes[0].completion
    return () if is_plain else items + fees


def _excess(top: Reading, entries: list[Any]) -> dict[str, int]:
    """What the top level counts beyond the sum of entries."""
    sums = _sums(entries)
    return {field: top.counts.get(name, 0) - sums[field] for field, name in _TOTALS.items()}


def _sums(entries: list[Any]) -> dict[str, int]:
    return {field: sum(whole(json_body.under(entry, field)) or 0 for entry in entries) for field in _TOTALS}


def _conditions(texts: Mapping[str, str]) -> Conditions:
    tier, speed, region = (texts.get(name, "").lower() for name in ("tier", "speed", "region"))
    if not (tier or speed or region):
        return STANDARD
    return Conditions(
        tier="" if tier in ("standard", "batch") else tier,
        speed="" if speed == "standard" else speed,
        region="" if region in _NO_REGION else region,
        batch=tier == "batch",
    )


def _quantities(reading: Reading) -> dict[str, int]:
    return {item.item: item.quantity for item in reading.unknown}


def _add(sums: dict[str, int], quantities: Mapping[str, int]) -> None:
    for name, quantity in quantities.items():
        if quantity > 0:
            sums[name] = sums.get(name, 0) + quantity
