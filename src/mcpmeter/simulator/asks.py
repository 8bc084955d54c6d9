"""What a request asks for, as far as the simulator cares, and the rule by which its tokens are counted.

The rule: a token for every 4 characters begun of each text, 4 more for each message, 85 for each part that is no text
(an image, a sound), and the `tools` as the text they are. No tokenizer: exact, fast, and known to both sides.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from mcpmeter.errors import ConfigInvalid, InvalidRequest
from mcpmeter.simulator.faults import Fault

CHARS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_MEDIA_PART = 85
MAX_DIMENSIONS = 3072
MAX_INPUTS = 2048

Limit = Annotated[int, Meta(ge=1, le=10_000_000)]
Model = Annotated[str, Meta(min_length=1, max_length=256)]


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str = "text"
    text: str = ""


class Message(msgspec.Struct):
    """One message; what is not counted is not kept."""

    role: str
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool = False


class Function(msgspec.Struct):
    """A function that may be called."""

    name: Annotated[str, Meta(min_length=1)]
    parameters: Any = None


class Tool(msgspec.Struct):
    """One of `tools`."""

    function: Function
    type: str = "function"


class JsonSchema(msgspec.Struct):
    """`response_format.json_schema`."""

    schema: Any = None


class ResponseFormat(msgspec.Struct):
    """`response_format` of a request."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class ChatAsk(msgspec.Struct):
    """The body of `POST /v1/chat/completions`."""

    model: Model
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Any = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """The most completion tokens a choice may have."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream shall end with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class EmbeddingsAsk(msgspec.Struct):
    """The body of `POST /v1/embeddings`."""

    model: Model
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    metadata: dict[str, Any] | None = None

    @property
    def texts(self) -> list[str | list[int]]:
        """The inputs one by one: texts, or lists of token numbers. Raises `InvalidRequest` for a mixture."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and all(isinstance(item, int) for item in self.input):
            return [[item for item in self.input if isinstance(item, int)]]
        several = [item for item in self.input if not isinstance(item, int)]
        if not several or len(several) != len(self.input) or len(several) > MAX_INPUTS:
            raise InvalidRequest(f"'input' is empty, has over {MAX_INPUTS} texts or mixes texts with token numbers.")
        return several


Ask = TypeVar("Ask", ChatAsk, EmbeddingsAsk)

_CHAT = msgspec.json.Decoder(ChatAsk)
_EMBEDDINGS = msgspec.json.Decoder(EmbeddingsAsk)


def read_chat(body: bytes) -> ChatAsk:
    """Raises `InvalidRequest` for anything that is not a chat request."""
    return _read(_CHAT, body)


def read_embeddings(body: bytes) -> EmbeddingsAsk:
    """Raises `InvalidRequest` for anything that is not an embeddings request."""
    return _read(_EMBEDDINGS, body)


def _read(decoder: msgspec.json.Decoder[Ask], body: bytes) -> Ask:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as wrong:
        raise InvalidRequest(f"Invalid request body: {_clip(str(wrong))}") from None
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "We could not parse the JSON body of your request.", hint="Send a JSON object in UTF-8."
        ) from None


def wished_fault(ask: ChatAsk | EmbeddingsAsk) -> Fault | None:
    """What `metadata.simulate` asks for. Raises `InvalidRequest` for something that cannot be simulated."""
    wish = ask.metadata.get("simulate") if ask.metadata else None
    if wish is None or wish == "":
        return None
    if not isinstance(wish, str):
        raise InvalidRequest("'metadata.simulate' is not a string.", hint="Write it as in 'status=503,retry_after=2'.")
    try:
        return Fault.parse(wish)
    except ConfigInvalid as wrong:
        raise InvalidRequest(f"'metadata.simulate': {_clip(wrong.message)}", hint=wrong.hint) from None


def text_tokens(text: str) -> int:
    """Tokens of one text: one for every 4 characters begun."""
    return -(-len(text) // CHARS_PER_TOKEN)


def chat_tokens(ask: ChatAsk) -> int:
    """Prompt tokens of a chat request."""
    total = TOKENS_PER_MESSAGE * len(ask.messages)
    for message in ask.messages:
        if isinstance(message.content, str):
            total += text_tokens(message.content)
        elif message.content:
            total += sum(text_tokens(p.text) if p.type == "text" else TOKENS_PER_MEDIA_PART for p in message.content)
    if ask.tools:
        total += text_tokens(msgspec.json.encode(ask.tools).decode())
    return total


def embeddings_tokens(ask: EmbeddingsAsk) -> int:
    """Prompt tokens of an embeddings request; a list of token numbers counts as long as it is."""
    return sum(text_tokens(item) if isinstance(item, str) else len(item) for item in ask.texts)


def _clip(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
