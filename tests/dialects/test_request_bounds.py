"""Upper bounds of a request's cost: its limits, its media, prompts by reference, hosted tools, conditions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cases import CASES, MODEL

from mcpmeter.dialects.base import RequestInfo
from mcpmeter.records import AddedCall, Conditions, PathParams

LONG = "iVBORw0KGgo" * 20_000
WORDS = st.text("abx_:/;,0 ", max_size=8)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


def bounded(name: str, body: bytes | dict[str, Any], model: str = "m", models: tuple[str, ...] = ()) -> RequestInfo:
    """As the relay reads a request under a limit."""
    raw = body if isinstance(body, bytes) else json.dumps({**CASES[name].request, **body}).encode()
    dialect = CASES[name].dialect
    path = PathParams(model=model) if name == "generate" or "content" in name else MODEL
    request = dialect.read_request(raw, path)
    return dialect.bounded(raw, request, models) if request.has_bounds else request


def gemini(**config: object) -> dict[str, Any]:
    return {"generationConfig": config}


def chat_with(part: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


def responses_with(part: object) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [part]}]}


def message_with(kind: str, **source: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": kind, "source": source}]}]}


def gemini_with(part: object) -> dict[str, Any]:
    return {"contents": [{"parts": [part]}]}


PICTURE = {"type": "base64", "media_type": "image/png", "data": LONG}
BLOB = {"inlineData": {"mimeType": "image/png", "data": LONG}}


# Limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limits", "bound"),
    [
        ("chat", {}, None),
        ("chat", {"max_tokens": 50}, 50),
        ("chat", {"max_tokens": 50, "max_completion_tokens": 20}, 50),
        ("chat", {"max_tokens": 20, "max_completion_tokens": 50}, 50),
        ("chat", {"max_tokens": 5, "max_new_tokens": 70}, 70),
        ("chat", {"max_tokens": 5, "max_output_tokens": 80, "n_predict": 9}, 80),
        ("chat", {"max_tokens": 50, "n": 3}, 150),
        ("chat", {"max_tokens": 50, "n": 2, "best_of": 5}, 250),
        ("chat", {"max_tokens": None, "n": 3}, None),
        ("chat", {"max_tokens": 0}, None),
        ("generate", gemini(maxOutputTokens=0), None),
        ("messages", {"max_tokens": 0}, 0),
        ("chat", {"max_tokens": 50, "thinking_budget": 30}, 80),
        ("chat", {"max_tokens": 50, "reasoning": {"max_tokens": 30}}, 80),
        ("responses", {}, None),
        ("responses", {"max_output_tokens": 70}, 70),
        ("responses", {"max_output_tokens": 70, "max_tokens": 90}, 90),
        ("embeddings", {}, 0),
        ("messages", {"max_tokens": 9}, 9),
        ("messages", {"max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 1024}}, 1024),
        ("count_tokens", {"max_tokens": 9}, 0),
        ("generate", {}, None),
        ("generate", gemini(maxOutputTokens=8), 8),
        ("generate", gemini(max_output_tokens=9, maxOutputTokens=8), 9),
        ("generate", {"generation_config": {"max_output_tokens": 9}}, 9),
        ("generate", {"generation_config": {"maxOutputTokens": 9}, **gemini(maxOutputTokens=8)}, 9),
        ("generate", gemini(maxOutputTokens=8, candidateCount=2), 16),
        ("generate", gemini(maxOutputTokens=8, thinkingConfig={"thinkingBudget": 5}), 13),
        ("generate", gemini(maxOutputTokens=8, thinkingConfig={"thinkingBudget": -1}), 8),
        ("generate", {"generationConfig": 7}, None),
        ("count_contents", gemini(maxOutputTokens=8), 0),
        ("embed_content", {}, 0),
        ("batch_embed_contents", {}, 0),
    ],
)
def test_the_greatest_limit_bounds_a_response(name, limits, bound):
    request = bounded(name, limits)
    assert (request.max_completion_tokens, request.limit_fault) == (bound, "")


def test_choices_count_without_a_limit_too():
    assert bounded("chat", {"n": 7}).choices == 7
    assert bounded("generate", gemini(candidateCount=3)).choices == 3


@pytest.mark.parametrize(
    ("name", "limits", "named"),
    [
        ("chat", {"max_tokens": "50"}, "max_tokens"),
        ("chat", {"max_tokens": -1}, "max_tokens"),
        ("chat", {"max_tokens": 16.0}, "max_tokens"),
        ("chat", {"max_tokens": True}, "max_tokens"),
        ("chat", {"max_tokens": 10**30}, "max_tokens"),
        ("chat", {"max_tokens": 16, "max_completion_tokens": [1]}, "max_completion_tokens"),
        ("chat", {"max_tokens": 16, "max_new_tokens": "9"}, "max_new_tokens"),
        ("chat", {"max_tokens": 16, "n": "5"}, "'n'"),
        ("chat", {"max_tokens": 16, "n": 10**9}, "'n'"),
        ("chat", {"max_tokens": 16, "thinking_budget": "900"}, "thoughts"),
        ("generate", gemini(maxOutputTokens=16, thinkingConfig={"thinkingBudget": 900.0}), "thoughts"),
        ("responses", {"tools": [{"type": "web_search"}], "max_tool_calls": 50.0}, "uses"),
        ("messages", {"tools": [{"type": "web_search_20250305", "max_uses": "50"}]}, "uses"),
        ("chat", b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}],"max_tokens":90}', "twice"),
        (
            "chat",
            b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}],"max_\\u0074okens":9}',
            "twice",
        ),
        ("responses", {"max_output_tokens": 1.5}, "max_output_tokens"),
        ("responses", b'{"model":"m","input":"x","max_output_tokens":1,"max_output_tokens":9}', "twice"),
        ("messages", {"max_tokens": {}}, "max_tokens"),
        (
            "messages",
            b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}],"max_tokens":9}',
            "twice",
        ),
        ("generate", gemini(maxOutputTokens="9"), "maxOutputTokens"),
        ("generate", gemini(candidateCount=2.5), "candidateCount"),
        (
            "generate",
            b'{"contents":[{"parts":[]}],"generationConfig":{"maxOutputTokens":1,"maxOutputTokens":9}}',
            "twice",
        ),
        ("generate", b'{"generationConfig":{},"contents":[{"parts":[]}],"generationConfig":{}}', "twice"),
        (
            "generate",
            b'{"contents":[{"parts":[]}],"generationConfig":{"thinkingConfig":{"thinkingBudget":1,"thinkingBudget":9}}}',
            "'thinkingBudget' twice",
        ),
        (
            "messages",
            b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}],'
            b'"tools":[{"type":"web_search_20250305","max_uses":1,"max_\\u0075ses":9}]}',
            "'max_uses' twice",
        ),
        (
            "responses",
            b'{"model":"m","input":[{"role":"user","content":"\\u0022\\u0022","content":"y"}]}',
            "'content' twice",
        ),
    ],
)
def test_a_limit_that_bounds_nothing_is_a_fault(name, limits, named):
    assert named in bounded(name, limits).limit_fault


def test_a_field_twice_inside_a_message_is_no_fault():
    schema = {"type": "object", "properties": {"max_tokens": {}, "n": {}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}] * 2
    assert not bounded("chat", {"max_tokens": 9, "n": 1, "tools": tools}).limit_fault


# The prompt -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_only_counting_tokens_bounds_the_prompt_to_nothing(name):
    bound = CASES[name].dialect.read_request(CASES[name].body(b'"x":1'), MODEL).max_prompt_tokens
    assert bound == (0 if name in ("count_tokens", "count_contents") else None)


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("chat", {"messages": [{"role": "user", "content": f"data:image/png;base64,{LONG}"}]}),
        ("chat", chat_with({"type": "text", "text": f"data:image/png;base64,{LONG}"})),
        ("chat", {"messages": [{"role": "user", "content": f'"data": "{LONG}"'}]}),
        ("responses", {"input": f"data:image/png;base64,{LONG}"}),
        ("messages", {"messages": [{"role": "user", "content": f";base64,{LONG}"}]}),
        ("messages", message_with("document", type="text", media_type="text/plain", data=LONG)),
        ("generate", gemini_with({"text": f";base64,{LONG}"})),
        ("generate", gemini_with({"inlineData": {"mimeType": "text/plain", "data": LONG}})),
        ("chat", chat_with({"type": "file", "file": {"file_data": f"data:text/plain;base64,{LONG}"}})),
        (
            "messages",
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "name": "f", "input": message_with("image", **PICTURE)}],
                    }
                ]
            },
        ),
        ("generate", gemini_with({"functionCall": {"name": "f", "args": gemini_with(BLOB)}})),
        ("generate", gemini_with({"functionResponse": {"name": "f", "response": BLOB}})),
    ],
)
def test_base64_in_a_text_counts_by_its_bytes(name, request_):
    request = bounded(name, {"max_tokens": 9, **request_})
    bound = request.max_prompt_tokens
    size = len(json.dumps({**CASES[name].request, "max_tokens": 9, **request_}))
    assert bound in (None, size)  # None: the size of the body
    assert not request.references


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("chat", chat_with({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{LONG}"}})),
        ("chat", chat_with({"type": "input_audio", "input_audio": {"data": LONG, "format": "mp3"}})),
        ("responses", responses_with({"type": "input_image", "image_url": f"data:image/png;base64,{LONG}"})),
        ("messages", message_with("image", type="base64", media_type="image/png", data=LONG)),
        ("generate", gemini_with({"inlineData": {"mimeType": "image/png", "data": LONG}})),
        ("generate", gemini_with({"inline_data": {"mime_type": "image/png", "data": LONG}})),
    ],
)
def test_a_picture_counts_by_its_kind_and_not_by_its_length(name, request_):
    size = len(json.dumps({**CASES[name].request, **request_}))
    bound = bounded(name, request_).max_prompt_tokens
    assert size - len(LONG) + 5_000 - 30 <= bound <= size - len(LONG) + 5_000


def test_a_small_picture_counts_as_a_large_one():
    url = "data:image/png;base64,iVBOR"
    part = {"type": "image_url", "image_url": {"url": url}}
    assert bounded("chat", chat_with(part)).max_prompt_tokens > 5_000
    assert bounded("chat", {"model": "gpt-4o-mini", **chat_with(part)}).max_prompt_tokens > 37_000
    assert bounded("chat", {"model": "gpt-5.4", **chat_with(part)}).max_prompt_tokens > 10_000


def test_a_model_behind_an_alias_counts_by_its_own_name():
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR"}}
    assert bounded("chat", chat_with(part), models=("gpt-4o-mini",)).max_prompt_tokens > 37_000
    assert bounded("chat", {"max_tokens": 9, "tools": []}, models=("openai/gpt-4.1:online",)).max_items
    grounded = {"tools": [{"googleSearch": {}}]}
    (item,) = bounded("generate", grounded, models=("gemini-2.5-flash", "gemini-3.5-flash")).max_items
    assert item.item == "web_search"


def test_tools_add_what_a_provider_says_about_them():
    tool = {"name": "f", "input_schema": {"type": "object"}}
    body = {"max_tokens": 9, "tools": [tool]}
    size = len(json.dumps({**CASES["messages"].request, **body}))
    assert bounded("messages", body).max_prompt_tokens == size + 1000


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("chat", chat_with({"type": "image_url", "image_url": {"url": "https://x.example/a.png"}})),
        ("chat", chat_with({"type": "image_url", "image_url": "https://x.example/a.png"})),
        ("chat", chat_with({"type": "file", "file": {"file_id": "file-1"}})),
        ("chat", chat_with({"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}})),
        ("chat", chat_with({"type": "video_url", "video_url": {"url": "https://x.example/a.mp4"}})),
        ("chat", {"messages": [{"role": "assistant", "content": None, "audio": {"id": "audio_1"}}]}),
        ("chat", chat_with({"type": "document_url", "document_url": "https://x.example/a.pdf"})),
        ("chat", chat_with({"type": "input_audio", "input_audio": "https://x.example/a.mp3"})),
        ("chat", chat_with({"type": "input_audio", "input_audio": {"data": "https://x.example/a.mp3"}})),
        ("chat", chat_with({"type": "video", "video": ["https://x.example/1.png"]})),
        ("chat", {"preset": "long-context"}),
        ("chat", {"data_sources": [{"type": "azure_search"}]}),
        ("chat", {"extra_body": {"google": {"cached_content": "cachedContents/1"}}}),
        ("responses", {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}),
        ("responses", {"input": [{"type": "image_generation_call", "id": "ig_1"}]}),
        ("messages", message_with("video", type="base64", media_type="video/mp4", data="AAAA")),
        ("responses", {"previous_response_id": "resp_1"}),
        ("responses", {"conversation": "conv_1"}),
        ("responses", {"conversation": {"id": "conv_1"}}),
        ("responses", {"prompt": {"id": "pmpt_1"}}),
        ("responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}),
        ("responses", responses_with({"type": "input_file", "file_id": "file-1"})),
        ("responses", responses_with({"type": "input_file", "file_url": "https://x.example/a.pdf"})),
        ("responses", responses_with({"type": "input_image", "file_id": "file-1"})),
        ("responses", responses_with({"type": "input_image", "image_url": "https://x.example/a.png"})),
        ("responses", {"tools": [{"type": "mcp", "server_url": "https://x.example"}]}),
        ("messages", message_with("image", type="url", url="https://x.example/a.png")),
        ("messages", message_with("document", type="url", url="https://x.example/a.pdf")),
        ("messages", message_with("document", type="file", file_id="file_1")),
        ("messages", message_with("document", type="base64", media_type="application/pdf", data="JVBERi0=")),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]}),
        (
            "messages",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "t",
                                "content": [{"type": "image", "source": {"type": "url", "url": "https://x.example"}}],
                            }
                        ],
                    }
                ]
            },
        ),
        ("messages", {"container": "container_1"}),
        ("messages", {"mcp_servers": [{"type": "url", "url": "https://x.example", "name": "x"}]}),
        ("messages", {"tools": [{"type": "web_fetch_20260309", "name": "web_fetch"}]}),
        ("generate", {"cachedContent": "cachedContents/1"}),
        ("generate", {"cached_content": "cachedContents/1"}),
        ("generate", gemini_with({"fileData": {"fileUri": "https://x.example/a.mp4"}})),
        ("generate", gemini_with({"file_data": {"file_uri": "https://x.example/a.mp4"}})),
        ("generate", gemini_with({"inlineData": {"mimeType": "application/pdf", "data": "JVBERi0="}})),
        ("generate", {"tools": [{"urlContext": {}}]}),
        ("generate", {"tools": [{"url_context": {}}]}),
    ],
)
def test_a_prompt_that_the_body_does_not_hold_is_a_reference(name, request_):
    assert bounded(name, {"max_tokens": 9, **request_}).references


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        *((name, {}) for name in ("chat", "responses", "messages", "generate")),
        ("responses", {"input": [{"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAA"}]}),
        ("chat", {"tools": [{"function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]}),
    ],
)
def test_a_text_is_no_reference(name, request_):
    request = bounded(name, {"max_tokens": 9, **request_})
    assert (request.references, request.max_items, request.added_calls) == ((), (), ())


# Hosted tools ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "request_", "items"),
    [
        ("responses", {"tools": [{"type": "web_search"}]}, {"web_search": 0}),
        ("responses", {"tools": [{"type": "web_search_2025_08_26"}], "max_tool_calls": 3}, {"web_search": 3}),
        ("responses", {"tools": [{"type": "web_search_preview_2025_03_11"}]}, {"web_search_preview": 0}),
        ("responses", {"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}, {"file_search": 0}),
        ("responses", {"tools": [{"type": "code_interpreter"}]}, {"code_session": 1}),
        (
            "responses",
            {"tools": [{"type": "x_search"}, {"type": "collections_search"}]},
            {"social_search": 0, "file_search": 0},
        ),
        ("responses", {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}, {"code_session": 1}),
        ("responses", {"tools": [{"type": "shell", "environment": {"type": "local"}}]}, {}),
        ("responses", {"tools": [{"type": "invented_tomorrow"}]}, {"provider_fee": 0}),
        ("chat", {"tools": [{"google_search": {}}]}, {"provider_fee": 0}),
        ("chat", {"plugins": ["plugin_web_search"]}, {"provider_fee": 0}),
        ("responses", {"tools": [{"type": "namespace", "tools": [{"type": "web_search"}]}]}, {"web_search": 0}),
        ("responses", {"tools": [{"type": "function", "name": "web_search"}]}, {}),
        ("responses", {"tools": [{"type": "custom"}, {"type": "computer_use_preview"}]}, {}),
        ("chat", {"web_search_options": {}}, {"web_search_preview": 0}),
        ("chat", {"model": "gpt-4o-search-preview"}, {"web_search_preview": 0}),
        ("chat", {"model": "openai/gpt-4.1:online"}, {"web_search_preview": 0}),
        ("chat", {"search_parameters": {"mode": "on", "max_search_results": 4}}, {"web_search": 4}),
        ("chat", {"search_parameters": {"mode": "off"}}, {}),
        ("chat", {"enable_search": True}, {"web_search_preview": 0}),
        ("chat", {"plugins": [{"id": "web"}, {"id": "file-parser"}]}, {"web_search": 0, "page": 0}),
        ("chat", {"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]}, {"web_search": 0}),
        ("messages", {"tools": [{"type": "web_search_20250305", "max_uses": 5}]}, {"web_search": 5}),
        ("messages", {"tools": [{"type": "web_search_20260318", "max_uses": "5"}]}, {"web_search": 0}),
        ("messages", {"cache_control": {"type": "ephemeral", "ttl": "1h"}}, {"cache_write_1h": 0}),
        ("messages", {"cache_control": {"type": "ephemeral", "ttl": "5m"}}, {}),
        ("messages", {"tools": [{"type": "code_execution_20260521"}]}, {"code_session": 1}),
        ("messages", {"tools": [{"type": "bash_20250124"}, {"name": "f", "input_schema": {}}]}, {}),
        ("generate", {"tools": [{"googleSearch": {}}]}, {"web_search": 0}),
        ("generate", {"tools": [{"google_search": {}, "google_maps": {}}]}, {"web_search": 0, "maps_search": 0}),
        ("generate", {"tools": [{"functionDeclarations": []}]}, {}),
        ("generate", {"tools": [{"inventedTomorrow": {}}]}, {"provider_fee": 0}),
    ],
)
def test_a_hosted_tool_bills_at_most_so_many(name, request_, items):
    request = bounded(name, {"max_tokens": 9, **request_}, model="gemini-3.5-flash")
    assert {item.item: item.quantity for item in request.max_items} == items
    assert bool(request.references) == bool(items.keys() - {"cache_write_1h"})


def test_older_gemini_models_bill_one_grounded_prompt():
    (item,) = bounded("generate", {"tools": [{"googleSearch": {}}]}, model="gemini-2.5-flash").max_items
    assert (item.item, item.quantity) == ("grounded_prompt", 1)


@pytest.mark.parametrize(
    ("name", "request_", "call"),
    [
        ("chat", {"models": ["b"]}, AddedCall(model="b", is_instead=True)),
        (
            "messages",
            {"fallbacks": [{"model": "b", "max_tokens": 7}]},
            AddedCall(model="b", times=1, max_completion_tokens=7),
        ),
        ("messages", {"fallbacks": [{"model": "b"}]}, AddedCall(model="b", times=1, max_completion_tokens=9)),
        ("messages", {"fallbacks": "default"}, AddedCall(model="", times=1, max_completion_tokens=9)),
        ("messages", {"compaction": {"type": "summarize"}}, AddedCall(model="", times=1, max_completion_tokens=9)),
        (
            "messages",
            {"tools": [{"type": "advisor_20260301", "model": "b", "max_uses": 2, "max_tokens": 8}]},
            AddedCall(model="b", times=2, max_completion_tokens=8, by_reference=True),
        ),
    ],
)
def test_further_model_calls_of_a_provider_count(name, request_, call):
    assert bounded(name, {"max_tokens": 9, **request_}).added_calls == (call,)


# Conditions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "request_", "wanted"),
    [
        ("chat", {}, Conditions()),
        ("chat", {"service_tier": "auto"}, Conditions()),
        ("chat", {"service_tier": None}, Conditions()),
        ("chat", {"service_tier": "flex"}, Conditions(tier="flex")),
        ("chat", {"service_tier": "fast"}, Conditions(tier="priority")),
        ("chat", {"service_tier": ["flex"]}, Conditions()),
        ("responses", {"service_tier": "priority"}, Conditions(tier="priority")),
        ("responses", {"background_options": {"completion_window": "8h"}}, Conditions(completion_window="8h")),
        ("messages", {"speed": "fast", "inference_geo": "us"}, Conditions(speed="fast", region="us")),
        ("messages", {"speed": "standard", "inference_geo": "global"}, Conditions()),
        ("generate", {"serviceTier": "FLEX"}, Conditions(tier="flex")),
        ("generate", {"service_tier": "priority"}, Conditions(tier="priority")),
    ],
)
def test_a_request_says_what_it_wants_to_be_served_by(name, request_, wanted):
    raw = json.dumps({**CASES[name].request, **request_}).encode()
    assert CASES[name].dialect.read_request(raw, MODEL).conditions == wanted


# Anything -------------------------------------------------------------------------------------------------------------

FIELDS = ("max_tokens", "n", "tools", "models", "plugins", "search_parameters", "reasoning", "thinking", "conversation")
FIELDS += ("fallbacks", "generationConfig", "generation_config", "serviceTier", "prediction", "context_management")


@given(name=st.sampled_from(sorted(CASES)), more=st.dictionaries(st.sampled_from(FIELDS), NESTED, max_size=5))
def test_any_value_of_any_field_is_read(name, more):
    raw = json.dumps({**CASES[name].request, **more}).encode()
    request = CASES[name].dialect.read_request(raw, MODEL)
    known = CASES[name].dialect.bounded(raw, request, ())
    for count in (known.max_prompt_tokens, known.max_completion_tokens, known.choices):
        assert count is None or count >= 0
    assert all(item.quantity >= 0 for item in known.max_items)
