"""Host and Origin headers are read strictly, and equal ones are equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.http.origins import Authority, Origin, authority_of, origin_of


@pytest.mark.parametrize(
    ("text", "authority"),
    [
        ("Meter.Example.COM", Authority("meter.example.com", None)),
        ("meter.example.com.:8000", Authority("meter.example.com", 8000)),
        ("my_host:1", Authority("my_host", 1)),
        ("127.0.0.1:80", Authority("127.0.0.1", 80)),
        ("[0:0::1]:9", Authority("[::1]", 9)),
    ],
)
def test_a_host_is_brought_to_one_form(text: str, authority: Authority) -> None:
    assert authority_of(text) == authority


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "a b", "a:", "a:b", "a:80:90", "a:65536", "a:٣", "user@a", "a/b", "a?b", "a#b", "a,b", "a\\b"),
        *("[::1", "[g]", "::1", "[::1]x", "[1.2.3.4]", "a\n", "%61", "\xe4", "x" * 255),
    ],
)
def test_anything_else_is_no_host(text: str) -> None:
    assert authority_of(text) is None


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://a", Origin("http", "a", 80)),
        ("HTTP://A:80", Origin("http", "a", 80)),
        ("https://a", Origin("https", "a", 443)),
        ("http://a:443", Origin("http", "a", 443)),
        ("app://obsidian.md", Origin("app", "obsidian.md", None)),
        ("vscode-webview://1a2b-3c4d", Origin("vscode-webview", "1a2b-3c4d", None)),
    ],
)
def test_an_origin_is_scheme_host_and_port(text: str, origin: Origin) -> None:
    assert origin_of(text) == origin


@pytest.mark.parametrize("text", ["null", "", "a", "//a", "http:a", "http://", "http://a/", "http://a b", "1x://a"])
def test_anything_else_is_no_origin(text: str) -> None:
    assert origin_of(text) is None


@given(st.text(max_size=60))
def test_any_text_is_read_without_a_fault(text: str) -> None:
    host, origin = authority_of(text), origin_of(text)
    assert host is None or 0 < len(host.host) <= len(text) + 40
    assert origin is None or "://" in text
