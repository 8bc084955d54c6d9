"""OpenAI embeddings (`/embeddings`): https://platform.openai.com/docs/api-reference/embeddings

An answer's vectors are skipped unread, whatever their encoding: only what stands beside them is metered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from mcpmeter.dialects import json_body as bodies
from mcpmeter.dialects import json_text, openai
from mcpmeter.dialects.base import NotAnAnswer, RequestInfo, ResponseInfo
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams, Usage

METERED_FIELDS: Final = json_text.quoted(b"model", b"input")
"""What is read of a request; each may be named once."""

_Token = Annotated[int, msgspec.Meta(ge=0)]


class _Request(msgspec.Struct, frozen=True, gc=False):
    input: str | list[str | _Token | list[_Token]]
    model: str | None = None


class _Usage(msgspec.Struct, frozen=True, gc=False):
    prompt_tokens: openai.Tokens | None = None
    total_tokens: openai.Tokens | None = None


class _Answer(msgspec.Struct, frozen=True, gc=False):
    model: str | None = None
    data: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = openai.ABSENT
    error: msgspec.Raw = openai.ABSENT


_request_decoder = msgspec.json.Decoder(_Request)
_answer_decoder = msgspec.json.Decoder(_Answer)
_usage_decoder = msgspec.json.Decoder(_Usage)
_HINT: Final = 'The least is {"model": "…", "input": "…"}.'


class OpenAiEmbeddings:
    """The embeddings dialect. Stateless; there are no streams in it, and no completion tokens."""

    operation = "embeddings"
    passed_headers: frozenset[bytes] = frozenset()

    def path_name(self, asked: RequestInfo) -> str:
        """`embeddings`."""
        return "embeddings"

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read the model, and that there is something to embed. Raises InvalidRequest."""
        request = bodies.request_of(_request_decoder, body, kind="for embeddings", hint=_HINT)
        json_text.refuse_repeated(body, METERED_FIELDS)
        if not request.input:
            raise InvalidRequest("'input' is empty.", hint="Send a text, a list of texts, or lists of tokens.")
        if request.model is not None:
            bodies.check_model(request.model)
        return RequestInfo(
            model=request.model or "",
            prompt_tokens_estimate=max(1, _prompt_tokens(request)),
            max_completion_tokens=0,
        )

    def forwarded(self, body: bytes, asked: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless the model's name differs."""
        return openai.with_fields(body, {"model": model} if asked.model != model else {})

    def read_answer(self, body: bytes) -> ResponseInfo:
        """Usage, model and cost of an answer, and whether it holds no vector. Raises NotAnAnswer."""
        answer = bodies.answer_of(_answer_decoder, body)
        is_error = openai.is_error(answer.error)
        if answer.data is None and not is_error:
            raise NotAnAnswer("no list of vectors")
        usage, bad = _read_usage(answer.usage)
        return ResponseInfo(
            usage=usage,
            bad_usage=bad,
            model=openai.cleaned(answer.model),
            is_error=is_error,
            is_empty=answer.data == [] and not is_error,
            reported_usd=openai.reported_usd(answer.usage),
        )

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """Nothing: embeddings are not streamed."""
        return None

    def only_usage(self, event: bytes) -> bool:
        """Never: embeddings are not streamed."""
        return False

    def is_end(self, event: bytes) -> bool:
        """Never: embeddings are not streamed."""
        return False

    def prompt_tokens(self, body: bytes) -> int:
        """The number of tokens given as such, and an estimate for texts."""
        try:
            return _prompt_tokens(bodies.request_of(_request_decoder, body, kind="for embeddings", hint=_HINT))
        except InvalidRequest:
            return len(body) // bodies.BYTES_PER_PROMPT_TOKEN

    def completion_tokens(self, answer: bytes) -> int:
        """0: vectors are no tokens."""
        return 0

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """0: vectors are no tokens."""
        return 0

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """OpenAI's error object."""
        return openai.error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an event, should a provider have begun a stream that nobody asked for."""
        return b"data: " + openai.error_body(error, call_id) + b"\n\n"


def _prompt_tokens(request: _Request) -> int:
    given = [request.input] if isinstance(request.input, str) else request.input
    texts = [text for text in given if isinstance(text, str)]
    tokens = sum(len(item) if isinstance(item, list) else 1 for item in given if not isinstance(item, str))
    return sum(map(json_text.estimated_tokens, texts)) + tokens


def _read_usage(raw: msgspec.Raw) -> tuple[Usage | None, bool]:
    """(usage, whether it was there and cannot be). Some providers report the total alone; it is all prompt."""
    if openai.is_blank(raw):
        return None, False
    try:
        told = _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, True
    prompt = told.total_tokens if told.prompt_tokens is None else told.prompt_tokens
    return (None, True) if prompt is None else (Usage(prompt_tokens=prompt, source="reported"), False)
