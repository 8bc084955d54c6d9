"""The allow-list of response headers, against what the relay itself reads."""

from __future__ import annotations

import pytest

from mcpmeter.providers import load_providers
from mcpmeter.quota.rate_limit_headers import NAMES_READ
from mcpmeter.relay.headers import REQUEST_ID_HEADERS, passed_response_headers

COSTS = {provider.cost_header for provider in load_providers().values() if provider.cost_header}
SECRET = "sk-upstream-credential-0123456789"


@pytest.mark.parametrize("name", sorted({*NAMES_READ, *REQUEST_ID_HEADERS, *COSTS}))
def test_each_header_the_relay_reads_passes_without_the_key(name: str) -> None:
    assert passed_response_headers({name: "1"}, SECRET) == [(name.encode(), b"1")]
    assert passed_response_headers({name: f"of {SECRET}"}, SECRET) == []


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\x00", "\x7f"])
def test_a_value_with_control_characters_does_not_pass(value: str) -> None:
    assert passed_response_headers({"x-request-id": value}) == []
