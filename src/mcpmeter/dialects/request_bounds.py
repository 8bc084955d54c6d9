"""What bounds the cost of a request that is more than text and one limit: limits, media, references, hosted tools.

Entered only for requests that hold such fields, and only if a limit applies to the caller. The tables name fields as
the providers' pages and SDKs do. A tool of an unknown type counts as one with a fee.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from mcpmeter.dialects import json_body
from mcpmeter.dialects.base import RequestInfo
from mcpmeter.dialects.tokens import MAX_TOKENS, MIN_TOKENS_PER_MEDIUM, media_tokens
from mcpmeter.records import STANDARD, AddedCall, Conditions, UsageItem

MAX_CHOICES: Final = 1024
"""No provider returns as many; a larger number bounds nothing."""

MAX_REFERENCES: Final = 16
"""Names kept; one is enough to reserve for."""

TOOL_PROMPT_TOKENS: Final = 1000
"""What a provider adds to the prompt to explain tools, and for each tool of its own. Anthropic's page has up to 735:
https://platform.claude.com/docs/en/agents-and-tools/tool-use/overview#pricing"""

_LARGE_IMAGES: Final = {"4o-mini": 40_000, "gpt-5.": 12_000, "qwen": 17_000, "qvq": 17_000}
"""The most tokens of an image, by a part of the model's name, where a small file can take more than
`MIN_TOKENS_PER_MEDIUM`: https://platform.openai.com/docs/guides/images-vision (36,835 for gpt-4o-mini),
https://help.aliyun.com/zh/model-studio/vision (16,384). The figure of gpt-5 is an assumption: no page gives one."""

_STANDARD: Final = frozenset(("", "standard", "standard_only", "default", "auto", "on_demand", "global", "soonest"))
_TIERS: Final = {"fast": "priority"}
_MAX_SCHEME: Final = 16
_DATA_URL: Final = re.compile(r"data:([^;,]{0,128})[;,]")
_TEXTUAL: Final = ("text/", "application/json", "application/xml", "application/x-javascript")

_OPENAI_LIMITS: Final = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_new_tokens",
    "max_gen_len",
    "max_length",
    "n_predict",
    "num_predict",
)
_OPENAI_CHOICES: Final = ("n", "best_of")
_OPENAI_THOUGHTS: Final = (("thinking_budget",), ("reasoning", "max_tokens"), ("thinking", "budget_tokens"))
"""Limits of thoughts that some providers (DashScope, SiliconFlow) count beside the response's own limit."""

_OPENAI_REFERENCES: Final = ("previous_response_id", "conversation", "prompt", "preset", "data_sources")
"""`preset` is OpenRouter's, `data_sources` Azure's."""
_GOOGLE_REFERENCES: Final = (("extra_body", "google", "cached_content"), ("google", "cached_content"))
"""Of Gemini in OpenAI's dialect: https://ai.google.dev/gemini-api/docs/openai#extra-body"""
_URL_FIELDS: Final = ("image_url", "video_url", "audio_url", "document_url", "video", "input_video")
_STORED_ITEMS: Final = {
    "reasoning": "encrypted_content",
    "image_generation_call": "result",
    "web_search_call": "",
    "file_search_call": "",
    "code_interpreter_call": "",
}
"""Items of an input that the provider completes from its store by their `id`, unless this field of them is set."""
_OPENAI_TOOLS: Final = {
    "web_search": "web_search",
    "web_search_preview": "web_search_preview",
    "browser_search": "web_search",
    "builtin_function": "web_search",  # Moonshot's `$web_search`
    "live_search": "web_search",
    "x_search": "social_search",
    "file_search": "file_search",
    "collections_search": "file_search",
    "code_interpreter": "code_session",
    "code_execution": "code_session",
    "image_generation": "image",
    "mcp": "",
}
_OPENAI_CLIENT_TOOLS: Final = (
    "function",
    "custom",
    "computer",
    "apply_patch",
    "local_shell",
    "shell",
    "namespace",
    "tool_search",
    "programmatic_tool_calling",
)
_PLUGINS: Final = {"web": "web_search", "file-parser": "page"}
_SESSION: Final = "code_session"
SEARCHING_MODEL: Final = re.compile(r"search|:online|compound|@preset/")
"""In the names of models that search without a tool: OpenAI's own, OpenRouter's suffix and presets, Groq's."""

_ANTHROPIC_REFERENCES: Final = ("container", "mcp_servers", "thread")
_ANTHROPIC_TOOLS: Final = {
    "web_search": "web_search",
    "web_fetch": "",
    "code_execution": "code_session",
    "advisor": "",
    "mcp_toolset": "",
    "tool_search": "",
}
_ANTHROPIC_CLIENT_TOOLS: Final = ("custom", "bash", "text_editor", "computer", "memory", "browser")

_GEMINI_CONFIGS: Final = ("generationConfig", "generation_config")
_GEMINI_LIMITS: Final = ("maxOutputTokens", "max_output_tokens")
_GEMINI_CHOICES: Final = ("candidateCount", "candidate_count")
_GEMINI_REFERENCES: Final = ("cachedContent", "cached_content", "continuationToken", "continuation_token")
_GEMINI_SEARCHES: Final = frozenset(
    ("googleSearch", "googleSearchRetrieval", "enterpriseWebSearch", "parallelAiSearch", "exaAiSearch")
)
_GEMINI_CONTENT_TOOLS: Final = frozenset(("urlContext", "codeExecution", "fileSearch", "mcpServers", "retrieval"))
_GEMINI_CLIENT_TOOLS: Final = frozenset(("functionDeclarations", "computerUse"))
_BY_PROMPT: Final = ("gemini-1", "gemini-2")
"""Models whose grounding is billed by the prompt; later ones bill each search."""


def conditions(
    tier: msgspec.Raw,
    *,
    speed: msgspec.Raw = json_body.ABSENT,
    region: msgspec.Raw = json_body.ABSENT,
    background: msgspec.Raw = json_body.ABSENT,
) -> Conditions:
    """What a request asks to be served by, with the standard's names left out."""
    served = _name(_value(tier))
    wanted = Conditions(
        tier=_TIERS.get(served, served),
        speed=_name(_value(speed)),
        region=_name(_value(region)),
        completion_window=_name(json_body.under(_value(background), "completion_window")),
    )
    return STANDARD if wanted == STANDARD else wanted


def _value(raw: msgspec.Raw) -> Any:
    return msgspec.json.decode(raw) if json_body.is_set(raw) else None


def _name(value: Any) -> str:
    name = json_body.cleaned(value)[:64].lower() if isinstance(value, str) else ""
    return "" if name in _STANDARD else name


class _Bounds:
    """What is found in one request."""

    def __init__(self, body: bytes, request: RequestInfo, models: Sequence[str]) -> None:
        self.request, self.models = request, models or (request.model,)
        self.value: dict[str, Any] = json_body.parsed(body)
        self.fault = ""
        if repeated := json_body.repeated_anywhere(body, self.value):
            self.fault = f"The body names '{repeated}' twice, so that it is not known which one bounds the cost."
        self.limit: int | None = None
        self.choices = 1
        self.thoughts = 0
        self.prompt = len(body)
        self.references: dict[str, None] = {}
        self.items: dict[str, int] = {}
        self.added: list[AddedCall] = []

    def info(self) -> RequestInfo:
        limit = None if self.limit is None else min((self.limit + self.thoughts) * self.choices, MAX_TOKENS)
        return replace(
            self.request,
            max_prompt_tokens=self.prompt,
            max_completion_tokens=limit,
            choices=self.choices,
            limit_fault=self.fault,
            references=tuple(self.references)[:MAX_REFERENCES],
            max_items=tuple(UsageItem(item, quantity) for item, quantity in self.items.items()),
            added_calls=tuple(self.added[:MAX_REFERENCES]),
            has_bounds=False,
        )

    # Limits -----------------------------------------------------------------------------------------------------------

    def read_limits(self, fields: Mapping[str, Any], limits: Iterable[str], choices: Iterable[str] = ()) -> None:
        """The greatest of all limits, and of all numbers of choices. Some servers read a limit of 0 as none."""
        for name in limits:
            if count := self.count(fields.get(name), name):
                self.limit = max(self.limit or 0, count)
        for name in choices:
            if (count := self.count(fields.get(name), name)) is None:
                continue
            if count > MAX_CHOICES:
                self.fault = f"'{name}' is greater than {MAX_CHOICES}."
            self.choices = max(self.choices, min(count, MAX_CHOICES))

    def count(self, value: Any, name: str) -> int | None:
        if value is None:
            return None
        if type(value) is int and 0 <= value <= MAX_TOKENS:
            return value
        self.fault = f"'{name}' is no whole number from 0 to {MAX_TOKENS}."
        return None

    def read_thoughts(self, *values: Any) -> None:
        """Limits of thoughts that add to the response's own; -1 leaves them to the model, within that limit."""
        counts = [self.count(value, "a limit of thoughts") for value in values if value != -1]
        self.thoughts += max((count for count in counts if count), default=0)

    # The prompt -------------------------------------------------------------------------------------------------------

    def refer(self, *names: str) -> None:
        for name in names:
            self.references[name] = None

    def refer_to_fields(self, names: Iterable[str]) -> None:
        self.refer(*(name for name in names if self.value.get(name)))

    def add_url(self, url: Any, name: str) -> None:
        """A medium by its `data:` URL, or a reference."""
        found = _DATA_URL.match(url) if isinstance(url, str) else None
        if found is None:
            self.refer(name)
        else:
            self.add_medium(found[1], url, name)

    def add_medium(self, mime: Any, data: Any, name: str, default: str = "") -> None:
        """Base64 of a kind: an image has a maximum, text is text, and nothing bounds anything else."""
        kind = mime.lower() if isinstance(mime, str) and mime else default
        if not isinstance(data, str):
            return
        if kind.startswith("image/"):
            self.prompt += self._image_tokens(len(data)) - len(data)
        elif not kind.startswith(_TEXTUAL):
            self.refer(name)
            self.prompt -= len(data)

    def _image_tokens(self, size: int) -> int:
        large = [most for part, most in _LARGE_IMAGES.items() if any(part in model for model in self.models)]
        return max(MIN_TOKENS_PER_MEDIUM, media_tokens(size), *large)

    def add_sound(self, sound: Any) -> None:
        """WAV or MP3 in base64, whose least rate bounds its length; Mistral and DashScope take a URL too."""
        data = sound.get("data") if isinstance(sound, dict) else sound
        if not isinstance(data, str) or "://" in data[:_MAX_SCHEME]:
            self.refer("input_audio")
        else:
            self.prompt += max(MIN_TOKENS_PER_MEDIUM, media_tokens(len(data))) - len(data)

    # Tools ------------------------------------------------------------------------------------------------------------

    def add_item(self, item: str, uses: Any = None) -> None:
        """A fee, and its maximum number; 0 if the request sets none."""
        bound = self.count(uses, "a maximum of uses") or 0
        known = self.items.get(item)
        self.items[item] = bound if known is None else (known + bound if known and bound else 0)

    def add_tools(self, found: int, hosted: int) -> None:
        if found:
            self.prompt += TOOL_PROMPT_TOKENS * (1 + hosted)


# OpenAI ---------------------------------------------------------------------------------------------------------------


def of_openai(body: bytes, request: RequestInfo, models: Sequence[str]) -> RequestInfo:
    """The bounds of a chat completion or a response."""
    found = _Bounds(body, request, models)
    value = found.value
    found.read_limits(value, _OPENAI_LIMITS, _OPENAI_CHOICES)
    found.read_thoughts(*(json_body.under(value, *path) for path in _OPENAI_THOUGHTS))
    if (prediction := value.get("prediction")) and found.limit is not None:
        # Rejected tokens of a prediction are billed as completion; no token is shorter than a byte.
        found.limit += len(msgspec.json.encode(prediction))
    found.refer_to_fields(_OPENAI_REFERENCES)
    found.refer(*(path[-1] for path in _GOOGLE_REFERENCES if json_body.under(value, *path)))
    for part in _dicts(value.get("messages"), value.get("input"), value.get("instructions")):
        _read_openai_part(found, part)
    others = value.get("models")
    others = [model for model in others if isinstance(model, str)] if isinstance(others, list) else []
    _read_openai_tools(found, [*found.models, *others])
    found.added += (AddedCall(model=model, is_instead=True) for model in others)
    if value.get("context_management"):
        found.added.append(AddedCall(by_reference=bool(found.references)))
    return found.info()


def _read_openai_part(found: _Bounds, part: dict[str, Any]) -> None:
    kind = part.get("type")
    if kind == "item_reference":
        found.refer("item_reference")
    if isinstance(kind, str) and kind in _STORED_ITEMS and part.get("id") and not part.get(_STORED_ITEMS[kind]):
        found.refer(kind)
    for name in _URL_FIELDS:
        if url := part.get(name):
            found.add_url(url.get("url") if isinstance(url, dict) else url, name)
    for name in ("file_id", "file_url"):
        if part.get(name):
            found.refer(name)
    if data := part.get("file_data"):
        found.add_url(data, "file_data")
    if sound := part.get("input_audio"):
        found.add_sound(sound)
    if json_body.under(part, "audio", "id"):  # an earlier response's sound
        found.refer("audio")
    if kind == "image_generation_call":
        found.add_medium("image/png", part.get("result"), "image")


def _read_openai_tools(found: _Bounds, models: Iterable[str]) -> None:
    value = found.value
    tools = list(_dicts(value.get("tools"), into=("tools",)))
    uses, hosted = value.get("max_tool_calls"), 0
    for tool in tools:
        kind = _kind_of(tool)
        item = _tool_of(kind, _OPENAI_TOOLS, _OPENAI_CLIENT_TOOLS)
        if kind == "shell" and "container" in str(json_body.under(tool, "environment", "type")):
            item = _SESSION
        if item is None:
            continue
        hosted += 1
        found.refer(kind[:64])
        if item:
            # A container lives longer than a call may take, so that a tool bills one session.
            found.add_item(item, 1 if item == _SESSION else uses)
    found.add_tools(len(tools), hosted)
    searches = value.get("search_parameters")
    if isinstance(searches, dict) and searches.get("mode") != "off":
        found.refer("search_parameters")
        found.add_item("web_search", searches.get("max_search_results"))
    searching = [model for model in models if SEARCHING_MODEL.search(model)]
    if "web_search_options" in value or value.get("enable_search") or searching:
        found.refer("web_search_options")
        found.add_item("web_search_preview")
    plugins = value.get("plugins")
    for plugin in plugins if isinstance(plugins, list) else ():
        found.refer("plugins")
        found.add_item(_PLUGINS.get(str(json_body.under(plugin, "id")), "provider_fee"))


def _kind_of(tool: dict[str, Any]) -> str:
    """A tool's type; one without a type is a function, if it says so, or else of an unknown kind."""
    kind = tool.get("type")
    if kind is None and ("function" in tool or "name" in tool):
        return "function"
    return kind if isinstance(kind, str) else "?"


def _tool_of(kind: str, hosted: Mapping[str, str], client: tuple[str, ...]) -> str | None:
    """The item that a tool's use is billed by, empty for none; None if the caller runs the tool.

    Types carry dates, as in `web_search_20250305`; the longest known name counts.
    """
    for name in sorted(hosted, key=len, reverse=True):
        if kind.startswith(name):
            return hosted[name]
    return None if kind.startswith(client) else "provider_fee"


# Anthropic ------------------------------------------------------------------------------------------------------------


def of_anthropic(body: bytes, request: RequestInfo, models: Sequence[str]) -> RequestInfo:
    """The bounds of a message."""
    found = _Bounds(body, request, models)
    value = found.value
    # A limit of 0 only fills the cache.
    found.limit = found.count(value.get("max_tokens"), "max_tokens")
    if found.limit is not None:
        budget = json_body.under(value, "thinking", "budget_tokens")
        found.limit = max(found.limit, found.count(budget, "budget_tokens") or 0)
    found.refer_to_fields(_ANTHROPIC_REFERENCES)
    for block in _dicts(value.get("messages"), value.get("system")):
        _read_anthropic_block(found, block)
    cached = [value, *_dicts(value.get("messages"), value.get("system"), value.get("tools"))]
    if any(json_body.under(block, "cache_control", "ttl") not in (None, "5m") for block in cached):
        found.add_item("cache_write_1h")  # not every list has a price for it
    _read_anthropic_tools(found)
    _read_anthropic_attempts(found)
    return found.info()


def _read_anthropic_block(found: _Bounds, block: dict[str, Any]) -> None:
    kind, source = block.get("type"), block.get("source")
    if kind == "container_upload":
        found.refer("container_upload")
    if not isinstance(source, dict):
        return
    if source.get("type") == "base64":
        default = "image/" if kind == "image" else ""
        found.add_medium(source.get("media_type"), source.get("data"), "document", default)
    elif source.get("type") not in ("text", "content"):
        found.refer(f"source.{str(source.get('type'))[:32]}")


def _read_anthropic_tools(found: _Bounds) -> None:
    tools, hosted = list(json_body.dicts_in(found.value.get("tools"))), 0
    for tool in tools:
        kind = tool.get("type")
        item = None if kind is None else _tool_of(str(kind), _ANTHROPIC_TOOLS, _ANTHROPIC_CLIENT_TOOLS)
        hosted += kind is not None
        if item is None:
            continue
        if item:
            found.add_item(item, 1 if item == _SESSION else tool.get("max_uses"))
        if str(kind).startswith("advisor"):
            limit = found.count(tool.get("max_tokens"), "max_tokens")
            uses = tool.get("max_uses")
            times = uses if type(uses) is int and 0 < uses <= MAX_CHOICES else 0
            model = tool["model"] if isinstance(tool.get("model"), str) else ""
            found.added.append(AddedCall(model=model, times=times, max_completion_tokens=limit, by_reference=True))
        elif not str(kind).startswith("tool_search"):
            found.refer(str(kind)[:64])
    found.add_tools(len(tools), hosted)


def _read_anthropic_attempts(found: _Bounds) -> None:
    """Further messages that one request can make: fallbacks after a refusal, a compaction."""
    fallbacks = found.value.get("fallbacks")
    for fallback in json_body.dicts_in(fallbacks):
        limit = found.count(fallback.get("max_tokens"), "max_tokens")
        model = fallback["model"] if isinstance(fallback.get("model"), str) else ""
        found.added.append(_added(found, model, found.limit if limit is None else limit))
    if fallbacks == "default":
        found.added.append(_added(found, "", found.limit))
    if found.value.get("compaction") or found.value.get("context_management"):
        found.added.append(_added(found, "", found.limit))


def _added(found: _Bounds, model: str, limit: int | None) -> AddedCall:
    return AddedCall(model=model, max_completion_tokens=limit, by_reference=bool(found.references))


# Gemini ---------------------------------------------------------------------------------------------------------------


def of_gemini(body: bytes, request: RequestInfo, models: Sequence[str]) -> RequestInfo:
    """The bounds of a generateContent request, or of an embedding's. Google reads names in both spellings."""
    found = _Bounds(body, request, models)
    value = found.value
    for name in _GEMINI_CONFIGS:
        config = value.get(name)
        if isinstance(config, dict):
            found.read_limits(config, _GEMINI_LIMITS, _GEMINI_CHOICES)
            for thinking in (config.get("thinkingConfig"), config.get("thinking_config")):
                budgets = (json_body.under(thinking, "thinkingBudget"), json_body.under(thinking, "thinking_budget"))
                found.read_thoughts(*budgets)
    found.refer_to_fields(_GEMINI_REFERENCES)
    prompt = ("contents", "content", "requests", "systemInstruction", "system_instruction")
    for part in _dicts(*(value.get(name) for name in prompt)):
        _read_gemini_part(found, part)
    _read_gemini_tools(found)
    info = found.info()
    return info if request.max_completion_tokens != 0 else replace(info, max_completion_tokens=0)


def _read_gemini_part(found: _Bounds, part: dict[str, Any]) -> None:
    if part.get("fileData") or part.get("file_data"):
        found.refer("fileData")
    for blob in (part.get("inlineData"), part.get("inline_data")):
        if isinstance(blob, dict):
            found.add_medium(blob.get("mimeType") or blob.get("mime_type"), blob.get("data"), "inlineData")


def _read_gemini_tools(found: _Bounds) -> None:
    tools = list(json_body.dicts_in(found.value.get("tools")))
    names = {_camel(name) for tool in tools for name in tool}
    hosted = names - _GEMINI_CLIENT_TOOLS
    by_prompt = all(model.startswith(_BY_PROMPT) for model in found.models)
    found.refer(*sorted(hosted)[:MAX_REFERENCES])
    if hosted & _GEMINI_SEARCHES:
        found.add_item("grounded_prompt" if by_prompt else "web_search", 1 if by_prompt else 0)
    if "googleMaps" in hosted:
        found.add_item("maps_search", 1 if by_prompt else 0)
    if hosted - _GEMINI_SEARCHES - _GEMINI_CONTENT_TOOLS - {"googleMaps"}:
        found.add_item("provider_fee")
    found.add_tools(len(tools), len(hosted))


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _dicts(*values: Any, into: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Every object in these values, at any depth, but for what a tool gets and returns, which is text to a model.

    Of an object only the fields of `into`, if any are named.
    """
    stack: list[Any] = list(values)
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.get(name) for name in into or item.keys() - _opaque(item))
        elif isinstance(item, list):
            stack.extend(item)


def _opaque(item: dict[str, Any]) -> Iterable[str]:
    """The fields of an object that hold JSON of the caller's own: it may look like a picture and is text."""
    return ("input",) if str(item.get("type")).endswith("tool_use") else ("args", "response")
