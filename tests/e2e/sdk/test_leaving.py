"""Clients that do not wait: time-outs of their own, streams closed early. The provider stops, the ledger says so."""

from __future__ import annotations

import asyncio

import anthropic
import httpx
import openai
import pytest

SECONDS = 0.4
NEVER = "[[simulate stall=headers]] Wait for ever"
STOPS = "[[simulate stall=body,after_tokens=5,completion_tokens=40]] Go on"


def asked(text):
    return [{"role": "user", "content": text}]


def assert_left(arm, model):
    row = arm.row_of(model)
    if row is not None:
        assert (row.outcome, row.status, row.error_type) == ("partial", "499", "client_disconnected")
        assert (row.token_source, row.prompt_tokens > 0) == ("partial", True)
    return row


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_openais_time_out(arm, stream):
    model = f"gpt-waits-{arm.name}-{stream}"
    error = arm.run(
        lambda to: to.openai.with_options(timeout=SECONDS).chat.completions.create(
            model=model, messages=asked(NEVER), stream=stream
        )
    )
    assert type(error) is openai.APITimeoutError
    row = assert_left(arm, model)
    assert row is None or row.completion_tokens == 0


def test_anthropics_time_out(arm):
    error = arm.run(
        lambda to: to.anthropic.with_options(timeout=SECONDS).messages.create(
            model="claude-waits", max_tokens=9, messages=asked(NEVER)
        )
    )
    assert type(error) is anthropic.APITimeoutError
    assert_left(arm, "claude-waits")


def test_geminis_time_out(arm):
    def ask(to):
        with to.gemini_as(timeout=round(SECONDS * 1000)) as client, pytest.raises(Exception) as caught:
            client.models.generate_content(model="gemini-waits", contents=NEVER)
        return type(caught.value).__name__  # of whichever HTTP library the SDK brings

    assert arm.run(ask) == "ReadTimeout"
    assert_left(arm, "gemini-waits")


def test_a_time_out_between_two_chunks(arm):
    def ask(to):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        client = to.openai.with_options(timeout=httpx.Timeout(5, read=SECONDS))
        stream, chunks = client.chat.completions.create(model="gpt-stops", messages=asked(STOPS), **options), []
        with pytest.raises(openai.APITimeoutError):
            chunks.extend(stream)
        return chunks

    assert len(arm.run(ask)) == 6
    row = assert_left(arm, "gpt-stops")
    assert row is None or row.completion_tokens == 5


def test_openais_stream_closed_early(arm):
    def ask(to):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        with to.openai.chat.completions.create(model="gpt-leaves", messages=asked(STOPS), **options) as stream:
            return [next(stream) for _ in range(6)]

    chunks = arm.run(ask)
    assert all(chunk.choices[0].delta.content for chunk in chunks[1:])
    row = assert_left(arm, "gpt-leaves")
    assert row is None or row.completion_tokens == 5


def test_the_stream_of_responses_closed_early(arm):
    def ask(to):
        with to.openai.responses.create(model="gpt-leaves-responses", input=STOPS, stream=True) as stream:
            texts = (event for event in stream if event.type == "response.output_text.delta")
            return [next(texts) for _ in range(5)]

    arm.run(ask)
    row = assert_left(arm, "gpt-leaves-responses")
    assert row is None or row.completion_tokens == 5


def test_anthropics_stream_closed_early(arm):
    def ask(to):
        with to.anthropic.messages.stream(model="claude-leaves", max_tokens=99, messages=asked(STOPS)) as stream:
            text = stream.text_stream
            return [next(text) for _ in range(5)]

    arm.run(ask)
    row = assert_left(arm, "claude-leaves")
    assert row is None or row.completion_tokens == 5


def test_geminis_stream_closed_early(arm):
    def ask(to):
        with to.gemini_as() as client:
            stream = client.models.generate_content_stream(model="gemini-leaves", contents=STOPS)
            chunks = [next(stream) for _ in range(5)]
            stream.close()
        return chunks

    assert all(chunk.text for chunk in arm.run(ask))
    row = assert_left(arm, "gemini-leaves")
    assert row is None or row.completion_tokens == 5


async def test_an_async_stream_closed_early(arm):
    async def ask(to):
        async with to.async_anthropic() as client:
            options = {"model": "claude-leaves-async", "max_tokens": 99, "messages": asked(STOPS)}
            async with client.messages.stream(**options) as stream:
                return [await anext(stream.text_stream) for _ in range(5)]

    assert len(await arm.run_async(ask)) == 5
    assert_left(arm, "claude-leaves-async")


async def test_an_async_call_cancelled_in_the_middle_of_its_stream(arm):
    async def ask(to):
        chunks, stopped = [], asyncio.Event()

        async def read(client):
            options = {"stream": True, "stream_options": {"include_usage": True}}
            async for chunk in await client.chat.completions.create(
                model="gpt-is-cancelled", messages=asked(STOPS), **options
            ):
                chunks.append(chunk)
                if len(chunks) == 6:
                    stopped.set()

        async with to.async_openai() as client:
            reading = asyncio.create_task(read(client))
            await stopped.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        return chunks

    assert len(await arm.run_async(ask)) == 6
    row = assert_left(arm, "gpt-is-cancelled")
    assert row is None or row.completion_tokens == 5
