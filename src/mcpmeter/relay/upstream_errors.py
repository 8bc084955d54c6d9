"""What a provider's error response means: its error of ours, and whether its bytes may go to the client. Pure."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mcpmeter.dialects import sse
from mcpmeter.dialects.base import Dialect, EventReader
from mcpmeter.errors import (
    InvalidRequest,
    InvalidUpstreamResponse,
    MeterError,
    UpstreamDisconnected,
    UpstreamFault,
    UpstreamRateLimited,
    UpstreamRefusedAccount,
    UpstreamTimedOut,
)
from mcpmeter.http.asgi import Header
from mcpmeter.providers import Provider
from mcpmeter.relay.error_meaning import meaning_of
from mcpmeter.relay.shown_credentials import MAX_BYTES, shows_credential

log = logging.getLogger("mcpmeter")

KEPT_FIELDS: Final = ("type", "code", "status", "param")
"""Of a withheld error: short words that SDKs and programs match on."""

_WORD: Final = re.compile(r"[A-Za-z0-9_.:\[\]-]{1,64}")


def error_of_response(provider: Provider, status: int, headers: Mapping[str, str], body: bytes) -> MeterError:
    """The error that a response with a status of 300 or more stands for."""
    name = provider.name
    if status < 400:
        return InvalidUpstreamResponse(
            f"{name} answered {status}, a redirect, which is never followed.", hint="Correct its base_url."
        )
    meaning = meaning_of(provider, status, headers, body)
    if meaning == "configuration":
        return UpstreamRefusedAccount(
            f"{name} does not allow this tool or model to the relay's account (HTTP {status}).",
            hint="The operator has to enable it at the provider; the key is valid.",
        )
    if meaning == "edge":
        return UpstreamFault(f"{name} answered {status} with a page of the proxy before it.", hint="Retry.")
    if meaning == "account" or (meaning == "" and status in (401, 402, 403)):
        return UpstreamRefusedAccount(
            f"{name} refused the relay's own account (HTTP {status}).",
            hint="The operator has to check its key and credit; the caller's key was not sent.",
        )
    if meaning == "rate_limit" or status == 429:
        return UpstreamRateLimited(f"{name} is rate limiting.", retry_after=headers.get("retry-after"))
    if status in (408, 504):
        return UpstreamTimedOut(f"{name} answered {status}.", hint="Retry.")
    if status < 500:
        return InvalidRequest(f"{name} refused the request (HTTP {status}).")
    return UpstreamFault(f"{name} answered {status}.", hint="Retry.")


def passes_unchanged(error: MeterError, status: int, *, maps_faults: bool) -> bool:
    """Whether the provider's own error response goes to the client, rather than an error of ours.

    A response about the relay's account is for the operator, and a proxy's page is no error of the dialect.
    `maps_faults` is the endpoint's setting.
    """
    is_misleading = isinstance(error, UpstreamFault) and status < 500 and error.http_status != status
    if is_misleading and not isinstance(error, UpstreamTimedOut):
        return False
    return 400 <= status < (500 if maps_faults else 600)


def unreadable_response(name: str, status: int, body: bytes) -> InvalidUpstreamResponse:
    """The error of a success status whose body is not what the dialect promises."""
    kind = "an empty body" if not body.strip() else "a body that is not a JSON response"
    return InvalidUpstreamResponse(f"{name} answered {status} with {kind}.", hint="Check its base_url, or retry.")


def incomplete_stream(name: str, *, has_started: bool) -> UpstreamFault:
    """The error of a stream that ended without its last event, finish reason or usage."""
    if not has_started:
        return InvalidUpstreamResponse(f"{name} answered with an empty stream.", hint="Retry.")
    return UpstreamDisconnected(f"{name} ended its stream before the response was complete.", hint="Retry.")


# Errors that show a credential --------------------------------------------------------------------------------------


class Withholding:
    """Replaces error texts of one call that show a credential by errors of ours; all others pass unchanged."""

    __slots__ = ("_call_id", "_dialect", "_provider", "_secret")

    def __init__(self, dialect: Dialect, provider: str, secret: str, call_id: str) -> None:
        """`secret` is the key that the call was requested with."""
        self._dialect, self._provider, self._secret, self._call_id = dialect, provider, secret, call_id

    def response(
        self, error: MeterError, status: int, headers: list[Header], body: bytes
    ) -> tuple[list[Header], bytes]:
        """The headers and body of an error response that passes with its status."""
        headers = [header for header in headers if not shows_credential(header[1], self._secret)]
        if not shows_credential(body, self._secret):
            return headers, body
        kept = [header for header in headers if header[0] != b"content-type"]
        return [*kept, (b"content-type", b"application/json")], self._error_body(error, status, body)

    def success(self, body: bytes) -> bytes:
        """The body of a success status that holds the provider's error. Of a long one, both ends are searched."""
        if not any(shows_credential(end, self._secret) for end in _ends(body)):
            return body
        return self._error_body(UpstreamFault(f"{self._provider} answered an error with a success status."), 0, body)

    def events(self, reader: EventReader, block: bytes) -> bytes:
        """A block of a stream's events that holds the provider's error."""
        return b"".join(self._event(reader, event) for event in sse.split_events(block))

    def _event(self, reader: EventReader, event: bytes) -> bytes:
        info = reader.read_events(event)
        if info is None or not info.is_error or not any(shows_credential(end, self._secret) for end in _ends(event)):
            return event
        error = UpstreamFault(f"{self._provider} ended its stream with an error.")
        return self._dialect.error_event(self._withheld(error, 0), self._call_id)

    def _error_body(self, error: MeterError, status: int, theirs: bytes) -> bytes:
        ours = self._dialect.error_body(self._withheld(error, status), self._call_id)
        return _with_words(ours, theirs, self._secret)

    def _withheld(self, error: MeterError, status: int) -> MeterError:
        log.warning("%s showed a credential in an error; its text was withheld from the client", self._provider)
        shown = type(error)(error.message, hint="Its text showed a credential and is withheld.")
        if status:
            shown.http_status = status
        return shown


def _ends(body: bytes) -> tuple[bytes, ...]:
    return (body,) if len(body) <= MAX_BYTES else (body[:MAX_BYTES], body[-MAX_BYTES:])


def _with_words(ours: bytes, theirs: bytes, secret: str) -> bytes:
    """Our error with the provider's type and code, if they are words: programs match on them."""
    body, error = _error_object(ours), _error_object(theirs)
    if body is None or error is None:
        return ours
    words: dict[str, Any] = {
        name: error[1][name] for name in KEPT_FIELDS if name in body[1] and _is_word(error[1].get(name), secret)
    }
    body[1].update(words)
    return msgspec.json.encode(body[0])


def _error_object(body: bytes) -> tuple[Any, dict[str, Any]] | None:
    """A body in JSON, and the error object in it."""
    try:
        decoded = msgspec.json.decode(body) if len(body) <= MAX_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    holder = decoded[0] if isinstance(decoded, list) and decoded else decoded
    error = holder.get("error") if isinstance(holder, dict) else None
    return (decoded, error) if isinstance(error, dict) else None


def _is_word(value: object, secret: str) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) < 1000
    return isinstance(value, str) and bool(_WORD.fullmatch(value)) and not shows_credential(value.encode(), secret)
