"""Answers as OpenAI publishes them, drawn before the first byte goes out, so that their usage is known exactly.

Every token is 4 characters of text, so what was delivered can be counted from the outside too. No input or output here.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import msgspec

from mcpmeter.simulator.asks import CHARS_PER_TOKEN, ChatAsk, Tool, chat_tokens, text_tokens
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.latency import Spread
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.schemas import instance_of

CREATED_UNIX_SECONDS = 1_767_225_600
"""Every answer is from 2026-01-01T00:00:00Z: the same seed and request give the same bytes on every day."""

CACHE_MIN_TOKENS = 1024
CACHE_STEP_TOKENS = 128
MAX_DRAWN_TOKENS = 4096
DONE = b"data: [DONE]\n\n"
DATED_MODELS = {
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "claude-sonnet-4.5": "claude-sonnet-4-5-20250929",
    "gemini-2.5-flash": "gemini-2.5-flash-06-17",
    "deepseek-v3.2": "deepseek-v3.2-20251201",
}

_THREE_LETTER_WORDS = """
the sun ran far and low one old man sat out his day for two big red fox saw him who did not see her dog can run but now
all may try any way too few let you get new air sea sky ice oak ash elm ivy bee ant owl hen cow pig cat rat bat jay
"""
_TEXT_TOKENS = 8192
_TEXT = " ".join(Random(0).choices(_THREE_LETTER_WORDS.split(), k=_TEXT_TOKENS)) + " "  # noqa: S311 (fixed filler)
_JSON_OVERHEAD_TOKENS = 3  # {"answer":"…"} around n tokens of words has 4 * (n + 3) characters


class Tally(NamedTuple):
    """The true usage of one answer; cached and reasoning tokens are parts of the totals."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0


class ToolCall(NamedTuple):
    """One function call of the model."""

    id: str
    name: str
    arguments: str


class Choice(NamedTuple):
    """One of the `n` choices."""

    text: str
    calls: tuple[ToolCall, ...]
    finish_reason: str

    @property
    def tokens(self) -> int:
        """Visible completion tokens."""
        return text_tokens(self.text) + sum(text_tokens(c.name) + text_tokens(c.arguments) for c in self.calls)


class Answer(NamedTuple):
    """Everything about one chat completion, before it is written in either shape."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    tally: Tally


class Event(NamedTuple):
    """One event of a stream and the completion tokens in it."""

    data: bytes
    tokens: int = 0


def draw_answer(ask: ChatAsk, fault: Fault, plan: Plan, random: Random, nth: int) -> Answer:
    """Draw the whole answer to a chat request; `nth` is how often the same body was asked before."""
    prompt = chat_tokens(ask)
    reasoning = _reasoning_tokens(ask, fault, random)
    first = _draw_choice(ask, fault, plan, random, reasoning)
    choices = (first, *(_draw_choice(ask, fault, plan, random, 0) for _ in range(1, ask.n or 1)))
    completion = reasoning + sum(choice.tokens for choice in choices)
    cached = _cached_tokens(prompt, nth) if fault.cached_tokens is None else min(prompt, fault.cached_tokens)
    tally = Tally(prompt, completion, cached, reasoning)
    model = answering_model(ask.model, fault, plan)
    return Answer(f"chatcmpl-{random.getrandbits(128):032x}", model, choices, tally)


def answering_model(model: str, fault: Fault, plan: Plan) -> str:
    """The model that the answer names: the one asked for, or its dated snapshot."""
    dated = plan.dated_models if fault.dated_model is None else fault.dated_model
    if not dated:
        return model
    return DATED_MODELS.get(model, f"{model}-2026-01-01")


def words(tokens: int, offset: int = 0) -> str:
    """English-looking text of exactly this many tokens, cut out of a fixed text."""
    if tokens <= 0:
        return ""
    start = offset % _TEXT_TOKENS
    turns = -(-(start + tokens) // _TEXT_TOKENS)
    text = _TEXT if turns == 1 else _TEXT * turns
    return text[start * CHARS_PER_TOKEN : (start + tokens) * CHARS_PER_TOKEN - 1]


def json_body(answer: Answer, *, fault: Fault, cost: str | None = None) -> bytes:
    """The body of an answer that is not streamed."""
    body: dict[str, Any] = {
        "id": answer.id,
        "object": "chat.completion",
        "created": CREATED_UNIX_SECONDS,
        "model": answer.model,
        "choices": [
            {"index": index, "message": _message(choice), "logprobs": None, "finish_reason": choice.finish_reason}
            for index, choice in enumerate(answer.choices)
        ],
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }
    return with_usage(msgspec.json.encode(body), usage_json(answer.tally, fault, cost), fault)


def with_usage(body: bytes, usage: bytes, fault: Fault) -> bytes:
    """Append `usage` to a JSON object, as often as the fault wants it there."""
    times = {"missing": 0, "twice": 2}.get(fault.usage or "", 1)
    return body[:-1] + (b',"usage":' + usage) * times + b"}"


def usage_json(tally: Tally, fault: Fault, cost: str | None = None) -> bytes:
    """The usage object with its numbers as the fault wants them written; `cost` (USD) is kept to its last digit."""
    numbers = (tally.prompt, tally.completion, tally.prompt + tally.completion, tally.cached, tally.reasoning)
    p, c, total, cached, reasoning = (_number(number, fault) for number in numbers)
    priced = f',"cost":{cost}' if cost is not None else ""
    return (
        f'{{"prompt_tokens":{p},"completion_tokens":{c},"total_tokens":{total},'
        f'"prompt_tokens_details":{{"cached_tokens":{cached},"audio_tokens":0}},'
        f'"completion_tokens_details":{{"reasoning_tokens":{reasoning},"audio_tokens":0,'
        f'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}{priced}}}'
    ).encode()


def stream_events(answer: Answer, *, include_usage: bool, fault: Fault, cost: str | None = None) -> Iterator[Event]:
    """The events of a streamed answer, in order; the last is `[DONE]` unless the fault leaves it out.

    With `include_usage` a chunk without choices carries the usage and all others `"usage":null`; else there is none.
    The fault `usage=with_choices` puts it into the last chunk that has choices, asked for or not.
    """
    usage = usage_json(answer.tally, fault, cost)
    head = _chunk_head(answer)
    tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
    step = CHARS_PER_TOKEN * (fault.tokens_per_chunk or (CACHE_MIN_TOKENS * 4 if fault.huge_mb else 1))
    for index in range(len(answer.choices)):
        yield Event(head + _choice(index, b'{"role":"assistant","content":"","refusal":null}') + tail)
    for index, choice in enumerate(answer.choices):
        for delta, tokens in _deltas(choice, step):
            yield Event(head + _choice(index, delta) + tail, tokens)
    for index, choice in enumerate(answer.choices):
        last = index == len(answer.choices) - 1 and fault.usage == "with_choices"
        end = b',"usage":' + usage + b"}\n\n" if last else tail
        yield Event(head + _choice(index, b"{}", choice.finish_reason) + end)
    if include_usage and fault.usage not in ("missing", "with_choices"):
        for _ in range(2 if fault.usage == "twice" else 1):
            yield Event(head + b'[],"usage":' + usage + b"}\n\n")
    if fault.done is None:
        yield Event(DONE)


def _draw_choice(ask: ChatAsk, fault: Fault, plan: Plan, random: Random, reasoning: int) -> Choice:
    wanted = _visible_tokens(fault, random, reasoning, plan.completion_tokens)
    limit = None if ask.limit is None or fault.huge_mb else max(0, ask.limit - reasoning)
    offset = random.getrandbits(13)
    tool = _called_tool(ask, fault, plan)
    if tool is not None:
        return _tool_choice(tool, random, limit)
    text = _json_text(ask, wanted, offset)
    if text is None:
        text = words(wanted, offset)
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


def _reasoning_tokens(ask: ChatAsk, fault: Fault, random: Random) -> int:
    thinks = ask.reasoning_effort not in (None, "none", "minimal") or ask.model.startswith(("o1", "o3", "o4"))
    drawn = random.randrange(32, 512) if thinks else 0
    wanted = drawn if fault.reasoning_tokens is None else fault.reasoning_tokens
    bounds = [n for n in (ask.limit, fault.completion_tokens) if n is not None]
    return min(wanted, *bounds) if bounds else wanted


def _cached_tokens(prompt_tokens: int, nth: int) -> int:
    # As OpenAI's prompt cache: long prompts only, from the second time on, in steps of 128.
    if nth == 0 or prompt_tokens < CACHE_MIN_TOKENS:
        return 0
    return prompt_tokens // CACHE_STEP_TOKENS * CACHE_STEP_TOKENS


def _called_tool(ask: ChatAsk, fault: Fault, plan: Plan) -> Tool | None:
    """The tool to call: named by `tool_choice`, or the first one if a call is required or the plan wants it."""
    if not ask.tools or ask.tool_choice == "none" or ask.messages[-1].role == "tool":
        return None
    if isinstance(ask.tool_choice, dict):
        function = ask.tool_choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        return next((tool for tool in ask.tools if tool.function.name == name), ask.tools[0])
    wanted = plan.tool_calls if fault.tool_calls is None else fault.tool_calls
    return ask.tools[0] if wanted or ask.tool_choice == "required" else None


def _tool_choice(tool: Tool, random: Random, limit: int | None) -> Choice:
    value = instance_of(tool.function.parameters, lambda: words(2, random.getrandbits(13)))
    arguments = msgspec.json.encode(value if isinstance(value, dict) else {}).decode()
    room = None if limit is None else max(0, limit - text_tokens(tool.function.name))
    cut = room is not None and text_tokens(arguments) > room
    if cut and room is not None:
        arguments = arguments[: room * CHARS_PER_TOKEN]
    call = ToolCall(f"call_{random.getrandbits(96):024x}", tool.function.name, arguments)
    return Choice("", (call,), "length" if cut else "tool_calls")


def _json_text(ask: ChatAsk, wanted: int, offset: int) -> str | None:
    """Valid JSON where it is asked for. The plain object takes 3 of the wanted tokens for itself."""
    if ask.response_format is None or ask.response_format.type == "text":
        return None
    if ask.response_format.type == "json_schema" and ask.response_format.json_schema is not None:
        value = instance_of(ask.response_format.json_schema.schema, lambda: words(max(1, wanted // 4), offset))
        return msgspec.json.encode(value).decode()
    return f'{{"answer":"{words(wanted - _JSON_OVERHEAD_TOKENS, offset)}"}}'


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
    if choice.calls:
        message["content"] = None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
    return message


def _deltas(choice: Choice, step: int) -> Iterator[tuple[bytes, int]]:
    for piece in _pieces(choice.text, step):
        yield b'{"content":' + msgspec.json.encode(piece) + b"}", text_tokens(piece)
    for number, call in enumerate(choice.calls):
        opening = {"index": number, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield msgspec.json.encode({"tool_calls": [opening]}), text_tokens(call.name)
        for piece in _pieces(call.arguments, step):
            more = {"index": number, "function": {"arguments": piece}}
            yield msgspec.json.encode({"tool_calls": [more]}), text_tokens(piece)


def _pieces(text: str, step: int) -> Iterator[str]:
    return (text[start : start + step] for start in range(0, len(text), step))


def _chunk_head(answer: Answer) -> bytes:
    known = {
        "id": answer.id,
        "object": "chat.completion.chunk",
        "created": CREATED_UNIX_SECONDS,
        "model": answer.model,
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }
    return b"data: " + msgspec.json.encode(known)[:-1] + b',"choices":'


def _choice(index: int, delta: bytes, finish_reason: str | None = None) -> bytes:
    finish = b"null" if finish_reason is None else b'"%s"' % finish_reason.encode()
    return b'[{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s}]' % (index, delta, finish)


def _number(value: int, fault: Fault) -> str:
    match fault.usage:
        case "zero":
            return "0"
        case "negative":
            return str(-value - 1)
        case "string":
            return f'"{value}"'
        case "nan":
            return "NaN"
        case _:
            return str(value)
