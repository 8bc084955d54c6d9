"""What goes wrong: each SDK raises its own error with the same words, and its own retries mend what they would."""

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
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])


def asked(text):
    return [{"role": "user", "content": text}]


@STREAM
@pytest.mark.parametrize("status", OPENAI_ERRORS)
def test_openai_raises_its_error_of_a_status(arm, status, stream):
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    error = arm.run(
        lambda to: to.openai.chat.completions.create(
            model=f"gpt-fails-{status}", messages=asked(f"[[simulate status={status}]] No"), **options
        )
    )
    assert type(error) is OPENAI_ERRORS[status]
    assert error.status_code == status


@pytest.mark.parametrize("path", ["responses", "embeddings"])
@pytest.mark.parametrize("status", [400, 429, 500])
def test_openais_other_resources_raise_it_too(arm, status, path):
    text = f"[[simulate status={status}]] No"
    error = arm.run(lambda to: getattr(to.openai, path).create(model=f"gpt-fails-{path}", input=text))
    assert type(error) is OPENAI_ERRORS[status]


@STREAM
@pytest.mark.parametrize("status", ANTHROPIC_ERRORS)
def test_anthropic_raises_its_error_of_a_status(arm, status, stream):
    error = arm.run(
        lambda to: to.anthropic.messages.create(
            model=f"claude-fails-{status}",
            max_tokens=9,
            messages=asked(f"[[simulate status={status}]] No"),
            stream=stream,
        )
    )
    assert type(error) is ANTHROPIC_ERRORS[status]
    assert error.status_code == status


@STREAM
@pytest.mark.parametrize("status", GEMINI_ERRORS)
def test_gemini_raises_its_error_of_a_status(arm, status, stream):
    def ask(to):
        given = {"model": f"gemini-fails-{status}", "contents": f"[[simulate status={status}]] No"}
        models = to.gemini.models
        return list(models.generate_content_stream(**given)) if stream else models.generate_content(**given)

    error = arm.run(ask)
    assert type(error) is GEMINI_ERRORS[status]
    assert error.code == status


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_reaches_the_caller(arm, status):
    text = f"[[simulate status={status},retry_after=17]] Later"

    def ask(to):
        raised = []
        for create, model, options in (
            (to.openai.chat.completions.create, f"gpt-later-{status}", {}),
            (to.anthropic.messages.create, f"claude-later-{status}", {"max_tokens": 9}),
        ):
            with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
                create(model=model, messages=asked(text), **options)
            raised.append(caught.value)
        return raised

    for error in arm.run(ask):
        assert error.status_code == status
        assert error.response.headers["retry-after"] == "17"


def test_a_provider_that_asks_to_wait_is_not_asked_again_and_the_caller_sees_the_same_error(arm):
    def ask(to):
        raised = []
        for _ in range(2):
            with pytest.raises(openai.RateLimitError) as caught:
                to.openai.chat.completions.create(
                    model="gpt-is-limited", messages=asked("[[simulate status=429,retry_after=30]] Later")
                )
            raised.append((caught.value.status_code, 28 <= int(caught.value.response.headers["retry-after"]) <= 30))
        return raised

    assert arm.run(ask) == [(429, True), (429, True)]
    if arm.relay is not None:
        assert [call.model for call in arm.relay.upstream.billing_log.calls()].count("gpt-is-limited") == 1


def test_gemini_is_told_in_the_body_when_to_come_again(arm):
    error = arm.run(
        lambda to: to.gemini.models.generate_content(
            model="gemini-later", contents="[[simulate status=429,retry_after=17]] Later"
        )
    )
    assert error.details["error"]["details"][-1]["retryDelay"] == "17s"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_openais_own_retries_mend_a_passing_fault(arm, status):
    text = f"[[simulate status={status},first=1,retry_after=0.05]] Again"

    def ask(to):
        client = to.openai.with_options(max_retries=2)
        raw = client.chat.completions.with_raw_response.create(model=f"gpt-again-{status}", messages=asked(text))
        return raw.parse(), raw.retries_taken

    answer, retries = arm.run(ask)
    assert answer.choices[0].message.content
    assert retries == 1


def test_openais_own_pause_where_none_is_asked(arm):
    text = "[[simulate status=503,first=1]] Again"
    answer = arm.run(
        lambda to: to.openai.with_options(max_retries=1).responses.create(model="gpt-again-unasked", input=text)
    )
    assert answer.output_text


@pytest.mark.parametrize("status", [429, 503, 529])
def test_anthropics_own_retries_mend_a_passing_fault(arm, status):
    text = f"[[simulate status={status},first=1,retry_after=0.05]] Again"

    def ask(to):
        client = to.anthropic.with_options(max_retries=2)
        with client.messages.stream(model=f"claude-again-{status}", max_tokens=99, messages=asked(text)) as stream:
            return stream.get_final_message()

    assert arm.run(ask).content[0].text


@pytest.mark.parametrize("status", [429, 500, 503])
def test_geminis_own_retries_mend_a_passing_fault(arm, status):
    retries = types.HttpRetryOptions(attempts=3, initial_delay=0.01, max_delay=0.02)

    def ask(to):
        with to.gemini_as(retry_options=retries) as client:
            text = f"[[simulate status={status},first=1]] Again"
            return client.models.generate_content(model=f"gemini-again-{status}", contents=text)

    assert arm.run(ask).text


def test_an_error_in_the_middle_of_openais_stream(arm):
    def ask(to):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        text = "[[simulate body=error,after_tokens=4,completion_tokens=20]] Break"
        chunks = []
        with pytest.raises(openai.APIError) as caught:
            chunks.extend(to.openai.chat.completions.create(model="gpt-breaks", messages=asked(text), **options))
        return caught.value

    assert "error while processing" in str(arm.run(ask))


def test_an_error_in_the_middle_of_anthropics_stream(arm):
    text = "[[simulate body=error,after_tokens=4,completion_tokens=20]] Break"
    error = arm.run(
        lambda to: list(
            to.anthropic.messages.create(model="claude-breaks", max_tokens=99, messages=asked(text), stream=True)
        )
    )
    assert isinstance(error, anthropic.APIStatusError)


def test_what_the_sdks_raise_for_a_wrong_key(arm):
    """The words are each side's own; Google says 400 of a wrong key, and the relay 401."""

    def ask(to):
        with pytest.raises(openai.AuthenticationError):
            to.openai.with_options(api_key="sk-nobodys").models.list()
        with pytest.raises(openai.AuthenticationError):
            to.openai.with_options(api_key="sk-nobodys").embeddings.create(model="text-embedding-3-small", input="No")
        with pytest.raises(anthropic.AuthenticationError):
            to.anthropic.with_options(api_key="sk-nobodys").messages.create(
                model="claude-sonnet-4.5", max_tokens=9, messages=asked("No")
            )
        with to.gemini_as(key="nobodys") as client, pytest.raises(gemini_errors.ClientError):
            client.models.generate_content(model="gemini-2.5-flash", contents="No")

    arm.run(ask)


def test_what_the_sdks_raise_for_a_request_that_is_none(arm):
    """The words are each side's own."""

    def ask(to):
        with pytest.raises(openai.BadRequestError):
            to.openai.chat.completions.create(model="gpt-4.1", messages=[])
        with pytest.raises(openai.BadRequestError):
            to.openai.embeddings.create(model="text-embedding-3-small", input=[])
        with pytest.raises(anthropic.BadRequestError):
            to.anthropic.messages.create(model="claude-sonnet-4.5", max_tokens=9, messages=[])
        with pytest.raises(openai.NotFoundError):
            to.openai.post("/nothing", cast_to=object, body={})

    arm.run(ask)
