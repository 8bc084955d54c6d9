"""Errors: each SDK raises the same error as directly, and its own retries work."""

from __future__ import annotations

import anthropic
import openai
import pytest
from google.genai import errors as gemini_errors
from google.genai import types

OPENAI_ERRORS = {
    400: openai.BadRequestError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    413: openai.APIStatusError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    502: openai.InternalServerError,
    503: openai.InternalServerError,
    529: openai.InternalServerError,
}
ANTHROPIC_ERRORS = {
    400: anthropic.BadRequestError,
    404: anthropic.NotFoundError,
    413: anthropic.RequestTooLargeError,
    422: anthropic.UnprocessableEntityError,
    429: anthropic.RateLimitError,
    500: anthropic.InternalServerError,
    502: anthropic.InternalServerError,
    503: anthropic.ServiceUnavailableError,
    529: anthropic.OverloadedError,
}
GEMINI_ERRORS = {
    400: gemini_errors.ClientError,
    404: gemini_errors.ClientError,
    422: gemini_errors.ClientError,
    429: gemini_errors.ClientError,
    500: gemini_errors.ServerError,
    502: gemini_errors.ServerError,
    503: gemini_errors.ServerError,
}


def messages(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("status", OPENAI_ERRORS)
def test_openais_error_for_a_status(relay, status):
    error = relay.run(
        lambda target: target.openai.chat.completions.create(
            model=f"gpt-fails-{status}", messages=messages(f"[[simulate status={status}]] No")
        )
    )
    assert type(error) is OPENAI_ERRORS[status]
    assert error.status_code == status


@pytest.mark.parametrize("path", ["responses", "embeddings"])
def test_openais_error_of_other_resources(relay, path):
    text = "[[simulate status=429]] No"
    error = relay.run(lambda target: getattr(target.openai, path).create(model=f"gpt-fails-{path}", input=text))
    assert type(error) is OPENAI_ERRORS[429]


@pytest.mark.parametrize("status", ANTHROPIC_ERRORS)
def test_anthropics_error_for_a_status(relay, status):
    error = relay.run(
        lambda target: target.anthropic.messages.create(
            model=f"claude-fails-{status}",
            max_tokens=9,
            messages=messages(f"[[simulate status={status}]] No"),
        )
    )
    assert type(error) is ANTHROPIC_ERRORS[status]
    assert error.status_code == status


@pytest.mark.parametrize("status", GEMINI_ERRORS)
def test_geminis_error_for_a_status(relay, status):
    text = f"[[simulate status={status}]] No"
    error = relay.run(
        lambda target: target.gemini.models.generate_content(model=f"gemini-fails-{status}", contents=text)
    )
    assert type(error) is GEMINI_ERRORS[status]
    assert error.code == status


def test_an_error_before_a_stream_is_the_same(relay):
    def converse(target):
        raised = []
        for create, model, options in (
            (target.openai.chat.completions.create, "gpt-fails-stream", {}),
            (target.anthropic.messages.create, "claude-fails-stream", {"max_tokens": 9}),
        ):
            with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
                create(model=model, messages=messages("[[simulate status=500]] No"), stream=True, **options)
            raised.append(caught.value)
        with pytest.raises(gemini_errors.ServerError) as failed:
            list(
                target.gemini.models.generate_content_stream(
                    model="gemini-fails-stream", contents="[[simulate status=500]] No"
                )
            )
        return [*raised, failed.value]

    assert len(relay.run(converse)) == 3


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_reaches_the_client(relay, status):
    text = f"[[simulate status={status},retry_after=17]] Later"

    def converse(target):
        raised = []
        for create, model, options in (
            (target.openai.chat.completions.create, f"gpt-later-{status}", {}),
            (target.anthropic.messages.create, f"claude-later-{status}", {"max_tokens": 9}),
        ):
            with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
                create(model=model, messages=messages(text), **options)
            raised.append(caught.value)
        return raised

    for error in relay.run(converse):
        assert error.status_code == status
        assert error.response.headers["retry-after"] == "17"


def test_a_rate_limited_provider_is_not_called_again(relay):
    def converse(target):
        raised = []
        for _ in range(2):
            with pytest.raises(openai.RateLimitError) as caught:
                target.openai.chat.completions.create(
                    model="gpt-is-limited", messages=messages("[[simulate status=429,retry_after=30]] Later")
                )
            raised.append((caught.value.status_code, 28 <= int(caught.value.response.headers["retry-after"]) <= 30))
        return raised

    assert relay.run(converse) == [(429, True), (429, True)]
    assert [call.model for call in relay.upstream.billing_log.calls()].count("gpt-is-limited") == 1


def test_geminis_retry_delay_reaches_the_client(relay):
    error = relay.run(
        lambda target: target.gemini.models.generate_content(
            model="gemini-later", contents="[[simulate status=429,retry_after=17]] Later"
        )
    )
    assert error.details["error"]["details"][-1]["retryDelay"] == "17s"


@pytest.mark.parametrize("status", [429, 503])
def test_openais_retries_succeed(relay, status):
    text = f"[[simulate status={status},first=1,retry_after=0.05]] Again"

    def converse(target):
        client = target.openai.with_options(max_retries=2)
        raw = client.chat.completions.with_raw_response.create(model=f"gpt-again-{status}", messages=messages(text))
        return raw.parse(), raw.retries_taken

    response, retries = relay.run(converse)
    assert response.choices[0].message.content
    assert retries == 1


def test_openais_default_retry_delay(relay):
    text = "[[simulate status=503,first=1]] Again"
    response = relay.run(
        lambda target: target.openai.with_options(max_retries=1).responses.create(model="gpt-again-default", input=text)
    )
    assert response.output_text


@pytest.mark.parametrize("status", [429, 503])
def test_anthropics_retries_succeed(relay, status):
    text = f"[[simulate status={status},first=1,retry_after=0.05]] Again"

    def converse(target):
        client = target.anthropic.with_options(max_retries=2)
        with client.messages.stream(model=f"claude-again-{status}", max_tokens=99, messages=messages(text)) as stream:
            return stream.get_final_message()

    assert relay.run(converse).content[0].text


@pytest.mark.parametrize("status", [429, 503])
def test_geminis_retries_succeed(relay, status):
    retries = types.HttpRetryOptions(attempts=3, initial_delay=0.01, max_delay=0.02)

    def converse(target):
        with target.gemini_as(retry_options=retries) as client:
            text = f"[[simulate status={status},first=1]] Again"
            return client.models.generate_content(model=f"gemini-again-{status}", contents=text)

    assert relay.run(converse).text


def test_an_error_inside_openais_stream(relay):
    def converse(target):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        text = "[[simulate body=error,after_tokens=4,completion_tokens=20]] Break"
        chunks = []
        with pytest.raises(openai.APIError) as caught:
            chunks.extend(target.openai.chat.completions.create(model="gpt-breaks", messages=messages(text), **options))
        return caught.value

    assert "error while processing" in str(relay.run(converse))


def test_an_error_inside_anthropics_stream(relay):
    text = "[[simulate body=error,after_tokens=4,completion_tokens=20]] Break"
    error = relay.run(
        lambda target: list(
            target.anthropic.messages.create(model="claude-breaks", max_tokens=99, messages=messages(text), stream=True)
        )
    )
    assert isinstance(error, anthropic.APIStatusError)


def test_a_wrong_key_is_an_authentication_error(relay):
    """The messages differ; Google responds with 400 and the relay with 401."""

    def converse(target):
        with pytest.raises(openai.AuthenticationError):
            target.openai.with_options(api_key="sk-unknown").models.list()
        with pytest.raises(openai.AuthenticationError):
            target.openai.with_options(api_key="sk-unknown").embeddings.create(
                model="text-embedding-3-small", input="No"
            )
        with pytest.raises(anthropic.AuthenticationError):
            target.anthropic.with_options(api_key="sk-unknown").messages.create(
                model="claude-sonnet-4.5", max_tokens=9, messages=messages("No")
            )
        with target.gemini_as(key="unknown") as client, pytest.raises(gemini_errors.ClientError):
            client.models.generate_content(model="gemini-2.5-flash", contents="No")

    relay.run(converse)


def test_an_invalid_request_is_a_bad_request_error(relay):
    """The messages differ."""

    def converse(target):
        with pytest.raises(openai.BadRequestError):
            target.openai.chat.completions.create(model="gpt-4.1", messages=[])
        with pytest.raises(openai.BadRequestError):
            target.openai.embeddings.create(model="text-embedding-3-small", input=[])
        with pytest.raises(anthropic.BadRequestError):
            target.anthropic.messages.create(model="claude-sonnet-4.5", max_tokens=9, messages=[])
        with pytest.raises(openai.NotFoundError):
            target.openai.post("/nothing", cast_to=object, body={})

    relay.run(converse)
