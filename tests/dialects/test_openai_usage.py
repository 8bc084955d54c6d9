"""Usage in OpenAI's shape beyond the plain counts: modalities, caches, counts beside a total, tools, tiers."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from mcpmeter.dialects.base import ResponseInfo, with_aliases
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.records import Conditions, Usage, UsageItem

CHAT, RESPONSES = OpenAiChat(), OpenAiResponses()


def chat(usage: Any, dialect: Any = CHAT, **fields: Any) -> ResponseInfo:
    choice = {"message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    body = json.dumps({"model": "m", "choices": [choice], "usage": usage, **fields}).encode()
    info: ResponseInfo = dialect.read_response(body)
    return info


def response(usage: Any, output: Any = (), **fields: Any) -> ResponseInfo:
    body = {"id": "resp_1", "status": "completed", "model": "m", "output": output, "usage": usage, **fields}
    return RESPONSES.read_response(json.dumps(body).encode())


def tally(items: tuple[UsageItem, ...]) -> dict[str, int]:
    return {f"{item.model}:{item.item}" if item.model else item.item: item.quantity for item in items}


def counts(usage: Usage | None) -> tuple[int, int, int, int, int]:
    assert usage is not None
    cached, written = usage.cached_read_tokens, usage.cache_write_tokens
    return usage.prompt_tokens, usage.completion_tokens, cached, written, usage.reasoning_tokens


def base(prompt: int = 1000, completion: int = 500, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}


# Items ---------------------------------------------------------------------------------------------------------------


def test_a_plain_usage_has_no_items():
    usage = chat(base(prompt_tokens_details={"cached_tokens": 9, "text_tokens": 1000, "audio_tokens": 0})).usage
    assert (usage.items, usage.unknown, usage.cached_read_tokens) == ((), (), 9)


def test_sound_is_told_apart_on_both_sides():
    read = chat(
        base(
            prompt_tokens_details={"audio_tokens": 800, "text_tokens": 200, "cached_tokens": 0},
            completion_tokens_details={"audio_tokens": 400, "text_tokens": 100, "reasoning_tokens": 0},
        )
    ).usage
    assert tally(read.items) == {"prompt": 200, "prompt_audio": 800, "completion": 100, "completion_audio": 400}
    assert (read.audio_tokens, read.unknown) == (1200, ())


def test_cached_tokens_are_text_first_and_then_of_another_modality():
    details = {"audio_tokens": 800, "cached_tokens": 300}
    assert tally(chat(base(prompt_tokens_details=details)).usage.items) == {
        "cached_read": 200,
        "cached_read_audio": 100,
        "prompt_audio": 700,
        "completion": 500,
    }
    details["cached_tokens_details"] = {"audio_tokens": 250, "text_tokens": 50}
    assert tally(chat(base(prompt_tokens_details=details)).usage.items) == {
        "prompt": 150,
        "cached_read": 50,
        "cached_read_audio": 250,
        "prompt_audio": 550,
        "completion": 500,
    }


@pytest.mark.parametrize("kind", ["image", "video"])
def test_pictures_are_told_apart(kind):
    read = chat(base(prompt_tokens_details={f"{kind}_tokens": 700})).usage
    assert tally(read.items) == {"prompt": 300, f"prompt_{kind}": 700, "completion": 500}


def test_predictions_are_parts_of_the_completion():
    details = {"accepted_prediction_tokens": 300, "rejected_prediction_tokens": 150, "reasoning_tokens": 20}
    usage = chat(base(completion_tokens_details=details)).usage
    assert (counts(usage), usage.items, usage.unknown) == ((1000, 500, 0, 0, 20), (), ())


@pytest.mark.parametrize(
    "written",
    [
        {"prompt_tokens_details": {"cache_write_tokens": 600}},
        {"prompt_tokens_details": {"cache_creation_tokens": 600, "cache_write_tokens": 600}},
        {"prompt_tokens_details": {"cache_creation_input_tokens": 600}},
        {"cache_creation_input_tokens": 600, "prompt_tokens_details": {"cache_creation_tokens": 600}},
    ],
)
def test_a_cache_write_counts_once_under_each_of_its_names(written):
    usage = chat(base(**written)).usage
    assert (counts(usage), usage.items, usage.unknown) == ((1000, 500, 0, 600, 0), (), ())


@pytest.mark.parametrize(
    ("details", "lifetimes"),
    [
        (
            {"cache_write_tokens": 600, "cache_write_tokens_details": {"ttl_30m_tokens": 500, "ttl_12h_tokens": 100}},
            "30m 12h",
        ),
        ({"cache_write_tokens": {"ttl_30m": 500, "ttl_12h": 100}}, "30m 12h"),
        ({"ttl_30m": 500, "ttl_12h": 100}, "30m 12h"),
        (
            {"cache_creation": {"ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 100}},
            "5m 1h",
        ),
        (
            {
                "cache_creation_tokens": 600,
                "cache_creation_token_details": {"ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 100},
            },
            "5m 1h",
        ),
    ],
)
def test_cache_writes_are_told_apart_by_time_to_live(details, lifetimes):
    short, long = lifetimes.split()
    usage = chat(base(prompt_tokens_details={"cached_tokens": 300, **details})).usage
    assert tally(usage.items) == {
        "prompt": 100,
        "cached_read": 300,
        f"cache_write_{short}": 500,
        f"cache_write_{long}": 100,
        "completion": 500,
    }
    assert (usage.cache_write_tokens, usage.unknown) == (600, ())


@pytest.mark.parametrize(("kind", "item"), [("ephemeral", "cached_read"), ("implicit", "cached_read_implicit")])
def test_dashscope_tells_the_kind_of_a_cache(kind, item):
    usage = chat(base(prompt_tokens_details={"cached_tokens": 300, "cache_type": kind, "text_tokens": 1000})).usage
    assert (usage.cached_read_tokens, usage.unknown) == (300, ())
    assert tally(usage.items).get(item, usage.cached_read_tokens) == 300


def test_dashscope_repeats_the_usage_of_a_response():
    usage = response(
        {
            "input_tokens": 1524,
            "output_tokens": 1534,
            "total_tokens": 3058,
            "input_tokens_details": {"cached_tokens": 1305},
            "output_tokens_details": {"reasoning_tokens": 1187},
            "x_details": [
                {
                    "input_tokens": 1524,
                    "output_tokens": 1534,
                    "total_tokens": 3058,
                    "prompt_tokens_details": {
                        "cache_creation": {"ephemeral_5m_input_tokens": 213},
                        "cache_creation_input_tokens": 213,
                        "cache_type": "ephemeral",
                        "cached_tokens": 1305,
                    },
                    "x_billing_type": "response_api",
                }
            ],
        }
    ).usage
    assert tally(usage.items) == {
        "prompt": 6,
        "cached_read": 1305,
        "cache_write_5m": 213,
        "completion": 347,
        "reasoning": 1187,
    }
    assert usage.unknown == ()


# Beside the totals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "usage",
    [
        {"total_tokens": 32015, "cache_read_input_tokens": 30000, "cache_creation_input_tokens": 2000},
        {"cache_read_input_tokens": 30000, "cache_creation_input_tokens": 2000},
        {"total_tokens": 15, "cache_read_input_tokens": 30000, "cache_creation_input_tokens": 2000},
        {"total_tokens": 32015, "prompt_tokens_details": {"cached_tokens": 30000, "cache_write_tokens": 2000}},
        {
            "total_tokens": 32015,
            "cache_read_input_tokens": 30000,
            "cache_creation_input_tokens": 2000,
            "prompt_tokens_details": {"cached_tokens": 30000},
        },
    ],
)
def test_caches_beside_the_prompt_move_into_it(usage):
    assert counts(chat({"prompt_tokens": 10, "completion_tokens": 5, **usage}).usage) == (32010, 5, 30000, 2000, 0)


def test_caches_inside_the_prompt_stay_there():
    usage = base(cache_read_input_tokens=600, cache_creation_input_tokens=200)
    assert counts(chat(usage).usage) == (1000, 500, 600, 200, 0)


def test_caches_and_thoughts_may_both_stand_beside_their_totals():
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 30035, "cache_read_input_tokens": 30000}
    assert counts(chat({**usage, "completion_tokens_details": {"reasoning_tokens": 20}}).usage) == (
        30010,
        25,
        30000,
        0,
        20,
    )


def test_thoughts_beside_the_completion_move_into_it():
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 30}
    assert counts(chat({**usage, "completion_tokens_details": {"reasoning_tokens": 20}}).usage) == (9, 21, 0, 0, 20)


def test_what_a_total_leaves_unexplained_is_unknown():
    usage = chat({"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 30, "cached_tokens": 3}).usage
    assert (counts(usage), tally(usage.unknown)) == ((9, 1, 3, 0, 0), {"total_tokens": 20})


def test_googles_thoughts_are_completion_beside_cached_tokens_too():
    read = chat({**base(9, 1), "total_tokens": 30, "prompt_tokens_details": {"cached_tokens": 3}}).usage
    assert (counts(read), read.unknown) == ((9, 21, 3, 0, 0), ())


def test_an_unknown_field_explains_a_total():
    usage = chat({"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 30, "smell_tokens": 20}).usage
    assert (counts(usage), tally(usage.unknown)) == ((9, 1, 0, 0, 0), {"smell_tokens": 20})


# Unknown -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["chat", "responses"])
def test_a_part_of_unknown_modality_is_not_billed_as_ordinary_tokens(shape):
    details = {"smell_tokens": 400}
    if shape == "chat":
        usage = chat(base(prompt_tokens_details=details, completion_tokens_details={"touch_tokens": 50})).usage
        names = ("prompt_tokens_details.smell_tokens", "completion_tokens_details.touch_tokens")
    else:
        told = {"input_tokens": 1000, "output_tokens": 500, "total_tokens": 1500, "input_tokens_details": details}
        usage = response({**told, "output_tokens_details": {"touch_tokens": 50}}).usage
        names = ("input_tokens_details.smell_tokens", "output_tokens_details.touch_tokens")
    assert tally(usage.items) == {"prompt": 600, "completion": 450}
    assert tally(usage.unknown) == dict(zip(names, (400, 50), strict=True))
    assert counts(usage)[:2] == (1000, 500)


@pytest.mark.parametrize(
    "free",
    [
        {"queue_time": 0.1, "prompt_time": 0.002, "completion_time": 0.4, "total_time": 0.5},
        {"time_to_first_token": 0.3, "total_latency": 1.2, "is_last_response": True, "acceptance_rate": 4.1},
        {"prompt_tokens_details": None, "completion_tokens_details": None, "cache_creation_input_tokens": None},
        {"cost": 0.01, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.01}},
        {"server_tool_use_details": {"tool_calls_requested": 2, "tool_calls_executed": 2}},
        {"new": [0, None, "", {}, {"a": False}]},
    ],
)
def test_what_is_known_to_be_free_is_no_item(free):
    usage = chat(base(**free)).usage
    assert (usage.items, usage.unknown) == ((), ())


def test_an_alias_names_a_count_of_a_provider():
    aliased = with_aliases(CHAT, {"usage.mine.reads": "cached_read", "usage.energy_joules": "free"})
    usage = chat(base(mine={"reads": 300}, energy_joules=7.5), aliased).usage
    assert (counts(usage), usage.unknown) == ((1000, 500, 300, 0, 0), ())
    assert tally(chat(base(mine={"reads": 300})).usage.unknown) == {"mine.reads": 300}
    assert with_aliases(CHAT, {}) is CHAT


def test_an_alias_takes_precedence_over_a_published_name():
    aliased = with_aliases(OpenAiEmbeddings(), {"usage.prompt_tokens": "free", "usage.billed": "prompt_tokens"})
    body = b'{"data":[{}],"usage":{"prompt_tokens":3,"billed":8}}'
    assert aliased.read_response(body).usage == Usage(prompt_tokens=8, source="reported")


# Providers' own items ------------------------------------------------------------------------------------------------


def test_perplexitys_reasoning_and_citations_stand_beside():
    usage = chat(
        base(33, 7163, citation_tokens=20016, num_search_queries=18, reasoning_tokens=73997, search_context_size="low")
    ).usage
    assert tally(usage.items) == {
        "prompt": 33,
        "completion": 7163,
        "reasoning": 73997,
        "citation": 20016,
        "web_search": 18,
        "request_low": 1,
    }
    assert (usage.completion_tokens, usage.unknown) == (7163 + 73997, ())


def test_a_total_of_another_type_hides_no_count():
    usage = chat(base(total_tokens="1500")).usage
    assert (counts(usage), tally(usage.unknown)) == ((1000, 500, 0, 0, 0), {"total_tokens": 1})


def test_a_searching_response_of_perplexity():
    usage = response(
        {
            "input_tokens": 100,
            "output_tokens": 10,
            "total_tokens": 110,
            "input_tokens_details": {"cache_read_input_tokens": 60, "cache_creation_input_tokens": 20},
            "tool_calls_details": {"web_search": {"invocation": 3}, "fetch_url": {"invocation": 2}},
            "cost": {"currency": "USD", "total_cost": 0.0166},
        }
    )
    assert counts(usage.usage) == (100, 10, 60, 20, 0)
    assert tally(usage.usage.items) == {
        "prompt": 20,
        "cached_read": 60,
        "cache_write": 20,
        "completion": 10,
        "web_search": 3,
        "web_fetch": 2,
    }
    assert usage.reported_usd == "0.0166"


def test_xai_counts_its_searches_and_tells_its_cost():
    read = response(
        {
            "input_tokens": 7583,
            "input_tokens_details": {"cached_tokens": 3072},
            "output_tokens": 3192,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 10775,
            "num_sources_used": 0,
            "num_server_side_tools_used": 4,
            "cost_in_usd_ticks": 292331500,
            "server_side_tool_usage_details": {"web_search_calls": 1, "x_search_calls": 3, "mcp_calls": 5},
            "context_details": {"input_tokens": 5993, "output_tokens": 2995},
        },
        [{"type": "web_search_call", "action": {"type": "search"}}],
    )
    searches = {"web_search": 1, "social_search": 3}
    assert tally(read.usage.items) == {"prompt": 4511, "cached_read": 3072, "completion": 3192, **searches}
    assert (read.items, read.usage.unknown, read.reported_usd) == ((), (), "0.0292331500")


@pytest.mark.parametrize(
    ("usage", "usd", "is_part"),
    [
        ({"cost": 0.95, "cost_details": {"upstream_inference_cost": 19}}, "0.95", False),
        ({"cost": 0.95, "cost_details": {"upstream_inference_cost": 19}, "is_byok": False}, "0.95", False),
        ({"cost": 0.95, "cost_details": {"upstream_inference_cost": 19}, "is_byok": True}, "19.95", False),
        ({"cost": 0.95, "cost_details": {"upstream_inference_cost": None}, "is_byok": True}, "0.95", True),
        ({"cost": 0, "cost_details": {"upstream_inference_cost": 0.5}, "is_byok": True}, "0.5", False),
        ({"is_byok": True}, "", False),
        ({"cost": 0.25, "is_byok": "yes"}, "0.25", False),
    ],
)
def test_openrouters_upstream_cost_is_added_only_with_an_own_key(usage, usd, is_part):
    read = chat(base(**usage))
    assert (read.reported_usd, read.reported_is_part) == (usd, is_part)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        ({"cost": {"total_cost": 0.5, "currency": "USD"}}, "0.5"),
        ({"cost": 0.5, "currency": "USD"}, "0.5"),
        ({"cost": {"total_cost": 0.5, "currency": "CNY"}}, ""),
        ({"cost": 0.5, "currency": "EUR"}, ""),
    ],
)
def test_a_cost_in_another_currency_is_not_read_as_dollars(usage, usd):
    read = chat(base(**usage))
    assert (read.reported_usd, read.usage.unknown) == (usd, ())


@pytest.mark.parametrize("ticks", [37_756_000, 37_756_000.0, "37756000"])
def test_ticks_are_read_however_they_are_written(ticks):
    assert Decimal(chat(base(cost_in_usd_ticks=ticks)).reported_usd) == Decimal("0.0037756")


def test_openrouters_searches_are_items():
    usage = chat(base(server_tool_use={"web_search_requests": 2, "tool_calls_requested": 3})).usage
    assert (tally(usage.items)["web_search"], usage.unknown) == (2, ())


# Conditions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "tier"),
    [
        ("flex", "flex"),
        ("priority", "priority"),
        ("fast", "priority"),
        ("ultrafast", "ultrafast"),
        ("default", ""),
        ("auto", ""),
        ("standard", ""),
        ("on_demand", ""),
        (None, ""),
        ("of tomorrow", "of tomorrow"),
    ],
)
def test_the_tier_that_served_the_call_is_a_condition(written, tier):
    event = {"choices": [], "usage": base(), "service_tier": written}
    data = {"input_tokens": 1, "output_tokens": 1}
    for read in (
        chat(base(), service_tier=written),
        CHAT.read_events(b"data: " + json.dumps(event).encode() + b"\n\n"),
        response(data, service_tier=written),
    ):
        assert (read.conditions, read.unknown) == (Conditions(tier=tier), ())


@pytest.mark.parametrize("odd", [7, {"tier": "flex"}, ["flex"], True])
def test_a_tier_that_is_no_text_is_unknown(odd):
    assert tally(chat(base(), service_tier=odd).unknown) == {"service_tier": 1}


def test_conditions_inside_the_usage_count():
    read = chat(base(speed="fast", inference_geo="us", service_tier="standard"))
    assert (read.conditions, read.usage.unknown) == (Conditions(speed="fast", region="us"), ())


# Hosted tools --------------------------------------------------------------------------------------------------------

USAGE = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}


def call(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "status": "completed", **fields}


def search(kind: str = "search") -> dict[str, Any]:
    return call("web_search_call", action={"type": kind})


@pytest.mark.parametrize(
    ("output", "fields", "items"),
    [
        ([search(), search(), search("open_page"), search("find_in_page")], {}, {"web_search": 2}),
        ([search(), search()], {"tool_usage": {"web_search": {"num_requests": 1}}}, {"web_search": 1}),
        ([search()], {"tool_usage": {"web_search": {"num_requests": 0}}}, {}),
        ([call("web_search_call")], {}, {"web_search": 1}),
        ([search()], {"tools": [{"type": "web_search_preview_2025_03_11"}]}, {"web_search_preview": 1}),
        ([call("file_search_call"), call("file_search_call")], {}, {"file_search": 2}),
        (
            [call("code_interpreter_call", container_id=name) for name in ("c1", "c2", "c1")],
            {},
            {"code_session": 2},
        ),
        ([call("image_generation_call")], {}, {"image": 1}),
        ([call("function_call"), call("mcp_call"), 7, None], {}, {}),
    ],
)
def test_hosted_tools_are_billed_by_what_the_output_shows(output, fields, items):
    read = response(USAGE, output, **fields)
    assert (tally(read.items), read.unknown, counts(read.usage)) == (items, (), (1000, 100, 0, 0, 0))
    event = {
        "type": "response.completed",
        "response": {"status": "completed", "output": output, "usage": USAGE, **fields},
    }
    assert tally(RESPONSES.read_events(b"data: " + json.dumps(event).encode() + b"\n\n").items) == items


def test_an_action_of_a_search_that_is_not_known_is_an_unknown_item():
    read = response(USAGE, [search("teleport"), search(7)], tool_usage={"web_search": {}, "dreams": {"nights": 2}})
    assert tally(read.unknown) == {
        "output.web_search_call.teleport": 1,
        "output.web_search_call.7": 1,
        "tool_usage.dreams.nights": 2,
    }


IMAGE_USAGE = {
    "input_tokens": 60,
    "input_tokens_details": {"image_tokens": 40, "text_tokens": 20},
    "output_tokens": 1000,
    "total_tokens": 1060,
}


def test_images_are_billed_at_the_model_that_makes_them():
    tools = [{"type": "image_generation", "model": "gpt-image-2"}]
    read = response(USAGE, [call("image_generation_call")], tools=tools, tool_usage={"image_gen": IMAGE_USAGE})
    assert tally(read.usage.items) == {
        "prompt": 1000,
        "completion": 100,
        "gpt-image-2:prompt": 20,
        "gpt-image-2:prompt_image": 40,
        "gpt-image-2:completion_image": 1000,
    }
    assert (counts(read.usage), read.items) == ((1060, 1100, 0, 0, 0), ())


def test_images_of_a_model_that_is_not_named_are_an_unknown_item():
    read = response(USAGE, [call("image_generation_call")], tool_usage={"image_gen": IMAGE_USAGE})
    assert (tally(read.unknown), counts(read.usage)) == ({"tool_usage.image_gen": 1060}, (1000, 100, 0, 0, 0))


@pytest.mark.parametrize(
    ("model", "items"),
    [
        ("gpt-4o-search-preview-2025-03-11", {"web_search_preview": 1}),
        ("gpt-5-search-api", {"web_search": 1}),
        ("gpt-4.1", {}),
    ],
)
def test_a_search_model_makes_one_search_for_each_response(model, items):
    assert tally(chat(base(), model=model).items) == items


@pytest.mark.parametrize(
    ("status", "is_pending"), [("queued", True), ("in_progress", True), ("completed", False), (7, False)]
)
def test_a_background_response_is_pending_until_it_ends(status, is_pending):
    read = response(None, [], status=status)
    assert (read.object_id, read.is_pending) == ("resp_1", is_pending)


# Streams -------------------------------------------------------------------------------------------------------------


def stream(*usages: Any) -> ResponseInfo:
    events = [{"choices": [], "usage": usage} for usage in usages]
    read = CHAT.read_events(b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events))
    assert read is not None
    return read


ZERO = base(0, 0)


@pytest.mark.parametrize(
    ("usages", "expected"),
    [
        ((base(1200, 30), ZERO), (1200, 30, 0, 0, 0)),
        ((ZERO, base(1200, 30)), (1200, 30, 0, 0, 0)),
        ((base(1200, 1), base(0, 30)), (1200, 30, 0, 0, 0)),
        ((base(1200, 1), base(1200, 30, cached_tokens=700)), (1200, 30, 700, 0, 0)),
        ((base(1200, 30, cached_tokens=700), base(1200, 30)), (1200, 30, 700, 0, 0)),
        ((base(1200, 30), base(1200, 10)), (1200, 30, 0, 0, 0)),
    ],
)
def test_cumulative_counts_do_not_fall(usages, expected):
    assert counts(stream(*usages).usage) == expected


@pytest.mark.parametrize("costs", [(0.01, 0), (0.002, 0.01), (0.002, 0.01, 0.0), (0, 0.01, None)])
def test_the_last_cost_of_a_stream_that_is_not_zero_counts(costs):
    assert stream(*(base(cost=cost) for cost in costs)).reported_usd == "0.01"


def test_items_of_a_stream_add_up_after_a_merge():
    sound = {"audio_tokens": 800}
    read = stream(
        base(1000, 1, prompt_tokens_details=sound, smell=3),
        base(1000, 500, completion_tokens_details={"audio_tokens": 400}),
        ZERO,
    ).usage
    assert tally(read.items) == {"prompt": 200, "prompt_audio": 800, "completion": 100, "completion_audio": 400}
    assert (read.audio_tokens, tally(read.unknown)) == (1200, {"smell": 3})


@pytest.mark.parametrize("choices", [{"choices": []}, {"choices": None}, {}])
@pytest.mark.parametrize("more", [{}, {"x_groq": None, "error": None, "system_fingerprint": None}])
def test_the_usage_event_is_recognised_in_all_its_shapes(choices, more):
    event = b"data: " + json.dumps({"id": "c", **choices, "usage": base(), **more}).encode() + b"\n\n"
    assert CHAT.only_usage(event)
    assert counts(CHAT.read_events(event).usage) == (1000, 500, 0, 0, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"choices": [{"delta": {"content": "x"}}], "usage": base()},
        {"choices": [], "usage": None},
        {"choices": "text", "usage": base()},
        {"usage": base(), "error": {"message": "No."}},
    ],
)
def test_an_event_with_more_than_usage_is_forwarded(fields):
    assert not CHAT.only_usage(b"data: " + json.dumps(fields).encode() + b"\n\n")


# Tolerance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "finish_reason"),
    [
        ({"choices": [{"message": {"content": "ok"}, "finish_reason": {"type": "stop", "x": 1}}]}, "stop"),
        ({"choices": [{"message": {"content": "ok"}, "finish_reason": 7}]}, "7"),
        ({"choices": [{"message": {"content": "ok"}, "finish_reason": ["stop"]}]}, "stop"),
        ({"model": 7}, "stop"),
        ({"model": {"name": "m"}}, "stop"),
        ({"choices": None}, ""),
        ({"choices": "text"}, ""),
        ({"choices": [7, None, {"finish_reason": "stop"}]}, "stop"),
        ({"choices": {"0": {}}}, ""),
        ({"error": False, "service_tier": 3, "x_groq": [7]}, "stop"),
    ],
)
def test_an_odd_field_does_not_cost_a_chat_its_usage(fields, finish_reason):
    read = chat(base(), **fields)
    assert (counts(read.usage), read.finish_reason) == ((1000, 500, 0, 0, 0), finish_reason)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": 7},
        {"status": {"a": 1}},
        {"id": 7},
        {"output": [7, {"type": 9}, {"type": "message", "content": [{"type": []}]}]},
        {"output": "text"},
        {"tools": 3, "tool_usage": "many"},
        {"output": [search()], "tools": [None, 7, {"type": 3}], "tool_usage": {"image_gen": 3, "web_search": []}},
    ],
)
def test_an_odd_field_does_not_cost_a_response_its_usage(fields):
    output = fields.pop("output", []) if "output" in fields else []
    assert counts(response(USAGE, output, **fields).usage) == (1000, 100, 0, 0, 0)


@pytest.mark.parametrize("fields", [{"item": 7}, {"item": [], "type": 7}, {"sequence_number": "x", "error": False}])
def test_an_odd_field_does_not_cost_an_event_its_usage(fields):
    event = {"type": "response.completed", "response": {"output": [], "usage": USAGE}, **fields}
    assert counts(RESPONSES.read_events(b"data: " + json.dumps(event).encode() + b"\n\n").usage) == (1000, 100, 0, 0, 0)


def test_whole_numbers_may_be_written_as_fractions():
    floats = {"prompt_tokens": 1200.0, "completion_tokens": 30.0, "total_tokens": 1230.0}
    assert counts(chat(floats).usage) == counts(stream(floats).usage) == (1200, 30, 0, 0, 0)
    data = {"input_tokens": 1200.0, "output_tokens": 30.0, "input_tokens_details": {"cached_tokens": 8.0}}
    assert counts(response(data).usage) == (1200, 30, 8, 0, 0)


def test_a_tier_that_a_stream_lowers_to_the_default_is_not_billed():
    def events(*stated: dict[str, str]) -> bytes:
        return b"".join(
            b"data: " + json.dumps({"type": "response.in_progress", "response": {"id": "r", **each}}).encode() + b"\n\n"
            for each in stated
        )

    lowered = RESPONSES.read_events(events({"service_tier": "priority"}, {"service_tier": "default"}))
    assert lowered.conditions == Conditions()
    kept = RESPONSES.read_events(events({"service_tier": "priority"}, {}) + b'data: {"type":"error"}\n\n')
    assert (kept.conditions, kept.lacks_tier) == (Conditions(tier="priority"), False)


def test_groqs_own_tools_are_billed_or_unknown():
    names = ("browser.search", "browser.search", "browser.open", "python", "wolfram_alpha")
    tools = [{"index": index, "type": "builtin", "name": name} for index, name in enumerate(names)]
    choice = {"message": {"role": "assistant", "content": "ok", "executed_tools": tools}, "finish_reason": "stop"}
    read = chat(base(), choices=[choice])
    assert tally(read.items) == {"web_search": 2, "web_fetch": 1, "code_execution": 1}
    assert tally(read.unknown) == {"executed_tools.wolfram_alpha": 1}


def test_groqs_own_tools_in_a_stream_are_counted_without_a_price():
    deltas = [
        {"content": "a", "executed_tools": [{"index": 0, "type": "search"}]},
        {"executed_tools": [{"index": 0, "output": "x"}]},
        {"executed_tools": [{"index": 1, "type": "search", "output": "x"}]},
        {"content": '"executed_tools"'},
    ]
    events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    blocks = [b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n" for event in events]
    assert CHAT.read_events(blocks[-1]) is None
    read = CHAT.read_events(b"".join(blocks))
    assert (read.items, tally(read.unknown)) == ((), {"executed_tools": 2})


def test_an_empty_output_hides_which_hosted_tools_ran():
    told = {"input_tokens": 9, "output_tokens": 5, "total_tokens": 14}
    assert tally(response(told, [], tools=[{"type": "web_search"}]).unknown) == {"output": 1}
    assert response(told, [], tools=[{"type": "function", "name": "web"}]).unknown == ()
    assert response(told, [{"type": "message"}], tools=[{"type": "web_search"}]).unknown == ()
    assert response(None, [], tools=[{"type": "web_search"}]).unknown == ()
