"""Upper bounds of tokens, by which a call reserves."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cases import CASES, MODEL

from mcpmeter.dialects.tokens import max_prompt_tokens


def gemini(**config: int) -> dict[str, Any]:
    return {"generationConfig": config}


@pytest.mark.parametrize(
    ("name", "limits", "bound"),
    [
        ("chat", {}, None),
        ("chat", {"max_tokens": 50}, 50),
        ("chat", {"max_tokens": 50, "max_completion_tokens": 20}, 20),
        ("chat", {"max_tokens": 50, "n": 3}, 150),
        ("chat", {"max_tokens": None, "n": 3}, None),
        ("chat", {"max_tokens": "50"}, None),
        ("chat", {"max_tokens": -5}, None),
        ("chat", {"max_tokens": 1e300}, None),
        ("responses", {}, None),
        ("responses", {"max_output_tokens": 70}, 70),
        ("embeddings", {}, 0),
        ("messages", {"max_tokens": 9}, 9),
        ("count_tokens", {"max_tokens": 9}, 0),
        ("generate", {}, None),
        ("generate", gemini(maxOutputTokens=8), 8),
        ("generate", gemini(maxOutputTokens=8, candidateCount=2), 16),
        ("generate", {"generationConfig": 7}, None),
        ("count_contents", gemini(maxOutputTokens=8), 0),
        ("embed_content", {}, 0),
        ("batch_embed_contents", {}, 0),
    ],
)
def test_the_callers_limit_bounds_a_response(name, limits, bound):
    body = json.dumps({**CASES[name].request, **limits}).encode()
    assert CASES[name].dialect.read_request(body, MODEL).max_completion_tokens == bound


@pytest.mark.parametrize("name", CASES)
def test_only_counting_tokens_bounds_the_prompt_to_nothing(name):
    bound = CASES[name].dialect.read_request(CASES[name].body(b'"x":1'), MODEL).max_prompt_tokens
    assert bound == (0 if name in ("count_tokens", "count_contents") else None)


@given(text=st.text(max_size=300))
def test_a_text_has_no_more_tokens_than_its_body_has_bytes(text):
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    assert max_prompt_tokens(body) == len(body) >= len(text.encode())


@pytest.mark.parametrize("before", [b'"url":"data:image/png;base64,', b'"type":"base64","data":"', b'"data" : "'])
def test_a_picture_counts_by_its_kind_and_not_by_its_length(before):
    letters = b"iVBORw0KGgo" * 20_000
    body = b'{"messages":[{' + before + letters + b'"}]}'
    assert max_prompt_tokens(body) == len(body) - len(letters) + max(5_000, len(letters) // 50)


def test_a_long_word_that_is_no_media_counts_by_its_bytes():
    body = b'{"content":"' + b"A" * 50_000 + b'"}'
    assert max_prompt_tokens(body) == len(body)
