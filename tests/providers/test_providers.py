"""Provider files: built-in data, strict reading, address checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcpmeter.config import load
from mcpmeter.errors import ConfigInvalid
from mcpmeter.providers import GENERIC, base_url_fault, load_providers
from mcpmeter.routing.routes import Upstream, route

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault

BUILT_IN = load_providers()
FILE = """\
name = "acme"
order = 5
base_url = "https://llm.acme.example/v1"
key_env = "ACME_API_KEY"
otel_name = "acme"
models = ["acme-*"]

[auth]
header = "x-api-key"
scheme = ""

[paths]
chat = "/chat/completions"
"""


@pytest.mark.parametrize(
    ("name", "address", "variable", "otel"),
    [
        ("holysheep", "https://api.holysheep.ai/v1", "HOLYSHEEP_API_KEY", "holysheep"),
        ("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", "openai"),
        ("anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY", "anthropic"),
        ("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY", "gcp.gemini"),
        ("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", "deepseek"),
    ],
)
def test_the_promised_providers_are_built_in(name: str, address: str, variable: str, otel: str) -> None:
    provider = BUILT_IN[name]
    assert provider.url("chat") == f"{address}/chat/completions"
    assert (provider.key_env, provider.otel_name) == (variable, otel)
    assert provider.auth_headers("k") == {"authorization": "Bearer k"}
    assert provider.price_list or provider.genai_prices_id


def test_the_order_is_promised_and_generic_is_last() -> None:
    names = list(BUILT_IN)
    assert names[:5] == ["holysheep", "openai", "anthropic", "gemini", "deepseek"]
    assert sorted(names[5:-1]) == [
        "azure-deployments", "azure-openai", "dashscope", "groq", "mistral", "ollama", "openrouter", "perplexity",
        "together", "vllm", "xai",
    ]  # fmt: skip
    assert names[-1] == GENERIC
    assert not BUILT_IN[GENERIC].key_env


@pytest.mark.parametrize(
    ("name", "path", "url", "header"),
    [
        ("anthropic", "messages", "https://api.anthropic.com/v1/messages", "x-api-key"),
        ("anthropic", "count_tokens", "https://api.anthropic.com/v1/messages/count_tokens", "x-api-key"),
        (
            "gemini",
            "generate",
            "https://generativelanguage.googleapis.com/v1beta/models/a%2Fb:generateContent",
            "x-goog-api-key",
        ),
        (
            "gemini",
            "batch_embed_contents",
            "https://generativelanguage.googleapis.com/v1beta/models/a%2Fb:batchEmbedContents",
            "x-goog-api-key",
        ),
        ("openai", "responses", "https://api.openai.com/v1/responses", "authorization"),
        ("groq", "chat", "https://api.groq.com/openai/v1/chat/completions", "authorization"),
        ("openrouter", "chat", "https://openrouter.ai/api/v1/chat/completions", "authorization"),
    ],
)
def test_each_dialect_has_its_path_and_key_header(name: str, path: str, url: str, header: str) -> None:
    provider = BUILT_IN[name]
    assert provider.url(path, "a/b") == url
    assert list(provider.auth_headers("k", path)) == [header]


def test_azure_has_two_kinds_of_addresses() -> None:
    resource = "https://acme.openai.azure.com"
    newer = BUILT_IN["azure-openai"].renamed("azure", base_url=f"{resource}/openai/v1")
    older = BUILT_IN["azure-deployments"].renamed("azure", base_url=resource)
    assert newer.url("chat", "our-gpt") == f"{resource}/openai/v1/chat/completions"
    deployment = f"{resource}/openai/deployments/our-gpt"
    assert older.url("chat", "our-gpt") == f"{deployment}/chat/completions?api-version=2024-10-21"
    assert older.url("embeddings", "our-gpt") == f"{deployment}/embeddings?api-version=2024-10-21"
    assert newer.auth_headers("k", "chat") == older.auth_headers("k", "chat") == {"api-key": "k"}


def test_the_cost_in_a_header_is_holysheeps_and_litellms() -> None:
    assert {name: provider.cost_header for name, provider in BUILT_IN.items() if provider.cost_header} == {
        "holysheep": "x-cost-usd",
        "generic": "x-litellm-response-cost",
    }


def test_a_new_provider_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "acme.toml").write_text(FILE)
    configured = load(None, {"ACME_API_KEY": "k-1"}, load_providers(tmp_path))
    (acme,) = configured.upstreams(load_providers(tmp_path))
    chosen = route("acme-7", [Upstream(provider=BUILT_IN["openai"], api_key="k"), acme])
    assert chosen.upstream.provider.url("chat") == "https://llm.acme.example/v1/chat/completions"
    assert chosen.upstream.provider.auth_headers(chosen.upstream.api_key) == {"x-api-key": "k-1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("models", "modles"), "unknown key 'modles'; did you mean 'models'?"),
        (("scheme", "shceme"), "unknown key 'shceme'; did you mean 'scheme'?"),
        (("order = 5", 'order = "5"'), "Expected `int`, got `str` - at `$.order`"),
        (('name = "acme"\n', ""), "missing required"),
        (('name = "acme"', 'name = "Acme/1"'), "matching regex"),
        (('name = "acme"', 'name = "emca"'), "the file must be 'emca.toml'"),
        (("https://", "ftp://"), "'base_url' must begin with http"),
        (("example/v1", "example/v1/"), "'base_url' must not end with '/'"),
        (("https://llm", "https://me:pw@llm"), "'base_url' must hold no user name"),
        (('"ACME_API_KEY"', '"ACME KEY"'), "'key_env'"),
        (("[paths]", "[path_auth.messages]\nheader = 'x'\n\n[paths]"), "'path_auth' names 'messages'"),
        (("[paths]", "[path_auth.chat]\nheadr = 'x'\n\n[paths]"), "unknown key 'headr'"),
        (('"/chat', '"chat'), "each path begins with '/'"),
        (("[paths]\n", "[paths\n"), "line 12"),
        (('["acme-*"]', '["acme-*", ""]'), "length >= 1"),
        (('"x-api-key"', '"x api key"'), "matching regex"),
        (("[paths]", "[usage_aliases]\n'usage.x' = 'y'\n\n[paths]"), "'usage_aliases' gives 'usage.x' to 'y'"),
    ],
)
def test_a_faulty_file_is_refused_by_name(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in FILE
    (tmp_path / "acme.toml").write_text(FILE.replace(*change, 1))
    with pytest.raises(ConfigInvalid, match=r"^acme\.toml: ") as caught:
        load_providers(tmp_path)
    assert message in str(caught.value)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "acme.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigInvalid, match=r"acme\.toml"):
        load_providers(tmp_path)


def test_renaming_changes_name_address_and_prices_only() -> None:
    renamed = BUILT_IN["openai"].renamed("second", base_url="http://127.0.0.1:1/v1/", price_list="ours")
    assert (renamed.name, renamed.base_url, renamed.price_list) == ("second", "http://127.0.0.1:1/v1", "ours")
    assert (renamed.otel_name, renamed.models) == ("openai", BUILT_IN["openai"].models)
    assert BUILT_IN[GENERIC].renamed("vllm", base_url="http://x").otel_name == "vllm"


def test_configuration_adds_aliases_to_those_of_a_file() -> None:
    first = BUILT_IN[GENERIC].renamed("x", usage_aliases={"usage.a": "cached_read"})
    assert first.renamed("x", usage_aliases={"usage.b": "free"}).usage_aliases == {
        "usage.a": "cached_read",
        "usage.b": "free",
    }


def test_without_a_key_no_header_is_sent() -> None:
    assert BUILT_IN["openai"].auth_headers("") == {}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "http://",
        "file:///etc/passwd",
        "http://a b/",
        "http://a/?",
        "http://a/#",
        "http://a/\x7f",
        "http://[::1",
    ],
)
def test_a_faulty_address_is_explained(url: str) -> None:
    assert base_url_fault(url)


@unhurried
@given(url=st.text() | st.text().map("https://".__add__))
def test_checking_an_address_never_raises_or_quotes_it(url: str) -> None:
    fault = base_url_fault(url)
    assert len(url) < 20 or url not in fault


ACTED_UPON = (
    "x-accel-redirect", "x-sendfile", "x-lighttpd-send-file", "set-cookie", "clear-site-data", "refresh", "location",
    "content-location", "access-control-allow-origin", "www-authenticate", "content-security-policy", "link", "alt-svc",
    "x-goog-upload-url", "x-litellm-model-api-base", "x-mcpmeter-call-id", "strict-transport-security",
)  # fmt: skip


def test_no_providers_own_headers_are_acted_upon():
    families = {family for provider in load_providers().values() for family in provider.passed_headers}
    assert "x-groq-" in families
    assert [name for name in ACTED_UPON if name.startswith(tuple(families))] == []


def test_a_header_of_a_provider_passes_from_it_alone():
    known = load_providers()
    assert "x-groq-region".startswith(known["groq"].passed_headers)
    assert not "x-groq-region".startswith(known["openai"].passed_headers)
