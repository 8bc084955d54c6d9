"""Headers: of requests to providers, of responses to clients, and the whole response that is an error of ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from mcpmeter.catalog.spec import NANO
from mcpmeter.errors import MeterError, UnsupportedContentEncoding
from mcpmeter.http import content_encoding
from mcpmeter.http.asgi import Header
from mcpmeter.http.client.interface import UpstreamResponse
from mcpmeter.http.exchange import Exchange
from mcpmeter.records import Settlement, unpriced_items
from mcpmeter.relay.passed_headers import NAMES_OUT, PASSED_PREFIXES
from mcpmeter.routing.candidates import Candidate

REQUEST_ID_HEADERS: Final = ("x-generation-id", "x-request-id", "request-id")
"""OpenRouter's (its bill names calls by it), OpenAI's and most others', Anthropic's."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class RequestHeaders:
    """Addresses and headers of requests to providers, made once per credential, path and kind of response.

    They depend on configuration alone, so there are few, and a reload starts with an empty instance. An address that
    names the model is made per request, because callers choose the models.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[str, str, str, bool], tuple[str, Mapping[str, str]]] = {}

    def of(self, target: Candidate, path_name: str, *, stream: bool) -> tuple[str, Mapping[str, str]]:
        """The URL of a request and its headers, except those that pass from the client's."""
        credential = target.credential
        key = credential.id, credential.secret, path_name, stream
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(target, path_name, stream=stream)
        url, headers = made
        return url or target.upstream.provider.url(path_name, target.model), headers

    @staticmethod
    def _make(target: Candidate, path_name: str, *, stream: bool) -> tuple[str, Mapping[str, str]]:
        provider = target.upstream.provider
        url = "" if provider.names_model(path_name) else provider.url(path_name)
        return url, {
            "content-type": "application/json",
            "accept": "text/event-stream" if stream else "application/json",
            "accept-encoding": "identity",
            "user-agent": "mcpmeter",
            **provider.auth_headers(target.credential.secret, path_name),
        }


def passed_request_headers(wanted: frozenset[bytes], received: Mapping[bytes, bytes]) -> dict[str, str]:
    """The client's headers that its dialect passes to providers."""
    if wanted.isdisjoint(received):
        return {}
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in received.items() if name in wanted}


def response_headers(call_id: str, target: Candidate, attempts: int, response: UpstreamResponse) -> list[Header]:
    """The headers of the response of `target` as they go to the client."""
    families = target.upstream.provider.passed_headers
    passed = passed_response_headers(response.headers, target.credential.secret, families)
    return [call_id_header(call_id), *attempt_headers(target.upstream.provider.name, attempts), *passed]


def call_id_header(call_id: str) -> Header:
    """The call's id."""
    return b"x-mcpmeter-call-id", call_id.encode()


def attempt_headers(provider: str, attempts: int) -> tuple[Header, ...]:
    """The provider of the latest attempt, and how many attempts were made; none before the first."""
    if not attempts:
        return ()
    return (b"x-mcpmeter-provider", provider.encode()), (b"x-mcpmeter-attempts", b"%d" % attempts)


def passed_response_headers(
    headers: Mapping[str, str], secret: str = "", families: tuple[str, ...] = ()
) -> list[Header]:
    """A provider's response headers that are on the allow-list, or of its own families, without the relay's own key."""
    passed = []
    connection = headers.get("connection")
    hop_by_hop = {name.strip().lower() for name in connection.split(",")} if connection else ()
    name_out_of = NAMES_OUT.get
    for name, value in headers.items():
        name_out = name_out_of(name)
        if name_out is None and (name.startswith(PASSED_PREFIXES) or name.startswith(families)):
            name_out = name.encode("latin-1")
        if not name_out or name in hop_by_hop or (secret and secret in value):
            continue
        if value.isprintable() or not _CONTROL.search(value):
            passed.append((name_out, value.encode("latin-1", "replace")))
    return passed


def cost_headers(settlement: Settlement) -> list[Header]:
    """What the call cost, where that figure comes from, and how many items it lacks a price for, if any."""
    charge = settlement.charge
    if settlement.is_pending:
        return [(b"x-mcpmeter-cost-source", b"pending")]
    if charge is None or charge.source == "unpriced":
        return [(b"x-mcpmeter-cost-source", b"unpriced")]
    headers = [
        (b"x-mcpmeter-cost-usd", b"%d.%09d" % divmod(charge.nanousd, NANO)),
        (b"x-mcpmeter-cost-source", charge.source.encode()),
    ]
    usage = settlement.usage
    if usage is not None and (charge.lines or usage.unknown) and (unpriced := unpriced_items(usage, charge)):
        headers.append((b"x-mcpmeter-unpriced-items", b"%d" % len(unpriced)))
    return headers


def request_id(headers: Mapping[str, str]) -> str:
    """The id under which the provider's own records, and its bill, list the call; empty if it sent none."""
    for name in REQUEST_ID_HEADERS:
        if name in headers:
            value = headers[name][:128]
            return value if value.isascii() and value.isprintable() else ""
    return ""


async def send_error(
    exchange: Exchange, error: MeterError, body: bytes, call_id: str, more: Iterable[Header] = ()
) -> None:
    """Send an error of ours as the whole response, with `more` headers."""
    headers = [call_id_header(call_id), (b"content-type", b"application/json"), *more]
    if error.retry_after is not None:
        headers.append((b"retry-after", error.retry_after.encode("latin-1", "replace")))
    if isinstance(error, UnsupportedContentEncoding):
        headers.append((b"accept-encoding", content_encoding.ACCEPTED))
    if error.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.http_status == 408:  # RFC 9110, 15.5.9: the rest of a slow request body is not awaited
        headers.append((b"connection", b"close"))
    await exchange.respond(error.http_status, headers, body)
