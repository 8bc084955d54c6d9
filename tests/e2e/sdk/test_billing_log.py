"""After calls of every SDK, the ledger, the counters and the provider's billing log are equal."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

MODELS = ("gpt-4.1", "claude-sonnet-4.5", "gemini-2.5-flash")


def call_everything(target, number):
    """One call of each dialect, with and without streaming."""
    text = f"Everything, time {number}"
    messages = [{"role": "user", "content": text}]
    usage = {"stream_options": {"include_usage": True}}
    return [
        target.openai.chat.completions.create(model=MODELS[0], messages=messages),
        list(target.openai.chat.completions.create(model=MODELS[0], messages=messages, stream=True, **usage)),
        target.openai.responses.create(model=MODELS[0], input=text),
        list(target.openai.responses.create(model=MODELS[0], input=text, stream=True)),
        target.openai.embeddings.create(model="text-embedding-3-small", input=text, dimensions=4),
        target.anthropic.messages.create(model=MODELS[1], max_tokens=99, messages=messages),
        list(target.anthropic.messages.create(model=MODELS[1], max_tokens=99, messages=messages, stream=True)),
        target.anthropic.messages.count_tokens(model=MODELS[1], messages=messages),
        target.gemini.models.generate_content(model=MODELS[2], contents=text),
        list(target.gemini.models.generate_content_stream(model=MODELS[2], contents=text)),
        target.gemini.models.count_tokens(model=MODELS[2], contents=text),
        target.gemini.models.embed_content(model="gemini-embedding-2", contents=text),
    ]


def tokens_of(scraped, provider, kind):
    return sum(
        sample.value
        for family in parse(scraped)
        for sample in family.samples
        if sample.name == "mcp_tokens_total"
        and (sample.labels["provider"], sample.labels["token_type"]) == (provider, kind)
    )


def test_ledger_and_counters_equal_the_billing_log(relay):
    relay.run(lambda target: [call_everything(target, number) for number in range(3)])
    assert relay.active_requests == 0
    rows = relay.rows()
    assert {row.operation for row in rows} >= {"chat", "embeddings", "generate_content", "count_tokens"}
    scraped = relay.scrape()
    # By provider: unregistered models share the label `other`.
    for provider in ("openai", "anthropic", "gemini"):
        sent = [row for row in rows if row.provider == provider]
        assert tokens_of(scraped, provider, "prompt") == sum(row.prompt_tokens for row in sent) > 0
        assert tokens_of(scraped, provider, "completion") == sum(row.completion_tokens for row in sent) > 0


@pytest.mark.parametrize("model", MODELS)
def test_openais_sdk_uses_every_provider(relay, model):
    alone = f"{model}-alone"
    response = relay.run(
        lambda target: target.openai.chat.completions.create(
            model=alone, messages=[{"role": "user", "content": "Alone"}]
        )
    )
    row = relay.row_of(alone)
    assert (row.prompt_tokens, row.completion_tokens) == (
        response.usage.prompt_tokens,
        response.usage.completion_tokens,
    )
    assert (row.outcome, row.token_source, row.team) == ("ok", "reported", "sdk")
