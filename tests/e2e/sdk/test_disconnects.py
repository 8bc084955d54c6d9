"""Clients with timeouts and early closed streams: the provider stops, and the ledger has a partial call."""

from __future__ import annotations

import asyncio

import anthropic
import httpx
import openai
import pytest

TIMEOUT_SECONDS = 1.5
"""Enough for a busy machine to bring the call to the provider, which then never answers."""

NEVER = "[[simulate stall=headers]] Wait forever"
STOPS = "[[simulate stall=body,after_tokens=5,completion_tokens=40]] Go on"


def messages(text):
    return [{"role": "user", "content": text}]


def assert_disconnected(relay, model):
    row = relay.row_of(model)
    assert (row.outcome, row.status, row.error_type) == ("partial", "499", "client_disconnected")
    assert (row.token_source, row.prompt_tokens > 0) == ("partial", True)
    return row


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_openais_timeout(relay, stream):
    model = f"gpt-waits-{stream}"
    error = relay.run(
        lambda target: target.openai.with_options(timeout=TIMEOUT_SECONDS).chat.completions.create(
            model=model, messages=messages(NEVER), stream=stream
        )
    )
    assert type(error) is openai.APITimeoutError
    row = assert_disconnected(relay, model)
    assert row.completion_tokens == 0


def test_anthropics_timeout(relay):
    error = relay.run(
        lambda target: target.anthropic.with_options(timeout=TIMEOUT_SECONDS).messages.create(
            model="claude-waits", max_tokens=9, messages=messages(NEVER)
        )
    )
    assert type(error) is anthropic.APITimeoutError
    assert_disconnected(relay, "claude-waits")


def test_geminis_timeout(relay):
    def converse(target):
        with target.gemini_as(timeout=round(TIMEOUT_SECONDS * 1000)) as client, pytest.raises(Exception) as caught:
            client.models.generate_content(model="gemini-waits", contents=NEVER)
        return type(caught.value).__name__  # of the HTTP library of the SDK

    assert relay.run(converse) == "ReadTimeout"
    assert_disconnected(relay, "gemini-waits")


def test_a_timeout_between_two_chunks(relay):
    def converse(target):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        client = target.openai.with_options(timeout=httpx.Timeout(5, read=TIMEOUT_SECONDS))
        stream, chunks = client.chat.completions.create(model="gpt-stops", messages=messages(STOPS), **options), []
        with pytest.raises(openai.APITimeoutError):
            chunks.extend(stream)
        return chunks

    assert len(relay.run(converse)) == 6
    row = assert_disconnected(relay, "gpt-stops")
    assert row.completion_tokens == 5


def test_openais_stream_closed_early(relay):
    def converse(target):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        with target.openai.chat.completions.create(model="gpt-closes", messages=messages(STOPS), **options) as stream:
            return [next(stream) for _ in range(6)]

    chunks = relay.run(converse)
    assert all(chunk.choices[0].delta.content for chunk in chunks[1:])
    row = assert_disconnected(relay, "gpt-closes")
    assert row.completion_tokens == 5


def test_a_responses_stream_closed_early(relay):
    def converse(target):
        with target.openai.responses.create(model="gpt-closes-responses", input=STOPS, stream=True) as stream:
            texts = (event for event in stream if event.type == "response.output_text.delta")
            return [next(texts) for _ in range(5)]

    relay.run(converse)
    row = assert_disconnected(relay, "gpt-closes-responses")
    assert row.completion_tokens == 5


def test_anthropics_stream_closed_early(relay):
    def converse(target):
        with target.anthropic.messages.stream(model="claude-closes", max_tokens=99, messages=messages(STOPS)) as stream:
            text = stream.text_stream
            return [next(text) for _ in range(5)]

    relay.run(converse)
    row = assert_disconnected(relay, "claude-closes")
    assert row.completion_tokens == 5


def test_geminis_stream_closed_early(relay):
    def converse(target):
        with target.gemini_as() as client:
            stream = client.models.generate_content_stream(model="gemini-closes", contents=STOPS)
            chunks = [next(stream) for _ in range(5)]
            stream.close()
        return chunks

    assert all(chunk.text for chunk in relay.run(converse))
    row = assert_disconnected(relay, "gemini-closes")
    assert row.completion_tokens == 5


async def test_an_async_stream_closed_early(relay):
    async def converse(target):
        async with target.async_anthropic() as client:
            options = {"model": "claude-closes-async", "max_tokens": 99, "messages": messages(STOPS)}
            async with client.messages.stream(**options) as stream:
                return [await anext(stream.text_stream) for _ in range(5)]

    assert len(await relay.run_async(converse)) == 5
    assert_disconnected(relay, "claude-closes-async")


async def test_an_async_call_cancelled_during_its_stream(relay):
    async def converse(target):
        chunks, stopped = [], asyncio.Event()

        async def read(client):
            options = {"stream": True, "stream_options": {"include_usage": True}}
            async for chunk in await client.chat.completions.create(
                model="gpt-is-cancelled", messages=messages(STOPS), **options
            ):
                chunks.append(chunk)
                if len(chunks) == 6:
                    stopped.set()

        async with target.async_openai() as client:
            reading = asyncio.create_task(read(client))
            await stopped.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        return chunks

    assert len(await relay.run_async(converse)) == 6
    row = assert_disconnected(relay, "gpt-is-cancelled")
    assert row.completion_tokens == 5
