"""Ways of asking, each with the dearest response that a provider may bill for it by its own pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
GENERATE = "/v1beta/models/gemini-3.5-flash:generateContent"
OLD_GENERATE = "/v1beta/models/gemini-2.5-flash:generateContent"

LIMIT = 64
WINDOW = 1_000_000
CLAUDE_WINDOW = 199_000
"""Less the text."""
ASSUMED = 96
"""`relay.assumed_completion_tokens` of the trial."""
USES = 4
"""`relay.assumed_tool_uses` of the trial."""
PICTURE = "data:image/png;base64," + "iVBORw0K" * 40


class Billed(NamedTuple):
    """What the provider bills. `prompt` is in addition to one token per byte of `text`."""

    prompt: int = 0
    completion: int = LIMIT
    searches: int = 0


class Way(NamedTuple):
    """A way of asking. `body` has the text in the place of TEXT."""

    path: str
    body: dict[str, Any]
    billed: Billed = Billed()
    is_bounded: bool = True
    """False: the documented bound is what calls took beyond what they had reserved."""


def chat(content: Any = "TEXT", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1", "messages": [{"role": "user", "content": content}], **more}


def response(**more: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1", "input": "TEXT", "max_output_tokens": LIMIT, **more}


def message(content: Any = "TEXT", **more: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": content}]
    return {"model": "claude-sonnet-4-5", "max_tokens": LIMIT, "messages": asked, **more}


def generate(*parts: Any, **more: Any) -> dict[str, Any]:
    config = {"maxOutputTokens": LIMIT, **more.pop("config", {})}
    return {"contents": [{"role": "user", "parts": [{"text": "TEXT"}, *parts]}], "generationConfig": config, **more}


def part(**more: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "TEXT"}, more]


URL = "https://x.example/a"
SOURCE_URL = {"type": "url", "url": URL}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}

WAYS = {
    # The greatest of all limits.
    "chat max_tokens": Way(CHAT, chat(max_tokens=LIMIT)),
    "chat max_completion_tokens": Way(CHAT, chat(max_completion_tokens=LIMIT)),
    "chat two limits": Way(CHAT, chat(max_tokens=1, max_completion_tokens=LIMIT)),
    "chat two limits, the other way": Way(CHAT, chat(max_tokens=LIMIT, max_completion_tokens=1)),
    "chat max_new_tokens": Way(CHAT, chat(max_tokens=1, max_new_tokens=LIMIT)),
    "chat n": Way(CHAT, chat(max_tokens=LIMIT, n=5), Billed(completion=5 * LIMIT)),
    "chat best_of": Way(CHAT, chat(max_tokens=LIMIT, n=1, best_of=4), Billed(completion=4 * LIMIT)),
    "chat thinking_budget": Way(CHAT, chat(max_tokens=LIMIT, thinking_budget=100), Billed(completion=LIMIT + 100)),
    "responses": Way(RESPONSES, response()),
    "messages": Way(MESSAGES, message()),
    "generate": Way(GENERATE, generate()),
    "generate candidateCount": Way(GENERATE, generate(config={"candidateCount": 3}), Billed(completion=3 * LIMIT)),
    "generate in snake case": Way(
        GENERATE,
        {"contents": [{"parts": [{"text": "TEXT"}]}], "generation_config": {"max_output_tokens": LIMIT}},
    ),
    # A text is a text, and a picture a picture.
    "chat base64 in a text": Way(CHAT, chat("TEXT;base64," + "A" * 30_000, max_tokens=LIMIT), Billed(14_000)),
    "chat picture": Way(
        CHAT, chat(part(type="image_url", image_url={"url": PICTURE}), max_tokens=LIMIT), Billed(4_000)
    ),
    "responses picture": Way(
        RESPONSES,
        response(input=[{"role": "user", "content": part(type="input_image", image_url=PICTURE)}]),
        Billed(4_000),
    ),
    # Prompts by reference.
    "responses previous_response_id": Way(RESPONSES, response(previous_response_id="resp_0"), Billed(WINDOW)),
    "responses conversation": Way(RESPONSES, response(conversation="conv_0"), Billed(WINDOW)),
    "responses prompt": Way(RESPONSES, response(prompt={"id": "pmpt_0"}), Billed(WINDOW)),
    "responses file": Way(
        RESPONSES,
        response(input=[{"role": "user", "content": part(type="input_file", file_id="file-0")}]),
        Billed(WINDOW),
    ),
    "chat picture by URL": Way(
        CHAT, chat(part(type="image_url", image_url={"url": URL}), max_tokens=LIMIT), Billed(WINDOW)
    ),
    "chat PDF": Way(
        CHAT,
        chat(part(type="file", file={"file_data": "data:application/pdf;base64,JVBERi0="}), max_tokens=LIMIT),
        Billed(WINDOW),
    ),
    "messages picture by URL": Way(MESSAGES, message(part(type="image", source=SOURCE_URL)), Billed(CLAUDE_WINDOW)),
    "messages PDF": Way(MESSAGES, message(part(type="document", source=PDF)), Billed(CLAUDE_WINDOW)),
    "messages file": Way(
        MESSAGES,
        message(part(type="document", source={"type": "file", "file_id": "file_0"})),
        Billed(CLAUDE_WINDOW),
    ),
    "messages container": Way(MESSAGES, message(container="container_0"), Billed(CLAUDE_WINDOW)),
    "generate fileData": Way(GENERATE, generate({"fileData": {"fileUri": URL}}), Billed(WINDOW)),
    "generate cachedContent": Way(GENERATE, generate(cachedContent="cachedContents/0"), Billed(WINDOW)),
    # Tools of the provider.
    "messages web search": Way(MESSAGES, message(tools=[SEARCH]), Billed(CLAUDE_WINDOW, searches=3)),
    "messages web search without max_uses": Way(
        MESSAGES,
        message(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
        Billed(CLAUDE_WINDOW, searches=USES),
    ),
    "responses web search": Way(
        RESPONSES,
        response(tools=[{"type": "web_search"}], max_tool_calls=3),
        Billed(WINDOW, searches=3),
    ),
    "generate grounded": Way(GENERATE, generate(tools=[{"googleSearch": {}}]), Billed(WINDOW, searches=USES)),
    "generate grounded, by the prompt": Way(
        OLD_GENERATE, generate(tools=[{"google_search": {}}]), Billed(WINDOW, searches=USES)
    ),
    # Tiers, fallbacks, models without a price.
    "chat flex": Way(CHAT, chat(max_tokens=LIMIT, service_tier="flex")),
    "chat priority": Way(CHAT, chat(max_tokens=LIMIT, service_tier="priority")),
    "messages fallbacks": Way(MESSAGES, message(fallbacks=[{"model": "claude-opus-4-5"}])),
    "chat without a price": Way(CHAT, {**chat(max_tokens=LIMIT), "model": "a-model-without-a-price"}),
    # Not bounded: what a response takes beyond the assumed.
    "chat without a limit": Way(CHAT, chat(), Billed(completion=8 * ASSUMED), is_bounded=False),
    "chat n without a limit": Way(CHAT, chat(n=3), Billed(completion=3 * ASSUMED)),
    "responses without a limit": Way(
        RESPONSES, {"model": "gpt-4.1", "input": "TEXT"}, Billed(completion=8 * ASSUMED), is_bounded=False
    ),
}

REFUSED = {
    "max_tokens as text": Way(CHAT, chat(max_tokens="64")),
    "max_tokens below zero": Way(CHAT, chat(max_tokens=-1)),
    "max_tokens with a fraction": Way(CHAT, chat(max_tokens=64.0)),
    "an unbounded n": Way(CHAT, chat(max_tokens=1, n=10**9)),
    "n as text": Way(CHAT, chat(max_tokens=1, n="9")),
    "max_output_tokens as text": Way(RESPONSES, response(max_output_tokens="64")),
    "messages max_tokens as a list": Way(MESSAGES, message(max_tokens=[64])),
    "maxOutputTokens as text": Way(GENERATE, generate(config={"maxOutputTokens": "64"})),
}
"""Under a budget that refuses calls: 400."""


def request_of(way: Way, name: str) -> bytes:
    """The request, with the way's name as its text."""
    return json.dumps(way.body).replace("TEXT", f"way:{name};").encode()


def answer_to(way: Way, size: int) -> bytes:
    """The dearest response to a request of `size` bytes."""
    billed = way.billed
    return json.dumps(_FORMS[way.path](way, size // 2 + billed.prompt, billed.completion, billed.searches)).encode()


def _chat(way: Way, prompt: int, completion: int, searches: int) -> dict[str, Any]:
    return {
        "id": "1",
        "model": way.body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        **({"service_tier": way.body["service_tier"]} if "service_tier" in way.body else {}),
    }


def _responses(way: Way, prompt: int, completion: int, searches: int) -> dict[str, Any]:
    call = {"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search", "query": "q"}}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]}
    return {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": way.body["model"],
        "output": [*([call] * searches), said],
        "usage": {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion},
    }


def _messages(way: Way, prompt: int, completion: int, searches: int) -> dict[str, Any]:
    usage: dict[str, Any] = {"input_tokens": prompt, "output_tokens": completion}
    if searches:
        usage["server_tool_use"] = {"web_search_requests": searches}
    if fallbacks := way.body.get("fallbacks"):
        count = {"input_tokens": prompt, "output_tokens": completion}
        usage["iterations"] = [
            {"type": "message", "model": way.body["model"], **count},
            {"type": "fallback_message", "model": fallbacks[0]["model"], **count},
        ]
    return {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": way.body["model"],
        "content": [{"type": "text", "text": "ok"}],
        "stop_reason": "end_turn",
        "usage": usage,
    }


def _generate(way: Way, prompt: int, completion: int, searches: int) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": "ok"}]}, "finishReason": "STOP"}
    if searches:
        queries = [f"q{number}" for number in range(searches)]
        candidate["groundingMetadata"] = {"webSearchQueries": queries, "searchEntryPoint": {"renderedContent": "x"}}
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": prompt,
            "candidatesTokenCount": completion,
            "totalTokenCount": prompt + completion,
        },
        "modelVersion": way.path.partition("models/")[2].partition(":")[0],
    }


_FORMS: dict[str, Callable[[Way, int, int, int], dict[str, Any]]] = {
    CHAT: _chat,
    RESPONSES: _responses,
    MESSAGES: _messages,
    GENERATE: _generate,
    OLD_GENERATE: _generate,
}
