"""Request headers for providers: each credential has its own."""

from __future__ import annotations

from mcpmeter.providers import load_providers
from mcpmeter.relay.headers import RequestHeaders
from mcpmeter.routing.routes import Credential

PROVIDERS = load_providers()


def test_headers_are_made_once_per_credential() -> None:
    headers, openai = RequestHeaders(), PROVIDERS["openai"]
    first, second = Credential(id="openai-1", secret="k-1"), Credential(id="openai-2", secret="k-2")
    first_headers = headers.of(openai, first, "chat", "gpt-4.1", stream=False)[1]
    assert headers.of(openai, first, "chat", "gpt-4.1", stream=False)[1] is first_headers
    assert first_headers["authorization"] == "Bearer k-1"
    assert headers.of(openai, second, "chat", "gpt-4.1", stream=False)[1]["authorization"] == "Bearer k-2"


def test_a_stream_is_requested_by_the_accept_header() -> None:
    headers, openai, credential = RequestHeaders(), PROVIDERS["openai"], Credential(id="openai-1", secret="k")
    kinds = [headers.of(openai, credential, "chat", "gpt-4.1", stream=stream)[1]["accept"] for stream in (True, False)]
    assert kinds == ["text/event-stream", "application/json"]


def test_a_path_may_have_another_header_for_the_key() -> None:
    headers, credential = RequestHeaders(), Credential(id="x-1", secret="k")
    provider = next(provider for provider in PROVIDERS.values() if provider.path_auth)
    path_name, auth = next(iter(provider.path_auth.items()))
    assert auth.header in headers.of(provider, credential, path_name, "gpt-4.1", stream=False)[1]
    usual = next(path for path in provider.paths if path not in provider.path_auth)
    assert provider.auth.header in headers.of(provider, credential, usual, "gpt-4.1", stream=False)[1]


def test_without_a_key_no_auth_header_is_sent() -> None:
    provider, without_key = PROVIDERS["ollama"], Credential(id="ollama-1")
    _, headers = RequestHeaders().of(provider, without_key, "chat", "gpt-4.1", stream=False)
    assert provider.auth.header not in headers
