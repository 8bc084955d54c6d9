"""What a provider's error response means: its error of ours, and whether its bytes may go to the client. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
from mcpmeter.providers import Provider


def error_of_response(
    provider: Provider, secret: str, status: int, headers: Mapping[str, str], body: bytes
) -> MeterError:
    """The error that a response with a status of 300 or more stands for. `secret` is the key it was requested with."""
    name = provider.name
    if status < 400:
        return InvalidUpstreamResponse(
            f"{name} answered {status}, a redirect, which is never followed.", hint="Correct its base_url."
        )
    # A body that repeats the relay's key counts as a refused account too, so that no client reads the key.
    repeats_key = bool(secret) and secret.encode() in body
    if status in (401, 402, 403) or repeats_key or refuses_account(body, provider.refused_account_marks):
        return UpstreamRefusedAccount(
            f"{name} refused the relay's own account (HTTP {status}).",
            hint="The operator has to check its key and credit; the caller's key was not sent.",
        )
    if status == 429:
        return UpstreamRateLimited(f"{name} is rate limiting.", retry_after=headers.get("retry-after"))
    if status in (408, 504):
        return UpstreamTimedOut(f"{name} answered {status}.", hint="Retry.")
    if status < 500:
        return InvalidRequest(f"{name} refused the request (HTTP {status}).")
    return UpstreamFault(f"{name} answered {status}.", hint="Retry.")


def passes_unchanged(error: MeterError, status: int, *, maps_faults: bool) -> bool:
    """Whether the provider's own error response goes to the client, rather than an error of ours.

    A response about the relay's account is for the operator. `maps_faults` is the endpoint's setting.
    """
    if isinstance(error, UpstreamRefusedAccount):
        return False
    return 400 <= status < (500 if maps_faults else 600)


def refuses_account(body: bytes, marks: Iterable[str]) -> bool:
    """Whether a body holds one of the provider's marks of a refused key."""
    return any(mark.encode() in body for mark in marks)


def unreadable_response(name: str, status: int, body: bytes) -> InvalidUpstreamResponse:
    """The error of a success status whose body is not what the dialect promises."""
    kind = "an empty body" if not body.strip() else "a body that is not a JSON response"
    return InvalidUpstreamResponse(f"{name} answered {status} with {kind}.", hint="Check its base_url, or retry.")


def incomplete_stream(name: str, *, has_started: bool) -> UpstreamFault:
    """The error of a stream that ended without its last event, finish reason or usage."""
    if not has_started:
        return InvalidUpstreamResponse(f"{name} answered with an empty stream.", hint="Retry.")
    return UpstreamDisconnected(f"{name} ended its stream before the response was complete.", hint="Retry.")
