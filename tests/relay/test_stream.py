"""The tee: however a stream is cut, the same bytes pass and the same usage is read."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.dialects.cases import STREAMING
from tests.http.fakes import Transport, cycle_on

from mcpmeter.dialects.base import ResponseInfo, merge
from mcpmeter.dialects.gemini_generate import GeminiGenerate
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.dialects.sse import split_events
from mcpmeter.http.memory import Hold, MemoryBudget
from mcpmeter.http.server.cycle import RequestCycle
from mcpmeter.relay import stream
from mcpmeter.relay.stream import Pipe, StreamTee

GOLDEN = Path(__file__).parents[1] / "golden" / "openai_chat"
EXPECTED = {n: e for n, e in json.loads((GOLDEN / "expected.json").read_text()).items() if n.endswith(".sse")}
USAGE_ALONE = re.compile(rb'data: \{[^\r\n]*"choices": ?\[\][^\r\n]*"usage": ?\{[^\r\n]*(\n\n|\r\n\r\n|\r\r)')

USAGE_EVENT = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'


def pass_through(pieces: list[bytes], *, withhold: bool) -> tuple[bytes, StreamTee]:
    tee = StreamTee(OpenAiChat(), withhold_usage=withhold)
    out = b""
    for piece in pieces:
        out += tee.feed(piece)
        if tee.end:
            break
    return out + tee.finish() + tee.end, tee


def counting_tee(memory: MemoryBudget) -> tuple[StreamTee, RequestCycle]:
    tee, cycle = StreamTee(OpenAiChat(), withhold_usage=False), cycle_on(Transport())
    cycle.memory = memory
    tee.memory = cycle
    return tee, cycle


def without_usage_event(data: bytes) -> bytes:
    return _without_usage_at_the_end(re.sub(rb"(event: chunk\nid: 7\n)?" + USAGE_ALONE.pattern, b"", data))


def _without_usage_at_the_end(data: bytes) -> bytes:
    """Without the usage beside a finish reason, unless the stream has a running count."""
    counted = [event for event in split_events(data) if b'"usage":{' in event.replace(b" ", b"")]
    if len(counted) != 1:
        return data
    fields = json.loads(counted[0].removeprefix(b"data:"))
    if "usage" not in fields or not any(choice["finish_reason"] for choice in fields["choices"]):
        return data
    del fields["usage"]
    places = re.finditer(rb', ?"usage": ?\{(?:[^{}]|\{[^{}]*\})*\}', counted[0])
    shorter = (counted[0][: place.start()] + counted[0][place.end() :] for place in places)
    return data.replace(
        counted[0], next(event for event in shorter if json.loads(event.removeprefix(b"data:")) == fields)
    )


def without_null_usage(data: bytes) -> bytes:
    """The expected bytes, by parsing each line."""
    return b"".join(map(_line_without_null_usage, re.split(rb"(?<=[\r\n])", data)))


def _line_without_null_usage(line: bytes) -> bytes:
    try:
        event = json.loads(line.removeprefix(b"data:"))
    except ValueError:
        return line
    if "usage" not in event or event["usage"] is not None:
        return line
    before, after = re.split(rb', ?"usage": ?null', line)
    assert json.loads(before.removeprefix(b"data:") + after) == {k: v for k, v in event.items() if k != "usage"}
    return before + after


def check(name: str, pieces: list[bytes], *, withhold: bool) -> None:
    out, tee = pass_through(pieces, withhold=withhold)
    data, expected = b"".join(pieces), EXPECTED[name]
    assert out == (without_null_usage(without_usage_event(data)) if withhold else data)
    usage = tee.read.usage
    assert (None if usage is None else {name: getattr(usage, name) for name in expected["usage"]}) == expected["usage"]
    assert (tee.read.finish_reason, tee.read.is_error) == (expected["finish_reason"], expected["is_error"])
    assert expected["model"] in (None, tee.read.model)
    assert tee.is_whole


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stream_cut_in_two_anywhere_keeps_bytes_and_usage(name):
    data = (GOLDEN / name).read_bytes()
    for withhold in (True, False):
        check(name, [data], withhold=withhold)
    for place in range(1, len(data)):
        check(name, [data[:place], data[place:]], withhold=place % 8 != 0)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_stream_in_single_bytes_keeps_bytes_and_usage(name):
    check(name, [bytes((byte,)) for byte in (GOLDEN / name).read_bytes()], withhold=True)


@given(st.sampled_from(sorted(EXPECTED)), st.sets(st.integers(1, 2500), max_size=30), st.booleans())
def test_a_stream_in_any_pieces_keeps_bytes_and_usage(name, places, withhold):
    data = (GOLDEN / name).read_bytes()
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    check(name, [data[a:b] for a, b in itertools.pairwise(edges)], withhold=withhold)


@pytest.mark.parametrize(
    ("dialect", "events"),
    [
        (
            GeminiGenerate(),
            [
                b'data: {"candidates":[{"content":{"parts":[{"functionCall":{"args":{"error":""}}}]}}]}\n\n',
                b'data: \n\n{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":6}}\n\n',
            ],
        ),
        (
            OpenAiChat(),
            [
                b'dat: {"usage":1}\n\n',
                b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],'
                b'"usage":{"prompt_tokens":4,"completion_tokens":2}}\n\n',
            ],
        ),
        (OpenAiChat(), [b'data: {"id":1,"usage":null,"obfuscation":"\n\n', b'aB3"}\n\n']),
    ],
    ids=["an error's name in an argument", "a usage's name in a line that is no data", "padding over two events"],
)
def test_what_an_event_reports_does_not_depend_on_others_of_its_block(dialect, events):
    def outcome(pieces):
        tee = StreamTee(dialect, withhold_usage=True)
        passed = b"".join(map(tee.feed, pieces)) + tee.finish()
        return passed, tee.read, tee.counted

    assert outcome(events) == outcome([b"".join(events)])


def test_only_usage_that_the_relay_requested_is_withheld():
    held = [
        name for name in EXPECTED if without_usage_event((GOLDEN / name).read_bytes()) != (GOLDEN / name).read_bytes()
    ]
    assert "stream.sse" in held
    assert "stream_deepseek.sse" in held  # beside the finish reason, which stays
    assert "stream_relay_usage_on_every_chunk.sse" not in held


@pytest.mark.parametrize("name", ["stream_gemini.sse", "stream_vllm.sse", "stream_relay_usage_on_every_chunk.sse"])
def test_a_running_count_does_not_make_a_stream_complete(name):
    events = split_events((GOLDEN / name).read_bytes())
    begun = list(itertools.takewhile(lambda event: b'"finish_reason":"' not in event, events))
    _out, tee = pass_through(begun, withhold=True)
    assert tee.counted is not None
    assert not tee.is_whole


def test_a_separate_usage_event_makes_a_stream_complete():
    for withhold in (True, False):
        _out, tee = pass_through([USAGE_EVENT], withhold=withhold)
        assert tee.is_whole
        assert tee.read.usage is tee.counted is not None


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        (b'data: {"choices":[{}],"usage":null}\n\n', b'data: {"choices":[{}]}\n\n'),
        (b'data: {"choices":[{}],"usage":null}\r\n\r\n', b'data: {"choices":[{}]}\r\n\r\n'),
        (b'data: {"choices":[{}],"usage":null}\r\r', b'data: {"choices":[{}]}\r\r'),
        (b'data: {"choices":[{}],"usage":null}\nid: 7\n\n', b'data: {"choices":[{}]}\nid: 7\n\n'),
        (
            b'data: {"choices":[{}],"usage":null,"obfuscation":"aB3"}\n\n',
            b'data: {"choices":[{}],"obfuscation":"aB3"}\n\n',
        ),
        (b'data: {"choices": [{}], "usage": null}\n\n', b'data: {"choices": [{}]}\n\n'),
        *(
            (kept, kept)
            for kept in (
                # In a text, in an inner object, and in an inner object that ends a line of data but not the event.
                b'data: {"choices":[{"delta":{"content":",\\"usage\\":null}"}}]}\n\n',
                b'data: {"choices":[{"delta":{"content":"x","usage":null}}]}\n\n',
                b'data: {"choices":[{"a":1,"usage":null}\ndata: ]}\n\n',
                b'data: {"choices":[{"a":1,"usage":null}\r\ndata: ]}\r\n\r\n',
                b'data: {"choices":[{"a":1,"usage":null}\rdata: ]}\r\r',
                b'data: {"usage":null}\n\n',
                b'data: {"choices":[{}],\t"usage" : null}\n\n',
            )
        ),
    ],
)
def test_null_usage_passes_only_if_the_client_requested_usage(sent, passed):
    assert pass_through([sent], withhold=True)[0] == passed
    assert pass_through([sent], withhold=False)[0] == sent
    assert b"".join(pass_through([sent[:n], sent[n:]], withhold=True)[0] for n in (9,)) == passed


@pytest.mark.parametrize(
    "usage", [b'{"prompt_tokens":-1,"completion_tokens":1}', b'{"prompt_tokens":NaN,"completion_tokens":1}']
)
def test_invalid_usage_is_withheld_and_counted_as_bad(usage):
    event = b'data: {"choices":[],"usage":%s}\n\n' % usage
    out, tee = pass_through([b'data: {"choices":[{}]}\n\n', event, b"data: [DONE]\n\n"], withhold=True)
    assert out == b'data: {"choices":[{}]}\n\ndata: [DONE]\n\n'
    assert (tee.read.usage, tee.read.bad_usage) == (None, True)


def test_the_last_of_several_usages_counts():
    events = [b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":%d}}\n\n' % n for n in (1, 7)]
    assert pass_through(events, withhold=False)[1].read.usage.completion_tokens == 7


def test_complete_events_pass_at_once_and_the_last_is_held():
    tee = StreamTee(OpenAiChat(), withhold_usage=True)
    assert tee.feed(b"data: 1\n\nda") == b"data: 1\n\n"
    assert tee.feed(b"ta: 2\n\n") == b"data: 2\n\n"
    assert tee.feed(b"data: 3\n\ndata: [DONE]\n\n") == b"data: 3\n\n"
    assert tee.end == b"data: [DONE]\n\n"


def test_a_stream_without_a_finish_reason_is_not_complete():
    out, tee = pass_through([b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'], withhold=True)
    assert out
    assert not tee.is_whole


def test_an_endless_event_passes_unread(monkeypatch):
    monkeypatch.setattr(stream, "MAX_EVENT_BYTES", 20_000)
    tee = StreamTee(OpenAiChat(), withhold_usage=True)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    long = b"data: " + b"x" * 30_000
    assert tee.feed(usage + long) == long
    assert tee.feed(b"y" * 10) == b""
    assert tee.feed(b"\n\n") == b"y" * 10 + b"\n\n"
    assert tee.read.usage.completion_tokens == 2


def test_an_incomplete_event_is_counted_while_it_is_held():
    memory = MemoryBudget(1_000_000)
    tee, cycle = counting_tee(memory)
    for _ in range(20):
        assert tee.feed(b"data: " + b"x" * 10_000) == b""
        assert memory.kept_bytes == 0 or memory.kept_bytes > len(tee._held)
    assert 200_000 < memory.kept_bytes < 250_000
    assert len(tee.feed(b"\n\n" + USAGE_EVENT)) > 200_000
    assert (memory.kept_bytes, tee.read.usage.completion_tokens) == (0, 2)
    tee.feed(b"data: " + b"x" * 50_000)
    cycle.release()
    assert memory.kept_bytes == 0


def test_an_event_that_does_not_fit_into_memory_passes_unread():
    reached: list[str] = []
    memory = MemoryBudget(1_000_000, on_limit=lambda: reached.append("memory"))
    others = Hold()
    memory.grow(others, 400_000)
    tee, _ = counting_tee(memory)
    held = b"data: " + b"x" * 50_000
    assert tee.feed(held) == b""
    assert tee.feed(b"y" * 50_000) == held + b"y" * 50_000
    assert (memory.kept_bytes, reached) == (400_000, ["memory"])
    memory.release(others)
    assert tee.feed(b"\n\n" + USAGE_EVENT) == b"\n\n" + USAGE_EVENT
    assert tee.read.usage.completion_tokens == 2


def test_a_stream_keeps_nothing_of_a_long_event():
    text = b"word " * 100_000
    long = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text
    tee = StreamTee(OpenAiChat(), withhold_usage=False)
    assert tee.feed(long) == long
    whole = tee.delivered_tokens()
    assert whole == pytest.approx(100_000, rel=0.4)
    assert tee.feed(long.replace(b"}]}", b'}],"usage":{"prompt_tokens":1,"completion_tokens":2}}')) != b""
    kept = [value for value in vars(tee).values() if isinstance(value, bytes)] + tee._kept
    assert sum(map(len, kept)) < 1000
    assert tee.delivered_tokens() == pytest.approx(2 * whole, rel=0.01)


def test_delivered_tokens_are_estimated_and_scaled_beyond_the_kept(monkeypatch):
    event = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"word" * 10)
    tee = StreamTee(OpenAiChat(), withhold_usage=True)
    for _ in range(10):
        tee.feed(event)
    assert tee.delivered_tokens() == pytest.approx(100, abs=1)
    assert tee.chunks == 10
    monkeypatch.setattr(stream, "KEPT_FOR_ESTIMATES_BYTES", len(event) * 10)
    for _ in range(90):
        tee.feed(event)
    assert tee.delivered_tokens() == pytest.approx(1000, rel=0.02)


class OwnEnds(OpenAiChat):
    """A chat with its own last events, which distinguishes content from framing."""

    end_marks = (b"goodbye", b"farewell")

    def is_end(self, event: bytes) -> bool:
        return event.startswith((b"event: goodbye", b"event: farewell"))

    def has_content(self, block: bytes) -> bool:
        return b'"content":"' in block


@pytest.mark.parametrize("word", [b"goodbye", b"farewell"])
def test_a_dialect_may_have_its_own_last_events(word):
    tee = StreamTee(OwnEnds(), withhold_usage=True)
    assert tee.feed(b"data: farewell and goodbye\n\ndata: [DONE]\n\nevent: %s\n\n" % word).endswith(b"[DONE]\n\n")
    assert tee.end == b"event: %s\n\n" % word


@pytest.mark.parametrize(
    ("deltas", "finish", "is_empty"),
    [
        ([b"{}", b"{}"], b'"stop"', True),
        ([b"{}", b'{"content":"a"}', b"{}"], b'"stop"', False),
        ([b"{}"], b"null", False),
    ],
)
def test_a_stream_that_finished_without_content_is_empty(deltas, finish, is_empty):
    tee = StreamTee(OwnEnds(), withhold_usage=False)
    for delta in deltas:
        tee.feed(b'data: {"choices":[{"delta":%s,"finish_reason":%s}]}\n\n' % (delta, finish))
    assert tee.read.is_empty is is_empty


def test_an_error_is_not_an_empty_response_too():
    tee = StreamTee(OwnEnds(), withhold_usage=False)
    tee.feed(b'data: {"choices":[{"delta":{},"finish_reason":"error"}],"error":{"message":"down"}}\n\n')
    assert (tee.read.is_error, tee.read.is_empty) == (True, False)


def test_usage_that_is_not_final_is_kept_apart():
    class Counting(OpenAiChat):
        def merge(self, before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
            usage = now.usage and structs.replace(now.usage, source="reported" if now.finish_reason else "partial")
            return structs.replace(merge(before, now), usage=usage)

    tee = StreamTee(Counting(), withhold_usage=False)
    for reason in (b"null", b'"stop"'):
        assert (tee.is_whole, tee.read.usage) == (False, None)
        tee.feed(
            b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":%s}],'
            b'"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n' % reason
        )
        assert tee.counted.completion_tokens == tee.delivered_tokens() == 2
    assert (tee.is_whole, tee.read.usage) == (True, tee.counted)


RESPONSES_EVENT = b'data: {"type":"response.completed","response":{"status":"completed","output":[],"usage":%s}}\n\n'
ONE_CUT_OR_NONE = {
    "usage behind the last event": (
        "chat",
        b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n' + USAGE_EVENT,
    ),
    "a bare end beside a response": (
        "responses",
        b'data: {"type":"response.completed"}\n\n' + RESPONSES_EVENT % b'{"input_tokens":3,"output_tokens":4}',
    ),
    "an escaped name beside plain ones": (
        "chat",
        b'data: {"choices":[],"us\\u0061ge":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    ),
    "an unknown type beside known ones": (
        "messages",
        b'data: {"type":"note","message":{"model":"c","usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
        b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}\n\n',
    ),
    "two errors outside of events": (
        "generate",
        b'data: {"candidates":[]}\n\n{"error":{"code":503}}\n\n{"error":{"code":500}}\n\n',
    ),
}


@pytest.mark.parametrize("name", ONE_CUT_OR_NONE)
def test_what_events_report_does_not_depend_on_the_segments(name):
    dialect, data = ONE_CUT_OR_NONE[name]
    found = []
    for pieces in ([data], split_events(data)):
        tee, passed = StreamTee(STREAMING[dialect], withhold_usage=False), b""
        for piece in pieces:
            passed += b"" if tee.end else tee.feed(piece)
        found.append((tee.read, tee.counted, passed))
    assert found[0] == found[1]


async def test_a_stream_behind_an_unread_response_is_paused_from_its_start():
    calls = []

    class Direct:
        disconnected, is_backpressured = False, True
        on_pause = on_drain = None

        def write(self, data):
            calls.append(data)

    class Response:
        async def pipe(self, sink, limit_bytes):
            assert sink(USAGE_EVENT)

        def pause(self):
            calls.append("paused")

        def resume(self):
            calls.append("resumed")

    pipe = Pipe(Direct(), Response(), StreamTee(OpenAiChat(), withhold_usage=False))
    await pipe.run(1000, lambda: calls.append("started"))
    assert calls == ["started", "paused", USAGE_EVENT]
