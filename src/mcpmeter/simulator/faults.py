"""The faults of a call, and their text form (`status=503,retry_after=2:0.02`)."""

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
    """The faults of one call. Raises `ConfigInvalid` for invalid values."""

    probability: Annotated[float, Meta(ge=0, le=1)] = 1.0
    first: Annotated[int, Meta(ge=1)] | None = None
    """Applies only to the first N requests with the same body: a later retry succeeds."""

    status: Annotated[int, Meta(ge=200, le=599)] | None = None
    retry_after: Seconds | None = None
    reset: Literal["headers", "body", "chunk"] | None = None
    """A TCP RST: before the headers, inside the body, or inside a chunk of the transfer encoding."""
    stall: Literal["headers", "body"] | None = None
    stall_seconds: Seconds | None = None
    """Without it, a stall lasts until the client disconnects."""
    after_tokens: Tokens = 3
    """Tokens of a stream that are sent before its reset, stall or broken event."""
    body: Literal["malformed_json", "malformed_sse", "empty", "html", "error"] | None = None
    usage: (
        Literal["missing", "zero", "negative", "string", "nan", "overflow", "twice", "with_choices", "invented"] | None
    ) = None
    done: Literal["missing"] | None = None
    drip_bytes_per_second: Annotated[int, Meta(ge=1)] | None = None
    content_length: Literal["short", "long"] | None = None
    """`Content-Length` is shorter or longer than the body."""
    huge_mb: Annotated[int, Meta(ge=1, le=256)] | None = None
    encoding: Literal["gzip"] | None = None
    """Applied even if the request accepts only `identity`."""

    latency_ms: str | None = None
    chunks_per_second: str | None = None
    completion_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None
    tokens_per_chunk: Annotated[int, Meta(ge=1)] | None = None
    tool_calls: bool | None = None
    refusal: bool | None = None
    """A refusal by the model, in the dialect's format."""
    dated_model: bool | None = None

    def __post_init__(self) -> None:
        for number in (self.probability, self.retry_after, self.stall_seconds):
            if number is not None and not math.isfinite(number):
                raise ConfigInvalid("The numbers of a fault are finite.")
        if self.latency_ms is not None:
            Latency.parse(self.latency_ms)
        if self.chunks_per_second is not None:
            Latency.from_rate(self.chunks_per_second)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `name=value,name=value`, optionally followed by `:probability`. Raises `ConfigInvalid`."""
        settings, probability = _split_probability(text)
        if probability is not None:
            settings["probability"] = probability
        try:
            return msgspec.convert(settings, cls, strict=False)
        except (msgspec.ValidationError, ConfigInvalid) as error:
            reason = error.message if isinstance(error, ConfigInvalid) else str(error)
            raise ConfigInvalid(
                f"'{text[:80]}' is not a fault: {reason[:160].rstrip('.')}.", hint="docs/simulator.md lists them all."
            ) from None

    @property
    def name(self) -> str:
        """The one of `FAULT_NAMES` in the billing log; empty if only the response's size or pace is set."""
        if self is NO_FAULT:
            return ""
        settings = (
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
        return next((name for name, value in settings if value is not None), "")

    @property
    def spoils_transfer(self) -> bool:
        """Whether a whole body cannot go out in one plain response."""
        return self.name in ("reset", "stall", "content_length", "drip", "huge", "encoding")


NO_FAULT = Fault()


def choose(faults: Sequence[Fault], random: Random, repetition: int) -> Fault:
    """Choose at most one fault for the `repetition` (from 0) of a body. Always draws exactly one random number."""
    drawn = random.random()
    for fault in faults:
        drawn -= fault.probability
        if drawn < 0:
            return fault if applies(fault, repetition) else NO_FAULT
    return NO_FAULT


def applies(fault: Fault, repetition: int) -> bool:
    """Whether the fault applies to the `repetition` (from 0) of a body."""
    return fault.first is None or repetition < fault.first


def check_sum(faults: Sequence[Fault]) -> None:
    """Raises `ConfigInvalid` if the probabilities exceed 1: the last faults could never happen."""
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
    before, colon, after = last.rpartition(":")
    # `latency_ms=uniform:10-50` has a colon too: only a bare number after the last one is a probability.
    if colon and _is_number(after) and ("=" in before or _is_number(before)):
        last, probability = before, after
    for pair in (*pairs, last):
        name, equals, value = pair.partition("=")
        if not equals:
            # A comma inside a value, as in lognormal:200,0.5, continues the previous pair.
            if not settings:
                raise ConfigInvalid(
                    f"'{text[:80]}' is not a fault.", hint="Write name=value, as in status=503,retry_after=2."
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
