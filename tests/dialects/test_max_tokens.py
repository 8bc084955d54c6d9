"""What each dialect says of the most that a call can take: what it reserves by."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects import tokens
from mcpmeter.dialects.anthropic_count_tokens import AnthropicCountTokens
from mcpmeter.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.dialects.base import Dialect
from mcpmeter.dialects.gemini_generate import GeminiGenerate
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.records import PathParams

MESSAGES = [{"role": "user", "content": "Hello"}]
CONTENTS = [{"role": "user", "parts": [{"text": "Hello"}]}]


@pytest.mark.parametrize(
    ("dialect", "body", "most"),
    [
        (OpenAiChat(), {"messages": MESSAGES}, None),
        (OpenAiChat(), {"messages": MESSAGES, "max_tokens": 50}, 50),
        (OpenAiChat(), {"messages": MESSAGES, "max_tokens": 50, "max_completion_tokens": 20}, 20),
        (OpenAiChat(), {"messages": MESSAGES, "max_tokens": 50, "n": 3}, 150),
        (OpenAiChat(), {"messages": MESSAGES, "max_tokens": None, "n": 3}, None),
        (OpenAiChat(), {"messages": MESSAGES, "max_tokens": "50"}, None),
        (OpenAiChat(), {"messages": MESSAGES, "max_tokens": -5}, None),
        (OpenAiChat(), {"messages": MESSAGES, "max_tokens": 1e300}, None),
        (OpenAiResponses(), {"input": "Hello"}, None),
        (OpenAiResponses(), {"input": "Hello", "max_output_tokens": 70}, 70),
        (OpenAiEmbeddings(), {"input": "Hello"}, 0),
        (AnthropicMessages(), {"messages": MESSAGES, "max_tokens": 9}, 9),
        (AnthropicCountTokens(), {"messages": MESSAGES}, 0),
        (GeminiGenerate(), {"contents": CONTENTS}, None),
        (GeminiGenerate(), {"contents": CONTENTS, "generationConfig": {"maxOutputTokens": 8}}, 8),
        (GeminiGenerate(), {"contents": CONTENTS, "generationConfig": {"maxOutputTokens": 8, "candidateCount": 2}}, 16),
        (GeminiGenerate(), {"contents": CONTENTS, "generationConfig": 7}, None),
    ],
)
def test_the_most_tokens_of_an_answer_are_the_callers_own_limit(dialect: Dialect, body: dict[str, Any], most):
    asked = dialect.read_request(json.dumps({"model": "m", **body}).encode(), PathParams(model="m"))
    assert asked.max_completion_tokens == most


def test_counting_tokens_takes_none():
    asked = AnthropicCountTokens().read_request(json.dumps({"model": "m", "messages": MESSAGES}).encode())
    assert asked.max_prompt_tokens == 0


@given(text=st.text(max_size=300))
def test_a_text_has_no_more_tokens_than_its_body_has_bytes(text):
    body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
    assert tokens.max_prompt_tokens(body) == len(body) >= len(text.encode())


@pytest.mark.parametrize("before", [b'"url":"data:image/png;base64,', b'"type":"base64","data":"', b'"data" : "'])
def test_a_picture_counts_by_its_kind_and_not_by_its_letters(before):
    letters = b"iVBORw0KGgo" * 20_000
    body = b'{"messages":[{' + before + letters + b'"}]}'
    rest = len(body) - len(letters)
    assert tokens.max_prompt_tokens(body) == rest + max(5_000, len(letters) // 50)


def test_a_long_word_that_is_no_media_counts_by_its_bytes():
    body = b'{"content":"' + b"A" * 50_000 + b'"}'
    assert tokens.max_prompt_tokens(body) == len(body)
