"""After calls by every SDK the ledger, the counters and the provider's own books say the same, and nothing is left."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

MODELS = ("gpt-4.1", "claude-sonnet-4.5", "gemini-2.5-flash")


def ask_everything(to, number):
    """A call of each dialect, whole and as a stream."""
    text = f"Everything, time {number}"
    asked = [{"role": "user", "content": text}]
    usage = {"stream_options": {"include_usage": True}}
    return [
        to.openai.chat.completions.create(model=MODELS[0], messages=asked),
        list(to.openai.chat.completions.create(model=MODELS[0], messages=asked, stream=True, **usage)),
        to.openai.responses.create(model=MODELS[0], input=text),
        list(to.openai.responses.create(model=MODELS[0], input=text, stream=True)),
        to.openai.embeddings.create(model="text-embedding-3-small", input=text, dimensions=4),
        to.anthropic.messages.create(model=MODELS[1], max_tokens=99, messages=asked),
        list(to.anthropic.messages.create(model=MODELS[1], max_tokens=99, messages=asked, stream=True)),
        to.anthropic.messages.count_tokens(model=MODELS[1], messages=asked),
        to.gemini.models.generate_content(model=MODELS[2], contents=text),
        list(to.gemini.models.generate_content_stream(model=MODELS[2], contents=text)),
        to.gemini.models.count_tokens(model=MODELS[2], contents=text),
        to.gemini.models.embed_content(model="gemini-embedding-2", contents=text),
    ]


def tokens_of(scraped, provider, kind):
    return sum(
        sample.value
        for family in parse(scraped)
        for sample in family.samples
        if sample.name == "mcp_tokens_total"
        and (sample.labels["provider"], sample.labels["token_type"]) == (provider, kind)
    )


def test_ledger_counters_and_the_providers_books_agree_and_nothing_is_left(arm):
    arm.run(lambda to: [ask_everything(to, number) for number in range(3)])
    if arm.relay is None:
        return
    arm.relay.assert_ledger_is_the_upstreams_books()
    assert arm.relay.active_requests == 0
    rows = arm.relay.rows()
    assert {row.operation for row in rows} >= {"chat", "embeddings", "generate_content", "count_tokens"}
    scraped = arm.scrape()
    # By provider: names of models that nothing announced are one label together.
    for provider in ("openai", "anthropic", "gemini"):
        sent = [row for row in rows if row.provider == provider]
        assert tokens_of(scraped, provider, "prompt") == sum(row.prompt_tokens for row in sent) > 0
        assert tokens_of(scraped, provider, "completion") == sum(row.completion_tokens for row in sent) > 0


@pytest.mark.parametrize("model", MODELS)
def test_every_providers_model_answers_openais_sdk_and_its_row_is_what_the_client_was_told(arm, model):
    alone = f"{model}-alone-{arm.name}"
    answer = arm.run(
        lambda to: to.openai.chat.completions.create(model=alone, messages=[{"role": "user", "content": "Alone"}])
    )
    row = arm.row_of(alone)
    if row is not None:
        assert (row.prompt_tokens, row.completion_tokens) == (
            answer.usage.prompt_tokens,
            answer.usage.completion_tokens,
        )
        assert (row.outcome, row.token_source, row.team) == ("ok", "reported", "sdk")
