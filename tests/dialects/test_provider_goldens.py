"""Every shipped provider has recorded bodies of each dialect that it speaks. A user's own provider needs none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mcpmeter.providers import GENERIC, Provider, load_providers

GOLDEN = Path(__file__).parents[1] / "golden"
BUILT_IN = load_providers()


class Bodies(NamedTuple):
    """The recorded bodies of a path: `answer.json` is its owner's, `answer_NAME.json` another provider's."""

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


def expected_of(folder: str) -> Mapping[str, Any]:
    expected: dict[str, Any] = json.loads((GOLDEN / folder / "expected.json").read_text())
    return expected


def wanted(provider: Provider, path: str) -> list[str]:
    """The bodies that a provider needs for a path. `generic` uses those of the dialect's owner."""
    folder, owner, names = BODIES[path]
    if provider.name in (owner, GENERIC):
        return [f"{folder}/{name}" for name in names]
    ending = f"_{provider.name.replace('-', '_')}."
    return [f"{folder}/{name.replace('.', ending)}" for name in names]


def missing(providers: Mapping[str, Provider]) -> list[str]:
    bodies = [name for provider in providers.values() for path in provider.paths for name in wanted(provider, path)]
    return [name for name in bodies if name.partition("/")[2] not in expected_of(name.partition("/")[0])]


def test_every_provider_has_bodies_of_each_dialect_it_speaks():
    assert missing(BUILT_IN) == []


def test_every_path_has_its_bodies():
    assert BODIES.keys() == {path for provider in BUILT_IN.values() for path in provider.paths}


def test_a_provider_without_bodies_is_noticed(tmp_path):
    paths = '[paths]\nchat = "/chat"\nembeddings = "/embeddings"\n'
    (tmp_path / "ac-me.toml").write_text(f'name = "ac-me"\notel_name = "acme"\n{paths}')
    assert missing(load_providers(tmp_path)) == [
        "openai_chat/answer_ac_me.json",
        "openai_chat/stream_ac_me.sse",
        "openai_embeddings/answer_ac_me.json",
    ]
