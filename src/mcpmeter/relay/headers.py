"""Heads of answers: what a provider's becomes, what is ours, and a whole answer that is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from mcpmeter.catalog.spec import NANO
from mcpmeter.errors import MeterError
from mcpmeter.http.client.interface import Answer
from mcpmeter.http.exchange import Exchange, Header, length
from mcpmeter.records import Settlement
from mcpmeter.relay.passed_headers import NAMES_OUT, PASSED_PREFIXES

REQUEST_ID_HEADERS: Final = ("x-generation-id", "x-request-id", "request-id")
"""OpenRouter's (its bill names calls by it), OpenAI's and most others', Anthropic's."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


async def answer_error(
    exchange: Exchange, error: MeterError, body: bytes, call_id: str, more: Iterable[Header] = ()
) -> None:
    """Send an error of ours as the whole answer, `more` headers with it."""
    headers = [own_header(call_id), (b"content-type", b"application/json"), length(body), *more]
    if error.retry_after is not None:
        headers.append((b"retry-after", error.retry_after.encode("latin-1", "replace")))
    if error.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.http_status == 408:  # RFC 9110, 15.5.9: what may still come of the body is not waited for
        headers.append((b"connection", b"close"))
    await exchange.start(error.http_status, headers)
    await exchange.end(body)


def request_id(answer: Answer) -> str:
    """The id by which the provider's own records, and its bill, name the call; empty if it told none."""
    for name in REQUEST_ID_HEADERS:
        if name in answer.headers:
            told = answer.headers[name][:128]
            return told if told.isascii() and told.isprintable() else ""
    return ""


def own_header(call_id: str) -> Header:
    """The call's id."""
    return b"x-mcpmeter-call-id", call_id.encode()


@lru_cache(maxsize=1024)
def went_to(provider: str, attempts: int) -> tuple[Header, Header]:
    """Which provider was asked last, and how many attempts were made."""
    return (b"x-mcpmeter-provider", provider.encode()), (b"x-mcpmeter-attempts", b"%d" % attempts)


def cost_headers(settlement: Settlement) -> list[Header]:
    charge = settlement.charge
    if charge is None or charge.source == "unpriced":
        return [(b"x-mcpmeter-cost-source", b"unpriced")]
    return [
        (b"x-mcpmeter-cost-usd", b"%d.%09d" % divmod(charge.nanousd, NANO)),
        (b"x-mcpmeter-cost-source", charge.source.encode()),
    ]


def handed_on(headers: Mapping[str, str], secret: str = "") -> list[Header]:
    """Returns a provider's response headers that are on the allow-list and do not repeat the relay's own key."""
    found = []
    connection = headers.get("connection")
    named = {name.strip().lower() for name in connection.split(",")} if connection else ()
    name_out_of = NAMES_OUT.get
    for name, value in headers.items():
        name_out = name_out_of(name)
        if name_out is None and name.startswith(PASSED_PREFIXES):
            name_out = name.encode("latin-1")
        if not name_out or name in named or (secret and secret in value):
            continue
        if value.isprintable() or not _CONTROL.search(value):
            found.append((name_out, value.encode("latin-1", "replace")))
    return found
