"""MCPQualityDegraded: a model's answers got worse while every call still succeeds (passive signals)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcpmeter.catalog import Metric, quality
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPQualityDegraded"
FACTOR: Final = Parameter("factor", "3", "How many times the day before a share must be.")
RATIO: Final = Parameter("ratio", "0.05", "Share of empty, cut-off or refused answers that may pass.", most="1")
ANSWERS: Final = Parameter("answers", "20", "Answers in 30 minutes below which nothing is said.")
SLOWDOWN: Final = Parameter("slowdown", "0.5", "Share of the day before's tokens a second that is too few.", most="1")
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
    """Buckets of the output rate: the slow ones up to 20 tokens a second, the others up to 100."""
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
    """Each signal against its own day before: what is normal differs from model to model."""
    return Alert(
        name=NAME,
        area="quality",
        parameters=PARAMETERS,
        rules=tuple(_rules(q)),
        summary="Answers of {{ $labels.model }} got worse ({{ $labels.signal }}).",
        description="Answers of {{ $labels.model }} are {{ $labels.signal }} far more than in the day before: "
        "{{ $value | humanize }} ({{ $labels.unit }}) over the last 30 minutes.",
        runbook=Runbook(
            means="Nothing fails, but answers are empty, cut off, refused or slow. A provider changed the model behind "
            "a name, moved to another machine, or prompts changed. After a day the new state is what is compared with.",
            check=(
                Check("Why answers end", q.rate(quality.FINISH_REASONS, "30m", "model", "reason")),
                Check("Median tokens a second", q.quantile("0.5", quality.OUTPUT_RATE, "30m", "model", "provider")),
                Check("Empty answers", q.increase(quality.EMPTY, "30m", "model")),
            ),
            do=(
                "Ask the model something you know the answer to, through the relay and directly.",
                "`cut off`: did callers lower max_tokens, or do reasoning tokens use it up?",
                "`refused`: did a prompt change? Look at one trace id of the exemplars on *LLM cost and tokens*.",
                "The provider's doing: route the model elsewhere, then write to the provider.",
            ),
            fault="The provider's, unless prompts or parameters changed on that day.",
        ),
        step="4m",
        cases=(
            fires(
                "a fifth of the answers is empty since an hour",
                "26h",
                {ANSWERED: "0+10x400", EMPTY: "0x375 0+2x25"},
                Firing({"model": "gpt-4.1", "signal": "empty", "unit": "share of answers"}, "200m"),
            ),
            fires(
                "half of the answers is cut off, which a tenth always was",
                "26h",
                {ANSWERED: "0+10x400", CUT: "0+1x375 375+5x25"},
                Firing({"model": "gpt-4.1", "signal": "cut off", "unit": "share of answers"}, "500m"),
            ),
            fires(
                "tokens come at a tenth of their speed",
                "26h",
                speeds("0x375 0+10x25", "0+10x400"),
                Firing({"model": "gpt-4.1", "provider": "openai", "signal": "slow", "unit": "tokens a second"}, "5"),
            ),
            quiet("always a tenth of them cut off", "26h", {ANSWERED: "0+10x400", CUT: "0+1x400"}),
            quiet(
                "low traffic: both answers of the hour are empty",
                "26h",
                {ANSWERED: "0+0.03x400", EMPTY: "0x388 1x5 2x8"},
            ),
            quiet("a restart resets the counters", "26h", {ANSWERED: "0+10x375 0+10x25", EMPTY: "0+0.1x375 0+0.1x25"}),
            quiet("first scrape of a model that was always bad", "40m", {ANSWERED: "0+10x15", EMPTY: "0+5x15"}),
            quiet("a model without answers", "26h", {EMPTY: "0x400"}),
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
