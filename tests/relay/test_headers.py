"""Addresses and headers of requests to providers: each credential has its own."""

from __future__ import annotations

import pytest

from mcpmeter.providers import Provider, load_providers
from mcpmeter.records import Call, Charge, ChargeLine, Settlement, Usage, UsageItem
from mcpmeter.relay.headers import RequestHeaders, cost_headers
from mcpmeter.routing.candidates import Candidate
from mcpmeter.routing.routes import Credential, Upstream

PROVIDERS = load_providers()
FIRST, SECOND = Credential(id="openai-1", secret="k-1"), Credential(id="openai-2", secret="k-2")


def target(provider: Provider, credential: Credential, model: str = "gpt-4.1") -> Candidate:
    return Candidate(Upstream(provider=provider), model, credential)


def test_headers_are_made_once_per_credential() -> None:
    made, openai = RequestHeaders(), PROVIDERS["openai"]
    _, first = made.of(target(openai, FIRST), "chat", stream=False)
    _, again = made.of(target(openai, FIRST, "other"), "chat", stream=False)
    _, second = made.of(target(openai, SECOND), "chat", stream=False)
    assert again is first
    assert (first["authorization"], second["authorization"]) == ("Bearer k-1", "Bearer k-2")


def test_an_address_that_names_the_model_is_the_models_own() -> None:
    made, gemini = RequestHeaders(), PROVIDERS["gemini"]
    urls = [made.of(target(gemini, FIRST, model), "generate", stream=False)[0] for model in ("a", "b")]
    assert urls == [gemini.url("generate", model) for model in ("a", "b")]


def test_a_stream_is_requested_by_the_accept_header() -> None:
    made, openai = RequestHeaders(), PROVIDERS["openai"]
    kinds = [made.of(target(openai, FIRST), "chat", stream=stream)[1]["accept"] for stream in (True, False)]
    assert kinds == ["text/event-stream", "application/json"]


def test_a_path_may_have_another_header_for_the_key() -> None:
    made, provider = RequestHeaders(), next(provider for provider in PROVIDERS.values() if provider.path_auth)
    path_name, auth = next(iter(provider.path_auth.items()))
    usual = next(path for path in provider.paths if path not in provider.path_auth)
    assert auth.header in made.of(target(provider, FIRST), path_name, stream=False)[1]
    assert provider.auth.header in made.of(target(provider, FIRST), usual, stream=False)[1]


def test_without_a_key_no_auth_header_is_sent() -> None:
    provider = PROVIDERS["ollama"]
    _, headers = RequestHeaders().of(target(provider, Credential(id="ollama-1")), "chat", stream=False)
    assert provider.auth.header not in headers


@pytest.mark.parametrize(
    ("charge", "usage", "headers"),
    [
        (Charge(nanousd=10**9, source="listed"), Usage(), {"cost-usd": "1.000000000", "cost-source": "listed"}),
        (
            Charge(nanousd=7, source="listed", lines=(ChargeLine("prompt", 1, 7), ChargeLine("web_search", 1, None))),
            Usage(unknown=(UsageItem("usage.new", 1),)),
            {"cost-usd": "0.000000007", "cost-source": "listed", "unpriced-items": "2"},
        ),
        (Charge(lines=(ChargeLine("prompt", 1, None),)), Usage(), {"cost-source": "unpriced"}),
    ],
)
def test_the_cost_names_the_number_of_its_unpriced_items(charge: Charge, usage: Usage, headers: dict[str, str]) -> None:
    call = Call(id="call_1", started_at_ns=1, endpoint="/", method="POST")
    settlement = Settlement(call=call, ended_at_ns=1, duration_ns=1, status="200", usage=usage, charge=charge)
    expected = {f"x-mcpmeter-{name}": value for name, value in headers.items()}
    assert {name.decode(): value.decode() for name, value in cost_headers(settlement)} == expected
