"""Generates a response's content before its first byte is sent, so that its usage is known exactly.

Every token is 4 characters of text, so a client can count the delivered tokens too. `dialects` render the content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Literal, NamedTuple

import msgspec

from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.latency import Spread
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import CHARS_PER_TOKEN, text_tokens
from mcpmeter.simulator.schemas import instance_of

CREATED_UNIX_SECONDS = 1_767_225_600
"""2026-01-01T00:00:00Z in every response: the same seed and request give the same bytes on every day."""

CACHE_MIN_TOKENS = 1024
CACHE_STEP_TOKENS = 128
MAX_DRAWN_TOKENS = 4096
DATED_MODELS = {
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "claude-sonnet-4.5": "claude-sonnet-4-5-20250929",
    "gemini-2.5-flash": "gemini-2.5-flash-06-17",
    "deepseek-v3.2": "deepseek-v3.2-20251201",
}

_HUGE_CHUNK_TOKENS = 4096
_THREE_LETTER_WORDS = """
the sun ran far and low one old man sat out his day for two big red fox saw him who did not see her dog can run but now
all may try any way too few let you get new air sea sky ice oak ash elm ivy bee ant owl hen cow pig cat rat bat jay
"""
_TEXT_TOKENS = 8192
_TEXT = " ".join(Random(0).choices(_THREE_LETTER_WORDS.split(), k=_TEXT_TOKENS)) + " "  # noqa: S311 (fixed filler)
_JSON_OVERHEAD_TOKENS = 3  # {"answer":"…"} around n tokens of words has 4 * (n + 3) characters

TextFormatKind = Literal["text", "json", "schema", "enum"]
FinishReason = Literal["stop", "length", "tool_calls", "refusal"]


class BilledTokens(NamedTuple):
    """The true usage of one call; cached, reasoning and cache-write tokens are parts of the totals."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0
    cache_write: int = 0


class Tool(NamedTuple):
    """A callable function and the JSON schema of its arguments."""

    name: str
    schema: Any


class GenerationParams(msgspec.Struct, frozen=True, gc=False):
    """The parameters of a request, independent of its dialect."""

    model: str
    prompt_tokens: int
    max_tokens: int | None = None
    """Maximum completion tokens per choice, reasoning included."""
    n: int = 1
    tools: Sequence[Tool] = ()
    tool_choice: Literal["auto", "none", "required"] = "auto"
    tool_name: str = ""
    """The tool that the request requires."""
    after_tool: bool = False
    """Whether the last message is a tool's result: the response is text then."""
    whole_arguments: bool = False
    """The dialect sends arguments as a JSON object, which cannot be cut: it becomes `{}`."""
    text_format: TextFormatKind = "text"
    schema: Any = None
    reasons: bool = False
    max_reasoning_tokens: int | None = None
    shows_reasoning: bool = False
    cacheable_tokens: int = 0
    """Prompt tokens that are read from the cache when the request is repeated."""
    writes_cache: bool = False
    """Whether the first request is billed for writing them."""
    reports_cache_writes: bool = True
    refuses_without_text: bool = False


class ToolCall(NamedTuple):
    """One function call of the model. Dialects add their own prefix to `id`."""

    id: str
    name: str
    arguments: str

    @property
    def tokens(self) -> int:
        """Completion tokens of the name and of the arguments' JSON without spaces."""
        return text_tokens(self.name) + text_tokens(self.arguments)


class Choice(msgspec.Struct, frozen=True, gc=False):
    """One of the `n` choices."""

    text: str
    calls: tuple[ToolCall, ...]
    finish_reason: FinishReason

    @property
    def tokens(self) -> int:
        """Visible completion tokens."""
        return text_tokens(self.text) + sum(call.tokens for call in self.calls)


class Generation(msgspec.Struct, frozen=True, gc=False):
    """The whole content of one response, before a dialect renders it."""

    id_bits: int
    """128 bits from which a dialect makes its ids."""
    model: str
    choices: tuple[Choice, ...]
    billed: BilledTokens
    reasoning_text: str = ""
    """Empty if the reasoning is hidden."""


def generate(params: GenerationParams, fault: Fault, plan: Plan, random: Random, repetition: int) -> Generation:
    """Generate the whole content; `repetition` counts earlier requests with the same body."""
    reasoning = _reasoning_tokens(params, fault, random)
    first = _generate_choice(params, fault, plan, random, reasoning)
    choices = (first, *(_generate_choice(params, fault, plan, random, 0) for _ in range(1, params.n)))
    completion = reasoning + sum(choice.tokens for choice in choices)
    cached, written = _cache_tokens(params, fault, repetition)
    billed = BilledTokens(params.prompt_tokens, completion, cached, reasoning, written)
    model = response_model(params.model, fault, plan)
    id_bits = random.getrandbits(128)
    reasoning_text = words(reasoning, random.getrandbits(13)) if params.shows_reasoning else ""
    return Generation(id_bits, model, choices, billed, reasoning_text)


def response_model(model: str, fault: Fault, plan: Plan) -> str:
    """The model name in the response: the requested one, or its dated snapshot."""
    dated = plan.dated_models if fault.dated_model is None else fault.dated_model
    if not dated:
        return model
    return DATED_MODELS.get(model, f"{model}-2026-01-01")


def implicitly_cacheable(prompt_tokens: int) -> int:
    """Tokens that an implicit cache holds: only of long prompts, in steps of 128, as OpenAI's does."""
    if prompt_tokens < CACHE_MIN_TOKENS:
        return 0
    return prompt_tokens // CACHE_STEP_TOKENS * CACHE_STEP_TOKENS


def words(tokens: int, offset: int = 0) -> str:
    """English-looking text of exactly this many tokens, cut from a fixed text."""
    if tokens <= 0:
        return ""
    start = offset % _TEXT_TOKENS
    turns = -(-(start + tokens) // _TEXT_TOKENS)
    text = _TEXT if turns == 1 else _TEXT * turns
    return text[start * CHARS_PER_TOKEN : (start + tokens) * CHARS_PER_TOKEN - 1]


def pieces(text: str, fault: Fault) -> Iterator[str]:
    """The text in the pieces of a stream: one token each unless the fault sets more."""
    step = CHARS_PER_TOKEN * (fault.tokens_per_chunk or (_HUGE_CHUNK_TOKENS if fault.huge_mb else 1))
    return (text[start : start + step] for start in range(0, len(text), step))


def number(value: int, fault: Fault) -> str:
    """A number of the usage in JSON, changed by the fault."""
    if fault.usage is None:
        return str(value)
    match fault.usage:
        case "zero":
            return "0"
        case "negative":
            return str(-value - 1)
        case "string":
            return f'"{value}"'
        case "nan":
            return "NaN"
        case "overflow":
            return "1e400"
        case _:
            return str(value)


def with_usage(body: bytes, usage: bytes, fault: Fault, key: bytes = b"usage") -> bytes:
    """Append the usage to a JSON object; the fault may omit or repeat it, or add a field that no provider documents."""
    if fault.usage == "invented":
        usage = usage[:-1] + b',"invented_tokens":7}'
    times = {"missing": 0, "twice": 2}.get(fault.usage or "", 1)
    return body[:-1] + (b',"' + key + b'":' + usage) * times + b"}"


def _generate_choice(params: GenerationParams, fault: Fault, plan: Plan, random: Random, reasoning: int) -> Choice:
    tokens = _visible_tokens(fault, random, reasoning, plan.completion_tokens)
    limit = None if params.max_tokens is None or fault.huge_mb else max(0, params.max_tokens - reasoning)
    offset = random.getrandbits(13)
    if fault.refusal:
        return _refusal(params, tokens if limit is None else min(tokens, limit), offset)
    tool = _called_tool(params, fault, plan)
    if tool is not None:
        return _tool_choice(params, tool, random, limit)
    text = _formatted(params, tokens, offset)
    if text is None:
        text = words(tokens, offset)
    if limit is None or text_tokens(text) <= limit:
        return Choice(text, (), "stop")
    return Choice(text[: limit * CHARS_PER_TOKEN], (), "length")


def _visible_tokens(fault: Fault, random: Random, reasoning: int, lengths: Spread) -> int:
    drawn = min(MAX_DRAWN_TOKENS, max(1, round(lengths.sample(random))))
    if fault.huge_mb is not None:
        return fault.huge_mb * 1024 * 1024 // CHARS_PER_TOKEN
    if fault.completion_tokens is not None:
        return max(0, fault.completion_tokens - reasoning)
    return drawn


def _reasoning_tokens(params: GenerationParams, fault: Fault, random: Random) -> int:
    drawn = random.randrange(32, 512) if params.reasons else 0
    tokens = drawn if fault.reasoning_tokens is None else fault.reasoning_tokens
    bounds = [
        limit
        for limit in (params.max_tokens, params.max_reasoning_tokens, fault.completion_tokens)
        if limit is not None
    ]
    return min(tokens, *bounds) if bounds else tokens


def _cache_tokens(params: GenerationParams, fault: Fault, repetition: int) -> tuple[int, int]:
    cached = params.cacheable_tokens if repetition else 0
    written = params.cacheable_tokens if params.writes_cache and not repetition else 0
    if fault.cached_tokens is not None:
        cached = min(params.prompt_tokens, fault.cached_tokens)
    if fault.cache_write_tokens is not None and params.reports_cache_writes:
        written = fault.cache_write_tokens
    return cached, min(written, params.prompt_tokens - cached)


def _called_tool(params: GenerationParams, fault: Fault, plan: Plan) -> Tool | None:
    """The required tool, or the first one if the request requires a call or the plan or fault sets `tool_calls`."""
    if not params.tools or params.tool_choice == "none" or params.after_tool:
        return None
    if params.tool_name:
        return next((tool for tool in params.tools if tool.name == params.tool_name), params.tools[0])
    calls_tool = plan.tool_calls if fault.tool_calls is None else fault.tool_calls
    return params.tools[0] if calls_tool or params.tool_choice == "required" else None


def _tool_choice(params: GenerationParams, tool: Tool, random: Random, limit: int | None) -> Choice:
    value = instance_of(tool.schema, lambda: words(2, random.getrandbits(13)))
    arguments = msgspec.json.encode(value if isinstance(value, dict) else {}).decode()
    finish_reason: FinishReason = "tool_calls"
    if limit is not None and text_tokens(arguments) > (left := max(0, limit - text_tokens(tool.name))):
        arguments = "{}" if params.whole_arguments else arguments[: left * CHARS_PER_TOKEN]
        finish_reason = "length"
    call = ToolCall(f"{random.getrandbits(96):024x}", tool.name, arguments)
    return Choice("", (call,), finish_reason)


def _refusal(params: GenerationParams, tokens: int, offset: int) -> Choice:
    return Choice("" if params.refuses_without_text else words(tokens, offset), (), "refusal")


def _formatted(params: GenerationParams, tokens: int, offset: int) -> str | None:
    """Valid JSON if the request asks for it; None for plain text. The plain object itself takes 3 of the tokens."""
    match params.text_format:
        case "text":
            return None
        case "json":
            return f'{{"answer":"{words(tokens - _JSON_OVERHEAD_TOKENS, offset)}"}}'
        case kind:
            value = instance_of(params.schema, lambda: words(max(1, tokens // 4), offset))
            return str(value) if kind == "enum" else msgspec.json.encode(value).decode()
