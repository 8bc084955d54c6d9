"""What the hosted tools of a response bill: https://developers.openai.com/api/docs/pricing#built-in-tools

`tool_usage` counts billable searches. Without it they are the `web_search_call` items whose action is a search:
opening a page and finding in it are free. A container is billed once for each session, whatever runs in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from mcpmeter.dialects import json_body, openai_usage, usage_fields, usage_merging
from mcpmeter.dialects.usage_fields import PART, Table, count
from mcpmeter.records import Usage, UsageItem

WEB_SEARCH: Final = "web_search_call"
BILLED: Final = (WEB_SEARCH, "file_search_call", "code_interpreter_call", "shell_call", "image_generation_call")
"""Types of items in an output. Functions, MCP servers and the client's own tools bill tokens only."""

EXECUTED: Final = MappingProxyType(
    {
        "search": "web_search",
        "open": "web_fetch",
        "visit": "web_fetch",
        "python": "code_execution",
        "code": "code_execution",
    }
)
"""Parts of the names of Groq's tools, and what each bills."""

FREE_ACTIONS: Final = ("open_page", "find", "find_in_page")
PREVIEW: Final = "web_search_preview"
IMAGES: Final = "image_gen"

_TABLE: Final[Table] = MappingProxyType({"web_search.num_requests": count("web_search")})
_IMAGE_TABLE: Final[Table] = MappingProxyType(
    {
        **openai_usage.TABLE,
        "cached_tokens_details.cached_text_tokens": PART,
        "cached_tokens_details.cached_image_tokens": count("cached_read_image"),
    }
)
_Calls = Sequence[Mapping[str, Any]]


class ToolUsage(NamedTuple):
    """What hosted tools bill."""

    items: tuple[UsageItem, ...] = ()
    """Searches, sessions and images."""
    unknown: tuple[UsageItem, ...] = ()
    images: Usage | None = None
    """The tokens of the model that makes images."""
    image_model: str = ""

    def items_beside(self, usage: Usage | None) -> tuple[UsageItem, ...]:
        """Those that the usage object does not count itself, as xAI's does."""
        counted = {item.item for item in usage.items} if usage else ()
        return tuple(item for item in self.items if item.item not in counted)

    def beside(self, usage: Usage | None) -> Usage | None:
        """A usage with the tokens of the model that makes images."""
        images = self.images
        if usage is None or images is None:
            return usage
        theirs = (replace(item, model=self.image_model) for item in usage_merging.items_of(images))
        return replace(
            usage,
            prompt_tokens=usage.prompt_tokens + images.prompt_tokens,
            completion_tokens=usage.completion_tokens + images.completion_tokens,
            cached_read_tokens=usage.cached_read_tokens + images.cached_read_tokens,
            items=(*usage_merging.items_of(usage), *theirs),
        )


def read(output: msgspec.Raw, tools: msgspec.Raw, tool_usage: msgspec.Raw) -> ToolUsage:
    """Read the fields of a response. Never raises."""
    calls, offered = _objects(output), _objects(tools)
    usage = usage_fields.parsed(tool_usage) if json_body.is_set(tool_usage) else None
    images = usage.pop(IMAGES, None) if isinstance(usage, dict) else None
    reading = usage_fields.read(usage, _TABLE)
    strange = {f"tool_usage.{item.item}": item.quantity for item in reading.unknown}
    searches = reading.counts.get("web_search")
    if searches is None:
        searches = _searches(calls, strange)
    is_preview = any(str(tool.get("type")).startswith(PREVIEW) for tool in offered)
    quantities = {
        PREVIEW if is_preview else "web_search": searches,
        "file_search": sum(call.get("type") == "file_search_call" for call in calls),
        "code_session": len({place for call in calls if (place := _container(call))}),
    }
    drawn, model = _image_usage(images, strange), _image_model(offered)
    if drawn is None:
        quantities["image"] = sum(call.get("type") == "image_generation_call" for call in calls)
    elif not model:
        # Only `tools` names the model, and its tokens have other prices than the response's.
        strange[f"tool_usage.{IMAGES}"] = drawn.prompt_tokens + drawn.completion_tokens
    return ToolUsage(
        tuple(UsageItem(name, quantity) for name, quantity in quantities.items() if quantity),
        usage_fields.unknown_items(strange),
        drawn if model else None,
        model,
    )


def are_offered(tools: msgspec.Raw) -> bool:
    """Whether a response says that it could call a tool that bills more than tokens."""
    kinds = [json_body.text_of(tool.get("type")) for tool in _objects(tools)]
    return any(kind.startswith(call.removesuffix("_call")) for kind in kinds for call in BILLED)


def executed(tools: Sequence[Any], *, is_stream: bool = False) -> tuple[tuple[UsageItem, ...], tuple[UsageItem, ...]]:
    """(items, unknown items) of Groq's `executed_tools`, of all messages: https://console.groq.com/docs/tool-use/built-in-tools

    A stream repeats an entry as it grows, some without the tool's name; so its entries are counted without a price.
    """
    calls = [call for raw in tools for call in _objects(raw)]
    if is_stream:
        places = [place for call in calls if (place := usage_fields.whole(call.get("index"))) is not None]
        return (), usage_fields.unknown_items({"executed_tools": max(places, default=len(calls) - 1) + 1})
    quantities: dict[str, int] = {}
    strange: dict[str, int] = {}
    for call in calls:
        kind = json_body.text_of(call.get("name")) or json_body.text_of(call.get("type"))
        item = next((item for part, item in EXECUTED.items() if part in kind), "")
        into, name = (quantities, item) if item else (strange, f"executed_tools.{kind}")
        into[name] = into.get(name, 0) + 1
    return tuple(UsageItem(*each) for each in quantities.items()), usage_fields.unknown_items(strange)


def _objects(raw: msgspec.Raw) -> _Calls:
    return list(json_body.dicts_in(usage_fields.parsed(raw))) if json_body.is_set(raw) else []


def _searches(calls: _Calls, strange: dict[str, int]) -> int:
    searches = 0
    for call in calls:
        if call.get("type") == WEB_SEARCH:
            action = call.get("action")
            kind = action.get("type") if isinstance(action, dict) else None
            if kind is None or kind == "search":
                searches += 1
            elif kind not in FREE_ACTIONS:
                path = f"output.{WEB_SEARCH}.{json_body.text_of(kind)}"
                strange[path] = strange.get(path, 0) + 1
    return searches


def _container(call: Mapping[str, Any]) -> str:
    """The container that a call ran in; empty if it ran in none."""
    if call.get("type") == "code_interpreter_call":
        place = call.get("container_id") or "one"
    else:
        place = json_body.under(call, "environment", "container_id") if call.get("type") == "shell_call" else None
    return place if isinstance(place, str) else ""


def _image_usage(images: Any, strange: dict[str, int]) -> Usage | None:
    """The tokens of `tool_usage.image_gen`; None if there are none."""
    if not isinstance(images, dict):
        return None
    # Details of the output can be omitted: an image model's output is images.
    details = images.get("output_tokens_details") or {"image_tokens": images.get("output_tokens")}
    usage, _bad = openai_usage.usage_of({**images, "output_tokens_details": details}, _IMAGE_TABLE)
    if usage is None or not usage.prompt_tokens + usage.completion_tokens:
        return None
    strange.update({f"tool_usage.{IMAGES}.{item.item}": item.quantity for item in usage.unknown})
    return usage


def _image_model(offered: _Calls) -> str:
    """The one model that makes images; empty if it is not named."""
    models = {json_body.text_of(tool.get("model")) for tool in offered if tool.get("type") == "image_generation"}
    return models.pop() if len(models) == 1 else ""
