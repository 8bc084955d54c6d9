"""Reads providers' rate-limit headers into samples. Pure: the caller passes the time.

Impossible values (negative, NaN, 9.22e18, infinite) are dropped, so they are never shown as remaining.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

import msgspec

from mcpmeter.catalog.quota import RESOURCES

NS_PER_S: Final = 1_000_000_000
MAX_COUNT: Final = 10**12
"""More than any provider grants. Larger numbers are some program's maximum and mean "no limit"."""

MAX_RESET_NS: Final = 400 * 86_400 * NS_PER_S
MAX_VALUE_LENGTH: Final = 64
MAX_LIST_LENGTH: Final = 1024
"""Longer header values are ignored: of a plain value, and of a structured field with several members."""

RETRY_AFTER: Final = "retry_after"
_WINDOW_SECONDS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "month": 31 * 86_400}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Sample(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One response's report on one resource. At least one of limit, remaining and reset is set."""

    resource: str
    """One of `catalog.quota.RESOURCES`."""
    limit: int | None = None
    remaining: int | None = None
    reset_at_ns: int | None = None
    """Unix nanoseconds (UTC), never before the response."""
    window_ns: int = 0
    """The window's length if the header's name or policy states it, else 0."""


class HeaderNames(NamedTuple):
    """Names of the three headers of one resource."""

    resource: str
    limit: str
    remaining: str
    reset: str
    window_seconds: int = 0


def _prefixed(prefix: str, suffix: str, resource: str, window_seconds: int = 0) -> HeaderNames:
    return HeaderNames(
        resource, f"{prefix}-limit{suffix}", f"{prefix}-remaining{suffix}", f"{prefix}-reset{suffix}", window_seconds
    )


_OPENAI: Final = (
    _prefixed("x-ratelimit", "-requests", "requests"),
    _prefixed("x-ratelimit", "-tokens", "tokens"),
    _prefixed("x-ratelimit", "-project-requests", "project_requests"),
    _prefixed("x-ratelimit", "-project-tokens", "project_tokens"),
)
_ANTHROPIC: Final = tuple(
    HeaderNames(resource, f"anthropic-{name}-limit", f"anthropic-{name}-remaining", f"anthropic-{name}-reset")
    for resource, name in (
        ("requests", "ratelimit-requests"),
        ("tokens", "ratelimit-tokens"),
        ("input_tokens", "ratelimit-input-tokens"),
        ("output_tokens", "ratelimit-output-tokens"),
        ("priority_input_tokens", "priority-input-tokens"),
        ("priority_output_tokens", "priority-output-tokens"),
    )
)
_WINDOWED: Final = tuple(
    _prefixed("x-ratelimit", f"-{unit}-{window}", f"{resource}_per_{window}", seconds)
    for unit, resource in (("req", "requests"), ("requests", "requests"), ("tokens", "tokens"))
    for window, seconds in _WINDOW_SECONDS.items()
)
_PLAIN: Final = (
    _prefixed("x-ratelimit", "", "requests"),
    _prefixed("x-rate-limit", "", "requests"),
    _prefixed("ratelimit", "", "requests"),
)
_TOKENLIMIT: Final = _prefixed("x-tokenlimit", "", "tokens")
_ALL: Final = (*_OPENAI, *_ANTHROPIC, *_WINDOWED, *_PLAIN, _TOKENLIMIT)

STYLES: Final[Mapping[str, tuple[HeaderNames, ...]]] = {
    "openai": _OPENAI,
    "azure-openai": _OPENAI,
    "groq": _OPENAI,
    "anthropic": _ANTHROPIC,
    "mistral": (*_WINDOWED, *_OPENAI),
    "openrouter": (*_PLAIN, *_OPENAI),
    "together": (*_PLAIN, _TOKENLIMIT, *_OPENAI),
}
"""Headers to read, by the built-in provider's name; any other name reads all of them."""


def _header_names(style: tuple[HeaderNames, ...]) -> frozenset[str]:
    plain = {name for names in style for name in (names.limit, names.remaining, names.reset)}
    return frozenset(plain | {"ratelimit", "ratelimit-policy", "retry-after", "retry-after-ms"})


_HEADER_NAMES: Final = {style: _header_names(names) for style, names in STYLES.items()}
NAMES_READ: Final = _header_names(_ALL)
"""Every header that any style reads."""


def read(headers: Mapping[str, str], style: str, now: int) -> list[Sample]:
    """Samples from response headers (lower-case names), one per resource. `now` is Unix ns. Never raises."""
    found: dict[str, Sample] = {}
    if _HEADER_NAMES.get(style, NAMES_READ).isdisjoint(headers):  # most responses of many providers
        return []
    for names in STYLES.get(style, _ALL):
        if names.resource not in found and (sample := _plain(headers, names, now)):
            found[names.resource] = sample
    if "ratelimit" in headers or "ratelimit-policy" in headers:
        for sample in _structured(headers.get("ratelimit", ""), headers.get("ratelimit-policy", ""), now):
            found.setdefault(sample.resource, sample)
    if (wait := _retry_after(headers, now)) is not None:
        found[RETRY_AFTER] = Sample(resource=RETRY_AFTER, reset_at_ns=wait)
    return list(found.values())


def _plain(headers: Mapping[str, str], names: HeaderNames, now: int) -> Sample | None:
    values = headers.get(names.limit), headers.get(names.remaining), headers.get(names.reset)
    return _sample(names.resource, values, names.window_seconds, now)


def _retry_after(headers: Mapping[str, str], now: int) -> int | None:
    milliseconds = headers.get("retry-after-ms")
    if milliseconds is not None and _NUMBER.fullmatch(milliseconds.strip()):
        return _bounded(now + _scaled(milliseconds.strip(), 1_000_000), now)
    return reset_at(headers.get("retry-after"), now)


# Values --------------------------------------------------------------------------------------------------------------

# In a list a blank follows the comma; without one it may separate thousands.
_COUNT: Final = re.compile(r"([0-9]{1,13})(?:\.[0-9]{1,9})?(?:\s*(?:;|,\s).*)?", re.DOTALL)
_NUMBER: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
# Go writes microseconds with the micro sign, whose two UTF-8 bytes arrive decoded as Latin-1.
_GO_PARTS: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(d|h|ms|m|s|us|\xc2?\xb5s|ns)")
_GO_DURATION: Final = re.compile(rf"(?:{_GO_PARTS.pattern})+")
_GO_NS: Final = {"d": 86_400 * NS_PER_S, "h": 3600 * NS_PER_S, "m": 60 * NS_PER_S, "s": NS_PER_S, "ms": 10**6, "ns": 1}
_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def count(text: str | None) -> int | None:
    """A header's count (`5000`, `99.5` rounded down, the first of `100, 100;w=60`); None for anything else."""
    if text is None or len(text) > MAX_VALUE_LENGTH:
        return None
    match = _COUNT.fullmatch(text.strip())
    value = int(match[1]) if match else MAX_COUNT + 1
    return value if value <= MAX_COUNT else None


def reset_at(text: str | None, now: int) -> int | None:
    """The instant (Unix ns) of a reset, `now` for one in the past; None if malformed or too far in the future.

    Reads seconds (`60`, `0.5`), Unix seconds and milliseconds (`1741305600000`), Go's durations (`1m30.951s`, `6ms`),
    RFC 3339 and HTTP dates.
    """
    if text is None or len(text) > MAX_VALUE_LENGTH or not (text := text.strip()):
        return None
    for form, instant in _FORMS:
        if form.fullmatch(text):
            return _bounded(instant(text, now), now)
    return _bounded(_http_date(text), now)


def _bounded(instant: int | None, now: int) -> int | None:
    if instant is None or instant > now + MAX_RESET_NS:
        return None
    return max(instant, now)


def _number(text: str, now: int) -> int:
    value = int(text.partition(".")[0])
    if value >= 10**11:
        return _scaled(text, 1_000_000)
    if value >= 10**9:
        return _scaled(text, NS_PER_S)
    return now + _scaled(text, NS_PER_S)


def _scaled(text: str, unit_ns: int) -> int:
    whole, _, fraction = text.partition(".")
    return int(whole) * unit_ns + (round(float(f"0.{fraction}") * unit_ns) if fraction else 0)


def _go_duration(text: str, now: int) -> int:
    return now + sum(_scaled(value, _GO_NS.get(unit, 1000)) for value, unit in _GO_PARTS.findall(text))


def _rfc3339(text: str, now: int) -> int | None:
    try:
        return _unix_ns(datetime.fromisoformat(text.upper()))
    except (ValueError, OverflowError):
        return None


def _http_date(text: str) -> int | None:
    try:
        parsed = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return _unix_ns(parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC))


def _unix_ns(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(microseconds=1) * 1000


_FORMS: Final[tuple[tuple[re.Pattern[str], Callable[[str, int], int | None]], ...]] = (
    (_NUMBER, _number),
    (_GO_DURATION, _go_duration),
    (_RFC3339, _rfc3339),
)


# The IETF draft's structured fields (draft-ietf-httpapi-ratelimit-headers, RFC 9651) ----------------------------------

_STRING: Final = r'"(?:[^"\\]|\\["\\])*"'
_PARAMETER: Final = re.compile(rf'\s*;\s*([a-z*][a-z0-9_.*-]*)(?:=({_STRING}|[^\s;,"]+))?')
_MEMBER: Final = re.compile(rf'\s*({_STRING}|[A-Za-z0-9*][^\s;,="]*)((?:{_PARAMETER.pattern})*)\s*(?:,|$)')
_OLDER_FORM: Final = re.compile(r"\s*(limit|remaining|reset)=([0-9]+)\s*(?:[,;]|$)")


def _structured(current: str, policy: str, now: int) -> Iterator[Sample]:
    """`"name";r=…;t=…` and `"name";q=…;w=…`, or draft 07's `limit=…, remaining=…, reset=…`; the tightest first."""
    if _OLDER_FORM.match(current):
        older = dict(_OLDER_FORM.findall(current[:MAX_LIST_LENGTH]))
        if sample := _sample("requests", (older.get("limit"), older.get("remaining"), older.get("reset")), 0, now):
            yield sample
        return
    currents, policies = _members(current), _members(policy)
    samples = [
        _of_policy(name, currents.get(name, {}), policies.get(name, {}), now) for name in {**currents, **policies}
    ]
    yield from sorted(filter(None, samples), key=lambda s: MAX_COUNT if s.remaining is None else s.remaining)


def _of_policy(name: str, current: Mapping[str, str], policy: Mapping[str, str], now: int) -> Sample | None:
    window_seconds = count(policy.get("w")) or 0
    resource = _resource(name, policy.get("qu", ""), window_seconds)
    return _sample(resource, (policy.get("q"), current.get("r"), current.get("t")), window_seconds, now)


def _sample(
    resource: str, values: tuple[str | None, str | None, str | None], window_seconds: int, now: int
) -> Sample | None:
    limit, remaining = count(values[0]), count(values[1])
    if not resource or (limit is None and remaining is None):
        return None
    window_ns = window_seconds * NS_PER_S
    return Sample(
        resource=resource,
        limit=limit,
        remaining=remaining,
        reset_at_ns=reset_at(values[2], now),
        window_ns=window_ns if window_ns <= MAX_RESET_NS else 0,
    )


def _members(text: str) -> dict[str, dict[str, str]]:
    """A list's members with their parameters, by name; empty if any part is malformed, as RFC 9651 requires."""
    found: dict[str, dict[str, str]] = {}
    offset = 0
    while offset < len(text) <= MAX_LIST_LENGTH:
        member = _MEMBER.match(text, offset)
        if member is None:
            return {}
        found[member[1].strip('"')] = {key: value.strip('"') for key, value in _PARAMETER.findall(member[2])}
        offset = member.end()
    return found


def _resource(name: str, unit: str, window_seconds: int) -> str:
    """The resource of a policy; "" for an unknown unit. A policy's own name is free text: used only if known."""
    known = name.lower().replace("-", "_")
    if known in RESOURCES and known != RETRY_AFTER:
        return known
    if unit not in ("", "requests", "tokens"):
        return ""
    window = next((f"_per_{word}" for word, seconds in _WINDOW_SECONDS.items() if seconds == window_seconds), "")
    return f"{unit or 'requests'}{window}"
