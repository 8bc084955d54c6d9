"""What errors of providers mean, by bodies from their documentation and from public reports."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.providers import load_providers
from mcpmeter.relay.error_meaning import meaning_of, retry_seconds, with_retry_after
from mcpmeter.routing.retries import retry_after_ns

PROVIDERS = load_providers()


def error(message: str = "", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


def openrouter(message: str = "", **metadata: Any) -> dict[str, Any]:
    return error(message, code=403, metadata=metadata)


BODIES = {
    "openai's quota": ("openai", 429, error("You exceeded your current quota", code="insufficient_quota"), "account"),
    "openai's rate limit": ("openai", 429, error("Rate limit reached", code="rate_limit_exceeded"), ""),
    "openai's forbidden model": ("openai", 403, error("no access", code="model_not_found"), "configuration"),
    "a filtered prompt at azure": ("azure-openai", 403, error(innererror={"code": "content_filter"}), "caller"),
    "a country": ("openai", 403, error("no", code="unsupported_country_region_territory"), ""),
    "anthropic without credit": (
        "anthropic",
        400,
        {"type": "error", **error("Your credit balance is too low to access the API.", type="invalid_request_error")},
        "account",
    ),
    "anthropic's bad request": ("anthropic", 400, error("max_tokens: required", type="invalid_request_error"), ""),
    "google's key": ("gemini", 400, error(details=[{"reason": "API_KEY_INVALID"}]), "account"),
    "google's key, in a list": ("gemini", 400, [error(details=[{"reason": "API_KEY_EXPIRED"}])], "account"),
    "a suspended project": ("gemini", 403, error(details=[{"reason": "CONSUMER_SUSPENDED"}]), "account"),
    "flagged input": (
        "openrouter",
        403,
        openrouter("moderation", reasons=["x"], flagged_input="insufficient_quota"),
        "caller",
    ),
    "a key's limit": ("openrouter", 403, error("Key limit exceeded (monthly limit). Manage it", code=403), "account"),
    "a workspace's budget": ("openrouter", 403, openrouter("Workspace monthly budget of $5 exceeded. Ask"), "account"),
    "a limit's source": ("openrouter", 403, openrouter(limit_source="openrouter_key_limit"), "account"),
    "a disabled tool": ("openrouter", 403, openrouter("The server tool web_search is disabled here"), "configuration"),
    "a budget in flight": ("openrouter", 402, openrouter(limit_source="openrouter_in_flight_budget"), "rate_limit"),
    "an empty account": ("openrouter", 402, error("Insufficient credits", code=402), ""),
    "litellm's budget": ("generic", 400, error("Budget has been exceeded!", type="budget_exceeded"), "account"),
    "xai's credit": (
        "generic",
        429,
        {"code": "x", "error": "Your team 16f2 has either used all available credits or reached its limit"},
        "account",
    ),
    "xai's credit at xai": (
        "xai",
        403,
        {"code": "permission-denied", "error": "Your team 16f2 has either used all available credits or reached"},
        "account",
    ),
    "a workspace at anthropic": (
        "anthropic",
        400,
        error("You have reached your specified workspace API usage limits.", type="invalid_request_error"),
        "account",
    ),
    "google's prepayment": ("gemini", 429, error("Your prepayment credits are depleted. Please go to"), "account"),
    "another's file": ("gemini", 403, error("You do not have permission to access the File x or it may"), "caller"),
    "groq's spend limit": ("groq", 400, error("blocked", code="blocked_api_access"), "account"),
    "dashscope's arrears": ("dashscope", 400, {"code": "Arrearage", "message": "Access denied"}, "account"),
    "dashscope's free tier": ("dashscope", 403, error("exhausted", code="AllocationQuota.FreeTierOnly"), "account"),
    "moonshot's balance": ("generic", 429, error("suspended", type="exceeded_current_quota_error"), "account"),
    "zhipu's balance": ("generic", 429, error("no resources", code="1113"), "account"),
    "a block of cloudflare": ("openai", 403, {"title": "Error 1020", "cloudflare_error": True}, "edge"),
    "a prompt that repeats a mark": ("openai", 400, error("Invalid value: 'insufficient_quota'"), ""),
    "a prompt that repeats a message": ("generic", 400, error("Invalid: Key limit exceeded (total)"), ""),
    "a server's fault": ("openai", 500, error(code="insufficient_quota"), ""),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_says_whose_fault_an_error_is(name: str) -> None:
    provider, status, body, meaning = BODIES[name]
    assert meaning_of(PROVIDERS[provider], status, {}, json.dumps(body).encode()) == meaning


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "text/html; charset=UTF-8"}, b"blocked"),
        ({}, b"\n<!DOCTYPE html><title>Just a moment"),
        ({"content-type": "text/plain"}, b"error code: 1020"),
    ],
)
def test_a_page_with_403_is_of_the_edge(headers: dict[str, str], body: bytes) -> None:
    assert meaning_of(PROVIDERS["openai"], 403, headers, body) == "edge"
    assert meaning_of(PROVIDERS["openai"], 404, headers, body) == ""


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo"}


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (error(details=[{**RETRY_INFO, "retryDelay": "34.074824224s"}]), "34.074824224"),
        ([error(details=[{"@type": "x"}, {**RETRY_INFO, "retryDelay": "7s"}])], "7"),
        (error(details=[{**RETRY_INFO, "retryDelay": {"seconds": "34", "nanos": 5}}]), "34"),
        (error(metadata={"retry_after_seconds": 3}), "3"),
        (error(details=[{**RETRY_INFO, "retryDelay": "999999999s"}]), "86400"),
        (error(details=[{**RETRY_INFO, "retryDelay": "-1s"}]), None),
        (error(details=[{"@type": "x", "retryDelay": "7s"}]), None),
        (error(metadata={"retry_after_seconds": True}), None),
    ],
)
def test_a_body_says_how_long_to_wait(body: Any, seconds: str | None) -> None:
    assert retry_seconds(json.dumps(body).encode()) == (None if seconds is None else Decimal(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds", "waits"), [({}, "0.2", 1), ({"retry-after": "9"}, "2.5", 9), ({"retry-after": "1"}, "7", 7)]
)
def test_the_longer_of_header_and_body_counts(headers: dict[str, str], seconds: str, waits: int) -> None:
    assert retry_after_ns(with_retry_after(headers, Decimal(seconds)), 0) == waits * 10**9


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("details"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("error", "details", "metadata", "code", "message", "@type")), inner)
    ),
    max_leaves=12,
)


@given(body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), status=st.integers(400, 499))
def test_any_body_has_a_meaning(body: bytes, status: int) -> None:
    for provider in ("gemini", "openrouter"):
        assert meaning_of(PROVIDERS[provider], status, {}, body) in ("", "account", "caller", "configuration", "edge")
    assert retry_seconds(body) is None
