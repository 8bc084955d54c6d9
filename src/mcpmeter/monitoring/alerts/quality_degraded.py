"""MCPQualityDegraded: a model's responses degrade while every call still succeeds (passive signals)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcpmeter.catalog import Metric, quality
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPQualityDegraded"
FACTOR: Final = Parameter("factor", "3", "Multiple of the last day's share that fires.")
RATIO: Final = Parameter("ratio", "0.05", "Accepted share of empty, cut-off or refused responses.", most="1")
ANSWERS: Final = Parameter("answers", "20", "Responses in 30 minutes below which it does not fire.")
SLOWDOWN: Final = Parameter(
    "slowdown", "0.5", "Share of the last day's tokens per second below which it fires.", most="1"
)
PARAMETERS: Final = (FACTOR, RATIO, ANSWERS, SLOWDOWN)

SIGNALS: Final[tuple[tuple[str, Metric], ...]] = (
    ("empty", quality.EMPTY),
    ("cut off", quality.TRUNCATIONS),
    ("refused", quality.REFUSALS),
)

ANSWERED: Final = 'mcp_finish_reasons_total{model="gpt-4.1",reason="stop"}'
EMPTY: Final = 'mcp_empty_completions_total{model="gpt-4.1"}'
CUT: Final = 'mcp_truncated_completions_total{model="gpt-4.1",provider="openai"}'


def speeds(slow: str, all_of_them: str) -> dict[str, str]:
    """Buckets of the output rate: the slow ones up to 10 tokens per second, the others up to 100."""
    name, labels = "mcp_output_tokens_per_second", 'model="gpt-4.1",provider="openai"'
    return {
        f'{name}_bucket{{{labels},le="10.0"}}': slow,
        f'{name}_bucket{{{labels},le="20.0"}}': slow,
        f'{name}_bucket{{{labels},le="80.0"}}': slow,
        f'{name}_bucket{{{labels},le="100.0"}}': all_of_them,
        f'{name}_bucket{{{labels},le="+Inf"}}': all_of_them,
        f"{name}_count{{{labels}}}": all_of_them,
    }


def alert(q: Queries) -> Alert:
    """Compares each signal with its last day, since normal values differ between models."""
    return Alert(
        name=NAME,
        area="quality",
        parameters=PARAMETERS,
        rules=tuple(_rules(q)),
        summary="Responses of {{ $labels.model }} have degraded ({{ $labels.signal }}).",
        description="Responses of {{ $labels.model }} are {{ $labels.signal }} far more often than in the last day: "
        "{{ $value | humanize }} ({{ $labels.unit }}) over the last 30 minutes.",
        runbook=Runbook(
            means="No call fails, but responses are empty, cut off, refused or slow. The provider changed the model "
            "behind a name or its machines, or prompts changed. After a day the new state becomes the baseline.",
            check=(
                Check("Finish reasons", q.rate(quality.FINISH_REASONS, "30m", "model", "reason")),
                Check("Median tokens per second", q.quantile("0.5", quality.OUTPUT_RATE, "30m", "model", "provider")),
                Check("Empty responses", q.increase(quality.EMPTY, "30m", "model")),
            ),
            do=(
                "Send the model a question with a known answer, through the relay and directly.",
                "`cut off`: check whether callers lowered max_tokens, or whether reasoning tokens use it up.",
                "`refused`: check whether a prompt changed. Exemplars on *LLM cost and tokens* have trace ids.",
                "The provider caused it: route the model elsewhere, then contact the provider.",
            ),
            fault="The provider, unless prompts or parameters changed that day.",
        ),
        step="4m",
        cases=(
            fires(
                "a fifth of the responses is empty for an hour",
                "26h",
                {ANSWERED: "0+10x400", EMPTY: "0x375 0+2x25"},
                Firing({"model": "gpt-4.1", "signal": "empty", "unit": "share of answers"}, "200m"),
            ),
            fires(
                "half of the responses is cut off, up from a tenth",
                "26h",
                {ANSWERED: "0+10x400", CUT: "0+1x375 375+5x25"},
                Firing({"model": "gpt-4.1", "signal": "cut off", "unit": "share of answers"}, "500m"),
            ),
            fires(
                "the token rate falls to a tenth",
                "26h",
                speeds("0x375 0+10x25", "0+10x400"),
                Firing({"model": "gpt-4.1", "provider": "openai", "signal": "slow", "unit": "tokens a second"}, "5"),
            ),
            quiet("a constant tenth is cut off", "26h", {ANSWERED: "0+10x400", CUT: "0+1x400"}),
            quiet(
                "low traffic: both responses of an hour are empty",
                "26h",
                {ANSWERED: "0+0.03x400", EMPTY: "0x388 1x5 2x8"},
            ),
            quiet("a restart resets the counters", "26h", {ANSWERED: "0+10x375 0+10x25", EMPTY: "0+0.1x375 0+0.1x25"}),
            quiet("first scrape of a model that was always bad", "40m", {ANSWERED: "0+10x15", EMPTY: "0+5x15"}),
            quiet("a model without responses", "26h", {EMPTY: "0x400"}),
            quiet(
                "one noisy replica of fifty",
                "26h",
                {
                    on("rest", ANSWERED): "0+490x400",
                    on("noisy", ANSWERED): "0+10x400",
                    on("noisy", EMPTY): "0x375 0+10x25",
                },
            ),
        ),
    )


def _rules(q: Queries) -> Iterator[Rule]:
    answers = q.increase(quality.FINISH_REASONS, "30m", "model")
    day = q.rate(quality.FINISH_REASONS, "1d", "model")
    for signal, row in SIGNALS:
        share = f"{q.rate(row, '30m', 'model')} / {q.rate(quality.FINISH_REASONS, '30m', 'model')}"
        usual = f"{q.rate(row, '1d', 'model')} / {day}"
        expr = f"{share} > {q[RATIO]} and {share} > {q[FACTOR]} * ({usual}) and {answers} >= {q[ANSWERS]}"
        yield Rule(expr=expr, hold="10m", labels={"signal": signal, "unit": "share of answers"})
    row, of = quality.OUTPUT_RATE, ("model", "provider")
    now, before = (q.quantile("0.5", row, window, *of) for window in ("30m", "1d"))
    count = q.increase(row, "30m", *of, part="count")
    expr = f"{now} < {q[SLOWDOWN]} * {before} and {count} >= {q[ANSWERS]}"
    yield Rule(expr=expr, hold="10m", labels={"signal": "slow", "unit": "tokens a second"})
