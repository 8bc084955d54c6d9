"""The responses dialect: requests, responses, events and estimates that are its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.errors import InvalidRequest
from mcpmeter.records import Usage, UsageItem

GOLDEN = Path(__file__).parents[1] / "golden" / "openai_responses"
RESPONSES = OpenAiResponses()
INPUT = b'"input":"Hello"'


def event(kind: str, rest: str) -> bytes:
    return f'event: {kind}\ndata: {{"type":"{kind}",{rest}}}\n\n'.encode()


# Requests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-4.1","input":"Hello","stream":true,"background":true,"store":false,"new":[1]}',
        b'{"model":"gpt-4.1","input":[{"role":"user","content":"Hello"}],"stream":true}',
        b'{"model":"gpt-4.1","input":[{"type":"function_call_output","call_id":"c","output":"7"}],"stream":true}',
        b'{"model":"gpt-4.1","prompt":{"id":"pmpt_1"},"stream":true}',
        b'{"model":"gpt-4.1","previous_response_id":"resp_1","input":[],"stream":true}',
        b'{"model":"gpt-4.1","conversation":"conv_1","input":null,"stream":true}',
    ],
)
def test_metered_fields_are_read_and_others_ignored(body):
    request = RESPONSES.read_request(body)
    assert (request.model, request.stream) == ("gpt-4.1", True)
    assert request.prompt_tokens_estimate > 0
    assert RESPONSES.path_name(request) == "responses"
    assert RESPONSES.forwarded(body, request, "gpt-4.1") == body


def test_no_usage_is_requested_that_must_be_withheld():
    request = RESPONSES.read_request(b'{%s,"stream":true}' % INPUT)
    assert request.usage_requested
    assert not RESPONSES.only_usage((GOLDEN / "stream_all_at_once.sse").read_bytes())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "'input' is empty"),
        (b'{"input":""}', "'input' is empty"),
        (b'{"input":[]}', "'input' is empty"),
        (b'{"input":null,"previous_response_id":null}', "'input' is empty"),
        (b'{"input":7}', "$.input"),
        (b'{"input":{"role":"user"}}', "$.input"),
        (b'{"messages":[{"role":"user","content":"Hello"}]}', "'input' is empty"),
        (b'{"stream":"yes",%s}' % INPUT, "$.stream"),
        (b'{"stream":false,"str\\u0065am":true,%s}' % INPUT, "'stream' twice"),
    ],
    ids=lambda value: repr(value[:48]),
)
def test_an_invalid_request_is_refused_by_field(body, words):
    with pytest.raises(InvalidRequest) as refused:
        RESPONSES.read_request(body)
    assert words in str(refused.value)


def test_renaming_the_model_changes_nothing_else():
    body = b'{"model":"openai/gpt-4.1",%s,"temperature":1.0e0,"seed":12345678901234567890}' % INPUT
    sent = RESPONSES.forwarded(body, RESPONSES.read_request(body), "gpt-4.1")
    assert sent == body.replace(b"openai/gpt-4.1", b"gpt-4.1")


# Responses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"output":null}',
        b'{"status":"completed"}',
        b'{"choices":[]}',
    ],
    ids=lambda value: repr(value[:48]),
)
def test_a_body_without_output_is_unreadable(body):
    with pytest.raises(UnreadableResponse):
        RESPONSES.read_response(body)


NONE = (None, False)
BAD = (None, True)


def reported(prompt: int, completion: int, unknown: dict[str, int] | None = None, **details: int) -> tuple[Usage, bool]:
    items = tuple(UsageItem(path, quantity) for path, quantity in (unknown or {}).items())
    return Usage(prompt_tokens=prompt, completion_tokens=completion, unknown=items, source="reported", **details), False


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ("null", NONE),
        ("{}", NONE),
        ('{"input_tokens":0,"output_tokens":0}', reported(0, 0)),
        ('{"input_tokens":5,"output_tokens":2}', reported(5, 2)),
        ('{"input_tokens":5,"total_tokens":7}', reported(5, 2)),
        ('{"input_tokens":5}', BAD),
        ('{"output_tokens":5}', BAD),
        ('{"prompt_tokens":5,"completion_tokens":2}', reported(5, 2)),
        (
            '{"input_tokens":5,"output_tokens":2,"input_tokens_details":{"cached_tokens":9,"cache_write_tokens":9}}',
            reported(
                5,
                2,
                {"input_tokens_details.cached_tokens": 4, "input_tokens_details.cache_write_tokens": 9},
                cached_read_tokens=5,
            ),
        ),
        (
            '{"input_tokens":5,"output_tokens":2,"output_tokens_details":{"reasoning_tokens":9}}',
            reported(5, 2, {"output_tokens_details.reasoning_tokens": 7}, reasoning_tokens=2),
        ),
        (
            '{"input_tokens":5,"output_tokens":2,"input_tokens_details":7,"output_tokens_details":[]}',
            reported(5, 2, {"input_tokens_details": 7}),
        ),
    ],
)
def test_totals_are_read_as_reported_or_not_at_all(usage, expected):
    response = f'{{"status":"completed","output":[],"usage":{usage}}}'
    for read in (
        RESPONSES.read_response(response.encode()),
        RESPONSES.read_events(event("response.completed", f'"response":{response}')),
    ):
        assert (read.usage, read.bad_usage) == expected


@pytest.mark.parametrize(
    ("fields", "finish_reason"),
    [
        ('"status":"completed"', "completed"),
        ('"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}', "max_output_tokens"),
        ('"status":"incomplete","incomplete_details":{"reason":null}', "incomplete"),
        ('"status":"incomplete","incomplete_details":null', "incomplete"),
        ('"status":"incomplete","incomplete_details":"why"', "incomplete"),
        ('"status":"cancelled"', "cancelled"),
        ('"status":"queued"', ""),
        ('"status":"in_progress"', ""),
        ('"status":"a\\nb"', "a?b"),
        ('"status":null', ""),
        ('"model":"m"', ""),
    ],
)
def test_the_finish_reason_is_the_status_or_why_it_is_incomplete(fields, finish_reason):
    assert RESPONSES.read_response(f'{{{fields},"output":[]}}'.encode()).finish_reason == finish_reason


@pytest.mark.parametrize(
    ("output", "is_empty"),
    [
        ("[]", True),
        ('[{"type":"reasoning","summary":[]}]', True),
        ('[{"type":"message","content":[]}]', True),
        ('[{"type":"message","content":[{"type":"output_text","text":""}]}]', True),
        ('[{"type":"message","content":[{"type":"output_text","text":"Hi"}]}]', False),
        ('[{"type":"message","content":[{"type":"refusal","refusal":"No."}]}]', False),
        ('[{"type":"message","content":[{"type":"something_new"}]}]', False),
        ('[{"type":"message","content":"Hi"}]', False),
        ('[{"type":"function_call","name":"f","arguments":""}]', False),
        ('[{"type":"web_search_call"},{"type":"message","content":[]}]', False),
        ('[{"type":"something_new"}]', False),
        ("[7]", False),
        ("7", False),
    ],
)
def test_a_response_is_empty_only_if_it_is(output, is_empty):
    done = f'{{"status":"completed","output":{output}}}'
    assert RESPONSES.read_response(done.encode()).is_empty == is_empty
    assert not RESPONSES.read_response(done.replace("completed", "in_progress").encode()).is_empty
    assert not RESPONSES.read_response(done.replace("completed", "failed").encode()).is_empty


@pytest.mark.parametrize(
    ("block", "has_content"),
    [
        (event("response.output_text.delta", '"delta":"Hi"'), True),
        (event("response.output_text.delta", '"delta":""'), False),
        (event("response.refusal.delta", '"delta":"No."'), True),
        (event("response.function_call_arguments.delta", '"delta":"{"'), True),
        (event("response.reasoning_summary_text.delta", '"delta":"Hm."'), False),
        (event("response.reasoning_text.delta", '"delta":"Hm."'), False),
        (event("response.audio.delta", '"delta":"UklGRg=="'), False),
        (event("response.output_item.added", '"item":{"type":"function_call","name":"f"}'), True),
        (event("response.output_item.added", '"item":{"type":"message","content":[]}'), False),
        (event("response.output_item.done", '"item":{"type":"reasoning"}'), False),
        (event("response.created", '"response":{"status":"in_progress","output":[]}'), False),
        (event("response.completed", '"response":{"output":[{"type":"web_search_call"}]}'), True),
        (b"data: <html>\n\n", False),
        (b"data: 7\n\n", False),
    ],
)
def test_content_is_text_or_a_tool_call_and_not_thoughts(block, has_content):
    assert RESPONSES.has_content(block) == has_content


@pytest.mark.parametrize(
    ("payload", "is_end"),
    [
        (b'{"type":"response.completed","response":{}}', True),
        (b'{"type":"response.incomplete"}', True),
        (b'{"type":"response.failed","response":{}}', True),
        (b"[DONE]", True),
        (b'{"type":"response.created","response":{}}', False),
        (b'{"type":"error","message":"No."}', False),
        (b'{"type":"response.output_text.delta","delta":"response.completed"}', False),
        (b'{"type":7}', False),
        (b"<html>", False),
    ],
)
def test_the_end_is_the_event_with_the_whole_response(payload, is_end):
    assert RESPONSES.is_end(b"data: " + payload + b"\n\n") == is_end


# Estimates -----------------------------------------------------------------------------------------------------------


def test_a_prompt_is_estimated_without_its_pictures():
    plain = RESPONSES.prompt_tokens(b'{"input":"12345678"}')
    assert plain == pytest.approx(2 + 4, abs=1)
    body = b'{"input":"12345678","instructions":"%s","tools":[{"name":"%s"}]}' % (b"i" * 400, b"t" * 400)
    assert RESPONSES.prompt_tokens(body) == pytest.approx(plain + 200, abs=2)
    picture = b'{"type":"input_image","image_url":"data:image/png;base64,%s"}' % (b"A" * 40_000)
    shown = b'{"input":[{"role":"user","content":[{"type":"input_text","text":"12345678"},%s]}]}' % picture
    assert RESPONSES.prompt_tokens(shown) < plain + 20


def test_pictures_and_encrypted_reasoning_are_not_text():
    assert RESPONSES.completion_tokens((GOLDEN / "answer_image.json").read_bytes()) == 0
    assert RESPONSES.completion_tokens((GOLDEN / "answer_reasoning.json").read_bytes()) < 12


def test_delivered_tokens_are_estimated_from_deltas_alone():
    blocks = [(GOLDEN / "stream_truncated.sse").read_bytes()]
    assert RESPONSES.delivered_tokens(blocks) == pytest.approx(len("Once upon a ti") / 4, abs=1)
    assert RESPONSES.delivered_tokens([event("response.audio.delta", f'"delta":"{"A" * 4000}"')]) == 0
