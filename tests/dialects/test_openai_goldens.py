"""Every recorded OpenAI body, answers and streams: the dialects read all that it says, however its bytes arrive."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects.base import Dialect, ResponseInfo, UnreadableResponse
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.errors import UpstreamDisconnected
from mcpmeter.relay.stream import StreamTee

GOLDEN = Path(__file__).parents[1] / "golden"
DIALECTS: dict[str, Dialect] = {
    "openai_chat": OpenAiChat(),
    "openai_responses": OpenAiResponses(),
    "openai_embeddings": OpenAiEmbeddings(),
}
EXPECTED: dict[str, dict[str, Any]] = {
    f"{folder}/{name}": expected
    for folder in DIALECTS
    for name, expected in json.loads((GOLDEN / folder / "expected.json").read_text()).items()
}
ANSWERS = [name for name in EXPECTED if name.endswith(".json")]
STREAMS = [name for name in EXPECTED if name.endswith(".sse")]
RESPONSES = [name for name in STREAMS if name.startswith("openai_responses/")]
DETAILS = next(iter(EXPECTED.values()))["usage"].keys()


def dialect_of(name: str) -> Dialect:
    return DIALECTS[name.partition("/")[0]]


def said(read: ResponseInfo) -> dict[str, Any]:
    usage = None if read.usage is None else {detail: getattr(read.usage, detail) for detail in DETAILS}
    fields = ("model", "finish_reason", "is_error", "is_refusal", "is_empty", "reported_usd")
    return {"usage": usage, **{field: getattr(read, field) for field in fields}}


def expected_of(name: str, read: ResponseInfo) -> dict[str, Any]:
    expected = EXPECTED[name]
    return {**expected, "model": read.model if expected["model"] is None else expected["model"]}


def streamed(name: str, pieces: list[bytes]) -> tuple[bytes, StreamTee]:
    tee = StreamTee(dialect_of(name), withhold_usage=False)
    out = b""
    for piece in pieces:
        out += tee.feed(piece)
        if tee.end:
            break
    return out + tee.finish() + tee.end, tee


def check(name: str, pieces: list[bytes]) -> None:
    out, tee = streamed(name, pieces)
    assert out == b"".join(pieces)
    assert said(tee.read) == expected_of(name, tee.read)
    assert tee.is_whole


@pytest.mark.parametrize("folder", DIALECTS)
def test_every_golden_body_has_its_expectation(folder):
    files = {f"{folder}/{file.name}" for file in (GOLDEN / folder).iterdir() if file.name != "expected.json"}
    assert files == {name for name in EXPECTED if name.startswith(f"{folder}/")}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_for_all_that_it_says(name):
    read = dialect_of(name).read_response((GOLDEN / name).read_bytes())
    assert said(read) == EXPECTED[name]
    assert not read.bad_usage


@pytest.mark.parametrize("name", [name for name in ANSWERS if "image" not in name])
def test_an_answer_that_breaks_off_at_any_byte_is_none(name):
    body = (GOLDEN / name).read_bytes().rstrip()
    for place in range(len(body)):
        with pytest.raises(UnreadableResponse):
            dialect_of(name).read_response(body[:place])


@pytest.mark.parametrize("name", RESPONSES)
def test_a_stream_cut_in_two_at_any_byte_goes_on_unchanged_and_says_the_same(name):
    data = (GOLDEN / name).read_bytes()
    for place in range(len(data)):
        check(name, [data[:place], data[place:]])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_comes_byte_by_byte_goes_on_unchanged_and_says_the_same(name):
    data = (GOLDEN / name).read_bytes()
    check(name, [data])
    check(name, [bytes((byte,)) for byte in data])


@given(st.sampled_from(STREAMS), st.sets(st.integers(1, 3200), max_size=30))
def test_a_stream_cut_anywhere_goes_on_unchanged_and_says_the_same(name, places):
    data = (GOLDEN / name).read_bytes()
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    check(name, [data[a:b] for a, b in itertools.pairwise(edges)])


@pytest.mark.parametrize("name", RESPONSES)
def test_the_last_event_of_a_response_waits_for_the_settlement(name):
    data = (GOLDEN / name).read_bytes()
    _out, tee = streamed(name, [data])
    ended_by = {
        "completed": b"response.completed",
        "max_output_tokens": b"response.incomplete",
        "failed": b"response.failed",
    }
    mark = ended_by.get(EXPECTED[name]["finish_reason"])
    assert data.endswith(tee.end)
    assert (mark is not None and mark in tee.end) or (mark is None and not tee.end)


@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"\n", b"\r\n", b"data: ", b'"response":', b'"type":'])))
def test_whatever_upstream_sends_as_a_response_goes_on_until_it_says_that_it_is_done(pieces):
    out, tee = streamed("openai_responses/", pieces)
    assert b"".join(pieces).startswith(out)
    assert tee.end or out == b"".join(pieces)


# The goldens are what the official SDK takes for answers ------------------------------------------------------------


def sdk(body: bytes, content_type: str) -> openai.OpenAI:
    answer = httpx.MockTransport(lambda _: httpx.Response(200, content=body, headers={"content-type": content_type}))
    return openai.OpenAI(api_key="none", base_url="http://test", http_client=httpx.Client(transport=answer))


@pytest.mark.parametrize("name", [name for name in RESPONSES if not EXPECTED[name]["is_error"]])
def test_the_sdk_reads_the_same_usage_from_the_same_stream(name):
    with sdk((GOLDEN / name).read_bytes(), "text/event-stream") as client:
        *_, last = client.responses.create(model="m", input="Hello", stream=True)
    usage = EXPECTED[name]["usage"]
    assert last.type in ("response.completed", "response.incomplete")
    assert (last.response.usage.input_tokens, last.response.usage.output_tokens) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def test_the_sdk_raises_on_our_error_in_a_response_that_has_begun():
    begun = (GOLDEN / "openai_responses/stream_truncated.sse").read_bytes().partition(b"event: response.incomplete")[0]
    event = OpenAiResponses().error_event(UpstreamDisconnected("It ended.", hint="Retry."), "call_1")
    with sdk(begun + event, "text/event-stream") as client:
        events = client.responses.create(model="m", input="Hello", stream=True)
        with pytest.raises(openai.APIError, match=r"It ended\. Retry\.") as raised:
            list(events)
    assert raised.value.code == "upstream_broke"


@pytest.mark.parametrize("name", ["answer.json", "answer_base64.json"])
def test_the_sdk_reads_the_same_vectors_from_either_encoding(name):
    with sdk((GOLDEN / "openai_embeddings" / name).read_bytes(), "application/json") as client:
        answer = client.embeddings.create(model="m", input="Hello")
    assert answer.data[0].embedding == pytest.approx([0.0123 * (n - 4) for n in range(8)], rel=1e-6)
