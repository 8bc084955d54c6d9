"""Invalid usage leaves a row with estimated tokens in every dialect; 20,000 responses in a full run."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from tests.integration.speakers import CHAT, CHAT_STREAM, EMBEDDINGS, GENERATE, MESSAGES, RESPONSES, Speaker, by_name

from mcpmeter.config import ProviderSettings
from mcpmeter.ledger.queries.totals import find_call

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = 20_000 if os.environ.get("MCPMETER_TRIALS") == "full" else 120
MAX_TOKENS = 10**12

CHOICE = {"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}
OUTPUT = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}]
CANDIDATE = {"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}
MESSAGE = {"type": "message", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"}
EVENT = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}
# A response without its usage, the usage's name, its counts, and other fields it may hold.
FORMS: dict[Speaker, tuple[dict[str, Any], str, tuple[str, ...], tuple[str, ...]]] = {
    CHAT: ({"choices": [CHOICE]}, "usage", ("prompt_tokens", "completion_tokens"), ("prompt_tokens_details", "cost")),
    CHAT_STREAM: (EVENT, "usage", ("prompt_tokens", "completion_tokens"), ("completion_tokens_details",)),
    RESPONSES: (
        {"object": "response", "status": "completed", "output": OUTPUT},
        "usage",
        ("input_tokens", "output_tokens"),
        ("input_tokens_details", "output_tokens_details"),
    ),
    MESSAGES: (MESSAGE, "usage", ("input_tokens", "output_tokens"), ("cache_read_input_tokens", "service_tier")),
    GENERATE: (
        {"candidates": [CANDIDATE]},
        "usageMetadata",
        ("promptTokenCount", "candidatesTokenCount"),
        ("cachedContentTokenCount", "thoughtsTokenCount"),
    ),
    EMBEDDINGS: ({"object": "list", "data": [{"embedding": [0.5]}]}, "usage", ("prompt_tokens",), ("cost",)),
}
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
INVALID = (
    st.integers(max_value=-1)
    | st.integers(min_value=MAX_TOKENS + 1)
    | st.floats().filter(lambda number: not number.is_integer())
    | st.booleans()
    | st.text(max_size=4)
    | st.sampled_from(["3", "", "\ud800", "NaN"])
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=4), st.integers(), max_size=2)
)
VALID = st.integers(0, MAX_TOKENS)


@st.composite
def hostile(draw: st.DrawFn) -> tuple[Speaker, Any]:
    """A dialect, and usage of which one count or all is invalid."""
    speaker = draw(st.sampled_from(list(FORMS)))
    _, _, counts, others = FORMS[speaker]
    if draw(st.integers(0, 4)) == 0:
        return speaker, draw(INVALID.filter(lambda value: not isinstance(value, dict)))
    usage = draw(st.fixed_dictionaries({}, optional=dict.fromkeys(others, ANY_JSON)))
    usage |= {name: draw(VALID | INVALID) for name in counts}
    return speaker, usage | {draw(st.sampled_from(counts)): draw(INVALID)}


def response(speaker: Speaker, usage: Any) -> bytes:
    body_without, name, _, _ = FORMS[speaker]
    body = json.dumps({**body_without, name: usage}).encode()
    kind = b"application/json"
    if speaker.streams:
        body, kind = b"data: " + body + b"\n\ndata: [DONE]\n\n", b"text/event-stream"
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(body), body)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay, raw_upstream) -> Any:
    """The relay with each vendor's provider, all at the hostile upstream."""
    base, key = raw_upstream.url, SecretStr("sk-upstream-credential-0123456789")
    relay = await start_module_relay(upstream=base)
    providers = tuple(
        ProviderSettings(name=name, base_url=base, api_key=key) for name in ("openai", "anthropic", "gemini")
    )
    relay.service._load = lambda: relay.settings.model_copy(update={"providers": providers})
    await relay.service.reload()
    return relay


def missing(relay: Any) -> dict[Any, float]:
    cells = relay.service.recorder.families["mcp_usage_missing_total"].cells
    return {labels: cell.value for labels, cell in cells.items() if cell.value}


async def row_of_response(relay: Any, raw_upstream: Any, speaker: Speaker, usage: Any) -> Any:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response(speaker, usage))

    raw_upstream.play(say)
    reply = await relay.ask(speaker.body("", speaker.model), speaker.url(speaker.model))
    assert reply.status == 200, reply.body
    return find_call(relay.ledger, reply.headers["x-mcpmeter-call-id"])


@pytest.mark.parametrize("speaker", list(FORMS), **by_name)
async def test_valid_usage_is_reported(relay, raw_upstream, speaker):
    before = missing(relay)
    row = await row_of_response(relay, raw_upstream, speaker, dict.fromkeys(FORMS[speaker][2], 7))
    assert (row.state, row.token_source, row.prompt_tokens) == ("settled", "reported", 7)
    assert missing(relay) == before


@pytest.fixture(scope="module")
def tried(trials) -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    yield counts
    what = (
        "Responses of six dialects, JSON and streams, through the service. Their usage is negative, not a number, "
        "text, a list, too large or contradictory. Each leaves one settled row whose tokens are `estimated`, and is "
        "counted in `mcp_usage_missing_total`."
    )
    responses = counts["answers with usage that cannot be"]
    figures = {"responses with invalid usage": responses, "of them without such a row": responses - counts["held"]}
    trials.record("Invalid usage", what, figures)


@pytest.mark.trial
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=hostile())
async def test_invalid_usage_leaves_an_estimated_row(relay, raw_upstream, tried, case):
    tried["answers with usage that cannot be"] += 1
    before = sum(missing(relay).values())
    row = await row_of_response(relay, raw_upstream, *case)
    assert (row.state, row.outcome, row.token_source) == ("settled", "ok", "estimated")
    assert 0 <= row.prompt_tokens + row.completion_tokens < 100
    assert row.cost_source in ("listed", "reported", "unpriced")
    assert row.cost_nanousd >= 0
    assert sum(missing(relay).values()) == before + 1
    tried["held"] += 1
