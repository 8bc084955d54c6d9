"""An answer, drawn before its first byte goes out, so that its usage is known exactly. Shapes are left to `dialects`.

Every token is 4 characters of text, so what was delivered can be counted from the outside too. No input or output here.
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
"""Every answer is from 2026-01-01T00:00:00Z: the same seed and request give the same bytes on every day."""

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


class Tally(NamedTuple):
    """The true usage of one answer; cached, reasoning and cache-write tokens are parts of the totals."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0
    cache_write: int = 0


class Tool(NamedTuple):
    """A function that may be called, and the JSON schema of its arguments."""

    name: str
    schema: Any


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """What a request of any dialect asks of its answer."""

    model: str
    prompt_tokens: int
    limit: int | None = None
    """The most completion tokens a choice may have, reasoning included."""
    n: int = 1
    tools: Sequence[Tool] = ()
    tool_choice: Literal["auto", "none", "required"] = "auto"
    tool_name: str = ""
    """The one tool that has to be called."""
    after_tool: bool = False
    """Whether the last message is a tool's result, so that text is due."""
    whole_arguments: bool = False
    """The dialect has arguments as an object, which cannot be cut: it becomes `{}`."""
    text_format: TextFormatKind = "text"
    schema: Any = None
    thinks: bool = False
    thought_limit: int | None = None
    shows_thoughts: bool = False
    cacheable_tokens: int = 0
    """Prompt tokens that a cache gives back from the second asking on."""
    writes_cache: bool = False
    """The first asking is billed for writing them."""
    tells_cache_writes: bool = True
    is_silent_refusing: bool = False
    """A refused answer has no text at all."""


class ToolCall(NamedTuple):
    """One function call of the model. Dialects put their own prefix before `id`."""

    id: str
    name: str
    arguments: str

    @property
    def tokens(self) -> int:
        """Completion tokens: the name's and those of the arguments' JSON without spaces."""
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


class Answer(msgspec.Struct, frozen=True, gc=False):
    """Everything about one answer, before it is written in the shape of a dialect."""

    id_bits: int
    """128 bits of which a dialect makes its ids."""
    model: str
    choices: tuple[Choice, ...]
    tally: Tally
    thoughts: str = ""
    """The reasoning in words, if it is to be shown."""


def draw_answer(wanted: Wanted, fault: Fault, plan: Plan, random: Random, nth: int) -> Answer:
    """Draw the whole answer; `nth` is how often the same body was asked before."""
    reasoning = _reasoning_tokens(wanted, fault, random)
    first = _draw_choice(wanted, fault, plan, random, reasoning)
    choices = (first, *(_draw_choice(wanted, fault, plan, random, 0) for _ in range(1, wanted.n)))
    completion = reasoning + sum(choice.tokens for choice in choices)
    cached, written = _cache_tokens(wanted, fault, nth)
    tally = Tally(wanted.prompt_tokens, completion, cached, reasoning, written)
    model = answering_model(wanted.model, fault, plan)
    id_bits = random.getrandbits(128)
    thoughts = words(reasoning, random.getrandbits(13)) if wanted.shows_thoughts else ""
    return Answer(id_bits, model, choices, tally, thoughts)


def answering_model(model: str, fault: Fault, plan: Plan) -> str:
    """The model that the answer names: the one asked for, or its dated snapshot."""
    dated = plan.dated_models if fault.dated_model is None else fault.dated_model
    if not dated:
        return model
    return DATED_MODELS.get(model, f"{model}-2026-01-01")


def implicitly_cacheable(prompt_tokens: int) -> int:
    """Tokens that a cache nobody asks for gives back: of long prompts only, in steps of 128, as OpenAI's does."""
    if prompt_tokens < CACHE_MIN_TOKENS:
        return 0
    return prompt_tokens // CACHE_STEP_TOKENS * CACHE_STEP_TOKENS


def words(tokens: int, offset: int = 0) -> str:
    """English-looking text of exactly this many tokens, cut out of a fixed text."""
    if tokens <= 0:
        return ""
    start = offset % _TEXT_TOKENS
    turns = -(-(start + tokens) // _TEXT_TOKENS)
    text = _TEXT if turns == 1 else _TEXT * turns
    return text[start * CHARS_PER_TOKEN : (start + tokens) * CHARS_PER_TOKEN - 1]


def pieces(text: str, fault: Fault) -> Iterator[str]:
    """The text as a stream sends it: a token at a time unless the fault wants more."""
    step = CHARS_PER_TOKEN * (fault.tokens_per_chunk or (_HUGE_CHUNK_TOKENS if fault.huge_mb else 1))
    return (text[start : start + step] for start in range(0, len(text), step))


def number(value: int, fault: Fault) -> str:
    """A number of the usage as the fault wants it written into JSON."""
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
    """Append the usage to a JSON object, as often as the fault wants it there."""
    times = {"missing": 0, "twice": 2}.get(fault.usage or "", 1)
    return body[:-1] + (b',"' + key + b'":' + usage) * times + b"}"


def _draw_choice(wanted: Wanted, fault: Fault, plan: Plan, random: Random, reasoning: int) -> Choice:
    tokens = _visible_tokens(fault, random, reasoning, plan.completion_tokens)
    limit = None if wanted.limit is None or fault.huge_mb else max(0, wanted.limit - reasoning)
    offset = random.getrandbits(13)
    if fault.refusal:
        return _refusal(wanted, tokens if limit is None else min(tokens, limit), offset)
    tool = _called_tool(wanted, fault, plan)
    if tool is not None:
        return _tool_choice(wanted, tool, random, limit)
    text = _formatted(wanted, tokens, offset)
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


def _reasoning_tokens(wanted: Wanted, fault: Fault, random: Random) -> int:
    drawn = random.randrange(32, 512) if wanted.thinks else 0
    tokens = drawn if fault.reasoning_tokens is None else fault.reasoning_tokens
    bounds = [n for n in (wanted.limit, wanted.thought_limit, fault.completion_tokens) if n is not None]
    return min(tokens, *bounds) if bounds else tokens


def _cache_tokens(wanted: Wanted, fault: Fault, nth: int) -> tuple[int, int]:
    cached = wanted.cacheable_tokens if nth else 0
    written = wanted.cacheable_tokens if wanted.writes_cache and not nth else 0
    if fault.cached_tokens is not None:
        cached = min(wanted.prompt_tokens, fault.cached_tokens)
    if fault.cache_write_tokens is not None and wanted.tells_cache_writes:
        written = fault.cache_write_tokens
    return cached, min(written, wanted.prompt_tokens - cached)


def _called_tool(wanted: Wanted, fault: Fault, plan: Plan) -> Tool | None:
    """The tool to call: the one that is named, or the first one if a call is required or the plan wants it."""
    if not wanted.tools or wanted.tool_choice == "none" or wanted.after_tool:
        return None
    if wanted.tool_name:
        return next((tool for tool in wanted.tools if tool.name == wanted.tool_name), wanted.tools[0])
    wished = plan.tool_calls if fault.tool_calls is None else fault.tool_calls
    return wanted.tools[0] if wished or wanted.tool_choice == "required" else None


def _tool_choice(wanted: Wanted, tool: Tool, random: Random, limit: int | None) -> Choice:
    value = instance_of(tool.schema, lambda: words(2, random.getrandbits(13)))
    arguments = msgspec.json.encode(value if isinstance(value, dict) else {}).decode()
    room = None if limit is None else max(0, limit - text_tokens(tool.name))
    cut = room is not None and text_tokens(arguments) > room
    if cut and room is not None:
        arguments = "{}" if wanted.whole_arguments else arguments[: room * CHARS_PER_TOKEN]
    call = ToolCall(f"{random.getrandbits(96):024x}", tool.name, arguments)
    return Choice("", (call,), "length" if cut else "tool_calls")


def _refusal(wanted: Wanted, tokens: int, offset: int) -> Choice:
    return Choice("" if wanted.is_silent_refusing else words(tokens, offset), (), "refusal")


def _formatted(wanted: Wanted, tokens: int, offset: int) -> str | None:
    """Valid JSON where it is asked for. The plain object takes 3 of the wanted tokens for itself."""
    match wanted.text_format:
        case "text":
            return None
        case "json":
            return f'{{"answer":"{words(tokens - _JSON_OVERHEAD_TOKENS, offset)}"}}'
        case kind:
            value = instance_of(wanted.schema, lambda: words(max(1, tokens // 4), offset))
            return str(value) if kind == "enum" else msgspec.json.encode(value).decode()
