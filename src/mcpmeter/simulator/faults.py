"""What can be made to go wrong, and the short text that asks for it (`status=503,retry_after=2:0.02`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Annotated, Literal, Self

import msgspec
from msgspec import Meta

from mcpmeter.errors import ConfigInvalid
from mcpmeter.simulator.latency import Latency

Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Tokens = Annotated[int, Meta(ge=0, le=1_000_000)]

FAULT_NAMES = ("", "status", "reset", "stall", "body", "content_length", "drip", "huge", "encoding", "usage", "done")
"""Names of requested faults in the billing log; empty without a fault. The first of several counts."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What happens to one call. Raises `ConfigInvalid` for values that make no sense."""

    probability: Annotated[float, Meta(ge=0, le=1)] = 1.0
    first: Annotated[int, Meta(ge=1)] | None = None
    """Only the first times that the same body is asked: a retry then succeeds."""

    status: Annotated[int, Meta(ge=200, le=599)] | None = None
    retry_after: Seconds | None = None
    reset: Literal["headers", "body", "chunk"] | None = None
    """A real RST: before the headers, after some of the body, or inside a chunk of the transfer encoding."""
    stall: Literal["headers", "body"] | None = None
    stall_seconds: Seconds | None = None
    """How long; without it until the client leaves."""
    after_tokens: Tokens = 3
    """How many tokens of a stream are sent before it is reset or stalls."""
    body: Literal["malformed_json", "malformed_sse", "empty", "html", "error"] | None = None
    usage: Literal["missing", "zero", "negative", "string", "nan", "overflow", "twice", "with_choices"] | None = None
    done: Literal["missing"] | None = None
    drip_bytes_per_second: Annotated[int, Meta(ge=1)] | None = None
    content_length: Literal["short", "long"] | None = None
    """The header says less, or more, than is sent."""
    huge_mb: Annotated[int, Meta(ge=1, le=256)] | None = None
    encoding: Literal["gzip"] | None = None
    """Sent though `identity` was asked for."""

    latency_ms: str | None = None
    chunks_per_second: str | None = None
    completion_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None
    tokens_per_chunk: Annotated[int, Meta(ge=1)] | None = None
    tool_calls: bool | None = None
    refusal: bool | None = None
    """The model declines, in the way that the dialect marks it."""
    dated_model: bool | None = None

    def __post_init__(self) -> None:
        for number in (self.probability, self.retry_after, self.stall_seconds):
            if number is not None and not math.isfinite(number):
                raise ConfigInvalid("A fault needs finite numbers.")
        if self.latency_ms is not None:
            Latency.parse(self.latency_ms)
        if self.chunks_per_second is not None:
            Latency.from_rate(self.chunks_per_second)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name=value,name=value`, optionally with `:probability` behind. Raises `ConfigInvalid`."""
        settings, probability = _split_probability(text)
        if probability is not None:
            settings["probability"] = probability
        try:
            return msgspec.convert(settings, cls, strict=False)
        except (msgspec.ValidationError, ConfigInvalid) as wrong:
            reason = wrong.message if isinstance(wrong, ConfigInvalid) else str(wrong)
            raise ConfigInvalid(
                f"'{text[:80]}' is no fault: {reason[:160].rstrip('.')}.", hint="docs/simulator.md lists them all."
            ) from None

    @property
    def name(self) -> str:
        """The one of `FAULT_NAMES` in the billing log; empty if only the response's size or pace is set."""
        if self is NO_FAULT:
            return ""
        asked = (
            ("status", self.status),
            ("reset", self.reset),
            ("stall", self.stall),
            ("body", self.body),
            ("content_length", self.content_length),
            ("drip", self.drip_bytes_per_second),
            ("huge", self.huge_mb),
            ("encoding", self.encoding),
            ("usage", self.usage),
            ("done", self.done),
        )
        return next((name for name, value in asked if value is not None), "")

    @property
    def spoils_transfer(self) -> bool:
        """Whether a whole body cannot go out in one plain response."""
        return self.name in ("reset", "stall", "content_length", "drip", "huge", "encoding")


NO_FAULT = Fault()


def choose(faults: Sequence[Fault], random: Random, nth: int) -> Fault:
    """Draw at most one fault for the `nth` (from 0) asking of a body. Always draws once, whatever the faults are."""
    drawn = random.random()
    for fault in faults:
        drawn -= fault.probability
        if drawn < 0:
            return fault if applies(fault, nth) else NO_FAULT
    return NO_FAULT


def applies(fault: Fault, nth: int) -> bool:
    """Whether the fault still holds when the same body is asked for the `nth` time (from 0)."""
    return fault.first is None or nth < fault.first


def check_sum(faults: Sequence[Fault]) -> None:
    """Raises `ConfigInvalid` if probabilities pass 1, since the last faults could then never happen."""
    total = sum(fault.probability for fault in faults)
    if total > 1 + 1e-9:
        raise ConfigInvalid(
            f"The probabilities of the faults add up to {total:g}.",
            hint="Keep the sum at 1 or below, as in status=503:0.02.",
        )


def _split_probability(text: str) -> tuple[dict[str, str], str | None]:
    settings: dict[str, str] = {}
    probability = None
    *pairs, last = text.split(",")
    head, colon, tail = last.rpartition(":")
    # `latency_ms=uniform:10-50` has a colon too: only a bare number behind the last one is a probability.
    if colon and _is_number(tail) and ("=" in head or _is_number(head)):
        last, probability = head, tail
    for pair in (*pairs, last):
        name, equals, value = pair.partition("=")
        if not equals:
            # A comma inside a value, as in lognormal:200,0.5, belongs to the pair before it.
            if not settings:
                raise ConfigInvalid(
                    f"'{text[:80]}' is no fault.", hint="Write name=value, as in status=503,retry_after=2."
                )
            previous = next(reversed(settings))
            settings[previous] += f",{name.strip()}"
            continue
        settings[name.strip()] = value.strip()
    return settings, probability


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
