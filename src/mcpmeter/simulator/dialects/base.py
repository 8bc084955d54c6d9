"""The interface of a dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Generic, NamedTuple, Protocol

import msgspec

from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.generation import BilledTokens
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import Struct, read

EVENT_STREAM = "text/event-stream; charset=utf-8"
JSON = "application/json"


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event of a stream, with its tokens of the content and of visible reasoning."""

    data: bytes
    tokens: int = 0
    reasoning_tokens: int = 0
    is_last: bool = False
    """The dialect's end mark: a client that has read it takes the response for complete."""


class Framing(NamedTuple):
    """How a dialect sends a stream, and how it breaks one."""

    broken_json: bytes
    """An event whose JSON ends too early."""
    error: Callable[[int], bytes]
    """The vendor's error inside a stream, given the number of events before it."""
    content_type: str = EVENT_STREAM


class DialectResponse(msgspec.Struct, frozen=True):
    """One response in its dialect's format."""

    billed: BilledTokens
    body: Callable[[], bytes]
    framing: Framing | None = None
    """None for a response that is not streamed."""
    events: Callable[[str | None], Iterator[Event]] = lambda cost: iter(())
    """The events of the stream, given the cost in USD that it reports, if any."""
    hidden_tokens: int = 0
    """Completion tokens that no client sees: reasoning, generated before the first byte."""
    content_type: str = JSON


class UrlParams(NamedTuple):
    """The parameters in the URL."""

    model: str = ""
    salt: bytes = b""
    """Separates the random numbers of URLs that take the same body."""


class ParsedRequest(Protocol):
    """One parsed request."""

    @property
    def model(self) -> str:
        """The requested model."""

    def requested_fault(self, body: bytes) -> Fault | None:
        """The fault that the request asks for. Raises `InvalidRequest`."""

    def respond(self, fault: Fault, plan: Plan, random: Random, repetition: int) -> DialectResponse:
        """Generate the response; `repetition` counts earlier requests with the same body. Raises `InvalidRequest`."""


class SimulatedDialect(Protocol):
    """One API of a vendor."""

    @property
    def name(self) -> str:
        """One of `billing_log.DIALECTS`."""

    def read(self, body: bytes, url: UrlParams) -> ParsedRequest:
        """Parse a request. Raises `InvalidRequest`."""


class BodyDialect(Generic[Struct]):
    """A dialect whose requests are the body alone."""

    def __init__(self, name: str, request_type: type[Struct]) -> None:
        self.name = name
        self._decoder = msgspec.json.Decoder(request_type)

    def read(self, body: bytes, url: UrlParams = UrlParams()) -> Struct:  # noqa: B008 (immutable)
        """Parse a request. Raises `InvalidRequest`."""
        return read(self._decoder, body)


def sse(name: str, data: dict[str, Any]) -> bytes:
    """A named server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))
