"""Headers of requests that are kept: each credential's own, and none of another's."""

from __future__ import annotations

from mcpmeter.providers import load_providers
from mcpmeter.relay.headers import RequestHeaders
from mcpmeter.routing.routes import Credential

PROVIDERS = load_providers()


def test_each_credential_goes_in_its_own_headers_and_is_made_into_them_once() -> None:
    heads, openai = RequestHeaders(), PROVIDERS["openai"]
    first, second = Credential(id="openai-1", secret="k-1"), Credential(id="openai-2", secret="k-2")
    made = heads.of(openai, first, "chat", stream=False)
    assert heads.of(openai, first, "chat", stream=False) is made
    assert made["authorization"] == "Bearer k-1"
    assert heads.of(openai, second, "chat", stream=False)["authorization"] == "Bearer k-2"


def test_a_stream_is_asked_for_as_one() -> None:
    heads, openai, credential = RequestHeaders(), PROVIDERS["openai"], Credential(id="openai-1", secret="k")
    kinds = [heads.of(openai, credential, "chat", stream=stream)["accept"] for stream in (True, False)]
    assert kinds == ["text/event-stream", "application/json"]


def test_a_path_may_have_another_header_for_the_key() -> None:
    heads, credential = RequestHeaders(), Credential(id="x-1", secret="k")
    provider = next(provider for provider in PROVIDERS.values() if provider.path_auth)
    path_name, auth = next(iter(provider.path_auth.items()))
    assert auth.header in heads.of(provider, credential, path_name, stream=False)
    usual = next(path for path in provider.paths if path not in provider.path_auth)
    assert provider.auth.header in heads.of(provider, credential, usual, stream=False)


def test_without_a_key_no_header_speaks_of_one() -> None:
    heads, provider = RequestHeaders(), PROVIDERS["ollama"]
    assert provider.auth.header not in heads.of(provider, Credential(id="ollama-1"), "chat", stream=False)
