"""What the simulator asks of a dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple, Protocol

import msgspec

from mcpmeter.simulator.answers import Tally
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.plan import Plan

EVENT_STREAM = "text/event-stream; charset=utf-8"
JSON = "application/json"


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event of a stream and what is in it: tokens of the answer, tokens of shown reasoning."""

    data: bytes
    tokens: int = 0
    thoughts: int = 0
    is_last: bool = False
    """The stream's own end: whoever has read it takes the answer for whole."""


class Framing(NamedTuple):
    """How a dialect's stream is sent, and how it is broken."""

    broken_json: bytes
    """An event whose JSON ends too early."""
    error: Callable[[int], bytes]
    """The vendor's error inside a stream, given how many events went before it."""
    content_type: str = EVENT_STREAM


class Reply(msgspec.Struct, frozen=True):
    """One answer in the shape of its dialect."""

    tally: Tally
    body: Callable[[], bytes]
    framing: Framing | None = None
    """None where there is no stream, or none was asked for."""
    events: Callable[[str | None], Iterator[Event]] = lambda cost: iter(())
    """The events of the stream, given the cost in USD that it tells (None tells nothing)."""
    hidden_tokens: int = 0
    """Completion tokens that nobody sees: reasoning, made before the first byte."""
    content_type: str = JSON


class Target(NamedTuple):
    """What the URL says besides the dialect."""

    model: str = ""
    salt: bytes = b""
    """Keeps the chances of one body apart where two URLs take it."""


class Ask(Protocol):
    """One request, understood."""

    @property
    def model_name(self) -> str:
        """The model as the client named it."""

    @property
    def is_stream(self) -> bool:
        """Whether a stream is asked for."""

    def wished_fault(self, body: bytes) -> Fault | None:
        """What the request asks to go wrong. Raises `InvalidRequest`."""

    def draw(self, fault: Fault, plan: Plan, random: Random, nth: int) -> Reply:
        """Draw the answer; `nth` is how often the same body was asked before. Raises `InvalidRequest`."""


class Dialect(Protocol):
    """One API of a vendor."""

    @property
    def name(self) -> str:
        """One of `billing_log.DIALECTS`."""

    def read(self, body: bytes, target: Target) -> Ask:
        """Raises `InvalidRequest` for anything that is not a request of this dialect."""


def sse(name: str, data: dict[str, Any]) -> bytes:
    """A named server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))
