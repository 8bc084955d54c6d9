"""Every provider that we ship has recorded bodies of each dialect that it speaks.

A user's own provider needs none: it is one file, as `test_providers.py` shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mcpmeter.dialects.anthropic_count_tokens import AnthropicCountTokens
from mcpmeter.dialects.base import Dialect, UnreadableResponse
from mcpmeter.dialects.gemini_count_tokens import GeminiCountTokens
from mcpmeter.dialects.gemini_embeddings import GeminiBatchEmbed, GeminiEmbed
from mcpmeter.providers import GENERIC, Provider, load_providers

GOLDEN = Path(__file__).parents[1] / "golden"
BUILT_IN = load_providers()


class Bodies(NamedTuple):
    """Where the bodies of a path lie: `answer.json` is the owner's own, `answer_NAME.json` any other provider's."""

    folder: str
    owner: str
    names: tuple[str, ...]


ANSWER, BOTH = ("answer.json",), ("answer.json", "stream.sse")
BODIES = {
    "chat": Bodies("openai_chat", "openai", BOTH),
    "responses": Bodies("openai_responses", "openai", BOTH),
    "embeddings": Bodies("openai_embeddings", "openai", ANSWER),
    "messages": Bodies("anthropic_messages", "anthropic", BOTH),
    "count_tokens": Bodies("anthropic_count_tokens", "anthropic", ANSWER),
    "generate": Bodies("gemini_generate", "gemini", ANSWER),
    "generate_stream": Bodies("gemini_generate", "gemini", ("stream.sse",)),
    "generate_array": Bodies("gemini_generate", "gemini", ("answer_array.json",)),
    "count_contents": Bodies("gemini_count_tokens", "gemini", ANSWER),
    "embed_content": Bodies("gemini_embeddings", "gemini", ANSWER),
    "batch_embed_contents": Bodies("gemini_embeddings", "gemini", ("answer_batch.json",)),
}
COUNTED: dict[str, Dialect] = {  # The folders that no other test reads.
    "anthropic_count_tokens/answer.json": AnthropicCountTokens(),
    "gemini_count_tokens/answer.json": GeminiCountTokens(),
    "gemini_embeddings/answer.json": GeminiEmbed(),
    "gemini_embeddings/answer_without_usage.json": GeminiEmbed(),
    "gemini_embeddings/answer_batch.json": GeminiBatchEmbed(),
}


def expected_of(folder: str) -> Mapping[str, Any]:
    expected: dict[str, Any] = json.loads((GOLDEN / folder / "expected.json").read_text())
    return expected


def wanted(provider: Provider, path: str) -> list[str]:
    """The bodies that a provider has to have for a path. What is `generic` speaks as the dialect's owner does."""
    folder, owner, names = BODIES[path]
    if provider.name in (owner, GENERIC):
        return [f"{folder}/{name}" for name in names]
    ending = f"_{provider.name.replace('-', '_')}."
    return [f"{folder}/{name.replace('.', ending)}" for name in names]


def missing(providers: Mapping[str, Provider]) -> list[str]:
    bodies = [name for provider in providers.values() for path in provider.paths for name in wanted(provider, path)]
    return [name for name in bodies if name.partition("/")[2] not in expected_of(name.partition("/")[0])]


def test_every_provider_has_a_body_and_where_it_streams_a_stream_of_each_dialect_that_it_speaks():
    assert missing(BUILT_IN) == []


def test_no_path_is_left_out():
    assert BODIES.keys() == {path for provider in BUILT_IN.values() for path in provider.paths}


def test_a_provider_that_is_shipped_without_bodies_is_told_so(tmp_path):
    paths = '[paths]\nchat = "/chat"\nembeddings = "/embeddings"\n'
    (tmp_path / "ac-me.toml").write_text(f'name = "ac-me"\notel_name = "acme"\n{paths}')
    assert missing(load_providers(tmp_path)) == [
        "openai_chat/answer_ac_me.json",
        "openai_chat/stream_ac_me.sse",
        "openai_embeddings/answer_ac_me.json",
    ]


def test_every_counted_body_has_its_expectation():
    folders = {name.partition("/")[0] for name in COUNTED}
    files = {f"{folder}/{file.name}" for folder in folders for file in (GOLDEN / folder).iterdir()}
    assert files == COUNTED.keys() | {f"{folder}/expected.json" for folder in folders}


@pytest.mark.parametrize("name", COUNTED)
def test_a_count_and_a_vector_are_read_for_all_that_they_say(name):
    read = COUNTED[name].read_response((GOLDEN / name).read_bytes())
    folder, _, file = name.partition("/")
    expected = expected_of(folder)[file]
    usage = read.usage
    assert (usage is None) == (expected["usage"] is None)
    assert usage is None or {detail: getattr(usage, detail) for detail in expected["usage"]} == expected["usage"]
    said = {field: getattr(read, field) for field in expected if field != "usage"}
    assert {"usage": expected["usage"], **said} == expected
    assert not read.bad_usage


@pytest.mark.parametrize("name", COUNTED)
def test_a_count_or_a_vector_that_breaks_off_at_any_byte_is_none(name):
    body = (GOLDEN / name).read_bytes()
    for place in range(len(body)):
        with pytest.raises(UnreadableResponse):
            COUNTED[name].read_response(body[:place])
