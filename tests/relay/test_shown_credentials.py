"""Which error texts show a credential, in whatever form, and which do not."""

from __future__ import annotations

import base64
import gzip
import json
import time
from urllib.parse import quote

import pytest

from mcpmeter.relay.shown_credentials import MAX_BYTES, shows_credential

KEY = "sk-proj-Ab3dEf6hIj9kLmN0pQrStUvWxYz12345abcd"
ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
NESTED = json.dumps({"raw": json.dumps({"raw": json.dumps({"message": f"{KEY}"}).replace("sk-", "\\u0073k\\u002d")})})

SHOWN = {
    "whole": KEY,
    "in upper case": KEY.upper(),
    "a part": f"starts with {KEY[8:19]}",
    "masked by stars": f"{KEY[:8]}{'*' * 39}{KEY[-4:]}",
    "the end alone": f"Your api key: ****{KEY[-4:]} is invalid",
    "masked by dots": f"sk-...{KEY[-4:]}",
    "masked by an ellipsis": f"{KEY[:10]}…",
    "masked by x": f"{KEY[:8]}xxxxxxxx",
    "masked by bullets": f"••••{KEY[-3:]}",
    "redacted": f"[REDACTED]{KEY[-4:]}",
    "escaped": ESCAPED,
    "an escaped slash before it": f"https:\\/\\/x\\/{KEY}",
    "escaped three times": NESTED,
    "in an address": quote(f"Bearer {KEY}", safe="").replace("k", "%6B"),
    "as entities": "".join(f"&#{ord(letter)};" for letter in KEY),
    "as base64": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "as base64url": base64.urlsafe_b64encode(f"?>Bearer {KEY}".encode()).decode(),
    "as hex": KEY.encode().hex(),
    "escaped for another language": "".join(f"\\\\x{ord(letter):02x}" for letter in KEY),
    "split by stars": "*".join(KEY[at : at + 4] for at in range(0, len(KEY), 4)),
    "split by blanks": " ".join(KEY),
    "with invisible characters": "\u200b".join(KEY),
    "with soft hyphens": "\u00ad".join(KEY),
    "in full width": "".join(chr(ord(letter) + 0xFEE0) for letter in KEY),
    "another OpenAI key": "sk-Zz9yXx8wVv7uTt6sRr5q",
    "another OpenAI key, masked": "Incorrect API key provided: sk-abc*****wxyz.",
    "an Anthropic key": "sk-ant-api03-Zz9yXx8wVv7u",
    "a Google key": "https://host/v1?key=AIzaSyA1234567890abcdefghij",
    "a Groq key": "gsk_abcdefghijklmnop1234",
    "an xAI key": "xai-abcdefghijklmnop1234",
    "a bearer token": "Authorization: Bearer abcd1234efgh",
    "a parameter": "api_key=abcdef123456",
    "another key, masked": "Incorrect API key provided: 8f2a****9d3c",
}
HARMLESS = (
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    "The model `gpt-9` does not exist or you do not have access to it.",
    "Rate limit reached for gpt-4 in organization org-Ab12Cd34Ef56Gh78 on tokens per min (TPM): Limit 10000.",
    "Please try again in 6s. Visit https://platform.openai.com/account/rate-limits to learn more...",
    "messages.0.content: Input should be a valid list",
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "You need to provide your API key in an Authorization header using Bearer auth (Authorization: Bearer YOUR_KEY)",
    "Bearer authentication is required",
    "request_id: req_011CSHoEeqs5C35K2UUqR7Fy, chatcmpl-1234567890abcdef1234567890",
    "see task-1234567890123456789012 --- **bold** xxx",
)


@pytest.mark.parametrize("form", SHOWN)
def test_a_credential_is_found_in_every_form(form):
    text = SHOWN[form]
    body = text if "\\" in text else json.dumps({"error": {"message": text}}, ensure_ascii=False)
    assert shows_credential(body.encode(), KEY)


@pytest.mark.parametrize("text", HARMLESS)
def test_an_ordinary_error_shows_none(text):
    assert not shows_credential(json.dumps({"error": {"message": text}}).encode(), KEY)


@pytest.mark.parametrize("placeholder", ["", "none", "ollama"])
def test_a_servers_placeholder_key_is_an_ordinary_word(placeholder):
    assert not shows_credential(b'{"error": "nonesuch ollamas"}', placeholder)


def test_a_text_too_long_to_search_counts_as_showing_one():
    assert not shows_credential(b"a" * MAX_BYTES, KEY)
    assert shows_credential(b"a" * (MAX_BYTES + 1), KEY)


@pytest.mark.parametrize(
    "unit",
    [
        "sk-",
        "sk-x",
        "\\\\",
        '\\"',
        "%25",
        "&amp;",
        "...",
        "abcd",
        "Bearer aaaaaaa ",
        "api_key=aaaa ",
        "eyJ",
        "*a",
        "\u200b",
        "\ufdfa",
        KEY[:9],
    ],
)
def test_the_search_is_linear_in_the_text(unit):
    def seconds(size: int) -> float:
        text = (unit.encode() * size)[:size]
        times = []
        for _ in range(3):
            began = time.thread_time()
            shows_credential(text, KEY)
            times.append(time.thread_time() - began)
        return min(times)

    assert seconds(MAX_BYTES) < 4 * seconds(MAX_BYTES // 2) + 0.005


def test_bytes_that_are_no_text_are_searched_too():
    assert shows_credential(b"\xff\xfe" + KEY.encode(), KEY)
    assert not shows_credential(gzip.compress(b"compressed"), KEY)
